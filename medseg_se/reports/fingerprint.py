"""One page on what a dataset is like: a single HTML file with its pictures inside, which needs no network to be read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_se.files import write_text
from medseg_se.optional import load_optional
from medseg_se.planning.facts import ChannelFacts, Fingerprint, StructureFacts
from medseg_se.reports.page import data_uri, page
from medseg_se.reports.sheet import FAINT, FRAME, GRID, INK, PANEL, PAPER, RESOLUTION, shortened

AXES = ("left-right", "back-front", "down-up")
_COLOURS = ("#56c1f5", "#ffb454", "#8bd17c")  # of the axes
_WIDTH, _ROW, _COLUMNS = 13.0, 0.24, 3  # inches: width of a picture, height of a structure's row; histograms side by side
_FEW = 16  # structures up to which counts are written into the cells of a matrix


def fingerprint_page(fingerprint: Fingerprint, path: Path | str) -> None:
    """Write the page: warnings first, then grids, intensities, volumes, extents and what appears together.

    Args:
        fingerprint: What was measured.
        path: The HTML file to write.

    Raises:
        OutputError: The file could not be written.
        UsageError: matplotlib or jinja2 is not installed.
    """
    pictures = [
        (
            "Grids",
            "A point a case, the white line their median. Axes are those of the world, whatever the order in the files.",
            _draw_grids(fingerprint),
        ),
        (
            "Intensities inside the structures",
            "Voxels drawn alike from every case, between the percentiles 0.5 and 99.5; counts grow by powers of ten.",
            _draw_intensities(fingerprint.channels),
        ),
    ]
    present = [structure for structure in fingerprint.structures if structure.cases]
    if present:
        about = (
            "Left: a point a case, the white line their median. Right: the smallest extent over the cases, for each axis by "
            "itself; the dotted lines are the median spacing along these axes."
        )
        pictures.append(("Volumes and smallest extents of the structures", about, _draw_structures(fingerprint, present)))
    if any(count < len(fingerprint.cases) for row in fingerprint.together for count in row) and len(present) > 1:
        about = "Cases in which the structures of row and column are both present; on the diagonal, those that have the one."
        pictures.append(("What appears together", about, _draw_together(fingerprint, present)))
    environment = load_optional("jinja2").Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    memory = sum(case.bytes for case in fingerprint.cases)
    body = environment.from_string(_TEMPLATE).render(
        found=fingerprint,
        pictures=pictures,
        memory=memory,
        largest=max(case.bytes for case in fingerprint.cases),
    )
    write_text(path, page(f"{fingerprint.name}: fingerprint", body, wide=True))


# ------------------------------------------------------------------------------------------------------------------ pictures


def _draw_grids(fingerprint: Fingerprint) -> str:
    cases = fingerprint.cases
    figure, (spacings, sizes, memory) = _figure(2.9, (1, 3), wspace=0.28)
    _strips(spacings, [[case.spacing[axis] for case in cases] for axis in range(3)], "spacing in mm")
    _strips(sizes, [[case.shape[axis] for case in cases] for axis in range(3)], "voxels of the whole scan")
    memory.hist([case.bytes / 2**20 for case in cases], bins=min(30, max(5, len(cases) // 4)), color=_COLOURS[0])
    memory.set_xlabel("MiB of a case at its own spacing, image and labels", color=FAINT, fontsize=9)
    memory.set_ylabel("cases", color=FAINT, fontsize=9)
    return _png(figure)


def _strips(axes: Any, groups: Sequence[Sequence[float]], words: str) -> None:
    rng = np.random.default_rng(0)
    for place, (values, colour) in enumerate(zip(groups, _COLOURS, strict=True)):
        axes.plot(place + rng.uniform(-0.25, 0.25, len(values)), values, "o", color=colour, alpha=0.5, markersize=3.5)
        axes.plot([place - 0.33, place + 0.33], [np.median(values)] * 2, color=INK, linewidth=1.6)
    axes.set_xticks(range(3), AXES)
    axes.set_xlim(-0.6, 2.6)
    axes.set_ylim(0, 1.08 * max(map(max, groups)))
    axes.set_ylabel(words, color=FAINT, fontsize=9)
    axes.grid(axis="y", color=GRID, linewidth=0.6)


def _draw_intensities(channels: Sequence[ChannelFacts]) -> str:
    rows = -(-len(channels) // _COLUMNS)
    columns = min(_COLUMNS, len(channels))
    figure, places = _figure(2.5 * rows + 0.4, (rows, columns), wspace=0.2, hspace=0.6)
    for axes, channel in zip(places, channels, strict=False):
        low, high = channel.percentiles["0.5"], channel.percentiles["99.5"]
        edges = np.linspace(low, high if high > low else low + 1, len(channel.histogram) + 1)
        axes.stairs(channel.histogram, edges, fill=True, color=_COLOURS[0])
        axes.set_yscale("log", nonpositive="clip")
        axes.axvline(channel.percentiles["50"], color=INK, linewidth=1.4)
        for name in ("5", "95"):
            axes.axvline(channel.percentiles[name], color=INK, linewidth=1.1, linestyle=":")
        kind = ", looks like HU" if channel.looks_like_ct else ""
        axes.set_title(
            f"{channel.name}: {channel.mean:.4g} ± {channel.deviation:.4g}{kind}", color=INK, fontsize=9.5, parse_math=False
        )
        axes.set_xlabel("intensity: median, 5 % and 95 %", color=FAINT, fontsize=9)
    for axes in places[len(channels) :]:
        axes.remove()
    return _png(figure)


def _draw_structures(fingerprint: Fingerprint, present: Sequence[StructureFacts]) -> str:
    figure, (volumes, extents) = _figure(_ROW * len(present) + 1.0, (1, 2), wspace=0.04, left=0.2)
    rng = np.random.default_rng(0)
    for row, structure in enumerate(present):
        values = [case.volumes[structure.name] for case in fingerprint.cases if structure.name in case.volumes]
        spread = row + rng.uniform(-0.25, 0.25, len(values))
        volumes.plot(values, spread, "o", color=_COLOURS[0], alpha=0.5, markersize=3, markeredgewidth=0)
        volumes.plot([structure.median_ml] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.6)
    for axis, (name, colour) in enumerate(zip(AXES, _COLOURS, strict=True)):
        shift = 0.2 * (axis - 1)
        lengths = [structure.extent_mm[axis] for structure in present]
        extents.plot(lengths, np.arange(len(present)) + shift, "o", color=colour, markersize=4, label=name)
        extents.axvline(fingerprint.median_spacing()[axis], color=colour, linestyle=":", linewidth=1.1)
    for axes, words in ((volumes, "volume in ml"), (extents, "smallest extent in mm")):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(load_optional("matplotlib.ticker").LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(len(present) - 0.4, -0.6)
        axes.set_xlabel(words, color=FAINT, fontsize=9)
        axes.grid(axis="both", color=GRID, linewidth=0.6)
    volumes.set_yticks(range(len(present)), [shortened(structure.name) for structure in present], parse_math=False)
    extents.set_yticks(range(len(present)), [""] * len(present))
    style = {"labelcolor": INK, "fontsize": 8.5, "columnspacing": 1.2, "handlelength": 1.0, "borderaxespad": 0.1}
    extents.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, **style)
    return _png(figure)


def _draw_together(fingerprint: Fingerprint, present: Sequence[StructureFacts]) -> str:
    rows = [place for place, structure in enumerate(fingerprint.structures) if structure.cases]
    counts = np.array(fingerprint.together)[np.ix_(rows, rows)]
    names = [shortened(structure.name) for structure in present]
    size, bottom = float(np.clip(0.4 * len(rows), 1.2, 9.0)), 0.3 + 0.07 * max(map(len, names))
    figure, (axes,) = _figure(size + bottom + 0.3, (1, 1), left=0.2, right=0.24 + size / _WIDTH, bottom=bottom)
    picture = axes.imshow(counts, cmap="viridis", vmin=0, vmax=len(fingerprint.cases), aspect="auto", interpolation="nearest")
    fine = {"fontsize": min(8.5, 0.75 * 72 * size / len(rows)), "parse_math": False}
    axes.set_yticks(range(len(rows)), names, **fine)
    axes.set_xticks(range(len(rows)), names, rotation=60, ha="right", rotation_mode="anchor", **fine)
    if len(rows) <= _FEW:
        for row, column in np.ndindex(*counts.shape):
            colour = PAPER if counts[row, column] > 0.6 * len(fingerprint.cases) else INK
            axes.text(column, row, str(counts[row, column]), color=colour, ha="center", va="center", fontsize=8)
    bar = figure.colorbar(picture, ax=axes, fraction=0.1, pad=0.03)
    bar.ax.tick_params(colors=FAINT, labelsize=8)
    return _png(figure)


def _figure(
    height: float, grid: tuple[int, int], left: float = 0.06, right: float = 0.985, bottom: float = 0.55, **gaps: float
) -> tuple[Any, list[Any]]:
    """Return a figure of `height` inches and its axes, row by row; `left` and `right` are shares, `bottom` is in inches."""
    canvas, figures = load_optional("matplotlib.backends.backend_agg"), load_optional("matplotlib.figure")
    figure = figures.Figure(figsize=(_WIDTH, height), dpi=RESOLUTION, facecolor=PAPER)
    canvas.FigureCanvasAgg(figure)  # its own canvas, so that the backend of a notebook stays as it is
    places = list(figure.subplots(*grid, squeeze=False).flat)
    figure.subplots_adjust(left, bottom / height, right, 1 - 0.3 / height, **gaps)
    for axes in places:
        axes.set_facecolor(PANEL)
        axes.set_axisbelow(True)
        axes.tick_params(colors=FAINT, labelsize=8.5, length=2)
        for spine in axes.spines.values():
            spine.set_color(FRAME)
    return figure, places


def _png(figure: Any) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=PAPER)
    return data_uri(stream.getvalue())


_TEMPLATE = """<h1>{{ found.name }}</h1>
<p>{{ found.cases | length }} usable case{{ "s" if found.cases | length > 1 }} of {{ found.groups }}
group{{ "s" if found.groups > 1 }}, {{ found.channels | length }} channel{{ "s" if found.channels | length > 1 }}
({{ found.channels | map(attribute="name") | join(", ") }}), {{ found.structures | length }}
structure{{ "s" if found.structures | length > 1 }}; {{ memory | filesizeformat(true) }} in memory at their own spacing,
the largest case {{ largest | filesizeformat(true) }}.</p>
<p class="faint">{{ found.source }}, digest {{ found.digest }}</p>
{% if found.warnings %}
<h2>Warnings</h2>
<ul class="warnings">
{% for warning in found.warnings %}
<li>{{ warning }}</li>
{% endfor %}
</ul>
{% endif %}
{% if found.unusable %}
<h2>Cases that cannot be used</h2>
<ul class="warnings broken">
{% for case, why in found.unusable.items() %}
<li><b>{{ case }}</b>: {{ why }}</li>
{% endfor %}
</ul>
{% endif %}
{% for heading, about, picture in pictures %}
<h2>{{ heading }}</h2>
<p class="faint">{{ about }}</p>
<img src="{{ picture }}" alt="{{ heading }}">
{% endfor %}
<h2>Structures</h2>
<div class="scroll"><table>
<tr><th>structure</th><th>label values</th><th>cases</th><th>median ml</th><th>smallest</th><th>largest</th>
<th>smallest extent, mm</th><th>share of voxels</th></tr>
{% for one in found.structures %}
<tr><td>{{ one.name }}</td><td>{{ one.values | join(", ") }}</td><td>{{ one.cases }}</td>
{% if one.cases %}
<td>{{ "%.4g" | format(one.median_ml) }}</td><td>{{ "%.4g" | format(one.smallest_ml) }}</td>
<td>{{ "%.4g" | format(one.largest_ml) }}</td><td>{% for length in one.extent_mm %}{{ " × " if not loop.first }}{{
"%.3g" | format(length) }}{% endfor %}</td><td>{{ "%.3g" | format(100 * one.share) }} %</td>
{% else %}
<td colspan="5">in no case</td>
{% endif %}
</tr>
{% endfor %}
</table></div>
<details>
<summary>Every case</summary>
<div class="scroll"><table>
<tr><th>case</th><th>group</th><th>voxels</th><th>nonzero box</th><th>spacing, mm</th><th>file lies</th><th>structures</th></tr>
{% for case in found.cases %}
<tr><td>{{ case.id }}</td><td>{{ case.group }}</td><td>{{ case.shape | join(" × ") }}</td>
<td>{{ case.cropped | join(" × ") }}</td>
<td>{% for length in case.spacing %}{{ " × " if not loop.first }}{{ "%.3g" | format(length) }}{% endfor %}</td>
<td>{{ case.orientation }}</td><td>{{ case.volumes | length }}</td></tr>
{% endfor %}
</table></div>
</details>
"""
