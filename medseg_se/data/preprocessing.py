"""Preprocessing as data: one small frozen dataclass, stored in the checkpoint, used by training and inference alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError, UsageError
from medseg_se.nifti import MEMORY_LIMIT
from medseg_se.volumes import Volume, check_orientation, reorient, resample, resample_labels, resampled_shape

Array = npt.NDArray[Any]
Intensity = Literal["zscore", "zscore_nonzero", "percentile", "minmax", "window", "none"]
Crop = Literal["none", "nonzero"]
ImageInterpolation = Literal["linear", "cubic"]


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a scan before a network sees it, in this order: reorient, crop, resample, scale intensities.

    Attributes:
        orientation: Where the axes (I, J, K) point afterwards.
        spacing: Voxel spacing in mm along those axes; None keeps each scan's own.
        crop: "nonzero" cuts away the border in which every channel is 0.
        intensity: How each channel is scaled. "zscore": zero mean, unit variance over the scan. "zscore_nonzero": the same
            over its nonzero voxels, the rest stays 0. "percentile": clipped to the 0.5th and 99.5th percentile, then zscore.
            "minmax": to [0, 1]. "window": clipped to `window` and scaled to [-1, 1], for CT. "none": as it is.
        window: Lower and upper intensity for "window" (HU in CT).
        interpolation: How images are resampled; labels always by the largest interpolated mask.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    crop: Crop = "none"
    intensity: Intensity = "zscore"
    window: tuple[float, float] = (-1000.0, 1000.0)
    interpolation: ImageInterpolation = "linear"

    def __post_init__(self) -> None:
        if self.spacing is not None and (len(self.spacing) != 3 or not all(0 < value < 1e3 for value in self.spacing)):
            raise UsageError(f"Expected `spacing` to be three positive numbers in mm, but got {self.spacing}.")
        check_orientation(self.orientation)
        for name, kind in (("crop", Crop), ("intensity", Intensity), ("interpolation", ImageInterpolation)):
            if getattr(self, name) not in get_args(kind):
                valid = ", ".join(get_args(kind))
                raise UsageError(f"Expected `{name}` to be one of {valid}, but got {getattr(self, name)!r}.")
        if len(self.window) != 2 or not self.window[0] < self.window[1]:
            raise UsageError(f"Expected `window` to be a lower and a higher intensity, but got {self.window}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` makes an equal object."""
        plain = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Preprocessing:
        """Make the object that `to_dict` described."""
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
        return cls(**plain)

    def __call__(self, image: Volume) -> Prepared:
        """Prepare `image` (C, I, J, K) for a network.

        Raises:
            DataError: A voxel is not finite.
        """
        if not np.isfinite(image.array).all():
            bad = int(np.size(image.array) - np.isfinite(image.array).sum())
            raise DataError(
                f"{image.path or 'The scan'} holds {bad} voxels that are NaN or infinite. Repair it or leave it out."
            )
        turned = reorient(image, self.orientation)
        box = _nonzero_box(turned.array) if self.crop == "nonzero" else tuple((0, length) for length in turned.shape)
        cut = _cut(turned, box)
        shape = resampled_shape(cut, self.spacing) if self.spacing else cut.shape
        if 4 * len(cut.array) * math.prod(shape) > MEMORY_LIMIT:
            raise DataError(
                f"{image.path or 'The scan'} would have {shape} voxels at a spacing of {self.spacing} mm. "
                f"Is the spacing in its header, {tuple(round(mm, 3) for mm in image.spacing)} mm, right?"
            )
        scaled = resample(cut, shape, self.interpolation)
        channels = [_scale(channel, self.intensity, self.window) for channel in scaled.array]
        return Prepared(replace(scaled, array=np.stack(channels)), image, turned, box)


@dataclass(frozen=True)
class Prepared:
    """A prepared scan that remembers the way back.

    Attributes:
        image: What the network sees, float32 (C, I, J, K), with its affine.
        original: The scan as it was read.
        turned: The scan after reorientation, before cropping.
        box: (start, stop) along each axis of `turned` that was kept.
    """

    image: Volume
    original: Volume
    turned: Volume
    box: tuple[tuple[int, int], ...]

    def apply_to_labels(self, labels: Volume) -> Volume:
        """Bring a label map on the original grid to the prepared grid, without mixing values."""
        return resample_labels(_cut(reorient(labels, self.turned.orientation), self.box), self.image.shape)

    @property
    def cut_shape(self) -> tuple[int, int, int]:
        """Voxels of the kept box at the scan's own spacing; predictions are brought to this grid."""
        i, j, k = (stop - start for start, stop in self.box)
        return i, j, k

    def restore(self, array: Array, fill: float = 0) -> Volume:
        """Put (C, *cut_shape) back onto the grid of the original scan.

        Args:
            array: Labels or probabilities on the kept box.
            fill: The value outside of the box.
        """
        full = np.full((array.shape[0], *self.turned.shape), fill, dtype=array.dtype)
        full[(slice(None), *(slice(start, stop) for start, stop in self.box))] = array
        back = reorient(Volume(full, self.turned.affine), self.original.orientation)
        return replace(back, affine=self.original.affine, header=self.original.header, path=self.original.path)


def _nonzero_box(array: Array) -> tuple[tuple[int, int], ...]:
    inside = (array != 0).any(axis=0)
    if not inside.any():
        return tuple((0, length) for length in inside.shape)
    box = []
    for axis in range(3):
        places = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append((int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def _cut(volume: Volume, box: tuple[tuple[int, int], ...]) -> Volume:
    if all(kept == (0, length) for kept, length in zip(box, volume.shape, strict=True)):
        return volume
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ np.array([start for start, _ in box], dtype=np.float64)
    array = volume.array[(slice(None), *(slice(start, stop) for start, stop in box))]
    return replace(volume, array=np.ascontiguousarray(array), affine=affine, header=None)


def _scale(channel: Array, intensity: Intensity, window: tuple[float, float]) -> Array:
    """Scale one channel (I, J, K); statistics in float64, result float32. A constant channel becomes 0."""
    if intensity == "none":
        return channel
    if intensity == "window":
        low, high = window
        return ((np.clip(channel, low, high) - low) * (2 / (high - low)) - 1).astype(np.float32)
    if intensity == "minmax":
        low, high = float(channel.min()), float(channel.max())
        return ((channel - low) / (high - low)).astype(np.float32) if high > low else np.zeros_like(channel)
    if intensity == "percentile":
        low, high = np.percentile(channel, [0.5, 99.5])
        channel = np.clip(channel, low, high)
    inside = channel != 0 if intensity == "zscore_nonzero" else np.ones(channel.shape, dtype=bool)
    values = channel[inside].astype(np.float64)
    if values.size == 0 or not values.std() > 0:
        return np.zeros(channel.shape, dtype=np.float32)
    scaled = (channel - values.mean()) / values.std()
    return np.where(inside, scaled, 0).astype(np.float32)
