"""What a comparison of runs found: differences to a reference with their doubt, what each run costs, and a verdict in words."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.statistics.paired import Paired
from medseg_se.evaluation.verdict import MEAN, verdict_of
from medseg_se.files import write_json, write_text
from medseg_se.metrics.measures import Measure

FORMAT = 1
COSTS = {
    "parameters": "Learned numbers.",
    "flops": "Operations of a forward pass on one patch; a multiply–add is two.",
    "memory": "Bytes that forward and backward pass on one batch hold at most, beyond parameters and input.",
    "step_seconds": "Forward and backward pass on one batch, measured in turns with the other variants of the network.",
    "forward_seconds": "Forward pass on one batch, measured in the same way.",
    "steps": "Optimiser steps of a run.",
    "train_seconds": "Wall time of a training, with all that belongs to it.",
    "predict_seconds": "Time that a case takes from file to file.",
}
"""What can be known of a run's cost; means over its seeds and folds."""


@dataclass(frozen=True)
class Outcome:
    """How good one run is by itself.

    Attributes:
        name: Its name.
        reference: What it is compared with; None for a reference.
        repeats: The trainings behind it, such as "seed 1".
        values: Structure or region, and `MEAN` → its mean over the cases, with the interval over subjects.
        cost: Some of `COSTS` → number.
    """

    name: str
    reference: str | None
    repeats: tuple[str, ...]
    values: Mapping[str, Interval]
    cost: Mapping[str, float]


@dataclass(frozen=True)
class Contrast:
    """How a run differs from its reference.

    Attributes:
        name: The run.
        reference: What it is compared with.
        paired: Structure or region, and `MEAN` → the paired difference, run − reference.
        p: The same names → p of the permutation test, corrected.
        wilcoxon_p: The same of the signed-rank test.
        repeats: How many trainings of the run and of the reference were averaged, or taken as a random effect.
        shared: Whether these are the same seeds and folds on both sides.
    """

    name: str
    reference: str
    paired: Mapping[str, Paired]
    p: Mapping[str, float]
    wilcoxon_p: Mapping[str, float]
    repeats: tuple[int, int]
    shared: bool


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        measure: What is compared.
        structures: The structures and regions that all runs were judged on.
        regions: Those of them that are regions, which the mean over foreground leaves out.
        cases: The cases that all runs were judged on.
        subjects: How many subjects these are of.
        outcomes: The runs.
        contrasts: The runs that are no reference.
        correction: "holm" or "bh".
        seeds: What was done with several trainings of a run.
        confidence: Of the intervals.
        notes: What a reader must know, such as cases that were left out.
    """

    measure: Measure
    structures: tuple[str, ...]
    regions: tuple[str, ...]
    cases: tuple[str, ...]
    subjects: int
    outcomes: tuple[Outcome, ...]
    contrasts: tuple[Contrast, ...]
    correction: str
    seeds: str
    confidence: float
    notes: tuple[str, ...]

    def verdicts(self) -> dict[str, str]:
        """Return run → what can be said of it against its reference, in words."""
        return {one.name: verdict_of(one, self.measure, self.structures, self.confidence) for one in self.contrasts}

    def verdict(self) -> str:
        """Return what can be said, in words: a paragraph a run, and what holds for all of them."""
        return "\n".join([*self.verdicts().values(), *self.notes])

    def outcome(self, name: str) -> Outcome:
        """Return the outcome of the run called `name`."""
        return next(one for one in self.outcomes if one.name == name)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for every run and structure, the mean over foreground first; what does not exist is None."""
        contrasts = {one.name: one for one in self.contrasts}
        for outcome in self.outcomes:
            for name in (MEAN, *self.structures):
                value, contrast = outcome.values[name], contrasts.get(outcome.name)
                row = {"run": outcome.name, "structure": name, "measure": self.measure.name, "value": value.estimate}
                row |= {"value_low": value.low, "value_high": value.high, "reference": outcome.reference}
                paired = asdict(contrast.paired[name]) if contrast else dict.fromkeys(Paired.__dataclass_fields__)
                found = contrast.p[name] if contrast else None, contrast.wilcoxon_p[name] if contrast else None
                row |= paired | {"permutation_p_corrected": found[0], "wilcoxon_p_corrected": found[1]}
                yield row | {"repeats": len(outcome.repeats)} | {key: outcome.cost.get(key) for key in COSTS}

    def write_csv(self, path: Path | str) -> None:
        """Write `rows`, empty where a number does not exist."""
        rows = list(self.rows())
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({key: "" if _missing(value) else value for key, value in row.items()} for row in rows)
        write_text(path, text.getvalue())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        verdicts = self.verdicts()
        return {
            "format": FORMAT,
            "measure": asdict(self.measure),
            "structures": list(self.structures),
            "regions": list(self.regions),
            "cases": list(self.cases),
            "subjects": self.subjects,
            "correction": self.correction,
            "seeds": self.seeds,
            "confidence": self.confidence,
            "outcomes": [asdict(one) for one in self.outcomes],
            "contrasts": [{**asdict(one), "verdict": verdicts[one.name]} for one in self.contrasts],
            "costs": COSTS,
            "notes": list(self.notes),
            "verdict": self.verdict(),
        }

    def write_json(self, path: Path | str) -> None:
        """Write `to_dict`; NaN becomes null."""
        write_json(path, self.to_dict())


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
