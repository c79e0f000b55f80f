"""Which files are judged against which: predictions and truths, found in folders and datasets and matched by case name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_se.data.datalist import MANIFEST, Case, describes_dataset, read_datalist, read_json, read_structures
from medseg_se.errors import DataError, UsageError
from medseg_se.structures import Structures
from medseg_se.volumes import case_name, is_scan


@dataclass(frozen=True)
class Truth:
    """The truth of one case.

    Attributes:
        path: Its label map.
        group: Whose scan it is, where the dataset says so.
    """

    path: Path
    group: str | None = None


def find_predictions(folder: Path) -> tuple[dict[str, Path | str], bool]:
    """Return case → its file or the reason why there is none, and whether a manifest says which cases were predicted.

    Raises:
        DataError: The folder is missing, or its manifest is of another kind.
    """
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


def find_truths(source: Path, structures: Structures | None) -> tuple[dict[str, Truth], Structures]:
    """Return case → its truth, and what the label values mean.

    Raises:
        UsageError: Nothing says what the label values mean.
        DataError: There is no such truth, or it contradicts itself.
    """
    if source.is_file() or (source.is_dir() and describes_dataset(source)):
        datalist = read_datalist(source, structures)
        truths = {case.id: Truth(case.label, case.group or None) for case in datalist.training if case.label is not None}
        for name, truth in _test_truths(datalist.test).items():
            if name in truths:
                raise DataError(f"{datalist.source} has a truth for {name!r} in training and in test; rename one of the cases.")
            truths[name] = truth
        structures = datalist.structures
    elif source.is_dir():
        truths = {name: Truth(path) for name, path in _label_maps(source).items()}
    else:
        raise DataError(f"No such truth: {source}. Expected a folder of label maps, or a dataset (folder, JSON file or CSV).")
    if not truths:
        raise DataError(f"{source} has no label map to judge against.")
    return truths, structures or _structures_beside(source)


def _test_truths(cases: Iterable[Case]) -> dict[str, Truth]:
    """Return case → truth of test cases: their own, or one of the same name in `labelsTs` beside their images."""
    cases = list(cases)
    held_back = {folder: _label_maps(folder) for case in cases if case.images and (folder := _labels_folder(case)).is_dir()}
    found = [(case, case.label or held_back.get(_labels_folder(case), {}).get(case.id)) for case in cases]
    return {case.id: Truth(path, case.group or None) for case, path in found if path is not None}


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
