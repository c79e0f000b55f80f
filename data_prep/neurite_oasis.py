"""Neurite OASIS: 414 brains of OASIS-1 aligned with a template, OASIS_OAS1_0001_MR1/aligned_{norm,seg35}.nii.gz.

Layout: https://github.com/adalca/medical-datasets/blob/master/neurite-oasis.md. The label values are numbered anew, so their
names are read from the table that comes with the data, such as `seg35_labels.txt`.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Literal

from medseg_se.data.scan import read_channels
from medseg_se.errors import DataError, UsageError
from medseg_se.structures import Structures
from medseg_se.volumes import read_labels

from .collection import Collection, Item, Scan
from .folders import folders_in

_SUBJECT = re.compile(r"OASIS_(?P<person>OAS\d_\d+)_MR\d+", re.IGNORECASE)
_LINE = re.compile(r"(?P<value>\d+)\s+(?P<name>\S+)(\s+\d+){3,4}\s*")  # value, name, red, green, blue, perhaps opacity
_PREFIX = {"aligned": "aligned_", "native": "", "slice": "slice_"}
_LABELS = {"aligned": ("seg35", "seg4"), "native": ("seg35", "seg4"), "slice": ("seg24", "seg4")}


def find(
    source: Path,
    *,
    space: Literal["aligned", "native", "slice"] = "aligned",
    image: Literal["norm", "orig"] = "norm",
    labels: Literal["seg35", "seg24", "seg4"] | None = None,
) -> Collection:
    """Convert the Neurite OASIS collection.

    Args:
        source: Folder that holds the subjects and the tables of labels, or the one above it.
        space: "aligned" with the template (160 × 192 × 224 voxels), "native" (256 × 256 × 256), or the coronal "slice".
        image: "norm" is without skull and bias field, "orig" as it was scanned.
        labels: Segmentation: 35 structures, 24 (slices only) or 4 tissues. The finest of the space if not given.
    """
    labels = labels or ("seg24" if space == "slice" else "seg35")
    if labels not in _LABELS[space]:
        valid = " or ".join(_LABELS[space])
        raise UsageError(f"Expected `labels` to be {valid} where `space` is {space!r}, but got {labels!r}.")
    root, subjects = _subjects(source)
    table = root / f"{labels}_labels.txt"
    structures = _read_table(table)
    items = []
    for folder, person in subjects:
        files = tuple(folder / f"{_PREFIX[space]}{name}.nii.gz" for name in (image, labels))
        items.append(Item(folder.name, files, partial(_read, *files), group=person))
    return Collection("Neurite OASIS", ("T1",), structures, items)


def _subjects(source: Path) -> tuple[Path, list[tuple[Path, str]]]:
    """Return the folder that holds the subjects, and each subject with the name of the person."""
    for root in (source, *folders_in(source)):
        matched = [(folder, _SUBJECT.fullmatch(folder.name)) for folder in folders_in(root)]
        subjects = [(folder, match["person"].upper()) for folder, match in matched if match]
        if subjects:
            return root, subjects
    raise DataError(f"Expected {source} to hold folders of subjects such as OASIS_OAS1_0001_MR1, but found none.")


def _read(image: Path, labels: Path) -> Scan:
    return Scan(read_channels([image]), read_labels(labels))


def _read_table(path: Path) -> Structures:
    """Read a FreeSurfer colour table: lines of value, name and colour; what 0 is called does not matter."""
    if not path.is_file():
        raise DataError(f"Expected {path}, which says what the label values mean, but there is none. Extract it, too.")
    values: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        found = _LINE.fullmatch(text)
        if text and found is None:
            raise DataError(f"Expected line {number} of {path} to be a value, a name and a colour, but got {text!r}.")
        if found and found["name"] in values:
            raise DataError(f"{path} names {found['name']!r} twice, the second time in line {number}. Restore the file.")
        if found and int(found["value"]) != 0:
            values[found["name"]] = (int(found["value"]),)
    if not values:
        raise DataError(f"Expected {path} to name structures, but it names none. Restore the file.")
    return Structures(values)
