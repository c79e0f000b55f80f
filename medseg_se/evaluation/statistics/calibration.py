"""Whether probabilities mean what they say: reliability, expected calibration error, Brier score, and temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import Interval, mean_interval
from medseg_se.evaluation.statistics.values import Array, Groups, as_classes, as_truths, as_values
from medseg_se.metrics.calibration import Temperature, best_temperature


@dataclass(frozen=True)
class Reliability:
    """Cases in bins of equal width, by what was said and by what happened.

    Attributes:
        edges: Edges of the bins, (bins + 1,).
        said: Mean probability in each bin, (bins,); NaN in an empty one.
        happened: Share of cases in which it came true, (bins,); NaN in an empty bin.
        counts: Number of cases in each bin, (bins,).
    """

    edges: Array
    said: Array
    happened: Array
    counts: npt.NDArray[np.intp]

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean of |said − happened|, weighed by the cases; NaN without a case."""
        used = self.counts > 0
        return float(np.average(np.abs(self.said - self.happened)[used], weights=self.counts[used])) if used.any() else np.nan

    @property
    def largest_error(self) -> float:
        """Maximum calibration error over the bins; NaN without a case."""
        used = self.counts > 0
        return float(np.abs(self.said - self.happened)[used].max()) if used.any() else np.nan


def reliability(probabilities: npt.ArrayLike, truth: npt.ArrayLike, *, bins: int = 15) -> Reliability:
    """Sort cases into bins of equal width by their probability (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    With few cases a bin the error of a perfectly calibrated model is not 0 but about the spread within a bin.

    Args:
        probabilities: What was said, (n,): the probability of the event, or for several classes that of the chosen class.
        truth: Whether it came true, (n,).
        bins: Number of bins. The edge between two belongs to the lower one.

    Raises:
        UsageError: An argument has the wrong shape, or a probability lies outside of 0 to 1.
    """
    said, true = _probabilities(probabilities, truth)
    if bins < 1:
        raise UsageError(f"Expected `bins` to be at least 1, but got {bins}.")
    edges = np.linspace(0, 1, bins + 1)
    places = np.maximum(np.searchsorted(edges, said, side="left") - 1, 0)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean, share = (np.bincount(places, weights, minlength=bins) / counts for weights in (said, true.astype(np.float64)))
    return Reliability(edges, mean, share, counts)


def chosen_class(probabilities: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the probability of the most probable class and whether it is the true one, as `reliability` takes them.

    Args:
        probabilities: The probability of each class, (n, C).
        truth: The class of each case, 0 to C − 1, (n,).

    Raises:
        UsageError: An argument has the wrong shape.
    """
    classes, table = as_classes(truth, probabilities, "probabilities")
    return table.max(axis=1), table.argmax(axis=1) == classes


def brier(probabilities: npt.ArrayLike, truth: npt.ArrayLike, groups: Groups | None = None, *, seed: int = 0) -> Interval:
    """Return the Brier score with its bootstrap interval: the mean squared error of the probabilities (Brier, 1950).

    Args:
        probabilities: Of the event, (n,), for a score of 0 to 1; or of each class, (n, C), for Brier's sum of 0 to 2.
        truth: Whether the event happened, or the class of each case, (n,).
        groups: The subject of each case, (n,).
        seed: Seed of the resamples.

    Raises:
        UsageError: An argument has the wrong shape, or a probability lies outside of 0 to 1.
    """
    if np.ndim(probabilities) == 1:
        said, true = _probabilities(probabilities, truth)
        return mean_interval((said - true) ** 2, groups, seed=seed, limits=(0, 1))
    classes, table = as_classes(truth, probabilities, "probabilities")
    _check_range(table)
    happened = np.eye(table.shape[1])[classes]
    return mean_interval(((table - happened) ** 2).sum(axis=1), groups, seed=seed, limits=(0, 2))


def fit_temperature(logits: npt.ArrayLike, truth: npt.ArrayLike) -> Temperature:
    """Fit the temperature that makes the validation cases most likely (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    The ranks of the classes stay; see `medseg_se.metrics.calibration.best_temperature`.

    Args:
        logits: Of validation cases, not those of the training, (n, C).
        truth: The class of each case, 0 to C − 1, (n,).

    Raises:
        UsageError: An argument has the wrong shape, a logit is not finite, or there is no case.
    """
    classes, table = as_classes(truth, logits, "logits")
    if not len(table) or not np.isfinite(table).all():
        raise UsageError(f"Expected `logits` to be finite numbers of at least one case, but got the shape {table.shape}.")
    return best_temperature(table, classes)


def _probabilities(probabilities: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
    said, true = as_values(probabilities, "probabilities"), as_truths(truth, "truth")
    if len(said) != len(true):
        raise UsageError(f"Expected `probabilities` and `truth` to be as long, but got {len(said)} and {len(true)} cases.")
    _check_range(said)
    return said, true


def _check_range(probabilities: Array) -> None:
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise UsageError("Expected `probabilities` to lie between 0 and 1; logits go through a softmax first.")
