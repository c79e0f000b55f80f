"""Linear changes of a picture along its axes, each a small matrix: what blurs, coarsens or spreads control points.

A chain of steps along one axis (blur, keep every fourth slice) is one matrix, so that a step costs one product whatever its
width, borders need no padding, and CPU and GPU run the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def along_axes(picture: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply a picture (I, J, K) along each axis.

    Args:
        picture: float32 (I, J, K).
        matrices: (I', I), (J', J) and (K', K); None leaves the axis.
    """
    first, second, third = matrices
    if first is not None:
        picture = (first @ picture.flatten(1)).view(-1, *picture.shape[1:])
    if second is not None:
        picture = second @ picture
    if third is not None:
        picture = picture @ third.T
    return picture


def spreading(length: int, points: int, device: torch.device) -> Tensor:
    """Return (length, points): linear interpolation between control points, the outer two on the first and last voxel."""
    places = torch.linspace(0, points - 1, length, device=device)
    return _hats(places, points)


def refining(length: int, cells: int, width: float, device: torch.device) -> Tensor:
    """Return (length, cells): linear interpolation between the centres of cells `width` voxels wide, constant beyond."""
    places = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / width - 0.5
    return _hats(places.clamp(0, cells - 1), cells)


def coarsening(length: int, slices: int, deviation: float, device: torch.device) -> Tensor:
    """Return (slices, length): Gaussian averages of `deviation` voxels about equally spaced centres.

    Each row sums to 1, also at the borders, where the weights beyond are left out.
    """
    centres = (torch.arange(slices, device=device, dtype=torch.float32) + 0.5) * (length / slices) - 0.5
    distance = torch.arange(length, device=device, dtype=torch.float32) - centres[:, None]
    return torch.softmax(-0.5 * (distance / deviation) ** 2, dim=1)


def control_points(size: Sequence[int], spacing: Sequence[float], distance: float) -> tuple[int, ...]:
    """Return how many points about `distance` mm apart span each axis: at least its two ends, one if it is one voxel."""
    return tuple(
        1 if length == 1 else max(2, math.ceil(length * mm / distance) + 1) for length, mm in zip(size, spacing, strict=True)
    )


def _hats(places: Tensor, points: int) -> Tensor:
    return (1 - (places[:, None] - torch.arange(points, device=places.device)).abs()).clamp(min=0)
