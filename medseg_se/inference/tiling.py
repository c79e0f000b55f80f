"""Where tiles lie, how much each of their voxels counts, and what surrounds a scan that is smaller than one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_se.errors import UsageError

_UNIT = 8
"""Lengths of larger tiles are multiples of it, so that networks can halve them."""
_LONGEST = 2.0
"""Lengths of a tile from which a scan is no longer covered by a single one."""
_LEAST_OVERLAP = 0.25


def check_overlap(overlap: float) -> None:
    """Refuse an overlap of tiles that is not at least 0 and below 1."""
    if not 0 <= overlap < 1:
        raise UsageError(f"Expected `overlap` to be at least 0 and below 1, but got {overlap}.")


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles start along an axis so that they cover it evenly and overlap by at least `overlap`.

    Args:
        length: Voxels along the axis, at least `tile`.
        tile: Voxels of a tile.
        overlap: Share of a tile that its neighbour covers too, at least 0 and below 1.
    """
    check_overlap(overlap)
    room = length - tile
    longest_step = max(1, math.floor(tile * (1 - overlap) + 1e-9))  # 10 * (1 - 0.8) is a hair below 2
    steps = math.ceil(room / longest_step)
    return [round(room * place / steps) for place in range(steps + 1)] if steps else [0]


def gaussian_weights(tile: Sequence[int]) -> Tensor:
    """Return the weights (*tile) of a tile's voxels: a Gaussian of standard deviation ``tile / 8`` about its centre.

    No weight is below 0.001, as in MONAI's sliding window, so that predictions agree with validation during training.
    """
    weights = torch.ones(tuple(tile), dtype=torch.float64)
    for axis, length in enumerate(tile):
        places = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2) / (length / 8)
        weights *= torch.exp(-0.5 * places**2).reshape([-1 if a == axis else 1 for a in range(len(tile))])
    return weights.clamp(min=1e-3).float()


def at_least(image: Tensor, tile: Sequence[int]) -> tuple[Tensor, list[slice]]:
    """Continue a scan (C, I, J, K) to at least `tile` with its lowest intensity; returns it and where the scan lies."""
    missing = [max(0, size - have) for size, have in zip(tile, image.shape[1:], strict=True)]
    inside = [slice(m // 2, m // 2 + have) for m, have in zip(missing, image.shape[1:], strict=True)]
    if not any(missing):
        return image, inside
    margins = [margin for m in reversed(missing) for margin in (m // 2, m - m // 2)]
    return torch.stack([F.pad(channel, margins, value=float(channel.min())) for channel in image]), inside


def fitted_tile(shape: Sequence[int], tile: Sequence[int]) -> tuple[int, ...]:
    """Return the tile that covers a scan of `shape` voxels with the least computing: `tile`, or a larger one of few shapes.

    Along an axis along which a scan is longer than a tile, but less than twice as long, a longer tile spares the voxels that
    two tiles would share. Lengths grow in quarters of the tile's, rounded up to eight voxels, so that engines that are made for
    one shape need not be made for every scan. What is chosen depends on shapes alone: were it the time that a tile takes, a
    busy machine would give other numbers than a quiet one.

    Args:
        shape: Voxels of the scan.
        tile: Voxels of the tiles that the network was trained on; 1 along an axis across slices.
    """
    longer = [_longer(length, size) for length, size in zip(shape, tile, strict=True)]
    choices = itertools.product(*({size, more} for size, more in zip(tile, longer, strict=True)))

    def work(candidate: Sequence[int]) -> int:
        counts = [len(tile_starts(max(n, size), size, _LEAST_OVERLAP)) for n, size in zip(shape, candidate, strict=True)]
        return math.prod(counts) * math.prod(candidate)

    return min(choices, key=lambda candidate: (work(candidate), candidate))


def _longer(length: int, size: int) -> int:
    if size == 1 or not size < length < _LONGEST * size:
        return size
    return next(rounded for part in range(5, 9) if (rounded := -(-size * part // (4 * _UNIT)) * _UNIT) >= length or part == 8)
