"""What is said of answers that are numbers: errors, correlation, how the error depends on the truth; with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg_se.evaluation.statistics.bootstrap import Interval, interval_of_sums, mean_interval

Array = npt.NDArray[np.float64]


def figures_of_numbers(truth: Array, answers: Array, groups: Sequence[str]) -> dict[str, Interval]:
    """Return MAE, RMSE, bias, r, R² and the slope of the error on the truth.

    A slope below 0 means that the low are taken for higher and the high for lower, as of every careful predictor; of ages it is
    called the age bias. Errors and R² are resampled by whole groups; r has Fisher's interval and the slope Student's, and
    where several scans are of one person, which these formulas do not know, they are resampled, too.

    Args:
        truth: (n,).
        answers: (n,); NaN without an answer, which is left out.
        groups: Whose scan each is.
    """
    there = np.isfinite(answers)
    true, said = truth[there], answers[there]
    kept = [group for group, counted in zip(groups, there, strict=True) if counted]
    error = said - true
    squared = mean_interval(error**2, kept, limits=(0.0, math.inf))
    grouped = len(set(kept)) < len(kept)
    return {
        "mean absolute error": mean_interval(np.abs(error), kept, limits=(0.0, math.inf)),
        "root mean squared error": replace(
            squared, estimate=math.sqrt(squared.estimate), low=math.sqrt(squared.low), high=math.sqrt(squared.high)
        ),
        "bias": mean_interval(error, kept),
        "r": _correlation(true, said, kept, grouped),
        "R²": interval_of_sums(np.column_stack([_terms(true, error), error**2]), _explained_of_sums, kept),
        "slope of the error": _slope(true, error, kept, grouped),
    }


def _correlation(true: Array, said: Array, groups: Sequence[str], grouped: bool) -> Interval:
    n = len(true)
    if n < 2 or np.ptp(true) == 0 or np.ptp(said) == 0:
        return Interval(math.nan, math.nan, math.nan, n, "one of the two does not vary")
    r = float(np.clip(np.corrcoef(true, said)[0, 1], -1, 1))
    if n < 4 or abs(r) == 1:
        return Interval(r, math.nan, math.nan, n, "too few cases, or a perfect line")
    if grouped:
        return replace(interval_of_sums(_terms(true, said), _r_of_sums, groups), estimate=r)
    reach = float(stats.norm.isf(0.025)) / math.sqrt(n - 3)
    return Interval(r, math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach), n, None, "Fisher's z")


def _slope(true: Array, error: Array, groups: Sequence[str], grouped: bool) -> Interval:
    n = len(true)
    if n < 2 or np.ptp(true) == 0:
        return Interval(math.nan, math.nan, math.nan, n, "the truth does not vary")
    line = stats.linregress(true, error)
    slope = float(line.slope)
    if n < 3:
        return Interval(slope, math.nan, math.nan, n, "too few cases")
    if grouped:
        return replace(interval_of_sums(_terms(true, error), _slope_of_sums, groups), estimate=slope)
    reach = float(stats.t.isf(0.025, n - 2)) * float(line.stderr)
    return Interval(slope, slope - reach, slope + reach, n, None, "Student's t of the regression")


# ---------------------------------------------------------------------------------------- sums over cases: 1, x, y, x², y², xy


def _terms(x: Array, y: Array) -> Array:
    """Return what is summed, (n, 6), of numbers about their means, so that nothing cancels."""
    x, y = (values - values.mean() if len(values) else values for values in (x, y))
    return np.stack([np.ones(len(x)), x, y, x**2, y**2, x * y], axis=1)


def _spreads(sums: Array) -> tuple[Array, Array, Array]:
    """Return the sums about the means of a resample of x², y² and xy; NaN of x² where x does not vary."""
    n, x, y, xx, yy, xy = sums.T
    spread = xx - x**2 / n
    return np.where(spread > 1e-12 * xx, spread, np.nan), yy - y**2 / n, xy - x * y / n


def _r_of_sums(sums: Array) -> Array:
    xx, yy, xy = _spreads(sums)
    return np.where(yy > 1e-12 * sums[:, 4], xy / np.sqrt(xx * np.maximum(yy, 0)), np.nan)


def _slope_of_sums(sums: Array) -> Array:
    xx, _, xy = _spreads(sums)
    return xy / xx


def _explained_of_sums(sums: Array) -> Array:
    """Return 1 − Σ error² / Σ (truth − mean)²: below 0 where the mean of the truth would have been the better answer."""
    return 1 - sums[:, 6] / _spreads(sums[:, :6])[0]
