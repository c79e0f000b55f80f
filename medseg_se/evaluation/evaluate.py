"""Judging a folder of predicted label maps against the truth: behind `medseg-se evaluate PREDICTIONS TRUTH`.

A prediction that is missing, failed or unusable counts as an empty one, so that no model looks better for having failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medseg_se.errors import DataError, UsageError, some_of
from medseg_se.evaluation.case import CaseResult
from medseg_se.evaluation.criteria import Criteria, make_criteria
from medseg_se.evaluation.matching import Truth, find_predictions, find_truths
from medseg_se.evaluation.result import Evaluation
from medseg_se.metrics.judging import judge
from medseg_se.processors import at_once
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, on_grid_of, read_labels


def evaluate(
    predictions: Path | str,
    truth: Path | str,
    structures: Structures | None = None,
    workers: int | None = None,
    progress: bool = True,
    *,
    metrics: str | Sequence[str] = "all",
    tolerance: float | Mapping[str, float] = 1.0,
    surface: str = "voxel",
    lesions: str | float | None = None,
    resample: bool = False,
) -> Evaluation:
    """Judge every expected case of `predictions` against `truth`, matched by case name.

    Args:
        predictions: A folder of `<case>.nii.gz` or `<case>.nii`. If it holds a `predictions.json`, the cases that file
            lists are expected, failed ones included; otherwise every case that has a truth.
        truth: A folder of label maps, or a dataset (folder, `dataset.json` or CSV).
        structures: What the label values mean; by default what `truth` says.
        workers: Cases judged at the same time; memory grows with it. At most four by default.
        progress: Whether to show a progress bar on stderr.
        metrics: "all", or names of measures, in one text with commas or as a list; Dice is always among them.
        tolerance: Of the NSD in mm: one for all, or structure → mm, where "default" stands for those not named.
        surface: Definition of surfaces: "voxel" or "surfel".
        lesions: Count connected components, too; two match if they share a voxel ("any") or have at least this IoU.
        resample: Take a prediction on another grid to that of the truth, each voxel from the nearest; else it is unusable.

    Raises:
        UsageError: Nothing says what the label values mean, or an argument makes no sense.
        DataError: A folder or its description is missing or contradicts itself, or no prediction belongs to a truth.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"Expected `workers` to be at least 1, but got {workers}.")
    truths, meaning = find_truths(Path(truth), structures)
    criteria = make_criteria(meaning, metrics, surface, tolerance, lesions)
    predicted, listed = find_predictions(Path(predictions))
    expected = sorted(set(truths) & set(predicted)) if listed else sorted(truths)
    if not set(expected) & set(predicted):
        raise DataError(
            f"No prediction in {predictions} belongs to a truth in {truth}: predicted are {some_of(sorted(predicted))}, "
            f"but the truth has {some_of(sorted(truths))}. Both sides need the same case names."
        )
    jobs = [
        _Job(name, truths[name], predicted.get(name, f"no prediction found in {predictions}"), meaning, criteria, resample)
        for name in expected
    ]
    results = dict(zip(expected, _judge_all(jobs, workers or at_once(4), progress), strict=True))
    return Evaluation(
        structures=meaning,
        cases=tuple(result for result in results.values() if isinstance(result, CaseResult)),
        unjudged={name: str(result) for name, result in results.items() if isinstance(result, DataError)},
        extra=tuple(sorted(set(predicted) - set(truths))),
        measures=criteria.measures,
        surface=criteria.surface,
        tolerances=criteria.tolerances,
        lesions=criteria.lesions,
    )


@dataclass(frozen=True)
class _Job:
    """A case to be judged; `prediction` is its file, or the reason why there is none."""

    name: str
    truth: Truth
    prediction: Path | str
    structures: Structures
    criteria: Criteria
    resample: bool


def _judge_all(jobs: Sequence[_Job], workers: int, progress: bool) -> list[CaseResult | DataError]:
    """Judge the cases, `workers` at a time, in order; threads do, for what takes the time holds no lock of Python's."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    pool = ThreadPoolExecutor(workers)
    try:
        with bar:
            return list(bar.track(pool.map(_judge_or_say_why, jobs), len(jobs), description="evaluate"))
    finally:  # after Ctrl-C, the cases that wait are not begun
        pool.shutdown(cancel_futures=True)


def _judge_or_say_why(job: _Job) -> CaseResult | DataError:
    try:
        return _judge(job)
    except DataError as error:
        return error


def _judge(job: _Job) -> CaseResult:
    structures, criteria = job.structures, job.criteria
    truth = read_labels(job.truth.path)
    truth = replace(truth, array=structures.encode(truth.array, where=str(job.truth.path)))
    failure = resampled = None
    try:
        predicted, resampled = _read_prediction(job, truth)
    except DataError as error:
        failure = str(error)
        predicted = np.broadcast_to(np.int16(0), truth.shape)
    judged = structures.judged()
    scores = judge(
        predicted,
        truth.array[0],
        list(judged.values()),
        structures.num_classes,
        truth.spacing,
        criteria.measures,
        criteria.surface,
        list(criteria.tolerances.values()) or 0.0,
        criteria.lesions or "any",
    )
    return CaseResult(
        id=job.name,
        scores={measure: dict(zip(judged, values.tolist(), strict=True)) for measure, values in scores.items()},
        group=job.truth.group,
        failure=failure,
        truth=job.truth.path,
        prediction=job.prediction if isinstance(job.prediction, Path) else None,
        resampled=resampled,
    )


def _read_prediction(job: _Job, truth: Volume) -> tuple[npt.NDArray[np.int16], str | None]:
    """Return the predicted indices (I, J, K) on the grid of the truth, and how the grid of the file differs, if it does."""
    if isinstance(job.prediction, str):
        raise DataError(job.prediction)
    labels = read_labels(job.prediction)
    difference = labels.same_grid(truth)
    if difference and not job.resample:
        raise DataError(f"{job.prediction} lies on a different grid: {difference} (prediction against truth).")
    # "Unknown" is no answer: a prediction that holds the ignore value is as undeclared as any other stray value.
    indices = replace(job.structures, ignore=None).encode(labels.array, where=str(job.prediction))
    if difference:
        indices = on_grid_of(replace(labels, array=indices), truth).array
    return indices[0], difference
