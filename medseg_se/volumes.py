"""Volume: a scan or label map on its grid; NIfTI in and out, orientation and resampling, each with its way back.

Axes are those of the file until `reorient` says otherwise; world coordinates are RAS+ millimetres, as in nibabel. Reading is
distrustful on purpose: a header that contradicts itself or its file is refused by name rather than believed.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from medseg_se.errors import DataError, UsageError
from medseg_se.files import atomic_write

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Interpolation = Literal["nearest", "linear", "cubic"]

SUFFIXES = (".nii.gz", ".nii")
MENDABLE = 1e-3  # largest entry-wise deviation of the direction matrix from an orthonormal one that is mended
MEMORY_LIMIT = 8 * 2**30  # bytes that one scan may claim, as float32, unless the caller allows more


@dataclass(frozen=True)
class Volume:
    """Voxels with their place in the world.

    Attributes:
        array: Voxels (C, I, J, K); label maps have C = 1.
        affine: (4, 4) matrix from voxel indices (i, j, k) to RAS+ mm; its directions are orthogonal.
        header: The NIfTI header of the file it came from; results on the same grid are written with it.
        path: The file it came from, for messages.
    """

    array: Array
    affine: npt.NDArray[np.float64]
    header: nib.Nifti1Header | None = None
    path: Path | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (i, j, k)."""
        return self.array.shape[1], self.array.shape[2], self.array.shape[3]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (i, j, k) in mm."""
        return spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """Where each axis points, for example "RAS"."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    def same_grid(self, other: Volume, tolerance: float = 1e-2) -> str | None:
        """Return None if both lie on one grid, else what differs in words.

        Args:
            other: The volume to compare with.
            tolerance: Largest distance between the same corner of both, in voxels of the finest axis.
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        corners = np.array([[i, j, k, 1] for i in (0, self.shape[0]) for j in (0, self.shape[1]) for k in (0, self.shape[2])])
        apart = np.linalg.norm((corners @ (self.affine - other.affine).T)[:, :3], axis=1).max()
        if apart > tolerance * min(self.spacing):
            return f"affines that put the same voxel up to {apart:.2f} mm apart"
        return None


def spacing_of(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the voxel spacing in mm of a (4, 4) `affine`."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


# ------------------------------------------------------------------------------------------------------------------- reading


def read_image(path: Path | str, memory_limit: int = MEMORY_LIMIT) -> Volume:
    """Read a NIfTI scan as float32 (C, I, J, K), scaling applied; the fourth axis of the file becomes the channels.

    Args:
        path: A `.nii` or `.nii.gz` file.
        memory_limit: Bytes the voxels may claim as float32; more is refused before anything is read.

    Raises:
        DataError: The file is missing, truncated, no NIfTI, contradicts itself, or claims more than the limit.
    """
    raw, header, path = _read(Path(path), memory_limit)
    slope, inter = _scaling(header)
    if (slope, inter) == (1.0, 0.0):
        array = np.array(raw, dtype=np.float32, order="C")
    else:
        array = np.ascontiguousarray(raw.astype(np.float64) * slope + inter, dtype=np.float32)
    return Volume(array, affine_of(header, path), header, path)


def read_labels(path: Path | str, memory_limit: int = MEMORY_LIMIT) -> Volume:
    """Read a label map as the integers it holds, (1, I, J, K); float and scaled files must hold whole numbers.

    Raises:
        DataError: As `read_image`, or the file holds more than one channel, NaN, or values that are not whole.
    """
    raw, header, path = _read(Path(path), memory_limit)
    if raw.shape[0] != 1:
        raise DataError(f"Expected a label map with one value per voxel, but {path} has {raw.shape[0]} channels.")
    slope, inter = _scaling(header)
    if raw.dtype.kind in "iu" and (slope, inter) == (1.0, 0.0):
        return Volume(np.array(raw, dtype=raw.dtype.newbyteorder("="), order="C"), affine_of(header, path), header, path)
    values = raw.astype(np.float64) * slope + inter
    whole = np.rint(values)
    if not np.isfinite(values).all() or np.abs(values - whole).max(initial=0) > 1e-3:
        raise DataError(f"Expected whole label values, but {path} holds fractions or NaN. Is it a scan or a probability map?")
    kind = np.int32 if np.abs(whole).max(initial=0) < 2**31 else np.int64
    return Volume(np.ascontiguousarray(whole.astype(kind)), affine_of(header, path), header, path)


def case_name(path: Path | str) -> str:
    """Return the file's name without `.nii` or `.nii.gz`."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def is_scan(path: Path) -> bool:
    """Tell whether `path` looks like a NIfTI file; hidden files and the `._` twins that macOS leaves do not."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def _read(path: Path, memory_limit: int) -> tuple[Array, nib.Nifti1Header, Path]:
    """Return the unscaled voxels (C, I, J, K), the header and the path."""
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
            f"is {memory_limit / 2**30:.1f} GiB. Raise `memory_limit` if the scan is really that large."
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


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0 or not math.isfinite(inter):
        return 1.0, 0.0
    return slope, inter


# ------------------------------------------------------------------------------------------------------------------ geometry


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


def reorient(volume: Volume, orientation: str) -> Volume:
    """Permute and flip the axes so that they point to `orientation`, for example "RAS"; voxels keep their world place."""
    if sorted(orientation.upper().translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise UsageError(f"Expected `orientation` to name three axes, such as RAS or LPS, but got {orientation!r}.")
    change = ornt_transform(io_orientation(volume.affine), axcodes2ornt(tuple(orientation.upper())))
    array = np.stack([apply_orientation(channel, change) for channel in volume.array])
    affine = volume.affine @ inv_ornt_aff(change, volume.shape)
    return replace(volume, array=np.ascontiguousarray(array), affine=affine, header=None)


def resampled_shape(volume: Volume, spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the voxels along each axis that cover the same field of view at about `spacing` mm."""
    i, j, k = (max(1, round(n * old / new)) for n, old, new in zip(volume.shape, volume.spacing, spacing, strict=True))
    return i, j, k


def resample(volume: Volume, shape: tuple[int, int, int], interpolation: Interpolation = "linear") -> Volume:
    """Resample onto a grid of `shape` voxels over the same field of view (outer voxel faces stay where they are).

    The same shape returns the same voxels. "nearest" copies values; "linear" and "cubic" are for scans. Label maps take
    `resample_labels`.
    """
    if shape == volume.shape:
        return volume
    order = {"nearest": "sitkNearestNeighbor", "linear": "sitkLinear", "cubic": "sitkBSpline"}[interpolation]
    return _resample(volume, shape, order)


def resample_labels(volume: Volume, shape: tuple[int, int, int]) -> Volume:
    """Resample a label map: each voxel gets the label whose linearly interpolated mask is largest there."""
    if shape == volume.shape:
        return volume
    if volume.array.dtype.kind not in "iu":
        raise UsageError(f"Expected integer labels, but got {volume.array.dtype}.")
    return _resample(volume, shape, "sitkLabelLinear")


def grid_of(affine: npt.NDArray[np.float64], old: tuple[int, int, int], new: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """Return the affine of a grid of `new` voxels that covers the field of view of `old` voxels under `affine`."""
    scale = np.array(old) / np.array(new)
    result = affine.copy()
    result[:3, :3] = affine[:3, :3] * scale
    result[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((scale - 1) / 2)
    return result


def _resample(volume: Volume, shape: tuple[int, int, int], order: str) -> Volume:
    import SimpleITK

    scale = np.array(volume.shape) / np.array(shape)
    channels = []
    for channel in volume.array:
        # Index space with unit spacing is enough: both grids share their axes. Edges are repeated half a voxel outwards.
        source = SimpleITK.GetImageFromArray(np.ascontiguousarray(channel.transpose(2, 1, 0)))
        resampler = SimpleITK.ResampleImageFilter()
        resampler.SetInterpolator(getattr(SimpleITK, order))
        resampler.SetSize([int(length) for length in shape])
        resampler.SetOutputSpacing(scale.tolist())
        resampler.SetOutputOrigin(((scale - 1) / 2).tolist())
        resampler.SetUseNearestNeighborExtrapolator(True)
        channels.append(SimpleITK.GetArrayFromImage(resampler.Execute(source)).transpose(2, 1, 0))
    array = np.ascontiguousarray(np.stack(channels)).astype(volume.array.dtype, copy=False)
    return replace(volume, array=array, affine=grid_of(volume.affine, volume.shape, shape), header=None)


# ------------------------------------------------------------------------------------------------------------------- writing


def write_volume(volume: Volume, path: Path | str, like: Volume | None = None) -> None:
    """Write `volume` as NIfTI-1 in the type of its array, atomically; the same content gives the same bytes.

    Args:
        volume: What to write; (C, I, J, K) with C > 1 becomes a four-dimensional file.
        path: A name ending in `.nii` or `.nii.gz`.
        like: A volume on the same grid whose header (both forms, units, codes) is to be kept.

    Raises:
        DataError: `like` has another shape.
        OutputError: The folder is not writable or the disk is full; no partial file stays.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise UsageError(f"Expected an output name ending in .nii or .nii.gz, but got {path}.")
    if volume.array.dtype.name not in _WRITABLE:
        raise UsageError(f"Expected voxels of a type that NIfTI holds ({', '.join(_WRITABLE)}), but got {volume.array.dtype}.")
    array = volume.array[0] if volume.array.shape[0] == 1 else np.moveaxis(volume.array, 0, 3)
    image = nib.Nifti1Image(array, volume.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    if like is not None and like.shape != volume.shape:
        raise DataError(f"Expected a result of the shape {like.shape} of {like.path}, but got {volume.shape}.")
    content = image.to_bytes()
    if like is not None and like.header is not None:
        # After nibabel is done: it would write its own forms over those that do not match the affine to the last digit.
        header = nib.Nifti1Header(content[: nib.Nifti1Header.sizeof_hdr])
        _keep_geometry(header, like.header)
        content = header.binaryblock + content[header.sizeof_hdr :]
    with atomic_write(path) as stream:
        if path.name.lower().endswith(".gz"):
            content = gzip.compress(content, compresslevel=4, mtime=0)
        stream.write(content)


_WRITABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def _keep_geometry(header: nib.Nifti1Header, source: nib.Nifti1Header) -> None:
    """Copy every field that places the grid, bit for bit, so that programs that prefer either form agree as before."""
    for name in _GEOMETRY:
        header[name] = source[name]
    header["pixdim"][:4] = source["pixdim"][:4]
