"""Prediction of a cohort: one loaded model, one result a case, and a record of what became of each.

`predictions.json` in the output folder says for every case that was asked for whether it is done, with which model and from
which file. A rerun skips what is done; evaluation counts what failed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from medseg_se.data.datalist import MANIFEST, Case, read_json
from medseg_se.data.scan import read_channels
from medseg_se.errors import DataError, MedsegError, OutputError, UsageError
from medseg_se.files import digest_of, write_json
from medseg_se.inference.ensemble import Ensemble
from medseg_se.inference.model import Model
from medseg_se.inference.tiling import check_overlap
from medseg_se.volumes import write_volume

log = logging.getLogger(__name__)

FORMAT = 1
Which = Literal["all", "validation", "unseen"]


@dataclass
class Status:
    """What became of one case.

    Attributes:
        status: "done", "failed", or "waiting".
        file: Name of the result in the output folder.
        error: Why it failed.
        seconds: Time it took.
        input: Digest of its image files.
        known: "training" or "validation" if the model has seen the scan, else "".
    """

    status: Literal["done", "failed", "waiting"]
    file: str
    error: str | None = None
    seconds: float = 0.0
    input: str = ""
    known: str = ""


def choose_cases(cases: Sequence[Case], model: Model | Ensemble, which: Which) -> list[Case]:
    """Return all cases, those that chose the checkpoint in validation, or those that played no part in either.

    Scans are recognised by their content, under whatever name.
    """
    if which == "all":
        return list(cases)
    if which not in ("validation", "unseen"):
        raise UsageError(f"Expected `cases` to be all, validation or unseen, but got {which!r}.")
    chosen = []
    for case in cases:
        digest = digest_of(case.images)
        if (digest in model.validation) if which == "validation" else (digest not in model.training | model.validation):
            chosen.append(case)
    if not chosen:
        what = "a validation scan of" if which == "validation" else "new to"
        raise DataError(f"None of the {len(cases)} scans is {what} this model.")
    return chosen


def predict_cases(
    model: Model | Ensemble,
    cases: Sequence[Case],
    output: Path,
    overlap: float = 0.5,
    probabilities: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Status]:
    """Segment every case that is not done yet and write the results to `output`; returns what became of each.

    A broken case is recorded and the rest go on.

    Args:
        model: The model.
        cases: The cases.
        output: Folder for `CASE.nii.gz` and `predictions.json`.
        overlap: Share of a tile that its neighbour covers too.
        probabilities: Also write `CASE_probabilities.nii.gz`, one volume a class, background first, or a region.
        overwrite: Replace what another model or other options left in the folder.
        progress: Whether to show a progress bar.

    Raises:
        UsageError: The folder holds results of another model, files that are not ours or the scans themselves, or the overlap
            makes no sense.
        OutputError: A result cannot be written; the rest would fail too.
    """
    check_overlap(overlap)
    options = {"model": model.digest, "overlap": overlap, "probabilities": probabilities, "precision": model.precision}
    record = _open_record(output, options, overwrite)
    _guard(cases, output, record, probabilities, overwrite)
    for case in cases:
        record.setdefault(case.id, Status("waiting", f"{case.id}.nii.gz"))
    save_record(output, options, record)
    console = Console(stderr=True)
    for case in track(cases, description="predicting", console=console, disable=not progress, transient=True):
        _predict_case(model, case, output, record[case.id], overlap, probabilities)
        save_record(output, options, record)
    return {case.id: record[case.id] for case in cases}


def _predict_case(
    model: Model | Ensemble, case: Case, output: Path, status: Status, overlap: float, probabilities: bool
) -> None:
    started = time.perf_counter()
    files = _result_files(case, output, probabilities)
    try:
        digest = digest_of(case.images)
        if status.status == "done" and status.input == digest and all(file.is_file() for file in files):
            return
        status.input = digest
        status.known = "training" if digest in model.training else "validation" if digest in model.validation else ""
        image = read_channels(case.images, len(model.channels))
        prediction = model.predict(image, overlap, probabilities)
        if prediction.probabilities is not None:
            write_volume(prediction.probabilities, files[1], like=image)
        write_volume(prediction.labels, files[0], like=image)
        status.status, status.error = "done", None
    except OutputError as error:
        status.status, status.error = "failed", str(error)
        raise
    except MedsegError as error:
        status.status, status.error = "failed", str(error)
    except (MemoryError, RuntimeError) as error:
        exhausted = isinstance(error, MemoryError) or "memory" in str(error)
        text = "there is not enough memory to segment it" if exhausted else " ".join(str(error).split())
        status.status, status.error = "failed", f"{case.images[0]}: {text}"
        log.debug("case %s failed", case.id, exc_info=True)
    status.seconds = round(time.perf_counter() - started, 2)


def _result_files(case: Case, output: Path, probabilities: bool) -> list[Path]:
    endings = [".nii.gz", "_probabilities.nii.gz"] if probabilities else [".nii.gz"]
    return [output / f"{case.id}{ending}" for ending in endings]


def _open_record(output: Path, options: dict[str, Any], overwrite: bool) -> dict[str, Status]:
    path = output / MANIFEST
    if output.exists() and not output.is_dir():
        raise OutputError(f"Expected `output` to be a folder, but {output} is a file.")
    if not path.is_file():
        return {}
    content = read_json(path)
    same = content.get("format") == FORMAT and content.get("options") == options
    if not same and not overwrite:
        raise UsageError(
            f"{output} holds predictions of another model or with other options. Choose another folder, or --overwrite."
        )
    try:
        if not same:
            return {name: Status("waiting", f"{name}.nii.gz") for name in content.get("cases", {})}
        return {name: Status(**entry) for name, entry in content["cases"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path} was not written by this command or is damaged. Remove it, and run again.") from error


def _guard(cases: Sequence[Case], output: Path, record: dict[str, Status], probabilities: bool, overwrite: bool) -> None:
    """Refuse to write outside of the folder, over a scan or its truth, or over a file that is not in our record."""
    sources = {path.resolve() for case in cases for path in (*case.images, case.label) if path}
    writers: dict[Path, str] = {}
    for case in cases:
        if not case.id or Path(case.id).name != case.id:
            raise DataError(f"Expected the name of a case to be one of a file, but got {case.id!r} ({case.images[0]}).")
        for file in _result_files(case, output, probabilities):
            if file.resolve() in sources:
                raise UsageError(f"The result of {case.id} would overwrite the scan or truth {file}. Choose another folder.")
            if writers.setdefault(file, case.id) != case.id:
                raise UsageError(f"{writers[file]} and {case.id} would both be written to {file}; predict them apart.")
            if file.exists() and case.id not in record and not overwrite:
                raise UsageError(f"{file} exists and was not written by this command. Choose another folder, or --overwrite.")


def save_record(output: Path, options: dict[str, Any], record: dict[str, Status]) -> None:
    """Write `predictions.json`."""
    cases = {name: asdict(status) for name, status in record.items()}
    write_json(output / MANIFEST, {"format": FORMAT, "model": options["model"], "options": options, "cases": cases})


def render(statuses: dict[str, Status], console: Console) -> None:
    """Print what became of each case, failures last, and a line of totals."""
    table = Table(Column("case", overflow="fold"), "status", "seconds", Column("note", overflow="fold"), title="predictions")
    for name, status in sorted(statuses.items(), key=lambda item: (item[1].status == "failed", item[0])):
        seen = {"training": "the model was trained on it", "validation": "the model was chosen on it"}.get(status.known, "")
        style = "red" if status.status == "failed" else ""
        table.add_row(Text(name), status.status, f"{status.seconds:.1f}", Text(status.error or seen), style=style)
    console.print(table)
    counted = Counter(status.status for status in statuses.values())
    console.print(", ".join(f"{number} {what}" for what, number in sorted(counted.items())), highlight=False)
    trained = sum(status.known == "training" for status in statuses.values())
    if trained:
        console.print(
            f"The model was trained on {trained} of these scans: their Dice says nothing about new ones.", style="yellow"
        )
