"""Preprocessing as data: one small frozen dataclass, stored in the checkpoint, used by training and inference alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from medseg_se.data.intensity import Intensity as Intensity
from medseg_se.data.intensity import Scaling, Window
from medseg_se.errors import DataError, UsageError
from medseg_se.nifti import MEMORY_LIMIT
from medseg_se.resampling import coarse_axis
from medseg_se.volumes import Volume, check_orientation, reorient, resample, resample_labels, resampled_shape

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], ...]
Crop = Literal["none", "nonzero"]
ImageInterpolation = Literal["linear", "cubic", "anisotropic"]


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a scan before a network sees it, in this order: reorient, crop, resample, scale intensities.

    Attributes:
        orientation: Where the axes (I, J, K) point afterwards.
        spacing: Voxel spacing in mm along those axes; None keeps each scan's own.
        crop: "nonzero" cuts away the border in which every channel is 0.
        intensity: How each channel is scaled; one scheme, or one for each channel. "zscore": zero mean, unit variance over
            the scan. "zscore_nonzero": the same over its nonzero voxels, the rest stays 0. "percentile": clipped to the 0.5th
            and 99.5th percentile, then zscore. "minmax": to [0, 1]. "window": clipped to `window` and scaled to [-1, 1], for
            CT. "dataset": clipped to `window`, less `mean`, divided by `deviation`; where these are the 0.5th and 99.5th
            percentile, mean and standard deviation of the structures' voxels in all training scans, this is what nnU-Net
            does with CT. "none": as it is.
        window: Lower and upper intensity for "window" and "dataset" (HU in CT); one pair, or one for each channel.
        interpolation: How images are resampled. "linear", "cubic" (a B-spline), or "anisotropic": cubic, but where voxels are
            more than three times as long along one axis as along another, values along that axis are those of the nearest
            slice, as nnU-Net does. The scan's own voxels decide, and if they are even, those of `spacing`. Labels are always
            resampled by the largest interpolated mask.
        mean: What "dataset" subtracts, which must be given for it; one number, or one for each channel.
        deviation: What "dataset" divides by, which must be given for it; one number, or one for each channel.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    crop: Crop = "none"
    intensity: Intensity | tuple[Intensity, ...] = "zscore"
    window: Window | tuple[Window, ...] = (-1000.0, 1000.0)
    interpolation: ImageInterpolation = "linear"
    mean: float | tuple[float, ...] | None = None
    deviation: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.spacing is not None and (len(self.spacing) != 3 or not all(0 < value < 1e3 for value in self.spacing)):
            raise UsageError(f"Expected `spacing` to be three positive numbers in mm, but got {self.spacing}.")
        check_orientation(self.orientation)
        for name, kind in (("crop", Crop), ("intensity", Intensity), ("interpolation", ImageInterpolation)):
            given = getattr(self, name)
            for value in given if name == "intensity" and isinstance(given, tuple) else (given,):
                if value not in get_args(kind):
                    raise UsageError(f"Expected `{name}` to be one of {', '.join(get_args(kind))}, but got {value!r}.")
        lengths = {len(values) for values in self._by_channel().values() if values is not None}
        self.for_channels(max(lengths, default=1) or 1)

    def for_channels(self, channels: int) -> tuple[Scaling, ...]:
        """Return how each of so many channels is scaled.

        Raises:
            UsageError: Something that is given for each channel is not given so many times, or makes no sense.
        """
        spread: dict[str, tuple[Any, ...]] = {}
        for name, values in self._by_channel().items():
            if values is not None and len(values) != channels:
                raise UsageError(
                    f"Expected `{name}` to be one value for all channels or one for each of {channels}, but got {len(values)}: "
                    f"{getattr(self, name)}."
                )
            spread[name] = (getattr(self, name),) * channels if values is None else values
        return tuple(_scaling(*settings) for settings in zip(*spread.values(), strict=True))

    def _by_channel(self) -> dict[str, tuple[Any, ...] | None]:
        """Return the settings of `Scaling` in its order, None where one serves all channels."""
        one_window = not any(isinstance(bound, tuple) for bound in self.window)
        given = (self.intensity, None if one_window else self.window, self.mean, self.deviation)
        names = ("intensity", "window", "mean", "deviation")
        return {name: values if isinstance(values, tuple) else None for name, values in zip(names, given, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` makes an equal object."""
        return {key: _lists(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Preprocessing:
        """Make the object that `to_dict` described; what it does not name is as by default."""
        plain: dict[str, Any] = {key: _tuples(value) for key, value in content.items()}
        return cls(**plain)

    def __call__(self, image: Volume) -> Prepared:
        """Prepare `image` (C, I, J, K) for a network.

        Raises:
            DataError: A voxel is not finite.
            UsageError: The scan has other channels than intensities were given for.
        """
        if not (np.isfinite(image.array.min()) and np.isfinite(image.array.max())):
            bad = int(np.size(image.array) - np.isfinite(image.array).sum())
            raise DataError(
                f"{image.path or 'The scan'} holds {bad} voxels that are NaN or infinite. Repair it or leave it out."
            )
        scalings = self.for_channels(len(image.array))
        turned = reorient(image, self.orientation)
        cut, box = self._cropped(turned)
        scaled = self._resampled(cut, self._shape(cut, image))
        channels = [scale(channel) for scale, channel in zip(scalings, scaled.array, strict=True)]
        array = channels[0][None] if len(channels) == 1 else np.stack(channels)
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise DataError(
                f"{image.path or 'The scan'} holds values from {image.array.min():g} to {image.array.max():g}, which cannot be "
                "scaled. Repair it or leave it out."
            )
        return Prepared(replace(scaled, array=array), image, turned, box)

    def prepare_labels(self, labels: Volume) -> Volume:
        """Prepare a label map (1, I, J, K) that has no scan, in the same way; "nonzero" crops to what is not 0.

        Raises:
            DataError: It would be too large.
        """
        cut, _ = self._cropped(reorient(labels, self.orientation))
        return resample_labels(cut, self._shape(cut, labels))

    def _cropped(self, turned: Volume) -> tuple[Volume, Box]:
        box = _nonzero_box(turned.array) if self.crop == "nonzero" else tuple((0, length) for length in turned.shape)
        return _cut(turned, box), box

    def _shape(self, cut: Volume, source: Volume) -> Shape:
        shape = resampled_shape(cut, self.spacing) if self.spacing else cut.shape
        if 4 * len(cut.array) * math.prod(shape) > MEMORY_LIMIT:
            raise DataError(
                f"{source.path or 'The scan'} would have {shape} voxels at a spacing of {self.spacing} mm. "
                f"Is the spacing in its header, {tuple(round(mm, 3) for mm in source.spacing)} mm, right?"
            )
        return shape

    def _resampled(self, cut: Volume, shape: Shape) -> Volume:
        if self.interpolation == "linear":
            return resample(cut, shape)
        nearest = None
        if self.interpolation == "anisotropic":
            nearest = coarse_axis(cut.spacing)
            if nearest is None and self.spacing is not None:
                nearest = coarse_axis(self.spacing)
        return resample(cut, shape, "cubic", nearest)


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
    box: Box

    def apply_to_labels(self, labels: Volume) -> Volume:
        """Bring a label map on the original grid to the prepared grid, without mixing values."""
        return labels_on(labels, self.turned.orientation, self.box, self.image.shape)

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


def labels_on(labels: Volume, orientation: str, box: Box, shape: Shape) -> Volume:
    """Bring a label map to where its scan was brought: turned to `orientation`, cut to `box`, resampled to `shape`."""
    return resample_labels(_cut(reorient(labels, orientation), box), shape)


def _nonzero_box(array: Array) -> Box:
    inside = (array != 0).any(axis=0)
    if not inside.any():
        return tuple((0, length) for length in inside.shape)
    box = []
    for axis in range(3):
        places = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append((int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def _cut(volume: Volume, box: Box) -> Volume:
    if all(kept == (0, length) for kept, length in zip(box, volume.shape, strict=True)):
        return volume
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ np.array([start for start, _ in box], dtype=np.float64)
    array = volume.array[(slice(None), *(slice(start, stop) for start, stop in box))]
    return replace(volume, array=np.ascontiguousarray(array), affine=affine, header=None)


def _scaling(scheme: Intensity, window: Window, mean: float | None, deviation: float | None) -> Scaling:
    if len(window) != 2 or not -math.inf < window[0] < window[1] < math.inf:
        raise UsageError(f"Expected `window` to be a lower and a higher intensity, but got {window}.")
    if scheme == "dataset" and (mean is None or deviation is None):
        raise UsageError(
            "Expected `mean` and `deviation` of the dataset's intensities with the intensity 'dataset', but got none. "
            "`medseg-se plan` measures them."
        )
    mean, deviation = 0.0 if mean is None else mean, 1.0 if deviation is None else deviation
    if not math.isfinite(mean):
        raise UsageError(f"Expected `mean` to be a finite number, but got {mean}.")
    if not 1e-6 < deviation < math.inf:
        raise UsageError(f"Expected `deviation` to be a positive number, but got {deviation}.")
    return Scaling(scheme, (window[0], window[1]), mean, deviation)


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
