"""Checking a dataset before a night is spent on it: every file is read once, every fault is named with its remedy.

Cases are read in parallel and only a summary of each is kept, so memory is bounded by the largest case times the workers.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from medseg_se.data.datalist import Case, Datalist
from medseg_se.errors import DataError, UsageError
from medseg_se.processors import at_once
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image, read_labels

Severity = Literal["error", "warning"]

ODD = 5.0  # robust z-score beyond which a case is an odd one out
ODD_NEEDS = 5  # cases, below which nothing can be said to be odd
MIXED = 0.1  # share of odd cases beyond which they are no longer odd ones out: the dataset has several kinds of scan
AXES = {"left-right": "LR", "back-front": "PA", "down-up": "IS"}


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        severity: "error" if training on the data would fail or mislead, "warning" if a person should look.
        case: The case's id; empty if the dataset as a whole is meant.
        code: The kind of fault in words that do not change, for example "missing-file".
        message: What is wrong, in which file, and what to do.
    """

    severity: Severity
    case: str
    code: str
    message: str


@dataclass(frozen=True)
class Summary:
    """What the readable files hold; every range is [lowest, median, highest] over the cases.

    Attributes:
        spacing: World axis ("left-right", "back-front", "down-up") → range of the spacing in mm.
        size: World axis → range of the number of voxels.
        intensity: Channel → [lowest intensity, median of the cases' means, highest intensity].
        orientations: Orientation, such as "RAS" → number of cases.
        structures: Structure → its "voxels" in all label maps and the number of "cases" that hold it.
    """

    spacing: dict[str, list[float]]
    size: dict[str, list[float]]
    intensity: dict[str, list[float]]
    orientations: dict[str, int]
    structures: dict[str, dict[str, int]]


@dataclass(frozen=True)
class CheckReport:
    """The outcome of `check_datalist`: findings with errors first, then in the order of the datalist."""

    findings: tuple[Finding, ...]
    cases: int
    summary: Summary

    @property
    def broken(self) -> bool:
        """Whether there is any error."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {"cases": self.cases, "broken": self.broken, "findings": findings, "summary": asdict(self.summary)}


@dataclass(frozen=True)
class _Channel:
    """What is kept of one channel; `digest` is that of its shape and its voxels as float32."""

    number: int
    path: Path
    low: float
    high: float
    mean: float
    std: float
    digest: bytes


@dataclass
class _Seen:
    """What is kept of a case once its arrays are gone; spacing and size run along `AXES`, empty if nothing was read."""

    case: Case
    is_test: bool
    findings: list[Finding] = field(default_factory=list)
    spacing: tuple[float, ...] = ()
    size: tuple[int, ...] = ()
    orientation: str = ""
    channels: list[_Channel] = field(default_factory=list)
    voxels: dict[str, int] | None = None

    def error(self, code: str, message: str) -> None:
        self.findings.append(Finding("error", self.case.id, code, message))

    def warning(self, code: str, message: str) -> None:
        self.findings.append(Finding("warning", self.case.id, code, message))


def check_datalist(datalist: Datalist, workers: int | None = None, progress: bool = True) -> CheckReport:
    """Read every file of `datalist` and report all that would make training fail or mislead.

    Args:
        datalist: The cases to check.
        workers: Cases read at the same time; as many as there are processors, at most 8, if None.
        progress: Show a progress bar if there is a terminal.

    Raises:
        UsageError: There is less than one worker.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"Expected `workers` to be at least 1, but got {workers}.")
    jobs = [_Seen(case, is_test=False) for case in datalist.training] + [_Seen(case, is_test=True) for case in datalist.test]
    bar = Progress(console=Console(stderr=True), disable=not (progress and sys.stderr.isatty()), transient=True)
    with bar, ThreadPoolExecutor(workers or at_once()) as pool:
        examined = pool.map(lambda job: _examine(job, datalist), jobs)  # threads: gzip and hashing release the GIL
        seen = list(bar.track(examined, total=len(jobs), description="Reading"))
    findings = [finding for entry in seen for finding in entry.findings]
    findings += [*_same_voxels(seen), *_odd_grids(seen)]
    findings += [finding for number, name in enumerate(datalist.channels) for finding in _odd_intensities(seen, number, name)]
    findings += _absent_structures(seen, datalist.structures)
    place = {case_id: position for position, case_id in reversed(list(enumerate(entry.case.id for entry in seen)))}
    findings.sort(key=lambda finding: (finding.severity != "error", place.get(finding.case, len(seen))))
    return CheckReport(tuple(findings), len(jobs), _summarise(seen, datalist))


# ------------------------------------------------------------------------------------------------------------------ one case


def _examine(entry: _Seen, datalist: Datalist) -> _Seen:
    """Fill `entry` with what the files of its case hold; one fault does not hide the next."""
    paths = entry.case.images
    opened = [_attempt(entry, path) for path in paths]
    images = [image for image in opened if image is not None]
    for image in images[1:]:
        if difference := images[0].same_grid(image):
            message = f"The channels {images[0].path} and {image.path} lie on different grids: {difference}."
            entry.error("different-grids", f"{message} Resample one onto the other, or correct its header.")
    for place, opened_image in enumerate(opened):
        if opened_image is not None:
            _examine_voxels(entry, opened_image, first=place)
    found, wanted = sum(image.array.shape[0] for image in images), len(datalist.channels)
    if paths and len(images) == len(paths) and found != wanted:
        message = f"Expected {wanted} channels ({', '.join(datalist.channels)}), but {', '.join(map(str, paths))} has {found}."
        entry.error("wrong-channels", f"{message} Correct the dataset's channels, or the files.")
    if images:
        _note_grid(entry, images[0])
    _examine_label(entry, images, datalist.structures)
    return entry


def _note_grid(entry: _Seen, volume: Volume) -> None:
    """Keep spacing and size in the order of the world's axes, so that scans that merely lie turned in their files compare."""
    code = volume.orientation
    order = [next(axis for axis in range(3) if code[axis] in ends) for ends in AXES.values()]
    entry.spacing = tuple(volume.spacing[axis] for axis in order)
    entry.size = tuple(volume.shape[axis] for axis in order)
    entry.orientation = code


def _attempt(entry: _Seen, path: Path, labels: bool = False) -> Volume | None:
    """Read a file, or note why that failed."""
    try:
        return read_labels(path) if labels else read_image(path)
    except DataError as error:
        if path.exists():
            entry.error("unreadable-file", str(error))
        else:
            entry.error("missing-file", f"{error} Restore it, or take the case out of the dataset's list.")
        return None


def _examine_voxels(entry: _Seen, image: Volume, first: int) -> None:
    """Summarise every channel of `image` that has a finite voxel; the first of them is channel `first` of the case."""
    path = image.path or entry.case.images[0]
    bad = 0
    for number, channel in enumerate(image.array, start=first):
        finite = np.isfinite(channel)
        values = channel.ravel() if finite.all() else channel[finite]
        bad += channel.size - values.size
        if values.size == 0:
            continue
        low, high, mean = float(values.min()), float(values.max()), float(values.mean(dtype=np.float64))
        # einsum widens to float64 in small buffers, where std() would make a copy twice the size of the scan.
        square = float(np.einsum("i,i->", values, values, dtype=np.float64)) / values.size
        digest = hashlib.blake2b(repr(channel.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(channel).data)
        entry.channels.append(_Channel(number, path, low, high, mean, max(0.0, square - mean**2) ** 0.5, digest.digest()))
        if low == high and finite.all():
            message = f"Every voxel of {path} (channel {number}) is {low:g}. Export the scan again, or leave the case out."
            entry.warning("constant-image", message)
    if bad:
        entry.error(
            "not-finite", f"{path} holds {bad} voxels that are NaN or infinite. Repair the scan, or leave the case out."
        )


def _examine_label(entry: _Seen, images: Sequence[Volume], structures: Structures) -> None:
    path = entry.case.label
    if path is None:
        if not entry.is_test:
            message = f"Training case {entry.case.id} has no label map. Add one, or move the case to the test list."
            entry.error("no-label", message)
        return
    labels = _attempt(entry, path, labels=True)
    if labels is None:
        return
    if images and (difference := images[0].same_grid(labels)):
        message = f"The image {images[0].path} and the label map {path} lie on different grids: {difference}."
        entry.error("different-grids", f"{message} Resample the label map onto the image, or correct the header that is wrong.")
    if not entry.case.images:
        _note_grid(entry, labels)
    values, counts = np.unique(labels.array, return_counts=True)
    voxels_of = dict(zip(values.tolist(), counts.tolist(), strict=True))
    entry.voxels = {name: sum(voxels_of.get(value, 0) for value in meant) for name, meant in structures.values.items()}
    try:
        structures.encode(values, where=str(path))  # each value once: as good as the whole map, and instant
    except DataError as error:
        entry.error("undeclared-labels", str(error))
        return
    if not any(entry.voxels.values()):
        message = f"{path} holds no structure at all. Check that it is the right file, or leave the case out."
        entry.warning("empty-label", message)


# ----------------------------------------------------------------------------------------------------------------- all cases


def _same_voxels(seen: Sequence[_Seen]) -> Iterator[Finding]:
    """Find images with the same voxels, each pair of cases once. Constant images are not twins of each other."""
    owners: dict[bytes, tuple[_Seen, _Channel]] = {}
    for entry in seen:
        paired = set()
        for channel in entry.channels:
            if channel.low == channel.high:
                continue
            owner, twin = owners.setdefault(channel.digest, (entry, channel))
            if twin is not channel and id(owner) not in paired:
                paired.add(id(owner))
                yield _twin_finding(entry, channel, owner, twin)


def _twin_finding(entry: _Seen, channel: _Channel, owner: _Seen, twin: _Channel) -> Finding:
    name, mine, other = entry.case.id, entry.case.group, owner.case.group
    if owner is entry:
        message = f"Channels {twin.number} and {channel.number} hold the same voxels ({twin.path}, {channel.path})."
        return Finding("warning", name, "repeated-channel", f"{message} Correct the list of files.")
    same = f"{channel.path} holds the same voxels as {twin.path} of case {owner.case.id}"
    if entry.is_test and not owner.is_test:
        message = f"{same}, which is for training: a score on it would mislead. Remove one of them."
        return Finding("error", name, "test-in-training", message)
    if not entry.is_test and mine != other:
        message = f"{same}, but their groups are {mine!r} and {other!r}: a split could train and validate on one scan."
        return Finding("error", name, "duplicate-image", f"{message} Remove one of them, or give both the same group.")
    return Finding("warning", name, "duplicate-image", f"{same}. Remove one of them, unless that is meant.")


def _odd_grids(seen: Sequence[_Seen]) -> list[Finding]:
    """Find cases whose spacing or size is far from the others; both are compared as ratios."""
    read = [entry for entry in seen if entry.spacing]
    if not read:
        return []
    files = [entry.case.files()[0] for entry in read]
    spacing, size = np.array([entry.spacing for entry in read]), np.array([entry.size for entry in read])
    usual = f"the median is {_times(np.median(spacing, axis=0), '.3g')} mm ({', '.join(AXES)})"
    texts = [f"{file} has a spacing of {_times(row, '.3g')} mm; {usual}." for file, row in zip(files, spacing, strict=True)]
    found = _odd_ones_out(read, np.log(spacing), 0.05, "spacing", texts, "Check the header.")
    usual = f"the median is {_times(np.median(size, axis=0), '.0f')} ({', '.join(AXES)})"
    texts = [f"{file} has {_times(row, 'd')} voxels; {usual}." for file, row in zip(files, size, strict=True)]
    return found + _odd_ones_out(read, np.log(size), 0.1, "size", texts, "Check that it shows the same region.")


def _odd_intensities(seen: Sequence[_Seen], number: int, name: str) -> list[Finding]:
    """Find cases whose mean, in units of the usual contrast, or whose contrast, as a ratio, is far from the others."""
    pairs = [(entry, channel) for entry in seen for channel in entry.channels if channel.number == number and channel.std > 0]
    if not pairs:
        return []
    means, stds = np.array([channel.mean for _, channel in pairs]), np.array([channel.std for _, channel in pairs])
    contrast = float(np.median(stds))
    usual = f"the median is {np.median(means):.4g} ± {contrast:.4g}"
    texts = [
        f"{channel.path} ({name}) has intensities of {channel.mean:.4g} ± {channel.std:.4g}; {usual}." for _, channel in pairs
    ]
    values = np.stack([means / contrast, np.log(stds)], axis=1)
    remedy = "Check its units, and that it is the same kind of scan."
    return _odd_ones_out([entry for entry, _ in pairs], values, 0.2, "intensity", texts, remedy)


def _odd_ones_out(
    entries: Sequence[_Seen], values: npt.NDArray[np.float64], floor: float, kind: str, texts: Sequence[str], remedy: str
) -> list[Finding]:
    """Return a warning for each odd row of (N, K) `values`, or one for the dataset if so many are odd that it is mixed."""
    rows = odd_rows(values, floor)
    if len(rows) <= max(3, MIXED * len(entries)):
        return [Finding("warning", entries[row].case.id, f"odd-{kind}", f"{texts[row]} {remedy}") for row in rows]
    message = f"The {kind} of {len(rows)} in {len(entries)} cases is far from the others': the dataset is mixed."
    advice = "Have preprocessing make the cases alike, and let every fold hold some of each kind."
    return [Finding("warning", "", f"mixed-{kind}", f"{message} For example, {texts[rows[0]]} {advice}")]


def odd_rows(values: npt.NDArray[np.float64], floor: float, least: int = ODD_NEEDS) -> list[int]:
    """Return the rows of (N, K) `values` with a robust z-score beyond `ODD` in any column; none of fewer than `least` rows.

    The modified z-score of Iglewicz and Hoaglin (1993), |x - median| / (1.4826 MAD). `floor` is the least spread that is
    believed: where most cases agree exactly, MAD is 0 and the slightest deviation would be infinitely odd.
    """
    if len(values) < least:
        return []
    away = np.abs(values - np.median(values, axis=0))
    spread = np.maximum(1.4826 * np.median(away, axis=0), floor)
    return [int(row) for row in np.flatnonzero((away > ODD * spread).any(axis=1))]


def _times(values: npt.NDArray[Any], form: str) -> str:
    return " × ".join(format(value, form) for value in values)


def _absent_structures(seen: Sequence[_Seen], structures: Structures) -> list[Finding]:
    labelled = [entry.voxels for entry in seen if entry.voxels is not None]
    absent = [name for name in structures.names if labelled and not any(voxels[name] for voxels in labelled)]
    if not absent:
        return []
    message = f"No label map holds {', '.join(absent)}. Take it out of the dataset's labels, or add cases that show it."
    return [Finding("warning", "", "absent-structure", message)]


def _summarise(seen: Sequence[_Seen], datalist: Datalist) -> Summary:
    read = [entry for entry in seen if entry.spacing]
    intensity = {}
    for number, name in enumerate(datalist.channels):
        channels = [channel for entry in seen for channel in entry.channels if channel.number == number]
        if channels:
            low, high = min(channel.low for channel in channels), max(channel.high for channel in channels)
            intensity[name] = [low, float(np.median([channel.mean for channel in channels])), high]
    labelled = [entry.voxels for entry in seen if entry.voxels is not None]
    counts = {name: [voxels[name] for voxels in labelled] for name in datalist.structures.names}
    return Summary(
        spacing={name: _range([entry.spacing[axis] for entry in read]) for axis, name in enumerate(AXES) if read},
        size={name: _range([entry.size[axis] for entry in read]) for axis, name in enumerate(AXES) if read},
        intensity=intensity,
        orientations=dict(Counter(entry.orientation for entry in read).most_common()),
        structures={name: {"voxels": sum(found), "cases": sum(map(bool, found))} for name, found in counts.items()},
    )


def _range(values: Sequence[float]) -> list[float]:
    return [float(min(values)), float(np.median(values)), float(max(values))]


# ------------------------------------------------------------------------------------------------------------------- showing


def render(report: CheckReport, console: Console) -> None:
    """Print one table of findings, or a line that there are none, and a compact table of what the dataset holds."""
    if report.findings:
        console.print(_findings_table(report))
    else:
        console.print(Text(f"Cases: {report.cases}. Nothing is wrong.", style="green"))
    table = Table(title="What the files hold (lowest / median / highest)", show_header=False)
    for row in _summary_rows(report.summary):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _findings_table(report: CheckReport) -> Table:
    errors = sum(finding.severity == "error" for finding in report.findings)
    table = Table(title=f"Cases: {report.cases}, errors: {errors}, warnings: {len(report.findings) - errors}")
    for heading in ("severity", "case", "code", "what, and what to do"):
        table.add_column(heading, no_wrap=heading == "severity", overflow="fold")
    for finding in report.findings:
        severity = Text(finding.severity, style="red" if finding.severity == "error" else "yellow")
        table.add_row(severity, *(Text(cell) for cell in (finding.case or "(dataset)", finding.code, finding.message)))
    return table


def _summary_rows(summary: Summary) -> Iterator[tuple[str, str]]:
    for heading, ranges in (("spacing", summary.spacing), ("voxels", summary.size), ("intensity", summary.intensity)):
        for name, spread in ranges.items():
            yield f"{heading} {name}{' (mm)' if heading == 'spacing' else ''}", " / ".join(f"{value:.4g}" for value in spread)
    if summary.orientations:
        yield "orientation", ", ".join(f"{name} ({count})" for name, count in summary.orientations.items())
    for name, found in summary.structures.items():
        if found["cases"]:
            yield f"structure {name}", f"{found['voxels']:,} voxels, cases: {found['cases']}"
