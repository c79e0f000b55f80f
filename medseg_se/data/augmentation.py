"""Random changes to training patches: parameters are drawn from a seeded generator first, applied afterwards.

Spatial changes are drawn in millimetres, so that an anisotropic grid is rotated and scaled as the body would be, and are
applied while the patch is cut from the scan (see `sampling`): no corner is ever filled although the scan continues there.
Intensity changes follow nnU-Net's list (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z, supplement 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_se.errors import UsageError

Array = npt.NDArray[Any]
MIRRORS = {"left-right": "LR", "anterior-posterior": "AP", "inferior-superior": "IS"}


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
        intensity_probability: Share of the patches to which each intensity change is applied.
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
    intensity_probability: float = 0.15

    def __post_init__(self) -> None:
        for name in ("spatial_probability", "intensity_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"Expected `{name}` between 0 and 1, but got {getattr(self, name)}.")
        for name in ("rotation", "scaling", "elastic", "noise", "blur", "brightness", "contrast", "gamma"):
            if getattr(self, name) < 0:
                raise UsageError(f"Expected `{name}` to be at least 0, but got {getattr(self, name)}.")
        if self.low_resolution and self.low_resolution < 1:
            raise UsageError(f"Expected `low_resolution` to be 0 or at least 1, but got {self.low_resolution}.")
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
        warp: (3, 4, 4, 4) displacement in mm at control points spread over the patch; None if there is none.
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
    """How the intensities of a patch change; None leaves them.

    Attributes:
        noise: Standard deviation and the seed of the noise.
        blur: Standard deviation in voxels.
        brightness: Factor on the intensity.
        contrast: Factor on the distance from the patch's mean.
        gamma: Exponent on the intensity scaled to [0, 1], and whether dark and bright are exchanged first.
        low_resolution: Factor by which the patch is coarsened.
    """

    noise: tuple[float, int] | None = None
    blur: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    gamma: tuple[float, bool] | None = None
    low_resolution: float | None = None


def draw_intensity(augmentation: Augmentation, rng: np.random.Generator) -> IntensityChange:
    """Draw the intensity change of one patch."""

    def chosen() -> bool:
        return bool(rng.random() < augmentation.intensity_probability)

    def factor(strength: float) -> float:
        limit = math.log1p(strength)
        return math.exp(rng.uniform(-limit, limit))

    a = augmentation
    return IntensityChange(
        noise=(rng.uniform(0, a.noise), int(rng.integers(2**31))) if chosen() and a.noise else None,
        blur=rng.uniform(min(0.3, a.blur), a.blur) if chosen() and a.blur else None,
        brightness=factor(a.brightness) if chosen() and a.brightness else None,
        contrast=factor(a.contrast) if chosen() and a.contrast else None,
        gamma=(factor(a.gamma), bool(rng.random() < 0.25)) if chosen() and a.gamma else None,
        low_resolution=rng.uniform(1, a.low_resolution) if chosen() and a.low_resolution else None,
    )


def apply_intensity(patch: Tensor, change: IntensityChange) -> Tensor:
    """Apply `change` to a patch (C, I, J, K); an axis of one voxel is left alone."""
    if change.blur is not None:
        patch = _blurred(patch, change.blur)
    if change.noise is not None:
        deviation, seed = change.noise
        patch = patch + deviation * torch.randn(patch.shape, generator=torch.Generator().manual_seed(seed))
    if change.brightness is not None:
        patch = patch * change.brightness
    if change.contrast is not None:
        mean = patch.mean(dim=(1, 2, 3), keepdim=True)
        patch = (patch - mean) * change.contrast + mean
    if change.low_resolution is not None:
        coarse = [max(1, round(size / change.low_resolution)) for size in patch.shape[1:]]
        small = F.interpolate(patch[None], size=coarse, mode="nearest-exact")
        patch = F.interpolate(small, size=patch.shape[1:], mode="trilinear")[0]
    if change.gamma is not None:
        patch = _gamma(patch, *change.gamma)
    return patch


def _gamma(patch: Tensor, exponent: float, inverted: bool) -> Tensor:
    """Bend the intensities; mean and standard deviation of each channel stay."""
    low = patch.amin(dim=(1, 2, 3), keepdim=True)
    extent = (patch.amax(dim=(1, 2, 3), keepdim=True) - low).clamp(min=1e-7)
    unit = (patch - low) / extent
    unit = 1 - (1 - unit) ** exponent if inverted else unit**exponent
    mean, deviation = patch.mean(dim=(1, 2, 3), keepdim=True), patch.std(dim=(1, 2, 3), keepdim=True)
    bent_mean, bent_deviation = unit.mean(dim=(1, 2, 3), keepdim=True), unit.std(dim=(1, 2, 3), keepdim=True)
    return (unit - bent_mean) / bent_deviation.clamp(min=1e-7) * deviation + mean


def _blurred(patch: Tensor, deviation: float) -> Tensor:
    radius = max(1, math.ceil(3 * deviation))
    places = torch.arange(-radius, radius + 1, dtype=patch.dtype)
    kernel = torch.exp(-0.5 * (places / deviation) ** 2)
    kernel = kernel / kernel.sum()
    channels = patch.shape[0]
    for axis in range(3):
        if patch.shape[axis + 1] == 1:
            continue
        size, padding = [1, 1, 1], [0, 0, 0, 0, 0, 0]
        size[axis] = 2 * radius + 1
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        weight = kernel.reshape(1, 1, *size).expand(channels, 1, *size)
        patch = F.conv3d(F.pad(patch[None], padding, mode="replicate"), weight, groups=channels)[0]
    return patch
