"""A comparison on the screen: what each run reaches and costs, how it differs from its reference, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.evaluation.comparison import Comparison
from medseg_se.evaluation.statistics.paired import Paired
from medseg_se.evaluation.verdict import LEVEL, MEAN, number, p_value, signed

_MOST_ROWS = 120  # of the table by structure; all rows are in table.csv
COST_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "flops": ("GFLOPs", lambda value: f"{value / 1e9:.3g}"),
    "memory": ("memory, MB", lambda value: f"{value / 1e6:,.0f}"),
    "step_seconds": ("step, ms", lambda value: f"{value * 1e3:.3g}"),
    "steps": ("steps", lambda value: f"{value:,.0f}"),
    "train_seconds": ("training, s", lambda value: f"{value:,.0f}"),
    "predict_seconds": ("a case, s", lambda value: f"{value:.2g}"),
}
"""What each cost is called in tables, and how it is shown."""
_DOUBT = ("difference", "interval", "p", "w/t/l")


def render(comparison: Comparison, console: Console) -> None:
    """Print the tables and the verdict."""
    console.print(_whole(comparison))
    if any(outcome.cost for outcome in comparison.outcomes):
        console.print(_costs(comparison))
    if len(comparison.structures) > 1:
        console.print(_by_structure(comparison))
    for paragraph in comparison.verdicts().values():
        console.print(Text(paragraph))
    for note in comparison.notes:
        console.print(Text(note, "dim"))


def _whole(comparison: Comparison) -> Table:
    """Return a row a run: its mean over foreground, and the difference to its reference."""
    cases, subjects = len(comparison.cases), comparison.subjects
    of = f"{cases} case{'' if cases == 1 else 's'}" + (f" of {subjects} subjects" if subjects != cases else "")
    title = comparison.measure.title
    table = _table(f"{title}, {MEAN}, {of}; {comparison.seeds}", ("run",), ("n", title, *_DOUBT))
    contrasts = {one.name: one for one in comparison.contrasts}
    for outcome in comparison.outcomes:
        contrast, value = contrasts.get(outcome.name), outcome.values[MEAN].estimate
        doubt = _doubt(comparison, contrast.paired[MEAN], contrast.p[MEAN]) if contrast else ["reference", "", "", ""]
        style = _style(contrast.p[MEAN]) if contrast else "bold"
        table.add_row(Text(outcome.name), str(len(outcome.repeats)), number(value, comparison.measure), *doubt, style=style)
    table.caption = "n: trainings of the run; w/t/l: cases in which it wins, ties and loses; p: corrected"
    table.caption_justify = "left"
    return table


def _costs(comparison: Comparison) -> Table:
    """Return a row a run with what it costs."""
    shown = [key for key in COST_COLUMNS if any(key in one.cost for one in comparison.outcomes)]
    table = _table("Cost", ("run",), [COST_COLUMNS[key][0] for key in shown])
    for outcome in comparison.outcomes:
        costs = [COST_COLUMNS[key][1](outcome.cost[key]) if key in outcome.cost else "–" for key in shown]
        table.add_row(Text(outcome.name), *costs, style="bold" if outcome.reference is None else "")
    return table


def _by_structure(comparison: Comparison) -> Table:
    """Return a row for every run and structure."""
    table = _table("By structure", ("run", "structure"), (comparison.measure.title, *_DOUBT))
    rows = [(contrast, name) for contrast in comparison.contrasts for name in comparison.structures]
    for place, (contrast, name) in enumerate(rows[:_MOST_ROWS]):
        region = name in comparison.regions
        first = name == comparison.structures[0]
        if first and place:
            table.add_section()
        table.add_row(
            Text(contrast.name if first else ""),
            Text(f"{name} (region)" if region else name, "italic" if region else ""),
            number(comparison.outcome(contrast.name).values[name].estimate, comparison.measure),
            *_doubt(comparison, contrast.paired[name], contrast.p[name]),
            style=_style(contrast.p[name]),
        )
    if len(rows) > _MOST_ROWS:
        table.caption = f"{len(rows) - _MOST_ROWS} more rows in table.csv"
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in words:
        table.add_column(heading, overflow="fold", min_width=9)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _doubt(comparison: Comparison, paired: Paired, p: float) -> list[str]:
    measure = comparison.measure
    ends = f"{signed(paired.low, measure)} … {signed(paired.high, measure)}" if not math.isnan(paired.low) else "none"
    return [signed(paired.difference, measure), ends, p_value(p), f"{paired.wins}/{paired.ties}/{paired.losses}"]


def _style(p: float) -> str:
    return "bold green" if p < LEVEL else ""
