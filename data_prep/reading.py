"""Scans and label maps as brain datasets hold them: FreeSurfer's .mgz and .mgh beside NIfTI, read with the same distrust."""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.freesurfer.mghformat import MGHHeader

from medseg_se.errors import DataError
from medseg_se.nifti import MEMORY_LIMIT, SUFFIXES, affine_of
from medseg_se.volumes import Array, Volume, read_image, read_labels

log = logging.getLogger(__name__)

MGH_SUFFIXES = (".mgz", ".mgh")
ANY_SUFFIXES = (*MGH_SUFFIXES, *SUFFIXES)
_VOXELS_AT = 284  # byte at which the voxels of an MGH file begin
_HEADER_BYTES = 90  # of which so many say something
_KINDS = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}  # MGH's codes of voxel types

# Where the axes point in a file that does not say it. nibabel's own default is the transpose of FreeSurfer's.
_UNTOLD = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def read_any_image(path: Path, memory_limit: int = MEMORY_LIMIT) -> Volume:
    """Read a scan from .mgz, .mgh, .nii or .nii.gz as float32 (C, I, J, K).

    Raises:
        DataError: The file is missing, truncated, of another kind, contradicts itself, or claims more bytes than the limit.
    """
    if not is_mgh(path):
        return read_image(path, memory_limit)
    array, affine = _read_mgh(path, memory_limit)
    return Volume(np.array(array, dtype=np.float32, order="C"), affine, path=path)


def read_any_labels(path: Path, memory_limit: int = MEMORY_LIMIT) -> Volume:
    """Read a label map from .mgz, .mgh, .nii or .nii.gz as integers (1, I, J, K).

    Raises:
        DataError: As `read_any_image`, or the file holds more than one value per voxel, or values that are not whole.
    """
    if not is_mgh(path):
        return read_labels(path, memory_limit)
    array, affine = _read_mgh(path, memory_limit)
    if array.shape[0] != 1:
        raise DataError(f"Expected a label map with one value per voxel, but {path} has {array.shape[0]} frames.")
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if not np.isfinite(array).all() or np.abs(array - whole).max(initial=0) > 1e-3:
            raise DataError(f"Expected whole label values, but {path} holds fractions or NaN. Is it a scan?")
        array = whole.astype(np.int64)
    return Volume(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"), affine, path=path)


def is_mgh(path: Path) -> bool:
    """Tell FreeSurfer's own files by their names."""
    return path.name.lower().endswith(MGH_SUFFIXES)


def _read_mgh(path: Path, memory_limit: int) -> tuple[Array, npt.NDArray[np.float64]]:
    """Return the voxels as they are stored, (C, I, J, K), and the affine."""
    if not path.is_file():
        raise DataError(f"No such file: {path}.")
    try:
        with path.open("rb") as probe:
            compressed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
            head = stream.read(_VOXELS_AT)
            header, kind, shape = _check_header(head, path, memory_limit)
            claimed = math.prod(shape) * kind.itemsize
            content = stream.read(claimed)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {error}. The file is truncated or corrupt; copy it again.") from error
    if len(content) < claimed:
        raise DataError(
            f"The header of {path} claims {claimed:,} bytes of voxels, but the file holds only {len(content):,}. "
            "It is truncated; copy it again."
        )
    array = np.frombuffer(content, dtype=kind).reshape(shape, order="F")
    return np.moveaxis(array, 3, 0), _affine(header, path)


def _check_header(head: bytes, path: Path, memory_limit: int) -> tuple[MGHHeader, np.dtype[np.generic], tuple[int, ...]]:
    if len(head) < _VOXELS_AT or int.from_bytes(head[:4], "big") != 1:
        raise DataError(f"{path} is not a FreeSurfer volume: its first bytes are no header that says so.")
    header = MGHHeader(head[:_HEADER_BYTES], check=False)
    header["goodRASFlag"] = int.from_bytes(head[28:30], "big")  # nibabel sets it where it fills in its default
    shape, code = tuple(int(length) for length in header["dims"]), int(header["type"])
    if any(length < 1 for length in shape):
        raise DataError(f"The header of {path} claims the impossible shape {shape}.")
    if code not in _KINDS:
        raise DataError(f"Expected voxels that are plain numbers, but {path} holds MGH's type {code}.")
    if 4 * math.prod(shape) > memory_limit:
        raise DataError(
            f"The header of {path} claims {shape} voxels, {4 * math.prod(shape) / 2**30:.1f} GiB in memory; the limit "
            f"is {memory_limit / 2**30:.1f} GiB. Crop or resample the scan first if it is really that large."
        )
    return header, np.dtype(_KINDS[code]), shape


def _affine(header: MGHHeader, path: Path) -> npt.NDArray[np.float64]:
    """Return the (4, 4) affine after the checks that a NIfTI file undergoes."""
    shape = tuple(int(length) for length in header["dims"][:3])
    if header["goodRASFlag"]:
        affine = np.asarray(header.get_affine(), dtype=np.float64)
    else:
        log.warning("%s does not say how it lies; it is taken as FreeSurfer does: left, down, front, 1 mm, centred", path)
        affine = _UNTOLD.copy()
        affine[:3, 3] = -_UNTOLD[:3, :3] @ np.array(shape) / 2
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"The header of {path} has axes that span no volume. Export the scan again.")
    carrier = nib.Nifti1Header()
    carrier.set_data_shape(shape)
    carrier.set_sform(affine, code=1)
    return affine_of(carrier, path)
