"""Judged answers about whole scans: every case, and what is said of all of them; written, read and printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.data.datalist import read_json
from medseg_se.errors import DataError
from medseg_se.evaluation.class_figures import figures_by_class, figures_of_classes, figures_of_pairs
from medseg_se.evaluation.document import relative
from medseg_se.evaluation.number_figures import figures_of_numbers
from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.statistics.calibration import Reliability, chosen_class, reliability
from medseg_se.files import write_json, write_text
from medseg_se.metrics.age_bias import BiasLine

Array = npt.NDArray[Any]
FORMAT = 1
TASKS = ("classification", "regression")
POLICY = {
    "classification": (
        "A case without an answer counts as an error, and in an AUC as the worst answer there is; calibration leaves it out. "
        "Cases flagged as unlike the training count like all others, and once more without them."
    ),
    "regression": "A case without an answer is named and cannot count in a mean error; n says over how many cases it is.",
}


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
        images: Case → its files, as far as they are known.
        lines: Number → the line of validation answers on their truth, by which answers are corrected; empty if none were given.
        pairs: "one / other" → the area under the ROC curve of two classes, cases of others left out.
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
    pairs: Mapping[str, Interval] = field(default_factory=dict)
    images: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    lines: Mapping[str, BiasLine] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        ids: tuple[str, ...],
        groups: tuple[str, ...],
        truth: Array,
        answers: Array,
        unlike: npt.NDArray[np.bool_],
        distance: npt.NDArray[np.float64],
        failures: Mapping[str, str],
        extra: tuple[str, ...] = (),
        images: Mapping[str, tuple[Path, ...]] | None = None,
        lines: Mapping[str, BiasLine] | None = None,
    ) -> Judged:
        """Measure answers; see the attributes."""
        make = partial(
            cls, names, ids, groups, truth, answers, unlike, distance, failures=dict(failures), extra=extra, images=images or {}
        )
        if truth.ndim == 2:
            figures = {name: figures_of_numbers(truth[:, v], answers[:, v], groups) for v, name in enumerate(names)}
            notes = [("policy", POLICY["regression"])]
            for name, line in (lines or {}).items():
                column = names.index(name)
                better = figures_of_numbers(truth[:, column], line.corrected(answers[:, column]), groups)
                figures[name] |= {f"{figure}, corrected": found for figure, found in better.items()}
                words = f"({name} − {line.intercept:.4g}) / {line.slope:.4g}, a line fitted to validation answers (Cole)."
                notes.append((f"correction of {name}", f"Corrected is {words}"))
            first = figures[names[0]] if len(names) == 1 else {}
            return make(figures=first, by_name=figures, notes=tuple(notes), lines=lines or {})
        answered = np.isfinite(answers).all(axis=1)
        calibration = None
        if answered.any():
            calibration = reliability(*chosen_class(answers[answered], truth[answered]))
        return make(
            figures=figures_of_classes(truth, answers, groups, unlike),
            by_name=dict(zip(names, figures_by_class(truth, answers, groups), strict=True)),
            reliability=calibration,
            notes=(("policy", POLICY["classification"]),),
            pairs={f"{names[i]} / {names[j]}": area for (i, j), area in figures_of_pairs(truth, answers).items()},
        )

    @property
    def is_classification(self) -> bool:
        """Whether classes are judged, not numbers."""
        return self.truth.ndim == 1

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
        return len(set(self.groups)) < len(self.groups)

    @property
    def failed(self) -> bool:
        """Whether a case has no answer; the command then exits with an error."""
        return bool(self.failures)

    def write(self, folder: Path) -> None:
        """Write evaluation.csv, a line a case, and evaluation.json to a folder."""
        write_text(folder / "evaluation.csv", self._csv())
        write_json(folder / "evaluation.json", self._document(folder.absolute()))

    def _csv(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        if self.is_classification:
            rows.writerow(["case", "group", "truth", "class", "probability", "correct", "unlike", "failure"])
        else:
            each = [f"{what}:{name}" for name in self.names for what in ("truth", "value", "error")]
            rows.writerow(["case", "group", *each, "unlike", "failure"])
        for row, (case, group) in enumerate(zip(self.ids, self.groups, strict=True)):
            end = ["yes" if self.unlike[row] else "no", self.failures.get(case, "")]
            rows.writerow([case, group, *self._cells(row), *end])
        return text.getvalue()

    def _cells(self, row: int) -> list[object]:
        if not self.is_classification:
            told = [(float(t), float(a)) for t, a in zip(self.truth[row], self.answers[row], strict=True)]
            return [cell for t, a in told for cell in (t, *(("", "") if np.isnan(a) else (a, a - t)))]
        truth, chosen = int(self.truth[row]), int(self.chosen[row])
        if chosen < 0:
            return [self.names[truth], "", "", "no"]
        probability = float(self.answers[row, chosen])
        return [self.names[truth], self.names[chosen], probability, "yes" if truth == chosen else "no"]

    def _document(self, folder: Path) -> dict[str, Any]:
        def plain(figures: Mapping[str, Interval]) -> dict[str, Any]:
            return {name: asdict(interval) for name, interval in figures.items()}

        return {
            "format": FORMAT,
            "task": TASKS[0] if self.is_classification else TASKS[1],
            "policy": dict(self.notes)["policy"],
            "names": list(self.names),
            "figures": plain(self.figures),
            "by_name": {name: plain(figures) for name, figures in self.by_name.items()},
            "pairs": plain(self.pairs),
            "confusion": self.confusion.tolist() if self.is_classification else None,
            "cases": [
                {
                    "id": case,
                    "group": self.groups[row],
                    "images": [relative(path, folder) for path in self.images.get(case, ())],
                    "truth": self.truth[row].tolist(),
                    "answer": self.answers[row].tolist() if self.answered[row] else None,
                    "unlike": bool(self.unlike[row]),
                    "distance": float(self.distance[row]),
                }
                for row, case in enumerate(self.ids)
            ],
            "failures": dict(self.failures),
            "extra": list(self.extra),
            "correction": {name: asdict(line) for name, line in self.lines.items()},
        }

    @classmethod
    def read_json(cls, path: Path | str) -> Judged:
        """Read what `write` wrote; the figures are measured again.

        Raises:
            DataError: The file is missing, damaged, or is no evaluation of whole scans in the present format.
        """
        content = read_json(Path(path))
        if content.get("task") not in TASKS or content.get("format") != FORMAT:
            raise DataError(
                f"Expected {path} to be an evaluation of classes or numbers in format {FORMAT}. Run `medseg-se evaluate` again."
            )
        try:
            names, cases = tuple(content["names"]), content["cases"]
            classes = content["task"] == TASKS[0]
            missing, folder = [float("nan")] * len(names), Path(path).absolute().parent
            images = {case["id"]: tuple(folder / name for name in case["images"]) for case in cases}
            return cls.of(
                names,
                tuple(case["id"] for case in cases),
                tuple(case["group"] for case in cases),
                np.array([case["truth"] for case in cases], dtype=np.int64 if classes else np.float64),
                np.array([case["answer"] or missing for case in cases], dtype=np.float64),
                np.array([case["unlike"] for case in cases], dtype=np.bool_),
                np.array([np.nan if case["distance"] is None else case["distance"] for case in cases], dtype=np.float64),
                content["failures"],
                tuple(content["extra"]),
                {name: files for name, files in images.items() if files},
                {name: BiasLine(**line) for name, line in content.get("correction", {}).items()},
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is a damaged evaluation ({type(error).__name__}: {error}). Run `medseg-se evaluate` again."
            ) from error


def is_judged(path: Path) -> bool:
    """Tell whether an evaluation.json is one of whole scans, not of segmentations."""
    return read_json(path).get("task") in TASKS
