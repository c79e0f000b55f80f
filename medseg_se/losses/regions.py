"""Dice and binary cross-entropy of regions that may overlap, each with a sigmoid of its own, as BraTS judges them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_se.errors import UsageError
from medseg_se.losses.dice_ce import check_factors, check_smooth
from medseg_se.losses.sums import Overlap, check_shapes, mean_over_devices, widened
from medseg_se.structures import IGNORE


class DiceBCERegionsLoss(nn.Module):
    """Mean over the regions of soft Dice, plus mean over voxels and regions of the binary cross-entropy.

    The logits (N, R, *spatial) have a map for each region and none for the background; the target is one of structure indices
    as for the other losses.

    Args:
        dice_weight: Factor of the Dice term.
        bce_weight: Factor of the binary cross-entropy.
        batch_dice: Sum over the batch, and over all devices, before dividing.
        smooth: Added to numerator and denominator of the Dice.
        regions: For each map the structure indices whose union is its truth; if not given, map r is that of structure r + 1.

    Raises:
        UsageError: A negative factor, both factors 0, `smooth` not positive, or a region of no structure.
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        batch_dice: bool = True,
        smooth: float = 1e-5,
        regions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        check_factors(dice_weight=dice_weight, bce_weight=bce_weight)
        check_smooth(smooth)
        self.dice_weight, self.bce_weight, self.batch_dice, self.smooth = dice_weight, bce_weight, batch_dice, smooth
        self.regions = None if regions is None else tuple(tuple(region) for region in regions)
        if self.regions is not None and any(not region or min(region) < 1 for region in self.regions):
            raise UsageError(f"Expected `regions` to name structure indices from 1 for each, but got {list(self.regions)}.")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a float32 scalar (float64 for float64 logits).

        Raises:
            UsageError: The shapes do not match, or there is not one map a region.
        """
        check_shapes(logits, target)
        rows = widened(logits).flatten(2, -2)
        truth = self.truth(target, logits.shape[1]).flatten(2, -2).to(rows.dtype)
        counted = (target != IGNORE).flatten(1, -2)[:, None].to(rows.dtype)
        entropies = F.binary_cross_entropy_with_logits(rows, truth, reduction="none") * counted
        entropy = mean_over_devices(entropies.sum((2, 3)).sum(), counted.sum() * logits.shape[1])
        probability = rows.sigmoid() * counted
        overlap = Overlap(*(sums.sum(3).sum(2) for sums in (probability * truth, probability, truth)))
        dice = (overlap.of_batch() if self.batch_dice else overlap).dice(self.smooth)
        return self.dice_weight * (1 - dice.mean()) + self.bce_weight * entropy

    def truth(self, target: Tensor, maps: int) -> Tensor:
        """Return which voxels of a target (N, *spatial) each region holds, bool (N, R, *spatial); none that are `IGNORE`.

        Raises:
            UsageError: There are not as many regions as `maps`.
        """
        regions = self.regions or tuple((index,) for index in range(1, maps + 1))
        if len(regions) != maps:
            raise UsageError(f"Expected logits of {len(regions)} regions, but got {maps} maps.")
        return torch.stack([reduce(torch.logical_or, [target == index for index in region]) for region in regions], dim=1)
