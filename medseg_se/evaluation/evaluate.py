"""Judging a folder of predicted label maps against the truth: behind `medseg-se evaluate PREDICTIONS TRUTH`.

A prediction that is missing, failed or unusable counts as an empty one, so that no model looks better for having failed.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from medseg_se.data.datalist import Case, read_datalist, read_json, read_structures
from medseg_se.errors import DataError, UsageError
from medseg_se.files import write_json, write_text
from medseg_se.metrics.overlap import confusion, dice_from_confusion, volumes_from_confusion
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, case_name, is_scan, read_labels

MANIFEST = "predictions.json"
POLICY = (
    "A structure absent from both truth and prediction is not counted; absent from one of them, its Dice is 0. "
    "A missing, failed or unusable prediction counts as an empty one: 0 for every structure present in the truth. "
    "Voxels whose truth is unknown (the ignore value) are left out. "
    "The mean over foreground is the mean of the structures' means, regions aside."
)


@dataclass(frozen=True)
class CaseResult:
    """How well one case was predicted.

    Attributes:
        id: The case's name.
        dice: Judged structure or region → Dice; NaN where it is not counted.
        truth_ml: The same names → volume in the truth in ml.
        predicted_ml: The same names → volume in the prediction in ml.
        failure: Why the prediction could not be used, or None.
    """

    id: str
    dice: Mapping[str, float]
    truth_ml: Mapping[str, float]
    predicted_ml: Mapping[str, float]
    failure: str | None = None


@dataclass(frozen=True)
class Spread:
    """Dice of one structure over the cases in which it is counted; NaN and None where there is no such case.

    Attributes:
        mean: Mean.
        sd: Standard deviation with n - 1 in the denominator; NaN for fewer than two cases.
        median: Median.
        n: Number of counted cases.
        minimum: The lowest Dice.
        worst_case: Name of the (first) case with the lowest Dice.
    """

    mean: float
    sd: float
    median: float
    n: int
    minimum: float
    worst_case: str | None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        structures: What was judged.
        cases: The judged cases, in the order of their names.
        unjudged: Case → why its truth could not be read.
        extra: Names of predicted cases without truth.
    """

    structures: Structures
    cases: tuple[CaseResult, ...]
    unjudged: Mapping[str, str]
    extra: tuple[str, ...]

    @property
    def failures(self) -> dict[str, str]:
        """Case → why its prediction could not be used."""
        return {case.id: case.failure for case in self.cases if case.failure is not None}

    @property
    def failed(self) -> bool:
        """Whether a prediction could not be used or a truth could not be read; the command then exits with an error."""
        return bool(self.failures or self.unjudged)

    @property
    def mean_foreground(self) -> float:
        """Mean of the structures' mean Dice, regions aside; structures counted in no case are left out."""
        summary = self.summary()
        return _mean([summary[name].mean for name in self.structures.names if summary[name].n])

    def summary(self) -> dict[str, Spread]:
        """Return the spread of each structure and region over the cases."""
        return {name: self._spread(name) for name in self.structures.judged()}

    def _spread(self, name: str) -> Spread:
        counted = [(case.dice[name], case.id) for case in self.cases if not np.isnan(case.dice[name])]
        scores = np.array([score for score, _ in counted])
        if not counted:
            return Spread(np.nan, np.nan, np.nan, 0, np.nan, None)
        minimum, worst_case = min(counted, key=lambda pair: pair[0])
        sd = float(scores.std(ddof=1)) if len(counted) > 1 else np.nan
        return Spread(float(scores.mean()), sd, float(np.median(scores)), len(counted), minimum, worst_case)

    def write_csv(self, path: Path | str) -> None:
        """Write one row per case, one column per structure and region (empty where not counted), and the failure."""
        names = list(self.structures.judged())
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["case", *names, "failure"])
        for case in self.cases:
            scores = ["" if np.isnan(case.dice[name]) else repr(case.dice[name]) for name in names]
            table.writerow([case.id, *scores, case.failure or ""])
        write_text(path, text.getvalue())

    def write_json(self, path: Path | str) -> None:
        """Write policy, summary, cases, failures and what was not judged; NaN becomes null."""
        content = {
            "format": 1,
            "metric": "Dice",
            "policy": POLICY,
            "structures": self.structures.to_dict(),
            "mean_foreground": self.mean_foreground,
            "summary": {name: asdict(spread) for name, spread in self.summary().items()},
            "cases": [asdict(case) for case in self.cases],
            "failures": self.failures,
            "unjudged": dict(self.unjudged),
            "extra": list(self.extra),
        }
        write_json(path, content)

    def render(self, console: Console) -> None:
        """Print the table of structures, then failures, unreadable truths, extra predictions and the policy."""
        console.print(self._table())
        _print_listed(console, "Failed predictions, counted as empty", self.failures, "bold red")
        _print_listed(console, "Not judged, because the truth cannot be read", self.unjudged, "bold red")
        if self.extra:
            console.print(Text(f"Predicted without truth, not judged ({len(self.extra)}): {', '.join(self.extra)}", "yellow"))
        console.print(Text(POLICY, "dim"))

    def _table(self) -> Table:
        count = len(self.cases)
        table = Table(title=f"Dice over {count} case{'' if count == 1 else 's'}", title_justify="left")
        table.add_column("structure", overflow="fold")
        for heading in ("mean ± SD", "median", "worst"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("worst case", overflow="fold")
        table.add_column("n", justify="right", no_wrap=True)
        summary = self.summary()
        for name, spread in summary.items():
            shown = Text(name) if name not in self.structures.regions else Text(f"{name} (region)", "italic")
            mean = f"{_number(spread.mean)} ± {_number(spread.sd)}"
            median, worst = _number(spread.median), _number(spread.minimum)
            table.add_row(shown, mean, median, worst, Text(spread.worst_case or "–"), str(spread.n))
        table.add_section()
        counted = sum(summary[name].n > 0 for name in self.structures.names)
        structures = f"{counted} structure{'' if counted == 1 else 's'}"
        table.add_row("mean over foreground", f"{_number(self.mean_foreground)}        ", "", "", structures, "", style="bold")
        return table


def evaluate(
    predictions: Path | str,
    truth: Path | str,
    structures: Structures | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Judge every expected case of `predictions` against `truth`, matched by case name.

    Args:
        predictions: A folder of `<case>.nii.gz` or `<case>.nii`. If it holds a `predictions.json`, the cases that file
            lists are expected, failed ones included; otherwise every case that has a truth.
        truth: A folder of label maps, or a dataset (folder, `dataset.json` or CSV).
        structures: What the label values mean; by default what `truth` says.
        workers: Cases judged at the same time; memory grows with it. At most four by default.
        progress: Whether to show a progress bar on stderr.

    Raises:
        UsageError: Nothing says what the label values mean, or an argument makes no sense.
        DataError: A folder or its description is missing or contradicts itself, or no prediction belongs to a truth.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"Expected `workers` to be at least 1, but got {workers}.")
    truths, meaning = _find_truths(Path(truth), structures)
    predicted, listed = _find_predictions(Path(predictions))
    expected = sorted(set(truths) & set(predicted)) if listed else sorted(truths)
    if not set(expected) & set(predicted):
        raise DataError(
            f"No prediction in {predictions} belongs to a truth in {truth}: predicted are {_some(predicted)}, "
            f"but the truth has {_some(truths)}. Both sides need the same case names."
        )

    def judge(name: str) -> CaseResult | DataError:
        try:
            return _judge(name, truths[name], predicted.get(name, f"no prediction found in {predictions}"), meaning)
        except DataError as error:
            return error

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    with bar, ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        results = dict(zip(expected, bar.track(pool.map(judge, expected), len(expected), description="evaluate"), strict=True))
    return Evaluation(
        structures=meaning,
        cases=tuple(result for result in results.values() if isinstance(result, CaseResult)),
        unjudged={name: str(result) for name, result in results.items() if isinstance(result, DataError)},
        extra=tuple(sorted(set(predicted) - set(truths))),
    )


def _judge(name: str, truth_path: Path, prediction: Path | str, structures: Structures) -> CaseResult:
    """Judge one case; `prediction` is its file, or the reason why there is none."""
    truth = read_labels(truth_path)
    truth = replace(truth, array=structures.encode(truth.array, where=str(truth_path)))
    failure = None
    try:
        predicted = _read_prediction(prediction, truth, structures)
    except DataError as error:
        failure = str(error)
        predicted = np.broadcast_to(np.int16(0), truth.array.shape)
    judged = structures.judged()
    matrix = confusion(predicted, truth.array, structures.num_classes)
    _, in_truth, in_prediction = volumes_from_confusion(matrix, list(judged.values()))
    millilitres = abs(float(np.linalg.det(truth.affine[:3, :3]))) / 1000
    return CaseResult(
        id=name,
        dice=_by_structure(judged, dice_from_confusion(matrix, list(judged.values()))),
        truth_ml=_by_structure(judged, in_truth * millilitres),
        predicted_ml=_by_structure(judged, in_prediction * millilitres),
        failure=failure,
    )


def _read_prediction(prediction: Path | str, truth: Volume, structures: Structures) -> npt.NDArray[np.int16]:
    if isinstance(prediction, str):
        raise DataError(prediction)
    labels = read_labels(prediction)
    difference = labels.same_grid(truth)
    if difference:
        raise DataError(f"{prediction} lies on a different grid: {difference} (prediction against truth).")
    # "Unknown" is no answer: a prediction that holds the ignore value is as undeclared as any other stray value.
    return replace(structures, ignore=None).encode(labels.array, where=str(prediction))


def _find_predictions(folder: Path) -> tuple[dict[str, Path | str], bool]:
    """Return case → its file or the reason why there is none, and whether a manifest says which cases were predicted."""
    if not folder.is_dir():
        raise DataError(f"Expected a folder of predicted label maps, but got {folder}.")
    if not (folder / MANIFEST).is_file():
        return {**_label_maps(folder)}, False
    path = folder / MANIFEST
    cases = read_json(path).get("cases")
    if not isinstance(cases, dict) or not all(isinstance(entry, dict) for entry in cases.values()):
        raise DataError(f"Expected {path} to list 'cases' by their names. Predict again, or remove the file.")
    return {name: _promised(folder, entry) for name, entry in cases.items()}, True


def _promised(folder: Path, entry: Mapping[str, Any]) -> Path | str:
    status, file = entry.get("status"), entry.get("file")
    if status == "done" and isinstance(file, str):
        return folder / file
    if status == "failed":
        return f"the prediction failed: {entry.get('error') or 'no reason was given'}"
    return f"{MANIFEST} has the status {status!r} and the file {file!r} for it"


def _find_truths(source: Path, structures: Structures | None) -> tuple[dict[str, Path], Structures]:
    """Return case → label map, and what the label values mean."""
    if source.is_file() or (source.is_dir() and _describes_dataset(source)):
        datalist = read_datalist(source, structures)
        truths = {case.id: case.label for case in datalist.training if case.label is not None}
        for name, path in _test_truths(datalist.test).items():
            if name in truths:
                raise DataError(f"{datalist.source} has a truth for {name!r} in training and in test; rename one of the cases.")
            truths[name] = path
        structures = datalist.structures
    elif source.is_dir():
        truths = _label_maps(source)
    else:
        raise DataError(f"No such truth: {source}. Expected a folder of label maps, or a dataset (folder, JSON file or CSV).")
    if not truths:
        raise DataError(f"{source} has no label map to judge against.")
    return truths, structures or _structures_beside(source)


def _describes_dataset(folder: Path) -> bool:
    """Tell a dataset from a plain folder of label maps, which may hold tables of other kinds."""
    if (folder / "dataset.json").is_file():
        return True
    tables = [path.read_text(encoding="utf-8-sig", errors="replace") for path in folder.glob("*.csv")]
    return len(tables) == 1 and "image" in tables[0].partition("\n")[0].strip().split(",")


def _test_truths(cases: Iterable[Case]) -> dict[str, Path]:
    """Return case → label map of test cases: their own, or one of the same name in `labelsTs` beside their images."""
    cases = list(cases)
    held_back = {folder: _label_maps(folder) for case in cases if (folder := _labels_folder(case)).is_dir()}
    found = {case.id: case.label or held_back.get(_labels_folder(case), {}).get(case.id) for case in cases}
    return {name: path for name, path in found.items() if path is not None}


def _labels_folder(case: Case) -> Path:
    return case.images[0].parent.parent / "labelsTs"


def _structures_beside(folder: Path) -> Structures:
    """Return what a folder of label maps says of its values, itself or as `labelsTr` of a dataset folder."""
    for place in (folder, folder.absolute().parent):
        if any((place / name).is_file() for name in ("dataset.json", "structures.json", "labels.json")):
            return read_structures(place)
    raise UsageError(
        f"Nothing in {folder} says what its label values mean. Give --structures with a JSON file of names and values, "
        "or put it there as structures.json."
    )


def _label_maps(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_scan(path):
            continue
        twin = found.setdefault(case_name(path), path)
        if twin != path:
            raise DataError(f"Both {twin} and {path} claim to be case {case_name(path)}; remove one.")
    return found


def _by_structure(names: Iterable[str], values: npt.NDArray[Any]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "") if listed else "none"


def _print_listed(console: Console, heading: str, reasons: Mapping[str, str], style: str) -> None:
    if reasons:
        console.print(Text(f"{heading} ({len(reasons)}):", style))
    for name, reason in reasons.items():
        console.print(Text(f"  {name}: {reason}"))
