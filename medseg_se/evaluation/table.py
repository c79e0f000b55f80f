"""An evaluation as a table on a terminal of 100 columns, and what a reader has to know of it below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.evaluation.spread import Spread
from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.verdict import MEAN
from medseg_se.metrics.measures import DISTANCES, names

if TYPE_CHECKING:
    from medseg_se.evaluation.result import Evaluation

_BESIDE = {
    "hd95_mm": ("HD95 mm\nmedian", "median", 2),
    "nsd": ("NSD\nmean", "mean", 3),
    "lesion_recall": ("lesion\nrecall", "mean", 3),
}
"""Measure → heading, what is shown of its spread, and with how many decimals, beside Dice."""


def render(evaluation: Evaluation, policy: str, console: Console) -> None:
    """Print the table of structures, then what went wrong, how things are defined, and the policy."""
    console.print(_table(evaluation))
    print_listed(console, "Failed predictions, counted as empty", evaluation.failures, "bold red")
    print_listed(console, "Not judged, because the truth cannot be read", evaluation.unjudged, "bold red")
    print_listed(console, "Resampled onto the grid of the truth", evaluation.resampled, "yellow")
    if evaluation.extra:
        extra = ", ".join(evaluation.extra)
        console.print(Text(f"Predicted without truth, not judged ({len(evaluation.extra)}): {extra}", "yellow"))
    for note in _notes(evaluation):
        console.print(Text(note, "yellow"))
    console.print(Text(" ".join([*evaluation.criteria.sentences(), policy]), "dim"))


def show_number(value: float, decimals: int = 3) -> str:
    """Return a number as tables show it: – where there is none."""
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.{decimals}f}"


def structure_label(evaluation: Evaluation, name: str) -> Text:
    """Return a structure as tables show it; regions stand apart."""
    return Text(f"{name} (region)", "italic") if name in evaluation.structures.regions else Text(name)


def _table(evaluation: Evaluation) -> Table:
    count = len(evaluation.cases)
    table = Table(
        title=f"Dice over {count} case{'' if count == 1 else 's'}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    beside = {measure: shown for measure, shown in _BESIDE.items() if measure in evaluation.measures}
    table.add_column("structure", overflow="fold")
    for heading in ("mean [95 % interval]", "median", *(heading for heading, _, _ in beside.values()), "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst case", overflow="fold", min_width=len("0.000 case"))
    dice = evaluation.summary()
    for name, spread in dice.items():
        others = [
            show_number(getattr(evaluation.summary(measure)[name], what), decimals)
            for measure, (_, what, decimals) in beside.items()
        ]
        table.add_row(
            structure_label(evaluation, name),
            Text(f"{show_number(spread.mean)} {_interval(spread)}"),
            show_number(spread.median),
            *others,
            str(spread.n),
            Text(f"{show_number(spread.worst)} {spread.worst_case or ''}"),
        )
    counted = sum(dice[name].n > 0 for name in evaluation.structures.names)
    table.add_section()
    over = f"{counted} structure{'' if counted == 1 else 's'}"
    mean = f"{show_number(evaluation.mean_foreground)} {_interval(evaluation.foreground_interval)}"
    table.add_row(MEAN, Text(mean), *[""] * (len(beside) + 2), over, style="bold")
    return table


def _interval(spread: Spread | Interval) -> str:
    return f"[{show_number(spread.low)}, {show_number(spread.high)}]" if spread.reason is None else "[no interval]"


def _notes(evaluation: Evaluation) -> list[str]:
    """Return what the figures alone do not say: why intervals are missing, and how often a distance is infinite."""
    notes = []
    reasons: dict[str, list[str]] = {}
    for name, spread in evaluation.summary().items():
        if spread.reason is not None and spread.n:
            reasons.setdefault(spread.reason, []).append(name)
    whole = evaluation.foreground_interval
    if whole.reason is not None and whole.n:
        reasons.setdefault(whole.reason, []).append(MEAN)
    notes += [f"No interval: {reason} ({', '.join(structures)})." for reason, structures in reasons.items()]
    measured = next((measure for measure in evaluation.measures if measure in names(DISTANCES) and measure != "nsd"), None)
    if measured:
        missed = {name: spread for name, spread in evaluation.summary(measured).items() if spread.infinite}
        listed = ", ".join(f"{name} in {spread.infinite} of {spread.n}" for name, spread in missed.items())
        if listed:
            notes.append(f"In the prediction or in the truth alone, so that distances are infinite: {listed}.")
    return notes


def print_listed(console: Console, heading: str, reasons: Mapping[str, str], style: str) -> None:
    """Print cases, each with what is to be said of it, if there are any."""
    if reasons:
        console.print(Text(f"{heading} ({len(reasons)}):", style))
    for name, reason in reasons.items():
        console.print(Text(f"  {name}: {reason}"))
