"""Linear resampling of slabs of logits to the scan's own grid, and the decision which class a voxel belongs to.

Nearly everywhere the eight voxels around a place agree which class has the largest logit. Then it has so at any place between
them, for a mean of numbers, of which one is the largest every time, is too. So classes are interpolated only where the eight do
not agree, and the time grows with the surfaces of the structures, not with the volume times the classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_DENSE = 0.4
"""Share of voxels in dispute from which it is faster to interpolate all."""
_CHUNK = 2**16
"""Voxels in dispute at a time; bounds the memory."""


class Slab:
    """Logits (A, B, maps) of one slab of the prepared scan."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps
        self._agreed: tuple[Plane, Tensor, Tensor] | None = None

    def agreed(self, plane: Plane) -> tuple[Tensor, Tensor]:
        """Return for every voxel (A', B') of a plane whether the four around it have the same largest map, and which."""
        if self._agreed is None or self._agreed[0] is not plane:
            self._agreed = (plane, *plane.unanimous(_largest(self.maps)))
        return self._agreed[1:]


@dataclass(frozen=True)
class Between:
    """A slab of the file's grid, which lies between two of the prepared scan, or on one.

    Attributes:
        low: The slab on one side.
        high: That on the other.
        share: What `high` counts; the rest is of `low`.
    """

    low: Slab
    high: Slab
    share: float

    @property
    def maps(self) -> Tensor:
        """The interpolated logits (A, B, maps)."""
        return self.high.maps if self.low is self.high else torch.lerp(self.low.maps, self.high.maps, self.share)


def along(slabs: Iterator[Tensor], length: int, wanted: int) -> Iterator[Between]:
    """Yield `wanted` slabs over the same field of view as the `length` slabs of logits (A, B, maps) that are given.

    The centre of slab i of n lies at (i + ½)/n; beyond the outermost centres the outermost slabs go on.
    """
    below = above = Slab(next(slabs))
    place = 0
    for number in range(wanted):
        low, high, share = _between(number, length, wanted)
        while place < high:
            below, above = above, Slab(next(slabs))
            place += 1
        yield Between(above if low == high else below, above, share)
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

    def unanimous(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether the four voxels around a place have the same class of `top` (A, B), and one of these; (A', B')."""
        if self.old == self.new:
            return torch.ones_like(top, dtype=torch.bool), top
        upper, lower = top[self.a0], top[self.a1]
        agreed, first = upper == lower, upper[:, self.b0]
        return agreed[:, self.b0] & agreed[:, self.b1] & (first == upper[:, self.b1]), first

    def largest(self, slab: Between) -> Tensor:
        """Return the map with the largest value at every voxel of a slab, int64 (A', B'); of equal ones the first."""
        agreed, result = slab.low.agreed(self)
        if slab.low is not slab.high:
            also, other = slab.high.agreed(self)
            agreed = agreed & also & (result == other)
        rows, columns = agreed.logical_not().nonzero(as_tuple=True)
        if len(rows) > _DENSE * agreed.numel():
            return _largest(self.every(slab.maps))
        result = result.clone()
        for first in range(0, len(rows), _CHUNK):
            row, column = rows[first : first + _CHUNK], columns[first : first + _CHUNK]
            result[row, column] = _largest(self._at(slab, row, column))
        return result

    def _at(self, slab: Between, row: Tensor, column: Tensor) -> Tensor:
        """Return all maps (n, maps) at n places, computed as `every` does."""
        width = self.old[1]
        a0, a1, a = self.a0[row] * width, self.a1[row] * width, self.a[row, None]
        b0, b1 = self.b0[column], self.b1[column]
        left = torch.lerp(_taken(slab, a0 + b0), _taken(slab, a1 + b0), a)
        right = torch.lerp(_taken(slab, a0 + b1), _taken(slab, a1 + b1), a)
        return torch.lerp(left, right, self.b[column, None])


def _taken(slab: Between, places: Tensor) -> Tensor:
    """Return all maps (n, maps) at n places of the prepared scan's grid."""
    low, high = (one.maps.flatten(0, 1) for one in (slab.low, slab.high))
    return high[places] if slab.low is slab.high else torch.lerp(low[places], high[places], slab.share)


def _largest(maps: Tensor) -> Tensor:
    """Return which of the last axis is largest, of equal ones the first."""
    if maps.device.type == "cpu":  # NumPy takes half the time of a thread of PyTorch
        return torch.from_numpy(maps.numpy().argmax(-1))
    return maps.argmax(-1)


def _axis(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    found = [_between(number, old, new) for number in range(new)]
    low, high, share = zip(*found, strict=True)
    return torch.tensor(low, device=device), torch.tensor(high, device=device), torch.tensor(share, device=device)
