"""Dice and cross-entropy from one softmax, with weights for classes and edges."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medseg_se.errors import UsageError
from medseg_se.losses.sums import Rows, mean_over_devices
from medseg_se.losses.weights import EdgeWeight, check_edge_weight, checked_class_weights, voxel_weights


class DiceCELoss(nn.Module):
    """Soft Dice over the structures plus cross-entropy over all classes, from one softmax.

    Dice: Milletari et al., 2016, https://arxiv.org/abs/1606.04797, with plain sums in the denominator as in nnU-Net. It needs
    no one-hot target, so its memory beside the logits is one map of probabilities however many classes there are.

    Args:
        dice_weight: Factor of the Dice term.
        ce_weight: Factor of the cross-entropy term.
        batch_dice: Sum over the batch, and over all devices, before dividing (steadier where structures are absent from most
            patches).
        smooth: Added to numerator and denominator.
        class_weights: What a voxel of each class, background first, weighs in the cross-entropy; 1 if not given. The
            cross-entropy is the weighted mean, so that only their ratios count.
        edge_weight: What a voxel weighs more there if a neighbour belongs to another class; see `voxel_weights`. Slices and
            scans of a batch are no neighbours.

    Raises:
        UsageError: A negative factor or weight, both factors 0, `smooth` not positive, or an `edge_weight` "auto" without class
            weights.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        batch_dice: bool = True,
        smooth: float = 1e-5,
        class_weights: Sequence[float] | Tensor | None = None,
        edge_weight: EdgeWeight = 0.0,
    ) -> None:
        super().__init__()
        check_factors(dice_weight=dice_weight, ce_weight=ce_weight)
        check_smooth(smooth)
        check_edge_weight(edge_weight, class_weights is not None)
        self.dice_weight, self.ce_weight, self.batch_dice, self.smooth = dice_weight, ce_weight, batch_dice, smooth
        self.edge_weight = edge_weight
        self.register_buffer("class_weights", None if class_weights is None else checked_class_weights(class_weights))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a float32 scalar (float64 for float64 logits).

        Raises:
            UsageError: The shapes do not match, or there is no class beside the background.
        """
        return self.of_rows(Rows.of(logits, target), target)

    def of_rows(self, rows: Rows, target: Tensor) -> Tensor:
        """Return the loss where the softmax is already taken."""
        classes = rows.log_probability.shape[1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise UsageError(f"Expected {len(self.class_weights)} classes, for each has a weight, but got {classes}.")
        weights = voxel_weights(target, self.class_weights, self.edge_weight, rows.of_truth.dtype).flatten(1, -2)
        cross_entropy = mean_over_devices(-(rows.of_truth * weights).sum(), weights.sum())
        overlap = rows.overlap().of_batch() if self.batch_dice else rows.overlap()
        dice = overlap.dice(self.smooth)[:, 1:].mean()
        return self.dice_weight * (1 - dice) + self.ce_weight * cross_entropy


def check_factors(**factors: float) -> None:
    """Refuse factors of the terms of a loss that are negative or all 0."""
    if min(factors.values()) < 0 or sum(factors.values()) <= 0:
        named, values = " and ".join(f"`{name}`" for name in factors), " and ".join(map(str, factors.values()))
        raise UsageError(f"Expected {named} to be at least 0 and not both 0, but got {values}.")


def check_smooth(smooth: float) -> None:
    """Refuse a `smooth` that would let a quotient be 0 / 0."""
    if smooth <= 0:
        raise UsageError(f"Expected `smooth` to be above 0, but got {smooth}.")
