"""A forest plot: the difference of every structure with its interval, and the line at no difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medseg_se.reports.page import number, safe
from medseg_se.reports.plots import diamond
from medseg_se.reports.tables import Scale, axis_strip, strip

_MIDDLE = 13  # pixels


@dataclass(frozen=True)
class Effect:
    """A row of the plot.

    Attributes:
        name: Of the structure or the run.
        difference: Estimate; NaN where there is none.
        low: Lower end of its interval; NaN if there is none.
        high: Upper end.
        words: What is said behind the numbers, such as a corrected p or why there is no interval.
    """

    name: str
    difference: float
    low: float
    high: float
    words: str = ""


def forest_plot(effects: Sequence[Effect], title: str, sides: tuple[str, str] = ("", ""), digits: int = 3) -> str:
    """Return the plot as HTML with SVG inside.

    Args:
        effects: From top to bottom.
        title: What the difference is of, with its unit.
        sides: What lies to the left and to the right of no difference, such as "reference better".
        digits: Decimals.
    """
    ends = [end for effect in effects for end in (effect.low, effect.high, effect.difference)]
    most = max((abs(end) for end in ends if math.isfinite(end)), default=0.0) or 10.0**-digits
    scale = Scale.around([-most, most])
    zero = f'<line class="zero" x1="{scale.at(0)}%" x2="{scale.at(0)}%" y1="0" y2="26"/>'
    rows = []
    for effect in effects:
        marks = zero
        if math.isfinite(effect.low) and math.isfinite(effect.high):
            ends_at = f'x1="{scale.at(effect.low)}%" x2="{scale.at(effect.high)}%"'
            marks += f'<line class="interval" {ends_at} y1="{_MIDDLE}" y2="{_MIDDLE}"/>'
        if math.isfinite(effect.difference):
            marks += diamond(scale.at(effect.difference), _MIDDLE)
        rows.append(strip(safe(effect.name), marks, _words(effect, digits), scale))
    if any(sides):
        named = "".join(f"<span>{safe(side)}</span>" for side in sides)
        rows.append(f'<div class="strip axis"><span></span><span class="sides">{named}</span><span></span></div>')
    return f'<div class="strips">{axis_strip(title, scale)}{"".join(rows)}</div>'


def _words(effect: Effect, digits: int) -> str:
    if not math.isfinite(effect.difference):
        return effect.words or "not counted"
    interval = ""
    if math.isfinite(effect.low) and math.isfinite(effect.high):
        interval = f" [{signed(effect.low, digits)}, {signed(effect.high, digits)}]"
    return f"{signed(effect.difference, digits)}{interval} {effect.words}".rstrip()


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign; one that rounds to nothing has none."""
    text = number(value, digits)
    return f"+{text}" if value > 0 and float(text) else text
