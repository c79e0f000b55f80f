"""What is done to one case of a cohort, stage by stage: read and prepare, ask the network, write."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg_se.data.datalist import Case
from medseg_se.dicom.segmentation import write_dicom_seg
from medseg_se.errors import DataError, MedsegError
from medseg_se.inference.ensemble import Ensemble
from medseg_se.inference.gate import doubts
from medseg_se.inference.model import Model
from medseg_se.inference.reading import digest_of_scan, doubts_of_series, read_scan, series_of
from medseg_se.inference.settings import Settings
from medseg_se.inference.status import ENDINGS, Status
from medseg_se.inference.volumes_report import measure, write_volumes
from medseg_se.volumes import Volume, write_volume

log = logging.getLogger(__name__)

Task = tuple[Case, Status]
"""A case, and what is recorded of it."""


NO_SEGMENTATION = "no structure was found, of which there is no DICOM segmentation"


@dataclass(frozen=True)
class Job:
    """What is done to every case of a cohort.

    Attributes:
        output: Folder of the results.
        settings: How a scan is looked at.
        probabilities: Whether the probability of every class is written.
        uncertainty: Whether the uncertainty of every structure is measured, for the report.
        report: Whether the volumes of the structures are written.
        strict: Whether a doubtful scan is refused.
        dicom_seg: Whether the result of a DICOM series is written as a DICOM segmentation too.
    """

    output: Path
    settings: Settings
    probabilities: bool = False
    uncertainty: bool = False
    report: bool = True
    strict: bool = False
    dicom_seg: bool = False

    def results(self, case: Case) -> dict[str, Path]:
        """Return the files of a case by their kind: labels, and those of probabilities, volumes and segmentation wanted."""
        wanted = {
            "labels": True,
            "probabilities": self.probabilities,
            "volumes": self.report,
            "segmentation": self.dicom_seg and bool(series_of(case)),
        }
        return {kind: self.output / f"{case.id}{ending}" for kind, ending in ENDINGS.items() if wanted[kind]}

    def is_done(self, case: Case, recorded: Status, digest: str) -> bool:
        """Tell whether a case needs nothing more: its results are there, of the scan that there is now."""
        if recorded.status != "done" or recorded.input != digest or (self.strict and recorded.warnings):
            return False
        results = self.results(case)
        if NO_SEGMENTATION in recorded.notes:
            results.pop("segmentation", None)
        return all(file.is_file() for file in results.values())


@dataclass
class Stage:
    """A case on its way through the stages.

    Attributes:
        case: The case.
        status: What is known of it so far.
        like: The grid and the header of the scan, its voxels let go.
        content: What the next stage takes: the prepared scan, then the prediction.
        written: The results that are on the disk so far.
    """

    case: Case
    status: Status
    like: Volume
    content: Any
    written: list[Path] = field(default_factory=list)


def load(model: Model | Ensemble, job: Job, case: Case, recorded: Status, status: Status) -> Stage | None:
    """Read and prepare a case; returns None if `recorded` says that it is done and nothing has changed since.

    Raises:
        DataError: The scan cannot be read, or is doubtful and the job is strict.
    """
    started = time.perf_counter()
    status.input = digest_of_scan(case)
    if job.is_done(case, recorded, status.input):
        return None
    status.known = "training" if status.input in model.training else "validation" if status.input in model.validation else ""
    image = read_scan(case, len(model.channels))
    status.voxels = int(np.prod(image.shape))
    status.warnings = [*doubts_of_series(case), *doubts(image, model.seen)]
    status.parts["read"] = time.perf_counter() - started
    if job.strict and status.warnings:
        raise DataError(f"{_named(case)}: {'; '.join(status.warnings)}. Leave out `--strict` to segment it all the same.")
    started = time.perf_counter()
    ready = model.prepare(image)
    status.parts["prepare"] = time.perf_counter() - started
    like = replace(image, array=np.broadcast_to(np.float32(0), image.array.shape))
    return Stage(case, status, like, ready)


def ask(model: Model | Ensemble, job: Job, stage: Stage) -> Stage:
    """Ask the network; the stage then holds the prediction.

    Raises:
        DataError: The answer is not finite, or needs more memory than there is.
        OutputError: Probabilities cannot be written.
    """
    started = time.perf_counter()
    where = job.results(stage.case).get("probabilities", False)
    prediction = model.answer(stage.content, settings=job.settings, probabilities=where, uncertainty=job.uncertainty)
    took = time.perf_counter() - started
    network = prediction.seconds.get("network", took)
    stage.status.parts |= {"network": network, "export": took - network}
    stage.status.notes = list(prediction.notes)
    stage.content = prediction
    stage.written += [where] if isinstance(where, Path) else []
    return stage


def write(model: Model | Ensemble, job: Job, stage: Stage) -> None:
    """Write the results.

    Raises:
        OutputError: The disk is full, or the folder is not writable.
    """
    started = time.perf_counter()
    labels, results = stage.content.labels, job.results(stage.case)
    write_volume(labels, results["labels"], like=stage.like)
    stage.written.append(results["labels"])
    if "volumes" in results:
        write_volumes(measure(labels, model.structures, stage.content.uncertainty), results["volumes"])
        stage.written.append(results["volumes"])
    if "segmentation" in results:
        series = series_of(stage.case)[0]
        if not write_dicom_seg(labels, series, model.structures, results["segmentation"], model.digest):
            stage.status.notes.append(NO_SEGMENTATION)
    stage.status.parts["write"] = time.perf_counter() - started
    stage.status.status, stage.status.error = "done", None


def discard(stage: Stage) -> None:
    """Remove what was written of a case that goes no further: its results are all there, or none."""
    for path in stage.written:
        path.unlink(missing_ok=True)


def close(status: Status, case: Case, error: Exception | None = None) -> Status:
    """Return the status with its sums, and with `error` in words if there was one."""
    status.parts = {stage: round(seconds, 4) for stage, seconds in status.parts.items()}
    status.seconds = round(sum(status.parts.values()), 3)
    status.peak_mb = peak_memory()
    if error is not None:
        status.status, status.error = "failed", _in_words(error, case)
    return status


def peak_memory() -> int:
    """Return the most main memory that this process has taken so far, in 10⁶ bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used * (1 if sys.platform == "darwin" else 1024) / 1e6)


def _in_words(error: Exception, case: Case) -> str:
    if isinstance(error, MedsegError):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in text):
        text = "there is not enough memory to segment it"
    elif not isinstance(error, RuntimeError):  # of PyTorch, most of these say that something does not fit the scan
        log.error("case %s failed", case.id, exc_info=error)
        text = f"{type(error).__name__}: {text}"
    return f"{_named(case)}: {text}"


def _named(case: Case) -> str:
    return str(case.images[0]) if case.images else case.id
