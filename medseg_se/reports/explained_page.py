"""What `medseg-se inspect` shows of a classifier or regression: scans with what speaks for each answer, and its gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medseg_se.analysis.explaining import ClassGates, Explainer
from medseg_se.data.datalist import Case
from medseg_se.files import write_json
from medseg_se.reports.answer_cards import Shown
from medseg_se.reports.answer_page import LIMIT, Cards, Contents, heat_box, write_page
from medseg_se.reports.class_gates import gates_section
from medseg_se.reports.page import number, safe, section
from medseg_se.version import __version__

_VIEWS = 3  # classes that are shown of a scan, those with the highest scores
_CLASSES = (
    "Colours show Grad-CAM, brought to the scan's own voxels: where the last maps of the network speak for a class. Beside a "
    "class stands its score before the softmax, which Grad-CAM explains; `medseg-se predict` gives calibrated probabilities."
)
_NUMBERS = "Colours show Grad-CAM, brought to the scan's own voxels: orange raises the number, blue lowers it."


def write_explained(explainer: Explainer, cases: Sequence[Case], folder: Path) -> Contents:
    """Write inspect.html and inspect.json of scans to a folder.

    Args:
        explainer: The model.
        cases: The scans.
        folder: Where to.

    Raises:
        DataError: A scan cannot be used.
        OutputError: A file could not be written.
    """
    classifies = explainer.task == "classification"
    answers = np.stack([explainer.answers(case) for case in cases])
    shown = [_shown(explainer, case, row, classifies) for case, row in zip(cases, answers, strict=True)]
    groups = answers.argmax(axis=1).tolist() if classifies else [0] * len(cases)
    gates = explainer.gates(cases, groups) if explainer.has_gates else None

    def body(cards: Cards) -> str:
        names = safe(", ".join(explainer.names))
        head = f'<p class="faint">a {explainer.task} of {names}; medseg-se {__version__}</p>'
        left = f" {cards.left[0]} did not fit into the page." if cards.left[0] else ""
        about = f'<p class="faint">{safe(_CLASSES if classifies else _NUMBERS)}{left}</p>'
        attention = section("Attention", gates_section(gates, "answered class"), "gates") if gates else ""
        scans = section("Scans", about + heat_box() + cards.html[0], "scans")
        return f"<h1>{safe(title)}</h1>\n{head}\n{scans}\n{attention}"

    title = f"Inside {explainer.path.name}"
    found = write_page(folder / "inspect.html", title, [shown], body, explainer, LIMIT, both=not classifies)
    write_json(folder / "inspect.json", _document(explainer, cases, answers.tolist(), gates))
    return found


def _shown(explainer: Explainer, case: Case, answers: Any, classifies: bool) -> Shown:
    if classifies:
        order = np.argsort(-answers, kind="stable")[:_VIEWS].tolist()
        said = explainer.names[order[0]]
        views = tuple((place, f"for {explainer.names[place]}, {number(float(answers[place]), 2)}") for place in order)
    else:
        said = "; ".join(f"{name} {number(float(one), 2)}" for name, one in zip(explainer.names, answers, strict=True))
        views = tuple(enumerate(explainer.names))
    return Shown(case.id, case.images, safe(said), "", views)


def _document(
    explainer: Explainer, cases: Sequence[Case], answers: list[list[float]], gates: ClassGates | None
) -> dict[str, Any]:
    """Return everything but the pictures as plain data."""
    content: dict[str, Any] = {
        "format": 1,
        "checkpoint": str(explainer.path),
        "task": explainer.task,
        "names": list(explainer.names),
        "answers": "scores before the softmax" if explainer.task == "classification" else "numbers in their own units",
        "scans": [
            {"case": case.id, "images": list(map(str, case.images)), "answers": row}
            for case, row in zip(cases, answers, strict=True)
        ],
        "insertion_points": [],
    }
    for point in () if gates is None else gates.points:
        kinds = gates.statistics[point.name] if gates else {}
        found = {kind: one for (name, kind), one in (gates.selectivity if gates else {}).items() if name == point.name}
        scalars = ("eta2", "chance", "epsilon2", "p_value", "sd", "n")
        content["insertion_points"].append(
            {
                **asdict(point),
                "gates": {kind: asdict(statistics) for kind, statistics in kinds.items()},
                "selectivity": {kind: {name: getattr(one, name) for name in scalars} for kind, one in found.items()},
            }
        )
    return content
