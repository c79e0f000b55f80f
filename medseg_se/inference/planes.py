"""Linear resampling of slabs of logits to the scan's own grid, and the decision which class a voxel belongs to.

Nearly everywhere the four voxels around a place agree which class has the largest logit. Then it has so at any place between
them, for a mean of numbers, of which one is the largest every time, is too. So classes are interpolated only where the four do
not agree, and the time grows with the surfaces of the structures, not with the volume times the classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_DENSE = 0.4
"""Share of voxels in dispute from which it is faster to interpolate all."""
_CHUNK = 2**16
"""Voxels in dispute at a time; bounds the memory."""


def along(slabs: Iterator[Tensor], length: int, wanted: int) -> Iterator[Tensor]:
    """Yield `wanted` slabs over the same field of view as the `length` slabs that are given.

    The centre of slab i of n lies at (i + ½)/n; beyond the outermost centres the outermost slabs go on.
    """
    if length == wanted:
        yield from slabs
        return
    below = above = next(slabs)
    place = 0
    for number in range(wanted):
        low, high, share = _between(number, length, wanted)
        while place < high:
            below, above = above, next(slabs)
            place += 1
        yield above if low == high else torch.lerp(below, above, share)
    for _ in slabs:  # a coarser grid may need none of the last ones, but who made them may have to see the end
        pass


def _between(number: int, old: int, new: int) -> tuple[int, int, float]:
    """Return the two of `old` places around the place `number` of `new`, and the share of the second."""
    source = min(max((number + 0.5) * old / new - 0.5, 0.0), old - 1.0)
    low = int(source)
    return low, min(low + 1, old - 1), source - low


class Plane:
    """From one slab's grid to another over the same field of view.

    Args:
        old: Voxels (A, B) of the slabs that are given.
        new: Voxels (A', B') that are wanted.
        device: Where the slabs lie.
    """

    def __init__(self, old: tuple[int, int], new: tuple[int, int], device: torch.device) -> None:
        self.old, self.new = old, new
        (self.a0, self.a1, self.a), (self.b0, self.b1, self.b) = (
            _axis(before, after, device) for before, after in zip(old, new, strict=True)
        )

    def every(self, maps: Tensor) -> Tensor:
        """Return all maps (A', B', maps) of a slab (A, B, maps)."""
        if self.old == self.new:
            return maps
        rows = torch.lerp(maps[self.a0], maps[self.a1], self.a[:, None, None])
        return torch.lerp(rows[:, self.b0], rows[:, self.b1], self.b[None, :, None])

    def largest(self, maps: Tensor) -> Tensor:
        """Return the map with the largest value at every voxel, int64 (A', B'); of equal ones the first."""
        top = maps.argmax(-1)
        if self.old == self.new:
            return top
        upper, lower = top[self.a0], top[self.a1]
        agreed = upper == lower
        result = upper[:, self.b0]
        disputed = ~(agreed[:, self.b0] & agreed[:, self.b1] & (result == upper[:, self.b1]))
        rows, columns = disputed.nonzero(as_tuple=True)
        if len(rows) > _DENSE * disputed.numel():
            return self.every(maps).argmax(-1)
        flat = maps.reshape(-1, maps.shape[-1])
        for first in range(0, len(rows), _CHUNK):
            row, column = rows[first : first + _CHUNK], columns[first : first + _CHUNK]
            result[row, column] = self._at(flat, row, column).argmax(-1)
        return result

    def _at(self, flat: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return all maps (n, maps) at n places, computed as `every` does."""
        width = self.old[1]
        a0, a1, a = self.a0[row] * width, self.a1[row] * width, self.a[row, None]
        b0, b1 = self.b0[column], self.b1[column]
        left = torch.lerp(flat[a0 + b0], flat[a1 + b0], a)
        right = torch.lerp(flat[a0 + b1], flat[a1 + b1], a)
        return torch.lerp(left, right, self.b[column, None])


def _axis(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    found = [_between(number, old, new) for number in range(new)]
    low, high, share = zip(*found, strict=True)
    return torch.tensor(low, device=device), torch.tensor(high, device=device), torch.tensor(share, device=device)
