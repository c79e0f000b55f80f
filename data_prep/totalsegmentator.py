"""TotalSegmentator: the CT or MR dataset of version 2, one folder a case with one mask a structure.

https://doi.org/10.1148/ryai.230024. The masks become one label map with the class numbers of the TotalSegmentator models. Where
masks overlap, a voxel goes to the structure with fewer voxels in that case: a small one would lose the larger share.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_se.errors import DataError, unknown_name
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, case_name, is_scan, read_image, read_labels

from .collection import Collection, Item, Scan
from .folders import folders_in
from .totalsegmentator_classes import CT_CLASSES, MR_CLASSES

MASKS = "segmentations"
CLASSES = {"ct": CT_CLASSES, "mri": MR_CLASSES}
LISTED = 5  # structures, or pairs of overlapping ones, that a note names


def find(source: Path, *, structures: list[str] | None = None) -> Collection:
    """Convert cases with one mask a structure into cases with one label map; meta.csv says which are held out.

    A case that lacks the mask of a structure which others have is left out, for its voxels would be taught as background.

    Args:
        source: Folder of the cases (s0000, s0001, …) with meta.csv.
        structures: Names of the structures to convert; every one that is found if not given.
    """
    folders = _case_folders(source)
    kind = _kind(source, folders)
    classes = CLASSES[kind]
    found = {folder: _masks(folder) for folder in folders}
    present = {name for masks in found.values() for name in masks}
    for name in structures or ():
        if name not in classes:
            raise unknown_name("structure", name, classes)
        if name not in present:
            raise DataError(
                f"No case in {source} has a mask {MASKS}/{name}.nii.gz. Unpack it, or leave it out of `structures`."
            )
    wanted = [name for name in classes if name in (structures or present)]
    if not wanted:
        raise DataError(
            f"None of the masks in {source} is one of the {len(classes)} structures that are known of {kind} scans."
        )
    table = _read_table(folders)
    values = {name: classes.index(name) + 1 for name in wanted}
    empty = {folder.name: folder for folder in _beside(folders) if folder.name in table and folder not in folders}
    items, left_out = [], {name: f"{folder} holds neither scan nor masks. Restore them." for name, folder in empty.items()}
    for folder in folders:
        if table and folder.name not in table:
            left_out[folder.name] = f"meta.csv does not list {folder}, so whether it is held out is unknown. Add it there."
        else:
            items.append(_item(folder, kind, found[folder], values, table.get(folder.name, {})))
    absent = sorted(set(table) - {folder.name for folder in folders} - set(empty))
    notes = _notes(table, absent, sorted(present - set(classes)), [name for name in classes if name not in present])
    return Collection(
        source.resolve().name,
        ("CT" if kind == "ct" else "MR",),
        Structures({name: (value,) for name, value in values.items()}),
        items,
        left_out,
        notes,
    )


def _case_folders(source: Path) -> list[Path]:
    """Return the folders with a scan or with masks, in the source or one folder further down."""
    outer = folders_in(source)
    found = [folder for above in (outer, *map(folders_in, outer)) for folder in above if _is_case(folder)]
    if not found:
        raise DataError(f"Expected {source} to hold folders with ct.nii.gz (or mri.nii.gz) and {MASKS}, one a case.")
    return sorted(found, key=lambda folder: folder.name)


def _is_case(folder: Path) -> bool:
    return (folder / MASKS).is_dir() or any(_scan(folder, kind) for kind in CLASSES)


def _scan(folder: Path, kind: str) -> Path | None:
    """Return the file ct.nii.gz (or mri.nii.gz), also where it is ct.nii or CT.NII.GZ."""
    names = (path for path in sorted(folder.iterdir()) if is_scan(path))
    return next((path for path in names if case_name(path).lower() == kind), None)


def _beside(folders: Iterable[Path]) -> list[Path]:
    """Return all folders where cases lie, also those that hold nothing."""
    return [folder for parent in sorted({folder.parent for folder in folders}) for folder in folders_in(parent)]


def _kind(source: Path, folders: Iterable[Path]) -> str:
    kinds = {kind: [folder for folder in folders if _scan(folder, kind)] for kind in CLASSES}
    if all(kinds.values()):
        first = " and ".join(str(cases[0]) for cases in kinds.values())
        raise DataError(f"{source} mixes CT and MR ({first}), whose class numbers differ. Convert each by itself.")
    return next((kind for kind, cases in kinds.items() if cases), "ct")


def _masks(folder: Path) -> dict[str, Path]:
    inner = folder / MASKS
    return {case_name(path): path for path in sorted(inner.iterdir()) if is_scan(path)} if inner.is_dir() else {}


def _item(folder: Path, kind: str, masks: Mapping[str, Path], values: Mapping[str, int], attributes: Mapping[str, Any]) -> Item:
    image = _scan(folder, kind) or folder / f"{kind}.nii.gz"
    wanted = {name: masks.get(name, folder / MASKS / f"{name}.nii.gz") for name in values}
    test = str(attributes.get("split", "")).lower() == "test"
    read = partial(_read, image, wanted, values)
    return Item(folder.name, (image, *wanted.values()), read, test=test, attributes=attributes)


def _read_table(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return case → what meta.csv says of it; empty if there is none."""
    beside = sorted({folder.parent / "meta.csv" for folder in folders})
    path = next((candidate for candidate in beside if candidate.is_file()), None)
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            rows = list(csv.DictReader(stream, delimiter=";" if ";" in header else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {path} as CSV: {error}.") from error
    if not rows or "image_id" not in rows[0]:
        raise DataError(f"Expected {path} to have a column 'image_id' and at least one row.")
    return {row["image_id"].strip(): {key: _value(key, row[key]) for key in row if _is_told(key, row)} for row in rows}


def _is_told(key: str | None, row: Mapping[str, Any]) -> bool:
    return bool(key) and key != "image_id" and isinstance(row[key or ""], str) and bool(row[key or ""].strip())


def _value(key: str, text: str) -> float | str:
    """Return the age as a number, so that it can be predicted; everything else as it is written."""
    if key == "age":
        try:
            return float(text)
        except ValueError:
            return text.strip()
    return text.strip()


def _notes(table: Mapping[str, Any], absent: Sequence[str], unknown: Sequence[str], lacking: Sequence[str]) -> list[str]:
    notes = []
    if not table:
        notes.append("There is no meta.csv, so no case is held out for testing.")
    if absent:
        notes.append(f"{len(absent)} of the {len(table)} cases in meta.csv are not here, {absent[0]} first.")
    if unknown:
        notes.append(f"Not converted, for they have no class number: {_listed(unknown)}.")
    if lacking:
        notes.append(f"No case has a mask of: {_listed(lacking)}.")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"


def _read(image: Path, masks: Mapping[str, Path], values: Mapping[str, int]) -> Scan:
    """Read the scan, and the masks one after another into one label map."""
    scan = read_image(image)
    labels = np.zeros(scan.array.shape, dtype=np.uint8)
    sizes = np.zeros(max(values.values()) + 1, dtype=np.int64)  # label value → voxels of its mask; 0 for the background
    overlaps: Counter[tuple[int, int]] = Counter()
    for name, path in masks.items():
        inside = _mask(path, scan).astype(bool)
        value = values[name]
        before = labels[inside]
        sizes[value] = len(before)
        taken = before > 0
        for other, voxels in zip(*np.unique(before[taken], return_counts=True), strict=True):
            overlaps[int(other), value] += int(voxels)
        labels[inside] = np.where(taken & (sizes[before] <= sizes[value]), before, value)
    names = {value: name for name, value in values.items()}
    notes = () if sizes.any() else ("All its masks are empty.",)
    return Scan(scan, Volume(labels, scan.affine, path=image.parent / MASKS), (*notes, *_overlap_note(overlaps, names)))


def _mask(path: Path, scan: Volume) -> np.ndarray[Any, np.dtype[Any]]:
    mask = read_labels(path)
    if difference := scan.same_grid(mask):
        raise DataError(f"Scan and mask lie on different grids: {difference} ({path}).")
    if mask.array.min() < 0 or mask.array.max() > 1:
        raise DataError(f"Expected a mask of 0 and 1, but {path} goes from {mask.array.min()} to {mask.array.max()}.")
    return mask.array


def _overlap_note(overlaps: Counter[tuple[int, int]], names: Mapping[int, str]) -> tuple[str, ...]:
    if not overlaps:
        return ()
    pairs = ", ".join(f"{names[a]} and {names[b]} {voxels}" for (a, b), voxels in overlaps.most_common(LISTED))
    more = f" and {len(overlaps) - LISTED} more pairs" if len(overlaps) > LISTED else ""
    return (f"{overlaps.total()} voxels lie in two masks and went to the smaller structure: {pairs}{more}.",)
