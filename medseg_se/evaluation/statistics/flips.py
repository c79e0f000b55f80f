"""Sign-flip tests: where two runs do not differ, a subject's difference could as well have had the other sign.

Exact by enumeration or convolution where that is feasible, otherwise by seeded random flips (Phipson and Smyth, Permutation
p-values should never be zero, 2010, https://doi.org/10.2202/1544-6115.1585).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg_se.evaluation.statistics.values import BLOCK, Array

MOST_ENUMERATED = 16  # subjects of which all 2^16 flips are looked at
RANDOM_FLIPS = 100_000
MOST_RANKS = 100_000  # sum of doubled ranks up to which the distribution is convolved: some 300 values
ROUNDING = 1e-9  # relative to the sum of all sizes: sums that differ by less are the same


def flipped_sum_p(sums: Array, seed: int) -> float:
    """Return the two-sided p of the sum of `sums` (K,), one a subject, when each may have either sign.

    Exact for up to 16 sums that are not zero; beyond, (b + 1) / (m + 1) where b of m = 100,000 random flips are as extreme.
    """
    sums = sums[sums != 0]
    least = abs(sums.sum()) - ROUNDING * np.abs(sums).sum()
    if len(sums) <= MOST_ENUMERATED:
        flipped = np.zeros(1)
        for value in sums:
            flipped = np.concatenate([flipped - value, flipped + value])
        return float(np.mean(np.abs(flipped) >= least))
    generator, extreme, rows = np.random.default_rng(seed), 0, max(1, BLOCK // len(sums))
    for start in range(0, RANDOM_FLIPS, rows):
        flips = _random_bits(generator, min(rows, RANDOM_FLIPS - start), len(sums))
        extreme += int(np.count_nonzero(np.abs(2 * (flips @ sums) - sums.sum()) >= least))
    return (extreme + 1) / (RANDOM_FLIPS + 1)


def flipped_ranks_p(sums: Array) -> float:
    """Return the two-sided p of the sum of signed rank sums (K,), one a subject, when each may have either sign.

    Exact whatever ties there are, for up to some 300 values; beyond, by the normal distribution, whose variance is the sum of
    the squares (for subjects of several cases: Rosner, Glynn and Lee, 2006, https://doi.org/10.1111/j.1541-0420.2005.00389.x).
    """
    doubled = np.rint(2 * sums).astype(np.int64)  # mid-ranks are halves
    doubled = doubled[doubled != 0]
    observed, sizes = abs(int(doubled.sum())), np.abs(doubled)
    total = int(sizes.sum())
    if total > MOST_RANKS:
        return float(2 * stats.norm.sf(observed / np.sqrt((doubled.astype(np.float64) ** 2).sum())))
    chance = np.zeros(total + 1)  # of each sum of the ranks that are positive
    chance[0] = 1
    for size in sizes:
        chance /= 2
        chance[size:] += chance[:-size].copy()
    extreme = np.abs(2 * np.arange(total + 1) - total) >= observed
    return min(1.0, float(chance[extreme].sum()))


def _random_bits(generator: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    drawn = np.frombuffer(generator.bytes(-(-rows * columns // 8)), dtype=np.uint8)
    return np.unpackbits(drawn, count=rows * columns).reshape(rows, columns)
