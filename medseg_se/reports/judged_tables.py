"""The tables of the reports of classifications and regressions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.reports.answer_cards import distance_words
from medseg_se.reports.forest import signed
from medseg_se.reports.page import number, safe
from medseg_se.reports.tables import Cell, Column, sortable_table

_ROWS = 2000  # cases in the table, the worst ones
_FEW = 12  # classes up to which the table of cases has a column for each


def figures(judged: Judged) -> str:
    """Return what is said of all cases, in large numbers."""
    parts = []
    for title, found in judged.figures.items():
        small = f'<span class="faint">{safe(title)}{_interval(found)}</span>'
        parts.append(f'<p><span class="large">{number(found.estimate)}</span>{small}</p>')
    return f'<div class="figures">{"".join(parts)}</div>{_reasons(judged.figures)}'


def _reasons(found: Mapping[str, Interval]) -> str:
    """Return why some have no interval."""
    why = "; ".join(f"{name}: {one.reason}" for name, one in found.items() if one.reason)
    return f'<p class="faint">No interval of {safe(why)}.</p>' if why else ""


def interval_words(found: Interval | None) -> str:
    """Return an estimate with its interval, as far as there is one."""
    return "" if found is None else f"{number(found.estimate)}{_interval(found)}"


def _interval(found: Interval) -> str:
    return f" [{number(found.low)}, {number(found.high)}]" if math.isfinite(found.low) else ""


def summary_table(judged: Judged, heading: str, counts: Sequence[int]) -> str:
    """Return a table with a row a class, or a number: what was measured of it with 95 % intervals.

    Args:
        judged: The evaluation.
        heading: What a row is.
        counts: Cases of each row.
    """
    measures = list(dict.fromkeys(measure for found in judged.by_name.values() for measure in found))
    columns = [Column(heading, "text"), Column("n"), *(Column(one, note="with its 95 % interval") for one in measures)]
    rows = []
    for name, count in zip(judged.names, counts, strict=True):
        found = judged.by_name[name]
        cells = [_cell(found[one]) if one in found else Cell("–") for one in measures]
        rows.append([Cell.text(name), Cell.of(count, 0), *cells])
    each = {f"{measure} of {name}": one for name, found in judged.by_name.items() for measure, one in found.items()}
    return sortable_table(columns, rows, "Estimates with 95 % intervals") + _reasons(each)


def pairs_table(judged: Judged) -> str:
    """Return the area under the ROC curve of every two classes, the hardest pair first; nothing of two classes alone."""
    if len(judged.pairs) < 2:
        return ""
    order = sorted(judged.pairs, key=lambda pair: (math.isnan(judged.pairs[pair].estimate), judged.pairs[pair].estimate))
    rows = [[Cell.text(pair), Cell.of(judged.pairs[pair].n, 0), _cell(judged.pairs[pair])] for pair in order]
    columns = [Column("Classes", "text"), Column("n"), Column("AUC", note="with its 95 % interval")]
    return sortable_table(columns, rows, "Two classes against each other, cases of others left out") + _reasons(judged.pairs)


def _cell(found: Interval) -> Cell:
    interval = f"[{number(found.low)}, {number(found.high)}]" if math.isfinite(found.low) else ""
    return Cell.of(found.estimate, 3, interval)


def classes_of_cases(judged: Judged, order: Sequence[int]) -> str:
    """Return the table with a row a case: true and chosen class, and probabilities.

    Args:
        judged: The evaluation.
        order: Numbers of the cases, the worst first.
    """
    each = judged.names if len(judged.names) <= _FEW else ()
    columns = [
        *_first(judged),
        Column("true", "text"),
        Column("answer", "text"),
        Column("right", "text"),
        Column("probability", note="of the answer"),
        *(Column(name, note="probability") for name in each),
    ]
    rows = []
    chosen = judged.chosen
    for row in order[:_ROWS]:
        said, truth, answer = judged.answers[row], int(judged.truth[row]), int(chosen[row])
        known = answer >= 0
        rows.append(
            [
                *_names(judged, row),
                Cell.text(judged.names[truth]),
                Cell.text(judged.names[answer] if known else "none"),
                Cell.text("yes" if answer == truth else "no"),
                Cell.of(float(said[answer]) if known else math.nan),
                *(Cell.of(float(said[place])) for place in range(len(each))),
            ]
        )
    return sortable_table(columns, rows, _caption(len(judged.ids), len(rows)))


def numbers_of_cases(judged: Judged, order: Sequence[int]) -> str:
    """Return the table with a row a case: true and predicted numbers, and errors; arguments as `classes_of_cases`."""
    columns = _first(judged)
    for name in judged.names:
        columns += [Column(f"true {name}"), Column(f"predicted {name}"), Column(f"error of {name}", note="predicted − true")]
    rows = []
    for row in order[:_ROWS]:
        cells = _names(judged, row)
        for truth, said in zip(judged.truth[row].tolist(), judged.answers[row].tolist(), strict=True):
            cells += [Cell.of(truth, 2), Cell.of(said, 2), Cell(signed(said - truth, 2), said - truth)]
        rows.append(cells)
    return sortable_table(columns, rows, _caption(len(judged.ids), len(rows)))


def _first(judged: Judged) -> list[Column]:
    columns = [Column("Case", "text"), *([Column("Group", "text")] if judged.grouped else [])]
    return [*columns, *([Column("unlike", "text", "unlike the scans of the training")] if judged.unlike.any() else [])]


def _names(judged: Judged, row: int) -> list[Cell]:
    cells = [Cell.text(judged.ids[row]), *([Cell.text(judged.groups[row])] if judged.grouped else [])]
    doubt = distance_words(float(judged.distance[row]), bool(judged.unlike[row]))
    return [*cells, *([Cell.text("yes" if doubt else "no")] if judged.unlike.any() else [])]


def _caption(count: int, shown: int) -> str:
    left = f"; {count - shown} better ones are left out" if count > shown else ""
    return f"The worst first; evaluation.csv has every case{left}"
