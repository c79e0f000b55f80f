"""What the reports of a classification and of a regression share: the cases in pictures within the size of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_se.errors import DataError, UsageError
from medseg_se.files import write_text
from medseg_se.reports.answer_cards import Shown, card
from medseg_se.reports.page import asset, page, safe, warnings_list

if TYPE_CHECKING:
    from medseg_se.analysis.explaining import Explainer

LIMIT = 15_000_000
"""Bytes that a page may take: what goes through mail and opens on a telephone."""
STYLES = ("tables.css", "overlays.css", "report.css", "panels.css")
LISTED = 20  # failures and the like, named one by one
_SPARE = 4_000  # bytes for the words around the cases


@dataclass(frozen=True)
class Contents:
    """What a report holds.

    Attributes:
        path: The HTML file.
        size: Its bytes.
        pictured: Cases shown in pictures.
        explained: Whether the pictures show what speaks for the answers.
    """

    path: Path
    size: int
    pictured: int
    explained: bool


@dataclass(frozen=True)
class Cards:
    """Cases as HTML, as many as there was room for.

    Attributes:
        html: The cases of each list.
        pictured: How many of them have pictures.
        left: Of each list, how many there was no room for.
    """

    html: tuple[str, ...]
    pictured: int
    left: tuple[int, ...]


def write_page(
    path: Path | str,
    title: str,
    lists: Sequence[Sequence[Shown]],
    body: Callable[[Cards], str],
    explainer: Explainer | None,
    limit: int,
    both: bool = False,
) -> Contents:
    """Write a page with cases in pictures, the first of each list first, within the limit.

    Args:
        path: The HTML file.
        title: Of the page.
        lists: Lists of cases to show; room is given to the first list first.
        body: Returns the body around the cases.
        explainer: The model that answered, if it is at hand.
        limit: Bytes that the page may take.
        both: Whether evidence against an answer is shown too.

    Raises:
        UsageError: The limit makes no sense.
        OutputError: The file could not be written.
    """
    if limit < 1:
        raise UsageError(f"Expected a page of at least one byte, but got {limit}.")
    scripts, styles = [asset("tables.js"), asset("report.js")], [asset(name) for name in STYLES]

    def whole(cards: Cards) -> str:
        return page(title, body(cards), styles, scripts, wide=True)

    room = limit - _SPARE - len(whole(Cards(("",) * len(lists), 0, tuple(map(len, lists)))).encode())
    found, pictured, left = [], 0, []
    for cases in lists:
        parts: list[str] = []
        for rank, case in enumerate(cases, start=1):
            text, has_picture = card(rank, case, explainer, both)
            if len(text.encode()) > room:
                break
            parts.append(text)
            room -= len(text.encode())
            pictured += has_picture
        found.append("".join(parts))
        left.append(len(cases) - len(parts))
    text = whole(Cards(tuple(found), pictured, tuple(left)))
    write_text(path, text)
    return Contents(Path(path), len(text.encode()), pictured, explainer is not None)


def named(words: str, cases: Mapping[str, str], broken: bool) -> str:
    """Return a warning that names cases, each with its reason; nothing where there is none."""
    if not cases:
        return ""
    lines = [f"{name}: {reason}" if reason else name for name, reason in list(cases.items())[:LISTED]]
    more = [f"and {len(cases) - LISTED} more"] if len(cases) > LISTED else []
    return f"<p>{len(cases)} {safe(words)}:</p>{warnings_list([*lines, *more], broken)}"


def links(sections: Mapping[str, str]) -> str:
    """Return links to the sections of the page."""
    listed = "".join(f'<li><a href="#{name}">{safe(words)}</a></li>' for name, words in sections.items())
    return f'<nav class="screen" aria-label="Sections"><ul>{listed}</ul></nav>'


def heat_box() -> str:
    """Return the box that shows and hides what is laid over all pictures."""
    box = '<input type="checkbox" checked data-outline="heat">'
    return f'<p class="outlines screen"><label>{box} show what speaks for the answers</label></p>'


def check_names(explainer: Explainer | None, names: Sequence[str], task: str) -> None:
    """Refuse a checkpoint that answers with other names than those of the evaluation.

    Raises:
        DataError: It does.
    """
    if explainer is None:
        return
    if explainer.task != task or explainer.names != tuple(names):
        raise DataError(
            f"Expected {explainer.path} to be the model that was judged, a {task} of {', '.join(names)}, but it is a "
            f"{explainer.task} of {', '.join(explainer.names)}. Name the checkpoint that predicted."
        )
