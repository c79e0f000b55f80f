"""Answers about whole scans against the truth: figures by closed forms, scikit-learn or brute force; what is missing counts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from whole_scans import CLASSES, write_ages, write_pictures

from medseg_se.cli.main import main
from medseg_se.data.answers import Answers
from medseg_se.data.whole_scan_data import read_whole_scans
from medseg_se.errors import DataError
from medseg_se.evaluation.answers import judge_answers
from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.statistics.proportions import wilson_interval


def judged_at_random(n: int = 90, seed: int = 0, groups: list[str] | None = None) -> Judged:
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 3
    answers = rng.dirichlet((1, 1, 1), n)
    answers[np.arange(n), truth] += 0.4
    answers /= answers.sum(axis=1, keepdims=True)
    ids = tuple(f"case{row}" for row in range(n))
    unlike = np.arange(n) % 10 == 0
    return Judged.of(CLASSES, ids, tuple(groups or ids), truth, answers, unlike, np.full(n, np.nan), {})


def test_the_figures_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    judged = judged_at_random()
    truth, said, taken = judged.truth, judged.answers, judged.chosen
    assert judged.figures["accuracy"].estimate == pytest.approx(metrics.accuracy_score(truth, taken))
    assert judged.figures["balanced accuracy"].estimate == pytest.approx(metrics.balanced_accuracy_score(truth, taken))
    area = metrics.roc_auc_score(truth, said, multi_class="ovo", average="macro")
    assert judged.figures["AUC"].estimate == pytest.approx(area)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, taken)
    for label, name in enumerate(CLASSES):
        figures = judged.by_name[name]
        assert figures["precision"].estimate == pytest.approx(precision[label])
        assert figures["recall"].estimate == pytest.approx(recall[label])
        assert figures["F1"].estimate == pytest.approx(f1[label])
        assert figures["AUC"].estimate == pytest.approx(metrics.roc_auc_score(truth == label, said[:, label]))
    assert judged.confusion[:, :3].tolist() == metrics.confusion_matrix(truth, taken).tolist()


def test_figures_by_hand():
    answers = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    ids = ("a", "b", "c", "d")
    judged = Judged.of(CLASSES, ids, ids, np.array([0, 1, 1, 2]), answers, np.zeros(4, bool), np.zeros(4), {})
    assert judged.figures["accuracy"] == wilson_interval(3, 4)
    assert judged.figures["balanced accuracy"].estimate == pytest.approx((1 + 0.5 + 1) / 3)
    assert judged.by_name[CLASSES[0]]["precision"].estimate == pytest.approx(0.5)
    assert judged.by_name[CLASSES[0]]["F1"].estimate == pytest.approx(2 / 3)
    assert judged.by_name[CLASSES[1]]["F1"].estimate == pytest.approx(2 / 3)
    assert judged.figures["Brier score"].n == 4
    # A(0|1): 0.7 above 0.2 and 0.6; A(1|0): 0.5 and 0.3 above 0.2.
    assert judged.pairs[f"{CLASSES[0]} / {CLASSES[1]}"].estimate == 1
    assert judged.by_name[CLASSES[1]]["recall"].n == 2


def test_a_missing_answer_is_the_worst_one():
    whole = judged_at_random()
    answers = whole.answers.copy()
    right = int(np.flatnonzero(whole.chosen == whole.truth)[0])
    answers[right] = np.nan
    ids = whole.ids
    less = Judged.of(CLASSES, ids, ids, whole.truth, answers, whole.unlike, whole.distance, {ids[right]: "lost"})
    assert less.figures["accuracy"].estimate == pytest.approx(whole.figures["accuracy"].estimate - 1 / len(ids))
    assert less.figures["accuracy"].n == len(ids)
    assert less.figures["AUC"].estimate < whole.figures["AUC"].estimate
    label = int(whole.truth[right])
    assert less.by_name[CLASSES[label]]["AUC"].estimate < whole.by_name[CLASSES[label]]["AUC"].estimate
    assert less.figures["Brier score"].n == len(ids) - 1
    assert less.confusion[label, 3] == 1
    assert less.failed
    assert not whole.failed


def test_the_interval_of_balanced_accuracy_holds():
    rng = np.random.default_rng(5)
    truth = np.repeat([0, 1, 2], (60, 25, 15))
    recalls = np.array([0.9, 0.7, 0.6])
    held = 0
    for _ in range(150):
        right = rng.random(100) < recalls[truth]
        answers = np.zeros((100, 3))
        answers[np.arange(100), np.where(right, truth, (truth + 1) % 3)] = 1
        ids = tuple(map(str, range(100)))
        found = Judged.of(CLASSES, ids, ids, truth, answers, np.zeros(100, bool), np.zeros(100), {})
        interval = found.figures["balanced accuracy"]
        held += interval.low <= recalls.mean() <= interval.high
    assert held / 150 > 0.9


def test_scans_of_one_patient_widen_the_interval():
    alone = judged_at_random()
    together = judged_at_random(groups=[f"patient{row // 30}" for row in range(90)])
    assert together.grouped
    assert together.figures["accuracy"].estimate == alone.figures["accuracy"].estimate
    assert together.figures["accuracy"].method != alone.figures["accuracy"].method


def test_all_right_is_not_certain_where_cases_share_groups():
    truth = np.arange(30) % 3
    answers = np.eye(3)[truth] * 0.8 + 0.2 / 3
    ids, pairs = tuple(f"case{row}" for row in range(30)), tuple(f"patient{row // 6}" for row in range(30))
    judged = Judged.of(CLASSES, ids, pairs, truth, answers, np.zeros(30, bool), np.full(30, np.nan), {})
    accuracy, balanced = judged.figures["accuracy"], judged.figures["balanced accuracy"]
    assert (accuracy.estimate, accuracy.n) == (1.0, 30)
    assert (accuracy.low, accuracy.high) == (wilson_interval(5, 5).low, 1.0)
    assert balanced.estimate == 1.0
    assert np.isnan(balanced.low)
    assert balanced.reason
    assert judged.by_name[CLASSES[0]]["recall"].low == wilson_interval(5, 5).low


def test_a_class_that_is_nowhere_is_not_counted():
    answers = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])
    judged = Judged.of(CLASSES, ("a", "b"), ("a", "b"), np.array([0, 1]), answers, np.zeros(2, bool), np.zeros(2), {})
    assert judged.by_name[CLASSES[2]]["recall"].n == 0
    assert np.isnan(judged.by_name[CLASSES[2]]["AUC"].estimate)
    assert judged.figures["balanced accuracy"].estimate == 1


def test_numbers_by_closed_forms():
    truth = np.array([20.0, 40.0, 60.0, 80.0, 50.0])[:, None]
    answers = np.array([25.0, 42.0, 57.0, 72.0, np.nan])[:, None]
    ids = ("a", "b", "c", "d", "e")
    judged = Judged.of(("age",), ids, ids, truth, answers, np.zeros(5, bool), np.zeros(5), {"e": "lost"})
    error, true = np.array([5.0, 2, -3, -8]), truth[:4, 0]
    figures = judged.figures
    assert figures["mean absolute error"].estimate == pytest.approx(4.5)
    assert figures["mean absolute error"].n == 4
    assert figures["root mean squared error"].estimate == pytest.approx(np.sqrt((error**2).mean()))
    assert figures["bias"].estimate == pytest.approx(-1)
    assert figures["r"].estimate == pytest.approx(np.corrcoef(true, true + error)[0, 1])
    assert figures["R²"].estimate == pytest.approx(1 - (error**2).sum() / ((true - true.mean()) ** 2).sum())
    assert figures["slope of the error"].estimate == pytest.approx(np.polyfit(true, error, 1)[0])
    assert figures["slope of the error"].high < 0  # the young are taken for older, the old for younger


def write_answers(folder: Path, source: Path, wrong: int = 1, missing: int = 1) -> None:
    """Write answers to all pictures: of every class, the first `wrong` are wrong; the last `missing` of all have none."""
    cases = read_whole_scans(source).training
    numbers, seen = np.full((len(cases), 3), 0.1), dict.fromkeys(CLASSES, 0)
    for row, case in enumerate(cases):
        label = CLASSES.index(case.attributes["class"])
        seen[CLASSES[label]] += 1
        numbers[row, (label + 1) % 3 if seen[CLASSES[label]] <= wrong else label] = 0.8
    if missing:
        numbers[-missing:] = np.nan
    ids, files = tuple(case.id for case in cases), tuple(str(case.images[0]) for case in cases)
    unlike = np.arange(len(cases)) == 2
    Answers(ids, files, CLASSES, numbers, True, unlike, np.zeros(len(cases))).write(folder / "predictions.csv")


def test_evaluate_compare_and_report_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    source = write_pictures(tmp_path / "pictures", 6)
    write_answers(tmp_path / "base", source, wrong=4, missing=1)
    write_answers(tmp_path / "se", source, wrong=0, missing=0)
    assert main(["evaluate", str(tmp_path / "base"), str(source)]) == 1
    said = capsys.readouterr().out
    assert "Without an answer (1)" in said
    assert "balanced accuracy" in said
    assert "Unlike the scans of the training (1)" in said
    rows = list(csv.DictReader((tmp_path / "base" / "evaluation.csv").open()))
    assert len(rows) == 18
    assert sum(row["correct"] == "yes" for row in rows) == 18 - 12 - 1
    again = Judged.read_json(tmp_path / "base" / "evaluation.json")
    assert again.figures["accuracy"] == wilson_interval(5, 18)
    assert next(iter(again.images.values()))[0].resolve().is_file()

    assert (
        main(["compare", str(tmp_path / "base"), str(tmp_path / "se"), "--truth", str(source), "--output", str(tmp_path / "c")])
        == 0
    )
    said = capsys.readouterr().out
    assert "se is better than base" in said
    content = json.loads((tmp_path / "c" / "comparison.json").read_text())
    accuracy = next(entry for entry in content["contrasts"] if entry["measure"] == "accuracy")
    assert accuracy["difference"] == pytest.approx(13 / 18)
    assert accuracy["p"] == pytest.approx(2 * 0.5**13)
    assert accuracy["z"] > 0

    assert main(["compare", f"one={tmp_path / 'se'}", f"other={tmp_path / 'se'}", "--output", str(tmp_path / "same")]) == 0
    content = json.loads((tmp_path / "same" / "comparison.json").read_text())
    assert {entry["difference"] for entry in content["contrasts"]} == {0}
    assert {entry["p"] for entry in content["contrasts"]} == {1}
    assert "No evidence of a difference" in capsys.readouterr().out

    assert main(["report", str(tmp_path / "base")]) == 0
    page = (tmp_path / "base" / "report.html").read_text()
    assert "data:image" in page
    assert main(["evaluate", str(tmp_path / "base"), str(source), "--structures", "x.json"]) == 2


def test_ages_from_the_command_line(tmp_path, capsys):
    heads = write_ages(tmp_path / "heads", 6, test=2)
    cases = read_whole_scans(heads).test
    ids = tuple(case.id for case in cases[:1])
    numbers = np.array([[cases[0].attributes["age"] + 3.0]])
    folder = tmp_path / "predictions"
    Answers(ids, ("scan",), ("age",), numbers, False, np.zeros(1, bool), np.zeros(1)).write(folder / "predictions.csv")
    assert main(["evaluate", str(folder), str(heads)]) == 1
    assert "the case was not predicted" in capsys.readouterr().out
    judged = Judged.read_json(folder / "evaluation.json")
    assert judged.figures["mean absolute error"].estimate == pytest.approx(3)
    assert len(judged.ids) == 2  # once a test case is answered, all of them are expected


def test_answers_to_other_scans_are_refused(tmp_path):
    source = write_pictures(tmp_path / "pictures", 2)
    numbers = np.array([[0.2, 0.3, 0.5]])
    path = tmp_path / "predictions.csv"
    Answers(("elsewhere",), ("x",), CLASSES, numbers, True, np.zeros(1, bool), np.zeros(1)).write(path)
    with pytest.raises(DataError, match="None of the 1 cases"):
        judge_answers(path, source)
    name = read_whole_scans(source).training[0].id
    Answers((name,), ("x",), ("up", "down"), numbers[:, :2] / 0.5, True, np.zeros(1, bool), np.zeros(1)).write(path)
    with pytest.raises(DataError, match="but the model knows up, down alone"):
        judge_answers(path, source)


def ages_at_random(n: int = 80, groups: list[str] | None = None, copies: int = 1, **more) -> Judged:
    rng = np.random.default_rng(1)
    truth = rng.uniform(20, 80, n)
    said = 50 + 0.7 * (truth - 50) + rng.normal(size=n) * 4
    ids = tuple(f"head{row:03d}" for row in range(n * copies))
    truth, said = np.tile(truth, copies)[:, None], np.tile(said, copies)[:, None]
    n *= copies
    return Judged.of(("age",), ids, tuple(groups or ids), truth, said, np.zeros(n, bool), np.zeros(n), {}, **more)


def test_scans_of_one_person_are_resampled_together_in_r_and_slope():
    alone, copied = ages_at_random(), ages_at_random(groups=[f"person{row % 80}" for row in range(240)], copies=3)
    for figure in ("r", "slope of the error"):
        one, other = alone.figures[figure], copied.figures[figure]
        assert other.estimate == pytest.approx(one.estimate)
        assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.2)  # not narrower by the root of 3
        assert other.method == "expanded percentile bootstrap"
    one, other = alone.figures["R²"], copied.figures["R²"]
    assert (other.low, other.estimate, other.high) == pytest.approx((one.low, one.estimate, one.high))
    assert one.low < one.estimate < one.high


def test_the_bias_of_ages_is_corrected_by_validation_answers_to_others(tmp_path, capsys):
    heads = write_ages(tmp_path / "heads", 6, test=4)
    data = read_whole_scans(heads)
    for name, cases in (("test", data.test), ("validation", data.training)):
        ages = np.array([[case.attributes["age"]] for case in cases], dtype=float)
        ids, n = tuple(case.id for case in cases), len(cases)
        Answers(ids, ids, ("age",), 0.5 * ages + 30, False, np.zeros(n, bool), np.zeros(n)).write(
            tmp_path / name / "predictions.csv"
        )
    folders = [str(tmp_path / name) for name in ("test", "validation")]
    assert main(["evaluate", folders[0], str(heads), "--validation", folders[1]]) == 0
    assert "(age − 30) / 0.5" in capsys.readouterr().out
    figures = Judged.read_json(tmp_path / "test" / "evaluation.json").figures
    assert figures["slope of the error"].estimate == pytest.approx(-0.5)
    assert figures["slope of the error, corrected"].estimate == pytest.approx(0, abs=1e-9)
    assert figures["mean absolute error, corrected"].estimate == pytest.approx(0, abs=1e-9)
    assert main(["evaluate", folders[0], str(heads), "--validation", folders[0]]) == 2
    assert "are judged themselves" in capsys.readouterr().err
