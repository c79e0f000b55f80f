"""How a measure is spread over the cases, a row a structure: cases as points, quartiles as a box, the mean as a diamond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg_se.reports.page import number, safe
from medseg_se.reports.palette import Colour, hexadecimal
from medseg_se.reports.tables import Scale, axis_strip, strip

_DOTS = 4000  # on a plot, beyond which only those outside the whiskers are drawn
_WORST = 20  # of these in a row, at most
_WHISKER = 1.5  # interquartile ranges (Tukey)
_HEIGHT, _MIDDLE = 30, 15  # pixels


@dataclass(frozen=True)
class Distribution:
    """A structure on a plot.

    Attributes:
        name: What it is called.
        colour: Its colour; None for a region.
        values: Case → value; NaN where it is not counted, infinite where a distance is.
        mean: Their mean; infinite if one is.
        low: Lower end of the interval of the mean; NaN if there is none.
        high: Upper end.
    """

    name: str
    colour: Colour | None
    values: Mapping[str, float]
    mean: float
    low: float
    high: float


def distribution_plot(rows: Sequence[Distribution], title: str, bounds: tuple[float, float] | None, digits: int = 3) -> str:
    """Return the plot as HTML with SVG inside.

    Args:
        rows: The structures.
        title: Of the measure, with its unit.
        bounds: The ends of the axis, for measures that have them.
        digits: Decimals of the numbers beside.
    """
    finite = {row.name: {case: value for case, value in row.values.items() if np.isfinite(value)} for row in rows}
    everything = [value for values in finite.values() for value in values.values()]
    scale = Scale(*bounds) if bounds else Scale.around(everything, 0.0)
    few = len(everything) <= _DOTS
    drawn = []
    for row in rows:
        values = finite[row.name]
        colour = hexadecimal(row.colour) if row.colour else "var(--faint)"
        marks = _marks(values, colour, scale, few, digits) if values else ""
        marks += _mean(row.mean, row.low, row.high, scale) if np.isfinite(row.mean) else ""
        drawn.append(strip(safe(row.name), marks, _words(row, digits), scale, _HEIGHT))
    return f'<div class="strips">{axis_strip(title, scale)}{"".join(drawn)}{axis_strip("", scale)}</div>'


def note(rows: Sequence[Distribution]) -> str:
    """Return what the marks of `distribution_plot` mean."""
    few = sum(np.isfinite(value) for row in rows for value in row.values.values()) <= _DOTS
    points = "Points are cases" if few else f"Points are cases outside the whiskers, at most {_WORST} a structure"
    return (
        f"{points}; the box holds the middle half, with the median; whiskers reach {_WHISKER} times its length; "
        "the diamond is the mean with its 95 % interval, which the numbers repeat."
    )


def _words(row: Distribution, digits: int) -> str:
    """Return the numbers beside a row; a mean that is infinite says less than how many values are."""
    counted = [value for value in row.values.values() if not np.isnan(value)]
    if not counted:
        return "not counted"
    infinite = sum(np.isinf(value) for value in counted)
    if infinite:
        return f"median {number(float(np.median(counted)), digits)}, {infinite} of {len(counted)} infinite"
    return f"{number(row.mean, digits)}{_interval(row.low, row.high, digits)}, n {len(counted)}"


def _marks(values: Mapping[str, float], colour: str, scale: Scale, few: bool, digits: int) -> str:
    spread = np.array(list(values.values()))
    first, middle, third = (float(value) for value in np.percentile(spread, [25, 50, 75]))
    reach = _WHISKER * (third - first)
    within = spread[(spread >= first - reach) & (spread <= third + reach)]
    low, high = float(within.min()), float(within.max())
    top, tall = _MIDDLE - 7, 14
    parts = [
        f'<line class="whisker" stroke="{colour}" x1="{scale.at(low)}%" x2="{scale.at(high)}%" y1="{_MIDDLE}" y2="{_MIDDLE}"/>',
        f'<rect class="box" fill="{colour}" stroke="{colour}" x="{scale.at(first)}%" '
        f'width="{max(0.0, scale.at(third) - scale.at(first)):.3f}%" y="{top}" height="{tall}"/>',
        f'<line class="median" x1="{scale.at(middle)}%" x2="{scale.at(middle)}%" y1="{top}" y2="{top + tall}"/>',
    ]
    outside = [case for case, value in values.items() if not low <= value <= high]
    wanted = list(values) if few else sorted(outside, key=lambda case: -abs(values[case] - middle))[:_WORST]
    for place, case in enumerate(wanted):
        y = _MIDDLE - 9 + (place * 7) % 19  # a fixed pattern that spreads neighbours
        said = f"<title>{safe(case)}: {number(values[case], digits)}</title>"
        parts.append(f'<circle class="dot" fill="{colour}" cx="{scale.at(values[case])}%" cy="{y}" r="2.6">{said}</circle>')
    return "".join(parts)


def _mean(mean: float, low: float, high: float, scale: Scale) -> str:
    line = ""
    if np.isfinite(low) and np.isfinite(high):
        line = f'<line class="interval" x1="{scale.at(low)}%" x2="{scale.at(high)}%" y1="{_MIDDLE}" y2="{_MIDDLE}"/>'
    return line + diamond(scale.at(mean), _MIDDLE)


def diamond(place: float, middle: float) -> str:
    """Return a diamond at a horizontal place in per cent."""
    return f'<svg x="{place}%" y="{middle}" overflow="visible"><path class="mean" d="M-5 0L0 -5L5 0L0 5z"/></svg>'


def _interval(low: float, high: float, digits: int) -> str:
    return f" [{number(low, digits)}, {number(high, digits)}]" if np.isfinite(low) and np.isfinite(high) else ""
