"""nnU-Net: a raw dataset folder of version 2 (imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, dataset.json).

Labels that are lists of values stay regions, and the ignore label stays one.
Layout: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg_se.data.datalist import Case, Datalist, read_datalist, read_json
from medseg_se.errors import DataError
from medseg_se.files import files_below
from medseg_se.volumes import case_name, is_scan

from .collection import Collection
from .decathlon import case_item
from .folders import folders_in

SPLITS = "splits_final.json"


def find(source: Path, *, splits: str | None = None) -> Collection:
    """Convert a raw dataset of nnU-Net v2, with its regions, its ignore label, its test set and its folds.

    Args:
        source: The folder DatasetXXX_Name, or one that holds it alone.
        splits: A splits_final.json. If not given, the one in the dataset's folder or in nnUNet_preprocessed beside nnUNet_raw.
    """
    folder = _dataset_folder(source)
    datalist = read_datalist(folder)
    notes: list[str] = []
    folds = _folds(datalist, _splits_file(folder, splits), notes)
    training = [replace(case, fold=folds.get(case.id)) for case in datalist.training]
    test = [_with_truth(case, folder) for case in datalist.test]
    items = [case_item(case, held_out) for held_out, cases in ((False, training), (True, test)) for case in cases]
    return Collection(folder.name, datalist.channels, datalist.structures, items, _incomplete(folder, datalist), notes)


def _dataset_folder(source: Path) -> Path:
    """Return the folder whose dataset.json is nnU-Net's: `source`, or the only such folder in it."""
    candidates = [folder for folder in (source, *folders_in(source)) if (folder / "dataset.json").is_file()]
    if not candidates:
        raise DataError(f"Expected {source} to hold dataset.json, imagesTr and labelsTr, as nnU-Net lays out a raw dataset.")
    if candidates[0] != source and len(candidates) > 1:
        names = ", ".join(folder.name for folder in candidates)
        raise DataError(f"{source} holds {len(candidates)} datasets: {names}. Name one of them.")
    content = read_json(candidates[0] / "dataset.json")
    if "training" in content or "channel_names" not in content:
        raise DataError(
            f"{candidates[0] / 'dataset.json'} is not one of nnU-Net v2 (no 'channel_names'). "
            "If it lists its cases under 'training', use `medseg-prep decathlon`."
        )
    return candidates[0]


def _with_truth(case: Case, folder: Path) -> Case:
    """Add the label map of a test case where the dataset has one."""
    ending = case.images[0].name.removeprefix(f"{case.id}_0000")
    label = folder / "labelsTs" / f"{case.id}{ending}"
    return replace(case, label=label) if label.is_file() else case


def _incomplete(folder: Path, datalist: Datalist) -> dict[str, str]:
    """Name what has only a part of its files, so that it is no case yet: an unpacking that stopped."""
    images = {part: {case_name(path)[:-5] for path in _scans(folder / f"images{part}")} for part in ("Tr", "Ts")}
    truths = {case_name(path) for path in _scans(folder / "labelsTs")}
    training, test = ({case.id for case in cases} for cases in (datalist.training, datalist.test))
    why = f"It has an image in {folder / 'imagesTr'}, but no label map in {folder / 'labelsTr'}. Restore it."
    found = dict.fromkeys(sorted(images["Tr"] - training), why)
    for case in sorted((images["Ts"] | truths) - test):
        there = folder / ("imagesTs" if case in images["Ts"] else "labelsTs")
        found[case] = (
            f"It has files in {there}, but {folder / 'imagesTs'} holds no first channel {case}_0000 of it. Restore it."
        )
    claimed, there_are = read_json(folder / "dataset.json").get("numTraining"), len(training | images["Tr"])
    if isinstance(claimed, int) and claimed > there_are:
        more = f"{claimed - there_are} more case{'s' if claimed - there_are > 1 else ''}"
        found[more] = (
            f"{folder / 'dataset.json'} counts {claimed} training cases (numTraining), but there are {there_are}. Restore the "
            "others, or correct the number."
        )
    return found


def _scans(folder: Path) -> Iterable[Path]:
    return (path for path in files_below(folder) if path.parent == folder and is_scan(path)) if folder.is_dir() else ()


def _splits_file(folder: Path, given: str | None) -> Path | None:
    if given is not None:
        if not Path(given).is_file():
            raise DataError(f"No such file: {given}. Expected the {SPLITS} of nnU-Net.")
        return Path(given)
    preprocessed = folder.resolve().parent.parent / "nnUNet_preprocessed" / folder.resolve().name
    return next((path / SPLITS for path in (folder, preprocessed) if (path / SPLITS).is_file()), None)


def _folds(datalist: Datalist, path: Path | None, notes: list[str]) -> dict[str, int]:
    """Return case → fold; empty if there are no splits, or none that put every case into one validation set."""
    if path is None:
        return {}
    folds: dict[str, int] = {}
    for number, split in enumerate(_read_splits(path)):
        for case in split["val"]:
            if case in folds:
                notes.append(f"{path} validates {case} in several folds, so its folds are not taken over.")
                return {}
            folds[case] = number
    missing = [case.id for case in datalist.training if case.id not in folds]
    if missing:
        notes.append(f"{path} validates {len(missing)} cases in no fold ({missing[0]} first), so its folds are not taken over.")
        return {}
    notes.append(f"The folds are those of {path}.")
    return folds


def _read_splits(path: Path) -> Sequence[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path} as JSON: {error}.") from error
    well_formed = isinstance(content, list) and content
    if not well_formed or not all(isinstance(split, dict) and isinstance(split.get("val"), list) for split in content):
        raise DataError(f"Expected {path} to be a list of folds, each with its cases under 'train' and 'val'.")
    return content  # type: ignore[no-any-return]
