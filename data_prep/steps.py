"""Steps that people need on the way from a scanner to a network, as options of every converter, in this order:
reorient, mask, N4 bias correction, resample, crop. Image and label map go through them together.

Cutting off faces is not among them: it takes a registration or a network of its own, and a tool that was validated for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError, UsageError
from medseg_se.nifti import MEMORY_LIMIT, SUFFIXES
from medseg_se.volumes import Volume, check_orientation, read_labels, reorient, resample, resample_labels, resampled_shape

from .bias import correct_bias
from .collection import Scan

Mask = npt.NDArray[np.bool_]
Box = tuple[tuple[int, int], ...]
Interpolation = Literal["linear", "cubic"]


@dataclass(frozen=True)
class Steps:
    """What is done to every case; nothing unless asked for.

    Attributes:
        reorient: Where the axes of the result point, for example RAS.
        mask: What is kept of the image, for example the brain: "labels" for what is labelled, or a folder with a mask for
            every case, ID.nii.gz, whose voxels that are not 0 are kept. Label maps stay as they are.
        outside: The value of voxels outside of the mask, for example -1000 in CT.
        n4: Whether the slow change of brightness over an MR scan (the bias field) is taken away with N4.
        spacing: Voxel spacing in mm along the three axes of the result.
        interpolation: How images are resampled, "linear" or "cubic"; labels always by the largest interpolated mask.
        crop: Whether the border around the foreground (and around all that is labelled) is cut off.
        threshold: Intensity above which a voxel is foreground for `crop`, for example -500 HU in CT; a thousandth of the
            scan's range above its lowest value if not given.
        margin: What `crop` leaves around the foreground, in mm.
    """

    reorient: str | None = None
    mask: str | None = None
    outside: float = 0.0
    n4: bool = False
    spacing: list[float] | None = None
    interpolation: Interpolation = "linear"
    crop: bool = False
    threshold: float | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.reorient is not None:
            check_orientation(self.reorient)
        if self.mask is not None and self.mask != "labels" and not Path(self.mask).is_dir():
            raise UsageError(f"Expected `mask` to be 'labels' or a folder of masks, but got {self.mask!r}.")
        if not math.isfinite(self.outside) or not math.isfinite(self.threshold or 0.0):
            raise UsageError(f"Expected `outside` and `threshold` to be finite, but got {self.outside} and {self.threshold}.")
        if self.outside != 0 and self.mask is None:
            raise UsageError("Expected `mask` with `outside`, but got none: nothing lies outside.")
        if self.spacing is not None and (len(self.spacing) != 3 or not all(0 < value < 1e3 for value in self.spacing)):
            raise UsageError(f"Expected `spacing` to be three positive numbers in mm, but got {self.spacing}.")
        if self.interpolation not in get_args(Interpolation):
            raise UsageError(f"Expected `interpolation` to be linear or cubic, but got {self.interpolation!r}.")
        if not 0 <= self.margin < math.inf:
            raise UsageError(f"Expected `margin` to be 0 or more mm, but got {self.margin}.")
        if not self.crop and (self.margin or self.threshold is not None):
            raise UsageError("Expected `crop` with `margin` or `threshold`, but got none: nothing is cut off.")

    def __call__(self, scan: Scan, case_id: str) -> Scan:
        """Return the case called `case_id` after all steps.

        Raises:
            DataError: A step cannot be done on this case.
        """
        inside = None
        if self.reorient is not None:
            scan = _to_both(scan, partial(reorient, orientation=self.reorient))
        if self.mask is not None and (scan.image is not None or self.mask != "labels"):
            inside = self._mask(scan, case_id)
            scan = _masked(scan, inside, self.outside)
        if self.n4 and scan.image is not None:
            scan = replace(scan, image=correct_bias(scan.image, inside))
        if self.spacing is not None:
            scan = self._resampled(scan)
        if self.crop:
            scan = self._cropped(scan)
        return scan

    def files(self, case_id: str) -> tuple[Path, ...]:
        """Return the files besides its own that the case called `case_id` depends on, those that may be there."""
        return () if self.mask is None or self.mask == "labels" else _mask_files(Path(self.mask), case_id)

    def _mask(self, scan: Scan, case_id: str) -> Mask:
        """Return where the mask of a case is, (I, J, K), on its grid."""
        grid = cast(Volume, scan.image or scan.labels)
        if self.mask == "labels":
            if scan.labels is None:
                raise DataError("It has no label map to be masked by. Give a folder of masks, or leave `--mask` out.")
            labels = scan.labels
        else:
            labels = reorient(_read_mask(Path(cast(str, self.mask)), case_id), grid.orientation)
        if difference := grid.same_grid(labels):
            raise DataError(f"Its mask lies on another grid: {difference}. Resample the mask onto the scan's.")
        inside: Mask = labels.array[0] != 0
        if not inside.any():
            raise DataError("Its mask is empty.")
        return inside

    def _resampled(self, scan: Scan) -> Scan:
        grid = cast(Volume, scan.image or scan.labels)
        x, y, z = cast(list[float], self.spacing)
        shape = resampled_shape(grid, (x, y, z))
        if 4 * len(grid.array) * math.prod(shape) > MEMORY_LIMIT:
            raise DataError(f"It would have {shape} voxels at a spacing of {(x, y, z)} mm. Is the spacing in its header right?")
        image = scan.image
        if image is not None:
            smooth = replace(image, array=image.array.astype(np.float32))
            image = _within(resample(smooth, shape, self.interpolation), image)
        return replace(scan, image=image, labels=None if scan.labels is None else resample_labels(scan.labels, shape))

    def _cropped(self, scan: Scan) -> Scan:
        grid = cast(Volume, scan.image or scan.labels)
        inside = np.zeros(grid.shape, dtype=bool) if scan.labels is None else scan.labels.array[0] != 0
        if scan.image is not None:
            for channel in scan.image.array:
                low, high = float(channel.min()), float(channel.max())
                inside = inside | (channel > (low + 1e-3 * (high - low) if self.threshold is None else self.threshold))
        if not inside.any():
            raise DataError("It has no foreground to crop to: all voxels are alike, or none is above the threshold.")
        return _to_both(scan, partial(_cut, box=_box(inside, [self.margin / mm for mm in grid.spacing])))


def _to_both(scan: Scan, change: Callable[[Volume], Volume]) -> Scan:
    image = None if scan.image is None else change(scan.image)
    return replace(scan, image=image, labels=None if scan.labels is None else change(scan.labels))


def _read_mask(folder: Path, case_id: str) -> Volume:
    for path in _mask_files(folder, case_id):
        if path.is_file():
            return read_labels(path)
    raise DataError(f"It has no mask {case_id}.nii.gz in the folder given as `--mask`.")


def _mask_files(folder: Path, case_id: str) -> tuple[Path, ...]:
    return tuple(folder / f"{case_id}{suffix}" for suffix in SUFFIXES)


def _masked(scan: Scan, inside: Mask, outside: float) -> Scan:
    """Set what lies outside of a mask to a value; a label map goes on telling the truth, alone it is masked itself."""
    if scan.image is None:
        labels = cast(Volume, scan.labels)
        return replace(scan, labels=replace(labels, array=np.where(inside, labels.array, 0).astype(labels.array.dtype)))
    image = replace(scan.image, array=np.where(inside, scan.image.array, np.float32(outside)).astype(np.float32))
    notes = scan.notes
    if scan.labels is not None and (lost := int(((scan.labels.array[0] != 0) & ~inside).sum())):
        notes = (*notes, f"{lost} labelled voxels lie outside of its mask.")
    return replace(scan, image=image, notes=notes)


def _within(resampled: Volume, original: Volume) -> Volume:
    """Keep each channel between the lowest and the highest value it had, which cubic interpolation overshoots."""
    channels = [np.clip(new, old.min(), old.max()) for new, old in zip(resampled.array, original.array, strict=True)]
    return replace(resampled, array=np.stack(channels))


def _box(inside: Mask, margin: Sequence[float]) -> Box:
    """Return the (start, stop) along each axis that holds all that is inside, and the margin (voxels) around it."""
    box = []
    for axis, (length, more) in enumerate(zip(inside.shape, margin, strict=True)):
        places = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        extra = math.ceil(more - 1e-6)
        box.append((max(0, int(places[0]) - extra), min(length, int(places[-1]) + 1 + extra)))
    return tuple(box)


def _cut(volume: Volume, box: Box) -> Volume:
    array = volume.array[(slice(None), *(slice(start, stop) for start, stop in box))]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([start for start, _ in box], dtype=float)
    return replace(volume, array=np.ascontiguousarray(array), affine=affine, header=None)
