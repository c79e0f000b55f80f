"""Runs that are killed, cut short or stopped, and continued: they end as if nothing had happened, to the last bit."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn

from medseg_se.cli.main import main
from medseg_se.data.classification import ClassificationData, RegressionData
from medseg_se.data.phantom import write_phantoms
from medseg_se.data.segmentation import SegmentationData
from medseg_se.networks import NETWORKS
from medseg_se.networks.base import Network
from medseg_se.tasks import ClassificationTask, RegressionTask, SegmentationTask
from medseg_se.tasks.checkpoints import AtomicCheckpointIO, CheckpointHabits

RECIPE = {
    "trainer": {
        "default_root_dir": "run",
        "max_epochs": 2,
        "accelerator": "cpu",
        "precision": "32-true",
        "accumulate_grad_batches": 2,
        "logger": False,
        "enable_progress_bar": False,
    },
    "model": {
        "class_path": "medseg_se.tasks.SegmentationTask",
        "init_args": {"channels": [4, 8], "deep_supervision": False, "dropout": 0.2, "ema": 0.9, "optimizer": "sgd"},
    },
    "data": {
        "class_path": "medseg_se.data.segmentation.SegmentationData",
        "init_args": {
            "source": "data",
            "folds": 3,
            "patch_size": [8, 8, 8],
            "batch_size": 1,
            "batches_per_epoch": 5,
            "num_workers": 1,
            "progress": False,
        },
    },
    "checkpoints": {"minutes": 0},
}
LAST = Path("run/checkpoints/last.ckpt")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A folder with a dataset, and a store that the runs share."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder / "data", "brain", training=6, test=0, resolution=8.0)
    described = json.loads((folder / "data" / "dataset.json").read_text())
    for number, case in enumerate(described["training"]):
        case.update(sex="fm"[number % 2], age=20.0 + number)
    (folder / "data" / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(autouse=True)
def folder(put_back, phantoms, tmp_path, monkeypatch):
    """Work in a folder with a recipe."""
    monkeypatch.chdir(tmp_path)
    recipe = {**RECIPE, "data": {**RECIPE["data"]}}
    recipe["data"]["init_args"] = {
        **RECIPE["data"]["init_args"],
        "source": str(phantoms / "data"),
        "store": str(phantoms / "store"),
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def what_remains(path):
    """Return all of a checkpoint that decides how a run goes on and what it has found."""
    state = torch.load(path, weights_only=True)
    callbacks = state["callbacks"]
    best = next((value for name, value in callbacks.items() if name.startswith("KeepBest")), {})
    return {
        "weights": state["state_dict"],
        "optimisers": state["optimizer_states"],
        "schedules": state["lr_schedulers"],
        "done": (state["epoch"], state["global_step"]),
        "score": callbacks.get("SmoothedScore"),
        "patience": {name: value for name, value in callbacks.items() if name.startswith("Patience")},
        "best": best.get("best_model_score"),
    }


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


# ----------------------------------------------------------------------------------------------------------------- SIGKILL


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def within_a_step(monkeypatch):
    """Die when the weights have been moved by the third step, and their average has not followed yet."""
    optimizer_step = pl.LightningModule.optimizer_step

    def step(self, *args, **kwargs):
        optimizer_step(self, *args, **kwargs)
        if self.trainer.global_step == 2:
            die()

    monkeypatch.setattr(pl.LightningModule, "optimizer_step", step)


def within_a_file(monkeypatch):
    """Die when half of the state after the fifth step has been written."""
    save = torch.save

    def half(content, stream):
        save(content, stream)
        if content["global_step"] == 5:
            stream.truncate(stream.tell() // 2)
            stream.flush()
            die()

    monkeypatch.setattr(torch, "save", half)


def within_a_validation(monkeypatch):
    """Die in the last validation."""
    judge = SegmentationTask.validation_step

    def step(self, batch, batch_idx):
        judge(self, batch, batch_idx)
        if self.trainer.global_step == 6 and batch_idx == 1:
            die()

    monkeypatch.setattr(SegmentationTask, "validation_step", step)


def fit_in_a_process(arguments, spoil=None):
    """Train in a process of its own, with `spoil` done to it, and return how it ended."""

    def run():
        with pytest.MonkeyPatch.context() as patch:
            if spoil is not None:
                spoil(patch)
            sys.exit(main(["fit", "--config", "recipe.yaml", *arguments]))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def test_a_run_killed_within_a_step_a_file_and_a_validation_ends_as_if_it_had_not_been():
    assert fit_in_a_process(["--trainer.default_root_dir", "whole"]) == 0
    places = []
    for number, spoil in enumerate((within_a_step, within_a_file, within_a_validation)):
        assert fit_in_a_process(["--ckpt_path", "last"] if number else [], spoil) == -signal.SIGKILL
        state = torch.load(LAST, weights_only=True)
        places.append((state["epoch"], state["global_step"]))
    assert places == [(0, 2), (1, 4), (1, 5)]
    assert fit_in_a_process(["--ckpt_path", "last"]) == 0
    for name in ("last.ckpt", "best.ckpt"):
        assert_same(what_remains(LAST.with_name(name)), what_remains(Path("whole/checkpoints", name)))


@pytest.mark.slow
def test_runs_killed_from_outside_at_any_time_end_as_if_they_had_not_been():
    command = [sys.executable, "-m", "medseg_se", "fit", "--config", "recipe.yaml", "--trainer.max_epochs", "20"]
    subprocess.run([*command, "--trainer.default_root_dir", "whole"], check=True, stdout=subprocess.DEVNULL)
    for files in (3, 10, 17):
        more = ["--ckpt_path", "last"] if LAST.exists() else []
        run = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, written = LAST.stat().st_mtime_ns if LAST.exists() else 0, 0
        while written < files and run.poll() is None:
            now = LAST.stat().st_mtime_ns if LAST.exists() else 0
            written, before = written + (now != before), now
            time.sleep(0.001)
        time.sleep(0.007 * files % 0.02)  # anywhere between two files
        run.kill()
        assert run.wait() == -signal.SIGKILL
    subprocess.run([*command, "--ckpt_path", "last"], check=True, stdout=subprocess.DEVNULL)
    assert_same(what_remains(LAST), what_remains("whole/checkpoints/last.ckpt"))


# --------------------------------------------------------------------------------------------------------- cut at every place


class Cut(pl.Callback):
    """Break a run off at its event number `at`; events are all that happens within steps, validations and epochs."""

    def __init__(self, at=None):
        self.at, self.seen = at, 0

    def count(self, *_):
        self.seen += 1
        if self.seen == self.at:
            raise RuntimeError("cut")

    on_train_epoch_start = on_train_batch_start = on_before_zero_grad = on_before_optimizer_step = on_train_batch_end = count
    on_validation_batch_start = on_validation_end = on_train_epoch_end = count


class Tiny(Network):
    """A network for whole scans with statistics and dropout."""

    kind = "classification"

    def __init__(self, in_channels, num_classes, spatial_dims=2, dropout=0.0):
        super().__init__(in_channels, num_classes, spatial_dims)
        norm, drop = nn.BatchNorm1d(8), nn.Dropout(dropout)
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), norm, nn.ReLU(), drop, nn.Linear(8, num_classes))
        self.layers(torch.zeros(2, in_channels, *[8] * spatial_dims))

    def forward(self, x):
        return self.layers(x)


TINY = {"channels": [4, 8], "deep_supervision": False, "lr": 0.01}
KINDS = {
    "statistics and deep supervision": ({"channels": [4, 8, 8], "norm": "batch", "deep_supervision": True}, {}, {}),
    "choices": ({**TINY, "attention": "adaptive", "discretise_after": 0.5, "ema": 0.9}, {}, {}),
    "several validations an epoch": (TINY, {"val_check_interval": 0.4}, {}),
    "few validations": ({**TINY, "dropout": 0.1}, {"check_val_every_n_epoch": 2}, {}),
    "no validation": (TINY, {"limit_val_batches": 0, "accumulate_grad_batches": 5}, {}),
    "a limit of steps": ({**TINY, "ema": 0.9}, {"max_steps": 7, "max_epochs": -1}, {}),
    "a limit of steps and validations between epochs": (
        TINY,
        {"max_steps": 7, "max_epochs": -1, "val_check_interval": 3, "check_val_every_n_epoch": None},
        {},
    ),
    "patience": (TINY, {"max_epochs": 8}, {"patience": 1}),
}


def segmentation(phantoms, options):
    data = SegmentationData(
        str(phantoms / "data"),
        folds=3,
        patch_size=[8, 8, 8],
        batch_size=1,
        batches_per_epoch=5,
        store=str(phantoms / "store"),
        num_workers=0,
        progress=False,
    )
    torch.manual_seed(0)
    return SegmentationTask(in_channels=1, num_classes=data.num_classes, **options), data


def whole_scans(task, data_class, target):
    def build(phantoms, options):
        data = data_class(
            str(phantoms / "data"),
            target,
            folds=3,
            size=[8, 8, 8],
            batch_size=2,
            store=str(phantoms / "scans"),
            num_workers=0,
            progress=False,
        )
        torch.manual_seed(0)
        return task(in_channels=1, num_classes=data.num_classes, spatial_dims=3, **options), data

    return build


def fit(root, built, trainer, habits, callbacks=()):
    """Train, from `last.ckpt` where there is one, until the end or a cut; tells whether the end was reached."""
    task, data = built
    keeping = CheckpointHabits(**{"minutes": 0, **habits}).callbacks(root, task.score)
    defaults = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "max_epochs": 2,
        "num_sanity_val_steps": 0,
    }
    run = pl.Trainer(
        default_root_dir=root, callbacks=[*callbacks, *keeping], plugins=[AtomicCheckpointIO()], **{**defaults, **trainer}
    )
    try:
        run.fit(task, data, ckpt_path=root / "last.ckpt" if (root / "last.ckpt").exists() else None)
    except RuntimeError as error:
        if str(error) != "cut":
            raise
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_cut_again_and_again_ends_as_if_it_had_not_been(phantoms, kind):
    options, trainer, habits = KINDS[kind]
    fit(Path("whole"), segmentation(phantoms, options), trainer, habits)
    events = [11, 17, 19, 23, 29, 31, 37, 41, 43, 47]  # after so many events each time
    while not fit(Path("cut"), segmentation(phantoms, options), trainer, habits, [Cut(events.pop(0))]):
        assert events
    assert len(events) < 8  # it was cut at least twice
    assert_same(what_remains("cut/last.ckpt"), what_remains("whole/last.ckpt"))


@pytest.mark.parametrize(
    ("build", "mixing"),
    [
        (whole_scans(ClassificationTask, ClassificationData, "sex"), {"mixup": 0.4, "cutmix": 1.0, "mixing_probability": 0.8}),
        (whole_scans(RegressionTask, RegressionData, "age"), {"mixup": 0.4}),
    ],
    ids=["classification", "regression"],
)
def test_whole_scans_are_continued_too(phantoms, monkeypatch, build, mixing):
    monkeypatch.setitem(NETWORKS, "tiny", Tiny)
    options = {"network": "tiny", "dropout": 0.3, "ema": 0.9, **mixing}
    fit(Path("whole"), build(phantoms, options), {"max_epochs": 3}, {})
    assert not fit(Path("cut"), build(phantoms, options), {"max_epochs": 3}, {}, [Cut(14)])
    assert fit(Path("cut"), build(phantoms, options), {"max_epochs": 3}, {})
    assert_same(what_remains("cut/last.ckpt"), what_remains("whole/last.ckpt"))


# ------------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=["Ctrl-C", "SIGTERM", "SIGUSR1"])
def test_a_signal_within_a_step_is_heeded_after_it(monkeypatch, capfd, number):
    optimizer_step = SegmentationTask.optimizer_step

    def step(self, *args, **kwargs):
        if self.trainer.global_step == 3:
            os.kill(os.getpid(), number)
        optimizer_step(self, *args, **kwargs)

    monkeypatch.setattr(SegmentationTask, "optimizer_step", step)
    few = ["fit", "--config", "recipe.yaml", "--data.num_workers", "0"]
    before = signal.getsignal(number)
    assert main(few) == 130
    assert signal.getsignal(number) == before
    messages = capfd.readouterr().err
    assert "The run ends after this step and keeps its state; another Ctrl-C ends it at once." in messages
    assert messages.splitlines()[-1].endswith("--ckpt_path last")
    assert torch.load(LAST, weights_only=True)["global_step"] == 4


def test_a_second_ctrl_c_ends_at_once_and_leaves_the_last_whole_state(monkeypatch):
    def step(self, *args, **kwargs):
        if self.trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.6)
            os.kill(os.getpid(), signal.SIGINT)
        pl.LightningModule.optimizer_step(self, *args, **kwargs)
        assert self.trainer.global_step < 3

    monkeypatch.setattr(SegmentationTask, "optimizer_step", step)
    assert main(["fit", "--config", "recipe.yaml", "--data.num_workers", "0"]) == 130
    assert torch.load(LAST, weights_only=True)["global_step"] == 2


# ---------------------------------------------------------------------------------------------------------------- wall clock


class Rates(pl.Callback):
    """Remember the learning rate after every step, and take a while for each."""

    def __init__(self):
        self.rates, self.done = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(0.02)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.done.append(pl_module.done())


def test_a_run_with_a_time_limit_comes_down_to_the_end_of_its_schedule_also_when_it_is_continued(phantoms):
    limit = {"max_epochs": -1, "max_time": {"milliseconds": 1500}}
    first, second = Rates(), Rates()
    assert not fit(Path("run"), segmentation(phantoms, TINY), limit, {}, [first, Cut(60)])
    assert fit(Path("run"), segmentation(phantoms, TINY), limit, {}, [second])
    assert 0.1 < first.done[-2] < second.done[0] < 0.9  # the time that was used counts
    assert second.rates == sorted(second.rates, reverse=True)
    assert second.rates[0] < first.rates[-2]
    assert second.rates[-1] < 0.05 * TINY["lr"]
    assert fit(Path("run"), segmentation(phantoms, TINY), limit, {}, [third := Rates()])
    assert third.rates == []  # no time is left
