"""A verdict in words on a run against its reference. Where a test finds nothing, it says that there is no evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medseg_se.evaluation.statistics.paired import Paired
from medseg_se.metrics.measures import Measure

if TYPE_CHECKING:
    from medseg_se.evaluation.comparison import Contrast

LEVEL = 0.05
"""A corrected p below it counts as evidence."""
MEAN = "mean over foreground"
"""Stands among the names of structures."""


def verdict_of(contrast: Contrast, measure: Measure, structures: Sequence[str], confidence: float) -> str:
    """Return what can be said of a contrast: first of the mean over foreground, then of single structures.

    Args:
        contrast: The contrast.
        measure: What is compared.
        structures: The structures and regions.
        confidence: Of the intervals.
    """
    paired, pair = contrast.paired[MEAN], f"{contrast.name} against {contrast.reference}"
    if not paired.n:
        return f"{pair}: nothing can be compared, for no structure is counted in both."
    if not paired.wins and not paired.losses and paired.difference == 0 and _all_alike(contrast, structures):
        return f"{pair}: no evidence of a difference. Both give the same in all {_counted(paired)}."
    shown = f"{signed(paired.difference, measure)}, {_interval(paired, measure, confidence)}"
    if paired.subjects < 2:
        return f"{pair}: no verdict from one subject ({shown})."
    p = contrast.p[MEAN]
    facts = f"{measure.title}, {MEAN}: {shown}, corrected p {p_value(p)}, {_counted(paired)}"
    if math.isnan(p):
        return f"{pair}: no verdict on the {MEAN} ({paired.reason}).{_structures(contrast, measure, structures)}"
    alone = " One training of each: another seed may turn it." if max(contrast.repeats) == 1 else ""
    better = f"{pair}: {_word(paired, measure)} ({facts}).{alone}"
    found = better if p < LEVEL else f"{pair}: no evidence of a difference ({facts})."
    few = paired.smallest_p >= LEVEL
    too_few = f" {paired.subjects} subjects are too few: no p below {paired.smallest_p:.2g} can be reached." if few else ""
    return f"{found}{too_few}{_structures(contrast, measure, structures)}"


def number(value: float, measure: Measure) -> str:
    """Return a value of a measure as it is shown."""
    return "–" if math.isnan(value) else f"{value:.{decimals(measure)}f}{f' {measure.unit}' if measure.unit else ''}"


def signed(value: float, measure: Measure) -> str:
    """Return a difference as it is shown, with its sign."""
    shown = number(abs(value), measure)
    return f"{'' if math.isnan(value) or shown == number(0.0, measure) else '−' if value < 0 else '+'}{shown}"


def p_value(p: float) -> str:
    """Return a p-value as it is shown."""
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _all_alike(contrast: Contrast, structures: Sequence[str]) -> bool:
    return all(not contrast.paired[name].wins and not contrast.paired[name].losses for name in structures)


def _structures(contrast: Contrast, measure: Measure, structures: Sequence[str]) -> str:
    """Say in which structures there is evidence, after a blank; nothing where there is only one."""
    if len(structures) < 2:
        return ""
    found = [name for name in structures if contrast.p[name] < LEVEL]
    listed = ", ".join(
        f"{name} {_word(contrast.paired[name], measure)} ({signed(contrast.paired[name].difference, measure)}, "
        f"p {p_value(contrast.p[name])})"
        for name in found
    )
    return f" By structure: {listed}." if found else f" Nor in any of the {len(structures)} structures by itself."


def _word(paired: Paired, measure: Measure) -> str:
    if measure.better == "zero":
        return "different"
    return "better" if (paired.difference > 0) == (measure.better == "higher") else "worse"


def _interval(paired: Paired, measure: Measure, confidence: float) -> str:
    if math.isnan(paired.low):
        return f"no interval: {paired.reason}"
    return f"{confidence:.0%} interval {signed(paired.low, measure)} to {signed(paired.high, measure)}"


def _counted(paired: Paired) -> str:
    cases = f"{paired.n} case{'' if paired.n == 1 else 's'}"
    return cases if paired.subjects == paired.n else f"{cases} of {paired.subjects} subjects"


def decimals(measure: Measure) -> int:
    """Return how many decimals a value of a measure is shown with."""
    return 2 if measure.unit else 4
