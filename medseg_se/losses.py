"""Losses on logits (N, C, *spatial) and targets (N, *spatial) of class indices, where `IGNORE` voxels do not count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """

    def __init__(self, dice_weight: float = 1.0, ce_weight: float = 1.0, batch_dice: bool = True, smooth: float = 1e-5) -> None:
        super().__init__()
        self.dice_weight, self.ce_weight, self.batch_dice, self.smooth = dice_weight, ce_weight, batch_dice, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a float32 scalar."""
        classes = logits.shape[1]
        flat = logits.float().flatten(2)
        truth = target.flatten(1).long()
        counted = truth != IGNORE
        truth = truth.clamp(min=0)
        log_probability = F.log_softmax(flat, dim=1)
        of_truth = log_probability.gather(1, truth[:, None])[:, 0]
        cross_entropy = -(of_truth * counted).sum() / counted.sum().clamp(min=1)

        weight = counted.to(flat.dtype)
        zeros = flat.new_zeros(flat.shape[0], classes)
        overlap = zeros.scatter_add(1, truth, of_truth.exp() * weight)
        predicted = torch.einsum("ncv,nv->nc", log_probability.exp(), weight)
        true = zeros.scatter_add(1, truth, weight)
        if self.batch_dice:
            overlap, predicted, true = (sums.sum(0, keepdim=True) for sums in (overlap, predicted, true))
        dice = (2 * overlap + self.smooth) / (predicted + true + self.smooth)
        return self.dice_weight * (1 - dice[:, 1:].mean()) + self.ce_weight * cross_entropy


class DeepSupervisionLoss(nn.Module):
    """Apply a loss at every decoder level with weights 1, 1/2, 1/4, … that sum to 1 (nnU-Net's scheme).

    Args:
        loss: The loss of one level.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the weighted sum; the target (N, *spatial) is shrunk to each output by picking the nearest voxel."""
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        weights = [0.5**level for level in range(len(levels))]
        total = torch.zeros((), device=target.device)
        for weight, logits in zip(weights, levels, strict=True):
            total = total + weight / sum(weights) * self.loss(logits, shrink(target, logits.shape[2:]))
        return total


def shrink(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Pick voxels of `target` (N, *spatial) so that it has `shape`; values are not mixed."""
    if tuple(target.shape[1:]) == tuple(shape):
        return target
    for axis, (old, new) in enumerate(zip(target.shape[1:], shape, strict=True), start=1):
        places = torch.arange(new, device=target.device) * old // new
        target = target.index_select(axis, places)
    return target
