"""Runs that would go wrong in silence: they are refused in one line, or warn, or go right."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from torchmetrics.segmentation import DiceScore

from medseg_se.files import alone
from medseg_se.tasks import SegmentationTask

RECIPE = {
    "trainer": {"default_root_dir": "run", "max_epochs": 1, "accelerator": "cpu", "precision": "32-true"},
    "model": {"class_path": "medseg_se.tasks.SegmentationTask", "init_args": {"channels": [4, 8], "deep_supervision": False}},
    "data": {
        "class_path": "medseg_se.data.segmentation.SegmentationData",
        "init_args": {"source": "data", "folds": 3, "patch_size": [8, 8, 8], "batches_per_epoch": 3, "num_workers": 0},
    },
}
LAST, BEST = Path("run/checkpoints/last.ckpt"), Path("run/checkpoints/best.ckpt")
FIT = ("fit", "--config", "recipe.yaml")
ENDLESS = ("--trainer.max_epochs", "-1")


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch, write_decathlon):
    """Work in a folder with a dataset and a recipe."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write_decathlon(tmp_path / "data", cases=6, test=0, shape=(12, 11, 10))
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))


def state(path=LAST):
    return torch.load(path, weights_only=True)


def scores(output):
    return [line.split() for line in output.splitlines() if line.startswith("│")]


def interrupt_at(monkeypatch, step):
    """Send SIGTERM to the runs that reach this step."""

    def hook(self, batch, batch_idx):
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SegmentationTask, "on_train_batch_start", hook)


# --------------------------------------------------------------------------------------------------------------- limits of runs


@pytest.mark.parametrize("more", [[], ["--model.schedule", "constant"]], ids=["cosine", "constant with warmup"])
def test_a_run_without_an_end_is_refused_as_its_learning_rate_would_stay_where_it_begins(refused, more):
    complaint = refused(*FIT, *ENDLESS, *more)
    assert complaint.startswith("Expected `max_time`, `max_steps` or a number of `max_epochs`: the learning rate follows")


def test_a_constant_learning_rate_needs_no_end(call, monkeypatch):
    interrupt_at(monkeypatch, 4)
    code, *_ = call(*FIT, *ENDLESS, "--model.schedule", "constant", "--model.warmup", "0", "--model.lr", "0.25")
    assert code == 130
    assert state()["global_step"] == 5
    assert state()["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25


def test_a_time_limit_is_an_end(call):
    assert call(*FIT, *ENDLESS, "--trainer.max_time", "00:00:00:01", "--trainer.limit_val_batches", "0")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.batches_per_epoch", "1"],
        ["--trainer.accumulate_grad_batches", "3"],
        ["--trainer.val_check_interval", "1"],
        ["--trainer.val_check_interval", "2", "--trainer.accumulate_grad_batches", "2"],
        ["--trainer.val_check_interval", "1", "--trainer.check_val_every_n_epoch", "null"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_limit_of_steps_is_refused_where_no_step_leaves_a_state_to_go_on_from(refused, arguments):
    complaint = refused(*FIT, *ENDLESS, "--trainer.max_steps", "8", *arguments)
    assert complaint.startswith("With `max_steps`, this run has no step after which it could be continued: ")
    assert not LAST.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.val_check_interval", "2"],
        ["--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null", "--data.batches_per_epoch", "2"],
        ["--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "0"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_with_a_limit_of_steps_a_signal_is_obeyed_where_some_step_leaves_a_state(call, monkeypatch, arguments):
    interrupt_at(monkeypatch, 2)
    assert call(*FIT, *ENDLESS, "--trainer.max_steps", "8", *arguments)[0] == 130
    assert 2 < state()["global_step"] < 6


# ------------------------------------------------------------------------------------------------------------------ other folds


def test_another_fold_is_neither_continued_nor_judged_in_silence(call, refused, caplog):
    assert call(*FIT)[0] == 0
    before = LAST.read_bytes()
    complaint = refused(*FIT, "--ckpt_path", "last", "--trainer.max_epochs", "2", "--data.fold", "1")
    assert complaint.startswith(f"Expected {LAST} to be of a run on the same fold, but it was trained on 2 of the 2 scans")
    assert LAST.read_bytes() == before
    caplog.clear()
    assert call("validate", "--config", "recipe.yaml")[0] == 0
    assert "was trained on" not in caplog.text
    assert call("validate", "--config", "recipe.yaml", "--data.fold", "2")[0] == 0
    assert f"{BEST} was trained on 2 of the 2 validation scans: their scores say nothing about new scans." in caplog.text


def test_a_run_that_began_with_weights_which_saw_its_validation_scans_is_continued_in_its_fold_alone(call, refused):
    assert call(*FIT, "--trainer.default_root_dir", "elsewhere", "--data.fold", "1")[0] == 0
    assert call(*FIT, "--model.start_from", "elsewhere/checkpoints/last.ckpt")[0] == 0
    more = ("--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert "trained on 2 of the 2" in refused(*FIT, *more, "--data.fold", "2")
    assert call(*FIT, *more)[0] == 0
    assert state()["epoch"] == 2


def test_the_same_file_on_both_sides_does_not_keep_a_run_from_going_on(call):
    content = json.loads(Path("data/dataset.json").read_text())
    first, last = content["training"][0]["image"], content["training"][-1]["image"]
    shutil.copy(Path("data", first), Path("data", last))
    for number, case in enumerate(content["training"]):
        case["fold"] = number % 3
    Path("data/dataset.json").write_text(json.dumps(content))
    assert call(*FIT)[0] == 0
    assert call(*FIT, "--ckpt_path", "last", "--trainer.max_epochs", "2")[0] == 0


# ---------------------------------------------------------------------------------------------------------- what a config adds


def test_a_checkpoint_habit_of_a_config_stands_beside_ours(call):
    habit = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.dirpath", "mine"]
    code, _, messages = call(*FIT, *habit, "--trainer.callbacks.monitor", "val_loss")
    assert code == 0
    assert f"Best checkpoint: {BEST.resolve()}" in messages
    assert len(list(Path("mine").glob("*.ckpt"))) == 1
    best = float(
        state(BEST)["callbacks"][next(name for name in state(BEST)["callbacks"] if "KeepBest" in name)]["best_model_score"]
    )
    assert f"best {best:.3f}" in messages


# ------------------------------------------------------------------------------------------------------------------ two at once


def test_a_second_run_in_a_folder_is_refused_while_the_first_goes_on(call, refused):
    with alone(Path("run/.lock")):
        for more in ([], ["--trainer.fast_dev_run", "false"]):
            assert refused(*FIT, *more).startswith("Another run is writing to run. Wait until it has ended, or choose another")
        assert call(*FIT, "--trainer.fast_dev_run", "true")[0] == 0
        assert not LAST.exists()
        assert call(*FIT, "--trainer.default_root_dir", "other")[0] == 0
    assert call(*FIT)[0] == 0
    with alone(Path("run/.lock")):
        assert refused(*FIT, "--ckpt_path", "last").startswith("Another run is writing to run.")
        assert call("validate", "--config", "recipe.yaml")[0] == 0


# --------------------------------------------------------------------------------------------------------------- learnt choices


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_a_best_checkpoint_from_before_the_choice_of_attention_is_judged_as_it_was(call, monkeypatch, ema):
    better = iter([0.9, 0.9, 0.1, 0.1])  # the check before the first step, two epochs, of which the second chooses
    with monkeypatch.context() as patch:
        patch.setattr(DiceScore, "compute", lambda self: torch.full((2,), next(better)))
        more = ["--model.attention", "adaptive", "--model.discretise_after", "0.5", "--model.ema", ema]
        code, _, messages = call(*FIT, "--trainer.max_epochs", "2", *more)
    assert code == 0
    kept = {path: [value for name, value in state(path)["state_dict"].items() if "chosen" in name] for path in (BEST, LAST)}
    assert all(value == -1 for value in kept[BEST])
    assert all(value >= 0 for value in kept[LAST])
    code, output, _ = call("validate", "--config", "recipe.yaml", *more)  # by a network that never chose
    assert code == 0
    assert scores(messages) == scores(output) != []
