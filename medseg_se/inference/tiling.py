"""Sliding-window inference: overlapping tiles, each weighted by a Gaussian, summed in float32."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_se.errors import UsageError

Network = Callable[[Tensor], Tensor]


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


@torch.inference_mode()
def tiled_logits(
    network: Network,
    image: Tensor,
    tile: Sequence[int],
    overlap: float = 0.5,
    batch: int = 1,
    flat_axis: int | None = None,
) -> Tensor:
    """Return the logits (classes, I, J, K), float32, of a prepared scan (C, I, J, K).

    Args:
        network: Maps (N, C, *tile) to logits; without the flat axis if there is one.
        image: The scan, on the network's device. Where it is smaller than a tile, it is continued with its lowest intensity.
        tile: Voxels (I, J, K) of a tile; 1 along the flat axis.
        overlap: Share of a tile that its neighbour covers too.
        batch: Tiles that go through the network together.
        flat_axis: The axis across the slices for a 2D network.
    """
    image, inside = _at_least(image, tile)
    starts = [tile_starts(length, size, overlap) for length, size in zip(image.shape[1:], tile, strict=True)]
    boxes = [tuple(slice(s, s + n) for s, n in zip(start, tile, strict=True)) for start in itertools.product(*starts)]
    weights = gaussian_weights(tile).to(image.device)
    total = torch.empty(0)
    norm = torch.zeros(image.shape[1:], device=image.device)
    for first in range(0, len(boxes), batch):
        chosen = boxes[first : first + batch]
        tiles = torch.stack([image[(slice(None), *box)] for box in chosen])
        if flat_axis is None:
            logits = network(tiles)
        else:
            logits = network(tiles.squeeze(flat_axis + 2)).unsqueeze(flat_axis + 2)
        if first == 0:
            total = torch.zeros((logits.shape[1], *image.shape[1:]), device=image.device)
        for box, part in zip(chosen, logits, strict=True):
            total[(slice(None), *box)] += part.float() * weights
            norm[box] += weights
    return total.div_(norm)[(slice(None), *inside)]


def _at_least(image: Tensor, tile: Sequence[int]) -> tuple[Tensor, list[slice]]:
    """Continue a scan (C, I, J, K) to at least `tile` with its lowest intensity; returns it and where the scan lies."""
    missing = [max(0, size - have) for size, have in zip(tile, image.shape[1:], strict=True)]
    inside = [slice(m // 2, m // 2 + have) for m, have in zip(missing, image.shape[1:], strict=True)]
    if not any(missing):
        return image, inside
    margins = [margin for m in reversed(missing) for margin in (m // 2, m - m // 2)]
    return torch.stack([F.pad(channel, margins, value=float(channel.min())) for channel in image]), inside
