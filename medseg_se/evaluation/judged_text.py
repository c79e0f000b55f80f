"""Judged answers as tables on a terminal, and what a reader has to know of them below."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.table import print_listed, show_number

SHOWN = 12
"""Classes of which the confusions are printed; of more, evaluation.json holds them."""


def render_judged(judged: Judged, console: Console) -> None:
    """Print what is said of all cases and of every class or number, the confusions, and what went wrong."""
    count = len(judged.ids)
    title = f"{'Classes' if judged.is_classification else 'Numbers'} of {count} scan{'' if count == 1 else 's'}"
    if judged.figures:
        console.print(_figures(judged.figures, title))
    if judged.is_classification or len(judged.names) > 1:
        console.print(_by_name(judged))
    if judged.is_classification:
        if len(judged.names) > 2:
            console.print(_figures(judged.pairs, "AUC of pairs"))
        if len(judged.names) <= SHOWN:
            console.print(_confusion(judged))
    print_listed(console, "Without an answer", judged.failures, "bold red")
    if judged.unlike.any():
        listed = [case for case, flag in zip(judged.ids, judged.unlike, strict=True) if flag]
        console.print(Text(f"Unlike the scans of the training ({len(listed)}): {_some(listed)}", "yellow"))
    if judged.extra:
        console.print(
            Text(f"Answered, but of unknown truth, not judged ({len(judged.extra)}): {_some(judged.extra)}", "yellow")
        )
    absent = [
        name for number, name in enumerate(judged.names) if judged.is_classification and not (judged.truth == number).any()
    ]
    if absent:
        console.print(Text(f"No case is of the class {', '.join(absent)}: its recall is not counted.", "yellow"))
    console.print(Text(" ".join(words for _, words in judged.notes), "dim"))


def interval_text(interval: Interval) -> str:
    """Return an estimate with its interval, as tables show it."""
    if not interval.n and math.isnan(interval.estimate):
        return "not counted"
    ends = f"[{show_number(interval.low)}, {show_number(interval.high)}]" if interval.reason is None else "[no interval]"
    return f"{show_number(interval.estimate)} {ends}"


def _figures(figures: Mapping[str, Interval], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("[95 % interval]", justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    for name, interval in figures.items():
        table.add_row(Text(name), Text(interval_text(interval)), str(interval.n))
    return table


def _by_name(judged: Judged) -> Table:
    columns = list(next(iter(judged.by_name.values())))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("class" if judged.is_classification else "number", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for name, figures in judged.by_name.items():
        table.add_row(Text(name), *(Text(interval_text(figures[column]).replace(" ", "\n", 1)) for column in columns))
    return table


def _confusion(judged: Judged) -> Table:
    table = Table(
        title="true class (rows) taken for (columns)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    unanswered = judged.confusion[:, -1].any()
    for name in (*judged.names, *(["no answer"] if unanswered else [])):
        table.add_column(Text(name), justify="right", overflow="fold")
    for number, (name, row) in enumerate(zip(judged.names, judged.confusion, strict=True)):
        cells = [Text(str(count), "bold" if place == number else "") for place, count in enumerate(row.tolist())]
        table.add_row(Text(name), *(cells if unanswered else cells[:-1]))
    return table


def _some(names: tuple[str, ...] | list[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
