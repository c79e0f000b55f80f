"""Figshare brain tumours (Cheng 2015): 3064 slices of meningioma, glioma and pituitary tumour, 1.mat … 3064.mat.

Slices and folds come from https://doi.org/10.6084/m9.figshare.1512427, in four archives; MATLAB 7.3 files are HDF5. Each holds
`cjdata` with the class, the patient, the picture and the mask of the tumour. Published: pixels of 0.49 mm in pictures of
512 × 512, slices 6 mm thick with a gap of 1 mm (https://doi.org/10.1371/journal.pone.0140381). Axial, coronal and sagittal
slices are mixed and no file says which it is, so the grid is the one that pictures have: rows downwards, columns rightwards.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError
from medseg_se.files import files_below
from medseg_se.optional import load_optional
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

from .collection import Collection, Item, Scan

CLASSES = {1: "meningioma", 2: "glioma", 3: "pituitary tumor"}
FIELD_OF_VIEW = 512 * 0.49  # mm, of pictures of any size
SLICE_DISTANCE = 7.0  # mm, thickness and gap
_FOLDS = "cvind.mat"


def find(source: Path) -> Collection:
    """Convert the tumour slices, with the class, the patient as group, and the authors' five folds.

    Args:
        source: Folder that holds the .mat files, also in the folders of the four archives.
    """
    files = [path for path in files_below(source) if re.fullmatch(r"\d+\.mat", path.name, re.IGNORECASE)]
    if not files:
        raise DataError(f"Expected {source} to hold the files 1.mat to 3064.mat, but found none. Extract the archives first.")
    facts: dict[Path, tuple[str, str]] = {}
    left_out = {}
    for path in sorted(files, key=lambda path: int(path.stem)):
        try:
            facts[path] = _facts(path)
        except DataError as error:
            left_out[path.stem] = str(error)
    folds, notes = _folds_of(source, facts)
    items = [
        Item(path.stem, (path,), partial(_read, path), patient, folds.get(patient), attributes={"class": kind})
        for path, (patient, kind) in facts.items()
    ]
    structures = Structures({name: (value,) for value, name in CLASSES.items()})
    return Collection("Figshare brain tumours", ("T1 with contrast",), structures, items, left_out, notes)


def _facts(path: Path) -> tuple[str, str]:
    """Return the patient and the class of a slice, without its voxels."""
    with _open(path) as content:
        codes = np.asarray(_field(content, "PID", path)).ravel()
        if not ((codes >= 0) & (codes < 2**16)).all():
            raise DataError(f"Expected cjdata.PID of {path} to hold the codes of letters. Download it again.")
        patient = "".join(chr(int(code)) for code in codes).strip("\0 ")
        label = float(np.asarray(_field(content, "label", path)).ravel()[0])
    if not patient:
        raise DataError(f"{path} names no patient. Download it again.")
    if label not in CLASSES:
        raise DataError(f"Expected the label of {path} to be 1, 2 or 3, but got {label:g}. Download it again.")
    return patient, CLASSES[int(label)]


def _read(path: Path) -> Scan:
    with _open(path) as content:
        image, mask = (np.asarray(_field(content, name, path)).T for name in ("image", "tumorMask"))
        label = int(np.asarray(_field(content, "label", path)).ravel()[0])
    if image.ndim != 2 or image.shape != mask.shape:
        raise DataError(f"Expected a picture and a mask of one size, but {path} has {image.shape} and {mask.shape}.")
    if not set(np.unique(mask).tolist()) <= {0, 1}:
        raise DataError(f"Expected a mask of 0 and 1, but {path} has other values, too. Download it again.")
    if not mask.any():
        raise DataError(f"The mask of {path} is empty, though it shows a {CLASSES[label]}. Download it again.")
    affine = _affine(image.shape[1])
    note = f"{image.shape[1]} × {image.shape[0]} pixels, taken to be {affine[0, 1] * -1:.2f} mm as in the same field of view."
    labels = (mask.astype(np.uint8) * label)[None, :, :, None]
    return Scan(
        Volume(image.astype(np.float32)[None, :, :, None], affine, path=path),
        Volume(labels, affine, path=path),
        () if image.shape == (512, 512) else (note,),
    )


def _affine(columns: int) -> npt.NDArray[np.float64]:
    """Return where the pixels lie, as those of pictures: rows run from front to back, columns from right to left."""
    pixel = FIELD_OF_VIEW / columns
    return np.array([[0, -pixel, 0, 0], [-pixel, 0, 0, 0], [0, 0, SLICE_DISTANCE, 0], [0, 0, 0, 1]], dtype=np.float64)


def _open(path: Path) -> Any:
    h5py = load_optional("h5py")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"Cannot read {path}: it is truncated or no MATLAB 7.3 file. Download it again.") from error


def _field(content: Any, name: str, path: Path) -> npt.NDArray[Any]:
    """Return one field of `cjdata`; MATLAB's arrays come transposed."""
    try:
        values: npt.NDArray[Any] = np.asarray(content["cjdata"][name][()])
    except (KeyError, OSError, RuntimeError, TypeError) as error:
        raise DataError(f"Cannot read cjdata.{name} of {path}: it is missing or damaged. Download it again.") from error
    if values.dtype.kind not in "biuf":
        raise DataError(f"Expected cjdata.{name} of {path} to hold numbers, but it holds something else. Download it again.")
    if not values.size:
        raise DataError(f"cjdata.{name} of {path} is empty. Download it again.")
    return values


# ---------------------------------------------------------------------------------------------------------------------- folds


def _folds_of(source: Path, facts: dict[Path, tuple[str, str]]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the fold of each patient, from 0, and what is to be said of it."""
    tables = [path for path in files_below(source) if path.name.lower() == _FOLDS]
    tables = tables or [path for path in (source.parent / _FOLDS,) if path.is_file()]
    if not tables:
        return {}, (f"{_FOLDS} is not there, so the authors' folds are not kept; patients are dealt into folds anew.",)
    numbers = _read_folds(tables[0])
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for path, (patient, _) in facts.items():
        if not 1 <= int(path.stem) <= len(numbers):
            raise DataError(
                f"{tables[0]} gives folds to {len(numbers)} files, but there is {path}. Restore it, or rename the file."
            )
        votes[patient][numbers[int(path.stem) - 1]] += 1
    folds = {patient: min(count, key=lambda fold: (-count[fold], fold)) - 1 for patient, count in votes.items()}
    parted = sorted(patient for patient, count in votes.items() if len(count) > 1)
    if not parted:
        return folds, ()
    return folds, (f"{tables[0]} parts the slices of {', '.join(parted)}; all are in the fold that holds most of them.",)


def _read_folds(path: Path) -> list[int]:
    """Return the fold of every file, 1 to 5; the file is of MATLAB 7.3 or older."""
    try:
        with load_optional("h5py").File(path, "r") as content:
            values = np.asarray(content["cvind"][()], dtype=np.float64).ravel()
    except (KeyError, OSError, TypeError, ValueError):
        values = _read_older(path)
    folds = [int(value) for value in values if value >= 1 and np.isfinite(value) and value == int(value)]
    if not folds or len(folds) != len(values):
        raise DataError(f"Expected {path} to hold a fold from 1 for every file, but it does not. Download it again.")
    return folds


def _read_older(path: Path) -> npt.NDArray[Any]:
    import scipy.io

    try:
        values: npt.NDArray[Any] = np.asarray(scipy.io.loadmat(path)["cvind"], dtype=np.float64).ravel()
    except Exception as error:  # scipy raises many kinds for what is no such file
        raise DataError(f"Cannot read `cvind` from {path}. Download it again.") from error
    return values
