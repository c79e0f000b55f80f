"""Losses on logits (N, C, *spatial) and targets (N, *spatial) of class indices, where `IGNORE` voxels do not count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_se.errors import UsageError
from medseg_se.structures import IGNORE


class DiceCELoss(nn.Module):
    """Soft Dice over the structures plus cross-entropy over all classes, from one softmax.

    Dice: Milletari et al., 2016, https://arxiv.org/abs/1606.04797, with plain sums in the denominator as in nnU-Net. It needs
    no one-hot target, so its memory beside the logits is one map of probabilities however many classes there are.

    Args:
        dice_weight: Factor of the Dice term.
        ce_weight: Factor of the cross-entropy term.
        batch_dice: Sum over the batch before dividing (steadier where structures are absent from most patches).
        smooth: Added to numerator and denominator.

    Raises:
        UsageError: A negative factor, both factors 0, or `smooth` not positive.
    """

    def __init__(self, dice_weight: float = 1.0, ce_weight: float = 1.0, batch_dice: bool = True, smooth: float = 1e-5) -> None:
        super().__init__()
        if min(dice_weight, ce_weight) < 0 or dice_weight + ce_weight <= 0:
            raise UsageError(
                "Expected `dice_weight` and `ce_weight` to be at least 0 and not both 0, "
                f"but got {dice_weight} and {ce_weight}."
            )
        if smooth <= 0:
            raise UsageError(f"Expected `smooth` to be above 0, but got {smooth}.")
        self.dice_weight, self.ce_weight, self.batch_dice, self.smooth = dice_weight, ce_weight, batch_dice, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a float32 scalar (float64 for float64 logits).

        Raises:
            UsageError: The shapes do not match, or there is no class beside the background.
        """
        if target.shape != logits.shape[:1] + logits.shape[2:] or logits.shape[1] < 2:
            raise UsageError(
                "Expected logits (N, C, *spatial) of two classes or more and a target (N, *spatial), but got shapes "
                f"{tuple(logits.shape)} and {tuple(target.shape)}."
            )
        rows = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(2, -2)
        truth = target.flatten(1, -2).long()
        counted = truth != IGNORE
        truth = truth.clamp(min=0)
        log_probability = F.log_softmax(rows, dim=1)
        of_truth = log_probability.gather(1, truth[:, None])[:, 0]
        cross_entropy = -(of_truth * counted).sum() / counted.sum().clamp(min=1)

        # Row by row: float32 runs out of digits where millions of voxels are added up one by one.
        weight = counted.to(rows.dtype)
        zeros = rows.new_zeros(*truth.shape[:2], rows.shape[1])
        overlap = zeros.scatter_add(2, truth, of_truth.exp() * weight).sum(1)
        predicted = (log_probability.exp() * weight[:, None]).sum((2, 3))
        true = zeros.scatter_add(2, truth, weight).sum(1)
        if self.batch_dice:
            overlap, predicted, true = (sums.sum(0, keepdim=True) for sums in (overlap, predicted, true))
        dice = (2 * overlap + self.smooth) / (predicted + true + self.smooth)
        return self.dice_weight * (1 - dice[:, 1:].mean()) + self.ce_weight * cross_entropy


class DeepSupervisionLoss(nn.Module):
    """Apply a loss at every decoder level with weights in the ratio 1 : 1/2 : 1/4 …, which sum to 1.

    nnU-Net's scheme, but for the coarsest level: nnU-Net leaves that out.

    Args:
        loss: The loss of one level.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the weighted sum; the target (N, *spatial) is shrunk from each output's size to the next, see `shrink`."""
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        weights = [0.5**level for level in range(len(levels))]
        total = torch.zeros((), device=target.device)
        for weight, logits in zip(weights, levels, strict=True):
            target = shrink(target, logits.shape[2:])
            total = total + weight / sum(weights) * self.loss(logits, target)
        return total


def shrink(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Pick voxels of `target` (N, *spatial) so that it has `shape`; values are not mixed.

    Along each axis it takes the first voxel and every second, or third, after it, as strided convolutions do; where no such
    step gives the size, the voxels nearest below evenly spread places.

    Raises:
        UsageError: Another number of axes.
    """
    if target.ndim != len(shape) + 1:
        raise UsageError(f"Expected a target (N, *spatial) to shrink to {tuple(shape)}, but got shape {tuple(target.shape)}.")
    for axis, (old, new) in enumerate(zip(target.shape[1:], shape, strict=True), start=1):
        if old != new:
            places = torch.arange(0, old, -(-old // new), device=target.device)
            if len(places) != new:
                places = torch.arange(new, device=target.device) * old // new
            target = target.index_select(axis, places)
    return target
