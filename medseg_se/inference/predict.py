"""Prediction of a cohort: one loaded model, one result a case, and a record of what became of each.

`predictions.json` in the output folder says for every case that was asked for whether it is done, with which model and from
which file; `status.csv` says it to people. A rerun skips what is done; evaluation counts what failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medseg_se.data.datalist import MANIFEST, Case
from medseg_se.errors import DataError, UsageError
from medseg_se.inference.ensemble import Ensemble
from medseg_se.inference.job import Job, Task
from medseg_se.inference.journal import locked
from medseg_se.inference.model import Model
from medseg_se.inference.pipeline import Note, run_pipeline
from medseg_se.inference.reading import digest_of_scan
from medseg_se.inference.record import TABLE, Record, read_record
from medseg_se.inference.settings import Settings
from medseg_se.inference.shard import Shard
from medseg_se.inference.source import ModelSource
from medseg_se.inference.status import Outcome, Status, render
from medseg_se.inference.volumes_report import COHORT, write_cohort
from medseg_se.optional import load_optional

__all__ = ["Outcome", "Shard", "Status", "choose_cases", "predict_cases", "render"]

Which = Literal["all", "validation", "unseen"]


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
        digest = digest_of_scan(case)
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
    settings: Settings = Settings(),  # noqa: B008 - frozen
    *,
    probabilities: bool = False,
    uncertainty: bool = False,
    report: bool = True,
    dicom_seg: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    shard: Shard | None = None,
    readers: int = 1,
    workers: int = 1,
    cluster: str | None = None,
    source: ModelSource | None = None,
) -> Outcome:
    """Segment every case that is not done yet and write the results to `output`; returns what became of each.

    A broken case is recorded and the rest go on. Several runs may write to one folder at the same time, with shards of a
    cohort above all; a run may be killed at any instant, and the next one finishes what is missing.

    Args:
        model: The model.
        cases: The cases.
        output: Folder for `CASE.nii.gz`, `predictions.json` and `status.csv`.
        settings: How a scan is looked at.
        probabilities: Also write `CASE_probabilities.nii.gz`, one volume a class, background first, or a region.
        uncertainty: Also tell how uncertain each structure is, in the reports of volumes.
        report: Also write `CASE_volumes.csv`, and `volumes.csv` for all of them.
        dicom_seg: Of a DICOM series, also write `CASE_seg.dcm`, a DICOM segmentation.
        strict: Whether a scan that is unlike those the model was trained on is refused rather than segmented with a warning.
        overwrite: Replace what another model or other options left in the folder.
        progress: Whether to show a progress bar.
        shard: The part of the cases to segment; the record lists all of them.
        readers: Scans that are read and prepared at the same time; memory grows with it.
        workers: Processes with a model each; or actors of a cluster.
        cluster: Address of a Ray cluster, such as ray://host:10001, or "local".
        source: Where `model` was loaded from; needed for several workers or a cluster.

    Raises:
        UsageError: The folder holds results of another model, files that are not ours or the scans themselves, or an argument
            makes no sense.
        OutputError: A result cannot be written; the rest would fail too.
    """
    if workers < 1 or readers < 1:
        raise UsageError(f"Expected `workers` and `readers` to be at least 1, but got {workers} and {readers}.")
    if uncertainty and not report:
        raise UsageError("The uncertainty of structures is told in the report of volumes, which is left out here.")
    if (workers > 1 or cluster) and source is None:
        raise UsageError("Expected `source`, from which the other processes load the model, but got none.")
    if dicom_seg:
        load_optional("highdicom")  # here rather than after the first scan
    started = time.perf_counter()
    job = Job(output, settings, probabilities, uncertainty, report, strict, dicom_seg)
    options = {
        "model": model.digest,
        "settings": settings.to_dict(),
        "probabilities": probabilities,
        "uncertainty": uncertainty,
        "precision": model.precision,
    }
    _guard(cases, job, read_record(output, options, overwrite), overwrite)
    mine = shard.of_cases(cases) if shard else list(cases)
    segmented = 0
    with (
        Record(output, options, overwrite, [case.id for case in cases]) as record,
        progress_bar(len(mine), progress) as advance,
    ):
        tasks: list[Task] = [(case, record.statuses[case.id]) for case in mine]
        before = {case.id: status for case, status in tasks}

        def note(name: str, status: Status) -> None:
            nonlocal segmented
            if status != before[name]:
                record.note(name, status)
                segmented += status.status == "done"
            advance()

        _run(model, source, job, tasks, note, readers, workers, cluster)
    if report:
        with locked(output):
            write_cohort(output, [name for name, status in read_record(output, options).items() if status.status == "done"])
    return Outcome({case.id: record.statuses[case.id] for case in mine}, time.perf_counter() - started, segmented)


def _run(
    model: Model | Ensemble,
    source: ModelSource | None,
    job: Job,
    tasks: Sequence[Task],
    note: Note,
    readers: int,
    workers: int,
    cluster: str | None,
) -> None:
    """Do the job here, in several processes, or in a cluster."""
    if cluster and source:
        from medseg_se.inference.cluster import run_cluster

        run_cluster(cluster, source, job, tasks, note, workers)
    elif workers > 1 and source:
        from medseg_se.inference.workers import run_workers

        run_workers(source, job, tasks, note, workers, readers)
    else:
        run_pipeline(model, job, iter(tasks), note, readers)


def _guard(cases: Sequence[Case], job: Job, record: Mapping[str, Status], overwrite: bool) -> None:
    """Refuse to write outside of the folder, over a scan or its truth, or over a file that is not in our record."""
    sources = {path.resolve() for case in cases for path in (*case.images, case.label) if path}
    writers: dict[Path, str] = {}
    for case in cases:
        if not case.id or Path(case.id).name != case.id:
            raise DataError(f"Expected the name of a case to be one of a file, but got {case.id!r} ({case.images[0]}).")
        for file in job.results(case).values():
            if file.resolve() in sources:
                raise UsageError(f"The result of {case.id} would overwrite the scan or truth {file}. Choose another folder.")
            if writers.setdefault(file, case.id) != case.id:
                raise UsageError(f"{writers[file]} and {case.id} would both be written to {file}; predict them apart.")
            if file.exists() and case.id not in record and not overwrite:
                raise UsageError(f"{file} exists and was not written by this command. Choose another folder, or --overwrite.")
    for name in (TABLE, COHORT):
        if (job.output / name).exists() and not (job.output / MANIFEST).exists() and not overwrite:
            raise UsageError(
                f"{job.output / name} exists and was not written by this command. Choose another folder, or --overwrite."
            )


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr; yields what moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task("predicting", total=total)
        yield lambda: bar.advance(task)
