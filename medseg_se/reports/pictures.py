"""Pictures of cases: three planes through the structures, with the outlines of truth and prediction.

Planes are shown as a radiologist holds them: the patient's right on the left of coronal and axial planes, anterior on the left
of sagittal ones. Letters at the borders say so in each picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError, UsageError
from medseg_se.files import atomic_write
from medseg_se.optional import load_optional
from medseg_se.reports.palette import Colour, colours
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, reorient

Array = npt.NDArray[Any]

_PAPER, _INK, _FAINT = "#14171c", "#f2f3f5", "#9aa1ab"
_MARGIN = 0.2  # of the structures' extent, shown around them on each side
_FLATTEST = 0.5  # shortest over longest side of the box that is shown


@dataclass(frozen=True)
class Shown:
    """A case to be pictured.

    Attributes:
        image: The scan; its first channel is shown.
        prediction: Structure indices 0 … N on the grid of the image, (1, I, J, K).
        truth: The same of the truth, if there is one.
        title: Name of the case.
    """

    image: Volume
    prediction: Volume
    truth: Volume | None = None
    title: str = ""


@dataclass(frozen=True)
class Plane:
    """How a plane of an array with axes (R, A, S) is laid out on paper.

    Attributes:
        name: What the plane is called.
        across: Axis that the plane cuts, 0 … 2.
        horizontal: Axis that runs along the paper's width.
        vertical: Axis that runs up.
        borders: Letters at the left, right, bottom and top.
    """

    name: str
    across: int
    horizontal: int
    vertical: int
    borders: tuple[str, str, str, str]


# Every horizontal axis runs against its array: anterior, or the patient's right, lies on the left.
PLANES = (
    Plane("sagittal", 0, 1, 2, ("A", "P", "I", "S")),
    Plane("coronal", 1, 0, 2, ("R", "L", "I", "S")),
    Plane("axial", 2, 0, 1, ("R", "L", "P", "A")),
)


def case_picture(
    image: Volume,
    truth: Volume | None,
    prediction: Volume,
    structures: Structures,
    path: Path | str,
    dice: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Write one PNG of a case: truth above prediction, in three planes, with a legend of what is visible.

    The outlines of the truth come back in dotted white on the prediction, which shows at once where the two part.

    Args:
        image: The scan (C, I, J, K); its first channel is shown.
        truth: Structure indices 0 … N on the grid of the image, or None.
        prediction: The same of the prediction.
        structures: Names of the indices.
        path: The PNG to write.
        dice: Structure → Dice, shown in the legend; the worst are named in the heading.
        title: Name of the case.

    Raises:
        DataError: The maps do not lie on the grid of the image.
        OutputError: The file could not be written.
        UsageError: matplotlib is not installed.
    """
    view = _View(Shown(image, prediction, truth, title), structures)
    rows = [_Row("prediction", view, view.prediction, view.truth)]
    if view.truth is not None:
        rows = [_Row("truth", view, view.truth, None), *rows]
    own = {name: dice[name] for name in structures.names if dice and name in dice}
    _draw(rows, structures, path, (title, worst_structures(own)), own)


def overview_picture(cases: Sequence[Shown], structures: Structures, path: Path | str, title: str = "") -> None:
    """Write one PNG of several cases: a row each, the prediction in colour and the truth, if known, in dotted white.

    Raises:
        DataError: The maps of a case do not lie on the grid of its image.
        OutputError: The file could not be written.
        UsageError: There is no case, or matplotlib is not installed.
    """
    if not cases:
        raise UsageError("Expected at least one case to picture, but got none.")
    views = [_View(case, structures) for case in cases]
    rows = [_Row(view.case.title, view, view.prediction, view.truth) for view in views]
    _draw(rows, structures, path, (title, "predictions of " + (f"{len(cases)} cases" if len(cases) > 1 else "a case")), {})


def worst_structures(dice: Mapping[str, float], most: int = 3) -> str:
    """Return "worst: left amygdala 0.710, …", lowest Dice first; structures not counted are left out."""
    counted = sorted((value, name) for name, value in dice.items() if not math.isnan(value))
    worst = ", ".join(f"{name} {value:.3f}" for value, name in counted[:most])
    return f"worst: {worst}" if worst else ""


# ------------------------------------------------------------------------------------------------------------------- choosing


class _View:
    """A case turned to (R, A, S), with the box and the three slices that are shown."""

    def __init__(self, case: Shown, structures: Structures) -> None:
        self.case = case
        image = reorient(replace(case.image, array=case.image.array[:1]), "RAS")
        self.image = image.array[0]
        self.affine = image.affine
        self.spacing = image.spacing
        self.prediction = _turned("prediction", case.prediction, case.image, structures)
        self.truth = None if case.truth is None else _turned("truth", case.truth, case.image, structures)
        guide = self.truth if self.truth is not None and (self.truth > 0).any() else self.prediction
        self.slices = richest_slices(guide)
        shown = self.prediction > 0 if self.truth is None else (self.prediction > 0) | (self.truth > 0)
        self.box = _box(shown, self.spacing)

    def window(self) -> tuple[float, float]:
        """Return the intensities shown as black and white; tissue stays below white, so that outlines stand out."""
        inside = self.image[tuple(slice(max(0, math.floor(low)), math.ceil(high)) for low, high in self.box)]
        values = inside[np.isfinite(inside)]
        low, high = np.percentile(values, [1, 99.5]) if values.size else (0.0, 1.0)
        return float(low), float(high + 0.25 * (high - low)) if high > low else float(low) + 1

    def place(self, plane: Plane) -> str:
        """Return where the slice lies, in mm of the scanner's axes as far as the grid follows them."""
        centre = [(length - 1) / 2 for length in self.image.shape]
        centre[plane.across] = self.slices[plane.across]
        position = float((self.affine @ [*centre, 1])[plane.across])
        return f"{'xyz'[plane.across]} = {position:.0f} mm"


@dataclass(frozen=True)
class _Row:
    name: str
    view: _View
    solid: Array
    dotted: Array | None


def _turned(name: str, labels: Volume, image: Volume, structures: Structures) -> Array:
    difference = image.same_grid(labels)
    if difference:
        raise DataError(f"Expected the {name} on the grid of the image to picture it, but got {difference}.")
    highest = int(labels.array.max(initial=0))
    if highest >= structures.num_classes:
        raise DataError(f"Expected the {name} as structure indices 0 … {structures.num_classes - 1}, but it holds {highest}.")
    array: Array = reorient(labels, "RAS").array[0]
    return array


def richest_slices(labels: Array) -> tuple[int, int, int]:
    """Return the slice along each axis that shows most structures, each counted by its share of its largest section."""
    count = int(labels.max(initial=0)) + 1
    found = []
    for axis, length in enumerate(labels.shape):
        slabs = (np.maximum(np.take(labels, place, axis), 0).ravel() for place in range(length))
        sections = np.stack([np.bincount(slab, minlength=count)[1:] for slab in slabs])
        largest = sections.max(axis=0, initial=1)
        score = (sections / largest).sum(axis=1)
        # Where several slices are as rich, as in the middle of a block, the middle one of them.
        best = np.flatnonzero(score >= score.max(initial=0) - 1e-9)
        found.append(int(best[len(best) // 2]))
    return found[0], found[1], found[2]


def _box(shown: Array, spacing: tuple[float, float, float]) -> tuple[tuple[float, float], ...]:
    """Return (start, stop) in voxels along each axis: the structures and a margin, or everything if there are none.

    The box may reach beyond the scan, so that no plane becomes too flat to look at.
    """
    kept = []
    for axis, length in enumerate(shown.shape):
        places = np.flatnonzero(shown.any(axis=tuple(other for other in range(3) if other != axis)))
        start, stop = (float(places[0]), float(places[-1] + 1)) if places.size else (0.0, float(length))
        margin = _MARGIN * (stop - start) if places.size else 0.0
        kept.append((max(0.0, start - margin), min(float(length), stop + margin)))
    least = _FLATTEST * max((stop - start) * step for (start, stop), step in zip(kept, spacing, strict=True))
    grown = []
    for (start, stop), step in zip(kept, spacing, strict=True):
        lacking = max(0.0, least / step - (stop - start)) / 2
        grown.append((start - lacking, stop + lacking))
    return tuple(grown)


# -------------------------------------------------------------------------------------------------------------------- drawing

_ROW, _HEAD, _FOOT, _LEFT, _LEGEND, _GAP = 3.2, 0.8, 0.3, 0.35, 2.9, 0.06  # inches
_LINE = 0.205  # inches that a line of the legend takes


def _draw(
    rows: Sequence[_Row], structures: Structures, path: Path | str, lines: tuple[str, str], dice: Mapping[str, float]
) -> None:
    load_optional("matplotlib")
    # A figure with its own canvas leaves alone the backend of a notebook that calls this.
    canvas, figures = load_optional("matplotlib.backends.backend_agg"), load_optional("matplotlib.figure")
    widths = [max(_ROW * _aspect(row.view, plane) for row in rows) for plane in PLANES]
    width, height = _LEFT + sum(widths) + _LEGEND, _HEAD + _ROW * len(rows) + _FOOT
    figure = figures.Figure(figsize=(width, height), dpi=120, facecolor=_PAPER)
    canvas.FigureCanvasAgg(figure)

    def write(left: float, bottom: float, text: str, **style: Any) -> None:
        figure.text(left / width, bottom / height, text, **{"color": _INK, "va": "center", "fontsize": 9, **style})

    palette = colours(structures)
    visible: set[int] = set()
    for number, row in enumerate(rows):
        bottom = height - _HEAD - _ROW * (number + 1)
        write(_LEFT / 2, bottom + _ROW / 2, row.name, rotation=90, ha="center", fontsize=11)
        for plane, left, wide in zip(PLANES, np.cumsum([_LEFT, *widths]), widths, strict=False):
            box = (left / width, bottom / height, (wide - _GAP) / width, (_ROW - _GAP) / height)
            limits = _limits(row.view, plane, wide - _GAP, _ROW - _GAP)
            visible |= _draw_plane(figure.add_axes(box, **limits), row, plane, structures, palette)
    write(_LEFT, height - 0.28, lines[0], fontsize=14, fontweight="bold")
    write(_LEFT, height - 0.58, lines[1], color=_FAINT, fontsize=10)
    note = "Radiological view: the patient's right is on the left."
    note += " Dotted white: truth." if any(row.dotted is not None for row in rows) else ""
    write(_LEFT, _FOOT / 2, note, color=_FAINT, fontsize=8)
    room = int((height - _HEAD - _FOOT) / _LINE) - 1
    for number, (name, score) in enumerate(_legend(sorted(visible), structures, dice, room)):
        line = height - _HEAD - _LINE * (number + 0.5)
        write(width - _LEGEND + 0.15, line, "■" if name in palette else "", color=palette.get(name, _INK), fontsize=11)
        write(width - _LEGEND + 0.37, line, name)
        write(width - 0.15, line, score, ha="right", color=_FAINT)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", facecolor=_PAPER)


def _draw_plane(axes: Any, row: _Row, plane: Plane, structures: Structures, palette: Mapping[str, Colour]) -> set[int]:
    """Draw one plane into `axes` and return the indices of the structures that are outlined."""
    view = row.view
    scan = np.take(view.image, view.slices[plane.across], plane.across)
    step = view.spacing[plane.horizontal], view.spacing[plane.vertical]
    low, high = view.window()
    extent = (0, scan.shape[0] * step[0], 0, scan.shape[1] * step[1])
    axes.set_facecolor("black")
    axes.set_autoscale_on(False)
    axes.imshow(
        scan.T, cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower", interpolation="bilinear", aspect="auto"
    )
    if row.dotted is not None:
        white = dict.fromkeys(palette, (1.0, 1.0, 1.0))
        _outline(axes, row.dotted, view, plane, structures, white, {"linewidths": 1.0, "linestyles": "dotted"})
    drawn = _outline(axes, row.solid, view, plane, structures, palette, {"linewidths": 1.4})
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    edge = load_optional("matplotlib.patheffects").withStroke(linewidth=2, foreground="black")
    style = {"transform": axes.transAxes, "color": _INK, "ha": "center", "va": "center", "path_effects": [edge]}
    for (x, y), letter in zip(((0.03, 0.5), (0.97, 0.5), (0.5, 0.04), (0.5, 0.96)), plane.borders, strict=True):
        axes.text(x, y, letter, fontsize=10, fontweight="bold", **style)
    axes.text(0.03, 0.05, f"{plane.name}, {view.place(plane)}", **{**style, "ha": "left"}, fontsize=7.5)
    return drawn


def _outline(
    axes: Any,
    labels: Array,
    view: _View,
    plane: Plane,
    structures: Structures,
    palette: Mapping[str, Colour],
    style: dict[str, Any],
) -> set[int]:
    section = np.take(labels, view.slices[plane.across], plane.across)
    step = view.spacing[plane.horizontal], view.spacing[plane.vertical]
    present = [int(index) for index in np.unique(section) if index > 0]
    for index in present:
        # A border of background closes the outlines of structures that touch the edge of the scan.
        mask = np.pad(section == index, 1)
        x, y = ((np.arange(length) - 0.5) * size for length, size in zip(mask.shape, step, strict=True))
        axes.contour(x, y, mask.T, levels=[0.5], colors=[palette[structures.names[index - 1]]], **style)
    return set(present)


def _legend(visible: Sequence[int], structures: Structures, dice: Mapping[str, float], room: int) -> list[tuple[str, str]]:
    """Return (name, Dice) of the visible structures; the worst of them, and how many are left out, if there is little room."""
    names = [structures.names[index - 1] for index in visible]
    counted = {name: score for name, score in dice.items() if not math.isnan(score)}
    kept = sorted(names, key=lambda name: counted.get(name, math.inf))[:room]
    lines = [
        (name, f"{counted[name]:.3f}" if name in counted else "–" if name in dice else "") for name in names if name in kept
    ]
    return [*lines, (f"and {len(names) - len(kept)} more", "")] if len(names) > len(kept) else lines


def _limits(view: _View, plane: Plane, width: float, height: float) -> dict[str, tuple[float, float]]:
    """Return the mm shown by axes of `width` by `height` inches, the same scale both ways; the horizontal axis is reversed."""
    across, up = ([edge * view.spacing[axis] for edge in view.box[axis]] for axis in (plane.horizontal, plane.vertical))
    scale = max((across[1] - across[0]) / width, (up[1] - up[0]) / height)
    x, y = sum(across) / 2, sum(up) / 2
    return {
        "xlim": (x + scale * width / 2, x - scale * width / 2),
        "ylim": (y - scale * height / 2, y + scale * height / 2),
    }


def _aspect(view: _View, plane: Plane) -> float:
    """Return the width of a plane over its height, in mm."""
    extent = [(stop - start) * step for (start, stop), step in zip(view.box, view.spacing, strict=True)]
    return extent[plane.horizontal] / extent[plane.vertical]
