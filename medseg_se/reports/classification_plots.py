"""The plots of a classification's report: ROC curves, reliability, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.evaluation.statistics.calibration import Reliability
from medseg_se.reports.page import number, safe
from medseg_se.reports.palette import class_colours
from medseg_se.reports.panel import UNIT, Panel

Array = npt.NDArray[Any]

_BIN = "var(--accent)"


def roc_points(truth: Array, scores: Array) -> tuple[list[float], list[float]]:
    """Return the corners of a ROC curve: shares of false and of true alarms, from no alarm to all; ties are one step.

    Args:
        truth: Whether a case is positive, (n,); both kinds occur.
        scores: Its score, (n,).
    """
    order = np.argsort(-scores, kind="stable")
    positive = truth[order].astype(np.int64)
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.concatenate([[0], np.cumsum(positive)[ends]])
    alarms = np.concatenate([[0], np.cumsum(1 - positive)[ends]])
    # A point between two in one line with it adds nothing.
    first, second = np.diff(alarms), np.diff(hits)
    straight = first[:-1] * second[1:] == second[:-1] * first[1:]
    kept = np.concatenate([[True], ~straight, [True]])
    return (alarms[kept] / max(1, alarms[-1])).tolist(), (hits[kept] / max(1, hits[-1])).tolist()


def roc_plot(names: Sequence[str], truth: Array, probabilities: Array, areas: Sequence[str]) -> str:
    """Return the ROC curve of each class against all others; of two classes, that of the second.

    Args:
        names: Of the classes.
        truth: Class of each case, (n,).
        probabilities: (n, C).
        areas: What is said of the area under each curve.
    """
    panel = Panel(
        UNIT,
        UNIT,
        ("false alarms: share of the other classes that is called so", "recognised: share of the class"),
        "ROC curves, each class against all others",
    )
    marks, keys = [panel.curve([0, 1], [0, 1], "var(--faint)", "chance", "chance")], []
    for place, (name, colour, area) in enumerate(zip(names, class_colours(len(names)), areas, strict=True)):
        positive = truth == place
        if not 0 < positive.sum() < len(truth) or (len(names) == 2 and place == 0):
            continue
        marks.append(panel.curve(*roc_points(positive, probabilities[:, place]), colour, f"{name}: {area}"))
        keys.append(key(colour, name, area))
    if not keys:
        return '<p class="faint">No ROC curve: it needs cases of two classes.</p>'
    return f'<div>{panel.draw(marks)}<ul class="keys">{"".join(keys)}</ul></div>'


def key(colour: str, name: str, words: str) -> str:
    """Return an entry of a legend."""
    swatch = f'<span class="swatch" style="background:{colour}"></span>'
    return f'<li>{swatch}{safe(name)} <span class="faint">{safe(words)}</span></li>'


def reliability_plot(found: Reliability) -> str:
    """Return what was said against what happened: a point a bin, and behind it the share of the cases that it holds."""
    panel = Panel(
        UNIT,
        UNIT,
        ("said: probability of the chosen class", "happened: share that was right"),
        "Reliability: how often answers of a given probability are right",
    )
    total = max(1, int(found.counts.sum()))
    marks = []
    for place in np.flatnonzero(found.counts).tolist():
        count, low, high = int(found.counts[place]), float(found.edges[place]), float(found.edges[place + 1])
        marks.append(panel.bar(low, high, count / total, "var(--faint)", f"{count} cases from {low:.2f} to {high:.2f}"))
    marks.append(panel.curve([0, 1], [0, 1], "var(--faint)", "said is what happened", "chance"))
    for place in np.flatnonzero(found.counts).tolist():
        said, happened, count = float(found.said[place]), float(found.happened[place]), int(found.counts[place])
        words = f"said {number(said)}, happened {number(happened)}, {count} cases"
        marks.append(panel.dot(said, happened, _BIN, words, 3 + 6 * (count / total) ** 0.5))
    return (
        f'<div>{panel.draw(marks)}<p class="faint">Points are bins of equal width, larger where they hold more cases; bars '
        "tell which share of the cases. On the dashed line a probability means what it says.</p></div>"
    )


def confusion_table(names: Sequence[str], counts: Array) -> str:
    """Return the confusion matrix: a row a true class, a column a chosen one, the last for cases without an answer.

    Args:
        names: Of the classes.
        counts: (C, C + 1).
    """
    unanswered = bool(counts[:, -1].any())
    shown = [*names, *(["no answer"] if unanswered else [])]
    heads = "".join(f'<th scope="col">{safe(name)}</th>' for name in shown)
    rows = []
    for place, name in enumerate(names):
        total = int(counts[place].sum())
        cells = []
        for column in range(len(shown)):
            count = int(counts[place, column])
            share = count / total if total else 0.0
            kind = ' class="right"' if column == place else ""
            percent = f"<small>{100 * share:.0f} %</small>" if total else ""
            cells.append(f'<td{kind} style="--share:{share:.3f}">{count}{percent}</td>')
        rows.append(f'<tr><th scope="row">{safe(name)} <small>{total}</small></th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion">'
        "<caption>Rows: what is true, with the number of cases. Columns: what was answered. Shares are of the row.</caption>"
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
