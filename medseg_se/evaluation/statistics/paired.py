"""Whether two runs differ on the same subjects: differences with intervals, tests, effect sizes, and wins, ties and losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import mean_interval
from medseg_se.evaluation.statistics.flips import flipped_ranks_p, flipped_sum_p
from medseg_se.evaluation.statistics.values import Array, Groups, as_pairs, number_groups

TIE = 1e-9  # of the largest value: a smaller difference is rounding
BETTER = ("higher", "lower", "zero")


@dataclass(frozen=True)
class Paired:
    """What `second` has more than `first`, over the cases counted in both. Every sign is that of second − first.

    Attributes:
        n: Number of cases counted in both.
        difference: Mean of second − first; NaN if one is infinite.
        median: Median of second − first.
        low: Lower end of the bootstrap interval of the mean difference; NaN if there is none.
        high: Upper end.
        wilcoxon_p: Two-sided p of the signed-rank test.
        permutation_p: Two-sided p of the sign-flip test of the mean difference; NaN if a difference is infinite.
        effect_size: Cohen's d_z, the mean over the standard deviation of the subjects' mean differences: 0 if none differs,
            infinite if all differ alike, NaN for fewer than two subjects or if a difference is infinite.
        rank_biserial: Matched-pairs rank-biserial correlation, −1 to 1: the share of the ranks that speaks for second, less
            that which speaks for first.
        wins: Cases in which second is better.
        ties: Cases that are equal up to rounding.
        losses: Cases in which second is worse.
        reason: Why there is no interval; None if there is one.
        subjects: Number of subjects, which are groups of cases.
    """

    n: int
    difference: float
    median: float
    low: float
    high: float
    wilcoxon_p: float
    permutation_p: float
    effect_size: float
    rank_biserial: float
    wins: int
    ties: int
    losses: int
    reason: str | None
    subjects: int

    @property
    def smallest_p(self) -> float:
        """The smallest p that so few subjects can reach, however clear the difference: 2^(1 − subjects)."""
        return min(1.0, 2.0 ** (1 - self.subjects))


def compare_paired(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    better: str = "higher",
    confidence: float = 0.95,
    seed: int = 0,
) -> Paired:
    """Compare `second` with `first`, case by case.

    A case that is NaN in either is left out; one that is infinite in both (missed by both) is a tie. Both tests flip the signs
    of whole subjects; the signed-rank test keeps ties among the ranks (Pratt, Remarks on zeros and ties, 1959) and is exact.

    Args:
        first: The values of the run compared with, (n,).
        second: The values of the other run in the same order of cases, (n,).
        groups: The subject of each case, (n,); None stands for one of its own.
        better: "higher", "lower" or "zero", which decides what is a win. The signs of the differences stay.
        confidence: Probability with which the interval holds the true difference.
        seed: Seed of the resamples and random flips.

    Raises:
        UsageError: An argument has the wrong shape or makes no sense.
    """
    if better not in BETTER:
        raise UsageError(f"Expected `better` to be one of {', '.join(BETTER)}, but got {better!r}.")
    one, other = as_pairs(first, second)
    kept = ~(np.isnan(one) | np.isnan(other))
    numbers = number_groups(groups, len(one))[kept]
    one, other = one[kept], other[kept]
    subjects, members = np.unique(numbers, return_inverse=True)
    finite = np.abs(np.concatenate([one, other]))
    rounding = TIE * float(finite[np.isfinite(finite)].max(initial=0))
    differences = _subtract(other, one, rounding)
    gains = _gains(one, other, differences, better, rounding)
    signed = _signed_ranks(differences, rounding)
    sums, rank_sums = _per_subject(differences, members), _per_subject(signed, members)
    interval = mean_interval(differences, numbers.tolist(), confidence=confidence, seed=seed)
    infinite = int(np.isinf(differences).sum())
    reason = f"{infinite} of {len(differences)} differences are infinite, so they have no mean" if infinite else interval.reason
    return Paired(
        n=len(differences),
        difference=np.nan if infinite else interval.estimate,
        median=_median(differences),
        low=interval.low,
        high=interval.high,
        wilcoxon_p=flipped_ranks_p(rank_sums) if len(subjects) else np.nan,
        permutation_p=np.nan if infinite or not len(subjects) else flipped_sum_p(sums, seed),
        effect_size=np.nan if infinite else _effect_size(sums / np.bincount(members), rounding),
        rank_biserial=_share(signed),
        wins=int((gains > 0).sum()),
        ties=int((gains == 0).sum()),
        losses=int((gains < 0).sum()),
        reason=reason,
        subjects=len(subjects),
    )


def _subtract(left: Array, right: Array, rounding: float) -> Array:
    """Return left − right, where what is equal up to `rounding` gives 0, and so does infinite less infinite."""
    with np.errstate(invalid="ignore"):
        difference = left - right
    return np.where((left == right) | (np.abs(difference) <= rounding), 0.0, difference)


def _gains(one: Array, other: Array, differences: Array, better: str, rounding: float) -> Array:
    if better == "zero":
        return _subtract(np.abs(one), np.abs(other), rounding)
    return differences if better == "higher" else -differences


def _signed_ranks(differences: Array, rounding: float) -> Array:
    """Return the rank of each size with the sign of its difference; zeros take the lowest ranks and count for nothing."""
    sizes = np.abs(differences)
    if rounding:
        sizes = np.round(sizes / rounding)
    ranks: Array = stats.rankdata(sizes)
    return ranks * np.sign(differences)


def _per_subject(values: Array, members: npt.NDArray[np.intp]) -> Array:
    return np.bincount(members, values).astype(np.float64)  # without a value NumPy gives integers


def _share(signed: Array) -> float:
    if not len(signed):
        return np.nan
    total = np.abs(signed).sum()
    return float(signed.sum() / total) if total else 0.0


def _effect_size(means: Array, rounding: float) -> float:
    if len(means) < 2:
        return np.nan
    mean, deviation = float(means.mean()), float(means.std(ddof=1))
    if deviation > rounding:
        return mean / deviation
    return 0.0 if abs(mean) <= rounding else float(np.copysign(np.inf, mean))


def _median(values: Array) -> float:
    with np.errstate(invalid="ignore"):  # between -inf and inf
        return float(np.median(values)) if len(values) else np.nan
