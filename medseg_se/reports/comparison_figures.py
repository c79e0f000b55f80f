"""Two figures of a comparison: differences with their intervals (forest), and what is reached for what it costs (Pareto)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_se.evaluation.comparison import Comparison, Contrast, Outcome
from medseg_se.evaluation.verdict import LEVEL, MEAN
from medseg_se.files import atomic_write
from medseg_se.optional import load_optional
from medseg_se.reports.pareto import Candidate, pareto_front

_INK, _FAINT, _EVIDENCE, _PLAIN = "#1b1f26", "#8a919c", "#d55e00", "#3f6fb0"
_PANELS = 6  # of a forest, the mean over foreground among them
_FORMATS = ("png", "svg")
_NETWORKS = ("#3f6fb0", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
COST_AXES: dict[str, tuple[str, float]] = {
    "flops": ("GFLOPs of a forward pass", 1e9),
    "parameters": ("parameters, thousands", 1e3),
    "step_seconds": ("training step, ms", 1e-3),
    "predict_seconds": ("prediction of a case, s", 1.0),
}


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write forest.png and .svg, and pareto.png and .svg if costs are known; returns their paths.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: A file could not be written.
    """
    written = _write(_forest(comparison), folder / "forest")
    costs = [key for key in COST_AXES if all(key in outcome.cost for outcome in comparison.outcomes)]
    if costs:
        written += _write(_pareto(comparison, costs), folder / "pareto")
    return written


def front_of(points: Sequence[tuple[float, float]], better: str) -> list[tuple[float, float]]:
    """Return those points (cost, value) that no other beats in one without being worse in the other, by rising cost.

    Args:
        points: The points.
        better: "higher", "lower", or "zero".
    """
    scores = [-abs(value) if better == "zero" else -value if better == "lower" else value for _, value in points]
    costs = [cost for cost, _ in points]
    front = pareto_front([Candidate(str(place), *pair) for place, pair in enumerate(zip(costs, scores, strict=True))])
    return [points[int(one.name)] for one in front]


def drawn_structures(comparison: Comparison) -> tuple[str, ...]:
    """Return the structures that are drawn beside the mean over foreground: of many, those with the smallest p."""
    names = comparison.structures
    if len(names) < 2:
        return ()

    def smallest(name: str) -> float:
        return min((p for one in comparison.contrasts if not math.isnan(p := one.p[name])), default=math.inf)

    chosen = set(sorted(names, key=smallest)[: _PANELS - 1])
    return tuple(name for name in names if name in chosen)


def _figure(width: float, height: float) -> Any:
    canvas, figures = load_optional("matplotlib.backends.backend_agg"), load_optional("matplotlib.figure")
    figure = figures.Figure(figsize=(width, height), dpi=150, layout="constrained")
    canvas.FigureCanvasAgg(figure)  # its own canvas, so that the backend of a notebook stays as it is
    return figure


def _write(figure: Any, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(f".{kind}") for kind in _FORMATS]
    for path, kind in zip(paths, _FORMATS, strict=True):
        with atomic_write(path) as stream:
            figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return paths


# ----------------------------------------------------------------------------------------------------------------------- forest


def _forest(comparison: Comparison) -> Any:
    """Return a panel for the mean over foreground and each structure: of many, those with the smallest p."""
    contrasts, panels = comparison.contrasts, (MEAN, *drawn_structures(comparison))
    figure = _figure(2.2 + 2.1 * len(panels), 1.6 + 0.3 * len(contrasts))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, panels, strict=True):
        _panel(axis, contrasts, name)
    axes[0].set_yticks(range(len(contrasts)), [one.name for one in contrasts], fontsize=8)
    axes[0].set_ylim(len(contrasts) - 0.5, -0.5)
    measure = comparison.measure
    unit = f" in {measure.unit}" if measure.unit else ""
    figure.supxlabel(f"difference of {measure.title} to the reference{unit}, {comparison.confidence:.0%} interval", fontsize=9)
    left = len(comparison.structures) - len(panels) + 1
    aside = f"; {left} more structures in table.csv" if left and len(panels) > 1 else ""
    figure.suptitle(f"Filled and orange: corrected p below {LEVEL:g}{aside}", fontsize=8, color=_FAINT)
    return figure


def _panel(axis: Any, contrasts: Sequence[Contrast], name: str) -> None:
    axis.axvline(0, color=_FAINT, linewidth=0.8)
    for place, contrast in enumerate(contrasts):
        paired, evidence = contrast.paired[name], contrast.p[name] < LEVEL
        colour = _EVIDENCE if evidence else _PLAIN
        if not math.isnan(paired.low):
            axis.plot([paired.low, paired.high], [place, place], color=colour, linewidth=1.4)
        axis.plot(paired.difference, place, "o", color=colour, markerfacecolor=colour if evidence else "white", markersize=4.5)
    axis.set_title(name.replace("_", " "), fontsize=8.5, color=_INK)
    axis.tick_params(labelsize=7.5)
    axis.locator_params(axis="x", nbins=4)
    _bare(axis)


# ----------------------------------------------------------------------------------------------------------------------- pareto


def _pareto(comparison: Comparison, costs: Sequence[str]) -> Any:
    """Return a panel for each cost: every run as a point, and a line through those that no other beats."""
    rows = -(-len(costs) // 2)
    figure = _figure(9.0 if len(costs) > 1 else 5.0, 0.6 + 3.6 * rows)
    axes = figure.subplots(rows, min(2, len(costs)), sharey=True, squeeze=False).ravel()
    for axis in axes[len(costs) :]:
        axis.set_visible(False)
    for axis, key in zip(axes, costs, strict=False):
        _points(axis, comparison, key)
    colours = _colours(comparison.outcomes)
    dot = load_optional("matplotlib.lines").Line2D
    handles = [dot([], [], marker="s", linestyle="", color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7.5, frameon=False)
    title = "Squares: references. The line joins what nothing else beats; how sure differences are is in the forest plot."
    figure.suptitle(title, fontsize=8, color=_FAINT)
    return figure


def _points(axis: Any, comparison: Comparison, key: str) -> None:
    title, scale = COST_AXES[key]
    points = [(one.cost[key] / scale, one.values[MEAN].estimate) for one in comparison.outcomes]
    front = front_of(points, str(comparison.measure.better))
    axis.plot([cost for cost, _ in front], [value for _, value in front], color=_FAINT, linewidth=1, zorder=1)
    colours = _colours(comparison.outcomes)
    for outcome, (cost, value) in zip(comparison.outcomes, points, strict=True):
        marker = "s" if outcome.reference is None else "o"
        axis.plot(cost, value, marker, color=colours[outcome.reference or outcome.name], markersize=5, zorder=2)
        axis.annotate(_label(outcome), (cost, value), (4, 3), textcoords="offset points", fontsize=6.5, color=_INK)
    axis.set_xlabel(title, fontsize=8.5)
    axis.set_ylabel(f"{comparison.measure.title}, {MEAN}", fontsize=8.5)
    axis.tick_params(labelsize=7.5)
    axis.margins(0.12)
    _bare(axis)


def _colours(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return reference → the colour of it and of what is compared with it."""
    references = dict.fromkeys(one.reference or one.name for one in outcomes)
    return {name: _NETWORKS[place % len(_NETWORKS)] for place, name in enumerate(references)}


def _label(outcome: Outcome) -> str:
    """Return a run's name without that of the network, which the colour tells, where it has both."""
    return outcome.name.partition(" ")[2] or outcome.name


def _bare(axis: Any) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
