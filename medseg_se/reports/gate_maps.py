"""Where spatial gates open: a slice of every map over the scan, beside the scan with its structures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.analysis.inspection import Inspection
from medseg_se.reports.palette import colours
from medseg_se.reports.pictures import PLANES, Plane
from medseg_se.reports.sheet import FAINT, SIDE, WIDTH, Sheet
from medseg_se.volumes import Volume, reorient

Array = npt.NDArray[Any]

_COLUMNS, _GAP, _LINE = 5, 0.1, 0.45  # panels a row; inches between them, and above each for its name


class GateMaps:
    """The section of a sheet with the maps, in the plane that a 2D network sees, axial for others.

    Attributes:
        height: Inches that it takes.
    """

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        scan, labels = _turned(inspection.prepared.original), _turned(inspection.labels)
        self._plane = plane = _plane(inspection)
        self._level = int(np.argmax((labels.array[0] > 0).sum(axis=(plane.horizontal, plane.vertical))))
        lengths = [length * step for length, step in zip(scan.shape, scan.spacing, strict=True)]
        self._extent = lengths[plane.horizontal], lengths[plane.vertical]
        self._scan, self._labels = self._slice(scan), self._slice(labels)
        self._width = (WIDTH - 2 * SIDE) / _COLUMNS
        across, up = self._extent
        self._row = float(np.clip((self._width - _GAP) * up / across, 1.0, 3.5)) + _LINE
        self.height = self._row * math.ceil((len(inspection.recording.maps) + 1) / _COLUMNS) + 0.4

    def draw(self, sheet: Sheet, top: float) -> None:
        """Draw the scan and every map over it, in the slice that shows most of the structures."""
        sheet.heading(top + 0.05, "Where spatial gates open")
        words = (
            f"{self._plane.name} slice, {self._plane.borders[0]} on the left; dark = low, bright = high, each map from its 2nd "
            "to its 98th percentile; blended over the tiles"
        )
        sheet.text(SIDE + 2.3, top + 0.05, words, fontsize=9, color=FAINT)
        self._draw_scan(self._panel(sheet, top, 0, "scan and structures", ""))
        for number, ((name, kind), gate) in enumerate(self._inspection.recording.maps.items(), start=1):
            low, high = (float(value) for value in np.percentile(gate.numpy(), [2, 98]))
            axes = self._panel(sheet, top, number, f"{name} {kind}", f"{low:.3f} … {high:.3f}")
            values = self._slice(_turned(self._inspection.map_on_scan(name, kind)))
            self._show(axes, values, cmap="inferno", vmin=low, vmax=max(high, low + 1e-6), alpha=0.65)

    def _panel(self, sheet: Sheet, top: float, number: int, heading: str, line: str) -> Any:
        row, column = divmod(number, _COLUMNS)
        left, upper, width = SIDE + column * self._width, top + 0.3 + row * self._row, self._width - _GAP
        sheet.text(left, upper + 0.1, heading, fontsize=9 if len(heading) <= 24 else 7)
        sheet.text(left + width, upper + 0.1, line, fontsize=8.5, color=FAINT, ha="right")
        axes = sheet.axes(left, upper + 0.22, width, self._row - _LINE + _GAP)
        black, white = np.percentile(self._scan, [1, 99.5])
        self._show(axes, self._scan, cmap="gray", vmin=black, vmax=max(white, black + 1e-6), interpolation="bilinear")
        across, up = self._extent  # every horizontal axis of `PLANES` runs against its array
        axes.set(xticks=[], yticks=[], xlim=(across, 0), ylim=(0, up), facecolor="black")
        return axes

    def _draw_scan(self, axes: Any) -> None:
        structures = self._inspection.structures
        palette = colours(structures)
        for index in np.unique(self._labels[self._labels > 0]):
            # A border of background closes the outlines of structures that touch the edge of the scan.
            mask = np.pad(self._labels == index, 1)
            lengths = zip(self._labels.shape, self._extent, strict=True)
            x, y = ((np.arange(n + 2) - 0.5) * length / n for n, length in lengths)
            axes.contour(x, y, mask.T, levels=[0.5], colors=[palette[structures.names[index - 1]]], linewidths=1.0)

    def _show(self, axes: Any, values: Array, **style: Any) -> None:
        across, up = self._extent
        axes.imshow(values.T, extent=(0, across, 0, up), origin="lower", aspect="equal", **style)

    def _slice(self, volume: Volume) -> Array:
        array: Array = np.take(volume.array[0], self._level, self._plane.across)
        return array


def _plane(inspection: Inspection) -> Plane:
    if 1 not in inspection.patch:
        return PLANES[2]
    letter = inspection.prepared.turned.orientation[inspection.patch.index(1)]
    return next(plane for plane, letters in zip(PLANES, ("LR", "PA", "IS"), strict=True) if letter in letters)


def _turned(volume: Volume) -> Volume:
    return reorient(replace(volume, array=volume.array[:1]), "RAS")
