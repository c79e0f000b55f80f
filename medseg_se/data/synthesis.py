"""What a synthetic scan is made with when only label maps exist: ranges first, then the parameters of one scan.

Each structure gets a random brightness, whatever its tissue, and the scan a random shape, bias field, gamma, resolution and
noise: a network that has seen enough of them segments real scans of contrasts it was never shown. After SynthSeg (Billot et
al., 2023, https://doi.org/10.1016/j.media.2023.102789), whose ranges are the defaults where it has them. Drawing is apart from
making the picture (`synthetic_scan`), and the shape is a `SpatialChange` by which the label map is cut as any other patch.

The label map is all that is known of the body: where most of it is background, as in maps of two small structures, synthetic
scans show them on black, and no network learns their surroundings from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from medseg_se.data.augmentation import SpatialChange
from medseg_se.data.phantom_shapes import rotation
from medseg_se.data.separable import control_points
from medseg_se.data.synthetic_head import TISSUES, Head, draw_head
from medseg_se.data.tissues import T1_HEAD, Tissues
from medseg_se.errors import UsageError

Array = npt.NDArray[Any]
SyntheticContrast = Literal["random", "t1"]
_MOST = {
    "isotropic": 1, "sharp": 1, "head": 1, "translation": 1, "noise": 1, "shearing": 0.5, "bias": 3, "gamma": 3, "blur": 10,
    "rotation": 180, "warp": 100, "t1_spread": 100,
}  # fmt: skip
_WITHIN = {
    "means": (0, 255), "deviations": (0, 255), "thickness": (0, 1), "scaling": (0.1, 10),
    "head_csf": (0, 100), "head_skull": (0, 100), "head_scalp": (0, 100),
}  # fmt: skip


@dataclass(frozen=True)
class Synthesis:
    """Ranges from which synthetic scans are drawn; the same for all of a run.

    Attributes:
        contrast: "random": brightness means nothing. "t1": structures known by name look as in a T1-weighted scan, others are
            drawn at random.
        means: Range of a structure's mean brightness, on a scale of 0 to 255.
        deviations: Range of the standard deviation inside a structure, on the same scale.
        t1_spread: Standard deviation between scans of the means of "t1".
        bias: Largest standard deviation of the logarithm of the bias field at its control points.
        bias_distance: Distance between these in mm, at least 1.
        gamma: Standard deviation of the logarithm of gamma.
        resolution: Largest voxel in mm where all axes are coarsened.
        slice_distance: Largest distance between slices in mm where one axis is coarsened.
        isotropic: Share of the coarsened scans of which all axes are; the others have one coarse axis, each equally often.
        sharp: Share of the scans at the resolution of the label map.
        thickness: Range of a slice's thickness as a share of the distance between slices; at least the label map's voxel.
        blur: Standard deviation in voxels of the blur along axes that are not coarsened.
        noise: Largest standard deviation of the noise in an acquired voxel, as a share of the brightest.
        rotation: Largest rotation about each axis in degrees.
        scaling: Range of the factor by which each axis is stretched.
        shearing: Largest shear.
        translation: Largest shift as a share of the patch; patches are cut anywhere as it is.
        warp: Largest standard deviation of a smooth displacement in mm, at control points.
        warp_distance: Distance between these in mm, at least 1.
        head: Share of the scans with synthetic tissue around the labels; the others are 0 there, as if skull-stripped.
        head_csf: Range of the thickness in mm of the fluid between brain and bone.
        head_skull: Range of the thickness in mm of the bone.
        head_scalp: Range of the thickness in mm of what covers it, where it is thinnest.
    """

    contrast: SyntheticContrast = "random"
    means: tuple[float, float] = (25.0, 225.0)
    deviations: tuple[float, float] = (5.0, 25.0)
    t1_spread: float = 5.0
    bias: float = 0.7
    bias_distance: float = 50.0
    gamma: float = 0.4
    resolution: float = 4.0
    slice_distance: float = 8.0
    isotropic: float = 0.1
    sharp: float = 0.05
    thickness: tuple[float, float] = (0.1, 1.0)
    blur: float = 0.5
    noise: float = 0.03
    rotation: float = 15.0
    scaling: tuple[float, float] = (0.8, 1.2)
    shearing: float = 0.012
    translation: float = 0.0
    warp: float = 4.0
    warp_distance: float = 25.0
    head: float = 0.5
    head_csf: tuple[float, float] = (1.0, 6.0)
    head_skull: tuple[float, float] = (4.0, 10.0)
    head_scalp: tuple[float, float] = (3.0, 12.0)

    def __post_init__(self) -> None:
        if self.contrast not in get_args(SyntheticContrast):
            valid = ", ".join(get_args(SyntheticContrast))
            raise UsageError(f"Expected `contrast` of synthetic scans to be one of {valid}, but got {self.contrast!r}.")
        for name, most in _MOST.items():
            _check(0 <= getattr(self, name) <= most, name, f"between 0 and {most}", getattr(self, name))
        for name in ("resolution", "slice_distance"):
            _check(0 < getattr(self, name) < math.inf, name, "a positive number of mm", getattr(self, name))
        for name in ("bias_distance", "warp_distance"):
            _check(1 <= getattr(self, name) < math.inf, name, "at least 1 mm", getattr(self, name))
        for name, (least, most) in _WITHIN.items():
            wanted = f"a lower and a higher number, between {least} and {most}"
            _check(_is_range(getattr(self, name), least, most), name, wanted, getattr(self, name))


def _check(right: bool, name: str, wanted: str, found: object) -> None:
    if not right:
        raise UsageError(f"Expected `{name}` of synthetic scans to be {wanted}, but got {found}.")


def _is_range(value: Sequence[float], least: float, most: float) -> bool:
    return len(value) == 2 and least <= value[0] <= value[1] <= most


@dataclass(frozen=True)
class Look:
    """How one channel of a synthetic scan comes about.

    Attributes:
        means: Mean brightness of the background, of each structure and of each of the `TISSUES` of the head, (N + 7,).
        deviations: The standard deviations, likewise.
        bias: Control points of the logarithm of the bias field.
        gamma: Exponent on the brightness scaled to [0, 1].
        slices: Voxels that are acquired along each axis.
        blur: Standard deviation in voxels of the blur before that, along each axis.
        noise: Standard deviation of the noise in an acquired voxel, as a share of the brightest.
    """

    means: Array
    deviations: Array
    bias: Array
    gamma: float
    slices: tuple[int, ...]
    blur: tuple[float, ...]
    noise: float


@dataclass(frozen=True)
class SyntheticChange:
    """All that makes one synthetic scan out of its label map.

    Attributes:
        looks: One for each channel.
        head: The tissue around the labels; None makes a skull-stripped scan.
        seed: Seed of the texture and the noise.
    """

    looks: tuple[Look, ...]
    head: Head | None
    seed: int


def draw_synthesis(
    synthesis: Synthesis,
    rng: np.random.Generator,
    tissues: Tissues,
    size: Sequence[int],
    spacing: Sequence[float],
    channels: int = 1,
) -> SyntheticChange:
    """Draw the looks of one patch.

    Args:
        synthesis: Ranges.
        rng: Source of randomness.
        tissues: What is known of the structures.
        size: Voxels (I, J, K) of the patch.
        spacing: Their size in mm.
        channels: Contrasts of the same body, drawn independently of each other.
    """
    s = synthesis
    whole = rng.random() < s.head
    head = draw_head(rng, size, spacing, s.head_csf, s.head_skull, s.head_scalp) if whole else None
    looks = tuple(_draw_look(s, rng, tissues, size, spacing) for _ in range(channels))
    return SyntheticChange(looks, head, int(rng.integers(2**31)))


def draw_deformation(
    synthesis: Synthesis,
    rng: np.random.Generator,
    size: Sequence[int],
    spacing: Sequence[float],
    flat_axis: int | None = None,
    mirrored: tuple[int, ...] = (),
) -> SpatialChange:
    """Draw how the label map is turned, stretched, sheared, shifted and warped while a patch is cut from it.

    Args:
        synthesis: Ranges.
        rng: Source of randomness.
        size: Voxels (I, J, K) of the patch.
        spacing: Their size in mm.
        flat_axis: The axis across the slice if the patch is one slice; it is neither tilted nor displaced.
        mirrored: Axes of the patch that are flipped, as `draw_spatial` draws them.
    """
    s = synthesis
    angles, scales = rng.uniform(-s.rotation, s.rotation, 3), rng.uniform(*s.scaling, 3)
    shears = np.eye(3) + rng.uniform(-s.shearing, s.shearing, (3, 3)) * (1 - np.eye(3))
    shift = rng.uniform(-s.translation, s.translation, 3) * np.array(size) * np.array(spacing)
    points = control_points(size, spacing, s.warp_distance)
    warp = rng.normal(0, rng.uniform(0, s.warp), (3, *points)) + shift[:, None, None, None]
    if flat_axis is not None:
        angles[[axis for axis in range(3) if axis != flat_axis]] = 0
        shears[flat_axis], shears[:, flat_axis] = np.eye(3)[flat_axis], np.eye(3)[flat_axis]
        scales[flat_axis], warp[flat_axis] = 1, 0
    return SpatialChange(rotation(angles) @ shears @ np.diag(scales), warp if warp.any() else None, mirrored)


def _draw_look(s: Synthesis, rng: np.random.Generator, tissues: Tissues, size: Sequence[int], spacing: Sequence[float]) -> Look:
    means, deviations = _draw_brightness(s, rng, tissues)
    slices, blur = _draw_acquisition(s, rng, np.array(size), np.array(spacing))
    return Look(
        means=means,
        deviations=deviations,
        bias=rng.normal(0, rng.uniform(0, s.bias), control_points(size, spacing, s.bias_distance)),
        gamma=math.exp(rng.normal(0, s.gamma)),
        slices=slices,
        blur=blur,
        noise=rng.uniform(0, s.noise),
    )


def _draw_brightness(s: Synthesis, rng: np.random.Generator, tissues: Tissues) -> tuple[Array, Array]:
    """Return mean and deviation of the background, the structures and the tissues of the head."""
    classes = np.concatenate([tissues.classes, tissues.classes.max() + 1 + np.arange(len(TISSUES))])
    number = classes.max() + 1
    means, deviations = rng.uniform(*s.means, number)[classes], rng.uniform(*s.deviations, number)[classes]
    means[-1], deviations[-1] = rng.uniform(0, 15), rng.uniform(0, 5)  # air is dark in any scan
    if s.contrast == "t1":
        table = np.concatenate([tissues.t1, [T1_HEAD[tissue] for tissue in TISSUES]])
        shifted = np.maximum(table[:, 0] + rng.normal(0, s.t1_spread, number)[classes], 0)
        known = ~np.isnan(table[:, 0])
        means, deviations = np.where(known, shifted, means), np.where(known, table[:, 1], deviations)
    return means, deviations


def _draw_acquisition(
    s: Synthesis, rng: np.random.Generator, size: Array, spacing: Array
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return along each axis how many voxels are acquired and the blur's standard deviation in voxels of the label map.

    Before slices a distance r apart and t <= r thick are taken, the blur is 0.75 t / spacing, after Billot et al. (2020,
    https://doi.org/10.1007/978-3-030-59728-3_18).
    """
    wide = np.flatnonzero(size > 1)
    distance = spacing.astype(np.float64)
    kind, share = rng.random(), rng.random()
    axis = rng.integers(len(wide)) if len(wide) else 0
    if kind < s.isotropic * (1 - s.sharp):
        distance[wide] += share * np.maximum(s.resolution - distance[wide], 0)
    elif kind < 1 - s.sharp and len(wide):
        distance[wide[axis]] += share * max(s.slice_distance - distance[wide[axis]], 0)
    thickness = np.maximum(rng.uniform(*s.thickness) * distance, spacing)
    slices = np.maximum(np.rint(size * spacing / distance), 1).astype(int)
    blur = np.where(slices < size, 0.75 * thickness / spacing, s.blur)
    return tuple(slices.tolist()), tuple(blur.tolist())
