"""Resampling of arrays onto a finer or coarser grid over the same field of view, where it can be done faster than by a library.

Both grids share their axes, so that voxel i of n lies at (i + ½)/n of the length of an axis.

- Cubic: the B-spline that passes through every voxel, mirrored at the outer ones. In three dimensions it is one product with a
  matrix along each axis, which gives what SimpleITK gives, of which every voxel is a sum over 64 others, in a fraction of the
  time.
- Labels: each voxel gets the label whose linearly interpolated mask is largest there. That is a vote among the eight voxels
  around it. Nearly everywhere they agree, and only where they do not are votes counted, so that time grows with the surfaces of
  the structures and not with their number, as it does where every mask is interpolated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]
ANISOTROPIC = 3.0  # ratio of the longest to the shortest edge of a voxel beyond which the long axis is treated apart
SLAB = 2**19  # voxels at a time; bounds the memory
TIE = 1e-9  # votes that differ by less are equal: their sums are rounded


def coarse_axis(spacing: Sequence[float]) -> int | None:
    """Return the axis along which voxels are by far the longest, if there is one such axis.

    Args:
        spacing: In mm.
    """
    longest = max(spacing)
    axes = [axis for axis, length in enumerate(spacing) if math.isclose(length, longest, rel_tol=1e-3)]
    return axes[0] if len(axes) == 1 and longest > ANISOTROPIC * min(spacing) else None


def cubic(array: Array, shape: Shape, nearest: int | None = None) -> npt.NDArray[np.float32]:
    """Resample scans (C, I, J, K) to (C, *shape).

    Args:
        array: The channels.
        shape: Voxels along (i, j, k).
        nearest: An axis along which values are taken from the nearest voxel, as nnU-Net does across thick slices.
    """
    old_shape = array.shape[1:]
    changed = [axis for axis in range(3) if shape[axis] != old_shape[axis]]
    for axis in sorted(changed, key=lambda axis: shape[axis] / old_shape[axis]):  # what shrinks the scan comes first
        old, new = old_shape[axis], shape[axis]
        if axis == nearest:
            array = array.take(np.clip(np.floor(_places(old, new) + 0.5), 0, old - 1).astype(np.int64), axis + 1)
        else:
            array = _along(array, spline_matrix(old, new), axis + 1)
    return np.ascontiguousarray(array, dtype=np.float32)


def spline_matrix(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return the matrix (new, old) that samples the spline through `old` values at the centres of `new` equal parts."""
    places = np.repeat(_places(old, new)[:, None], old, axis=1)
    columns = np.broadcast_to(np.arange(old), places.shape)
    matrix: Array = scipy.ndimage.map_coordinates(np.eye(old), [places, columns], order=3, mode="mirror")
    return matrix


def by_vote(labels: Array, shape: Shape) -> Array:
    """Resample a label map (I, J, K) of integers to `shape`; where votes are equal, the lowest label wins."""
    neighbours, shares = zip(*(_around(old, new) for old, new in zip(labels.shape, shape, strict=True)), strict=True)
    result = np.empty(shape, dtype=labels.dtype)
    step = max(1, SLAB // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        slab = slice(start, min(start + step, shape[0]))
        first = (neighbours[0][:, slab], *neighbours[1:])
        result[slab] = _elected(_corners(labels, first), (shares[0][:, slab], *shares[1:]))
    return result


def _places(old: int, new: int) -> Array:
    """Return where the centres of `new` voxels lie among `old` ones, in float64, counted from the centre of the first."""
    return (np.arange(new) + 0.5) * (old / new) - 0.5


def _along(array: Array, matrix: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float32]:
    """Multiply every line of `array` (C, I, J, K) along `axis` by `matrix`.

    In float64, slab by slab: how many threads a product runs on then does not show in float32.
    """
    shape = list(array.shape)
    shape[axis] = len(matrix)
    result = np.empty(shape, dtype=np.float32)
    across = 2 if axis == 1 else 1
    step = max(1, SLAB * array.shape[across] // max(1, array[0].size))
    for channel, target in zip(array, result, strict=True):
        for start in range(0, array.shape[across], step):
            part = [slice(None)] * 3
            part[across - 1] = slice(start, start + step)
            lines = np.moveaxis(channel[tuple(part)], axis - 1, -1)
            product = lines.reshape(-1, lines.shape[-1]).astype(np.float64) @ matrix.T
            target[tuple(part)] = np.moveaxis(product.reshape(*lines.shape[:-1], len(matrix)), -1, axis - 1)
    return result


def _around(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the two of `old` voxels next to each of `new` ones (2, new), and how much each counts (2, new)."""
    places = _places(old, new)
    below = np.floor(places)
    upper = places - below
    return np.clip([below, below + 1], 0, old - 1).astype(np.int64), np.array([1 - upper, upper])


def _corners(labels: Array, neighbours: tuple[Array, ...]) -> list[Array]:
    """Return the labels of the eight voxels around each voxel, in the order of `itertools.product`."""
    parts = [labels]
    for axis, either in enumerate(neighbours):
        parts = [part.take(places, axis) for part in parts for places in either]
    return parts


def _elected(corners: list[Array], shares: tuple[Array, ...]) -> Array:
    elected = corners[0].copy()
    disputed = np.zeros(elected.shape, dtype=bool)
    for corner in corners[1:]:
        disputed |= corner != elected
    places = np.nonzero(disputed)
    voters = np.stack([corner[disputed] for corner in corners])  # (8, n)
    votes = np.stack(
        [
            shares[0][i, places[0]] * shares[1][j, places[1]] * shares[2][k, places[2]]
            for i, j, k in itertools.product((0, 1), repeat=3)
        ]
    )
    counts = np.stack([np.where(voters == voter, votes, 0).sum(axis=0) for voter in voters])
    winning = counts > counts.max(axis=0) - TIE
    elected[places] = np.where(winning, voters, np.iinfo(voters.dtype).max).min(axis=0)
    return elected
