"""What attention blocks do by class, on a page: a table along the data flow, and the channels of the gate that tells most."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from medseg_se.analysis.gate_statistics import CLOSED, OPEN
from medseg_se.reports.page import data_uri, number, safe
from medseg_se.reports.tables import Cell, Column, sortable_table

if TYPE_CHECKING:
    from medseg_se.analysis.explaining import ClassGates

_RAISED, _LOWERED = np.array([230, 159, 0]), np.array([63, 127, 224])
_NOTE = (
    "η² is the share of the channel gates' variance between scans that lies between classes; chance is its mean if "
    "classes were dealt at random, and ε² is η² without it: 0 at random, 1 at best. A gate moves by its standard deviation "
    "between scans; where that is next to nothing, so is what a large η² means. p is of each insertion point by itself. What "
    "differs between classes need not be the disease: another scanner or another plane moves gates too."
)


def gates_section(gates: ClassGates, by: str = "true class") -> str:
    """Return the summary of the gates over scans of several classes; `by` says which class of a scan that is."""
    counts = ", ".join(f"{name} {count}" for name, count in gates.groups.items())
    blocks = ", ".join(dict.fromkeys(point.block for point in gates.points))
    columns = [
        Column("gate", "text", "along the data flow; 0 is full resolution"),
        Column("mean"),
        Column("SD"),
        Column("5 %"),
        Column("50 %"),
        Column("95 %"),
        Column(f"< {CLOSED}", note="share of gates that are nearly closed"),
        Column(f"> {OPEN}", note="share of gates that are nearly open"),
        Column("moves by", note="standard deviation between scans, root of the mean over channels"),
        Column("η²"),
        Column("chance"),
        Column("ε²"),
        Column("p"),
    ]
    rows = []
    for point in gates.points:
        for kind, gate in gates.statistics[point.name].items():
            found = gates.selectivity.get((point.name, kind))
            scores = [math.nan] * 5 if found is None else [found.sd, found.eta2, found.chance, found.epsilon2, found.p_value]
            values = [gate.mean, gate.sd, gate.p5, gate.median, gate.p95]
            shares = [Cell(f"{100 * share:.0f} %", share) for share in (gate.closed, gate.open)]
            rows.append([Cell.text(f"{point.name} {kind}"), *map(Cell.of, values), *shares, *map(Cell.of, scores)])
    table = sortable_table(columns, rows, f"Gates of {blocks} on {sum(gates.groups.values())} scans, by {by}: {counts}")
    return f'{table}{_channels(gates)}<p class="faint">{safe(_NOTE)}</p>'


def _channels(gates: ClassGates) -> str:
    """Return how far each class's mean gate lies from the channel's mean, at the gate that moves most with the class."""
    known = {key: one for key, one in gates.selectivity.items() if not math.isnan(one.epsilon2)}
    if not known:
        return ""
    (name, kind), found = max(known.items(), key=lambda item: item[1].epsilon2 * item[1].sd ** 2)
    centre = found.means.mean(axis=0)
    order = np.argsort(centre)
    departure = (found.means - centre)[:, order]
    most = float(np.abs(departure).max()) or 1.0
    share = np.clip(np.abs(departure) / most, 0, 1)[..., None]
    colours = 255 + share * (np.where((departure > 0)[..., None], _RAISED, _LOWERED) - 255)
    rows = []
    for label, line in zip(gates.groups, np.rint(colours).astype(np.uint8), strict=True):
        stream = io.BytesIO()
        Image.fromarray(line[None]).save(stream, "PNG")
        words = f"gates of {label} at {name}, channel by channel"
        image = f'<img class="pixels" style="height:1.1rem" alt="{safe(words)}" src="{data_uri(stream.getvalue())}">'
        rows.append(f'<div class="strip"><span>{safe(label)}</span>{image}<span></span></div>')
    ends = [number(float(centre[place])) for place in order[[0, -1]]]
    words = (
        f"{name} {kind}, which moves most with the class: mean gate by class less the channel's mean over the classes, from "
        f"−{number(most)} (blue) to +{number(most)} (orange); {len(order)} channels by rising gate ({' … '.join(ends)})"
    )
    return f'<p class="faint">{safe(words)}</p><div class="strips">{"".join(rows)}</div>'
