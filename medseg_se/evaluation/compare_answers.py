"""Classifiers against a reference on the same scans: what each gets right, areas under ROC curves, and a verdict in words.

Of accuracy and of every class's recall, McNemar's exact test is the one that knows that the scans are the same; the
two-proportion z test, which takes them for independent, stands beside it because publications report it. Areas are compared by
DeLong's paired test. p-values are corrected by Holm over all contrasts with the reference: accuracies in one family, recalls in
another, areas in a third.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.errors import UsageError
from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.statistics.bootstrap import mean_interval
from medseg_se.evaluation.statistics.multiple import holm
from medseg_se.evaluation.statistics.proportions import ProportionDifference, mcnemar, two_proportion_z
from medseg_se.evaluation.statistics.roc import compare_auc_delong
from medseg_se.files import write_json, write_text

ALL = "all"
SIGNIFICANT = 0.05
COLUMNS = (
    "run",
    "reference",
    "measure",
    "class",
    "reference_value",
    "value",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "z",
    "p_z",
    "n",
)


@dataclass(frozen=True)
class ClassContrast:
    """How a run differs from the reference in one measure.

    Attributes:
        run: Its name.
        reference: That of the reference.
        measure: "accuracy", "recall" or "AUC".
        of: The class, or `ALL`.
        reference_value: Of the reference.
        value: Of the run.
        difference: Value − reference value.
        low: Lower end of its 95 % interval; NaN if there is none.
        high: Upper end.
        p: Of McNemar's or DeLong's test; NaN if there is none.
        p_holm: Corrected.
        p_z: Of the two-proportion z test; NaN of an area.
        n: Cases.
    """

    run: str
    reference: str
    measure: str
    of: str
    reference_value: float
    value: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    p_z: float
    n: int

    @property
    def z(self) -> float:
        """Statistic of the two-proportion z test, above 0 where the run is better."""
        from scipy import stats

        return math.copysign(float(stats.norm.isf(self.p_z / 2)), self.difference) if self.p_z == self.p_z else math.nan


@dataclass(frozen=True)
class ClassComparison:
    """What a comparison of classifiers found.

    Attributes:
        contrasts: Every run, measure and class.
        cases: How many scans all runs were judged on.
        left_out: Scans that some run was not judged on.
        grouped: Whether several scans are of one group, which the tests do not know.
    """

    contrasts: tuple[ClassContrast, ...]
    cases: int
    left_out: int
    grouped: bool

    def verdicts(self) -> list[str]:
        """Return a sentence for every run."""
        return [_verdict(contrast, self.cases) for contrast in self.contrasts if contrast.measure == "accuracy"]

    def notes(self) -> list[str]:
        """Return what a reader has to know beside the figures."""
        notes = []
        if self.left_out:
            notes.append(f"{self.left_out} scans are left out, which not all runs were judged on.")
        if self.grouped:
            notes.append(
                "Several scans are of one group (a patient, or copies of a picture). Intervals of the differences in accuracy "
                "resample groups; the tests and the other intervals take scans for independent, and are too sure of themselves."
            )
        return notes

    def write(self, folder: Path) -> None:
        """Write table.csv and comparison.json to a folder."""
        text = io.StringIO()
        rows = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        rows.writeheader()
        for contrast in self.contrasts:
            row = asdict(contrast) | {"z": contrast.z}
            row["class"] = row.pop("of")
            rows.writerow({name: "" if value != value else value for name, value in row.items()})
        write_text(folder / "table.csv", text.getvalue())
        content: dict[str, Any] = {
            "format": 1,
            "task": "classification",
            "cases": self.cases,
            "left_out": self.left_out,
            "contrasts": [asdict(contrast) | {"z": contrast.z} for contrast in self.contrasts],
            "verdicts": self.verdicts(),
            "notes": self.notes(),
        }
        write_json(folder / "comparison.json", content)


def compare_classifiers(runs: Mapping[str, Judged], reference: str) -> ClassComparison:
    """Compare every run with the reference on the scans that all were judged on.

    Args:
        runs: Name → what was found.
        reference: One of them.

    Raises:
        UsageError: Fewer than two runs, runs that are no classifications or of other classes, or that no scan is common to.
    """
    first = runs[reference]
    if len(runs) < 2:
        raise UsageError("Expected two runs or more to compare, but got one.")
    for name, judged in runs.items():
        if not judged.is_classification:
            raise UsageError(f"Expected classifications, but {name} is a regression. Compare its errors from evaluation.csv.")
        if judged.names != first.names:
            raise UsageError(
                f"Expected {name} to have the classes of {reference}, {', '.join(first.names)}, but got "
                f"{', '.join(judged.names)}."
            )
    common = sorted(set.intersection(*(set(judged.ids) for judged in runs.values())))
    if not common:
        raise UsageError(f"No scan is common to {', '.join(runs)}: were they judged on other datasets?")
    rows = {name: _rows(judged, common) for name, judged in runs.items()}
    truth = first.truth[rows[reference]]
    for name, judged in runs.items():
        if (judged.truth[rows[name]] != truth).any():
            raise UsageError(f"{name} and {reference} were judged by different truths. Judge them again, by the same.")
    groups = [first.groups[row] for row in rows[reference]]
    found = [
        contrast
        for name, judged in runs.items()
        if name != reference
        for contrast in _contrasts(name, judged, rows[name], reference, first, rows[reference], truth, groups)
    ]
    everywhere = set.union(*(set(judged.ids) for judged in runs.values()))
    return ClassComparison(tuple(_corrected(found)), len(common), len(everywhere) - len(common), len(set(groups)) < len(groups))


def _rows(judged: Judged, common: Sequence[str]) -> list[int]:
    places = {case: row for row, case in enumerate(judged.ids)}
    return [places[case] for case in common]


def _contrasts(
    name: str,
    judged: Judged,
    rows: list[int],
    reference: str,
    first: Judged,
    first_rows: list[int],
    truth: npt.NDArray[np.int64],
    groups: list[str],
) -> list[ClassContrast]:
    before, after = first.chosen[first_rows] == truth, judged.chosen[rows] == truth
    found = []
    for label, of in ((None, ALL), *enumerate(judged.names)):
        counted = np.ones(len(truth), dtype=np.bool_) if label is None else truth == label
        one, other = before[counted], after[counted]
        if not len(one):
            continue
        paired = mcnemar(one, other)
        low, high = paired.low, paired.high
        if label is None and len(set(groups)) < len(groups):
            interval = mean_interval(other.astype(float) - one.astype(float), groups, limits=(-1.0, 1.0))
            low, high = interval.low, interval.high
        z: ProportionDifference = two_proportion_z((int(one.sum()), int(other.sum())), (len(one), len(one)))
        measure = "accuracy" if label is None else "recall"
        values = float(one.mean()), float(other.mean()), paired.difference, low, high, paired.p, math.nan, z.p, len(one)
        found.append(ClassContrast(name, reference, measure, of, *values))
    answered = judged.answered[rows] & first.answered[first_rows]
    for label, of in enumerate(judged.names):
        positive = truth[answered] == label
        scores = [one.answers[some][answered, label] for one, some in ((first, first_rows), (judged, rows))]
        area = compare_auc_delong(positive, *scores)
        if area.first == area.first:
            values = area.first, area.second, area.difference, area.low, area.high, area.p, math.nan, math.nan, area.n
            found.append(ClassContrast(name, reference, "AUC", of, *values))
    return found


def _corrected(found: Sequence[ClassContrast]) -> list[ClassContrast]:
    corrected: dict[int, float] = {}
    for measure in ("accuracy", "recall", "AUC"):
        places = [place for place, contrast in enumerate(found) if contrast.measure == measure]
        corrected.update(zip(places, holm([found[place].p for place in places]).tolist(), strict=True))
    return [ClassContrast(**{**asdict(contrast), "p_holm": corrected[place]}) for place, contrast in enumerate(found)]


def _verdict(contrast: ClassContrast, cases: int) -> str:
    ends = f"{100 * contrast.low:+.1f} to {100 * contrast.high:+.1f}"
    size = f"{100 * contrast.difference:+.1f} points of accuracy, 95 % interval {ends}"
    tested = f"corrected p = {contrast.p_holm:.2g}, {cases} scans"
    if contrast.p_holm < SIGNIFICANT:
        word = "better" if contrast.difference > 0 else "worse"
        return f"{contrast.run} is {word} than {contrast.reference}: {size}; {tested}."
    return f"No evidence of a difference between {contrast.run} and {contrast.reference}: {size}; {tested}."
