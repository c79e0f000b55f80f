"""Answers about whole scans: `predictions.csv`, which `medseg-se predict` writes and `medseg-se evaluate` reads.

A line a case. Of a classification: case, image, class, probability, unlike, distance, and a column "p:NAME" for each class.
Of a regression: case, image, unlike, distance, and a column "value:NAME" for each number. Cells without an answer are empty.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError
from medseg_se.files import write_text

FILE = "predictions.csv"
CLASS, VALUE = "p:", "value:"
_SUM = 1e-3  # by how much the probabilities of a line may miss 1


@dataclass(frozen=True)
class Answers:
    """What a model says of whole scans.

    Attributes:
        ids: Name of every case.
        images: File, or files separated by ";", of every case.
        names: Names of the classes, or of the numbers.
        numbers: Calibrated probabilities, or the numbers in their own units, (cases, names) float64; NaN without an answer.
        is_classification: Whether they are probabilities.
        unlike: Whether a case is unlike those of the training, (cases,); such an answer is not to be believed.
        distance: How unlike, (cases,) float64, as the model measures it; NaN where it does not.
    """

    ids: tuple[str, ...]
    images: tuple[str, ...]
    names: tuple[str, ...]
    numbers: npt.NDArray[np.float64]
    is_classification: bool
    unlike: npt.NDArray[np.bool_]
    distance: npt.NDArray[np.float64]

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """Whether each case has an answer, (cases,)."""
        answered: npt.NDArray[np.bool_] = np.asarray(np.isfinite(self.numbers).all(axis=1))
        return answered

    @property
    def chosen(self) -> npt.NDArray[np.int64]:
        """Number of the most probable class of every case, (cases,); -1 without an answer."""
        if not self.is_classification:
            raise ValueError("Numbers have no most probable class.")
        return np.where(self.answered, np.nan_to_num(self.numbers).argmax(axis=1), -1)

    def write(self, path: Path | str) -> None:
        """Write the table; probabilities and numbers as exactly as they are known."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        prefix = CLASS if self.is_classification else VALUE
        told = ["class", "probability"] if self.is_classification else []
        rows.writerow(["case", "image", *told, "unlike", "distance", *(prefix + name for name in self.names)])
        chosen = self.chosen if self.is_classification else None
        for row, (case, image, answered) in enumerate(zip(self.ids, self.images, self.answered, strict=True)):
            numbers = self.numbers[row].tolist() if answered else [None] * len(self.names)
            told = []
            if chosen is not None:
                told = [self.names[chosen[row]], numbers[chosen[row]]] if answered else ["", ""]
            distance = self.distance[row]
            doubt = ["yes" if self.unlike[row] else "no", "" if np.isnan(distance) else float(distance)]
            rows.writerow([case, image, *told, *(doubt if answered else ["", ""]), *numbers])
        write_text(path, text.getvalue())


def read_answers(path: Path | str) -> Answers:
    """Read a `predictions.csv`, or that of a folder.

    Raises:
        DataError: The file is missing or damaged, names a case twice, or its probabilities do not sum to 1.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = list(table.fieldnames or ())
            lines = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {path} as a table of answers: {error}. Run `medseg-se predict` again.") from error
    kinds = [prefix for prefix in (CLASS, VALUE) if any(column.startswith(prefix) for column in columns)]
    if len(kinds) != 1 or "case" not in columns:
        raise DataError(
            f'Expected {path} to have a column "case" and columns "p:CLASS" or "value:NAME", but got '
            f"{', '.join(columns) or 'none'}."
        )
    wanted = [column for column in columns if column.startswith(kinds[0])]
    numbers = np.array([[_number(line[column], path, line) for column in wanted] for line in lines], dtype=np.float64)
    answers = Answers(
        ids=tuple(line["case"] for line in lines),
        images=tuple(line.get("image") or "" for line in lines),
        names=tuple(column.removeprefix(kinds[0]) for column in wanted),
        numbers=numbers.reshape(len(lines), len(wanted)),
        is_classification=kinds[0] == CLASS,
        unlike=np.array([(line.get("unlike") or "no") == "yes" for line in lines], dtype=np.bool_),
        distance=np.array([_number(line.get("distance"), path, line) for line in lines], dtype=np.float64),
    )
    _check(answers, path)
    return answers


def _number(text: str | None, path: Path, line: dict[str, str]) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise DataError(f"Expected a number for case {line['case']} in {path}, but got {text!r}.") from None


def _check(answers: Answers, path: Path) -> None:
    if len(set(answers.ids)) < len(answers.ids):
        twice = next(case for case in answers.ids if answers.ids.count(case) > 1)
        raise DataError(f"{path} answers case {twice} twice. Leave one of the lines out.")
    if not answers.is_classification:
        return
    given = answers.numbers[answers.answered]
    if len(answers.names) < 2 or (given < 0).any() or (abs(given.sum(axis=1) - 1) > _SUM).any():
        raise DataError(
            f"Expected the probabilities of each case in {path} to be at least 0 and to sum to 1 over two classes or more."
        )
