"""What the reports of classifications and regressions show of an evaluation: every case, and all that is summed up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.statistics.calibration import Reliability

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Judged:
    """Whole scans with what is true of each and what was answered.

    Attributes:
        names: Of the classes, or of the numbers.
        ids: Of the cases.
        groups: Whose scan each is; the case itself where it is nobody else's.
        truth: Number of the true class, (n,); or the true numbers, (n, V).
        answers: Probabilities (n, C), or numbers (n, V); NaN without an answer.
        unlike: Whether a case is unlike those of the training, (n,).
        distance: How unlike, (n,); NaN where that is not known.
        figures: What is said of all cases, with its interval.
        by_name: Class, or number → the same of it.
        reliability: Of the probability of the chosen class; None of a regression.
        failures: Case → why it has no answer.
        extra: Answered cases without truth.
        notes: How it was measured: (what, words).
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    truth: Array
    answers: Array
    unlike: npt.NDArray[np.bool_]
    distance: npt.NDArray[np.float64]
    figures: Mapping[str, Interval]
    by_name: Mapping[str, Mapping[str, Interval]]
    reliability: Reliability | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """Whether each case has an answer, (n,)."""
        answered: npt.NDArray[np.bool_] = np.asarray(np.isfinite(self.answers).all(axis=1))
        return answered

    @property
    def chosen(self) -> npt.NDArray[np.int64]:
        """Number of the most probable class of each case, (n,); -1 without an answer."""
        return np.where(self.answered, np.nan_to_num(self.answers).argmax(axis=1), -1)

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Cases by true class and chosen class, (C, C + 1); the last column has those without an answer."""
        count = len(self.names)
        table = np.zeros((count, count + 1), dtype=np.int64)
        np.add.at(table, (self.truth, np.where(self.chosen < 0, count, self.chosen)), 1)
        return table

    @property
    def grouped(self) -> bool:
        """Whether several cases are of one group."""
        return any(group and group != case for group, case in zip(self.groups, self.ids, strict=True))
