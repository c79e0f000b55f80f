"""Temperature scaling: by what to divide logits so that probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

WIDEST = 1e4  # the temperature is looked for between the largest logit, divided by this, and multiplied with it


@dataclass(frozen=True)
class Temperature:
    """By what to divide logits.

    Attributes:
        temperature: The divisor; 1 if none could be fitted.
        loss_before: Mean negative log-likelihood with the logits as they are.
        loss: The same with the temperature.
        reason: Why none could be fitted; None if one was.
    """

    temperature: float
    loss_before: float
    loss: float
    reason: str | None


def best_temperature(logits: npt.NDArray[np.float64], truth: npt.NDArray[np.intp]) -> Temperature:
    """Return the temperature that makes cases most likely (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    The loss is convex in the inverse temperature, whose only root is found by bracketing. The ranks of the classes stay.

    Args:
        logits: Finite, (n, C), of one case at least that the network was not trained on.
        truth: The class of each case, (n,).
    """
    table = logits - logits.mean(axis=1, keepdims=True)
    of_truth = np.take_along_axis(table, truth[:, None], axis=1)[:, 0]

    def loss(inverse: float) -> float:
        return float(np.mean(special.logsumexp(inverse * table, axis=1) - inverse * of_truth))

    def slope(logarithm: float) -> float:
        return float(np.mean((special.softmax(np.exp(logarithm) * table, axis=1) * table).sum(axis=1) - of_truth))

    before = loss(1.0)
    largest = float(np.abs(table).max())
    lowest, highest = np.log(np.array([1 / WIDEST, WIDEST]) / (largest or 1.0))
    if slope(lowest) >= 0:
        return Temperature(1.0, before, before, "the logits do not tell the classes apart, so no confidence is low enough")
    if slope(highest) <= 0:
        return Temperature(1.0, before, before, "no case is clearly wrong, so no confidence is too high")
    inverse = float(np.exp(optimize.brentq(slope, lowest, highest, xtol=1e-12)))
    return Temperature(1 / inverse, before, loss(inverse), None)
