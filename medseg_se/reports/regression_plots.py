"""The plots of a regression's report: predicted against true, Bland and Altman's, and the error against the true number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.reports.forest import signed
from medseg_se.reports.page import number
from medseg_se.reports.panel import Panel
from medseg_se.reports.tables import Scale

Array = npt.NDArray[Any]

_DOT, _UNLIKE = "#56b4e9", "#d55e00"
LIMITS = 1.96
"""Standard deviations from the mean difference to the limits of agreement (Bland and Altman, 1986)."""


def scatter_plot(name: str, ids: Sequence[str], truth: Array, answers: Array, unlike: Array) -> str:
    """Return predicted against true numbers, with the line on which both are the same.

    Args:
        name: What was predicted.
        ids: Of the cases.
        truth: (n,).
        answers: (n,).
        unlike: Whether each is unlike the scans of the training, (n,).
    """
    scale = Scale.around([*truth, *answers])
    panel = Panel(scale, scale, (f"true {name}", f"predicted {name}"), f"predicted against true {name}")
    ends = [scale.low, scale.high]
    words = [
        f"{case}: true {number(true, 2)}, predicted {number(said, 2)}"
        for case, true, said in zip(ids, truth, answers, strict=True)
    ]
    return _figure(
        panel, [panel.curve(ends, ends, "var(--faint)", "predicted is true", "chance")], truth, answers, unlike, words
    )


def agreement_plot(name: str, ids: Sequence[str], truth: Array, answers: Array, unlike: Array) -> str:
    """Return differences against means with the limits of agreement; arguments as `scatter_plot`.

    Bland and Altman, 1986, https://doi.org/10.1016/S0140-6736(86)90837-8.
    """
    means, differences = (truth + answers) / 2, answers - truth
    middle = float(differences.mean())
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else np.nan
    levels = {"mean": middle}
    if np.isfinite(spread):
        levels |= {f"mean + {LIMITS} SD": middle + LIMITS * spread, f"mean − {LIMITS} SD": middle - LIMITS * spread}
    panel = Panel(
        Scale.around(list(means)),
        Scale.around([*differences, *levels.values()], 0.0),
        (f"mean of true and predicted {name}", "predicted − true"),
        f"Bland-Altman plot of {name}",
        wide=True,
    )
    lines = [
        panel.level(value, f"{words} {signed(value, 2)}", "" if words == "mean" else "limit") for words, value in levels.items()
    ]
    return _figure(panel, lines, means, differences, unlike, _words(ids, truth, differences))


def error_plot(name: str, ids: Sequence[str], truth: Array, answers: Array, unlike: Array) -> str:
    """Return errors against true numbers with the straight line through them; arguments as `scatter_plot`.

    A line that falls is the bias towards the mean that regressions of age are known for.
    """
    differences = answers - truth
    panel = Panel(
        Scale.around(list(truth)),
        Scale.around(list(differences), 0.0),
        (f"true {name}", "predicted − true"),
        f"error against true {name}",
        wide=True,
    )
    marks = [panel.level(0.0, "")]
    if len(truth) > 1 and np.ptp(truth) > 0:
        slope, start = np.polyfit(truth, differences, 1)
        low, high = float(truth.min()), float(truth.max())
        title = f"slope {signed(float(slope), 3)} per unit"
        ends = np.clip([start + slope * low, start + slope * high], panel.up.low, panel.up.high).tolist()
        marks.append(panel.curve([low, high], ends, "var(--accent)", title))
    return _figure(panel, marks, truth, differences, unlike, _words(ids, truth, differences))


def _words(ids: Sequence[str], truth: Array, differences: Array) -> list[str]:
    return [
        f"{case}: true {number(true, 2)}, error {signed(error, 2)}"
        for case, true, error in zip(ids, truth, differences, strict=True)
    ]


def _figure(panel: Panel, lines: list[str], xs: Array, ys: Array, unlike: Array, words: Sequence[str]) -> str:
    dots = [
        panel.dot(float(x), float(y), _UNLIKE if odd else _DOT, f"{said}{' (unlike the training)' if odd else ''}")
        for x, y, odd, said in zip(xs, ys, unlike, words, strict=True)
    ]
    return f"<div>{panel.draw([*lines, *dots])}</div>"


def unlike_note(unlike: Array) -> str:
    """Return what the colour of a point tells, where some cases are unlike the scans of the training."""
    swatch = f'<span class="swatch" style="background:{_UNLIKE}"></span>'
    return f'<p class="faint">{swatch}unlike the scans of the training</p>' if unlike.any() else ""
