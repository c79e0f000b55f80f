"""Plots of one number against another as SVG that is as wide as its place: curves, points, lines and a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medseg_se.reports.page import safe
from medseg_se.reports.tables import Scale

UNIT = Scale(0.0, 1.0)
"""The axis of a share or a probability."""


@dataclass(frozen=True)
class Panel:
    """A plot.

    Attributes:
        across: The horizontal axis.
        up: The vertical axis.
        titles: Of both, in that order.
        words: What the plot shows, for those who do not see it.
        wide: Whether it is wider than high.
    """

    across: Scale
    up: Scale
    titles: tuple[str, str]
    words: str
    wide: bool = False

    def draw(self, marks: Sequence[str]) -> str:
        """Return the plot with its marks."""
        across, up = map(safe, self.titles)
        kind = "panel wide" if self.wide else "panel"
        return (
            f'<figure class="{kind}"><svg role="img" aria-label="{safe(self.words)}">{self._grid()}{"".join(marks)}</svg>'
            f'<figcaption><span>{across}</span><span class="up">{up}</span></figcaption></figure>'
        )

    def curve(self, xs: Sequence[float], ys: Sequence[float], colour: str, title: str = "", style: str = "") -> str:
        """Return a line through points."""
        points = " ".join(f"{self.across.at(x):g},{100 - self.up.at(y):g}" for x, y in zip(xs, ys, strict=True))
        said = f"<title>{safe(title)}</title>" if title else ""
        return (
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%" overflow="visible">'
            f'<polyline class="curve {style}" stroke="{colour}" points="{points}">{said}</polyline></svg>'
        )

    def dot(self, x: float, y: float, colour: str, title: str, radius: float = 3.5) -> str:
        """Return a point that tells its name under a pointer."""
        place = f'cx="{self.across.at(x)}%" cy="{100 - self.up.at(y):g}%"'
        return f'<circle class="dot" fill="{colour}" {place} r="{radius:g}"><title>{safe(title)}</title></circle>'

    def level(self, y: float, words: str, style: str = "") -> str:
        """Return a horizontal line with words above its right end."""
        place = f"{100 - self.up.at(y):g}%"
        line = f'<line class="level {style}" x1="0" x2="100%" y1="{place}" y2="{place}"/>'
        return line + self._text(100, 100 - self.up.at(y), words, 'x="-4" y="-4" text-anchor="end"')

    def bar(self, low: float, high: float, y: float, colour: str, title: str) -> str:
        """Return a bar from the horizontal axis up to y."""
        left, right, top = self.across.at(low), self.across.at(high), 100 - self.up.at(y)
        box = f'x="{left:g}%" width="{right - left:g}%" y="{top:g}%" height="{100 - top:g}%"'
        return f'<rect class="column" fill="{colour}" {box}><title>{safe(title)}</title></rect>'

    def _grid(self) -> str:
        parts = []
        for value, words in self.across.ticks():
            x = self.across.at(value)
            parts.append(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>')
            parts.append(self._text(x, 100, words, 'class="tick" y="16" text-anchor="middle"'))
        for value, words in self.up.ticks():
            y = 100 - self.up.at(value)
            parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y:g}%" y2="{y:g}%"/>')
            parts.append(self._text(0, y, words, 'class="tick" x="-6" y="4" text-anchor="end"'))
        return "".join(parts)

    @staticmethod
    def _text(x: float, y: float, words: str, place: str) -> str:
        return f'<svg x="{x:g}%" y="{y:g}%" overflow="visible"><text {place}>{safe(words)}</text></svg>'
