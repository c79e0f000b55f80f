"""The report of a classification: one HTML file with numbers, curves, and the worst answers first, with what spoke for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg_se.data.datalist import Case
from medseg_se.errors import UsageError
from medseg_se.evaluation.class_figures import ranking_scores
from medseg_se.evaluation.judged import Judged
from medseg_se.reports.answer_cards import Shown, distance_words, probability_bars
from medseg_se.reports.answer_page import LIMIT, Cards, Contents, check_names, heat_box, links, named, write_page
from medseg_se.reports.classification_plots import confusion_table, reliability_plot, roc_plot
from medseg_se.reports.judged_tables import classes_of_cases, figures, interval_words, pairs_table, summary_table
from medseg_se.reports.page import facts_table, number, safe, section
from medseg_se.version import __version__

if TYPE_CHECKING:
    from medseg_se.analysis.explaining import ClassGates, Explainer

_A_CLASS = 16  # scans of a class on which gates are looked at
_HOW_TO = (
    "Pictures are shown without what speaks for the answers: that needs the model. "
    "`medseg-se report FOLDER --checkpoint CHECKPOINT` lays Grad-CAM over them, and sums up the gates of its attention blocks."
)
_GRAD_CAM = (
    "Colours show Grad-CAM: where the last maps of the network speak for a class, brought to the picture's own pixels; all "
    "colours of a case are to one scale. Maps are coarse, and show where evidence lies rather than why it counts."
)


def write_classification_report(
    judged: Judged,
    path: Path | str,
    images: Mapping[str, tuple[Path, ...]],
    explainer: Explainer | None = None,
    cases: int = 20,
    limit: int = LIMIT,
    title: str = "Evaluation",
) -> Contents:
    """Write the report of a classification; the most confident errors come first.

    Args:
        judged: What was found.
        path: The HTML file to write.
        images: Case → its files, as far as they are known.
        explainer: The model that answered; without it pictures are shown alone.
        cases: How many are shown in pictures.
        limit: Bytes that the page may take; pictures that do not fit are left out.
        title: Heading.

    Raises:
        UsageError: The number of cases or the limit makes no sense.
        DataError: The model is another one than that which was judged.
        OutputError: The file could not be written.
    """
    if cases < 0:
        raise UsageError(f"Expected 0 or more cases, but got {cases}.")
    check_names(explainer, judged.names, "classification")
    order = ranked(judged)
    worst = [_shown(judged, row, images, explainer) for row in order[:cases]]
    odd = [row for row in np.flatnonzero(judged.unlike).tolist() if row not in set(order[:cases])]
    unlike = [_shown(judged, row, images, explainer) for row in odd[:cases]]
    gates = _gates(judged, images, explainer)
    plots = _plots(judged)

    def body(cards: Cards) -> str:
        return _body(judged, title, cards, plots, gates, len(worst), len(odd), explainer)

    return write_page(path, title, [worst, unlike], body, explainer, limit)


def ranked(judged: Judged) -> list[int]:
    """Return the numbers of the answered cases: errors by falling probability of the chosen class, then the least sure ones."""
    chosen, said = judged.chosen, judged.answers
    answered = np.flatnonzero(chosen >= 0)
    return sorted(
        answered.tolist(),
        key=lambda row: (
            chosen[row] == judged.truth[row],
            -said[row, chosen[row]] if chosen[row] != judged.truth[row] else said[row, chosen[row]],
            judged.ids[row],
        ),
    )


def _shown(judged: Judged, row: int, images: Mapping[str, tuple[Path, ...]], explainer: Explainer | None) -> Shown:
    names, truth, chosen = judged.names, int(judged.truth[row]), int(judged.chosen[row])
    said = judged.answers[row]
    words = f"{safe(names[chosen])} with {number(float(said[chosen]))}"
    words += f", true: {safe(names[truth])}" if chosen != truth else ", right"
    doubt = distance_words(float(judged.distance[row]), bool(judged.unlike[row]))
    heading = words + (f"; {safe(doubt)}" if doubt else "")
    views = [(chosen, f"for {names[chosen]}")]
    if chosen != truth:
        views.append((truth, f"for {names[truth]}, which is true"))
    case = judged.ids[row]
    return Shown(case, images.get(case, ()), heading, probability_bars(names, said, truth), tuple(views))


def _gates(judged: Judged, images: Mapping[str, tuple[Path, ...]], explainer: Explainer | None) -> ClassGates | None:
    """Return what the gates do on the first scans of each true class, as far as they can be read."""
    if explainer is None or not explainer.has_gates:
        return None
    chosen: list[tuple[Case, int]] = []
    for label in range(len(judged.names)):
        members = [judged.ids[row] for row in np.flatnonzero(judged.truth == label).tolist()]
        chosen += [(Case(name, images[name]), label) for name in members if images.get(name)][:_A_CLASS]
    return explainer.gates([case for case, _ in chosen], [label for _, label in chosen])


def _attention(gates: ClassGates) -> str:
    from medseg_se.reports.class_gates import gates_section  # which needs torch

    return gates_section(gates)


def _plots(judged: Judged) -> tuple[str, str]:
    """Return the ROC curves, of the cases that the areas are of, and the reliability plot."""
    if not judged.answered.any():
        return '<p class="faint">No case has an answer.</p>', ""
    areas = [f"AUC {interval_words(judged.by_name[name].get('AUC'))}" for name in judged.names]
    roc = roc_plot(judged.names, judged.truth, ranking_scores(judged.truth, judged.answers), areas)
    return roc, reliability_plot(judged.reliability) if judged.reliability is not None else ""


def _body(
    judged: Judged,
    title: str,
    cards: Cards,
    plots: tuple[str, str],
    gates: ClassGates | None,
    worst: int,
    odd: int,
    explainer: Explainer | None,
) -> str:
    roc, reliability = plots
    parts = {
        "classes": section(
            "Classes",
            summary_table(judged, "Class", np.bincount(judged.truth, minlength=len(judged.names)).tolist()),
            "classes",
        ),
        "confusion": section("What is taken for what", confusion_table(judged.names, judged.confusion), "confusion"),
        "curves": section(
            "ROC curves, and whether probabilities mean what they say",
            f'<div class="panels">{roc}{reliability}</div>{pairs_table(judged)}',
            "curves",
        ),
        "cases": section("Answers, the most confident errors first", _cards(cards, worst, explainer), "cases"),
        "unlike": section("Unlike the scans of the training", _unlike(cards, odd), "unlike") if odd else "",
        "gates": "" if gates is None else section("Attention by class", _attention(gates), "gates"),
        "table": section(
            "All cases", classes_of_cases(judged, [*np.flatnonzero(judged.chosen < 0).tolist(), *ranked(judged)]), "table"
        ),
        "how": section("How this was measured", facts_table(_how(judged, cards)), "how"),
    }
    words = {
        "classes": "Classes",
        "confusion": "Confusion",
        "curves": "Curves",
        "cases": "Worst cases",
        "unlike": "Unlike the training",
        "gates": "Attention",
        "table": "All cases",
        "how": "How",
    }
    head = _head(judged, title, links({name: words[name] for name, part in parts.items() if part}))
    return "\n".join([head, *(part for part in parts.values() if part)])


def _head(judged: Judged, title: str, navigation: str) -> str:
    count, classes = len(judged.ids), len(judged.names)
    warned = named("without a prediction, each counted as an error", judged.failures, True)
    warned += named("predicted without truth, and not judged", dict.fromkeys(judged.extra, ""), False)
    return (
        f'<h1>{safe(title)}</h1>\n<p class="faint">{count} case{"s" * (count != 1)}, {classes} classes; '
        f"medseg-se {__version__}</p>\n{figures(judged)}{warned}{navigation}"
    )


def _cards(cards: Cards, worst: int, explainer: Explainer | None) -> str:
    about = _GRAD_CAM if explainer is not None else _HOW_TO
    left = f" {cards.left[0]} more did not fit into the page." if cards.left[0] else ""
    box = heat_box() if explainer is not None and worst else ""
    return (
        '<p class="faint">Wrong answers by falling probability, then right ones, the least sure first. '
        f"{safe(about)}{left} All others are in the table below.</p>{box}{cards.html[0]}"
    )


def _unlike(cards: Cards, odd: int) -> str:
    left = odd - cards.html[1].count("<article")
    more = f" {left} more are in the table below." if left else ""
    return (
        '<p class="faint">The model itself says of these that they are unlike what it was trained on: their answers are not to '
        f"be believed, right or wrong. Those among the worst cases above are not repeated.{more}</p>{cards.html[1]}"
    )


def _how(judged: Judged, cards: Cards) -> Sequence[tuple[str, str]]:
    size = f"{cards.pictured} cases are shown in pictures, shrunk; numbers are never computed from what is embedded."
    return [*judged.notes, ("size", size), ("not for diagnosis", "Made for judging software.")]
