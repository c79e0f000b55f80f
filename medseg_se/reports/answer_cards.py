"""A case in the report of a classification or regression: its picture, what speaks for the answer, and the answer itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg_se.data.datalist import Case
from medseg_se.data.pictures import is_picture, read_picture
from medseg_se.errors import DataError
from medseg_se.reports.heat import sections, view
from medseg_se.reports.page import number, safe
from medseg_se.volumes import Volume, read_image

if TYPE_CHECKING:
    from medseg_se.analysis.explaining import Explainer

Array = npt.NDArray[Any]

_NAMED = 6  # classes beside a picture, the most probable ones


@dataclass(frozen=True)
class Shown:
    """A case that is to be shown.

    Attributes:
        id: Its name.
        images: Its files; none if they are not known.
        heading: HTML behind the name.
        words: HTML below the pictures.
        views: (number of the answer that is explained, caption) of each picture besides the bare one.
    """

    id: str
    images: tuple[Path, ...]
    heading: str
    words: str
    views: tuple[tuple[int, str], ...] = ()


def card(rank: int, case: Shown, explainer: Explainer | None, both: bool = False) -> tuple[str, bool]:
    """Return a case as HTML, and whether its picture is shown.

    Args:
        rank: Its place among the shown ones, from 1.
        case: The case.
        explainer: The model that answered; None where only the pictures are shown.
        both: Whether evidence against an answer is shown too.
    """
    top = f"<h3>{rank}. {safe(case.id)} <small>{case.heading}</small></h3>"
    try:
        pictures, pictured = _views(case, explainer, both), True
    except DataError as error:
        pictures, pictured = f'<p class="faint">{safe(f"Cannot be shown: {error}")}</p>', False
    return f'<article class="case">{top}{pictures}{case.words}</article>\n', pictured


def _views(case: Shown, explainer: Explainer | None, both: bool) -> str:
    if not case.images:
        raise DataError("where its scan lies is not known. Name the dataset with --images.")
    pictorial = is_picture(case.images[0])
    image = read_shown(case.images[0])
    if explainer is None:
        return _row([view(part, None, "", 1.0) for part in sections(image, None, pictorial)])
    evidence = explainer.evidence(Case(case.id, case.images), [number for number, _ in case.views])
    shown = sections(image, evidence, pictorial)
    most = _strongest(evidence, both)
    figures = [view(shown[0], None, "as it is", 1.0)] if len(shown) == 1 else []
    rows = []
    for place, (_, caption) in enumerate(case.views):
        none = not both and not np.nanmax(evidence.array[place]) > 0
        said = f"{caption}: nothing" if none else caption
        rows.append([view(part, place, said, most, both) for part in shown])
    if len(shown) == 1:
        return _row([*figures, *(figure for row in rows for figure in row)])
    return "".join(_row(row) for row in rows)


def _row(figures: Sequence[str]) -> str:
    return f'<div class="views">{"".join(figures)}</div>'


def _strongest(evidence: Volume, both: bool) -> float:
    """Return what all overlays of a case are scaled to, so that they can be compared with each other."""
    values = np.abs(evidence.array) if both else evidence.array
    return float(np.nanmax(values)) if np.isfinite(values).any() else 1.0


def read_shown(path: Path) -> Volume:
    """Read a scan, or a picture in its colours, for a person to look at.

    Raises:
        DataError: It cannot be read.
    """
    if not is_picture(path):
        return read_image(path)
    picture = read_picture(path, "rgb")
    red, green, blue = picture.array
    grey = bool((red == green).all() and (green == blue).all())
    return Volume(picture.array[:1], picture.affine, path=path) if grey else picture


def probability_bars(names: Sequence[str], probabilities: Array, truth: int) -> str:
    """Return the most probable classes with a bar each; the true one is among them."""
    order = [int(place) for place in np.argsort(-probabilities, kind="stable")]
    shown = order[:_NAMED]
    if truth >= 0 and truth not in shown:
        shown[-1] = truth
    items = []
    for place in shown:
        share = float(probabilities[place])
        right = truth < 0 or place == truth
        said = f"{safe(names[place])}{' (true)' if place == truth else ''}"
        bar = f'<span class="track"><span style="width:{100 * share:.1f}%"></span></span>'
        items.append(f"<li{'' if right else ' class=false'}><span>{said}</span>{bar}<span>{number(share)}</span></li>")
    return f'<ul class="bars">{"".join(items)}</ul>'


def distance_words(distance: float, unlike: bool) -> str:
    """Return what is said of how unlike the training a scan is."""
    said = "" if math.isnan(distance) else f", distance {number(distance, 2)}"
    return f"unlike the scans of the training{said}" if unlike else ""
