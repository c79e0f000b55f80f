"""A Pareto plot: what a score costs. On the front lies what nothing else beats in both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from medseg_se.reports.page import number, safe
from medseg_se.reports.tables import Scale

_WIDE = 20.0  # ratio of costs from which their axis is logarithmic


@dataclass(frozen=True)
class Candidate:
    """A point of the plot.

    Attributes:
        name: Of the run.
        cost: Of any kind; positive where costs differ much.
        score: The higher, the better.
        low: Lower end of the score's interval; NaN if there is none.
        high: Upper end.
    """

    name: str
    cost: float
    score: float
    low: float = math.nan
    high: float = math.nan


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that no other one beats: none is at most as costly and at least as good, and better in one of both.

    By rising cost. What has no cost or no score is left out.
    """
    known = [one for one in candidates if math.isfinite(one.cost) and math.isfinite(one.score)]
    front: list[Candidate] = []
    for one in sorted(known, key=lambda candidate: (candidate.cost, -candidate.score)):
        twin = bool(front) and (front[-1].cost, front[-1].score) == (one.cost, one.score)
        if twin or not front or one.score > front[-1].score:
            front.append(one)
    return front


def pareto_plot(candidates: Sequence[Candidate], cost: str, score: str) -> str:
    """Return the plot as SVG that is as wide as its place.

    Args:
        candidates: The points; those without cost or score are named below.
        cost: Title of the horizontal axis, with its unit.
        score: Title of the vertical axis.
    """
    known = [one for one in candidates if math.isfinite(one.cost) and math.isfinite(one.score)]
    absent = [one.name for one in candidates if one not in known]
    left_out = f'<p class="faint">Not drawn, for cost or score is not known: {safe(", ".join(absent))}.</p>' if absent else ""
    if not known:
        return left_out
    logarithmic = min(one.cost for one in known) > 0 and max(one.cost for one in known) / min(one.cost for one in known) > _WIDE
    place = math.log10 if logarithmic else float
    across = Scale.around([place(one.cost) for one in known])
    up = Scale.around([value for one in known for value in (one.score, one.low, one.high)])
    front = pareto_front(known)
    marks = [_grid(across, up, logarithmic)]
    for first, second in itertools.pairwise(front):
        ends = [(across.at(place(one.cost)), 100 - up.at(one.score)) for one in (first, second)]
        marks.append(f'<line class="front" x1="{ends[0][0]}%" y1="{ends[0][1]}%" x2="{ends[1][0]}%" y2="{ends[1][1]}%"/>')
    for one in known:
        marks.append(_point(one, across.at(place(one.cost)), up, one in front))
    words = f"{score} against {cost}; on the front: {', '.join(one.name for one in front)}"
    return (
        f'<p class="faint">{safe(score)} (up) against {safe(cost)} (across{", logarithmic" if logarithmic else ""}); '
        "the line joins what nothing else beats in both.</p>"
        f'<div class="plotted"><svg class="pareto" role="img" aria-label="{safe(words)}">{"".join(marks)}</svg></div>{left_out}'
    )


def _grid(across: Scale, up: Scale, logarithmic: bool) -> str:
    parts = []
    for value, words in across.ticks():
        x, shown = across.at(value), f"{10**value:.3g}" if logarithmic else words
        parts.append(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>')
        parts.append(_label(x, 100, shown, 'y="16" text-anchor="middle"'))
    for value, words in up.ticks():
        y = round(100 - up.at(value), 3)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}%" y2="{y}%"/>')
        parts.append(_label(0, y, words, 'x="-6" y="4" text-anchor="end"'))
    return "".join(parts)


def _label(x: float, y: float, words: str, place: str) -> str:
    return f'<svg x="{x}%" y="{y}%" overflow="visible"><text class="tick" {place}>{words}</text></svg>'


def _point(one: Candidate, x: float, up: Scale, best: bool) -> str:
    y = round(100 - up.at(one.score), 3)
    spread = ""
    if math.isfinite(one.low) and math.isfinite(one.high):
        ends = f'y1="{100 - up.at(one.low):.3f}%" y2="{100 - up.at(one.high):.3f}%"'
        spread = f'<line class="spread" x1="{x}%" x2="{x}%" {ends}/>'
    side = 'x="-8" text-anchor="end"' if x > 70 else 'x="8"'
    title = f"<title>{safe(one.name)}: {number(one.score)}, cost {one.cost:.4g}</title>"
    label = f'<circle r="5">{title}</circle><text {side} y="-6">{safe(one.name)}</text>'
    return f'{spread}<svg class="{"best" if best else "other"}" x="{x}%" y="{y}%" overflow="visible">{label}</svg>'
