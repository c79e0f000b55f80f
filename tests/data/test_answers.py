"""`predictions.csv`: what is written is read again, and what is damaged is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg_se.data.answers import Answers, read_answers
from medseg_se.errors import DataError


def make_answers(numbers: list[list[float]], is_classification: bool = True) -> Answers:
    count = len(numbers)
    return Answers(
        tuple(f"case{row}" for row in range(count)),
        tuple(f"scans/case{row}.png" for row in range(count)),
        ("cat", "dog, small")[: len(numbers[0])],
        np.array(numbers),
        is_classification,
        np.arange(count) == 1,
        np.linspace(0.1, 1 / 3, count),
    )


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    for answers in (
        make_answers([[0.1, 0.9], [2 / 3, 1 / 3]]),
        make_answers([[-1e9, 1 / 7], [3.25, 0.1]], is_classification=False),
    ):
        answers.write(tmp_path / "predictions.csv")
        read = read_answers(tmp_path)
        assert (read.ids, read.images, read.names) == (answers.ids, answers.images, answers.names)
        assert read.is_classification == answers.is_classification
        for name in ("numbers", "unlike", "distance"):
            np.testing.assert_array_equal(getattr(read, name), getattr(answers, name))


def test_a_case_without_an_answer_stays_without(tmp_path: Path) -> None:
    make_answers([[0.1, 0.9], [np.nan, np.nan]]).write(tmp_path / "predictions.csv")
    read = read_answers(tmp_path / "predictions.csv")
    assert read.answered.tolist() == [True, False]
    assert read.chosen.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,class\na,cat\n", "columns"),
        ("case,p:cat,p:dog\na,0.5,0.6\n", "sum to 1"),
        ("case,p:cat,p:dog\na,0.5,half\n", "'half'"),
        ("case,p:cat,p:dog\na,0.5,0.5\na,0.4,0.6\n", "twice"),
    ],
)
def test_a_damaged_table_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_answers(path)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="Cannot read"):
        read_answers(path)
