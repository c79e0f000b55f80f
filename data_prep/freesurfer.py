"""FreeSurfer: a SUBJECTS_DIR, such as OASIS-1 processed by recon-all, SUBJECT/mri/{norm,aseg}.mgz.

Label values stay those of FreeSurfer's colour table. Parcels of the cortex, as aparc+aseg holds them, count as the cortex of
their side.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Literal

from medseg_se.errors import DataError
from medseg_se.structures import Structures

from .collection import Collection, Item, Scan
from .freesurfer_labels import ASEG, LEFT_PARCELS, RIGHT_PARCELS, WHOLE_BRAIN_27
from .reading import ANY_SUFFIXES, read_any_image, read_any_labels

_DEPTH = 3  # folders above SUBJECT/mri, such as the discs in which OASIS-1 comes
# What follows the person's name where one was scanned several times: _MR2 (OASIS-1), _ses-02 (BIDS), _MR_d0129 (OASIS-3) …
_SESSION = re.compile(r"[_-](MR\d*|ses-?\w+|Freesurfer\d*)(_d\d+)?$", re.IGNORECASE)


def find(
    source: Path,
    *,
    image: Literal["norm", "brain", "T1", "orig"] = "norm",
    labels: Literal["aseg", "aparc+aseg", "aparc.DKTatlas+aseg"] = "aseg",
    structures: Literal["all", "28"] = "all",
) -> Collection:
    """Convert what FreeSurfer made of T1 scans: one volume as image, one segmentation as label map.

    Args:
        source: The SUBJECTS_DIR, the folder of one subject, or a folder of several such, as OASIS-1 has its discs.
        image: Volume in SUBJECT/mri: "norm" is without skull and bias field, "T1" with skull, "orig" as it was scanned.
        labels: Segmentation in SUBJECT/mri.
        structures: "all" that aseg has, or "28" for the 27 structures and the background that whole-brain networks are
            compared on; the corpus callosum and all else are background then.
    """
    found = _subjects(source)
    skipped = [folder for folder in found if folder.name.startswith("fsaverage") or ".long." in folder.name]
    subjects = [folder for folder in found if folder not in skipped]
    if not subjects:
        raise DataError(f"Expected {source} to hold folders of subjects such as SUBJECT/mri/{image}.mgz, but found none.")
    items = [_item(folder, image, labels) for folder in subjects]
    notes = [f"Templates and runs of a longitudinal stream are not taken: {', '.join(f.name for f in skipped)}."]
    return Collection(source.resolve().name, ("T1",), _structures(structures), items, notes=notes if skipped else ())


def _subjects(source: Path) -> list[Path]:
    """Return the folders that hold an `mri`, the source itself or some way down."""
    found = [folder.parent for depth in range(_DEPTH + 1) for folder in source.glob("/".join(["*"] * depth + ["mri"]))]
    return sorted(folder for folder in found if (folder / "mri").is_dir() and not folder.name.startswith("."))


def _item(folder: Path, image: str, labels: str) -> Item:
    files = _volume(folder, image), _volume(folder, labels)
    name = folder.resolve().name
    return Item(name, files, partial(_read, *files), group=_SESSION.sub("", name))


def _volume(folder: Path, name: str) -> Path:
    """Return the file of a volume; FreeSurfer's own kind where there is none, to be missed by name."""
    candidates = [folder / "mri" / f"{name}{suffix}" for suffix in ANY_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _read(image: Path, labels: Path) -> Scan:
    return Scan(read_any_image(image), read_any_labels(labels))


def _structures(which: str) -> Structures:
    values = dict(ASEG)
    values["Left-Cerebral-Cortex"] += tuple(LEFT_PARCELS)
    values["Right-Cerebral-Cortex"] += tuple(RIGHT_PARCELS)
    if which == "all":
        return Structures(values)
    rest = [value for name, group in values.items() if name not in WHOLE_BRAIN_27 for value in group]
    return Structures({name: values[name] for name in WHOLE_BRAIN_27}, background=(0, *rest))
