import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from medseg_se.errors import DataError, UsageError
from medseg_se.evaluation.case import CaseResult
from medseg_se.evaluation.compare import Compared, compare
from medseg_se.evaluation.result import Evaluation
from medseg_se.evaluation.verdict import MEAN
from medseg_se.structures import Structures

NAMES = ("liver", "spleen")


def evaluation(dice, cases=None, groups=None, names=NAMES, measures=("dice", "truth_ml"), **further):
    """An evaluation from Dice (cases, structures)."""
    dice = np.asarray(dice, dtype=float)
    cases = cases or [f"case_{number:02d}" for number in range(len(dice))]
    results = []
    for place, (case, row) in enumerate(zip(cases, dice, strict=True)):
        scores = {measure: dict(zip(names, map(float, row), strict=True)) for measure in measures}
        scores["truth_ml"] = dict.fromkeys(names, 10.0 + int(case[-2:]))
        results.append(CaseResult(case, scores, groups[place] if groups else None))
    structures = Structures({name: (value,) for value, name in enumerate(names, start=1)}, **further)
    return Evaluation(structures, tuple(results), {}, (), measures)


def one(name, dice, reference=None, **arguments):
    return Compared(name, {"training 1": evaluation(dice, **arguments)}, reference)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.7, 0.9, (12, 2))
    return first, first + rng.normal((0.02, 0.0), 0.01, (12, 2))


def test_differences_are_taken_case_by_case_and_tested_as_scipy_does(scores):
    first, second = scores
    found = compare([one("none", first), one("scse", second, "none")])
    (contrast,) = found.contrasts
    differences = second - first
    for place, name in enumerate(NAMES):
        paired = contrast.paired[name]
        assert paired.difference == pytest.approx(differences[:, place].mean())
        assert paired.wilcoxon_p == pytest.approx(stats.wilcoxon(differences[:, place]).pvalue)
        assert paired.wins == (differences[:, place] > 0).sum()
        assert paired.low < paired.difference < paired.high
    assert contrast.paired[MEAN].difference == pytest.approx(differences.mean())
    raw = [contrast.paired[name].permutation_p for name in NAMES]
    assert [contrast.p[name] for name in NAMES] == pytest.approx([min(1, 2 * raw[0]), max(raw[1], 2 * raw[0])])
    assert contrast.p[MEAN] == contrast.paired[MEAN].permutation_p
    assert found.outcome("scse").values["liver"].estimate == pytest.approx(second[:, 0].mean())


def test_the_verdict_says_which_is_better_and_where(scores):
    first, second = scores
    verdict = compare([one("none", first), one("scse", second, "none")]).verdicts()["scse"]
    assert verdict.startswith("scse against none: better (Dice, mean over foreground: +0.0")
    assert "By structure: liver better (+0.0" in verdict
    assert "spleen" not in verdict
    turned = compare([one("scse", second), one("none", first, "scse")]).verdicts()["none"]
    assert turned.startswith("none against scse: worse (Dice, mean over foreground: −0.0")


def test_noise_is_no_evidence_of_a_difference():
    rng = np.random.default_rng(1)
    first = rng.uniform(0.7, 0.9, (12, 2))
    verdict = compare([one("none", first), one("cse", first + rng.normal(0, 0.02, (12, 2)), "none")]).verdicts()["cse"]
    assert verdict.startswith("cse against none: no evidence of a difference (Dice, mean over foreground: ")
    assert verdict.endswith("Nor in any of the 2 structures by itself.")


def test_identical_runs_differ_by_nothing(scores):
    found = compare([one("none", scores[0]), one("same", scores[0], "none")])
    (contrast,) = found.contrasts
    for name in (MEAN, *NAMES):
        paired = contrast.paired[name]
        assert (paired.difference, paired.low, paired.high, contrast.p[name], contrast.wilcoxon_p[name]) == (0, 0, 0, 1, 1)
        assert (paired.wins, paired.ties, paired.losses) == (0, 12, 0)
    assert found.verdicts()["same"] == "same against none: no evidence of a difference. Both give the same in all 12 cases."


def test_one_subject_has_no_interval_and_no_verdict(scores):
    first, second = (side[:1] for side in scores)
    found = compare([one("none", first), one("scse", second, "none")])
    paired = found.contrasts[0].paired[MEAN]
    assert math.isnan(paired.low)
    assert math.isnan(paired.high)
    verdict = found.verdicts()["scse"]
    assert verdict.startswith("scse against none: no verdict from one subject (")
    assert "no interval: one subject only" in verdict


def test_scans_of_one_patient_count_as_one_subject(scores):
    first, second = scores
    patients = ["p", "q", "r"] * 4
    found = compare([one("none", first, groups=patients), one("scse", second, "none", groups=patients)])
    paired = found.contrasts[0].paired["liver"]
    assert (found.subjects, paired.subjects, paired.n) == (3, 3, 12)
    assert paired.permutation_p == 0.25  # of three subjects, the smallest there is
    assert "3 subjects are too few: no p below 0.25 can be reached" in found.verdicts()["scse"]


def test_too_few_subjects_are_said_to_be_too_few(scores):
    verdict = compare([one("none", scores[0][:3]), one("scse", scores[0][:3] + 0.2, "none")]).verdicts()["scse"]
    assert "no evidence of a difference" in verdict
    assert "3 subjects are too few" in verdict


def test_p_values_are_corrected_over_all_runs_and_structures(scores):
    first, second = scores
    runs = [one("none", first), *(one(name, second + 0.001 * shift, "none") for shift, name in enumerate("abc"))]
    holm, bh = (compare(runs, correction=rule) for rule in ("holm", "bh"))
    raw = [contrast.paired[name].permutation_p for contrast in holm.contrasts for name in NAMES]
    expected = stats.false_discovery_control(raw)
    assert [contrast.p[name] for contrast in bh.contrasts for name in NAMES] == pytest.approx(expected)
    smallest = min(contrast.paired[MEAN].permutation_p for contrast in holm.contrasts)
    assert min(contrast.p[MEAN] for contrast in holm.contrasts) == pytest.approx(3 * smallest)
    assert any("the mean over foreground over 3 runs, structures over all 6" in note for note in holm.notes)


def test_only_cases_that_all_runs_have_are_compared_and_the_others_are_named(scores):
    first, second = scores
    names = [f"case_{number:02d}" for number in range(12)]
    found = compare([one("none", first), one("scse", second[2:], "none", cases=names[2:])])
    assert found.cases == tuple(names[2:])
    assert found.contrasts[0].paired["liver"].difference == pytest.approx((second - first)[2:, 0].mean())
    assert "Left out of none, as not all runs have them: case_00, case_01; 10 cases are compared." in found.notes


def test_runs_without_a_case_or_a_structure_in_common_are_refused(scores):
    others = [f"other_{number:02d}" for number in range(12)]
    with pytest.raises(DataError, match="no case in common"):
        compare([one("none", scores[0]), one("scse", scores[1], "none", cases=others)])
    with pytest.raises(DataError, match="no structure in common"):
        compare([one("none", scores[0]), one("scse", scores[1], "none", names=("heart", "lung"))])


def test_structures_that_not_all_runs_have_are_left_out_and_named(scores):
    found = compare([one("none", scores[0]), one("scse", scores[1], "none", names=("liver", "kidney"))])
    assert found.structures == ("liver",)
    assert "Structures left out, as not all runs have them: kidney, spleen." in found.notes


def test_runs_judged_against_other_truths_are_refused(scores):
    other = evaluation(scores[1])
    other.cases[3].scores["truth_ml"]["liver"] = 99.0
    with pytest.raises(DataError, match="judged against different truths: liver of case_03 has 99 and 13 ml"):
        compare([one("none", scores[0]), Compared("scse", {"training 1": other}, "none")])


def test_a_structure_not_counted_in_one_run_is_left_out_of_the_mean_of_both(scores):
    first, second = (side.copy() for side in scores)
    first[0, 1] = np.nan
    paired = compare([one("none", first), one("scse", second, "none")]).contrasts[0].paired
    assert paired["spleen"].n == 11
    expected = (second - first).mean(axis=1)
    expected[0] = second[0, 0] - first[0, 0]
    assert paired[MEAN].difference == pytest.approx(expected.mean())


def test_regions_are_compared_and_left_out_of_the_mean():
    names = ("core", "oedema", "whole")
    dice = np.random.default_rng(2).uniform(0.5, 0.9, (8, 3))

    def run(name, values, reference=None):
        structures = Structures({"core": (1,), "oedema": (2,)}, regions={"whole": ("core", "oedema")})
        made = evaluation(values, names=names)
        return Compared(name, {"a": Evaluation(structures, made.cases, {}, (), made.measures)}, reference)

    found = compare([run("none", dice), run("scse", dice + np.array([0, 0, 0.1]), "none")])
    assert found.regions == ("whole",)
    assert found.contrasts[0].paired["whole"].difference == pytest.approx(0.1)
    assert found.contrasts[0].paired[MEAN].difference == 0
    assert "By structure: whole better" in found.verdicts()["scse"]


# ------------------------------------------------------------------------------------------------------------------------ seeds


def seeds(name, tables, reference=None, keys=None):
    keys = keys or [f"seed {number}" for number in range(len(tables))]
    return Compared(name, {key: evaluation(table) for key, table in zip(keys, tables, strict=True)}, reference)


def test_seeds_are_averaged_within_each_case_and_it_says_so(scores):
    first, second = scores
    found = compare([seeds("none", [first, first + 0.02]), seeds("scse", [second, second], "none")])
    assert found.contrasts[0].paired["liver"].difference == pytest.approx((second - first - 0.01)[:, 0].mean())
    assert found.seeds == "averaged over seeds for each subject"
    assert any("averaged for each subject" in note for note in found.notes)


def test_a_run_is_compared_with_the_reference_of_the_same_seeds(scores):
    first, second = scores
    runs = [seeds("none", [first, first + 0.5]), seeds("cse", [second], "none"), seeds("scse", [second] * 2, "none")]
    found = {contrast.name: contrast for contrast in compare(runs).contrasts}
    assert found["cse"].paired["liver"].difference == pytest.approx((second - first)[:, 0].mean())
    assert (found["cse"].repeats, found["scse"].repeats) == ((1, 1), (2, 2))
    assert any(note.startswith("Compared by one training") and note.endswith(": cse.") for note in compare(runs).notes)


def test_seeds_as_a_random_effect_widen_the_interval(scores):
    first, second = scores
    shifts = (-0.03, 0.0, 0.04)
    runs = [seeds("none", [first] * 3), seeds("scse", [second + shift for shift in shifts], "none")]
    average, random = (compare(runs, seeds=way).contrasts[0].paired[MEAN] for way in ("average", "random"))
    assert random.difference == pytest.approx(average.difference)
    assert random.high - random.low > 3 * (average.high - average.low)
    assert random.permutation_p > average.permutation_p
    assert "random effects" in compare(runs, seeds="random").seeds


def test_a_random_effect_needs_the_same_seeds(scores):
    first, second = scores
    with pytest.raises(UsageError, match="of the same trainings where seeds are a random effect"):
        compare([seeds("none", [first], keys=["a"]), seeds("scse", [second], "none", keys=["b"])], seeds="random")


def test_folds_are_put_together(scores):
    first, second = scores
    names = [f"case_{number:02d}" for number in range(12)]

    def folds(name, table, reference=None):
        halves = {f"fold {fold}": evaluation(table[fold::2], cases=names[fold::2]) for fold in (0, 1)}
        return Compared(name, halves, reference)

    found = compare([folds("none", first), folds("scse", second, "none")])
    assert found.contrasts[0].paired["liver"].n == 12
    assert found.contrasts[0].paired["liver"].difference == pytest.approx((second - first)[:, 0].mean())


# --------------------------------------------------------------------------------------------------------------------- measures


def test_of_distances_the_smaller_is_better(scores):
    first, second = scores
    made = [evaluation(table, measures=("dice", "hd95_mm")) for table in (first, second)]
    found = compare([Compared("none", {"a": made[0]}), Compared("scse", {"a": made[1]}, "none")], "hd95_mm")
    assert found.contrasts[0].paired["liver"].losses > 10
    assert found.verdicts()["scse"].startswith("scse against none: worse (HD95, mean over foreground: +0.01 mm")


def test_what_cannot_be_compared_is_refused(scores):
    none, scse = one("none", scores[0]), one("scse", scores[1], "none")
    for arguments, message in (
        ((([none, scse]), "hd95_mm"), "none was judged without hd95_mm"),
        ((([none, scse]), "truth_ml"), "Unknown measure to compare 'truth_ml'"),
        ((([none, scse]), "dice", "bonferroni"), "Unknown correction 'bonferroni'"),
        ((([none, scse]), "dice", "holm", "none"), "Unknown way with seeds 'none'"),
        ((([none]),), "a run besides the reference, to be compared with it, but got none alone"),
        ((([none, none]),), "a name of its own"),
        ((([none, one("a", scores[1], "nona")]),), "Unknown reference of a 'nona'. Did you mean 'none'"),
    ):
        with pytest.raises((UsageError, DataError), match=message.replace("(", r"\(")):
            compare(*arguments)


# ----------------------------------------------------------------------------------------------------------------------- output


def test_tables_hold_every_run_and_structure(scores, tmp_path):
    found = compare([one("none", scores[0]), one("scse", scores[1], "none")])
    found.write_csv(tmp_path / "table.csv")
    found.write_json(tmp_path / "comparison.json")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    expected = [(run, name) for run in ("none", "scse") for name in (MEAN, *NAMES)]
    assert [(row["run"], row["structure"]) for row in rows] == expected
    liver = found.contrasts[0].paired["liver"]
    assert float(rows[4]["difference"]) == liver.difference
    assert float(rows[4]["permutation_p_corrected"]) == found.contrasts[0].p["liver"]
    assert rows[0]["difference"] == rows[0]["reference"] == ""
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["contrasts"][0]["paired"]["liver"]["low"] == liver.low
    assert content["contrasts"][0]["verdict"] in content["verdict"]
