"""Curves of a training run on one sheet: losses, score and learning rate above, every structure, class or value below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_se.reports.logs import History
from medseg_se.reports.sheet import FAINT, GRID, INK, SIDE, WIDTH, Sheet
from medseg_se.tasks.base import Score
from medseg_se.tasks.checkpoints import smoothed_name

PARTS = {"val_dice/": "Dice of every structure", "val_recall/": "Recall of every class", "val_mae/": "Mean absolute error"}
"""What the parts of a validation are logged under, and what that is called."""
_SHARES = ("val_dice/", "val_recall/")  # between 0 and 1
_TRAINING, _VALIDATION, _SMOOTH = "#56c1f5", "#ffb454", "#8bd17c"
_MANY = 12  # parts beyond which a map of colours is easier to read than small plots
_PLOT, _SMALL, _ROW = 3.0, 1.6, 0.17  # inches: height of a plot, of a small one, of a row of the map
_COLUMNS = 4
_PLAIN = {"parse_math": False}  # names may hold a dollar


def draw_curves(history: History, path: Path | str, title: str, line: str, score: Score) -> None:
    """Write one PNG of what was logged.

    Args:
        history: Name → epoch, from 0 → value.
        path: The PNG to write.
        title: Heading.
        line: Line below it.
        score: The number that chooses the checkpoint.

    Raises:
        OutputError: The file could not be written.
        UsageError: matplotlib is not installed.
    """
    sheet = Sheet()
    sheet.add(_PLOT + 1.0, partial(_draw_run, history, score))
    prefix, parts = parts_of(history)
    if len(parts) > _MANY:
        sheet.add(_ROW * len(parts) + 1.1, partial(_draw_map, parts, prefix))
    elif len(parts) > 1:
        sheet.add((_SMALL + 0.6) * math.ceil(len(parts) / _COLUMNS) + 0.6, partial(_draw_small, parts, prefix))
    title, line = (words.replace("$", r"\$") for words in (title, line))  # which would begin a formula
    patches = "Validation while training is on patches; the summary has the whole scans."
    sheet.write(path, title, line, patches if prefix == "val_dice/" else "")


def parts_of(history: Mapping[str, Mapping[int, float]]) -> tuple[str, dict[str, Mapping[int, float]]]:
    """Return what the parts are logged under, one of `PARTS`, and the course of each; nothing where there are none."""
    for prefix in PARTS:
        found = {name.removeprefix(prefix): values for name, values in history.items() if name.startswith(prefix)}
        if found:
            return prefix, found
    return "", {}


def _draw_run(history: History, score: Score, sheet: Sheet, top: float) -> None:
    name, word, smooth = score.name, score.word, smoothed_name(score)
    plots = [
        ("Loss", [("train_loss", "training", _TRAINING), ("val_loss", "validation", _VALIDATION)]),
        (word[:1].upper() + word[1:], [(name, "validation", _VALIDATION), (smooth, "smoothed", _SMOOTH)]),
        ("Learning rate", [("lr", "", _TRAINING)]),
    ]
    room = 0.7
    width = (WIDTH - 2 * SIDE - room * (len(plots) - 1)) / len(plots)
    for place, (heading, lines) in enumerate(plots):
        left = SIDE + place * (width + room)
        sheet.heading(top + 0.1, heading, left)
        axes = sheet.axes(left, top + 0.35, width, _PLOT)
        drawn = [_line(axes, history.get(key, {}), colour, label) for key, label, colour in lines]
        if sum(drawn) > 1:
            axes.legend(facecolor="none", edgecolor="none", labelcolor=INK, fontsize=8.5)
        if place == 1 and (best := best_epoch(history.get(smooth) or history.get(name, {}), score)):
            axes.plot(*best, "o", color=INK, markersize=5)  # what is kept
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_xlabel("epoch", color=FAINT, fontsize=8.5)


def best_epoch(course: Mapping[int, float], score: Score) -> tuple[int, float] | None:
    """Return the epoch, from 1, with the best value, and the value; None where there is none."""
    counted = {epoch: value for epoch, value in course.items() if math.isfinite(value)}
    if not counted:
        return None
    epoch = (max if score.mode == "max" else min)(counted, key=lambda number: counted[number])
    return epoch + 1, counted[epoch]


def _draw_small(parts: Mapping[str, Mapping[int, float]], prefix: str, sheet: Sheet, top: float) -> None:
    sheet.heading(top + 0.1, PARTS[prefix])
    room = 0.45
    width = (WIDTH - 2 * SIDE - room * (_COLUMNS - 1)) / _COLUMNS
    for number, (name, course) in enumerate(parts.items()):
        row, column = divmod(number, _COLUMNS)
        left, high = SIDE + column * (width + room), top + 0.65 + row * (_SMALL + 0.6)
        sheet.text(left, high - 0.14, name, fontsize=9, **_PLAIN)
        sheet.text(left + width, high - 0.14, _last(course), fontsize=9, color=FAINT, ha="right")
        axes = sheet.axes(left, high, width, _SMALL)
        _line(axes, course, _VALIDATION)
        if prefix in _SHARES:
            axes.set_ylim(0, 1)
        axes.grid(color=GRID, linewidth=0.6)


def _draw_map(parts: Mapping[str, Mapping[int, float]], prefix: str, sheet: Sheet, top: float) -> None:
    sheet.heading(top + 0.1, f"{PARTS[prefix]}, over the epochs; the last value on the right")
    first, last = min(min(course) for course in parts.values()), max(max(course) for course in parts.values())
    table = np.full((len(parts), last - first + 1), np.nan)
    for row, course in enumerate(parts.values()):
        for epoch, value in course.items():
            table[row, epoch - first] = value
    names, figures = 2.6, 0.6
    left, width, height = SIDE + names, WIDTH - 2 * SIDE - names - figures, _ROW * len(parts)
    axes = sheet.axes(left, top + 0.35, width, height)
    limits = {"vmin": 0, "vmax": 1} if prefix in _SHARES else {}
    extent = (first + 0.5, last + 1.5, len(parts) - 0.5, -0.5)
    axes.imshow(table, aspect="auto", cmap="magma", interpolation="nearest", extent=extent, **limits)
    axes.set_yticks([])
    axes.set_xlabel("epoch", color=FAINT, fontsize=8.5)
    for row, (name, course) in enumerate(parts.items()):
        middle = top + 0.35 + _ROW * (row + 0.5)
        sheet.text(left - 0.1, middle, name, fontsize=7.5, ha="right", **_PLAIN)
        sheet.text(left + width + 0.1, middle, _last(course), fontsize=7.5, color=FAINT)


def _line(axes: Any, course: Mapping[int, float], colour: str, label: str = "") -> bool:
    """Draw one course; a single epoch is a dot. Returns whether there was anything to draw."""
    epochs = sorted(course)
    few = {"marker": "o", "markersize": 3} if len(epochs) < 30 else {}
    axes.plot([epoch + 1 for epoch in epochs], [course[epoch] for epoch in epochs], color=colour, label=label, **few)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return bool(epochs)


def _last(course: Mapping[int, float]) -> str:
    value = course[max(course)]
    return f"{value:.3f}" if math.isfinite(value) else "–"
