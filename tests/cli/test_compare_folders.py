"""`medseg-se compare` of finished folders."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

CASES = [f"case_{number}" for number in range(6)]


@pytest.fixture
def folders(tmp_path, monkeypatch, write_scan):
    """A folder of truths, and a function that writes predictions that miss as many voxels of each case as it is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    truth = np.zeros((8, 8, 8), dtype=np.uint8)
    truth[1:5, 1:5, 1:5], truth[5:7, 5:7, 5:7] = 1, 2
    for case in CASES:
        write_scan(Path("truth") / f"{case}.nii.gz", truth)
    Path("truth/structures.json").write_text(json.dumps({"liver": 1, "spleen": 2}))

    def predictions(folder, missed, cases=CASES):
        for case, count in zip(cases, missed, strict=True):
            labels = truth.copy().ravel()
            labels[np.flatnonzero(labels == 1)[:count]] = 0
            write_scan(Path(folder) / f"{case}.nii.gz", labels.reshape(truth.shape))

    return predictions


def dice(missed):
    return 2 * (64 - missed) / (128 - missed)


def test_folders_are_judged_and_compared(folders, call):
    folders("a", [20, 24, 28, 20, 30, 25])
    folders("b", [0, 2, 4, 1, 3, 2])
    code, printed, _ = call("compare", "a", "b", "--truth", "truth", "--output", "out")
    assert code == 0
    assert "b against a: better (Dice, mean over foreground: +0.1" in printed
    content = json.loads(Path("out/comparison.json").read_text())
    liver = content["contrasts"][0]["paired"]["liver"]
    expected = np.mean([dice(new) - dice(old) for old, new in zip([20, 24, 28, 20, 30, 25], [0, 2, 4, 1, 3, 2], strict=True)])
    assert liver["difference"] == pytest.approx(expected)
    assert liver["permutation_p"] == 2 / 2**6
    assert content["contrasts"][0]["p"]["liver"] == pytest.approx(2 * 2 / 2**6)
    made = {"table.csv", "comparison.json", "report.html", "forest.png", "forest.svg"}
    assert {path.name for path in Path("out").iterdir()} == made
    assert Path("a/evaluation.json").is_file()


def test_an_evaluation_stands_for_its_predictions_until_they_are_newer(folders, call, refused):
    folders("a", [1] * 6)
    folders("b", [2] * 6)
    assert call("compare", "a", "b", "--truth", "truth")[0] == 0
    for path in Path("b").glob("*.nii.gz"):
        path.unlink()
    code, printed, _ = call("compare", "a", "b")
    assert code == 0
    assert "b against a: worse" in printed
    os.utime("a/evaluation.json", (1, 1))
    assert "a/evaluation.json is older than the predictions beside it. Give `--truth`" in refused("compare", "a", "b")


def test_several_folders_are_seeds_of_one_run(folders, call):
    for name, missed in {"a1": 10, "a2": 20, "b1": 0, "b2": 4}.items():
        folders(name, [missed + place for place in range(6)])
    code, printed, _ = call("compare", "none=a1,a2", "scse=b1,b2", "--truth", "truth", "--reference", "none")
    assert code == 0
    assert "averaged over seeds for each subject" in " ".join(printed.split())
    assert "scse against none: better" in printed
    code, printed, _ = call("compare", "none=a1,a2", "scse=b1,b2", "--seeds", "random")
    assert code == 0
    assert "seed and subject as random effects" in " ".join(printed.split())


def test_a_run_beside_itself_shows_no_difference(folders, call):
    folders("a", range(6))
    code, printed, _ = call("compare", "first=a", "second=a", "--truth", "truth")
    assert code == 0
    assert "second against first: no evidence of a difference. Both give the same in all 6 cases." in printed


def test_only_common_cases_are_compared(folders, call):
    folders("a", range(6))
    folders("b", range(4), CASES[:4])
    for name in "ab":  # what was predicted is what is listed
        entries = {path.name.partition(".")[0]: {"status": "done", "file": path.name} for path in Path(name).glob("*.nii.gz")}
        Path(name, "predictions.json").write_text(json.dumps({"cases": entries}))
    code, printed, _ = call("compare", "a", "b", "--truth", "truth")
    assert code == 0
    assert "Left out of a, as not all runs have them: case_4, case_5; 4 cases are compared." in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "a has no evaluation.json. Give `--truth`"),
        (["a", "nowhere", "--truth", "truth"], "Expected a folder of predictions, but got nowhere"),
        (["a", "--truth", "truth"], "Expected a run besides the reference, to be compared with it, but got a alone"),
        (["a", "b", "--truth", "truth", "--reference", "c"], "Unknown reference 'c'. Valid names: a, b"),
        (["a", "b", "--truth", "truth", "--measure", "dicce"], "Unknown measure to compare 'dicce'. Did you mean 'dice'"),
        (["a", "b", "--truth", "truth", "--data", "x"], "`data` is for a comparison of an experiment, but folders are given"),
        (["a", "b", "--truth", "truth", "--jobs", "2"], "`jobs` is for a comparison of an experiment"),
        (["x=a", "x=b", "--truth", "truth"], "two are called x"),
        (["hippocampus_attentoin"], "Did you mean 'experiments/hippocampus_attention'"),
        (["hippocampus_attention"], "Expected `output`, a folder for the experiment"),
        (["e.yaml", "a"], "Expected folders, or one experiment alone, but got e.yaml among 2 words"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_compared_is_refused(folders, refused, arguments, message):
    folders("a", range(6))
    folders("b", range(6))
    Path("e.yaml").write_text("networks: [unet]\n")
    assert message in refused("compare", *arguments)
