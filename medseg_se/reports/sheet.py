"""A sheet of plots measured in inches from its top left corner, section below section."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg_se.files import atomic_write
from medseg_se.optional import load_optional

PAPER, PANEL, GRID, FRAME, INK, FAINT = "#14171c", "#1b1f26", "#2b313a", "#3a414b", "#f2f3f5", "#9aa1ab"
WIDTH, SIDE, HEAD, FOOT, RESOLUTION = 15.0, 0.8, 1.0, 0.5, 110  # inches, and pixels an inch


class Sheet:
    """A figure whose sections are added first, for their heights make the figure's, and drawn when it is written.

    Raises:
        UsageError: matplotlib is not installed.
    """

    def __init__(self) -> None:
        load_optional("matplotlib")
        self._sections: list[tuple[float, Callable[[Sheet, float], None]]] = []
        self._height = HEAD + FOOT
        self._figure: Any = None

    def add(self, height: float, draw: Callable[[Sheet, float], None]) -> None:
        """Add a section of `height`; ``draw(sheet, top)`` is told where it begins."""
        self._sections.append((self._height - FOOT, draw))
        self._height += height

    def write(self, path: Path | str, title: str, line: str, note: str = "") -> None:
        """Draw everything, with a title, a line below it and a note at the foot, and write the PNG.

        Raises:
            OutputError: The file could not be written.
        """
        # A figure with its own canvas leaves alone the backend of a notebook that calls this.
        canvas, figures = load_optional("matplotlib.backends.backend_agg"), load_optional("matplotlib.figure")
        self._figure = figures.Figure(figsize=(WIDTH, self._height), dpi=RESOLUTION, facecolor=PAPER)
        canvas.FigureCanvasAgg(self._figure)
        self.text(SIDE, 0.36, title, fontsize=16, fontweight="bold")
        self.text(SIDE, 0.68, line, color=FAINT)
        for top, draw in self._sections:
            draw(self, top)
        self.text(SIDE, self._height - 0.25, note, color=FAINT, fontsize=8.5)
        with atomic_write(path) as stream:
            self._figure.savefig(stream, format="png", facecolor=PAPER)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Write words, centred vertically on a place in inches."""
        style = {"color": INK, "va": "center", "fontsize": 10, **style}
        self._figure.text(left / WIDTH, 1 - top / self._height, words, **style)

    def heading(self, top: float, words: str, left: float = SIDE) -> None:
        """Write the heading of a section."""
        self.text(left, top, words, fontsize=11, fontweight="bold")

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Return axes at a place in inches."""
        box = (left / WIDTH, 1 - (top + height) / self._height, width / WIDTH, height / self._height)
        axes = self._figure.add_axes(box, facecolor=PANEL)
        axes.tick_params(colors=FAINT, labelsize=8.5, length=2)
        for spine in axes.spines.values():
            spine.set_color(FRAME)
        return axes

    def colour_bar(self, picture: Any, left: float, top: float, height: float, ticks: dict[float, str]) -> None:
        """Draw the bar of colours of an image, with the words at some of its values."""
        bar = self.axes(left, top, 0.1, height)
        self._figure.colorbar(picture, cax=bar, ticks=list(ticks))
        bar.set_yticklabels(list(ticks.values()))
        bar.tick_params(colors=FAINT, labelsize=7.5, length=0)


def shortened(name: str, most: int = 28) -> str:
    """Return a long name without its middle: what tells structures apart often stands at the end."""
    return name if len(name) <= most else f"{name[: most - 12]}…{name[-11:]}"
