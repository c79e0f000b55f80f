"""The report of a comparison: one HTML file with the verdict, differences with their intervals, costs, and all numbers."""

from __future__ import annotations

import math
from pathlib import Path

from medseg_se.evaluation.comparison import COSTS, Comparison, Contrast
from medseg_se.evaluation.comparison_table import COST_COLUMNS
from medseg_se.evaluation.verdict import MEAN, decimals, p_value
from medseg_se.files import write_text
from medseg_se.reports.comparison_figures import COST_AXES, drawn_structures
from medseg_se.reports.forest import Effect, forest_plot
from medseg_se.reports.page import asset, facts_table, page, safe, section, verdict_paragraph, warnings_list
from medseg_se.reports.pareto import Candidate, pareto_plot
from medseg_se.reports.tables import Cell, Column, sortable_table
from medseg_se.version import __version__

_STYLES = ("tables.css", "report.css")


def write_comparison_report(comparison: Comparison, path: Path | str, title: str = "Comparison") -> None:
    """Write the report of a comparison.

    Args:
        comparison: What was found.
        path: The HTML file.
        title: Heading.

    Raises:
        OutputError: The file could not be written.
    """
    costs = [key for key in COST_AXES if any(key in one.cost for one in comparison.outcomes)]
    parts = [
        _head(comparison, title),
        section("Verdict", "".join(map(verdict_paragraph, comparison.verdicts().values())), "verdict"),
        section("Runs", _runs(comparison), "runs"),
        section("Differences", _forests(comparison), "differences"),
        section("What it costs", _paretos(comparison, costs), "costs") if costs else "",
        section("All structures", _structures(comparison), "structures"),
        section("How this was compared", warnings_list(comparison.notes) + facts_table(list(COSTS.items())), "how"),
    ]
    body = "\n".join(part for part in parts if part)
    write_text(path, page(title, body, [asset(name) for name in _STYLES], [asset("tables.js")], wide=True))


def _head(comparison: Comparison, title: str) -> str:
    cases, subjects = len(comparison.cases), comparison.subjects
    of = f" of {subjects} subjects" if subjects != cases else ""
    return (
        f'<h1>{safe(title)}</h1>\n<p class="faint">{safe(_measured(comparison))}; {len(comparison.outcomes)} runs on {cases} '
        f"case{'s' * (cases != 1)}{of}; {safe(comparison.seeds)}; medseg-se {__version__}</p>"
    )


def _measured(comparison: Comparison) -> str:
    unit = f", {comparison.measure.unit}" if comparison.measure.unit else ""
    return f"{comparison.measure.title}{unit}"


def _runs(comparison: Comparison) -> str:
    """Return a table with a row a run."""
    known = [key for key in COST_COLUMNS if any(key in one.cost for one in comparison.outcomes)]
    contrasts, digits = {one.name: one for one in comparison.contrasts}, decimals(comparison.measure)
    columns = [Column("run", "text"), Column("trainings"), Column(_measured(comparison)), *_DOUBT]
    columns += [Column(COST_COLUMNS[key][0], note=COSTS[key]) for key in known]
    rows = []
    for outcome in comparison.outcomes:
        value, contrast = outcome.values[MEAN], contrasts.get(outcome.name)
        sure = _doubt(contrast, MEAN, digits) if contrast else [Cell.text("reference"), *[Cell("")] * (len(_DOUBT) - 1)]
        costs = [
            Cell(COST_COLUMNS[key][1](outcome.cost[key]), outcome.cost[key]) if key in outcome.cost else Cell("–")
            for key in known
        ]
        trainings = Cell(str(len(outcome.repeats)), float(len(outcome.repeats)))
        rows.append([Cell.text(outcome.name), trainings, Cell.of(value.estimate, digits), *sure, *costs])
    return sortable_table(columns, rows, f"{MEAN}, and costs; p-values are corrected")


_DOUBT = (
    Column("difference", note="run − reference, mean over the cases"),
    Column("from", note="lower end of its interval"),
    Column("to", note="upper end"),
    Column("p", note="of the permutation test, corrected"),
    Column("d", note="Cohen's d of the paired differences"),
    Column("wins", note="cases in which the run is better"),
    Column("ties"),
    Column("losses"),
)


def _doubt(contrast: Contrast, name: str, digits: int) -> list[Cell]:
    paired = contrast.paired[name]
    return [
        *(Cell.of(value, digits) for value in (paired.difference, paired.low, paired.high)),
        Cell(safe(p_value(contrast.p[name])), contrast.p[name]),
        Cell.of(paired.effect_size, 2),
        *(Cell(str(count), float(count)) for count in (paired.wins, paired.ties, paired.losses)),
    ]


def _forests(comparison: Comparison) -> str:
    """Return a plot for the mean over foreground, and for structures: of many, those with the smallest p."""
    sides = {"higher": ("reference better", "run better"), "lower": ("run better", "reference better")}
    shown = drawn_structures(comparison)
    plots = [
        forest_plot(
            [_effect(contrast, name) for contrast in comparison.contrasts],
            f"{name}: difference of {_measured(comparison)}",
            sides.get(str(comparison.measure.better), ("", "")),
            decimals(comparison.measure),
        )
        for name in (MEAN, *shown)
    ]
    rest = len(comparison.structures) - len(shown)
    more = f'<p class="faint">{rest} more structures are in the table below.</p>' if rest and shown else ""
    return "".join(plots) + more


def _effect(contrast: Contrast, name: str) -> Effect:
    paired = contrast.paired[name]
    return Effect(contrast.name, paired.difference, paired.low, paired.high, paired.reason or f"p {p_value(contrast.p[name])}")


def _paretos(comparison: Comparison, costs: list[str]) -> str:
    """Return a plot a cost; only where more is better, for the plot knows no other way."""
    if comparison.measure.better != "higher":
        return f"<p>Of {safe(comparison.measure.title)} more is not better: see the table of runs.</p>"
    return "".join(
        pareto_plot(
            [
                Candidate(one.name, one.cost.get(key, math.nan) / COST_AXES[key][1], one.values[MEAN].estimate)
                for one in comparison.outcomes
            ],
            COST_AXES[key][0],
            f"{_measured(comparison)}, {MEAN}",
        )
        for key in costs
    )


def _structures(comparison: Comparison) -> str:
    """Return a table with a row for every run and structure."""
    digits = decimals(comparison.measure)
    columns = [Column("run", "text"), Column("structure", "text"), Column("reference"), Column("run's"), *_DOUBT]
    rows = []
    for contrast in comparison.contrasts:
        for name in comparison.structures:
            sides = [comparison.outcome(side).values[name].estimate for side in (contrast.reference, contrast.name)]
            cells = [Cell.text(contrast.name), Cell.text(name), *(Cell.of(side, digits) for side in sides)]
            rows.append([*cells, *_doubt(contrast, name, digits)])
    return sortable_table(columns, rows, f"{_measured(comparison)} by structure; p-values are corrected")
