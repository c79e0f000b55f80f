"""A comparison on the screen: what each run reaches and costs, how it differs from its reference, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.evaluation.comparison import Comparison, Outcome
from medseg_se.evaluation.statistics.paired import Paired
from medseg_se.evaluation.verdict import LEVEL, MEAN, number, p_value, signed

_MOST_ROWS = 120  # of the table by structure; all rows are in table.csv
_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "flops": ("GFLOPs", lambda value: f"{value / 1e9:.3g}"),
    "memory": ("memory, MB", lambda value: f"{value / 1e6:,.0f}"),
    "step_seconds": ("step, ms", lambda value: f"{value * 1e3:.3g}"),
    "steps": ("steps", lambda value: f"{value:,.0f}"),
    "train_seconds": ("training, s", lambda value: f"{value:,.0f}"),
    "predict_seconds": ("a case, s", lambda value: f"{value:.2g}"),
}


def render(comparison: Comparison, console: Console) -> None:
    """Print the tables and the verdict."""
    console.print(_whole(comparison))
    console.print(_by_structure(comparison))
    for paragraph in comparison.verdicts().values():
        console.print(Text(paragraph))
    for note in comparison.notes:
        console.print(Text(note, "dim"))


def _whole(comparison: Comparison) -> Table:
    """Return a row a run: its mean over foreground, the difference, and its costs."""
    cases, subjects = len(comparison.cases), comparison.subjects
    of = f"{cases} case{'' if cases == 1 else 's'}" + (f" of {subjects} subjects" if subjects != cases else "")
    title = f"{comparison.measure.title}, {MEAN}, {of}; {comparison.seeds}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    shown = [key for key in _COSTS if any(key in one.cost for one in comparison.outcomes)]
    for heading in ("n", comparison.measure.title, "difference", *_SURE, *(_COSTS[key][0] for key in shown)):
        table.add_column(heading, justify="right", no_wrap=True)
    contrasts = {one.name: one for one in comparison.contrasts}
    for outcome in comparison.outcomes:
        contrast = contrasts.get(outcome.name)
        doubt = _doubt(comparison, contrast.paired[MEAN], contrast.p[MEAN]) if contrast else [_REFERENCE, *[""] * len(_SURE)]
        costs = [_cost(outcome, key) for key in shown]
        repeats = str(len(outcome.repeats))
        style = "bold" if contrast is None else _style(contrast.p[MEAN])
        table.add_row(
            Text(outcome.name), repeats, number(outcome.values[MEAN].estimate, comparison.measure), *doubt, *costs, style=style
        )
    return table


_SURE = ("interval", "p", "d", "win/tie/loss")
_REFERENCE = "reference"


def _by_structure(comparison: Comparison) -> Table:
    """Return a row for every run and structure."""
    table = Table(title="By structure", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    table.add_column("structure", overflow="fold")
    for heading in ("reference", "run", "difference", *_SURE):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [(contrast, name) for contrast in comparison.contrasts for name in comparison.structures]
    for contrast, name in rows[:_MOST_ROWS]:
        sides = [comparison.outcome(side).values[name].estimate for side in (contrast.reference, contrast.name)]
        region = name in comparison.regions
        table.add_row(
            Text(contrast.name),
            Text(f"{name} (region)" if region else name, "italic" if region else ""),
            *(number(side, comparison.measure) for side in sides),
            *_doubt(comparison, contrast.paired[name], contrast.p[name]),
            style=_style(contrast.p[name]),
        )
    if len(rows) > _MOST_ROWS:
        table.caption = f"{len(rows) - _MOST_ROWS} more rows in table.csv"
    return table


def _doubt(comparison: Comparison, paired: Paired, p: float) -> list[str]:
    measure = comparison.measure
    ends = f"{signed(paired.low, measure)} … {signed(paired.high, measure)}" if not math.isnan(paired.low) else "none"
    effect = "–" if math.isnan(paired.effect_size) else f"{paired.effect_size:+.2f}"
    return [signed(paired.difference, measure), ends, p_value(p), effect, f"{paired.wins}/{paired.ties}/{paired.losses}"]


def _cost(outcome: Outcome, key: str) -> str:
    return _COSTS[key][1](outcome.cost[key]) if key in outcome.cost else "–"


def _style(p: float) -> str:
    return "bold green" if p < LEVEL else ""
