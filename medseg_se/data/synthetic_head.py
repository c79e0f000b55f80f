"""Tissue around a brain of which only the label map is known, so that a network also learns heads that are not skull-stripped.

The labelled voxels are closed over sulci and fissures; outside of that surface lie shells of random thickness: cerebrospinal
fluid, bone with marrow inside, then fat and muscle, thick enough in some directions to resemble face and neck, then air.
Distances are measured on a grid of at most `COARSE` cells an axis and interpolated: shells need no finer one.

Only the labels inside the patch are seen: where the brain goes on beyond the patch's border, the shells near that border are
drawn as if it ended there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_se.data.separable import along_axes, control_points, refining, spreading

Array = npt.NDArray[Any]
TISSUES = ("csf", "bone", "marrow", "fat", "muscle", "air")
_CSF, _BONE, _MARROW, _FAT, _MUSCLE, _AIR = range(len(TISSUES))
COARSE = 40
CLOSING = 8.0  # mm: half the width of the gaps in the brain that belong to its inside
_FAR = 1e6  # mm: farther than any patch is wide


@dataclass(frozen=True)
class Head:
    """The tissue around one brain.

    Attributes:
        spacing: Voxel size in mm.
        csf: Thickness of the fluid in mm.
        skull: Thickness of the bone in mm, whose middle half is marrow.
        scalp: Thickness of fat and muscle in mm.
        wobble: Control points of the logarithm of a factor on all distances.
        flesh: Control points of how much thicker than `scalp` fat and muscle are, in mm; below 0 counts as 0.
        mixture: Control points of what they are made of: fat above 0, muscle below, and where they are thick, air above 2.
    """

    spacing: tuple[float, ...]
    csf: float
    skull: float
    scalp: float
    wobble: Array
    flesh: Array
    mixture: Array


def draw_head(
    rng: np.random.Generator,
    size: Sequence[int],
    spacing: Sequence[float],
    csf: tuple[float, float],
    skull: tuple[float, float],
    scalp: tuple[float, float],
) -> Head:
    """Draw the tissue around a brain for a patch of `size` voxels; `spacing` and the ranges of thickness are in mm."""
    return Head(
        spacing=tuple(spacing),
        csf=rng.uniform(*csf),
        skull=rng.uniform(*skull),
        scalp=rng.uniform(*scalp),
        wobble=rng.normal(0, 0.2, control_points(size, spacing, 40.0)),
        flesh=rng.normal(-10, 25, control_points(size, spacing, 60.0)),
        mixture=rng.normal(0, 1, control_points(size, spacing, 12.0)),
    )


def paint_head(inside: Tensor, head: Head) -> Tensor:
    """Return int64 (I, J, K): the index in `TISSUES` of what lies at each voxel if it is not brain.

    Args:
        inside: bool (I, J, K), the voxels of the brain.
        head: What was drawn.
    """
    steps = [math.ceil(length / COARSE) for length in inside.shape]
    cells = F.avg_pool3d(inside[None].float(), steps, ceil_mode=True)[0]  # a cut cell counts the voxels that it has
    lengths = [step * mm for step, mm in zip(steps, head.spacing, strict=True)]

    def coarse(points: Array) -> Tensor:
        values = torch.from_numpy(points.astype(np.float32)).to(inside.device)
        return along_axes(values, [spreading(n, p, inside.device) for n, p in zip(cells.shape, values.shape, strict=True)])

    distance = _outside(cells > 0.5, lengths) * coarse(head.wobble).exp()
    skull = head.csf + head.skull
    depth = skull + head.scalp + coarse(head.flesh).clamp(min=0) - distance  # mm below the skin
    finer = [refining(length, n, step, inside.device) for length, n, step in zip(inside.shape, cells.shape, steps, strict=True)]
    distance, depth, mixture = (along_axes(field, finer) for field in (distance, depth, coarse(head.mixture)))
    marrow = (distance - (head.csf + 0.5 * head.skull)).abs() < 0.25 * head.skull
    flesh = torch.where(mixture > 0, _FAT, _MUSCLE).masked_fill_((mixture > 2) & (depth > 10), _AIR)
    bone = torch.where(marrow, _MARROW, _BONE)
    tissue = torch.where(distance < skull, bone, flesh)
    return tissue.masked_fill_(distance < head.csf, _CSF).masked_fill_(depth < 0, _AIR)


def _outside(brain: Tensor, lengths: Sequence[float]) -> Tensor:
    """Return the distance in mm to the closed surface of `brain` (I, J, K): positive outside, 0 or less inside.

    Surfaces lie half a cell before the centres of the cells behind them.
    """
    half = 0.5 * sum(lengths) / len(lengths)
    from_brain = _distance(brain, lengths) - half
    near = from_brain < CLOSING
    from_the_open = _distance(~near, lengths) - half
    return torch.where(near, CLOSING - from_the_open, from_brain)


def _distance(target: Tensor, lengths: Sequence[float]) -> Tensor:
    """Return each cell's Euclidean distance in mm to the nearest cell of `target`, exact: axis by axis, all against all."""
    squared = torch.where(target, 0.0, _FAR**2)
    for axis, length in enumerate(lengths):
        places = torch.arange(target.shape[axis], device=target.device) * length
        steps = (places[:, None] - places) ** 2
        squared = (squared.movedim(axis, -1)[..., None, :] + steps).amin(-1).movedim(-1, axis)
    return squared.sqrt()
