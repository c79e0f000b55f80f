"""Areas under the ROC curve with DeLong intervals: of one score, of two on the same cases, and of several classes.

DeLong, DeLong and Clarke-Pearson, 1988, https://doi.org/10.2307/2531595, in the ranks of Sun and Xu, 2014,
https://doi.org/10.1109/LSP.2014.2337313. Cases are taken to be independent: one a subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.statistics.values import Array, as_classes, as_truths, as_values, check_confidence

METHOD = "DeLong variance, interval on the logit scale"
SEPARATED = "the classes are separated perfectly, where DeLong's variance is 0 and says nothing"
TOO_FEW = "fewer than two cases of a class, from which no variance can be told"


@dataclass(frozen=True)
class AucDifference:
    """The difference of two areas on the same cases.

    Attributes:
        first: Area of the first score.
        second: Area of the second.
        difference: Second − first.
        low: Lower end of its interval; NaN if there is none.
        high: Upper end.
        p: Two-sided p of no difference; NaN if there is no interval.
        n: Number of cases.
        reason: Why there is no interval; None if there is one.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    reason: str | None


def auc_delong(truth: npt.ArrayLike, scores: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the probability that a positive case scores higher than a negative one (ties count half), with its interval.

    The interval is made on the logit scale, where it stays within 0 to 1 and holds for small samples.

    Args:
        truth: Whether a case is positive, (n,).
        scores: Its score, higher for more likely, (n,).
        confidence: Probability with which the interval holds the true area.

    Raises:
        UsageError: An argument has the wrong shape or is NaN.
    """
    positive, scored = _checked(truth, scores, "scores")
    return _interval(_placements(scored[positive], scored[~positive]), confidence)


def compare_auc_delong(
    truth: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, *, confidence: float = 0.95
) -> AucDifference:
    """Compare two scores of the same cases: z test and interval of the difference of their areas.

    Args:
        truth: Whether a case is positive, (n,).
        first: The score compared with, (n,).
        second: The other score, (n,).
        confidence: Probability with which the interval holds the true difference.

    Raises:
        UsageError: An argument has the wrong shape or is NaN.
    """
    check_confidence(confidence)
    positive, one = _checked(truth, first, "first")
    _, other = _checked(truth, second, "second")
    of_one, of_other = (_placements(scored[positive], scored[~positive]) for scored in (one, other))
    area, other_area = (float(of_positive.mean()) if positive.any() else np.nan for of_positive, _ in (of_one, of_other))
    difference, n = other_area - area, len(positive)
    if min(positive.sum(), (~positive).sum()) < 2:
        return AucDifference(area, other_area, difference, np.nan, np.nan, np.nan, n, TOO_FEW)
    error = float(np.sqrt(sum(np.var(b - a, ddof=1) / len(a) for a, b in zip(of_one, of_other, strict=True))))
    if error == 0 and difference == 0:
        return AucDifference(area, other_area, 0.0, 0.0, 0.0, 1.0, n, None)
    if error == 0:
        return AucDifference(area, other_area, difference, np.nan, np.nan, np.nan, n, SEPARATED)
    reach = float(stats.norm.isf((1 - confidence) / 2)) * error
    low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    return AucDifference(area, other_area, difference, low, high, float(2 * stats.norm.sf(abs(difference) / error)), n, None)


def one_vs_rest(truth: npt.ArrayLike, probabilities: npt.ArrayLike, *, confidence: float = 0.95) -> list[Interval]:
    """Return the area of each class against all others.

    Args:
        truth: The class of each case, 0 to C − 1, (n,).
        probabilities: The score of each class, (n, C).
        confidence: Probability with which each interval holds the true area.

    Raises:
        UsageError: An argument has the wrong shape or is NaN.
    """
    classes, scores = as_classes(truth, probabilities, "probabilities")
    return [auc_delong(classes == label, scores[:, label], confidence=confidence) for label in range(scores.shape[1])]


def hand_till(truth: npt.ArrayLike, probabilities: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the mean area over all ordered pairs of classes (Hand and Till, 2001, https://doi.org/10.1023/A:1010920819831).

    A(i|j) compares cases of the classes i and j by the score of class i. The measure does not depend on how frequent the
    classes are. Its variance is that of DeLong: of the mean placements of the cases, class by class.

    Args:
        truth: The class of each case, 0 to C − 1, (n,).
        probabilities: The score of each class, (n, C).
        confidence: Probability with which the interval holds the true measure.

    Raises:
        UsageError: An argument has the wrong shape or is NaN.
    """
    classes, scores = as_classes(truth, probabilities, "probabilities")
    count = scores.shape[1]
    members = [np.flatnonzero(classes == label) for label in range(count)]
    placed = [np.zeros(len(rows)) for rows in members]
    for label in range(count):
        for other in range(count):
            if label != other:
                of_label, of_other = _placements(scores[members[label], label], scores[members[other], label])
                placed[label] += of_label / (count * (count - 1))
                placed[other] += of_other / (count * (count - 1))
    return _interval(placed, confidence)


def _checked(truth: npt.ArrayLike, scores: npt.ArrayLike, name: str) -> tuple[npt.NDArray[np.bool_], Array]:
    positive, scored = as_truths(truth, "truth"), as_values(scores, name)
    if len(positive) != len(scored):
        raise UsageError(f"Expected `truth` and `{name}` to be as long, but got {len(positive)} and {len(scored)} cases.")
    if np.isnan(scored).any():
        raise UsageError(f"Expected `{name}` to have a number for each case, but got NaN.")
    return positive, scored


def _placements(positive: Array, negative: Array) -> tuple[Array, Array]:
    """Return the share of the negatives below each positive, and that of the positives above each negative; ties count half."""
    count, others = len(positive), len(negative)
    if not count or not others:
        return np.full(count, np.nan), np.full(others, np.nan)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    below = (ranks[:count] - stats.rankdata(positive)) / others
    above = 1 - (ranks[count:] - stats.rankdata(negative)) / count
    return below, above


def _interval(placed: Sequence[Array], confidence: float) -> Interval:
    """Return half the sum of the classes' mean placements, which each say the area, with its interval."""
    check_confidence(confidence)
    n = sum(len(of_class) for of_class in placed)
    area = sum(float(of_class.mean()) if len(of_class) else np.nan for of_class in placed) / 2
    if min(len(of_class) for of_class in placed) < 2:
        return Interval(area, np.nan, np.nan, n, TOO_FEW)
    error = float(np.sqrt(sum(of_class.var(ddof=1) / len(of_class) for of_class in placed)))
    if error == 0 or not 0 < area < 1:
        return Interval(area, np.nan, np.nan, n, SEPARATED)
    reach = float(stats.norm.isf((1 - confidence) / 2)) * error / (area * (1 - area))
    low, high = special.expit(special.logit(area) + np.array([-reach, reach]))
    return Interval(area, float(low), float(high), n, None, METHOD)
