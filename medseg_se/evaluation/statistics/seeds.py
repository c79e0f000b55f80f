"""Runs repeated with several seeds: averaged for each subject, or a model in which seed and subject are both random.

The average asks whether *these* trained networks differ on other subjects; the model asks whether the *recipes* differ, trained
with other seeds too. Both results say in `method` which of the two they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.values import Array, check_confidence

AVERAGE = "averaged over seeds for each subject"
RANDOM = "seed and subject as random effects (balanced two-way analysis of variance)"


@dataclass(frozen=True)
class Averaged:
    """One value a subject.

    Attributes:
        values: Mean over the seeds in which the subject is counted, (subjects,); NaN where there is none.
        seeds: Number of seeds.
        method: What was done.
    """

    values: Array
    seeds: int
    method: str = AVERAGE


@dataclass(frozen=True)
class RandomEffects:
    """A mean whose interval covers other seeds and other subjects.

    Attributes:
        estimate: Mean over seeds and subjects; NaN if no subject is counted.
        low: Lower end of the interval; NaN if there is none.
        high: Upper end.
        p: Two-sided p of a mean of 0; NaN if there is no interval.
        n: Number of subjects, which are those counted in every seed.
        seeds: Number of seeds.
        left_out: Number of subjects that are not counted in every seed.
        seed_sd: Standard deviation between seeds.
        subject_sd: Standard deviation between subjects.
        residual_sd: Standard deviation of the rest.
        degrees_of_freedom: Satterthwaite's, of the t distribution behind the interval; NaN if nothing varies.
        reason: Why there is no interval; None if there is one.
        method: What was done.
    """

    estimate: float
    low: float
    high: float
    p: float
    n: int
    seeds: int
    left_out: int
    seed_sd: float
    subject_sd: float
    residual_sd: float
    degrees_of_freedom: float
    reason: str | None
    method: str = RANDOM


def average_over_seeds(values: npt.ArrayLike) -> Averaged:
    """Return the mean over the seeds for each subject; NaN (not counted) is left out.

    Args:
        values: A value for each seed and subject, (seeds, subjects).

    Raises:
        UsageError: `values` has another shape.
    """
    table = _as_table(values)
    counted = ~np.isnan(table)
    sums, counts = np.where(counted, table, 0).sum(axis=0), counted.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return Averaged(sums / counts, len(table))


def random_effect(values: npt.ArrayLike, *, confidence: float = 0.95) -> RandomEffects:
    """Estimate the mean of `values` = mean + seed + subject + rest, in which all three vary at random.

    Closed form of the balanced crossed design (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4): mean
    squares give the components, and where none is negative these are the estimates of restricted maximum likelihood. A
    negative one is set to 0, which makes the variance of the mean, (MS_seed + MS_subject − MS_rest) / (seeds · subjects),
    larger; degrees of freedom are Satterthwaite's.

    Args:
        values: A value for each seed and subject, (seeds, subjects), such as the difference of two runs with the same seed.
            Subjects that are NaN in one seed are left out.
        confidence: Probability with which the interval holds the mean over all seeds and subjects.

    Raises:
        UsageError: An argument has the wrong shape or makes no sense.
    """
    check_confidence(confidence)
    table = _as_table(values)
    complete = ~np.isnan(table).any(axis=0)
    left_out = int((~complete).sum())
    table = table[:, complete]
    seeds, n = table.shape
    with np.errstate(invalid="ignore"):
        estimate = float(table.mean()) if table.size else np.nan
    reason = _no_model(table)
    if reason is not None:
        nan = np.nan
        return RandomEffects(estimate, nan, nan, nan, n, seeds, left_out, nan, nan, nan, nan, reason)
    if np.all(table == table[0, 0]):
        same = float(table[0, 0])
        return RandomEffects(same, same, same, float(same == 0), n, seeds, left_out, 0.0, 0.0, 0.0, np.nan, None)
    freedom = np.array([seeds - 1, n - 1, (seeds - 1) * (n - 1)], dtype=np.float64)
    squares = _sums_of_squares(table) / freedom
    of_seed, of_subject, of_rest = squares[0], squares[1], squares[2]
    variance = max(of_seed, of_rest) + max(of_subject, of_rest) - of_rest
    satterthwaite = max(variance**2 / float((squares**2 / freedom).sum()), float(freedom[:2].min()))
    error = float(np.sqrt(variance / (seeds * n)))
    reach = float(stats.t.isf((1 - confidence) / 2, satterthwaite)) * error
    return RandomEffects(
        estimate=estimate,
        low=estimate - reach,
        high=estimate + reach,
        p=float(2 * stats.t.sf(abs(estimate) / error, satterthwaite)),
        n=n,
        seeds=seeds,
        left_out=left_out,
        seed_sd=float(np.sqrt(max(0, of_seed - of_rest) / n)),
        subject_sd=float(np.sqrt(max(0, of_subject - of_rest) / seeds)),
        residual_sd=float(np.sqrt(of_rest)),
        degrees_of_freedom=satterthwaite,
        reason=None,
    )


def _as_table(values: npt.ArrayLike) -> Array:
    try:
        table = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError("Expected `values` to be a table of numbers with as many subjects for each seed.") from error
    if table.ndim != 2 or not len(table):
        raise UsageError(f"Expected `values` to be (seeds, subjects) with at least one seed, but got the shape {table.shape}.")
    return table


def _no_model(table: Array) -> str | None:
    seeds, n = table.shape
    if n < 2:
        return f"{'one subject' if n else 'no subject'} is counted in every seed, and two are needed"
    if seeds < 2:
        return "one seed only, from which nothing can be said about others"
    if np.isinf(table).any():
        return f"{np.isinf(table).sum()} of {table.size} values are infinite, so they have no mean"
    return None


def _sums_of_squares(table: Array) -> Array:
    """Return the sums of squares of seeds, subjects and the rest."""
    mean = table.mean()
    of_seeds, of_subjects = table.mean(axis=1, keepdims=True) - mean, table.mean(axis=0, keepdims=True) - mean
    rest = table - mean - of_seeds - of_subjects
    seeds, n = table.shape
    return np.array([n * (of_seeds**2).sum(), seeds * (of_subjects**2).sum(), (rest**2).sum()])
