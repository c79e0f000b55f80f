"""Tiles that lie outside of the body: found by their darkness, believed only after the network has been asked about some."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

_STEP = 4
"""Voxels of the scan that one voxel of the mask stands for, along each axis."""
_MARGIN = 2
"""Voxels of the mask by which the body is enlarged."""
_CHECKED = 2
"""Tiles that the network is asked about before the others are believed to be empty."""


def body_mask(image: Tensor) -> Tensor:
    """Return where the body lies in a prepared scan (C, I, J, K), bool (I, J, K).

    Brighter than the threshold that parts dark from bright best (Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076), the
    largest component of it, its holes filled, enlarged by eight voxels or more.
    """
    mean = image.mean(0, keepdim=True)[None].float().cpu()
    coarse = F.avg_pool3d(mean, _STEP, ceil_mode=True, count_include_pad=False)[0, 0].numpy()
    bright = coarse > _otsu(coarse)
    parts, count = scipy.ndimage.label(bright)
    if count > 1:
        bright = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    filled = scipy.ndimage.binary_fill_holes(bright)
    for axis in range(3):  # lungs and the like are open where the scan ends, but closed within a slice
        filled |= np.stack([scipy.ndimage.binary_fill_holes(part) for part in np.moveaxis(bright, axis, 0)], axis)
    body = torch.from_numpy(scipy.ndimage.binary_dilation(filled, iterations=_MARGIN))
    for axis, length in enumerate(image.shape[1:]):
        body = body.repeat_interleave(_STEP, axis).narrow(axis, 0, length)
    return body


def _otsu(values: np.ndarray) -> float:
    """Return the threshold that leaves the least variance on both of its sides."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(centres[int(np.nanargmax(between))]) if np.isfinite(between).any() else float(values.max())


def empty_tiles(
    ask: Callable[[Tensor], Tensor],
    decide: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: Sequence[int],
    corners: Sequence[tuple[int, ...]],
) -> tuple[dict[tuple[int, ...], Tensor], str]:
    """Return the tiles that need not be asked with the logits (maps,) of their voxels, and a note.

    The network is asked about the two tiles outside of the body whose intensities vary most. Only if it finds nothing in either
    of them are the others taken to be as empty, with the mean logits of these two.

    Args:
        ask: Maps tiles (N, C, I, J, K) to logits (N, maps, I, J, K).
        decide: Maps logits (maps, I, J, K) to structure indices (I, J, K).
        image: A prepared scan (C, I, J, K), at least as large as a tile.
        tile: Voxels of a tile.
        corners: The first voxels of all tiles.
    """
    body = body_mask(image)
    boxes = {corner: tuple(slice(s, s + n) for s, n in zip(corner, tile, strict=True)) for corner in corners}
    outside = [corner for corner, box in boxes.items() if not body[box].any()]
    if len(outside) <= _CHECKED:
        return {}, ""
    outside.sort(key=lambda corner: -float(image[(slice(None), *boxes[corner])].std()))
    found = []
    for corner in outside[:_CHECKED]:
        answer = ask(image[(slice(None), *boxes[corner])][None])[0].float()
        if bool(decide(answer).any()):
            return {}, "something was found outside of what looks like the body: all of the scan was computed"
        found.append(answer.mean((1, 2, 3)))
    mean = torch.stack(found).mean(0)
    return dict.fromkeys(outside, mean), f"{len(outside)} of {len(corners)} tiles lie outside of the body and were left out"
