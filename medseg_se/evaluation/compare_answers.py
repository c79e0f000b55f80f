"""Classifiers against a reference on the same scans: what each gets right, areas under ROC curves, and a verdict in words.

Of accuracy and of every class's recall, McNemar's exact test is the one that knows that the scans are the same; the
two-proportion z test, which takes them for independent, stands beside it because publications report it. Where several scans
are of one group, McNemar's test would count copies as evidence: the signs of whole groups are flipped instead, which without
groups is the same test. Areas are compared by DeLong's paired test; a scan without an answer has the worst one there is.
p-values are corrected by Holm over all contrasts with the reference: accuracies in one family, recalls in another, areas in a
third.
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
from medseg_se.evaluation.class_figures import ranking_scores
from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.statistics.multiple import holm
from medseg_se.evaluation.statistics.paired import compare_paired
from medseg_se.evaluation.statistics.proportions import ProportionDifference, mcnemar, two_proportion_z
from medseg_se.evaluation.statistics.roc import compare_auc_delong
from medseg_se.files import write_json, write_text

ALL = "all"
SIGNIFICANT = 0.05
MCNEMAR, FLIPS, DELONG = "McNemar", "sign flips of groups", "DeLong"
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
    "test",
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
        p: Of `test`; NaN if there is none.
        p_holm: Corrected.
        p_z: Of the two-proportion z test; NaN of an area.
        n: Cases.
        test: `MCNEMAR`, `FLIPS` or `DELONG`.
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
    test: str

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
        grouped: Whether several scans are of one group, which the tests of areas and z do not know.
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
                "Several scans are of one group (a patient, or copies of a picture). Accuracies and recalls are compared with "
                "groups kept whole; z and the tests and intervals of areas take scans for independent, and are too sure of "
                "themselves."
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
        test, difference, low, high, p = _tested(
            one, other, [group for group, kept in zip(groups, counted, strict=True) if kept]
        )
        z: ProportionDifference = two_proportion_z((int(one.sum()), int(other.sum())), (len(one), len(one)))
        measure = "accuracy" if label is None else "recall"
        values = float(one.mean()), float(other.mean()), difference, low, high, p, math.nan, z.p, len(one), test
        found.append(ClassContrast(name, reference, measure, of, *values))
    ranked = [ranking_scores(truth, one.answers[some]) for one, some in ((first, first_rows), (judged, rows))]
    for label, of in enumerate(judged.names):
        area = compare_auc_delong(truth == label, *(scores[:, label] for scores in ranked))
        if area.first == area.first:
            values = area.first, area.second, area.difference, area.low, area.high, area.p, math.nan, math.nan, area.n, DELONG
            found.append(ClassContrast(name, reference, "AUC", of, *values))
    return found


def _tested(
    before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], groups: Sequence[str]
) -> tuple[str, float, float, float, float]:
    """Return the test that holds for these groups, and its difference, the ends of the interval, and p."""
    if len(set(groups)) == len(groups):
        paired = mcnemar(before, after)
        return MCNEMAR, paired.difference, paired.low, paired.high, paired.p
    kept = compare_paired(before.astype(np.float64), after.astype(np.float64), groups)
    return FLIPS, kept.difference, max(kept.low, -1.0), min(kept.high, 1.0), kept.permutation_p


def _corrected(found: Sequence[ClassContrast]) -> list[ClassContrast]:
    corrected: dict[int, float] = {}
    for measure in ("accuracy", "recall", "AUC"):
        places = [place for place, contrast in enumerate(found) if contrast.measure == measure]
        corrected.update(zip(places, holm([found[place].p for place in places]).tolist(), strict=True))
    return [ClassContrast(**{**asdict(contrast), "p_holm": corrected[place]}) for place, contrast in enumerate(found)]


def _verdict(contrast: ClassContrast, cases: int) -> str:
    ends = f"95 % interval {100 * contrast.low:+.1f} to {100 * contrast.high:+.1f}"
    size = f"{100 * contrast.difference:+.1f} points of accuracy, {ends if contrast.low == contrast.low else 'no interval'}"
    tested = f"corrected p = {contrast.p_holm:.2g}, {cases} scans"
    if contrast.p_holm < SIGNIFICANT:
        word = "better" if contrast.difference > 0 else "worse"
        return f"{contrast.run} is {word} than {contrast.reference}: {size}; {tested}."
    return f"No evidence of a difference between {contrast.run} and {contrast.reference}: {size}; {tested}."
