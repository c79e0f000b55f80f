"""Classifiers against a reference: tests against closed forms, what groups and missing answers do to them, and refusals."""

from __future__ import annotations

import csv
import os
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from whole_scans import CLASSES, write_pictures

from medseg_se.cli.main import main
from medseg_se.data.answers import Answers
from medseg_se.data.whole_scan_data import read_whole_scans
from medseg_se.errors import UsageError
from medseg_se.evaluation.compare_answers import compare_classifiers
from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.statistics.roc import compare_auc_delong


def judged(truth, answers, groups=None):
    ids = tuple(f"case{row:03d}" for row in range(len(truth)))
    missing = {case: "lost" for case, row in zip(ids, answers, strict=True) if np.isnan(row).any()}
    n = len(ids)
    return Judged.of(CLASSES, ids, tuple(groups or ids), truth, answers, np.zeros(n, bool), np.full(n, np.nan), missing)


@pytest.fixture
def drawn():
    """True classes of 150 cases, weak answers to them, and answers of which more are right."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 150)
    weak = rng.dirichlet((1, 1, 1), 150)
    weak[np.arange(150), truth] += 0.2
    weak /= weak.sum(axis=1, keepdims=True)
    strong = np.where((np.arange(150) % 2 == 0)[:, None], 0.8 * np.eye(3)[truth] + 0.2 * weak, weak)
    return truth, weak, strong


def contrasts(found):
    return {(one.measure, one.of): one for one in found.contrasts}


def test_the_tests_are_those_of_closed_forms(drawn):
    truth, weak, strong = drawn
    base, se = judged(truth, weak), judged(truth, strong)
    found = contrasts(compare_classifiers({"base": base, "se": se}, "base"))
    before, after = base.chosen == truth, se.chosen == truth
    for of, kept in (("all", np.ones(150, bool)), *((name, truth == label) for label, name in enumerate(CLASSES))):
        one = found["accuracy" if of == "all" else "recall", of]
        gained, lost = int((after & ~before)[kept].sum()), int((before & ~after)[kept].sum())
        assert one.test == "McNemar"
        assert one.p == pytest.approx(stats.binomtest(min(gained, lost), gained + lost).pvalue)
        table = [[right[kept].sum(), (~right)[kept].sum()] for right in (before, after)]
        expected = stats.chi2_contingency(table, correction=False)
        assert (one.z**2, one.p_z) == pytest.approx((expected.statistic, expected.pvalue))
    areas = [found["AUC", name].p for name in CLASSES]
    assert areas == pytest.approx([compare_auc_delong(truth == k, weak[:, k], strong[:, k]).p for k in range(3)])
    ordered = sorted(areas)
    assert found["AUC", CLASSES[areas.index(ordered[0])]].p_holm == pytest.approx(min(1, 3 * ordered[0]))


def test_copies_of_scans_are_no_evidence(drawn):
    truth, weak, strong = (values[:14] for values in drawn)
    alone = contrasts(compare_classifiers({"base": judged(truth, weak), "se": judged(truth, strong)}, "base"))
    groups = [f"group{row % 14}" for row in range(56)]
    copies = [judged(np.tile(truth, 4), np.tile(answers, (4, 1)), groups) for answers in (weak, strong)]
    found = compare_classifiers({"base": copies[0], "se": copies[1]}, "base")
    for key, one in alone.items():
        if key[0] != "AUC":
            copied = contrasts(found)[key]
            assert copied.test == "sign flips of groups"
            assert (copied.p, copied.difference) == pytest.approx((one.p, one.difference))
            assert copied.p_z <= one.p_z  # this one counts copies
    assert "groups kept whole" in found.notes()[0]


def test_the_same_answers_differ_in_nothing_with_groups_too(drawn):
    truth, weak, _ = drawn
    same = judged(truth, weak, [f"group{row // 3}" for row in range(150)])
    found = compare_classifiers({"one": same, "other": same}, "one").contrasts
    assert {(one.difference, one.p, one.p_holm) for one in found} == {(0, 1, 1)}


def test_a_model_that_leaves_out_what_is_hard_has_no_better_area(drawn):
    truth, weak, _ = drawn
    base = judged(truth, weak)
    left_out = weak.copy()
    left_out[base.chosen != truth] = np.nan
    found = contrasts(compare_classifiers({"base": base, "shy": judged(truth, left_out)}, "base"))
    assert all(found["AUC", name].difference < 0 for name in CLASSES)
    assert found["AUC", CLASSES[0]].n == 150
    assert found["accuracy", "all"].difference == 0


def test_other_classes_or_truths_are_refused(drawn):
    truth, weak, strong = drawn
    base = judged(truth, weak)
    with pytest.raises(UsageError, match="classes of base"):
        compare_classifiers({"base": base, "se": replace(base, names=("x", "y", "z"))}, "base")
    with pytest.raises(UsageError, match="different truths"):
        compare_classifiers({"base": base, "se": judged((truth + 1) % 3, strong)}, "base")


def test_an_evaluation_older_than_its_answers_is_refused(tmp_path, capsys):
    source = write_pictures(tmp_path / "pictures", 2)
    ids = tuple(case.id for case in read_whole_scans(source).training)
    for name in ("a", "b"):
        Answers(ids, ids, CLASSES, np.full((6, 3), 1 / 3), True, np.zeros(6, bool), np.zeros(6)).write(
            tmp_path / name / "predictions.csv"
        )
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["compare", *folders, "--truth", str(source), "--output", str(tmp_path / "out")]) == 0
    with (tmp_path / "out/table.csv").open(newline="") as file:
        assert {row["test"] for row in csv.DictReader(file)} == {"McNemar", "DeLong"}
    os.utime(tmp_path / "a/predictions.csv", (2e9, 2e9))
    assert main(["compare", *folders]) == 2
    assert "is older than the predictions.csv beside it" in capsys.readouterr().err
    assert main(["evaluate", folders[0], str(source), "--metrics", "dice"]) == 2
    assert "`metrics` is for label maps" in capsys.readouterr().err
