"""A case in a report: its scores, three planes with outlines, and its volumes for the 3-D viewer if there is room for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_se.errors import DataError
from medseg_se.evaluation.case import CaseResult
from medseg_se.evaluation.result import Evaluation
from medseg_se.metrics.measures import MEASURES
from medseg_se.reports.case_view import view_case
from medseg_se.reports.embedding import Embedded, embed
from medseg_se.reports.overlays import planes
from medseg_se.reports.page import number, safe
from medseg_se.reports.palette import colours, hexadecimal
from medseg_se.reports.viewer import Turnable, resolution, swatch

_NAMED = 10  # structures beside a picture, the worst ones
_WORDS = 1_000  # bytes for what the viewer says of a case
_BESIDE = ("dice", "nsd", "hd95_mm", "assd_mm")  # measures beside a picture, as far as they were taken


@dataclass(frozen=True)
class Card:
    """A case in a report.

    Attributes:
        html: What is shown of it.
        pictured: Whether planes are shown.
        turnable: What the viewer shows, if anything.
    """

    html: str
    pictured: bool
    turnable: Turnable | None

    @property
    def size(self) -> int:
        """Bytes that it takes in the page, the words of the viewer included."""
        volumes = 0 if self.turnable is None else self.turnable.volumes.size + 2 * len(self.turnable.words.encode()) + 500
        return len(self.html.encode()) + volumes


def mean_dice(case: CaseResult, evaluation: Evaluation) -> float:
    """Return the mean Dice of a case over its counted structures, regions aside; NaN if there is none."""
    counted = [case.dice[name] for name in evaluation.structures.names if not math.isnan(case.dice[name])]
    return float(np.mean(counted)) if counted else math.nan


def ranked(evaluation: Evaluation) -> list[CaseResult]:
    """Return the cases, failed ones first, then by rising mean Dice; those without one last."""

    def place(case: CaseResult) -> tuple[bool, float, str]:
        score = mean_dice(case, evaluation)
        return case.failure is None, math.inf if math.isnan(score) else score, case.id

    return sorted(evaluation.cases, key=place)


def show_case(rank: int, case: CaseResult, evaluation: Evaluation, image: Path | None, most: int) -> Card:
    """Return a case within `most` bytes, as far as it goes: without volumes, or without planes too, where there is no room.

    Args:
        rank: Its place among the worst, from 1.
        case: What was found of it.
        evaluation: The evaluation that it belongs to.
        image: Its scan, if there is one.
        most: Bytes.
    """
    top = _heading(rank, case, evaluation)
    scores = _scores(case, evaluation)

    def card(body: str, turnable: Turnable | None = None, pictured: bool = True) -> Card:
        return Card(f'<article class="case">{top}{body}{scores}</article>\n', pictured, turnable)

    def without_picture(why: str) -> Card:
        return card(f'<p class="faint">{safe(why)}</p>', pictured=False)

    try:
        view = view_case(case, evaluation.structures, image)
    except DataError as error:
        return without_picture(f"Cannot be shown: {error}")
    window, palette = view.window(), colours(evaluation.structures)
    picture = planes(view, list(palette), [hexadecimal(colour) for colour in palette.values()], window)
    about = window.name or view.note
    said = safe(f"{about[:1].upper()}{about[1:]}.")
    flat = card(f'{picture}<p class="faint">{said} Not in the 3-D viewer: no depth, or no room for it.</p>')
    if flat.size > most:
        return without_picture("No picture: there is no room for it within the size of this page.")
    held = embed(view, window, most - flat.size - _WORDS)
    if held is None:
        return flat
    button = f'<button type="button" class="screen" data-open="{rank}">Turn it in 3-D</button>'
    return card(f'{picture}<p class="faint">{said} {button}</p>', _turnable(rank, case, evaluation, said, held))


def _heading(rank: int, case: CaseResult, evaluation: Evaluation) -> str:
    group = f", {safe(case.group)}" if case.group and case.group != case.id else ""
    score = f"mean Dice {number(mean_dice(case, evaluation))}"
    failure = f"<p>{safe(f'Counted as empty: {case.failure}')}</p>" if case.failure else ""
    return f"<h3>{rank}. {safe(case.id)} <small>{score}{group}</small></h3>{failure}"


def _scores(case: CaseResult, evaluation: Evaluation) -> str:
    """Return a legend of the structures with their scores, the worst first."""
    palette = colours(evaluation.structures)
    counted = sorted((name for name in palette if not math.isnan(case.dice[name])), key=lambda name: case.dice[name])
    items = []
    for name in counted[:_NAMED]:
        words = ", ".join(
            f"{MEASURES[measure].title} {number(case.scores[measure][name], digits(measure))}{unit(measure)}"
            for measure in _BESIDE
            if measure in evaluation.measures
        )
        items.append(f'<li>{swatch(palette[name])}{safe(name)}: <span class="faint">{words}</span></li>')
    more = f'<li class="faint">and {len(counted) - _NAMED} better ones</li>' if len(counted) > _NAMED else ""
    return f'<ul class="legend">{"".join(items)}{more}</ul>'


def _turnable(rank: int, case: CaseResult, evaluation: Evaluation, window: str, held: Embedded) -> Turnable:
    title = f"{rank}. {case.id} ({number(mean_dice(case, evaluation))})"
    shown = "Scan and structures" if held.image else "Structures"
    words = f"{case.id}: {shown} {resolution(held)}. {window}"
    return Turnable(rank, title, words, held, empty=case.failure is not None)


def digits(measure: str) -> int:
    """Return how many decimals a measure is given with: three for shares, two for mm and ml."""
    return 2 if MEASURES[measure].unit else 3


def unit(measure: str) -> str:
    """Return the unit of a measure with a space before it, if it has one."""
    return f" {MEASURES[measure].unit}" if MEASURES[measure].unit else ""
