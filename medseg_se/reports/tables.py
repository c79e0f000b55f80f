"""Tables that are sorted by a click on a heading, and rows of small plots beside names: both fit a telephone and paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medseg_se.reports.page import number, safe


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Its name.
        kind: How it is sorted and on which side it stands.
        note: What a pointer on the heading is told.
    """

    heading: str
    kind: Literal["text", "number"] = "number"
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        html: What is shown.
        value: What it is sorted by; NaN stays at the end, whichever way. By default, for text, what is shown.
    """

    html: str
    value: float | str | None = None

    @classmethod
    def of(cls, value: float, digits: int = 3, more: str = "") -> Cell:
        """Return the cell of a number, with smaller words behind it."""
        small = f" <small>{safe(more)}</small>" if more and math.isfinite(value) else ""
        return cls(number(value, digits) + small, value)

    @classmethod
    def text(cls, words: str) -> Cell:
        """Return the cell of words."""
        return cls(safe(words), words)


def sortable_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], caption: str) -> str:
    """Return a table in a frame of its own, which alone scrolls sideways where it is too wide.

    Args:
        columns: From left to right.
        rows: A cell a column each.
        caption: What the table shows.
    """
    heads = "".join(
        f'<th scope="col" class="{column.kind}"{f" title={_quoted(column.note)}" if column.note else ""}>'
        f'<button type="button">{safe(column.heading)}</button></th>'
        for column in columns
    )
    body = "".join(
        "<tr>" + "".join(_cell(cell, column) for cell, column in zip(row, columns, strict=True)) + "</tr>\n" for row in rows
    )
    return (
        f'<p class="faint">{safe(caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label={_quoted(caption)}><table class="sortable">'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell, column: Column) -> str:
    value = cell.value
    known = value is not None and not (isinstance(value, float) and math.isnan(value))
    key = f" data-v={_quoted(value)}" if known and (column.kind == "number" or value != cell.html) else ""
    return f'<td class="{column.kind}"{key}>{cell.html}</td>'


def _quoted(value: object) -> str:
    return f'"{safe(value)}"'


# ----------------------------------------------------------------------------------------------------------------------- plots


@dataclass(frozen=True)
class Scale:
    """A horizontal axis.

    Attributes:
        low: Value at its left end.
        high: Value at its right end.
    """

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float], *also: float) -> Scale:
        """Return a scale with round ends that holds all finite values and `also` these."""
        held = [value for value in (*values, *also) if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(held), max(held)
        step = _round_step((high - low) or abs(high) or 1.0)
        first, last = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(first, last if last > first else first + step)

    def at(self, value: float) -> float:
        """Return where a value lies, in per cent of the width."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self) -> list[tuple[float, str]]:
        """Return round values within the scale and what they are called."""
        step = _round_step(self.high - self.low)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        count = math.floor((self.high - self.low) / step + 1e-6)
        first = math.ceil(self.low / step - 1e-6) * step
        values = [first + step * place for place in range(count + 1) if first + step * place <= self.high + 1e-6 * step]
        return [(value, f"{value + 0.0 if abs(value) > 1e-9 * step else 0.0:.{digits}f}".replace("-", "−")) for value in values]


def _round_step(length: float, most: int = 5) -> float:
    """Return 1, 2 or 5 times a power of ten, so that at most about `most` of it fill the length."""
    size: float = 10.0 ** math.floor(math.log10(length / most))
    return next(size * times for times in (1, 2, 5, 10) if length / (size * times) <= most + 1e-9)


def strip(name: str, marks: str, words: str, scale: Scale, height: int = 26) -> str:
    """Return a row: a name, its marks over the grid of the scale, and words.

    Args:
        name: HTML.
        marks: SVG whose horizontal places are per cent and whose vertical ones are pixels.
        words: Text.
        scale: The axis.
        height: Pixels.
    """
    grid = "".join(
        f'<line class="grid" x1="{scale.at(value)}%" x2="{scale.at(value)}%" y1="0" y2="{height}"/>'
        for value, _ in scale.ticks()
    )
    picture = f'<svg height="{height}" aria-hidden="true">{grid}{marks}</svg>'
    return f'<div class="strip"><span>{name}</span>{picture}<span>{safe(words)}</span></div>'


def axis_strip(title: str, scale: Scale) -> str:
    """Return the row that names the values."""
    ticks = "".join(f'<text x="{scale.at(value)}%" y="12">{words}</text>' for value, words in scale.ticks())
    picture = f'<svg height="16" aria-hidden="true">{ticks}</svg>'
    return f'<div class="strip axis"><span class="faint">{safe(title)}</span>{picture}<span></span></div>'
