"""Answers of a classifier or a regression against a dataset that tells the truth: which cases count, and what is true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg_se.data.answers import FILE, Answers, read_answers
from medseg_se.data.classification import class_name
from medseg_se.data.datalist import Case
from medseg_se.data.whole_scan_data import has_value, read_whole_scans
from medseg_se.errors import DataError, UsageError, some_of
from medseg_se.evaluation.judged import Judged
from medseg_se.metrics.age_bias import BiasLine

NO_ANSWER = "no answer: the scan could not be used, see status.csv"
MISSING = "no answer: the case was not predicted"


def holds_answers(folder: Path) -> bool:
    """Tell whether a folder holds answers about whole scans, as `medseg-se predict` writes them."""
    return (folder / FILE).is_file()


def judge_answers(
    predictions: Path | str, source: Path | str, target: str | None = None, validation: Path | str | None = None
) -> Judged:
    """Compare answers with the truth.

    Judged are the cases that the answers list, with or without an answer, of which the dataset tells the truth; and, once a
    test case is among them, all its test cases.

    Args:
        predictions: Folder with a predictions.csv, or such a file.
        source: Dataset, CSV, or folder of one folder a class.
        target: The attribute with the true class, "class" if not given; numbers are called as they were learnt.
        validation: Answers of the same regression to validation cases of `source`, by which its bias is corrected.

    Raises:
        UsageError: `validation` is given of a classification.
        DataError: A file is missing or damaged, no case has a truth, or one is of a class that the model does not know.
    """
    answers = read_answers(predictions)
    datalist = read_whole_scans(Path(source))
    wanted = (target or "class",) if answers.is_classification else answers.names
    known = {case.id: case for case in (*datalist.training, *datalist.test) if all(has_value(case, name) for name in wanted)}
    cases = _expected(answers, known, {case.id for case in datalist.test})
    if not cases:
        raise DataError(
            f"None of the {len(answers.ids)} cases in {predictions} is a case of {datalist.source} with a value of "
            f"{', '.join(wanted)}. Are these the answers to other scans?"
        )
    rows = {case: row for row, case in enumerate(answers.ids)}
    numbers = np.full((len(cases), len(answers.names)), np.nan)
    unlike, distance = np.zeros(len(cases), dtype=np.bool_), np.full(len(cases), np.nan)
    failures = {}
    for place, case in enumerate(cases):
        row = rows.get(case.id)
        if row is None:
            failures[case.id] = MISSING
            continue
        numbers[place], unlike[place], distance[place] = answers.numbers[row], answers.unlike[row], answers.distance[row]
        if not answers.answered[row]:
            numbers[place] = np.nan
            failures[case.id] = NO_ANSWER
    truth = _classes(cases, wanted[0], answers.names) if answers.is_classification else _numbers(cases, wanted)
    return Judged.of(
        answers.names,
        tuple(case.id for case in cases),
        tuple(case.group or case.id for case in cases),
        truth,
        numbers,
        unlike,
        distance,
        failures,
        tuple(name for name in answers.ids if name not in known),
        {case.id: case.images for case in cases},
        None if validation is None else _lines(answers, Path(validation), Path(source), cases),
    )


def _lines(answers: Answers, validation: Path, source: Path, judged: Sequence[Case]) -> dict[str, BiasLine]:
    """Return the lines of validation answers on their truth; they must know nothing of the judged cases."""
    if answers.is_classification:
        raise UsageError("`validation` corrects the bias of numbers, but these are answers that are classes.")
    others = judge_answers(validation, source)
    if others.names != answers.names or others.is_classification:
        raise DataError(f"Expected {validation} to answer for {', '.join(answers.names)}, but got {', '.join(others.names)}.")
    named, groups = set(read_answers(validation).ids), {case.group or case.id for case in judged}
    known = [case for case, group in zip(others.ids, others.groups, strict=True) if case in named and group in groups]
    if known:
        raise DataError(
            f"Cases of {validation} are judged themselves, or share a group with one that is ({some_of(known)}), so that the "
            "correction would know them. Give answers to other cases."
        )
    kept = others.answered
    lines = {name: BiasLine.fit(others.answers[kept, v], others.truth[kept, v]) for v, name in enumerate(answers.names)}
    for name, line in lines.items():
        if kept.sum() < 3 or not line.slope > 0:
            raise DataError(
                f"The {kept.sum()} answers in {validation} do not rise with the true {name} (slope {line.slope:.3g}), so no "
                "line corrects them. Give three or more of a better model, or leave `validation` out."
            )
    return lines


def _expected(answers: Answers, known: Mapping[str, Case], test: set[str]) -> list[Case]:
    listed = set(answers.ids)
    whole = test if listed & test else set()
    return [case for name, case in sorted(known.items()) if name in listed or name in whole]


def _classes(cases: Sequence[Case], target: str, names: Sequence[str]) -> npt.NDArray[np.int64]:
    numbers = []
    for case in cases:
        name = class_name(case.attributes[target])
        if name not in names:
            raise DataError(f"Case {case.id} is of the class {name!r}, but the model knows {', '.join(names)} alone.")
        numbers.append(names.index(name))
    return np.array(numbers, dtype=np.int64)


def _numbers(cases: Sequence[Case], names: Sequence[str]) -> npt.NDArray[np.float64]:
    table = []
    for case in cases:
        try:
            row = [float(case.attributes[name]) for name in names]
        except (TypeError, ValueError):
            row = [math.nan]
        if not all(map(math.isfinite, row)):
            values = ", ".join(f"{name} {case.attributes[name]!r}" for name in names)
            raise DataError(f"Expected numbers of case {case.id}, but got {values}.")
        table.append(row)
    return np.array(table)
