"""Bootstrap intervals of a mean and of a median, whose subjects are resampled whole, and that hold at five values as at fifty.

The mean gets a studentised interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12.5), the median
an expanded percentile interval (Hesterberg, What Teachers Should Know About the Bootstrap, 2015, section 4.4,
https://arxiv.org/abs/1411.5279), and so do functions of sums over the cases, such as a correlation. Why these, with their
coverage measured: docs/decisions/0016-intervals-that-hold.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.values import BLOCK, Array, Groups, as_values, check_confidence, number_groups

_MOST_LOST = 0.1  # share of the resamples in which a statistic may not be defined, such as a correlation where nothing varies
LEAST_ERROR = 0.2  # of the sample's standard error, below which that of a resample is not let


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds the true value with the confidence asked for.

    Attributes:
        estimate: The estimate from all counted values; NaN if there are none.
        low: Lower end; NaN if there is no interval.
        high: Upper end; NaN if there is no interval.
        n: Number of values counted.
        reason: Why there is no interval; None if there is one.
        method: How the interval was made.
    """

    estimate: float
    low: float
    high: float
    n: int
    reason: str | None = None
    method: str | None = None


def mean_interval(
    values: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    limits: tuple[float, float] | None = None,
) -> Interval:
    """Return the mean of `values` and its studentised bootstrap interval.

    For each resample t = (mean* − mean) / error*, where error* is the standard error within the resample, held to at least a
    fifth of the sample's: resamples of few values are often all alike. The ends are mean − t·error at the quantiles of t.

    Args:
        values: One value a case, (n,). NaN is left out; with an infinite value there is no interval.
        groups: The subject of each case, (n,). Subjects are resampled with all their cases; None stands for one of its own.
        confidence: Probability with which the interval holds the true mean.
        resamples: How often the subjects are drawn anew.
        seed: Seed of the draws: the same input gives the same interval.
        limits: The lowest and highest mean that there can be, such as (0, 1) for Dice; the interval is cut there.

    Raises:
        UsageError: An argument has the wrong shape or makes no sense.
    """
    counted, members, count = _counted(values, groups, confidence, resamples)
    n = len(counted)
    with np.errstate(invalid="ignore"):  # the mean of -inf and inf
        mean = float(counted.mean()) if n else np.nan
    reason = no_interval(n, count)
    if reason is None and not np.isfinite(counted).all():
        reason = f"{np.isinf(counted).sum()} of {n} values are infinite, so their mean has no interval"
    if reason is not None:
        return Interval(mean, np.nan, np.nan, n, reason)
    method = "studentised bootstrap"
    if np.all(counted == counted[0]):
        return Interval(float(counted[0]), float(counted[0]), float(counted[0]), n, None, method)
    sizes = np.bincount(members, minlength=count).astype(np.float64)
    sums = np.bincount(members, weights=counted - mean, minlength=count)  # about the mean, so that nothing cancels
    error = float(np.sqrt(count / (count - 1) * (sums**2).sum())) / n
    if error == 0:
        return Interval(mean, mean, mean, n, None, method)
    terms = np.stack([sizes, sums, sums**2, sums * sizes, sizes**2], axis=1)
    size, total, squares, products, sizes_squared = _resampled(terms, resamples, seed)
    shift = total / size
    variance = count / (count - 1) * (squares - 2 * shift * products + shift**2 * sizes_squared)
    errors = np.sqrt(np.maximum(variance, 0)) / size
    low, high = studentised_ends(mean, error, shift, errors, count, confidence, limits)
    return Interval(mean, low, high, n, None, method)


def studentised_ends(
    estimate: float,
    error: float,
    shifts: Array,
    errors: Array,
    subjects: int,
    confidence: float,
    limits: tuple[float, float] | None,
) -> tuple[float, float]:
    """Return the ends of a studentised bootstrap interval.

    Args:
        estimate: Of the sample.
        error: Its standard error, above 0.
        shifts: The estimate of each resample less that of the sample, (R,).
        errors: The standard error within each resample, (R,).
        subjects: How many are resampled.
        confidence: Of the interval.
        limits: The lowest and highest value that there can be.
    """
    tail = (1 - confidence) / 2
    least = min(LEAST_ERROR, 1 / float(stats.t.isf(tail, subjects - 1)))  # so that two subjects reach Student's interval
    lowest, highest = np.quantile(shifts / np.maximum(errors, least * error), [tail, 1 - tail])
    low, high = float(estimate - highest * error), float(estimate - lowest * error)
    return (low, high) if limits is None else (max(low, limits[0]), min(high, limits[1]))


def median_interval(
    values: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the median of `values` and its expanded percentile bootstrap interval.

    The quantiles lie further out than those of the confidence, as Student's t does from the normal distribution:
    Φ(−t √(n / (n − 1))) for n subjects. Infinite values are larger than all others and harm nothing. Arguments and errors are
    those of `mean_interval`.
    """
    counted, members, count = _counted(values, groups, confidence, resamples)
    n = len(counted)
    order = np.argsort(counted, kind="stable")
    ordered = counted[order]
    median = float(_middle(ordered, np.ones((1, n)))[0]) if n else np.nan
    reason = no_interval(n, count)
    if reason is not None:
        return Interval(median, np.nan, np.nan, n, reason)
    medians = np.concatenate(
        [_middle(ordered, weights[:, members[order]]) for weights in drawn_weights(count, resamples, seed)]
    )
    if np.isnan(medians).any():
        return Interval(median, np.nan, np.nan, n, "values are infinite in both directions, so their median has no interval")
    tail = _expanded_tail(count, confidence)
    low, high = np.quantile(medians, [tail, 1 - tail], method="nearest")
    return Interval(median, float(low), float(high), n, None, "expanded percentile bootstrap")


def interval_of_sums(
    terms: npt.ArrayLike,
    statistic: Callable[[Array], Array],
    groups: Groups | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return a function of sums over the cases, and its expanded percentile bootstrap interval, as of `median_interval`.

    Args:
        terms: What is summed over the cases, (n, T).
        statistic: Sums (rows, T) → values (rows,); NaN where it is not defined. Such resamples are left out, up to a tenth.
        groups: The subject of each case, (n,). Subjects are resampled with all their cases; None stands for one of its own.
        confidence: Probability with which the interval holds the true value.
        resamples: How often the subjects are drawn anew.
        seed: Seed of the draws.

    Raises:
        UsageError: An argument has the wrong shape or makes no sense.
    """
    table = np.asarray(terms, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise UsageError(f"Expected `terms` to be finite numbers (cases, terms), but got the shape {table.shape}.")
    n = len(table)
    _, members, count = _counted(np.zeros(n), groups, confidence, resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = float(statistic(table.sum(axis=0, keepdims=True))[0]) if n else np.nan
        reason = no_interval(n, count)
        if reason is None and np.isnan(estimate):
            reason = "it is not defined for these values"
        if reason is not None:
            return Interval(estimate, np.nan, np.nan, n, reason)
        sums = np.stack([np.bincount(members, column, count) for column in table.T], axis=1).astype(np.float64)
        drawn = statistic(_resampled(sums, resamples, seed).T)
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < (1 - _MOST_LOST) * resamples:
        return Interval(estimate, np.nan, np.nan, n, "it is not defined in many of the resamples")
    if np.ptp(drawn) <= 1e-9 * max(1.0, abs(estimate)):
        return Interval(estimate, np.nan, np.nan, n, "it is the same in every resample, so nothing can be said from them")
    tail = _expanded_tail(count, confidence)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), n, None, "expanded percentile bootstrap")


def _expanded_tail(count: int, confidence: float) -> float:
    """Return the share of resamples beyond each end: Φ(−t √(n / (n − 1))) for n subjects."""
    return float(stats.norm.sf(np.sqrt(count / (count - 1)) * stats.t.isf((1 - confidence) / 2, count - 1)))


def _counted(
    values: npt.ArrayLike, groups: Groups | None, confidence: float, resamples: int
) -> tuple[Array, npt.NDArray[np.intp], int]:
    """Return the values that are not NaN, the number of the group of each, and how many groups there are."""
    check_confidence(confidence)
    if resamples < 100:
        raise UsageError(f"Expected `resamples` to be at least 100, but got {resamples}.")
    array = as_values(values)
    kept = ~np.isnan(array)
    subjects, members = np.unique(number_groups(groups, len(array))[kept], return_inverse=True)
    return array[kept], members, len(subjects)


def no_interval(n: int, subjects: int) -> str | None:
    """Return why `n` values of so many subjects have no interval; None if they have one."""
    if subjects > 1:
        return None
    if n == 0:
        return "no value was counted"
    return "one subject only, from which nothing can be said about others"


def _resampled(terms: Array, resamples: int, seed: int) -> Array:
    """Return the sums (T, resamples) of the terms (K, T) of the groups that each resample draws."""
    return np.concatenate([weights @ terms for weights in drawn_weights(len(terms), resamples, seed)]).T


def drawn_weights(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often each resample draws each of `count` groups, (rows, count), in blocks of bounded memory."""
    rows = max(1, BLOCK // count)
    for block, start in enumerate(range(0, resamples, rows)):
        yield _draw(count, min(rows, resamples - start), seed, block)


@functools.lru_cache(maxsize=4)  # the same for every structure of an evaluation
def _draw(count: int, rows: int, seed: int, block: int) -> Array:
    drawn = np.random.default_rng([seed, block]).integers(count, size=(rows, count))
    drawn += np.arange(rows)[:, None] * count
    weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
    weights.flags.writeable = False
    return weights


def _middle(ordered: Array, weights: Array) -> Array:
    """Return the medians (rows,) of the sorted values (n,), each counted as often as `weights` (rows, n) says."""
    reached = np.cumsum(weights, axis=1)
    total = reached[:, -1:]
    lower = (reached < np.ceil(total / 2)).sum(axis=1)
    upper = (reached < np.floor(total / 2) + 1).sum(axis=1)
    with np.errstate(invalid="ignore"):  # between -inf and inf
        middle: Array = np.where(lower == upper, ordered[lower], (ordered[lower] + ordered[upper]) / 2)
    return middle
