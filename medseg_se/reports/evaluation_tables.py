"""The tables and plots of an evaluation's report."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medseg_se.evaluation.result import Evaluation
from medseg_se.evaluation.spread import Spread
from medseg_se.metrics.measures import MEASURES
from medseg_se.reports.case_cards import digits, mean_dice, ranked, unit
from medseg_se.reports.page import number, safe
from medseg_se.reports.palette import Colour
from medseg_se.reports.plots import Distribution, distribution_plot, note
from medseg_se.reports.tables import Cell, Column, sortable_table
from medseg_se.reports.viewer import swatch

_FIRST = ("dice", "nsd", "hd95_mm", "assd_mm", "bias_ml")  # measures that come before the others
_FEW = 12  # structures up to which the table of cases has a column for each
_ROWS = 2000  # cases in the table, the worst ones


def structures_table(evaluation: Evaluation, palette: Mapping[str, Colour]) -> str:
    """Return the table with a row a structure or region: Dice in detail, then the mean of every other measure."""
    others = [name for name in _in_order(evaluation) if name != "dice"]
    dice, further = evaluation.summary("dice"), {name: evaluation.summary(name) for name in others}
    columns = [
        Column("Structure", "text"),
        Column("n", note="cases in which it is counted"),
        Column("Dice", note="mean with its 95 % interval"),
        Column("SD", note="of Dice"),
        Column("median", note="of Dice"),
        Column("worst", note="lowest Dice"),
        Column("worst case", "text", "with the lowest Dice"),
        *(Column(MEASURES[name].title + unit(name), note="mean with its 95 % interval") for name in others),
    ]
    rows = []
    for name, spread in dice.items():
        if not spread.n:
            continue
        colour = swatch(palette[name]) if name in palette else ""
        region = " <small>region</small>" if name in evaluation.structures.regions else ""
        rows.append(
            [
                Cell(f"{colour}{safe(name)}{region}", name),
                Cell.of(spread.n, 0),
                _mean("dice", spread),
                *(Cell.of(value) for value in (spread.sd, spread.median, spread.worst)),
                Cell.text(spread.worst_case or ""),
                *(_mean(measure, further[measure][name]) for measure in others),
            ]
        )
    reasons = dict.fromkeys(spread.reason for spread in dice.values() if spread.reason and spread.n)
    words = f'<p class="faint">No interval: {safe("; ".join(reasons))}.</p>' if reasons else ""
    absent = [name for name, spread in dice.items() if not spread.n]
    words += f'<p class="faint">Counted in no case: {safe(", ".join(absent))}.</p>' if absent else ""
    return sortable_table(columns, rows, "Means over the cases in which a structure is counted, with 95 % intervals") + words


def _mean(measure: str, spread: Spread) -> Cell:
    """Return a mean with its interval; where values are infinite, the median says more."""
    places = digits(measure)
    if spread.infinite:
        words = f"median {number(spread.median, places)}, {spread.infinite} infinite"
        return Cell(f"{number(spread.mean, places)} <small>{words}</small>", spread.mean)
    interval = f"[{number(spread.low, places)}, {number(spread.high, places)}]" if math.isfinite(spread.low) else ""
    return Cell.of(spread.mean, places, interval)


def distributions(evaluation: Evaluation, palette: Mapping[str, Colour]) -> str:
    """Return a plot a measure that has a better and a worse; that of Dice is open."""
    plots = []
    for measure in _in_order(evaluation):
        kind = MEASURES[measure]
        if kind.better is None:
            continue
        rows = [
            Distribution(
                name,
                palette.get(name),
                {case.id: case.scores[measure][name] for case in evaluation.cases},
                spread.mean,
                spread.low,
                spread.high,
            )
            for name, spread in evaluation.summary(measure).items()
            if spread.n
        ]
        better = {"higher": "higher is better", "lower": "lower is better", "zero": "0 is best"}[kind.better]
        title = f"{kind.title}{f' in {kind.unit}' if kind.unit else ''}"
        plot = distribution_plot(rows, title, kind.limits, digits(measure))
        opened = " open" if measure == "dice" else ""
        words = f'<p class="faint">{safe(note(rows))}</p>' if measure == "dice" else ""
        summary = f"{kind.title[:1].upper()}{kind.title[1:]}, {better}"
        plots.append(f'<details class="measure"{opened}><summary>{safe(summary)}</summary>{words}{plot}</details>')
    return "\n".join(plots)


def cases_table(evaluation: Evaluation) -> str:
    """Return the table with a row a case, the worst first: Dice of every structure, or of the worst where there are many."""
    names = evaluation.structures.names
    each = names if len(names) <= _FEW else ()
    grouped = any(case.group and case.group != case.id for case in evaluation.cases)
    failed = bool(evaluation.failures)
    columns = [
        Column("Case", "text"),
        *([Column("Group", "text")] if grouped else []),
        Column("mean Dice", note="of its counted structures"),
        Column("worst structure", "text"),
        Column("its Dice"),
        *(Column(name, note="Dice") for name in each),
        *([Column("Failure", "text")] if failed else []),
    ]
    rows = []
    for case in ranked(evaluation)[:_ROWS]:
        counted = [name for name in names if not math.isnan(case.dice[name])]
        worst = min(counted, key=lambda name: case.dice[name], default=None)
        rows.append(
            [
                Cell.text(case.id),
                *([Cell.text(case.group or "")] if grouped else []),
                Cell.of(mean_dice(case, evaluation)),
                Cell.text(worst or ""),
                Cell.of(case.dice[worst] if worst else math.nan),
                *(Cell.of(case.dice[name]) for name in each),
                *([Cell.text(case.failure or "")] if failed else []),
            ]
        )
    left = len(evaluation.cases) - len(rows)
    more = f"; {left} better ones are left out" if left else ""
    return sortable_table(columns, rows, f"Dice by case; evaluation.csv has every measure of every structure{more}")


def _in_order(evaluation: Evaluation) -> list[str]:
    """Return the measures, those that are looked at most first."""
    first = [name for name in _FIRST if name in evaluation.measures]
    return [*first, *(name for name in evaluation.measures if name not in first)]
