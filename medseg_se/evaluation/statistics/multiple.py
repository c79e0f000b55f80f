"""Correction of p-values for many tests at once, such as one a structure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.values import Array, as_values


def holm(p: npt.ArrayLike) -> Array:
    """Return the adjusted p-values that hold the chance of any false finding (Holm, 1979).

    The i-th smallest of m becomes the largest of (m − j + 1) p_j over j ≤ i. NaN stays NaN and is no test.

    Args:
        p: The p-values, (m,).

    Raises:
        UsageError: A p-value lies outside of 0 to 1.
    """
    return _adjusted(p, lambda ordered: np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1)))


def benjamini_hochberg(p: npt.ArrayLike) -> Array:
    """Return the adjusted p-values that hold the share of false findings (Benjamini and Hochberg, 1995).

    The i-th smallest of m becomes the smallest of p_j m / j over j ≥ i. NaN stays NaN and is no test.

    Args:
        p: The p-values, (m,), of independent or positively dependent tests.

    Raises:
        UsageError: A p-value lies outside of 0 to 1.
    """

    def step_up(ordered: Array) -> Array:
        scaled = ordered * (len(ordered) / np.arange(1, len(ordered) + 1))
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _adjusted(p, step_up)


def _adjusted(p: npt.ArrayLike, rule: Callable[[Array], Array]) -> Array:
    """Return what `rule` makes of the sorted p-values, in the order in which they came, at most 1."""
    values = as_values(p, "p")
    tested = np.flatnonzero(~np.isnan(values))
    if ((values[tested] < 0) | (values[tested] > 1)).any():
        raise UsageError(f"Expected `p` to lie between 0 and 1, but got {values[(values < 0) | (values > 1)][0]}.")
    order = tested[np.argsort(values[tested], kind="stable")]
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(rule(values[order]), 1)
    return adjusted
