"""How far two engines decide alike, voxel by voxel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        voxels: Share of the voxels with the same decision; 0 where an answer is not finite.
        dice: The lowest Dice of all classes (or regions) that either engine finds; 1 if there is none.
        found: How many classes (or regions) these are. One class alone says little.
    """

    voxels: float
    dice: float
    found: int

    def __str__(self) -> str:
        """Return the figures in words; rounded down, so that what falls short of a limit does not look as if it met it."""
        return f"{int(self.voxels * 1e5) / 1e3:.3f} % of the voxels, lowest Dice {int(self.dice * 1e4) / 1e4:.4f}"


@torch.inference_mode()
def compare(engine: Answer, reference: Answer, tiles: Tensor, regions: bool = False) -> Agreement:
    """Compare what two engines decide about tiles (N, C, *spatial), one at a time.

    Args:
        engine: The one that is doubted.
        reference: The one that is trusted.
        tiles: What both are asked.
        regions: Whether maps are regions, of which each is decided by its sign, and not classes of which the largest wins.
    """
    same = voxels = 0
    finite = True
    overlaps = sizes = torch.zeros(0, dtype=torch.int64)
    for tile in torch.split(tiles, 1):
        expected = reference(tile).float().cpu()
        answer = engine(tile).float().cpu()
        finite = finite and bool(torch.isfinite(answer).all())
        ours, theirs = _decisions(answer, regions), _decisions(expected, regions)
        same += int((ours == theirs).all(1).sum())
        voxels += theirs[:, 0].numel()
        maps = expected.shape[1]
        if regions:
            both, counts = [(ours & theirs)[:, place].sum() for place in range(maps)], ours.sum(0) + theirs.sum(0)
            tile_overlaps, tile_sizes = torch.stack(both), counts.flatten(1).sum(1)
        else:
            tile_overlaps = torch.bincount(theirs[ours == theirs], minlength=maps)
            tile_sizes = torch.bincount(ours.flatten(), minlength=maps) + torch.bincount(theirs.flatten(), minlength=maps)
        overlaps = tile_overlaps if not len(overlaps) else overlaps + tile_overlaps
        sizes = tile_sizes if not len(sizes) else sizes + tile_sizes
    found = sizes > 0
    dice = float((2 * overlaps[found] / sizes[found]).min()) if found.any() else 1.0
    return Agreement(same / max(1, voxels), dice, int(found.sum())) if finite else Agreement(0.0, 0.0, int(found.sum()))


def _decisions(logits: Tensor, regions: bool) -> Tensor:
    """Return what is decided, (N, 1, *spatial) classes or (N, regions, *spatial) yes and no."""
    return logits > 0 if regions else logits.argmax(1, keepdim=True)
