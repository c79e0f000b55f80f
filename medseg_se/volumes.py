"""Volume: a scan or label map on its grid; NIfTI in and out, orientation and resampling, each with its way back.

Axes are those of the file until `reorient` says otherwise; world coordinates are RAS+ millimetres, as in nibabel.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
import scipy
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from medseg_se.errors import DataError, UsageError
from medseg_se.files import atomic_write
from medseg_se.nifti import MEMORY_LIMIT, SUFFIXES, affine_of, read_voxels, scaling_of, spacing_of
from medseg_se.resampling import by_vote, cubic

Array = npt.NDArray[Any]
Interpolation = Literal["nearest", "linear", "cubic"]


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


# ------------------------------------------------------------------------------------------------------------------- reading


def read_image(path: Path | str, memory_limit: int = MEMORY_LIMIT) -> Volume:
    """Read a NIfTI scan as float32 (C, I, J, K), scaling applied; the fourth axis of the file becomes the channels.

    Args:
        path: A `.nii` or `.nii.gz` file.
        memory_limit: Bytes the voxels may claim as float32; more is refused before anything is read.

    Raises:
        DataError: The file is missing, truncated, no NIfTI, contradicts itself, or claims more than the limit.
    """
    raw, header, path = read_voxels(Path(path), memory_limit)
    slope, inter = scaling_of(header)
    if (slope, inter) == (1.0, 0.0):
        array = np.array(raw, dtype=np.float32, order="C")
    else:
        array = np.empty(raw.shape, dtype=np.float32)
        for k in range(raw.shape[3]):  # slice by slice, as a whole scan in float64 is twice the size of the result
            array[..., k] = raw[..., k].astype(np.float64) * slope + inter
    return Volume(array, affine_of(header, path), header, path)


def read_labels(path: Path | str, memory_limit: int = MEMORY_LIMIT) -> Volume:
    """Read a label map as the integers it holds, (1, I, J, K); float and scaled files must hold whole numbers.

    Raises:
        DataError: As `read_image`, or the file holds more than one channel, NaN, or values that are not whole.
    """
    raw, header, path = read_voxels(Path(path), memory_limit)
    if raw.shape[0] != 1:
        raise DataError(f"Expected a label map with one value per voxel, but {path} has {raw.shape[0]} channels.")
    slope, inter = scaling_of(header)
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


# ------------------------------------------------------------------------------------------------------------------ geometry


def check_orientation(orientation: str) -> None:
    """Refuse anything but three letters that name each axis once, such as RAS or LPS."""
    if sorted(orientation.upper().translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise UsageError(f"Expected `orientation` to name three axes, such as RAS or LPS, but got {orientation!r}.")


def reorient(volume: Volume, orientation: str) -> Volume:
    """Permute and flip the axes so that they point to `orientation`, for example "RAS"; voxels keep their world place."""
    check_orientation(orientation)
    change = ornt_transform(io_orientation(volume.affine), axcodes2ornt(tuple(orientation.upper())))
    channels = [apply_orientation(channel, change) for channel in volume.array]
    array = channels[0][None] if len(channels) == 1 else np.stack(channels)  # a view, where one channel is all
    affine = volume.affine @ inv_ornt_aff(change, volume.shape)
    return replace(volume, array=np.ascontiguousarray(array), affine=affine, header=None)


def resampled_shape(volume: Volume, spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the voxels along each axis that cover the same field of view at about `spacing` mm."""
    i, j, k = (max(1, round(n * old / new)) for n, old, new in zip(volume.shape, volume.spacing, spacing, strict=True))
    return i, j, k


def resample(
    volume: Volume, shape: tuple[int, int, int], interpolation: Interpolation = "linear", nearest: int | None = None
) -> Volume:
    """Resample onto a grid of `shape` voxels over the same field of view (outer voxel faces stay where they are).

    The same shape returns the same voxels. "nearest" copies values; "linear" and "cubic" are for scans. Label maps take
    `resample_labels`.

    Args:
        volume: What is resampled.
        shape: Voxels along (i, j, k).
        interpolation: How.
        nearest: With "cubic", an axis along which values are taken from the nearest voxel, as suits thick slices.
    """
    if shape == volume.shape:
        return volume
    if interpolation == "cubic":
        return _on_grid(volume, cubic(volume.array, shape, nearest))
    order = {"nearest": "sitkNearestNeighbor", "linear": "sitkLinear"}[interpolation]
    return _resample(volume, shape, order)


def resample_labels(volume: Volume, shape: tuple[int, int, int]) -> Volume:
    """Resample a label map: each voxel gets the label whose linearly interpolated mask is largest there."""
    if shape == volume.shape:
        return volume
    if volume.array.dtype.kind not in "iu":
        raise UsageError(f"Expected integer labels, but got {volume.array.dtype}.")
    return _on_grid(volume, np.stack([by_vote(channel, shape) for channel in volume.array]))


def on_grid_of(labels: Volume, like: Volume) -> Volume:
    """Return a label map on the grid of `like`, wherever and however that lies: each voxel gets the label that is nearest.

    Beyond the voxels of `labels` there is 0.

    Raises:
        DataError: The two have no place in common.
    """
    matrix = np.linalg.inv(labels.affine) @ like.affine
    corners = np.stack(np.meshgrid(*((0, length - 1) for length in like.shape), [1], indexing="ij")).reshape(4, -1)
    places = (matrix @ corners)[:3]
    if (places.max(axis=1) < -0.5).any() or (places.min(axis=1) > np.array(labels.shape) - 0.5).any():
        raise DataError(f"{labels.path} and {like.path} have no place in common. Do their affines belong to the same scan?")
    array = scipy.ndimage.affine_transform(
        labels.array[0], matrix[:3, :3], matrix[:3, 3], like.shape, order=0, mode="grid-constant", cval=0, prefilter=False
    )
    return replace(labels, array=array[None], affine=like.affine, header=None)


def grid_of(affine: npt.NDArray[np.float64], old: Sequence[int], new: Sequence[int]) -> npt.NDArray[np.float64]:
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
    return _on_grid(volume, np.ascontiguousarray(np.stack(channels)).astype(volume.array.dtype, copy=False))


def _on_grid(volume: Volume, array: Array) -> Volume:
    """Return resampled voxels (C, I, J, K) with their affine."""
    return replace(volume, array=array, affine=grid_of(volume.affine, volume.shape, array.shape[1:]), header=None)


# ------------------------------------------------------------------------------------------------------------------- writing


def write_volume(volume: Volume, path: Path | str, like: Volume | None = None) -> None:
    """Write `volume` as NIfTI-1 in the type of its array, atomically; the same content gives the same bytes.

    Args:
        volume: What to write; (C, I, J, K) with C > 1 becomes a four-dimensional file.
        path: A name ending in `.nii` or `.nii.gz`.
        like: A volume on the same grid whose header (both forms, units, codes) is to be kept.

    Raises:
        DataError: `like` lies on another grid.
        OutputError: The folder is not writable or the disk is full; no partial file stays.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise UsageError(f"Expected an output name ending in .nii or .nii.gz, but got {path}.")
    if volume.array.dtype.name not in _WRITABLE:
        raise UsageError(f"Expected voxels of a type that NIfTI holds ({', '.join(_WRITABLE)}), but got {volume.array.dtype}.")
    if like is not None and (difference := volume.same_grid(like)):
        raise DataError(f"Expected a result on the grid of {like.path}, but got another one: {difference}.")
    header = _header(volume.affine, volume.shape, len(volume.array), volume.array.dtype, like)
    array = volume.array[0] if volume.array.shape[0] == 1 else np.moveaxis(volume.array, 0, 3)
    content = header + array.tobytes(order="F")
    with atomic_write(path) as stream:
        if path.name.lower().endswith(".gz"):
            content = gzip.compress(content, compresslevel=4, mtime=0)
        stream.write(content)


def write_blocks(path: Path | str, like: Volume, channels: int, dtype: np.dtype[Any], blocks: Iterable[bytes]) -> None:
    """Write channels on the grid of `like` as NIfTI-1, atomically, as `write_volume` does, without holding them in memory.

    Args:
        path: A name ending in `.nii` or `.nii.gz`.
        like: A volume on the same grid, whose header is kept if it has one.
        channels: How many there are.
        dtype: Type of the voxels.
        blocks: Their bytes in the order of the file: the first axis fastest, one channel after another.

    Raises:
        OutputError: The folder is not writable or the disk is full; no partial file stays.
    """
    path = Path(path)
    header = _header(like.affine, like.shape, channels, dtype, like)
    with atomic_write(path) as raw, ExitStack() as stack:
        stream: IO[bytes] = raw
        if path.name.lower().endswith(".gz"):
            zipped = gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=raw, mtime=0)
            stream = cast(IO[bytes], stack.enter_context(zipped))
        stream.write(header)
        for block in blocks:
            stream.write(block)


def _header(
    affine: npt.NDArray[np.float64], shape: tuple[int, int, int], channels: int, dtype: np.dtype[Any], like: Volume | None
) -> bytes:
    """Return what stands before the voxels in the file."""
    whole = shape if channels == 1 else (*shape, channels)
    image = nib.Nifti1Image(np.broadcast_to(np.zeros((), dtype), whole), affine, dtype=dtype)
    image.header.set_xyzt_units("mm")
    image.update_header()
    header = image.header.copy()
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = header.sizeof_hdr + 4, 1, 0
    if like is not None and like.header is not None:
        # After nibabel is done: it would write its own forms over those that do not match the affine to the last digit.
        _keep_geometry(header, like.header)
    return bytes(header.binaryblock) + bytes(4)


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
