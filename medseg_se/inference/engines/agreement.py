"""How far two engines decide alike, voxel by voxel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Answer = Callable[[Tensor], Tensor]
_SLIVER = 1e-4
"""Share of the voxels below which a class says little: at the edge of a tile, a few voxels more or less are its whole Dice."""


@dataclass(frozen=True)
class Decisions:
    """What an engine decides about tiles.

    Attributes:
        tiles: Of each tile the classes (1, *spatial), or yes and no of its regions (regions, *spatial).
        maps: How many classes, or regions, there are.
        regions: Which of the two.
        finite: Whether all its answers were.
    """

    tiles: tuple[Tensor, ...]
    maps: int
    regions: bool
    finite: bool


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        voxels: Share of the voxels with the same decision; 0 where an answer is not finite.
        dice: The lowest Dice of all classes (or regions) that fill a ten-thousandth of the tiles at least; 1 if there is none.
        found: How many classes (or regions) either engine finds. One class alone says little.
    """

    voxels: float
    dice: float
    found: int

    def __str__(self) -> str:
        """Return the figures in words; rounded down, so that what falls short of a limit does not look as if it met it."""
        return f"{int(self.voxels * 1e5) / 1e3:.3f} % of the voxels, lowest Dice {int(self.dice * 1e4) / 1e4:.4f}"


@torch.inference_mode()
def decide(engine: Answer, tiles: Tensor, regions: bool = False) -> Decisions:
    """Return what an engine decides about tiles (N, C, *spatial), which it is asked for one at a time.

    Args:
        engine: What is asked.
        tiles: What it is asked about.
        regions: Whether maps are regions, of which each is decided by its sign, and not classes of which the largest wins.
    """
    decided, finite, maps = [], True, 0
    for tile in torch.split(tiles, 1):
        answer = engine(tile)[0]
        maps, finite = len(answer), finite and bool(torch.isfinite(answer.sum(0)).all())
        decided.append((answer > 0 if regions else answer.argmax(0, keepdim=True).short()).cpu())
    return Decisions(tuple(decided), maps, regions, finite)


def compare(ours: Decisions, theirs: Decisions) -> Agreement:
    """Compare what two engines decided about the same tiles."""
    same = voxels = 0
    overlaps = sizes = torch.zeros(ours.maps, dtype=torch.int64)
    for own, other in zip(ours.tiles, theirs.tiles, strict=True):
        same += int((own == other).all(0).sum())
        voxels += other[0].numel()
        overlaps = overlaps + _counts((own & other) if ours.regions else own[own == other], ours)
        sizes = sizes + _counts(own, ours) + _counts(other, ours)
    found = int((sizes > 0).sum())
    if not (ours.finite and theirs.finite):
        return Agreement(0.0, 0.0, found)
    large = sizes > 2 * _SLIVER * voxels
    dice = float((2 * overlaps[large] / sizes[large]).min()) if large.any() else 1.0
    return Agreement(same / max(1, voxels), dice, found)


def _counts(decided: Tensor, decisions: Decisions) -> Tensor:
    """Return the voxels of every class or region."""
    if decisions.regions:
        return decided.flatten(1).sum(1)
    return torch.bincount(decided.flatten().long(), minlength=decisions.maps)
