"""Proportions, such as the share of cases classified correctly: intervals, and tests of two that are independent or paired."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.statistics.values import as_truths, check_confidence


@dataclass(frozen=True)
class ProportionDifference:
    """The difference second − first of two proportions, NaN where one is of nothing.

    Attributes:
        difference: Second − first.
        low: Lower end of its interval.
        high: Upper end.
        p: Two-sided p of no difference.
        n: Number of cases: of both together if independent, of pairs if paired.
        method: Which test and interval these are.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    method: str


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Return the proportion and its score interval (Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953).

    Raises:
        UsageError: There are more successes than cases, or an argument makes no sense.
    """
    check_confidence(confidence)
    _check_counts(successes, n)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0, "no case was counted")
    z = float(stats.norm.isf((1 - confidence) / 2))
    share = successes / n
    centre = (successes + z**2 / 2) / (n + z**2)
    reach = z / (n + z**2) * float(np.sqrt(n * share * (1 - share) + z**2 / 4))
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach), n, None, "Wilson score interval")


def two_proportion_z(successes: tuple[int, int], n: tuple[int, int], *, confidence: float = 0.95) -> ProportionDifference:
    """Compare the proportions of two independent groups: pooled z test, and Newcombe's hybrid score interval.

    The interval is method 10 of Newcombe, Interval estimation for the difference between independent proportions, 1998.

    Args:
        successes: Successes in the first and second group.
        n: Cases in the first and second group.
        confidence: Probability with which the interval holds the true difference.

    Raises:
        UsageError: There are more successes than cases, or an argument makes no sense.
    """
    method = "pooled z test, Newcombe's hybrid score interval"
    first, second = (wilson_interval(*group, confidence=confidence) for group in zip(successes, n, strict=True))
    if not all(n):
        return ProportionDifference(np.nan, np.nan, np.nan, np.nan, sum(n), method)
    difference = second.estimate - first.estimate
    pooled = sum(successes) / sum(n)
    error = float(np.sqrt(pooled * (1 - pooled) * (1 / n[0] + 1 / n[1])))
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error else 1.0
    low = difference - float(np.hypot(second.estimate - second.low, first.high - first.estimate))
    high = difference + float(np.hypot(second.high - second.estimate, first.estimate - first.low))
    return ProportionDifference(difference, low, high, p, sum(n), method)


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike, *, confidence: float = 0.95) -> ProportionDifference:
    """Compare two classifiers on the same cases, one a subject: exact McNemar test, and Bonett and Price's adjusted interval.

    The interval is equation 2 of Bonett and Price, Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data, 2012. It is never of width 0, for few cases that agree prove little.

    Args:
        first: Whether the first is right in each case, (n,).
        second: Whether the second is, (n,).
        confidence: Probability with which the interval holds the true difference.

    Raises:
        UsageError: An argument has the wrong shape or is not true or false.
    """
    check_confidence(confidence)
    method = "exact McNemar test, Bonett and Price's interval"
    one, other = as_truths(first, "first"), as_truths(second, "second")
    if len(one) != len(other):
        raise UsageError(f"Expected `first` and `second` to be as long, but got {len(one)} and {len(other)} cases.")
    n = len(one)
    if n == 0:
        return ProportionDifference(np.nan, np.nan, np.nan, np.nan, 0, method)
    gained, lost = int((other & ~one).sum()), int((one & ~other).sum())
    p = min(1.0, 2 * float(stats.binom.cdf(min(gained, lost), gained + lost, 0.5)))
    more, less = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = float(stats.norm.isf((1 - confidence) / 2)) * float(np.sqrt((more + less - (more - less) ** 2) / (n + 2)))
    low, high = max(-1.0, more - less - reach), min(1.0, more - less + reach)
    return ProportionDifference((gained - lost) / n, low, high, p, n, method)


def _check_counts(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise UsageError(f"Expected `successes` to lie between 0 and the {n} cases, but got {successes}.")
