"""One page on what attention does inside a network: gates along the data flow, how selective they are, and where they open.

Insertion points come in the order of the data flow, so that early and late lie left and right in every plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_se.analysis.inspection import Inspection
from medseg_se.reports.gate_maps import GateMaps
from medseg_se.reports.sheet import FAINT, GRID, INK, PANEL, PAPER, SIDE, WIDTH, Sheet, shortened

_KINDS = {"channel": "#56c1f5", "spatial": "#ffb454", "voxel": "#c792ea"}
_COLOURS = ("#56c1f5", "#ffb454", "#8bd17c", "#c792ea", "#ff7b72", "#e6db74", "#9aa1ab", "#3f7fb5")
_CORRECTED, _CHANCE = "#f5e663", "#ff7b72"
_FEW = 2  # kinds of gates that are shown in detail
_PLOT, _NAMES, _BAR = 3.0, 2.1, 0.24  # inches: height of a plot, room for names of structures, height of a row of weights


def gates_page(inspection: Inspection, path: Path | str, title: str = "") -> None:
    """Write one PNG: distribution of the gates, selectivity, mean gate by structure and channel, learnt weights, and maps.

    What the network's blocks do not have is left out.

    Args:
        inspection: What was found.
        path: The PNG to write.
        title: Heading, such as the name of the scan.

    Raises:
        OutputError: The file could not be written.
        UsageError: matplotlib is not installed.
    """
    sheet, points = Sheet(), inspection.recording.points
    if any(inspection.recording.statistics.values()):
        sheet.add(_PLOT + 1.35, partial(_draw_curves, inspection))
    if inspection.selectivity:
        sheet.add(_heat_height(inspection) + 1.25, partial(_draw_heat_maps, inspection))
    if any(point.choice for point in points):
        sheet.add(_BAR * sum(bool(point.choice) for point in points) + 1.2, partial(_draw_choices, inspection))
    if inspection.recording.maps:
        maps = GateMaps(inspection)
        sheet.add(maps.height, maps.draw)
    blocks = ", ".join(dict.fromkeys(point.block for point in points))
    line = f"{blocks} at {len(points)} insertion points, 0 = full resolution; structures by "
    line += "the given label" if inspection.source == "label" else "the model's own prediction"
    note = ""
    if inspection.selectivity:
        line += f"; {sum(inspection.groups.values())} patches of {' × '.join(map(str, inspection.patch))} voxels"
        note = (
            "All patches are of one scan, and those of a structure lie close together: gates that follow the place in the body "
            "look selective too. ε² is η² without what chance gives."
        )
    sheet.write(path, title or "Inside the network", line, note)


# -------------------------------------------------------------------------------------------------------------- along the flow


def _draw_curves(inspection: Inspection, sheet: Sheet, top: float) -> None:
    both = bool(inspection.selectivity)
    width = (WIDTH - 2 * SIDE - 0.8) / 2 if both else WIDTH - 2 * SIDE
    sheet.heading(top + 0.1, "Gates along the data flow")
    _draw_distributions(inspection, sheet.axes(SIDE, top + 0.3, width, _PLOT))
    if both:
        left = SIDE + width + 0.8
        sheet.heading(top + 0.1, "Selectivity of channel gates", left)
        _draw_selectivity(inspection, sheet.axes(left, top + 0.3, width, _PLOT))


def _draw_distributions(inspection: Inspection, axes: Any) -> None:
    statistics, points = inspection.recording.statistics, inspection.recording.points
    kinds = list(dict.fromkeys(kind for found in statistics.values() for kind in found))
    palette, width = _palette(kinds), 6 if len(kinds) <= _FEW else 2.5
    for number, (kind, colour) in enumerate(palette.items()):
        shift = (number - (len(kinds) - 1) / 2) * min(0.22, 0.7 / len(kinds))
        for place, gates in enumerate(statistics[point.name] for point in points):
            if kind in gates:
                gate, x = gates[kind], [place + shift] * 2
                axes.plot(x, [gate.p5, gate.p95], color=colour, linewidth=1.4)
                axes.plot(x, [gate.p25, gate.p75], color=colour, linewidth=width, solid_capstyle="butt")
                axes.plot(x[0], gate.median, "o", color=PAPER, markersize=0.75 * width, markeredgecolor=colour)
        axes.plot([], [], color=colour, linewidth=6, label=kind)
    if all(gate.minimum >= 0 and gate.maximum <= 1 for found in statistics.values() for gate in found.values()):
        axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("gate: median, 25–75 %, 5–95 %", color=FAINT, fontsize=9)
    _name_points(axes, [point.name for point in points])
    _legend(axes)


def _draw_selectivity(inspection: Inspection, axes: Any) -> None:
    found = inspection.selectivity
    names, kinds = (list(dict.fromkeys(key[part] for key in found)) for part in (0, 1))
    defined = [one for one in found.values() if not math.isnan(one.eta2)]
    rng = np.random.default_rng(0)
    crowded = len(names) > 10
    line = (0.19 if crowded else 0.07) if len(kinds) <= _FEW else 0.0
    for number, (kind, colour) in enumerate(_palette(kinds).items()):
        suffix = "" if len(kinds) == 1 else f" {kind}"
        known = {names.index(name): one for (name, other), one in found.items() if other == kind}
        for place, one in known.items():
            x = place + rng.uniform(-0.18, 0.18, len(one.channels))
            axes.plot(x, one.channels, ".", color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
            style = {"rotation": 90 if crowded else 0, "color": colour if len(kinds) > 1 else FAINT}
            if line:
                axes.text(place, 1.05 + line * number, f"±{one.sd:.1g}", ha="center", fontsize=7.5, **style)
        axes.plot(list(known), [one.eta2 for one in known.values()], "o-", color=colour, markersize=6, label=f"η²{suffix}")
        if len(kinds) <= _FEW:
            corrected, style = [one.epsilon2 for one in known.values()], {"color": _CORRECTED if len(kinds) == 1 else colour}
            axes.plot(list(known), corrected, "s--", markersize=4.5, linewidth=1.1, label=f"ε²{suffix}", **style)
    axes.plot([], [], ".", color=FAINT, label="one channel")
    if defined:
        chance = defined[0].chance
        axes.axhline(chance, color=_CHANCE, linestyle=":", linewidth=1.4, label=f"η² by chance, {chance:.2f}")
    else:
        words = "not defined: the gates are constant, or there are too few structures or patches"
        axes.text(0.5, 0.5, words, color=FAINT, ha="center", va="center", transform=axes.transAxes)
    axes.set_ylim(min([0.0, *(one.epsilon2 for one in defined)]) - 0.05, 1.07 + line * len(kinds))
    axes.set_yticks(np.arange(0, 1.1, 0.2))
    words = "share of variance between structures" + ("\n(on top: SD of gates between patches)" if line else "")
    axes.set_ylabel(words, color=FAINT, fontsize=9)
    _name_points(axes, names)
    _legend(axes)


def _name_points(axes: Any, names: Sequence[str]) -> None:
    axes.set_xlim(-0.6, len(names) - 0.4)
    style = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "fontsize": 8.5 if len(names) <= 14 else 7.0}
    axes.set_xticks(range(len(names)), names, **style)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Any, columns: int = 4) -> None:
    """Name the curves above the axes, or within them where they are many."""
    handles, _ = axes.get_legend_handles_labels()
    style = {"labelcolor": INK, "fontsize": 8.5, "columnspacing": 1.2, "handlelength": 1.4, "borderaxespad": 0.1}
    if len(handles) <= columns:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, frameon=False, **style)
    else:
        style |= {"fontsize": 7, "facecolor": PANEL, "edgecolor": GRID, "framealpha": 0.8}
        axes.legend(loc="best", ncols=3, **style)


def _palette(kinds: Sequence[str]) -> dict[str, str]:
    """Return kind → colour: the usual ones where they tell the kinds apart."""
    usual = [_KINDS.get(kind.split()[-1], "") for kind in kinds]
    told = len(set(usual)) == len(kinds) and "" not in usual
    return {kind: usual[n] if told else _COLOURS[n % len(_COLOURS)] for n, kind in enumerate(kinds)}


# --------------------------------------------------------------------------------------------------- by structure and channel


def _heat_height(inspection: Inspection) -> float:
    return float(np.clip(0.17 * len(inspection.groups), 0.8, 7.0))


def _draw_heat_maps(inspection: Inspection, sheet: Sheet, top: float) -> None:
    """Draw how far each structure's mean gate lies from the channel's, at the first, deepest and last insertion point."""
    turning, height = inspection.turning_points(), _heat_height(inspection)
    names = [shortened(name) for name in inspection.groups]
    step = (WIDTH - 2 * SIDE - _NAMES + 0.6) / len(turning)
    width = step - 1.05
    sheet.heading(top, "Mean channel gate by structure: departure from the channel's own mean")
    for number, (word, key) in enumerate(turning.items()):
        left, found = SIDE - 0.3 + _NAMES + number * step, inspection.selectivity[key]
        order = np.argsort(found.means.mean(axis=0))
        centre = found.means.mean(axis=0)[order]
        departure = found.means[:, order] - centre
        most = float(np.abs(departure).max()) or 1.0
        constant = "" if found.sd else " (constant)"
        sheet.text(left, top + 0.3, f"{word}: {' '.join(key)}{constant}", fontsize=9.5, color=FAINT)
        strip = sheet.axes(left, top + 0.45, width, 0.14)
        strip.imshow(centre[None], aspect="auto", cmap="viridis", vmin=0, vmax=max(1.0, float(centre.max())))
        strip.set(xticks=[], yticks=[])
        axes = sheet.axes(left, top + 0.63, width, height)
        picture = axes.imshow(departure, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        words = f"{len(centre)} channels, by mean gate ({centre[0]:.2f} … {centre[-1]:.2f})"
        axes.set_xlabel(words, color=FAINT, fontsize=8.5)
        size = min(8.5, 0.75 * 72 * height / len(names))
        axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names), fontsize=size)
        axes.set(xticks=[])
        ends = {-most: f"−{most:.1g}", most: f"+{most:.1g}"} if found.sd else {}
        sheet.colour_bar(picture, left + width + 0.08, top + 0.63, height, {0.0: "0", **ends})


def _draw_choices(inspection: Inspection, sheet: Sheet, top: float) -> None:
    """Draw the learnt weights of every block that weighs alternatives."""
    chosen = [point for point in inspection.recording.points if point.choice]
    sheet.heading(top + 0.1, "Learnt weights of the alternatives")
    axes = sheet.axes(SIDE + 1.6, top + 0.3, WIDTH - 2 * SIDE - 4.2, _BAR * len(chosen) + 0.1)
    start = np.zeros(len(chosen))
    for number, name in enumerate(dict.fromkeys(name for point in chosen for name in point.choice)):
        weights = np.array([point.choice.get(name, 0.0) for point in chosen])
        bars = axes.barh(range(len(chosen)), weights, 0.7, start, color=_COLOURS[number % len(_COLOURS)], label=name)
        words = [f"{weight:.2f}" if weight > 0.05 else "" for weight in weights]
        axes.bar_label(bars, words, label_type="center", fontsize=7.5, color=PAPER)
        start += weights
    axes.set_yticks(range(len(chosen)), [point.name for point in chosen])
    axes.set(xlim=(0, max(1.0, float(start.max()))), ylim=(len(chosen) - 0.4, -0.6))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, labelcolor=INK, fontsize=9)
