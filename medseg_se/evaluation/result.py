"""The outcome of an evaluation: what is known of every case and structure, summed up, written, read and printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console

from medseg_se.data.datalist import read_json
from medseg_se.evaluation import document, table
from medseg_se.evaluation.case import CaseResult
from medseg_se.evaluation.criteria import Criteria
from medseg_se.evaluation.spread import Spread, spread
from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.statistics.foreground import mean_of_means_interval
from medseg_se.files import write_json, write_text
from medseg_se.metrics.lesions import Matching
from medseg_se.metrics.measures import MEASURES
from medseg_se.metrics.surfaces import Family
from medseg_se.structures import Structures

__all__ = ["POLICY", "CaseResult", "Evaluation", "Spread", "write_rows"]

POLICY = (
    "A structure absent from both truth and prediction is not counted. Absent from one of them, it scores 0 in what is better "
    "the higher it is (Dice, NSD, …), and its distances are infinite: so is then their mean, while the median still says "
    "something, and the number of infinite ones is given. "
    "A missing, failed or unusable prediction counts as an empty one. "
    "Voxels whose truth is unknown (the ignore value) are left out. "
    "The mean over foreground is the mean of the structures' means, regions aside; its "
    "interval is of subjects resampled with all their structures."
)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        structures: What was judged.
        cases: The judged cases, in the order of their names.
        unjudged: Case → why its truth could not be read.
        extra: Names of predicted cases without truth.
        measures: Names of what was measured, out of `medseg_se.metrics.measures.MEASURES`.
        surface: Definition of surfaces, see `medseg_se.metrics.surfaces.FAMILIES`.
        tolerances: Judged structure or region → tolerance of the NSD in mm.
        lesions: What made two lesions match; None where they were not counted.
    """

    structures: Structures
    cases: tuple[CaseResult, ...]
    unjudged: Mapping[str, str]
    extra: tuple[str, ...]
    measures: tuple[str, ...] = ("dice",)
    surface: Family = "voxel"
    tolerances: Mapping[str, float] = field(default_factory=dict)
    lesions: Matching | None = None
    _summaries: dict[str, dict[str, Spread]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def criteria(self) -> Criteria:
        """By what was judged."""
        return Criteria(self.measures, self.surface, self.tolerances, self.lesions)

    @property
    def failures(self) -> dict[str, str]:
        """Case → why its prediction could not be used."""
        return {case.id: case.failure for case in self.cases if case.failure is not None}

    @property
    def resampled(self) -> dict[str, str]:
        """Case → on which other grid its prediction lay, from which it was resampled."""
        return {case.id: case.resampled for case in self.cases if case.resampled is not None}

    @property
    def failed(self) -> bool:
        """Whether a prediction could not be used or a truth could not be read; the command then exits with an error."""
        return bool(self.failures or self.unjudged)

    @property
    def mean_foreground(self) -> float:
        """Mean of the structures' mean Dice, regions aside; structures counted in no case are left out."""
        return self.foreground("dice")

    def foreground(self, measure: str) -> float:
        """Return the mean of the structures' means of a measure, regions aside; structures counted in no case are left out."""
        summary = self.summary(measure)
        means = [summary[name].mean for name in self.structures.names if summary[name].n]
        return float(np.mean(means)) if means else np.nan

    @cached_property
    def foreground_interval(self) -> Interval:
        """The mean over foreground of Dice with its 95 % bootstrap interval, subjects resampled with all their structures."""
        table = [[case.dice[name] for case in self.cases] for name in self.structures.names]
        return mean_of_means_interval(table, [case.group for case in self.cases], limits=MEASURES["dice"].limits)

    def summary(self, measure: str = "dice") -> dict[str, Spread]:
        """Return the spread of a measure over the cases, for each structure and region."""
        if measure not in self._summaries:
            ids, groups = [case.id for case in self.cases], [case.group for case in self.cases]
            self._summaries[measure] = {
                name: spread(MEASURES[measure], [case.scores[measure][name] for case in self.cases], ids, groups)
                for name in self.structures.judged()
            }
        return self._summaries[measure]

    def write_csv(self, path: Path | str) -> None:
        """Write one row a case and structure or region, a column a measure."""
        write_rows(path, self, {})

    def write_json(self, path: Path | str) -> None:
        """Write policy, summary, cases, failures and what was not judged, in the format that docs/evaluation.md describes."""
        write_json(path, document.to_document(self, POLICY, Path(path)))

    def write(self, folder: Path) -> None:
        """Write evaluation.csv and evaluation.json to a folder."""
        self.write_csv(folder / "evaluation.csv")
        self.write_json(folder / "evaluation.json")

    @classmethod
    def read_json(cls, path: Path | str) -> Evaluation:
        """Read what `write_json` wrote.

        Raises:
            DataError: The file is missing, or is no evaluation in the present format.
        """
        return cls(**document.from_document(read_json(Path(path)), Path(path)))

    def render(self, console: Console) -> None:
        """Print the table of structures, then what went wrong, how things are defined, and the policy."""
        table.render(self, POLICY, console)


def write_rows(path: Path | str, evaluation: Evaluation, columns: Mapping[str, Mapping[str, object]]) -> None:
    """Write one row a case and structure or region: case, group, `columns`, structure, failure, and a column a measure.

    A cell is empty where a measure is not counted, and "inf" where a distance is infinite.

    Args:
        path: The CSV file.
        evaluation: What is written.
        columns: Name of a further column → case → what it says.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["case", "group", *columns, "structure", "failure", *evaluation.measures])
    for case in evaluation.cases:
        further = [values[case.id] for values in columns.values()]
        for name in evaluation.structures.judged():
            scores = [_cell(case.scores[measure][name]) for measure in evaluation.measures]
            rows.writerow([case.id, case.group or "", *further, name, case.failure or "", *scores])
    write_text(path, text.getvalue())


def together(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the cases of several evaluations by the same criteria, in the order of their names, as one."""
    cases = sorted((case for one in evaluations for case in one.cases), key=lambda case: case.id)
    unjudged = {name: reason for one in evaluations for name, reason in one.unjudged.items()}
    first = evaluations[0]
    return Evaluation(
        first.structures, tuple(cases), unjudged, (), first.measures, first.surface, first.tolerances, first.lesions
    )


def _cell(value: float) -> str:
    return "" if np.isnan(value) else repr(value)
