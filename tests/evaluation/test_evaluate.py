import csv
import io
import itertools
import json
import re

import numpy as np
import pytest
from rich.console import Console

from medseg_se.errors import DataError, UsageError
from medseg_se.evaluation.evaluate import evaluate
from medseg_se.evaluation.result import POLICY, CaseResult, Evaluation
from medseg_se.evaluation.statistics.bootstrap import mean_interval
from medseg_se.metrics.judging import judge
from medseg_se.metrics.measures import DISTANCES, MEASURES, OVERLAP, names
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, write_volume

STRUCTURES = Structures(
    {"left hippocampus": (17,), "right hippocampus": (53,), "lesion": (99,)},
    regions={"hippocampi": ("left hippocampus", "right hippocampus")},
    ignore=255,
)
OBLIQUE = np.array([[0.8, -1.2, 0, -10], [0.6, 1.6, 0, 20], [0, 0, -3, 5], [0, 0, 0, 1]])  # 1 × 2 × 3 mm, left-handed
SPACING = np.diag([1.0, 2.0, 3.0, 1.0])


def labels(*, left=4, right=4, lesion=0, shift=0):
    """A map with blocks of `left` x 4 x 4 and `right` x 4 x 4 voxels, and `lesion` single voxels."""
    array = np.zeros((1, 12, 12, 10), dtype=np.uint8)
    array[0, shift : shift + left, :4, :4] = 17
    array[0, :right, 6:10, :4] = 53
    array[0, -1, -1, :lesion] = 99
    return array


def write(folder, name, array, affine=OBLIQUE):
    write_volume(Volume(array, affine), folder / name)


@pytest.fixture
def folders(tmp_path):
    predictions, truth = tmp_path / "predictions", tmp_path / "truth"
    predictions.mkdir()
    truth.mkdir()
    return predictions, truth


def run(folders, structures=STRUCTURES, **options):
    return evaluate(*folders, structures, progress=False, **options)


def by_case(evaluation):
    return {case.id: case for case in evaluation.cases}


def manifest(folder, cases):
    (folder / "predictions.json").write_text(json.dumps({"format": 1, "model": "0a1b", "cases": cases}))


def test_dice_and_volumes_on_an_oblique_grid_with_values_far_apart(folders):
    predictions, truth = folders
    write(truth, "a.nii.gz", labels())
    write(predictions, "a.nii", labels(shift=1, right=2))
    case = by_case(run(folders))["a"]
    assert case.failure is None
    assert case.dice["left hippocampus"] == pytest.approx(0.75)
    assert case.dice["right hippocampus"] == pytest.approx(2 * 32 / (64 + 32))
    assert case.dice["hippocampi"] == pytest.approx(2 * (48 + 32) / (128 + 96))
    assert np.isnan(case.dice["lesion"])
    assert case.truth_ml["hippocampi"] == pytest.approx(128 * 6 / 1000)
    assert case.predicted_ml["right hippocampus"] == pytest.approx(32 * 6 / 1000)


def test_summary_counts_only_cases_with_the_structure(folders):
    predictions, truth = folders
    for name, shift, lesion in (("a", 0, 0), ("b", 1, 2), ("c", 2, 0)):
        write(truth, f"{name}.nii.gz", labels(lesion=lesion))
        write(predictions, f"{name}.nii.gz", labels(shift=shift))
    evaluation = run(folders, workers=2)
    left, lesion = evaluation.summary()["left hippocampus"], evaluation.summary()["lesion"]
    assert (left.n, left.worst_case) == (3, "c")
    assert [left.mean, left.sd, left.median, left.worst] == pytest.approx([0.75, 0.25, 0.75, 0.5])
    assert (lesion.n, lesion.mean, lesion.worst_case) == (1, 0, "b")
    assert np.isnan(lesion.sd)
    # The region is no structure of its own: (0.75 + 1 + 0) / 3.
    assert evaluation.mean_foreground == pytest.approx(1.75 / 3)
    assert not evaluation.failed


def test_the_mean_over_foreground_has_an_interval_of_whole_subjects(folders):
    predictions, truth = folders
    for name, shift, right in (("a", 0, 3), ("b", 1, 4), ("c", 2, 2), ("d", 1, 3)):
        write(truth, f"{name}.nii.gz", labels())
        write(predictions, f"{name}.nii.gz", labels(shift=shift, right=right))
    evaluation = run(folders)
    by_subject = [np.mean([case.dice["left hippocampus"], case.dice["right hippocampus"]]) for case in evaluation.cases]
    expected, found = mean_interval(by_subject, limits=(0, 1)), evaluation.foreground_interval
    assert found.estimate == pytest.approx(evaluation.mean_foreground)
    assert (found.low, found.high, found.n) == pytest.approx((expected.low, expected.high, 4))
    assert shown(evaluation)[0]["mean over foreground"][0] == f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"
    evaluation.write_json(truth.parent / "evaluation.json")
    content = json.loads((truth.parent / "evaluation.json").read_text())["mean_foreground_interval"]
    assert content == {"low": found.low, "high": found.high, "n": 4, "reason": None}
    assert Evaluation.read_json(truth.parent / "evaluation.json").foreground_interval == found


def test_a_structure_that_no_case_has_is_counted_nowhere(folders):
    for folder in folders:
        write(folder, "a.nii.gz", labels())
    evaluation = run(folders)
    assert evaluation.summary()["lesion"].n == 0
    assert evaluation.mean_foreground == 1


def test_voxels_of_unknown_truth_are_left_out(folders):
    predictions, truth = folders
    unknown = labels()
    unknown[0, 2:4, :4, :4] = 255
    write(truth, "a.nii.gz", unknown)
    write(predictions, "a.nii.gz", labels(shift=1, left=3))
    assert by_case(run(folders))["a"].dice["left hippocampus"] == pytest.approx(2 * 16 / (32 + 16))


def test_missing_and_unusable_predictions_count_as_empty_ones(folders):
    predictions, truth = folders
    for name in ("absent", "elsewhere", "good", "ignored", "other shape", "stray", "truncated"):
        write(truth, f"{name}.nii.gz", labels())
        write(predictions, f"{name}.nii.gz", labels())
    (predictions / "absent.nii.gz").unlink()
    moved = OBLIQUE.copy()
    moved[0, 3] += 5
    write(predictions, "elsewhere.nii.gz", labels(), moved)
    write(predictions, "other shape.nii.gz", labels()[:, :-1])
    for name, value in (("stray", 7), ("ignored", 255)):
        array = labels()
        array[0, -1, -1, -1] = value
        write(predictions, f"{name}.nii.gz", array)
    content = (predictions / "truncated.nii.gz").read_bytes()
    (predictions / "truncated.nii.gz").write_bytes(content[: len(content) // 2])
    evaluation = run(folders)
    reasons = {
        "absent": "no prediction found",
        "elsewhere": "lies on a different grid: affines that put the same voxel up to 5.00 mm apart",
        "ignored": "label value {255}",
        "other shape": "lies on a different grid: shape (11, 12, 10) against (12, 12, 10)",
        "stray": "label value {7}",
        "truncated": "Cannot read",
    }
    assert set(evaluation.failures) == set(reasons)
    for name, reason in reasons.items():
        assert reason in evaluation.failures[name]
        case = by_case(evaluation)[name]
        assert (case.dice["left hippocampus"], case.dice["hippocampi"], case.predicted_ml["hippocampi"]) == (0, 0, 0)
        assert np.isnan(case.dice["lesion"])
    assert evaluation.failed
    assert evaluation.summary()["left hippocampus"].n == 7
    assert evaluation.mean_foreground == pytest.approx(1 / 7)


def test_a_manifest_says_which_cases_are_expected(folders):
    predictions, truth = folders
    for name in "abcd":
        write(truth, f"{name}.nii.gz", labels())
    for name in ("a", "b", "d"):
        write(predictions, f"{name}.nii.gz", labels())
    done = {"status": "done", "file": "a.nii.gz", "error": None}
    failed = {"status": "failed", "file": "b.nii.gz", "error": "the scan is empty"}
    manifest(predictions, {"a": done, "b": failed, "new": {**done, "file": "new.nii.gz"}})
    evaluation = run(folders)
    assert list(by_case(evaluation)) == ["a", "b"]
    assert by_case(evaluation)["a"].dice["hippocampi"] == 1
    assert evaluation.failures == {"b": "the prediction failed: the scan is empty"}
    assert by_case(evaluation)["b"].dice["hippocampi"] == 0
    assert evaluation.extra == ("new",)


def test_a_manifest_that_was_never_finished_counts_as_failures(folders):
    predictions, truth = folders
    write(truth, "a.nii.gz", labels())
    manifest(predictions, {"a": {"status": "running", "file": None}})
    assert "'running'" in run(folders).failures["a"]


def test_a_manifest_of_another_kind_is_refused(folders):
    predictions, truth = folders
    write(truth, "a.nii.gz", labels())
    manifest(predictions, ["a"])
    with pytest.raises(DataError, match=r"predictions\.json to list 'cases'"):
        run(folders)


def test_predictions_without_truth_are_listed_not_judged(folders):
    predictions, truth = folders
    write(truth, "a.nii.gz", labels())
    for name in ("z", "a", "b"):
        write(predictions, f"{name}.nii.gz", labels())
    evaluation = run(folders)
    assert evaluation.extra == ("b", "z")
    assert list(by_case(evaluation)) == ["a"]
    assert not evaluation.failed


def test_broken_truth_is_listed_and_makes_the_evaluation_fail(folders):
    predictions, truth = folders
    for name in ("a", "b", "c"):
        write(predictions, f"{name}.nii.gz", labels())
    write(truth, "a.nii.gz", labels())
    (truth / "b.nii.gz").write_bytes(b"no scan at all")
    write(truth, "c.nii.gz", labels() + 1)
    evaluation = run(folders)
    assert list(by_case(evaluation)) == ["a"]
    assert set(evaluation.unjudged) == {"b", "c"}
    assert str(truth / "b.nii.gz") in evaluation.unjudged["b"]
    assert "not declared" in evaluation.unjudged["c"]
    assert evaluation.failed
    assert not evaluation.failures
    assert evaluation.summary()["hippocampi"].n == 1


def test_a_decathlon_dataset_gives_cases_structures_and_held_back_truth(tmp_path):
    dataset, predictions = tmp_path / "Task04", tmp_path / "predictions"
    cases = {"tr": "labelsTr", "ts": "labelsTs"}
    content = {
        "labels": {"0": "background", "17": "left", "53": "right"},
        "training": [{"image": "imagesTr/tr.nii.gz", "label": "labelsTr/tr.nii.gz"}, {"image": "imagesTr/unlabelled.nii.gz"}],
        "test": ["imagesTs/ts.nii.gz", "imagesTs/unknown.nii.gz"],
    }
    for name, folder in cases.items():
        write(dataset / folder, f"{name}.nii.gz", labels())
        write(predictions, f"{name}.nii.gz", labels(shift=1))
    (dataset / "dataset.json").write_text(json.dumps(content))
    write(predictions, "unknown.nii.gz", labels())
    for truth in (dataset, dataset / "dataset.json"):
        evaluation = evaluate(predictions, truth, progress=False)
        assert {name: case.dice["left"] for name, case in by_case(evaluation).items()} == {"tr": 0.75, "ts": 0.75}
        assert evaluation.extra == ("unknown",)
    labels_only = evaluate(predictions, dataset / "labelsTr", progress=False)
    assert labels_only.structures.names == ("left", "right")
    assert list(by_case(labels_only)) == ["tr"]


def test_the_truth_of_a_test_case_may_be_a_label_map_alone(folders):
    predictions, truth = folders
    write(predictions, "ts.nii.gz", labels(shift=1))
    write(truth / "labels", "ts.nii.gz", labels())
    content = {
        "labels": {"background": 0, "left hippocampus": 17},
        "training": [],
        "test": [{"image": None, "label": "labels/ts.nii.gz"}],
    }
    (truth / "dataset.json").write_text(json.dumps(content))
    assert {name: case.dice["left hippocampus"] for name, case in by_case(run(folders)).items()} == {"ts": 0.75}


def test_a_csv_among_label_maps_is_a_dataset_only_if_it_lists_images(folders):
    predictions, truth = folders
    for folder in folders:
        write(folder, "a.nii.gz", labels())
    (truth / "structures.json").write_text(json.dumps(STRUCTURES.to_dict()))
    (truth / "volumes.csv").write_text("case,volume\na,3\n")
    assert list(by_case(run(folders, None))) == ["a"]
    (truth / "volumes.csv").write_text("id,image,label\nscan,scan.nii.gz,a.nii.gz\n")
    write(predictions, "scan.nii.gz", labels())
    assert list(by_case(run(folders, None))) == ["scan"]


def test_errors_say_what_to_do(folders, tmp_path):
    predictions, truth = folders
    write(truth, "a.nii.gz", labels())
    with pytest.raises(DataError, match="predicted are none, but the truth has a"):
        run(folders)
    write(predictions, "a_0000.nii.gz", labels())
    with pytest.raises(DataError, match=r"predicted are a_0000, but the truth has a\."):
        run(folders)
    with pytest.raises(UsageError, match="Give --structures"):
        run(folders, None)
    with pytest.raises(UsageError, match="`workers` to be at least 1, but got 0"):
        run(folders, workers=0)
    with pytest.raises(DataError, match="folder of predicted label maps"):
        run((tmp_path / "nowhere", truth))
    with pytest.raises(DataError, match="No such truth"):
        run((predictions, tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no label map to judge against"):
        run((predictions, tmp_path / "empty"))
    write(truth, "a.nii", labels())
    with pytest.raises(DataError, match="claim to be case a; remove one"):
        run(folders)


@pytest.fixture
def mixed(folders):
    predictions, truth = folders
    for name, lesion in (("a", 1), ("b", 0), ("c [x]", 0)):
        write(truth, f"{name}.nii.gz", labels(lesion=lesion), SPACING)
    write(predictions, "a.nii.gz", labels(shift=1, lesion=1), SPACING)
    write(predictions, "b.nii.gz", labels(), SPACING)
    write(predictions, "extra.nii.gz", labels(), SPACING)
    return run(folders)


def test_csv_has_a_row_per_case_and_structure_and_a_column_per_measure(mixed, tmp_path):
    mixed.write_csv(tmp_path / "out" / "dice.csv")
    rows = list(csv.DictReader((tmp_path / "out" / "dice.csv").open(encoding="utf-8", newline="")))
    assert [(row["case"], row["structure"]) for row in rows] == list(
        itertools.product(["a", "b", "c [x]"], STRUCTURES.judged())
    )
    assert list(rows[0]) == ["case", "group", "structure", "failure", *mixed.measures]
    by_place = {(row["case"], row["structure"]): row for row in rows}
    left = by_place["a", "left hippocampus"]
    assert (float(left["dice"]), float(left["hd_mm"]), left["group"], left["failure"]) == (0.75, 1, "", "")
    assert (by_place["b", "lesion"]["dice"], float(by_place["b", "hippocampi"]["nsd"])) == ("", 1)
    missing = by_place["c [x]", "hippocampi"]
    assert (float(missing["dice"]), missing["hd95_mm"]) == (0, "inf")
    assert "no prediction found" in missing["failure"]


def test_json_holds_summary_cases_failures_and_policy(mixed, tmp_path):
    mixed.write_json(tmp_path / "dice.json")
    content = json.loads((tmp_path / "dice.json").read_text(encoding="utf-8"))
    assert (content["format"], content["policy"]) == (2, POLICY)
    assert Structures.from_dict(content["structures"]) == STRUCTURES
    assert [measure["name"] for measure in content["measures"]] == list(mixed.measures)
    assert content["summary"]["dice"]["left hippocampus"]["mean"] == pytest.approx(1.75 / 3)
    assert content["summary"]["dice"]["lesion"] == {
        "mean": 1,
        "sd": None,
        "median": 1,
        "n": 1,
        "infinite": 0,
        "worst": 1,
        "worst_case": "a",
        "low": None,
        "high": None,
        "reason": "one subject only, from which nothing can be said about others",
    }
    assert content["summary"]["hd95_mm"]["left hippocampus"]["mean"] == "inf"
    assert content["mean_foreground"] == pytest.approx((1.75 / 3 + 2 / 3 + 1) / 3)
    interval = content["mean_foreground_interval"]
    assert (interval["low"], interval["high"], interval["n"]) == (None, None, 3)
    assert interval["reason"].startswith("1 of 3 structures counted in one subject only")
    assert [case["id"] for case in content["cases"]] == ["a", "b", "c [x]"]
    assert content["cases"][1]["scores"]["dice"]["lesion"] is None
    assert list(content["failures"]) == ["c [x]"]
    assert content["extra"] == ["extra"]


def test_what_was_written_reads_back_the_same(mixed, tmp_path):
    mixed.write_json(tmp_path / "first.json")
    assert json.loads((tmp_path / "first.json").read_text())["cases"][0]["prediction"] == "predictions/a.nii.gz"
    again = Evaluation.read_json(tmp_path / "first.json")
    assert again.measures == mixed.measures
    assert again.structures == STRUCTURES
    assert (again.tolerances, again.surface, again.lesions) == (mixed.tolerances, "voxel", None)
    for before, after in zip(mixed.cases, again.cases, strict=True):
        for name in ("id", "group", "failure", "truth", "prediction", "resampled"):
            assert getattr(after, name) == getattr(before, name)
        np.testing.assert_equal(after.scores, before.scores)
    again.write_json(tmp_path / "second.json")
    assert (tmp_path / "second.json").read_bytes() == (tmp_path / "first.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "in format 2, but its format is 1"),
        ({"measures": [{"name": "beauty"}]}, "beauty"),
        ({"cases": [{"id": "a"}]}, "damaged evaluation"),
        ({"cases": None}, "damaged evaluation"),
    ],
)
def test_other_files_are_no_evaluation(mixed, tmp_path, change, message):
    path = tmp_path / "evaluation.json"
    mixed.write_json(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        Evaluation.read_json(path)


def shown(evaluation, width=100):
    """The table as it is printed, structure → cells, and the whole text with single spaces."""
    console = Console(file=io.StringIO(), width=width)
    evaluation.render(console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows}, " ".join(text.split())


def test_the_table_says_n_and_lists_what_went_wrong(mixed):
    lines, text = shown(mixed)
    left = mixed.summary()["left hippocampus"]
    assert lines["left hippocampus"] == [
        *(f"0.583 [{left.low:.3f}, {left.high:.3f}]", "0.750", "1.00", "0.667", "3", "0.000 c [x]")
    ]
    assert lines["lesion"] == ["1.000 [no interval]", "1.000", "0.00", "1.000", "1", "1.000 a"]
    assert "hippocampi (region)" in lines
    assert lines["mean over foreground"][0] == "0.750 [no interval]"
    assert "1 of 3 structures counted in one subject only, from which nothing can be said about others (mean over" in text
    assert "c [x]: no prediction found" in text
    assert "not judged (1): extra" in text
    assert "No interval: one subject only, from which nothing can be said about others (lesion)." in text
    assert "distances are infinite: left hippocampus in 1 of 3, right hippocampus in 1 of 3, hippocampi in 1 of 3." in text
    assert "Surfaces: voxel boundary" in text
    assert "NSD within 1 mm." in text
    assert "is not counted" in text


# ------------------------------------------------------------------------------------------------------- measures and options


def test_every_measure_is_that_of_the_arrays_on_the_grid_of_the_file(folders):
    predictions, truth = folders
    pair = labels(shift=1, right=2, lesion=2), labels(lesion=3)
    write(predictions, "a.nii.gz", pair[0])
    write(truth, "a.nii.gz", pair[1])
    case = by_case(run(folders, lesions="any", surface="surfel", tolerance=1.5))["a"]
    maps = [STRUCTURES.encode(array[0]) for array in pair]
    expected = judge(*maps, list(STRUCTURES.judged().values()), 4, (1.0, 2.0, 3.0), tuple(MEASURES), "surfel", 1.5)
    assert list(case.scores) == list(MEASURES)
    for name, values in expected.items():
        assert list(case.scores[name].values()) == pytest.approx(values.tolist()), name
    assert case.truth == truth / "a.nii.gz"
    assert case.prediction == predictions / "a.nii.gz"


def test_what_is_measured_can_be_chosen(folders):
    for folder in folders:
        write(folder, "a.nii.gz", labels())
    assert run(folders).measures == names((*OVERLAP, *DISTANCES))
    assert run(folders, metrics="nsd, iou").measures == ("dice", "iou", "nsd")
    assert run(folders, metrics=["dice"], lesions=0.5).measures[:2] == ("dice", "truth_lesions")
    only = run(folders, metrics="lesion_recall", lesions="any")
    assert only.measures == ("dice", "lesion_recall")
    assert shown(only)[0]["hippocampi (region)"][:3] == ["1.000 [no interval]", "1.000", "1.000"]


def test_tolerances_by_structure(folders):
    predictions, truth = folders
    write(truth, "a.nii.gz", labels())
    write(predictions, "a.nii.gz", labels(shift=1))
    evaluation = run(folders, tolerance={"left hippocampus": 0.5, "default": 2})
    assert evaluation.tolerances == {"left hippocampus": 0.5, "right hippocampus": 2, "lesion": 2, "hippocampi": 2}
    scores = by_case(evaluation)["a"].scores["nsd"]
    assert scores["left hippocampus"] < 1
    assert scores["hippocampi"] == 1
    assert "NSD within 0.5, 2 mm, by structure." in shown(evaluation)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "dise"}, "Unknown measure 'dise'. Did you mean 'dice'?"),
        ({"metrics": "lesion_recall"}, "give `lesions`, any or an IoU"),
        ({"surface": "mesh"}, "Unknown definition of surfaces 'mesh'"),
        ({"tolerance": -1.0}, "Expected the tolerance to be a number of mm from 0, but got -1.0"),
        ({"tolerance": float("nan")}, "but got nan"),
        ({"tolerance": {"left hipocampus": 1}}, "Did you mean 'left hippocampus'?"),
        ({"tolerance": {"lesion": 1}}, "too. Add 'default'"),
        ({"tolerance": {"default": "thick"}}, "tolerance of 'default' to be a number of mm"),
        ({"lesions": "some"}, "'any' or an IoU above 0 and up to 1, but got 'some'"),
        ({"lesions": 0.0}, "but got 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(folders, options, message):
    for folder in folders:
        write(folder, "a.nii.gz", labels())
    with pytest.raises(UsageError) as caught:
        run(folders, **options)
    assert message in str(caught.value)


def test_a_prediction_on_another_grid_is_resampled_only_if_asked_for(folders):
    predictions, truth = folders
    write(truth, "a.nii.gz", labels(lesion=1))
    flipped, affine = np.ascontiguousarray(labels(lesion=1)[:, ::-1]), OBLIQUE.copy()
    affine[:3, 3] += affine[:3, 0] * (flipped.shape[1] - 1)
    affine[:3, 0] *= -1
    write(predictions, "a.nii.gz", np.pad(flipped, ((0, 0), (0, 2), (0, 0), (0, 0))), affine)
    assert "lies on a different grid" in run(folders).failures["a"]
    evaluation = run(folders, resample=True)
    assert set(by_case(evaluation)["a"].dice.values()) == {1}
    assert not evaluation.failed
    assert evaluation.resampled == {"a": "shape (14, 12, 10) against (12, 12, 10)"}
    assert "Resampled onto the grid of the truth (1): a: shape (14, 12, 10)" in shown(evaluation)[1]
    affine[:3, 3] += 500
    write(predictions, "a.nii.gz", flipped, affine)
    assert "have no place in common" in run(folders, resample=True).failures["a"]


def test_intervals_resample_the_groups_of_the_dataset(folders):
    predictions, truth = folders
    rows = ["id,image,label,group"]
    for number in range(8):
        write(truth, f"{number}.nii.gz", labels(lesion=1 + number % 3))
        write(predictions, f"{number}.nii.gz", labels(shift=number % 4, lesion=1))
        rows.append(f"{number},{number}.nii.gz,{number}.nii.gz,patient {number // 2}")
    (truth / "structures.json").write_text(json.dumps(STRUCTURES.to_dict()))
    (truth / "cases.csv").write_text("\n".join(rows))
    evaluation = run(folders)
    assert by_case(evaluation)["5"].group == "patient 2"
    for measure, limits in (("dice", (0, 1)), ("assd_mm", None)):
        values = [case.scores[measure]["left hippocampus"] for case in evaluation.cases]
        expected = mean_interval(values, [case.group for case in evaluation.cases], limits=limits)
        alone = mean_interval(values, limits=limits)
        spread = evaluation.summary(measure)["left hippocampus"]
        assert (spread.mean, spread.low, spread.high, spread.n) == (expected.estimate, expected.low, expected.high, 8)
        assert spread.low < spread.mean < spread.high
        assert (spread.low, spread.high) != (alone.low, alone.high)


def test_a_missed_structure_makes_the_mean_distance_infinite_not_better(folders):
    predictions, truth = folders
    for name in "abc":
        write(truth, f"{name}.nii.gz", labels())
        write(predictions, f"{name}.nii.gz", labels(left=0 if name == "c" else 4, shift=1))
    spread = run(folders).summary("hd95_mm")["left hippocampus"]
    assert (spread.mean, spread.median, spread.n, spread.infinite) == (np.inf, pytest.approx(1), 3, 1)
    assert (spread.worst, spread.worst_case) == (np.inf, "c")
    assert np.isnan([spread.low, spread.high, spread.sd]).all()
    assert "infinite" in spread.reason


def test_worst_is_furthest_from_zero_for_a_bias_and_nothing_for_a_volume(folders):
    predictions, truth = folders
    for name, left in (("a", 5), ("b", 2), ("c", 4)):
        write(truth, f"{name}.nii.gz", labels())
        write(predictions, f"{name}.nii.gz", labels(left=left))
    evaluation = run(folders)
    assert evaluation.summary("bias_ml")["left hippocampus"].worst_case == "b"
    assert evaluation.summary("bias_ml")["left hippocampus"].worst == pytest.approx(-0.192)
    assert evaluation.summary("truth_ml")["left hippocampus"].worst_case is None


def test_empty_masks_on_both_sides_are_counted_nowhere_and_say_so(folders):
    for folder in folders:
        for name in "ab":
            write(folder, f"{name}.nii.gz", labels(left=0, right=0))
    evaluation = run(folders, lesions="any")
    for measure in MEASURES.values():
        for spread in evaluation.summary(measure.name).values():
            assert spread.n == (0 if measure.better else 2)
    assert np.isnan(evaluation.mean_foreground)
    assert not evaluation.failed
    assert shown(evaluation)[0]["lesion"] == ["– [no interval]", "–", "–", "–", "–", "0", "–"]


def test_one_subject_has_no_interval_and_says_why(folders):
    predictions, truth = folders
    write(truth, "a.nii.gz", labels())
    write(predictions, "a.nii.gz", labels(shift=1))
    evaluation = run(folders)
    assert "one subject" in evaluation.summary()["hippocampi"].reason
    assert "No interval: one subject only" in shown(evaluation)[1]


def test_many_workers_find_the_same_as_one(folders):
    predictions, truth = folders
    for number in range(6):
        write(truth, f"{number}.nii.gz", labels(lesion=number % 3))
        write(predictions, f"{number}.nii.gz", labels(shift=number % 4, lesion=1))
    one, several = (run(folders, workers=workers, lesions=0.1) for workers in (1, 3))
    assert [case.id for case in several.cases] == [case.id for case in one.cases]
    for first, second in zip(one.cases, several.cases, strict=True):
        np.testing.assert_equal(first.scores, second.scores)


def test_an_evaluation_can_be_made_by_hand():
    cases = tuple(CaseResult(name, {"dice": {"liver": value}}) for name, value in (("a", 0.5), ("b", 1.0)))
    evaluation = Evaluation(Structures({"liver": (1,)}), cases, {}, ())
    assert evaluation.mean_foreground == 0.75
    assert shown(evaluation)[0]["liver"][3:] == ["0.500 a"]
