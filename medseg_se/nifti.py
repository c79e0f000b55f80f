"""NIfTI files, read with distrust: a header that contradicts itself or its file is refused by name rather than believed."""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from medseg_se.errors import DataError

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

SUFFIXES = (".nii.gz", ".nii")
MENDABLE = 1e-3  # largest entry-wise deviation of the direction matrix from an orthonormal one that is mended
MEMORY_LIMIT = 8 * 2**30  # bytes that one scan may claim, as float32, unless the caller allows more


def read_voxels(path: Path, memory_limit: int) -> tuple[Array, nib.Nifti1Header, Path]:
    """Return the voxels as they are stored, (C, I, J, K), with the header and the path.

    Raises:
        DataError: The file is missing, truncated, no NIfTI, contradicts itself, or claims more than `memory_limit` bytes.
    """
    if not path.exists():
        raise DataError(f"No such file: {path}.")
    if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"Expected a file ending in .nii or .nii.gz, but got {path}.")
    try:
        header, claimed, content = _read_bytes(path, memory_limit)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {error}. The file is truncated or corrupt; copy it again.") from error
    shape = header.get_data_shape()
    spatial, channels = _split_shape(shape, path)
    start = int(header["vox_offset"])
    data = np.frombuffer(
        content, dtype=header.get_data_dtype(), count=claimed // header.get_data_dtype().itemsize, offset=start
    )
    array = data.reshape((*spatial, channels), order="F")
    return np.moveaxis(array, 3, 0), header, path


def _read_bytes(path: Path, memory_limit: int) -> tuple[nib.Nifti1Header, int, bytes]:
    """Return header, bytes of voxel data, and the whole decompressed file; never reads more than the header claims."""
    with path.open("rb") as probe:
        compressed = probe.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
        header, claimed = _read_header(stream.read(544), path, memory_limit)
        end = int(header["vox_offset"]) + claimed
        plane = claimed // header.get_data_shape()[-1]
        stream.seek(0)
        content = stream.read(end + plane)  # a plane more than claimed: shows a header that claims too little
    if len(content) < end:
        raise DataError(
            f"The header of {path} claims {claimed:,} bytes of voxels, but the file holds only "
            f"{max(0, len(content) - end + claimed):,}. It is truncated, or its header is wrong; copy it again."
        )
    if len(content) >= end + max(plane, 1):
        raise DataError(
            f"{path} holds more voxels than the shape {header.get_data_shape()} in its header accounts for. "
            "The header is wrong; export the scan again."
        )
    return header, claimed, content


def _read_header(head: bytes, path: Path, memory_limit: int) -> tuple[nib.Nifti1Header, int]:
    """Parse a NIfTI-1 or -2 header and check its claims; returns it with the bytes of voxel data it claims."""
    sizes = int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")
    kind = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    magic = head[4:8] if 540 in sizes else head[344:348]
    if len(head) < kind.sizeof_hdr or not {348, 540} & set(sizes) or magic[:3] not in (b"n+1", b"n+2"):
        raise DataError(f"{path} is not a NIfTI file: its first bytes are no header that says so.")
    try:
        header = kind(head[: kind.sizeof_hdr], check=False)
        dtype, shape = header.get_data_dtype(), header.get_data_shape()
    except Exception as error:  # nibabel raises many kinds for nonsense in a header
        raise DataError(f"The header of {path} makes no sense: {error}.") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(f"Expected voxels that are plain numbers, but {path} holds {dtype} (colour or complex).")
    if not shape or any(length < 1 for length in shape) or len(shape) > 5:
        raise DataError(f"The header of {path} claims the impossible shape {shape}.")
    voxels = math.prod(int(length) for length in shape)
    needed = voxels * max(4, dtype.itemsize)
    if needed > memory_limit:
        raise DataError(
            f"The header of {path} claims {shape} voxels, {needed / 2**30:.1f} GiB in memory; the limit "
            f"is {memory_limit / 2**30:.1f} GiB. Crop or resample the scan first if it is really that large."
        )
    if not kind.sizeof_hdr <= float(header["vox_offset"]) < 2**31:
        raise DataError(f"The header of {path} puts the voxels at byte {float(header['vox_offset'])}, inside the header.")
    return header, voxels * dtype.itemsize


def _split_shape(shape: tuple[int, ...], path: Path) -> tuple[tuple[int, int, int], int]:
    """Return the (I, J, K) and the channels of a file's `shape`: (I, J), (I, J, K), (I, J, K, C) or (I, J, K, 1, C)."""
    padded = (*shape, 1, 1, 1)[: max(3, len(shape))]
    if len(padded) == 5 and padded[3] != 1:
        raise DataError(f"Expected at most four axes (three of space, one of channels), but {path} has shape {shape}.")
    return (padded[0], padded[1], padded[2]), math.prod(padded[3:])


def scaling_of(header: nib.Nifti1Header) -> tuple[float, float]:
    """Return slope and intercept, 1 and 0 where the header gives none that make sense."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0 or not math.isfinite(inter):
        return 1.0, 0.0
    return slope, inter


def affine_of(header: nib.Nifti1Header, path: Path | str) -> npt.NDArray[np.float64]:
    """Return the (4, 4) affine that a header means, with orthogonal directions.

    The sform is used where it is set, else the qform, else the spacing alone. Directions that deviate from orthonormal ones
    by at most `MENDABLE` are replaced by the nearest orthonormal ones, and the angle is logged.

    Raises:
        DataError: A spacing is not positive, an entry is not finite, or the directions are sheared beyond `MENDABLE`.
    """
    sform, sform_code = header.get_sform(coded=True)
    try:
        qform, qform_code = header.get_qform(coded=True)
    except (ValueError, np.linalg.LinAlgError, HeaderDataError):
        qform, qform_code = None, 0
    if sform_code > 0 and sform is not None and _spans_space(_finite(sform, path)):
        affine = _finite(sform, path)
        if qform_code > 0 and qform is not None:
            _warn_if_apart(affine, qform, header, path)
    elif qform_code > 0 and qform is not None:
        affine = _finite(qform, path)
    else:
        log.warning("%s does not say how it lies (qform and sform codes are 0); its axes are taken as left, front, up", path)
        affine = _finite(np.asarray(header.get_base_affine()), path)
    affine[:3] *= _millimetres(header, affine, path)
    return _orthogonal(affine, path)


def _spans_space(affine: Array) -> bool:
    """Tell whether the axes of `affine` span a volume; relative to their lengths, which may be in metres."""
    return bool(abs(np.linalg.det(affine[:3, :3])) > 1e-6 * math.prod(spacing_of(affine)))


def _millimetres(header: nib.Nifti1Header, affine: Array, path: Path | str) -> float:
    """Return the factor from the header's unit of length to mm; a unit that gives an absurd spacing is not believed."""
    factor = {1: 1e3, 3: 1e-3}.get(int(header["xyzt_units"]) & 7, 1.0)
    if factor == 1.0:
        return factor
    unit = "metres" if factor > 1 else "micrometres"
    if all(1e-2 <= length * factor <= 50 for length in spacing_of(affine)):
        log.warning("%s gives its lengths in %s; they are converted to mm", path, unit)
        return factor
    log.warning("%s claims lengths in %s, which cannot be; they are taken as mm", path, unit)
    return 1.0


def _finite(affine: Array, path: Path | str) -> npt.NDArray[np.float64]:
    affine = np.array(affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise DataError(f"The header of {path} has an affine that is not finite. Export the scan again.")
    return affine


def _warn_if_apart(sform: Array, qform: Array, header: nib.Nifti1Header, path: Path | str) -> None:
    far = np.array([*(length - 1 for length in (*header.get_data_shape(), 1, 1)[:3]), 1])
    apart = max(float(np.linalg.norm((sform - qform)[:3] @ corner)) for corner in (far, np.array([0, 0, 0, 1])))
    if apart > 0.1 * min(spacing_of(sform)):
        log.warning("qform and sform of %s disagree by up to %.2f mm; the sform is used", path, apart)


def _orthogonal(affine: npt.NDArray[np.float64], path: Path | str) -> npt.NDArray[np.float64]:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing <= 0).any():
        raise DataError(
            f"Expected `spacing` to be three positive numbers in mm, but got {tuple(map(float, spacing))} in {path}."
        )
    directions = affine[:3, :3] / spacing
    u, _, v = np.linalg.svd(directions)
    nearest = u @ v
    deviation = float(np.abs(directions - nearest).max())
    angle = math.degrees(math.acos(min(1.0, float(np.sum(directions * nearest, axis=0).min()))))
    if deviation > MENDABLE:
        raise DataError(
            f"The axes of {path} are not orthogonal (off by {angle:.2f} degrees, {deviation:.4f} in an entry; at most "
            f"{MENDABLE} is mended). The grid is sheared; resample the scan onto an orthogonal one first."
        )
    if deviation < 1e-6:
        return affine
    log.info("mended the axes of %s, which were %.4f degrees from orthogonal", path, angle)
    mended = affine.copy()
    mended[:3, :3] = nearest * spacing
    return mended


def spacing_of(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the voxel spacing in mm of a (4, 4) `affine`."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)
