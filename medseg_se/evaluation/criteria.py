"""By what predictions are judged: which measures, and what counts as a surface, as near and as a lesion found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg_se.data.datalist import read_json
from medseg_se.errors import DataError, UsageError, unknown_name
from medseg_se.metrics.lesions import Matching
from medseg_se.metrics.measures import DISTANCES, LESIONS, OVERLAP, choose_measures, names
from medseg_se.metrics.surfaces import FAMILIES, Family
from medseg_se.structures import Structures

OTHERS = "default"  # in a table of tolerances: what holds for structures that it does not name


@dataclass(frozen=True)
class Criteria:
    """By what is judged.

    Attributes:
        measures: Names out of `medseg_se.metrics.measures.MEASURES`.
        surface: Definition of surfaces, "voxel" or "surfel".
        tolerances: Judged structure or region → tolerance of its NSD in mm.
        lesions: What makes two lesions match, "any" or the least IoU; None where lesions are not counted.
    """

    measures: tuple[str, ...] = ("dice",)
    surface: Family = "voxel"
    tolerances: Mapping[str, float] = field(default_factory=dict)
    lesions: Matching | None = None

    def sentences(self) -> list[str]:
        """Return what a reader of the figures has to know of how they are defined, a sentence each."""
        said = []
        if set(self.measures) & set(names(DISTANCES)):
            said.append(f"Surfaces: {FAMILIES[self.surface]}.")
        if "nsd" in self.measures:
            distinct = sorted(set(self.tolerances.values()))
            listed = ", ".join(f"{mm:g}" for mm in distinct)
            said.append(f"NSD within {listed} mm{', by structure' if len(distinct) > 1 else ''}.")
        if self.lesions is not None:
            rule = "they share a voxel" if self.lesions == "any" else f"their IoU is at least {self.lesions:g}"
            said.append(f"Lesions are connected components; two match where {rule}.")
        return said


def make_criteria(
    structures: Structures,
    metrics: str | Sequence[str] = "all",
    surface: str = "voxel",
    tolerance: float | Mapping[str, float] = 1.0,
    lesions: str | float | None = None,
) -> Criteria:
    """Check what was asked for.

    Args:
        structures: What is judged.
        metrics: "all", or names of measures, in one text with commas or as a list.
        surface: "voxel" or "surfel".
        tolerance: Of the NSD in mm: one for all, or a table of structures and regions, which may say "default" for the others.
        lesions: "any" or the least IoU of two lesions that match; if given, lesions are counted besides what `metrics` names.

    Raises:
        UsageError: A name is unknown, or a number makes no sense.
    """
    if surface not in FAMILIES:
        raise unknown_name("definition of surfaces", surface, FAMILIES)
    matching = _matching(lesions)
    listed = [name.strip() for name in metrics.split(",")] if isinstance(metrics, str) else list(metrics)
    wanted = list(names((*OVERLAP, *DISTANCES))) if listed == ["all"] else listed
    counting = set(wanted) & set(names(LESIONS))
    if counting and matching is None:
        raise UsageError(f"{min(counting)} is asked for, but not when two lesions match: give `lesions`, any or an IoU.")
    if matching is not None and not counting:
        wanted += names(LESIONS)
    chosen = choose_measures(wanted)
    tolerances = _tolerances(structures, tolerance) if "nsd" in chosen else {}
    return Criteria(chosen, "surfel" if surface == "surfel" else "voxel", tolerances, matching)


def read_tolerance(text: str) -> float | dict[str, float]:
    """Read a tolerance as the command line gives it: a number, a JSON table, or a file that holds one.

    Raises:
        DataError: It is none of these.
    """
    try:
        return float(text)
    except ValueError:
        pass
    if not text.lstrip().startswith("{"):
        return read_json(Path(text))
    try:
        table: dict[str, float] = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"Expected `tolerance` to be a number of mm, a JSON table or its file, but got {text!r}: {error}."
        ) from error
    return table


def _tolerances(structures: Structures, tolerance: Any) -> dict[str, float]:
    judged = structures.judged()
    if not isinstance(tolerance, Mapping):
        return dict.fromkeys(judged, _millimetres("tolerance", tolerance))
    table = {name: _millimetres(f"tolerance of {name!r}", value) for name, value in tolerance.items()}
    for name in table:
        if name not in judged and name != OTHERS:
            raise unknown_name("structure", name, [*judged, OTHERS])
    missing = [name for name in judged if name not in table and OTHERS not in table]
    if missing:
        raise UsageError(f"Expected a tolerance for {', '.join(missing)}, too. Add {OTHERS!r} for all that are not named.")
    return {name: table.get(name, table.get(OTHERS, math.nan)) for name in judged}


def _millimetres(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError(f"Expected the {what} to be a number of mm from 0, but got {value!r}.")
    return float(value)


def _matching(lesions: str | float | None) -> Matching | None:
    if lesions is None:
        return None
    if lesions == "any":
        return "any"
    try:
        least = float(lesions)
    except ValueError:
        least = math.nan
    if not 0 < least <= 1:
        raise UsageError(f"Expected `lesions` to be 'any' or an IoU above 0 and up to 1, but got {lesions!r}.")
    return least
