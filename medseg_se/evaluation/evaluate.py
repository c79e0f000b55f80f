"""Judging a folder of predicted label maps against the truth: behind `medseg-se evaluate PREDICTIONS TRUTH`.

A prediction that is missing, failed or unusable counts as an empty one, so that no model looks better for having failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medseg_se.data.datalist import MANIFEST, Case, describes_dataset, read_datalist, read_json, read_structures
from medseg_se.errors import DataError, UsageError
from medseg_se.evaluation.result import CaseResult, Evaluation
from medseg_se.metrics.overlap import confusion, dice_from_confusion, volumes_from_confusion
from medseg_se.processors import at_once
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, case_name, is_scan, read_labels


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
    with bar, ThreadPoolExecutor(workers or at_once(4)) as pool:
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
    if source.is_file() or (source.is_dir() and describes_dataset(source)):
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


def _test_truths(cases: Iterable[Case]) -> dict[str, Path]:
    """Return case → label map of test cases: their own, or one of the same name in `labelsTs` beside their images."""
    cases = list(cases)
    held_back = {folder: _label_maps(folder) for case in cases if case.images and (folder := _labels_folder(case)).is_dir()}
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


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "") if listed else "none"
