"""The report of a regression: one HTML file with numbers, plots of agreement and error, and the worst answers first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg_se.errors import UsageError
from medseg_se.evaluation.judged import Judged
from medseg_se.reports.answer_cards import Shown, distance_words
from medseg_se.reports.answer_page import LIMIT, Cards, Contents, check_names, heat_box, links, named, write_page
from medseg_se.reports.forest import signed
from medseg_se.reports.judged_tables import figures, numbers_of_cases, summary_table
from medseg_se.reports.page import facts_table, number, safe, section
from medseg_se.reports.regression_plots import agreement_plot, error_plot, scatter_plot, unlike_note
from medseg_se.version import __version__

if TYPE_CHECKING:
    from medseg_se.analysis.explaining import Explainer

_HOW_TO = (
    "Pictures are shown without what raised and lowered the answers: that needs the model. "
    "`medseg-se report FOLDER --checkpoint CHECKPOINT` lays Grad-CAM over them."
)
_GRAD_CAM = (
    "Colours show Grad-CAM: orange where the last maps of the network raise the number, blue where they lower it, brought to "
    "the scan's own voxels. Planes meet where that is strongest. Maps are coarse, and show where evidence lies rather than "
    "why it counts."
)


def write_regression_report(
    judged: Judged,
    path: Path | str,
    images: Mapping[str, tuple[Path, ...]],
    explainer: Explainer | None = None,
    cases: int = 20,
    limit: int = LIMIT,
    title: str = "Evaluation",
) -> Contents:
    """Write the report of a regression; the largest errors come first.

    Args:
        judged: What was found.
        path: The HTML file to write.
        images: Case → its files, as far as they are known.
        explainer: The model that answered; without it scans are shown alone.
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
    check_names(explainer, judged.names, "regression")
    order = ranked(judged)
    shown = [_shown(judged, row, images) for row in order[:cases]]
    plots = _plots(judged)

    def body(cards: Cards) -> str:
        return _body(judged, title, cards, plots, order, len(shown), explainer)

    return write_page(path, title, [shown], body, explainer, limit, both=True)


def ranked(judged: Judged) -> list[int]:
    """Return the numbers of the answered cases by falling error; of several numbers, in standard deviations of the truth."""
    answered = np.flatnonzero(judged.answered)
    error = np.abs(judged.answers - judged.truth)[answered]
    if error.shape[1] > 1:
        spread = judged.truth.std(axis=0)
        error = error / np.where(spread > 0, spread, 1.0)
    worst = dict(zip(answered.tolist(), error.mean(axis=1).tolist(), strict=True))
    return sorted(worst, key=lambda row: (-worst[row], judged.ids[row]))


def _shown(judged: Judged, row: int, images: Mapping[str, tuple[Path, ...]]) -> Shown:
    parts = []
    for name, truth, said in zip(judged.names, judged.truth[row].tolist(), judged.answers[row].tolist(), strict=True):
        parts.append(f"{name} {number(said, 1)}, true {number(truth, 1)} ({signed(said - truth, 1)})")
    doubt = distance_words(float(judged.distance[row]), bool(judged.unlike[row]))
    heading = safe("; ".join([*parts, *([doubt] if doubt else [])]))
    views = tuple((place, name if len(judged.names) > 1 else "") for place, name in enumerate(judged.names))
    case = judged.ids[row]
    return Shown(case, images.get(case, ()), heading, "", views)


def _plots(judged: Judged) -> str:
    rows = np.flatnonzero(judged.answered)
    if not len(rows):
        return '<p class="faint">No case has an answer.</p>'
    ids, unlike, parts = [judged.ids[row] for row in rows.tolist()], judged.unlike[rows], []
    for place, name in enumerate(judged.names):
        truth, answers = judged.truth[rows, place], judged.answers[rows, place]
        drawn = "".join(plot(name, ids, truth, answers, unlike) for plot in (scatter_plot, agreement_plot, error_plot))
        parts.append(f'<div class="panels">{drawn}</div>')
    return "".join(parts) + unlike_note(unlike)


def _body(
    judged: Judged, title: str, cards: Cards, plots: str, order: Sequence[int], shown: int, explainer: Explainer | None
) -> str:
    count, missing = len(judged.ids), np.flatnonzero(~judged.answered).tolist()
    warned = named("without a prediction, and not in the numbers", judged.failures, True)
    warned += named("predicted without truth, and not judged", dict.fromkeys(judged.extra, ""), False)
    odd = [judged.ids[row] for row in np.flatnonzero(judged.unlike).tolist()]
    warned += named("unlike the scans of the training, as the model itself says", dict.fromkeys(odd, ""), False)
    sections = {
        "numbers": ("Numbers", "Numbers", summary_table(judged, "Number", [len(order)] * len(judged.names))),
        "plots": ("Agreement and errors", "Plots", plots),
        "cases": ("Answers, the largest errors first", "Worst cases", _cards(cards, shown, explainer)),
        "table": ("All cases", "All cases", numbers_of_cases(judged, [*missing, *order])),
        "how": ("How this was measured", "How", facts_table(_how(judged, cards))),
    }
    navigation = links({name: words for name, (_, words, _) in sections.items()})
    head = (
        f'<h1>{safe(title)}</h1>\n<p class="faint">{count} case{"s" * (count != 1)}, {safe(", ".join(judged.names))}; '
        f"medseg-se {__version__}</p>\n{figures(judged)}{warned}{navigation}"
    )
    return "\n".join([head, *(section(heading, content, name) for name, (heading, _, content) in sections.items())])


def _cards(cards: Cards, shown: int, explainer: Explainer | None) -> str:
    about = _GRAD_CAM if explainer is not None else _HOW_TO
    left = f" {cards.left[0]} more did not fit into the page." if cards.left[0] else ""
    box = heat_box() if explainer is not None and shown else ""
    return f'<p class="faint">{safe(about)}{left} All others are in the table below.</p>{box}{cards.html[0]}'


def _how(judged: Judged, cards: Cards) -> list[tuple[str, str]]:
    size = f"{cards.pictured} cases are shown in pictures, shrunk; numbers are never computed from what is embedded."
    return [*judged.notes, ("size", size), ("not for diagnosis", "Made for judging software.")]
