"""Random changes to training patches: what they may be, and what is drawn for one patch from a seeded generator.

Drawing is apart from applying, so that the same change can be applied by a worker process or on a GPU.

Spatial changes are drawn in millimetres, so that an anisotropic grid is rotated and scaled as the body would be, and are
applied while the patch is cut from the scan (see `cutting`): no corner is ever filled although the scan continues there.
Intensity changes follow nnU-Net's list (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z, supplement 4) and
are applied by `intensity_changes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.errors import UsageError

Array = npt.NDArray[Any]
MIRRORS = {"left-right": "LR", "anterior-posterior": "AP", "inferior-superior": "IS"}
PROBABILITIES = {
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "inverted_gamma": 0.1,
    "gamma": 0.3,
}
"""How often nnU-Net makes each change, as share of the patches."""
CHANNEL_PROBABILITY = 0.5
"""The share of its channels that nnU-Net blurs or coarsens in a patch that it blurs or coarsens."""
INVERTED = 0.25
"""The share of gamma changes that bend the bright end, where all changes are equally frequent."""

_MOST = {
    "rotation": 180, "scaling": 100, "elastic": 100, "noise": 100, "blur": 10, "brightness": 100, "contrast": 100, "gamma": 100,
    "spatial_probability": 1, "intensity_probability": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """How strongly and how often patches are changed; 0 switches a change off.

    Attributes:
        rotation: Largest rotation about each axis in degrees.
        scaling: Largest relative change of size; 0.2 draws factors between 1/1.2 and 1.2.
        elastic: Standard deviation of a smooth random displacement in mm.
        spatial_probability: Share of the patches that are rotated, scaled and warped.
        mirror: Axes along which half of the patches are mirrored: "left-right" (labels of left and right structures are
            swapped), "anterior-posterior", "inferior-superior".
        noise: Largest standard deviation of added noise, in units of the prepared intensity.
        blur: Largest standard deviation of a Gaussian blur in voxels.
        brightness: Largest relative change of intensity.
        contrast: Largest relative change of the distance from the mean.
        gamma: Largest relative change of the exponent.
        low_resolution: Largest factor by which a patch is coarsened and brought back.
        intensity_probability: Share of the patches to which each intensity change is applied; None takes nnU-Net's own
            shares, see `PROBABILITIES`, and its habit to blur and coarsen each channel or leave it with equal chances.
    """

    rotation: float = 15.0
    scaling: float = 0.2
    elastic: float = 0.0
    spatial_probability: float = 0.5
    mirror: tuple[str, ...] = ()
    noise: float = 0.1
    blur: float = 1.0
    brightness: float = 0.25
    contrast: float = 0.25
    gamma: float = 0.3
    low_resolution: float = 2.0
    intensity_probability: float | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:  # NaN is not either
                raise UsageError(f"Expected `{name}` between 0 and {most}, but got {value}.")
        if self.low_resolution and not 1 <= self.low_resolution <= 100:
            raise UsageError(f"Expected `low_resolution` to be 0 or between 1 and 100, but got {self.low_resolution}.")
        for axis in self.mirror:
            if axis not in MIRRORS:
                raise UsageError(f"Expected `mirror` to hold some of {', '.join(MIRRORS)}, but got {axis!r}.")
            if self.mirror.count(axis) > 1:
                raise UsageError(f"Expected `mirror` to hold each axis once, but got {axis!r} {self.mirror.count(axis)} times.")


NO_AUGMENTATION = Augmentation(0, 0, 0, 0, (), 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class SpatialChange:
    """How a patch lies in its scan.

    Attributes:
        matrix: (3, 3), from patch offsets in mm to scan offsets in mm; None if the patch is cut straight.
        warp: (3, a, b, c) displacement in mm at control points spread over the patch; None if there is none.
        mirrored: The axes of the patch that are flipped.
    """

    matrix: Array | None
    warp: Array | None
    mirrored: tuple[int, ...]


def draw_spatial(
    augmentation: Augmentation, rng: np.random.Generator, orientation: str, flat_axis: int | None
) -> SpatialChange:
    """Draw the spatial change of one patch.

    Args:
        augmentation: Strengths.
        rng: Source of randomness.
        orientation: Where the axes of the scan point, which says which axis runs from left to right.
        flat_axis: The axis across the slice if the patch is one slice; it is neither tilted nor displaced.
    """
    matrix, warp = None, None
    if rng.random() < augmentation.spatial_probability:
        angles = np.radians(rng.uniform(-augmentation.rotation, augmentation.rotation, size=3))
        if flat_axis is not None:
            angles[[axis for axis in range(3) if axis != flat_axis]] = 0
        limit = math.log1p(augmentation.scaling)
        matrix = _rotation(angles) * math.exp(rng.uniform(-limit, limit))
        if augmentation.elastic:
            warp = rng.normal(0, augmentation.elastic, size=(3, 4, 4, 4))
        if flat_axis is not None:
            matrix[flat_axis, flat_axis] = 1.0
            if warp is not None:
                warp[flat_axis] = 0
    axes = {letters: axis for axis, letter in enumerate(orientation) for letters in MIRRORS.values() if letter in letters}
    wanted = [axes[MIRRORS[name]] for name in augmentation.mirror]
    mirrored = tuple(axis for axis in wanted if axis != flat_axis and rng.random() < 0.5)
    return SpatialChange(matrix, warp, mirrored)


def _rotation(angles: Array) -> Array:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


@dataclass(frozen=True)
class IntensityChange:
    """How the intensities of a patch change; None leaves them. Each channel has its own numbers.

    Attributes:
        noise: Standard deviation, of all channels, and the seed of the noise.
        blur: Standard deviation in voxels; 0 leaves the channel.
        brightness: Factor on the intensity.
        contrast: Factor on the distance from the channel's mean.
        low_resolution: Factor by which the channel is coarsened; 1 leaves it.
        inverted_gamma: Exponent on the distance from the highest intensity, scaled to [0, 1].
        gamma: Exponent on the distance from the lowest.
    """

    noise: tuple[float, int] | None = None
    blur: tuple[float, ...] | None = None
    brightness: tuple[float, ...] | None = None
    contrast: tuple[float, ...] | None = None
    low_resolution: tuple[float, ...] | None = None
    inverted_gamma: tuple[float, ...] | None = None
    gamma: tuple[float, ...] | None = None


def draw_intensity(augmentation: Augmentation, rng: np.random.Generator, channels: int) -> IntensityChange:
    """Draw the intensity change of one patch.

    Args:
        augmentation: Strengths.
        rng: Source of randomness.
        channels: Channels of the patch.
    """
    a, same = augmentation, augmentation.intensity_probability

    def chosen(name: str) -> bool:
        return bool(rng.random() < (PROBABILITIES[name] if same is None else same))

    def each(low: float, high: float) -> tuple[float, ...]:
        return tuple(rng.uniform(low, high, size=channels).tolist())

    def some(values: tuple[float, ...], unchanged: float) -> tuple[float, ...]:
        if same is not None:
            return values
        return tuple(value if rng.random() < CHANNEL_PROBABILITY else unchanged for value in values)

    def factors(strength: float) -> tuple[float, ...]:
        limit = math.log1p(strength)
        return tuple(math.exp(value) for value in each(-limit, limit))

    noise = (rng.uniform(0, a.noise), int(rng.integers(2**31))) if chosen("noise") and a.noise else None
    blur = some(each(min(0.3, a.blur), a.blur), 0.0) if chosen("blur") and a.blur else None
    brightness = factors(a.brightness) if chosen("brightness") and a.brightness else None
    contrast = factors(a.contrast) if chosen("contrast") and a.contrast else None
    coarser = some(each(1, a.low_resolution), 1.0) if chosen("low_resolution") and a.low_resolution else None
    bent = chosen("gamma")
    inverted = chosen("inverted_gamma") if same is None else bent and bool(rng.random() < INVERTED)
    bent = bent and (same is None or not inverted)
    inverted_gamma = factors(a.gamma) if inverted and a.gamma else None
    gamma = factors(a.gamma) if bent and a.gamma else None
    return IntensityChange(noise, blur, brightness, contrast, coarser, inverted_gamma, gamma)
