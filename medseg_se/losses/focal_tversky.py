"""Focal Tversky loss: Abraham & Khan, 2019, https://arxiv.org/abs/1810.07842."""

from __future__ import annotations

import math

from torch import Tensor, nn

from medseg_se.errors import UsageError
from medseg_se.losses.dice_ce import check_smooth
from medseg_se.losses.sums import Rows

_NEXT_TO_NOTHING = 1e-7  # below it the root goes on as a line, for its slope is infinite at 0


class FocalTverskyLoss(nn.Module):
    """Mean over the structures of ``(1 - TI) ** (1 / gamma)``, with the Tversky index TI.

    ``TI = TP / (TP + alpha FN + beta FP)`` of soft sums; with `alpha` and `beta` of 0.5 it is the soft Dice. The paper's sum
    over the classes is a mean over the structures here.

    Args:
        alpha: Weight of what is missed, FN: above `beta` it raises the recall.
        beta: Weight of false alarms, FP.
        gamma: Above 1 structures that are found well keep their gradient; 1 is the plain Tversky loss.
        batch_dice: Sum over the batch, and over all devices, before dividing.
        smooth: Added to numerator and denominator.

    Raises:
        UsageError: A negative weight, both 0, or `gamma` or `smooth` not positive.
    """

    def __init__(
        self,
        alpha: float = 0.7,
        beta: float = 0.3,
        gamma: float = 4 / 3,
        batch_dice: bool = True,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if min(alpha, beta) < 0 or not 0 < alpha + beta < math.inf:
            raise UsageError(f"Expected `alpha` and `beta` to be at least 0 and not both 0, but got {alpha} and {beta}.")
        if not 0 < gamma < math.inf:
            raise UsageError(f"Expected `gamma` to be above 0, but got {gamma}.")
        check_smooth(smooth)
        self.alpha, self.beta, self.gamma, self.batch_dice, self.smooth = alpha, beta, gamma, batch_dice, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a float32 scalar (float64 for float64 logits).

        Raises:
            UsageError: The shapes do not match, or there is no class beside the background.
        """
        overlap = Rows.of(logits, target).overlap()
        both, predicted, true = overlap.of_batch() if self.batch_dice else overlap
        missed, false_alarms = (true - both).clamp(min=0), (predicted - both).clamp(min=0)  # below 0 by rounding
        wrong = self.alpha * missed + self.beta * false_alarms
        left = (wrong / (both + wrong + self.smooth))[:, 1:]
        loss: Tensor = (left * left.clamp(min=_NEXT_TO_NOTHING) ** (1 / self.gamma - 1)).mean()
        return loss
