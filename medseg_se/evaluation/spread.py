"""One measure of one structure over all cases: mean with interval, median, and the worst case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg_se.evaluation.statistics.bootstrap import mean_interval
from medseg_se.metrics.measures import Measure


@dataclass(frozen=True)
class Spread:
    """A measure over the cases in which it is counted; NaN and None where there is no such case.

    Attributes:
        mean: Mean; infinite if one value is.
        sd: Standard deviation with n - 1 in the denominator; NaN for fewer than two cases and where the mean is infinite.
        median: Median; infinite values are larger than all others.
        n: Number of counted cases.
        infinite: Of these, how many are infinite: distances of a structure that is missed, or invented.
        worst: The lowest value where higher is better, the highest where lower is, the furthest from 0 where that is best.
        worst_case: Name of the (first) case with the worst value; None where no way is better.
        low: Lower end of the 95 % bootstrap interval of the mean, subjects resampled.
        high: Its upper end.
        reason: Why there is no interval; None if there is one.
    """

    mean: float
    sd: float
    median: float
    n: int
    infinite: int
    worst: float
    worst_case: str | None
    low: float
    high: float
    reason: str | None


def spread(measure: Measure, values: Sequence[float], cases: Sequence[str], groups: Sequence[str | None]) -> Spread:
    """Sum up one value a case; NaN is not counted.

    Args:
        measure: What is measured.
        values: The values.
        cases: The names of the cases.
        groups: Whose scan each is; None where it is nobody else's.
    """
    array = np.asarray(values, dtype=np.float64)
    counted = array[~np.isnan(array)]
    infinite = int(np.isinf(counted).sum())
    interval = mean_interval(array, groups, limits=measure.limits)
    place = _worst(measure, array) if len(counted) else None
    return Spread(
        mean=interval.estimate,
        sd=float(counted.std(ddof=1)) if len(counted) > 1 and not infinite else np.nan,
        median=float(np.median(counted)) if len(counted) else np.nan,
        n=len(counted),
        infinite=infinite,
        worst=np.nan if place is None else float(array[place]),
        worst_case=None if place is None else cases[place],
        low=interval.low,
        high=interval.high,
        reason=interval.reason,
    )


def _worst(measure: Measure, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int | None:
    if measure.better is None:
        return None
    badness = {"higher": -values, "lower": values, "zero": np.abs(values)}[measure.better]
    return int(np.nanargmax(badness))
