import csv
import json
import os
import shutil
import signal
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from medseg_se import processors
from medseg_se.checkpoints import read_checkpoint
from medseg_se.cli import cross_validation
from medseg_se.cli.main import main
from medseg_se.data.datalist import read_datalist
from medseg_se.data.phantom import write_phantoms
from medseg_se.evaluation.result import Evaluation
from medseg_se.files import digest_of
from medseg_se.inference.ensemble import load_model
from medseg_se.volumes import read_image, read_labels

RECIPE = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "precision": "32-true", "max_time": "00:00:10:00"},
    "model": {"class_path": "medseg_se.tasks.SegmentationTask", "init_args": {"channels": [4, 8], "deep_supervision": False}},
    "data": {
        "class_path": "medseg_se.data.segmentation.SegmentationData",
        "init_args": {"source": "nowhere", "patch_size": [16, 16, 16], "batches_per_epoch": 2, "num_workers": 0},
    },
}


@pytest.fixture(autouse=True)
def _kept(put_back, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def run_in_this_process(jobs, places, console, done):
    """Run the jobs as `run_jobs` does, but without the seconds that each process takes to start."""
    for job in jobs:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("w") as log, redirect_stdout(log), redirect_stderr(log):
            assert main([*job.command[3:]]) == 0
        job.state = "finished"
        done(job)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with six scans of five patients and a cross-validation of two folds; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(cross_validation, "run_jobs", run_in_this_process)
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        write_phantoms(Path("data"), "brain", training=6, test=0, resolution=8.0)
        content = json.loads(Path("data/dataset.json").read_text())
        for case, patient in zip(content["training"], ("p", "q", "p", "r", "s", "t"), strict=True):
            case["group"] = patient
        Path("data/dataset.json").write_text(json.dumps(content))
        Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        Path("overlay.yaml").write_text("model:\n  init_args:\n    lr: 0.25\n")
        assert main(["cv", "recipe.yaml", "overlay.yaml", "--output", "cv", "--source", "data", "--folds", "2"]) == 0
    return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch):
    """Work in a copy of that folder."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def cv(call):
    """Return a function that runs that cross-validation, with other arguments at its end."""

    def run(*arguments):
        return call("cv", "recipe.yaml", "overlay.yaml", "--output", "cv", "--source", "data", "--folds", "2", *arguments)

    return run


def stop_before_the_trainings(monkeypatch):
    """Let the next runs end there, as by Ctrl-C; returns a list that gets the jobs and places of each."""
    seen = []

    def stop(jobs, places, *_):
        seen.append((jobs, places))
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "run_jobs", stop)
    return seen


# --------------------------------------------------------------------------------------------------------------- what it makes


def cortex_rows(folder):
    rows = csv.DictReader((folder / "cross_validation.csv").read_text().splitlines())
    return [row for row in rows if row["structure"] == "Left-Cerebral-Cortex"]


def test_every_case_is_judged_once_by_a_fold_that_left_its_patient_out(made):
    cases = {case.id: case for case in read_datalist(made / "data").training}
    rows = cortex_rows(made / "cv")
    assert [row["case"] for row in rows] == sorted(cases)
    digests = {name: digest_of(case.images) for name, case in cases.items()}
    folds = json.loads((made / "cv" / "folds.json").read_text())["folds"]
    for fold in (0, 1):
        left_out = {row["case"] for row in rows if row["fold"] == str(fold)}
        assert left_out == set(folds[fold])
        data = read_checkpoint(made / "cv" / f"fold_{fold}" / "checkpoints" / "best.ckpt")[0]["data"]
        assert set(data["validation"]) == {digests[name] for name in left_out}
        assert set(data["training"]) == {digests[name] for name in set(cases) - left_out}
        trained = {cases[name].group for name in set(cases) - left_out}
        assert trained.isdisjoint(cases[name].group for name in left_out)
        predicted = (made / "cv" / f"fold_{fold}" / "predictions").glob("*.nii.gz")
        assert {path.name for path in predicted} == {f"{name}.nii.gz" for name in left_out}
    assert cases["brain_000"].group == cases["brain_002"].group


def test_the_table_is_over_all_cases_and_by_fold(made):
    rows = cortex_rows(made / "cv")
    content = json.loads((made / "cv" / "cross_validation.json").read_text())
    name = "Left-Cerebral-Cortex"
    dice = np.array([float(row["dice"]) for row in rows])
    folds = np.array([int(row["fold"]) for row in rows])
    found = content["summary"]["dice"][name]
    assert (found["mean"], found["sd"], found["n"]) == (pytest.approx(dice.mean()), pytest.approx(dice.std(ddof=1)), 6)
    again = Evaluation.read_json(made / "cv" / "cross_validation.json")
    assert [case.dice[name] for case in again.cases] == dice.tolist()
    assert all(case.truth.is_file() and case.prediction.is_file() for case in again.cases)
    assert content["means_of_folds"][name] == pytest.approx([dice[folds == fold].mean() for fold in (0, 1)])
    (path,) = (made / "cv").glob("fold_*/predictions/brain_003.nii.gz")
    datalist = read_datalist(made / "data")
    truth, predicted = (
        read_labels(file).array == datalist.structures.values[name][0] for file in (datalist.training[3].label, path)
    )
    assert float(rows[3]["dice"]) == pytest.approx(2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()))


def test_the_model_holds_the_best_weights_and_the_chosen_post_processing(made):
    choice = json.loads((made / "cv" / "postprocessing.json").read_text())
    accepted = [entry["structures"] for entry in choice["candidates"] if entry["accepted"]]
    assert choice["chosen"] == {"largest_component": accepted}
    assert sorted(path.name for path in (made / "cv" / "model").iterdir()) == ["fold_0.ckpt", "fold_1.ckpt"]
    for fold in (0, 1):
        description, weights, _ = read_checkpoint(made / "cv" / "model" / f"fold_{fold}.ckpt")
        best = read_checkpoint(made / "cv" / f"fold_{fold}" / "checkpoints" / "best.ckpt")
        assert description == {**best[0], "postprocessing": choice["chosen"]}
        assert all(torch.equal(weights[name], value) for name, value in best[1].items())
        hyper = torch.load(made / "cv" / f"fold_{fold}" / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
        assert (hyper["channels"], hyper["lr"]) == ([4, 8], 0.25)


def test_all_folds_predict_together(work, call):
    scan = work / "data" / "imagesTr" / "brain_001.nii.gz"
    code, printed, _ = call("predict", "cv", str(scan), "--output", "out", "--device", "cpu")
    assert code == 0
    assert "trained on 1 of these scans" in printed
    together = load_model(sorted(Path("cv/model").glob("*.ckpt")), device="cpu").predict(read_image(scan))
    assert np.array_equal(read_labels("out/brain_001.nii.gz").array, together.labels.array)
    code, _, messages = call("predict", "cv", "data", "--output", "v", "--cases", "validation")
    assert (code, "None of the 6 scans is a validation scan" in messages) == (2, True)


# ------------------------------------------------------------------------------------------------------------------- again


def test_a_second_run_trains_nothing_and_comes_to_the_same(work, cv, monkeypatch):
    def nothing(*arguments, **options):
        raise AssertionError(arguments)

    monkeypatch.setattr(cross_validation, "run_jobs", nothing)
    before = {path: path.read_bytes() for path in (*Path("cv").glob("*.*"), *Path("cv/model").iterdir())}
    predicted = {path: path.stat().st_mtime_ns for path in Path("cv").glob("fold_*/predictions/*.nii.gz")}
    shutil.rmtree("cv/model")
    code, printed, _ = cv()
    assert code == 0
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in predicted} == predicted
    assert "medseg-se predict cv/model SCANS --output FOLDER" in printed
    assert "fold 1" in printed
    assert "keep the largest component of" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "3"], "cv holds a cross-validation with other settings: data.folds."),
        (["--", "--model.init_args.lr", "0.5", "--trainer.max_epochs=2"], "other settings: model.lr, trainer.max_epochs."),
    ],
)
def test_another_cross_validation_in_the_folder_is_refused(work, refused, arguments, message):
    named = ["cv", "recipe.yaml", "overlay.yaml", "--output", "cv", "--source", "data"]
    assert message in refused(*named, *(["--folds", "2"] if "--folds" not in arguments else []), *arguments)


def test_a_dataset_that_has_changed_is_refused(work, cv):
    content = json.loads(Path("data/dataset.json").read_text())
    content["training"][0]["group"] = "alone"
    del content["training"][1]
    Path("data/dataset.json").write_text(json.dumps(content))
    code, _, messages = cv()
    assert code == 2
    assert "cv holds a cross-validation of other cases" in messages
    Path("cv/folds.json").unlink()
    assert "holds folders of folds, but not what they are of" in cv()[2]


def test_a_failed_prediction_counts_as_empty_and_the_exit_code_says_so(work, cv):
    scan = work / "data" / "imagesTr" / "brain_004.nii.gz"
    scan.write_bytes(scan.read_bytes()[:200])
    code, printed, _ = cv()
    assert code == 1
    rows = {row["case"]: row for row in cortex_rows(Path("cv"))}
    assert "Failed, counted as empty: brain_004" in printed
    assert float(rows["brain_004"]["dice"]) == 0
    choice = json.loads(Path("cv/postprocessing.json").read_text())
    (cortex,) = [entry for entry in choice["candidates"] if entry["structures"] == ["Left-Cerebral-Cortex"]]
    dice = [float(row["dice"]) for row in rows.values()]
    if not choice["candidates"][0]["accepted"]:
        assert cortex["before"]["Left-Cerebral-Cortex"] == pytest.approx(np.mean(dice))
    assert choice["cases"] == 6


def test_a_fold_that_fails_does_not_take_the_other_and_the_next_run_goes_on(work, cv):
    """Fold 0 goes on from its last checkpoint; fold 1 cannot, until the damaged file is gone."""
    for fold in (0, 1):
        Path(f"cv/fold_{fold}/finished.json").unlink()
    Path("cv/fold_1/checkpoints/last.ckpt").write_bytes(b"damaged")
    code, printed, messages = cv("--jobs", "2")
    assert code == 1
    assert "fold 1 failed: medseg-se: error: cv/fold_1/checkpoints/last.ckpt is no checkpoint" in messages
    assert "Nothing is judged before all folds have finished" in messages
    assert "`max_time` 00:00:10:00 is the time that each fold may take" in messages
    assert "Dice" not in printed
    assert Path("cv/fold_0/finished.json").is_file()
    assert not Path("cv/fold_1/finished.json").exists()
    assert torch.load("cv/fold_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2  # it had reached its end


def test_ctrl_c_saves_the_fold_that_runs_and_the_next_run_goes_on_from_there(work, cv, monkeypatch):
    shutil.rmtree("cv")
    log, last = Path("cv/fold_0/fit.log"), Path("cv/fold_0/checkpoints/last.ckpt")
    arguments = ("--", "--trainer.max_epochs", "-1", "--trainer.max_steps", "100000")

    def interrupt():
        until = time.monotonic() + 120
        while not last.is_file() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    code, _, messages = cv(*arguments)
    assert code == 130
    assert "the same command goes on from there" in messages
    assert "Interrupted; the state is saved." in log.read_text()
    assert not Path("cv/fold_1").exists()
    assert not Path("cv/fold_0/finished.json").exists()
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 100_000
    seen = stop_before_the_trainings(monkeypatch)
    assert cv(*arguments)[0] == 130
    assert [job.command[-2:] == ["--ckpt_path", "last"] for job in seen[0][0]] == [True, False]


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def nothing_begins(monkeypatch, made):
    """Work beside the dataset, where no process may start and no folder appear."""
    monkeypatch.chdir(made)
    monkeypatch.setattr(cross_validation, "run_jobs", None)
    yield
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "--model.init_args.lrr", "1"], "Unknown key"),
        (["--", "--trainer.max_epoch", "1"], "Did you mean 'trainer.max_epochs'?"),
        (["--", "--trainer.max_epochs", "few"], "'trainer.max_epochs'"),
        (["--", "--model.init_args.lr", "-1"], "`lr` to be positive"),
        (["--", "--data.fold", "1"], "`cv` sets --data.fold itself"),
        (["--", "--ckpt_path=last"], "`cv` sets --ckpt_path itself"),
        (["--", "--trainer.default_root_dir", "x"], "`cv` sets --trainer.default_root_dir itself"),
        (["--", "--data.folds", "3"], "give `--folds` instead"),
        (["--trainer.max_epochs", "1"], "Unknown key 'trainer.max_epochs'"),
        (["--folds", "6"], "`folds` between 2 and the 5 groups"),
        (["--folds", "1"], "`folds` between 2 and the 5 groups"),
        (["--jobs", "0"], "`jobs` to be at least 1"),
        (["--devices", "0,1", "--jobs", "2"], "`devices` or `jobs`, but got both"),
        (["--devices", "0;1"], "numbers of CUDA devices such as 0,1,2,3"),
        (["--source", "nowhere"], "No such dataset: nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(nothing_begins, refused, arguments, message):
    source = [] if "--source" in arguments else ["--source", "data"]
    assert message in refused("cv", "recipe.yaml", "--output", "new", *source, *arguments)


def test_devices_that_are_not_there_are_refused(nothing_begins, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "but there is none" in refused("cv", "recipe.yaml", "--output", "new", "--source", "data", "--devices", "0,1")


def test_only_segmentations_are_cross_validated(nothing_begins, refused, tmp_path):
    for label in "ab":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(6):
            array = np.random.default_rng([ord(label), number]).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / "pictures" / label / f"{number}.png")
    complaint = refused("cv", "tumour_mobilenetv2_ca", "--output", "new", "--source", str(tmp_path / "pictures"))
    assert "Expected configs of a segmentation, but tumour_mobilenetv2_ca train a classification" in complaint


# ------------------------------------------------------------------------------------------------------------- plan of folds


@pytest.fixture
def planned(work, cv, monkeypatch):
    """Return a function that runs `cv` as far as the trainings, and returns the jobs and their places."""
    shutil.rmtree(work / "cv")
    seen = stop_before_the_trainings(monkeypatch)

    def run(*arguments):
        assert cv(*arguments)[0] == 130
        return seen[-1]

    return run


def test_a_dataset_prescribes_its_folds(work, planned, call):
    content = json.loads(Path("data/dataset.json").read_text())
    for case, fold in zip(content["training"], (0, 1, 0, 2, 2, 1), strict=True):
        case["fold"] = fold
    Path("data/dataset.json").write_text(json.dumps(content))
    code, _, messages = call("cv", "recipe.yaml", "--output", "cv", "--source", "data", "--folds", "5")
    assert code == 2
    assert "`folds` to be the 3 that data/dataset.json prescribes, but got 5" in messages
    jobs, _ = planned("--folds", "3")
    assert [job.state for job in jobs] == ["waiting"] * 3
    names = json.loads(Path("cv/folds.json").read_text())["folds"]
    assert names == [["brain_000", "brain_002"], ["brain_001", "brain_005"], ["brain_003", "brain_004"]]


def test_folds_side_by_side_share_the_processors_or_have_a_device_each(planned, monkeypatch):
    monkeypatch.setattr(processors, "cores", lambda: 8)
    assert planned()[1] == [{}]
    assert planned("--jobs", "3")[1] == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    expected = [{"CUDA_VISIBLE_DEVICES": number, "OMP_NUM_THREADS": "4"} for number in "31"]
    assert planned("--devices", "3,1")[1] == expected


def test_finished_folds_are_skipped_and_others_go_on_from_their_last_checkpoint(work, cv, monkeypatch):
    seen = stop_before_the_trainings(monkeypatch)
    Path("cv/fold_1/finished.json").unlink()
    cv()
    first, second = seen[-1][0]
    assert (first.state, second.state) == ("finished", "waiting")
    assert [*second.command[1:4], *second.command[-2:]] == ["-m", "medseg_se", "fit", "--ckpt_path", "last"]
    Path("cv/fold_1/checkpoints/last.ckpt").unlink()
    Path("cv/fold_0/finished.json").write_text('{"digest": "of another"}')
    cv()
    first, second = seen[-1][0]
    assert (first.state, second.state) == ("waiting", "waiting")
    assert "--ckpt_path" not in second.command
