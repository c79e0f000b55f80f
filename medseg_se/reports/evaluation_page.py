"""The report of an evaluation: one HTML file with numbers, plots, the worst cases in pictures, and a 3-D viewer inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from medseg_se.errors import UsageError
from medseg_se.evaluation.result import POLICY, Evaluation
from medseg_se.files import write_text
from medseg_se.reports.case_cards import Card, ranked, show_case
from medseg_se.reports.evaluation_tables import cases_table, distributions, structures_table
from medseg_se.reports.page import Facts, asset, facts_table, number, page, safe, section, warnings_list
from medseg_se.reports.palette import colours
from medseg_se.reports.viewer import viewer, viewer_scripts
from medseg_se.version import __version__

LIMIT = 15_000_000
"""Bytes that a page may take: what goes through mail and opens on a telephone."""
_STYLES = ("tables.css", "overlays.css", "report.css", "viewer.css")
_LISTED = 20  # failures and the like, named one by one
_SPARE = 4_000  # bytes for the words around the cases


@dataclass(frozen=True)
class Contents:
    """What a report holds.

    Attributes:
        path: The HTML file.
        size: Its bytes.
        pictured: Cases shown in three planes.
        turnable: Of these, in the 3-D viewer.
    """

    path: Path
    size: int
    pictured: int
    turnable: int


def write_evaluation_report(
    evaluation: Evaluation,
    path: Path | str,
    images: Mapping[str, Path] | None = None,
    cases: int = 20,
    limit: int = LIMIT,
    title: str = "Evaluation",
) -> Contents:
    """Write the report of an evaluation; the worst cases come first, and pictures and volumes stay within the limit.

    Args:
        evaluation: What was found.
        path: The HTML file to write.
        images: Case → its scan. Cases without one show their structures alone.
        cases: How many are shown in pictures, the worst ones.
        limit: Bytes that the page may take. Tables and plots are not shortened for it; volumes are coarsened, then left out.
        title: Heading.

    Raises:
        UsageError: The number of cases or the limit makes no sense.
        OutputError: The file could not be written.
    """
    if cases < 0 or limit < 1:
        raise UsageError(f"Expected 0 or more cases within at least one byte, but got {cases} and {limit}.")
    tables = _tables(evaluation)
    bare = _page(evaluation, title, tables, [], limit, with_viewer=True)
    room, cards = limit - len(bare.encode()) - _SPARE, []
    wanted = ranked(evaluation)[:cases]
    for place, case in enumerate(wanted):
        share = room // (len(wanted) - place)
        card = show_case(place + 1, case, evaluation, (images or {}).get(case.id), share)
        if card.size > room:
            break
        cards.append(card)
        room -= card.size
    text = _page(evaluation, title, tables, cards, limit, with_viewer=any(card.turnable for card in cards))
    write_text(path, text)
    turnable = sum(card.turnable is not None for card in cards)
    return Contents(Path(path), len(text.encode()), sum(card.pictured for card in cards), turnable)


@dataclass(frozen=True)
class _Tables:
    """What of the page does not depend on how many cases are pictured, as HTML."""

    structures: str
    spread: str
    cases: str


def _tables(evaluation: Evaluation) -> _Tables:
    palette = colours(evaluation.structures)
    return _Tables(structures_table(evaluation, palette), distributions(evaluation, palette), cases_table(evaluation))


def _page(evaluation: Evaluation, title: str, tables: _Tables, cards: Sequence[Card], limit: int, with_viewer: bool) -> str:
    palette = colours(evaluation.structures)
    turnable = [card.turnable for card in cards if card.turnable is not None]
    sections = [
        _head(evaluation, title, with_viewer),
        section("Structures", tables.structures, "structures"),
        section("Spread over the cases", tables.spread, "spread"),
        section("Truth and prediction in 3-D", _viewer_words() + viewer(turnable, list(palette.items())), "turn")
        if with_viewer
        else "",
        section("Cases, the worst first", _cards(evaluation, cards), "cases"),
        section("All cases", tables.cases, "table"),
        section("How this was measured", facts_table(_how(evaluation, cards, limit)) + _licence(with_viewer), "how"),
    ]
    scripts = [asset("tables.js"), asset("report.js"), *(viewer_scripts() if with_viewer else ())]
    styles = [asset(name) for name in _STYLES]
    return page(title, "\n".join(part for part in sections if part), styles, scripts, wide=True)


def _head(evaluation: Evaluation, title: str, with_viewer: bool) -> str:
    count = len(evaluation.cases)
    structures = len(evaluation.structures.names)
    links = {
        "structures": "Structures",
        "spread": "Spread",
        **({"turn": "3-D"} if with_viewer else {}),
        "cases": "Worst cases",
        "table": "All cases",
        "how": "How",
    }
    listed = "".join(f'<li><a href="#{name}">{words}</a></li>' for name, words in links.items())
    warned = [
        ("counted as empty, for the prediction failed", evaluation.failures, True),
        ("not judged, for the truth cannot be read", evaluation.unjudged, True),
        ("judged after the prediction was resampled to the grid of the truth", evaluation.resampled, False),
        ("predicted without truth, and not judged", dict.fromkeys(evaluation.extra, ""), False),
    ]
    return (
        f'<h1>{safe(title)}</h1>\n<p class="faint">{count} case{"s" * (count != 1)}, {structures} structure'
        f"{'s' * (structures != 1)}; medseg-se {__version__}</p>\n"
        f'<p><span class="large">{number(evaluation.mean_foreground)}</span> mean Dice of the structures{_interval(evaluation)}'
        "</p>\n"
        + "".join(_warning(words, cases, broken) for words, cases, broken in warned)
        + f'<nav class="screen" aria-label="Sections"><ul>{listed}</ul></nav>'
    )


def _interval(evaluation: Evaluation) -> str:
    """Return the interval of the mean over foreground, or why there is none, in words."""
    found = evaluation.foreground_interval
    if found.reason is None:
        return f", 95 % interval [{number(found.low)}, {number(found.high)}]"
    return f' <small class="faint">(no interval: {safe(found.reason)})</small>' if found.n else ""


def _warning(words: str, cases: Mapping[str, str], broken: bool) -> str:
    if not cases:
        return ""
    lines = [f"{name}: {reason}" if reason else name for name, reason in list(cases.items())[:_LISTED]]
    more = [f"and {len(cases) - _LISTED} more"] if len(cases) > _LISTED else []
    return f"<p>{len(cases)} {words}:</p>{warnings_list([*lines, *more], broken)}"


def _viewer_words() -> str:
    return (
        '<p class="faint screen">Drag the picture in 3-D to turn it, click into a plane to move the crosshair, scroll to go '
        "through the slices. Planes lie as a radiologist holds them: the patient's right (R) is on the left.</p>"
    )


def _cards(evaluation: Evaluation, cards: Sequence[Card]) -> str:
    boxes = (
        '<p class="outlines screen"><label><input type="checkbox" checked data-outline="prediction"> prediction, in the '
        'colours of the structures</label><label><input type="checkbox" checked data-outline="truth"> truth, dotted white'
        "</label></p>"
    )
    left = len(evaluation.cases) - len(cards)
    rest = f"The {left} others are in the table below." if left else ""
    words = (
        '<p class="faint">Failed ones first, then by the mean Dice of their structures. The outlines are those of the '
        "prediction in colour and of the truth in dotted white; each plane is cut where the two differ most, every structure "
        f"counted by its size. The patient's right (R) is on the left. {rest}</p>"
    )
    return words + boxes + "\n".join(card.html for card in cards)


def _how(evaluation: Evaluation, cards: Sequence[Card], limit: int) -> Facts:
    turnable = [card.turnable for card in cards if card.turnable is not None]
    coarse = sum(case.volumes.coarsened for case in turnable)
    coarsened = f"; {coarse} of them in coarser voxels, as said there" if coarse else ""
    size = (
        f"Pictures are chosen so that this page stays within {limit / 1e6:g} MB: of {len(evaluation.cases)} cases, the worst "
        f"{sum(card.pictured for card in cards)} are shown in planes and {len(turnable)} of these in the 3-D viewer, cut to "
        f"their structures, in 8 bits of their window{coarsened}."
    )
    return [
        ("policy", POLICY),
        *(("definitions", sentence) for sentence in evaluation.criteria.sentences()),
        (
            "intervals",
            "95 %, bootstrap of the mean; subjects are resampled, with all their structures for the mean of the structures",
        ),
        ("size", size),
        ("not for diagnosis", "Made for judging software, with scans that are cut, windowed and coarsened."),
    ]


@cache
def _niivue_licence() -> str:
    return files("medseg_se.reports").joinpath("vendor", "niivue.LICENSE").read_text(encoding="utf-8")


def _licence(with_viewer: bool) -> str:
    """Return the notice that goes with every copy of the viewer."""
    if not with_viewer:
        return ""
    words = "Licence of NiiVue, the 3-D viewer"
    return f'<details class="screen"><summary>{words}</summary><pre>{safe(_niivue_licence())}</pre></details>'
