import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from whole_scans import CLASSES, write_ages, write_pictures

from medseg_se.tasks import ClassificationTask

TRAINER = {"default_root_dir": "run", "max_epochs": 2, "accelerator": "cpu", "precision": "32-true", "num_sanity_val_steps": 0}
OPTIONS = {"network": "resnet18v2", "network_options": {"channels": [4, 4, 8, 8], "stem": "small"}, "attention": "se"}
DATA = {"folds": 3, "num_workers": 0, "progress": False}
CLASSIFIER = {
    "trainer": TRAINER,
    "model": {"class_path": "medseg_se.tasks.ClassificationTask", "init_args": {**OPTIONS, "class_weights": "balanced"}},
    "data": {
        "class_path": "medseg_se.data.classification.ClassificationData",
        "init_args": {**DATA, "source": "pictures", "size": [16, 16], "batch_size": 4},
    },
}
REGRESSOR = {
    "trainer": TRAINER,
    "model": {"class_path": "medseg_se.tasks.RegressionTask", "init_args": OPTIONS},
    "data": {
        "class_path": "medseg_se.data.classification.RegressionData",
        "init_args": {**DATA, "source": "heads", "target": "age", "size": [8, 8, 8], "batch_size": 3},
    },
}
LAST, BEST = Path("run/checkpoints/last.ckpt"), Path("run/checkpoints/best.ckpt")


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch):
    """Work in a folder with datasets and recipes."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    write_ages(tmp_path / "heads")
    for name, recipe in (("classifier", CLASSIFIER), ("regressor", REGRESSOR)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def state(path=LAST):
    return torch.load(path, weights_only=True)


def rows(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_a_classifier_is_trained_and_judged(call, recwarn):
    code, _, messages = call("fit", "--config", "classifier.yaml")
    assert code == 0
    assert "arning" not in messages
    assert [str(warning.message) for warning in recwarn if "pytorch_lightning" in warning.filename] == []
    lines = messages.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "balanced accuracy " in lines[0]
    assert f"Best checkpoint: {BEST.resolve()}" in lines
    assert "These scans chose the checkpoint. `medseg-se test` judges it on the test scans" in messages
    described = state(BEST)["medseg_se"]
    assert (described["task"], described["network"]["num_classes"]) == ("classification", 3)
    assert described["data"]["classes"] == list(CLASSES)
    with Path("run/logs/version_0/metrics.csv").open() as stream:
        logged = [row for row in csv.DictReader(stream) if row["val_balanced_accuracy"]]
    assert len(logged) == 3  # after each epoch, and once more of the best
    table = rows(messages)
    assert [row[0] for row in table] == [*CLASSES, "mean over classes", "accuracy", "AUROC"]
    code, output, _ = call("validate", "--config", "classifier.yaml")
    assert code == 0
    assert rows(output) == table


def test_a_regressor_is_trained_and_judged(call):
    code, _, messages = call("fit", "--config", "regressor.yaml")
    assert code == 0
    assert "error/sd " in messages.splitlines()[0]
    assert [row[0] for row in rows(messages)] == ["age"]
    described = state(BEST)["medseg_se"]
    assert (described["task"], described["data"]["values"]) == ("regression", ["age"])
    code, output, _ = call("test", "--config", "regressor.yaml")
    assert code == 0
    assert [row[0] for row in rows(output)] == ["age"]


def test_slices_of_volumes_can_be_classified(call):
    arguments = ["--data.source", "heads", "--data.target", "sex", "--data.slice_axis", "axial", "--data.size", "[8, 8]"]
    assert call("fit", "--config", "classifier.yaml", *arguments)[0] == 0
    code, output, _ = call("test", "--config", "classifier.yaml", *arguments)
    assert code == 0
    assert [row[0] for row in rows(output)][:2] == ["f", "m"]


def test_without_known_test_cases_there_is_no_test(call):
    call("fit", "--config", "classifier.yaml")
    code, _, messages = call("test", "--config", "classifier.yaml")
    assert code == 2
    assert "lists no test case with 'class'. `medseg-se validate` judges the validation cases." in messages


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_is_continued(call, monkeypatch, number):
    def stop(self, batch, batch_idx):
        if self.trainer.global_step == 4:
            os.kill(os.getpid(), number)

    call("fit", "--config", "classifier.yaml", "--trainer.default_root_dir", "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "on_train_batch_start", stop)
        code, _, messages = call("fit", "--config", "classifier.yaml")
    assert code == 130
    assert "Continue with: medseg-se fit --config classifier.yaml --ckpt_path last" in messages
    assert state()["global_step"] in (4, 5)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert call("fit", "--config", "classifier.yaml", "--ckpt_path", "last")[0] == 0
    for name, value in state()["state_dict"].items():
        torch.testing.assert_close(value, state("whole/checkpoints/last.ckpt")["state_dict"][name], atol=1e-5, rtol=1e-4)


def test_the_best_of_all_runs_is_kept(call):
    call("fit", "--config", "regressor.yaml")
    best, first = (state(path)["callbacks"] for path in (BEST, LAST))
    key = next(key for key in first if "KeepBest" in key)
    kept = BEST.read_bytes()
    assert float(best[key]["best_model_score"]) == float(first[key]["best_model_score"])
    code, *_ = call("fit", "--config", "regressor.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert code == 0
    score = float(state()["callbacks"][key]["best_model_score"])
    assert score <= float(first[key]["best_model_score"])
    assert (BEST.read_bytes() == kept) == (score == float(first[key]["best_model_score"]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "medseg_se.tasks.RegressionTask"], "Expected data for regression, but ClassificationData is for"),
        (["--model.network", "unet"], "Expected a network for classification, but 'unet' is for segmentation"),
        (["--model.class_wights", "none"], "Unknown key 'class_wights'. Did you mean 'model.class_weights'?"),
        (["--data.colur", "grey"], "Unknown key 'colur'. Did you mean 'data.colour'?"),
        (["--data.target", "age"], "has no attribute 'age'; it has 'class'"),
        (["--model.class_weights", "fair"], "Expected 'class_weights' to be one of none, balanced, but got fair."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_explained_in_one_line(call, arguments, words):
    code, _, messages = call("fit", "--config", "classifier.yaml", *arguments)
    assert code == 2
    assert len(messages.splitlines()) == 1
    assert words in messages


def test_a_checkpoint_of_another_task_is_refused(call):
    call("fit", "--config", "classifier.yaml")
    code, _, messages = call("validate", "--config", "regressor.yaml", "--ckpt_path", str(LAST))
    assert code == 2
    assert "Expected a checkpoint of a regression, but this one is of a classification." in messages


def test_a_damaged_picture_is_named(call):
    Path("pictures/left/3.png").write_bytes(b"no picture")
    code, _, messages = call("fit", "--config", "classifier.yaml")
    assert code == 2
    assert "left/3.png as a picture" in messages


def test_the_description_is_plain_data(call):
    call("fit", "--config", "classifier.yaml", "--trainer.max_epochs", "1")
    described = state()["medseg_se"]
    assert json.loads(json.dumps(described)) == described
