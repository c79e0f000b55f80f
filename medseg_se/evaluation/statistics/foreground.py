"""The mean of the means of several structures, and its bootstrap interval: subjects are drawn with all their structures.

Structures of one subject are not independent, and not every one is counted in every subject; so intervals of single structures
cannot be joined. Here each resample of subjects has its own means of all structures and their mean, studentised as
`bootstrap.mean_interval` does it. The standard error is that of the linearised estimate, the infinitesimal jackknife (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 21).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import Interval, drawn_weights, no_interval, studentised_ends
from medseg_se.evaluation.statistics.values import BLOCK, Array, Groups, check_confidence, number_groups


def mean_of_means_interval(
    values: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    limits: tuple[float, float] | None = None,
) -> Interval:
    """Return the mean of the structures' means, and its studentised bootstrap interval.

    With one structure, it is `mean_interval`. A structure that none of the subjects of a resample has keeps its mean there.

    Args:
        values: A value a structure and case, (K, n); NaN is not counted, and a structure that is counted nowhere is left out.
        groups: The subject of each case, (n,). Subjects are resampled with all their cases; None stands for one of its own.
        confidence: Probability with which the interval holds the true mean.
        resamples: How often the subjects are drawn anew.
        seed: Seed of the draws: the same input gives the same interval.
        limits: The lowest and highest mean that there can be; the interval is cut there.

    Returns:
        The interval; its `n` is the number of cases that count a structure.

    Raises:
        UsageError: An argument has the wrong shape or makes no sense.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise UsageError(f"Expected `values` to be a row a structure and a column a case, but got the shape {table.shape}.")
    check_confidence(confidence)
    counted = ~np.isnan(table)
    kept, cases = counted.any(axis=1), counted.any(axis=0)
    subjects, members = np.unique(number_groups(groups, table.shape[1])[cases], return_inverse=True)
    table, counted = table[np.ix_(kept, cases)], counted[np.ix_(kept, cases)]
    n, count = table.shape[1], len(subjects)
    with np.errstate(invalid="ignore"):  # the mean of -inf and inf
        means = np.array([row[of].mean() for row, of in zip(table, counted, strict=True)])
        mean = float(means.mean()) if n else np.nan
    alone = sum(len(np.unique(members[of])) == 1 for of in counted)
    reason = no_interval(n, count)
    if reason is None and alone:
        reason = f"{alone} of {len(table)} structures counted in one subject only, from which nothing can be said about others"
    if reason is None and (infinite := int(np.isinf(table).sum())):
        reason = f"{infinite} of {counted.sum()} values are infinite, so their mean has no interval"
    if reason is not None:
        return Interval(mean, np.nan, np.nan, n, reason)
    method = "studentised bootstrap"
    if all(np.all(row[of] == row[of][0]) for row, of in zip(table, counted, strict=True)):
        return Interval(mean, mean, mean, n, None, method)
    sizes = np.array([np.bincount(members, weights=of, minlength=count) for of in counted])
    about = np.where(counted, table - means[:, None], 0.0)  # so that nothing cancels
    sums = np.array([np.bincount(members, weights=row, minlength=count) for row in about])
    error = _error(np.ones((1, count)), sums, sizes)[1].item()
    if error == 0:
        return Interval(mean, mean, mean, n, None, method)
    shifts, errors = np.concatenate(
        [
            np.stack(_error(part, sums, sizes))
            for weights in drawn_weights(count, resamples, seed)
            for part in np.array_split(weights, max(1, weights.shape[0] * len(table) // BLOCK))
        ],
        axis=1,
    )
    low, high = studentised_ends(mean, error, shifts, errors, count, confidence, limits)
    return Interval(mean, low, high, n, None, method)


def _error(weights: Array, sums: Array, sizes: Array) -> tuple[Array, Array]:
    """Return the mean of means of each resample, about that of the sample, and its standard error, (R,) each.

    Args:
        weights: How often each resample draws each subject, (R, T).
        sums: Sum of a subject's values of each structure, about the mean of the structure, (K, T).
        sizes: How many values these are, (K, T).
    """
    size, total = weights @ sizes.T, weights @ sums.T
    each = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    shift = total * each
    influence = (each @ sums - (each * shift) @ sizes) / len(sums)
    count = weights.shape[1]
    variance: Array = count / (count - 1) * (weights * influence**2).sum(axis=1)
    return shift.mean(axis=1), np.sqrt(variance)
