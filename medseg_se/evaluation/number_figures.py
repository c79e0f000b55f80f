"""What is said of answers that are numbers: errors, correlation, how the error depends on the truth; with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg_se.evaluation.statistics.bootstrap import Interval, mean_interval

Array = npt.NDArray[np.float64]
GROUPED = "several scans of one person, whose dependence its formula does not know"


def figures_of_numbers(truth: Array, answers: Array, groups: Sequence[str]) -> dict[str, Interval]:
    """Return MAE, RMSE, bias, r, R² and the slope of the error on the truth.

    A slope below 0 means that the low are taken for higher and the high for lower, as of every careful predictor; of ages it is
    called the age bias. Errors are resampled by whole groups; r has Fisher's interval, the slope Student's.

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
        "r": _correlation(true, said, grouped),
        "R²": _explained(true, error),
        "slope of the error": _slope(true, error, grouped),
    }


def _correlation(true: Array, said: Array, grouped: bool) -> Interval:
    n = len(true)
    if n < 2 or np.ptp(true) == 0 or np.ptp(said) == 0:
        return Interval(math.nan, math.nan, math.nan, n, "one of the two does not vary")
    r = float(np.clip(np.corrcoef(true, said)[0, 1], -1, 1))
    if n < 4 or grouped or abs(r) == 1:
        return Interval(r, math.nan, math.nan, n, GROUPED if grouped else "too few cases, or a perfect line")
    reach = float(stats.norm.isf(0.025)) / math.sqrt(n - 3)
    return Interval(r, math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach), n, None, "Fisher's z")


def _explained(true: Array, error: Array) -> Interval:
    """Return 1 − Σ error² / Σ (truth − mean)²: below 0 where the mean of the truth would have been the better answer."""
    spread = float(((true - true.mean()) ** 2).sum()) if len(true) else 0.0
    value = 1 - float((error**2).sum()) / spread if spread else math.nan
    return Interval(value, math.nan, math.nan, len(true), "given without one, as r and the errors say the same")


def _slope(true: Array, error: Array, grouped: bool) -> Interval:
    n = len(true)
    if n < 2 or np.ptp(true) == 0:
        return Interval(math.nan, math.nan, math.nan, n, "the truth does not vary")
    line = stats.linregress(true, error)
    slope = float(line.slope)
    if n < 3 or grouped:
        return Interval(slope, math.nan, math.nan, n, GROUPED if grouped else "too few cases")
    reach = float(stats.t.isf(0.025, n - 2)) * float(line.stderr)
    return Interval(slope, slope - reach, slope + reach, n, None, "Student's t of the regression")
