"""What a block can ask about a map: averages over a grid of regions; mean and variance, or the maximum, of every channel."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from medseg_se.attention.tiles import Tile, compute_type
from medseg_se.dims import convolved
from medseg_se.execution import sums_are_convolutions

KEEP = 0
"""In a grid: every position along this axis is kept."""


class Averages:
    """Averages over one or more grids of regions.

    Args:
        grids: Each has a number per spatial axis: 1 for the average over the whole axis, g for g regions as adaptive pooling
            cuts them (region i reaches from ⌊i·size/g⌋ to ⌈(i + 1)·size/g⌉), `KEEP` for no average at all.
    """

    def __init__(self, *grids: Sequence[int]) -> None:
        self.grids = [tuple(grid) for grid in grids]

    def whole(self, a: Tensor) -> tuple[Tensor, ...]:
        """Compute the averages (N, C, *grid) of a whole map."""
        tile = (slice(None),) * a.ndim
        return tuple(_averages(a, tile, a.shape, self.grids))

    def collect(self, x: Tensor, pieces: Iterator[tuple[Tile, Tensor]]) -> tuple[Tensor, ...]:
        """Add up the shares of the tiles."""
        results = [
            x.new_zeros([*x.shape[:2], *(g or size for g, size in zip(grid, x.shape[2:], strict=True))], dtype=compute_type(x))
            for grid in self.grids
        ]
        for tile, a in pieces:
            for grid, result, share in zip(self.grids, results, _averages(a, tile, x.shape, self.grids), strict=True):
                result[_region(tile, grid)] += share
        return tuple(results)

    def gradient(self, a: Tensor, tile: Tile, shape: torch.Size, results: Any, grads: tuple[Tensor, ...]) -> Tensor:
        """Spread the gradient of every average over the positions that it is made of."""
        shares = [grad[_region(tile, grid)] for grid, grad in zip(self.grids, grads, strict=True)]
        return _spread(shares, tile, shape, self.grids)


def profiles(spatial_dims: int) -> Averages:
    """Return the averages over all axes but one, for each axis: (N, C, D, 1, 1), (N, C, 1, H, 1) and (N, C, 1, 1, W) in 3D."""
    return Averages(*([KEEP if axis == kept else 1 for axis in range(spatial_dims)] for kept in range(spatial_dims)))


class Moments:
    """Mean and variance of every channel of every sample, as (N, C, 1, 1[, 1]).

    Args:
        unbiased: Divide the squares by n − 1 rather than n, or by 1 where n is 1.

    Tiles are joined after Chan et al., 1983, https://doi.org/10.1080/00031305.1983.10483115, so that a large mean costs the
    variance no digits.
    """

    def __init__(self, unbiased: bool = False) -> None:
        self.unbiased = unbiased

    def _freedom(self, shape: torch.Size) -> int:
        numel = math.prod(shape[2:])
        return max(1, numel - 1) if self.unbiased else numel

    def whole(self, a: Tensor) -> tuple[Tensor, ...]:
        """Compute both of a whole map."""
        axes = tuple(range(2, a.ndim))
        mean = a.mean(axes, keepdim=True)
        return mean, (a - mean).square().sum(axes, keepdim=True) / self._freedom(a.shape)

    def collect(self, x: Tensor, pieces: Iterator[tuple[Tile, Tensor]]) -> tuple[Tensor, ...]:
        """Join the moments of the tiles."""
        axes = tuple(range(2, x.ndim))
        samples: dict[int, list[tuple[Tensor, Tensor, int]]] = {}
        for tile, a in pieces:
            mean = a.mean(axes, keepdim=True)
            squares = (a - mean).square_().sum(axes, keepdim=True)
            samples.setdefault(tile[0].start, []).append((mean, squares, math.prod(a.shape[2:])))
        if not samples:
            return (x.new_zeros((0, x.shape[1], *[1] * len(axes)), dtype=compute_type(x)),) * 2
        means, spreads = [], []
        for parts in samples.values():
            tile_means, squares = (torch.stack(tensors) for tensors in zip(*(part[:2] for part in parts), strict=True))
            voxels = x.new_tensor([part[2] for part in parts], dtype=tile_means.dtype).reshape(-1, *[1] * x.ndim)
            means.append((tile_means * voxels).sum(0) / voxels.sum())
            spreads.append((squares + voxels * (tile_means - means[-1]).square()).sum(0))
        return torch.cat(means), torch.cat(spreads) / self._freedom(x.shape)

    def gradient(self, a: Tensor, tile: Tile, shape: torch.Size, results: tuple[Tensor, ...], grads: Any) -> Tensor:
        """∂mean/∂a = 1/n and ∂variance/∂a = 2(a − mean)/n, or /(n − 1)."""
        samples = tile[0]
        slope = grads[1][samples] * (2 / self._freedom(shape))
        total: Tensor = a * slope + (grads[0][samples] / math.prod(shape[2:]) - results[0][samples] * slope)
        return total


class Maxima:
    """The largest value of every channel of every sample, and how many voxels have it, as (N, C, 1, 1[, 1]).

    Voxels that share the largest value share its gradient evenly, as with `torch.amax`.
    """

    def whole(self, a: Tensor) -> tuple[Tensor, ...]:
        """Compute both of a whole map; the number is written with signs, for autograd asks a gradient of it, which is 0."""
        axes = tuple(range(2, a.ndim))
        largest = a.amax(axes, keepdim=True)
        return largest, (1 - (a - largest).sign().abs()).sum(axes, keepdim=True)

    def collect(self, x: Tensor, pieces: Iterator[tuple[Tile, Tensor]]) -> tuple[Tensor, ...]:
        """Keep the largest of the tiles."""
        axes = tuple(range(2, x.ndim))
        largest = x.new_full((*x.shape[:2], *[1] * len(axes)), -math.inf, dtype=compute_type(x))
        count = torch.zeros_like(largest)
        for tile, a in pieces:
            before, here = largest[tile[0]], a.amax(axes, keepdim=True)
            after = torch.maximum(before, here)
            number = (a == here).sum(axes, keepdim=True)
            count[tile[0]] = count[tile[0]] * (before == after) + number * (here == after)
            largest[tile[0]] = after
        return largest, count

    def gradient(self, a: Tensor, tile: Tile, shape: torch.Size, results: tuple[Tensor, ...], grads: Any) -> Tensor:
        """Share the gradient of the largest value among the voxels that have it."""
        largest, count = (result[tile[0]] for result in results)
        share: Tensor = (a == largest) * (grads[0][tile[0]] / count)
        return share


def _region(tile: Tile, grid: Sequence[int]) -> Tile:
    """Return where a tile's share lies in the averages over `grid`."""
    return (*tile[:2], *(cut if g == KEEP else slice(None) for g, cut in zip(grid, tile[2:], strict=True)))


def _averages(a: Tensor, tile: Tile, shape: torch.Size, grids: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Return the share of a tile of a map of `shape` in the averages over every grid."""
    rows = _total(a, [a.ndim - 1]) if sum(grid[-1] == 1 for grid in grids) > 1 else a  # what several ask for is added up once
    for grid in grids:
        yield _average(rows if grid[-1] == 1 else a, tile, shape, grid)


def _average(a: Tensor, tile: Tile, shape: torch.Size, grid: Sequence[int]) -> Tensor:
    whole = [axis for axis, g in enumerate(grid, start=2) if g == 1]
    if whole:
        a = _total(a, whole) / math.prod([shape[axis] for axis in whole])
    for axis in (3, 4, 2) if a.ndim == 5 else (2, 3):  # rows are added up fastest, and few of them are in a tile of a volume
        if grid[axis - 2] <= 1:
            continue
        a = torch.cat([_region_share(a, axis, tile[axis], region) for region in _regions(shape[axis], grid[axis - 2])], axis)
    return a


def _total(a: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the sums over whole spatial axes, which keep the length 1."""
    if not sums_are_convolutions() or len(axes) == a.ndim - 2:
        return a.sum(list(axes), keepdim=True)
    for axis in axes:
        kernel = [a.shape[other] if other == axis else 1 for other in range(2, a.ndim)]
        if a.shape[axis] > 1:
            a = convolved(a, a.new_ones((a.shape[1], 1, *kernel)), groups=a.shape[1])
    return a


def _region_share(a: Tensor, axis: int, cut: slice, region: tuple[int, int]) -> Tensor:
    """Return the share of positions `cut` of an axis in the average over a region that reaches from one position to another."""
    first = cut.start or 0
    start, end = max(region[0] - first, 0), min(region[1] - first, a.shape[axis])
    return a.narrow(axis, min(start, a.shape[axis]), max(0, end - start)).sum(axis, keepdim=True) / (region[1] - region[0])


def _spread(grads: Sequence[Tensor], tile: Tile, shape: torch.Size, grids: Sequence[Sequence[int]]) -> Tensor:
    """Return the gradient of `_averages` with respect to its tile, of length 1 along axes where it does not vary."""
    size = shape[-1]
    finest = math.lcm(*[grid[-1] for grid in grids if grid[-1] != KEEP])
    even, others = [], []  # along the last axis, on regions that divide it into equal parts, or anything else
    for grad, grid in zip(grads, grids, strict=True):
        grad = grad / math.prod([length for length, g in zip(shape[2:], grid, strict=True) if g == 1])
        for axis in range(2, len(shape) - 1):
            if grid[axis - 2] > 1:
                grad = _along(axis, _weights(shape[axis], grid[axis - 2], grad)[tile[axis]], grad)
        if grid[-1] == KEEP:
            others.append(grad)
        elif size % finest:
            others.append(grad if grid[-1] == 1 else _along(len(shape) - 1, _weights(size, grid[-1], grad), grad))
        else:
            scale = grid[-1] / size if grid[-1] > 1 else 1
            even.append(_repeated(grad * scale, finest // grid[-1]))
    total = functools.reduce(torch.add, even) if even else None
    if total is not None and finest > 1:
        total = _repeated(total, size // finest)
    return functools.reduce(torch.add, others if total is None else [total, *others])


def _repeated(a: Tensor, times: int) -> Tensor:
    """Repeat every entry along the last axis."""
    return a if times == 1 else a.unsqueeze(-1).expand(*a.shape, times).flatten(-2)


def _weights(size: int, g: int, like: Tensor) -> Tensor:
    """Return the share (size, g) of every position in the average over every region."""
    weights = like.new_zeros((size, g))
    for number, (start, end) in enumerate(_regions(size, g)):
        weights[start:end, number] = 1 / (end - start)
    return weights


def _along(axis: int, matrix: Tensor, a: Tensor) -> Tensor:
    """Multiply `matrix` (new, old) to the vectors along `axis`."""
    if axis == a.ndim - 1:
        return torch.matmul(a, matrix.T)
    return torch.matmul(matrix, a.flatten(axis + 1)).reshape(*a.shape[:axis], len(matrix), *a.shape[axis + 1 :])


def _regions(size: int, g: int) -> list[tuple[int, int]]:
    """Return first position and end of the regions of adaptive average pooling."""
    return [(number * size // g, -(-(number + 1) * size // g)) for number in range(g)]
