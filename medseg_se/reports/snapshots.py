"""Small pictures of validation cases as training goes on, made with Pillow alone in a few milliseconds.

Planes lie as in `medseg_se.reports.pictures`: the patient's right on the left of coronal and axial planes, anterior on the left
of sagittal ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medseg_se.reports.palette import colours
from medseg_se.reports.pictures import PLANES, Plane, richest_slices
from medseg_se.structures import Structures

Array = npt.NDArray[Any]
_Ink = tuple[int, ...]  # red, green, blue, 0 … 255
_Named = tuple[str, _Ink]

_SIDE, _GAP, _LINE = 240, 4, 20  # pixels: longest side of a plane, room around it, height of a line of text
_FILL = 0.45  # share of the colour in what is filled
_PAPER, _INK, _FAINT, _GOOD, _BAD = (20, 23, 28), (242, 243, 245), (154, 161, 171), (139, 209, 124), (255, 123, 114)
_OPPOSITE = {"R": "L", "A": "P", "S": "I"}
_LEGEND_LINES = 3


@dataclass(frozen=True)
class Lie:
    """How the arrays that a network is given lie in the body.

    Attributes:
        orientation: The direction in which each axis runs, such as "RAS".
        flat_axis: The axis that slices do not have; None for volumes.
        spacing: Voxel spacing in mm along the axes; None where every scan has its own, and voxels are drawn as cubes.
    """

    orientation: str = "RAS"
    flat_axis: int | None = None
    spacing: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Lie:
        """Read it from what data modules say of themselves."""
        preprocessing = described.get("preprocessing", {})
        spacing = preprocessing.get("spacing")
        return cls(preprocessing.get("orientation", "RAS"), described.get("flat_axis"), tuple(spacing) if spacing else None)

    def turned(self, array: Array) -> Array:
        """Return a slice or a volume as a volume with axes (R, A, S)."""
        volume = array if self.flat_axis is None else np.expand_dims(array, self.flat_axis)
        for axis, letter in enumerate(self.orientation):
            if letter not in _OPPOSITE:
                volume = np.flip(volume, axis)
        return np.transpose(volume, self._order())

    def step(self) -> tuple[float, float, float]:
        """Return the spacing along (R, A, S)."""
        given = self.spacing or (1.0, 1.0, 1.0)
        right, anterior, superior = (given[axis] for axis in self._order())
        return right, anterior, superior

    def planes(self, shape: Sequence[int]) -> list[Plane]:
        """Return the planes in which a volume (R, A, S) of this shape is more than a line."""
        return [plane for plane in PLANES if min(shape[plane.horizontal], shape[plane.vertical]) > 1] or [PLANES[2]]

    def _order(self) -> list[int]:
        letters = [letter if letter in _OPPOSITE else _turned_letter(letter) for letter in self.orientation]
        return [letters.index(letter) for letter in "RAS"]


@dataclass(frozen=True)
class Segmented:
    """A patch with truth and prediction, all (I, J, K), or (I, J) of a slice; label maps hold structure indices."""

    name: str
    image: Array
    truth: Array
    prediction: Array


@dataclass(frozen=True)
class Answered:
    """A scan with what is true and what was said of it; `right` is None where that is not a matter of right or wrong."""

    image: Array
    truth: str
    answer: str
    right: bool | None = None


def segmented_picture(cases: Sequence[Segmented], structures: Structures, lie: Lie, title: str) -> Image.Image:
    """Return a picture of patches: the prediction filled, the truth outlined, in the colours of the structures."""
    palette = _palette(structures)
    rows: list[list[Image.Image]] = []
    seen: set[int] = set()
    for case in cases:
        image, truth, prediction = (lie.turned(array) for array in (case.image, case.truth, case.prediction))
        slices = richest_slices(truth if (truth > 0).any() else prediction)
        panels = []
        for plane in lie.planes(image.shape):
            cut = [np.take(array, slices[plane.across], plane.across) for array in (image, truth, prediction)]
            seen |= {int(index) for part in cut[1:] for index in np.unique(part) if index > 0}
            panels.append(_plane(cut[0], cut[1], cut[2], plane, lie.step(), palette))
        ImageDraw.Draw(panels[0]).text((4, 2), case.name, _INK, _font(12), stroke_width=2, stroke_fill=_PAPER)
        rows.append(panels)
    if all(len(panels) == 1 for panels in rows):
        rows = [[panels[0] for panels in rows]]
    legend = [(structures.names[index - 1], tuple(map(int, palette[index]))) for index in sorted(seen)]
    notes = ["filled: prediction    outlined: truth    the patient's right is on the left"]
    return _sheet(rows, title, notes, legend)


def answered_picture(cases: Sequence[Answered], lie: Lie, title: str, columns: int = 4) -> Image.Image:
    """Return a picture of scans, each with "truth -> answer" below it: green where right, red where wrong."""
    panels = []
    for case in cases:
        image = lie.turned(case.image)
        plane = lie.planes(image.shape)[-1]  # the axial one of a volume
        section = np.take(image, image.shape[plane.across] // 2, plane.across)
        nothing = np.zeros(section.shape, dtype=np.int16)
        shown = _plane(section, nothing, nothing, plane, lie.step(), np.zeros((1, 3)))
        panel = Image.new("RGB", (_SIDE, shown.height + _LINE), _PAPER)
        panel.paste(shown, ((_SIDE - shown.width) // 2, 0))
        colour = _INK if case.right is None else _GOOD if case.right else _BAD
        _write(ImageDraw.Draw(panel), (4, shown.height + 2), f"{case.truth} -> {case.answer}", colour, 13, _SIDE - 8)
        panels.append(panel)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    return _sheet(rows, title, ["truth -> prediction"], [])


# -------------------------------------------------------------------------------------------------------------------- drawing


def _plane(image: Array, truth: Array, prediction: Array, plane: Plane, step: Sequence[float], palette: Array) -> Image.Image:
    """Return one plane with the prediction filled and the truth outlined, `_SIDE` pixels along its longer side."""
    size = [image.shape[0] * step[plane.horizontal], image.shape[1] * step[plane.vertical]]
    width, height = (max(1, round(_SIDE * extent / max(size))) for extent in size)
    # Every horizontal axis runs against its array, and rows of a picture run down.
    grey, outlined, filled = (np.ascontiguousarray(array[::-1, ::-1].T) for array in (image, truth, prediction))
    finite = grey[np.isfinite(grey)]
    low, high = np.percentile(finite, [1, 99.5]) if finite.size else (0.0, 1.0)
    levels = np.clip((np.nan_to_num(grey) - low) / max(high - low, 1e-6), 0, 1) * 210  # so that outlines stand out
    smooth = Image.fromarray(levels.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.repeat(np.asarray(smooth, dtype=np.float32)[..., None], 3, axis=2)
    outlined, filled = (_enlarged(labels, width, height) for labels in (outlined, filled))
    inside = filled > 0
    pixels[inside] = (1 - _FILL) * pixels[inside] + _FILL * palette[filled[inside]]
    edge = _edges(outlined)
    pixels[edge] = palette[outlined[edge]]
    return Image.fromarray(pixels.astype(np.uint8))


def _enlarged(labels: Array, width: int, height: int) -> Array:
    rows = (np.arange(height) * labels.shape[0]) // height
    columns = (np.arange(width) * labels.shape[1]) // width
    return np.asarray(labels[rows[:, None], columns])


def _edges(labels: Array) -> npt.NDArray[np.bool_]:
    """Return where a structure borders on anything else, two pixels wide across the axes."""
    edge = np.zeros(labels.shape, dtype=np.bool_)
    for shift in (1, 2):
        for axis in (0, 1):
            near = np.moveaxis(labels, axis, 0)
            found = np.moveaxis(edge, axis, 0)
            found[shift:] |= near[shift:] != near[:-shift]
            found[:-shift] |= near[shift:] != near[:-shift]
    return edge & (labels > 0)


def _sheet(rows: Sequence[Sequence[Image.Image]], title: str, notes: Sequence[str], legend: Sequence[_Named]) -> Image.Image:
    columns = [max(row[place].width for row in rows if place < len(row)) for place in range(max(map(len, rows)))]
    heights = [max(panel.height for panel in row) for row in rows]
    width = max(sum(columns) + _GAP * (len(columns) + 1), 2 * _SIDE)
    named = _legend(legend, width)
    height = _LINE + _GAP + sum(heights) + _GAP * len(rows) + _LINE * (len(notes) + len(named)) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP + 2, 3), title, _INK, 14, width - 2 * _GAP)
    top = _LINE + _GAP
    for row, high in zip(rows, heights, strict=True):
        left = _GAP
        for panel, wide in zip(row, columns, strict=False):
            sheet.paste(panel, (left, top))
            left += wide + _GAP
        top += high + _GAP
    for line in named:
        for left, name, colour in line:
            draw.rectangle((left, top + 5, left + 9, top + 14), fill=colour)
            draw.text((left + 14, top + 2), name, _INK, _font(12))
        top += _LINE
    for note in notes:
        _write(draw, (_GAP + 2, top + 2), note, _FAINT, 12, width - 2 * _GAP)
        top += _LINE
    return sheet


def _legend(entries: Sequence[_Named], width: int) -> list[list[tuple[int, str, _Ink]]]:
    """Return lines of (left, name, colour), as many as there is room for; the last name says how many are left out."""
    lines: list[list[tuple[int, str, _Ink]]] = []
    left = width
    for number, (name, colour) in enumerate(entries):
        needed = 14 + int(_font(12).getlength(name)) + 14
        if left + needed > width - 80 * (len(lines) >= _LEGEND_LINES):
            if len(lines) == _LEGEND_LINES:
                lines[-1].append((left, f"and {len(entries) - number} more", _FAINT))
                return lines
            lines.append([])
            left = _GAP + 2
        lines[-1].append((left, name, colour))
        left += needed
    return lines


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], words: str, colour: _Ink, size: int, room: int) -> None:
    """Write a line, cut off where there is no more room."""
    font = _font(size)
    if font.getlength(words) > room:
        while words and font.getlength(words + "…") > room:
            words = words[:-1]
        words += "…"
    draw.text(place, words, colour, font)


def _font(size: int) -> Any:
    """Return Pillow's own font, which has no arrows."""
    return ImageFont.load_default(size)


def _palette(structures: Structures) -> Array:
    """Return the colour 0 … 255 of every index, (classes, 3)."""
    chosen = colours(structures)
    return np.array([(0.0, 0.0, 0.0), *(chosen[name] for name in structures.names)], dtype=np.float32) * 255


def _turned_letter(letter: str) -> str:
    return next(end for end, start in _OPPOSITE.items() if start == letter)
