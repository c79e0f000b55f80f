import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from medseg_se.errors import UsageError
from medseg_se.tasks.base import Score
from medseg_se.tasks.checkpoints import AtomicCheckpointIO, CheckpointHabits, SmoothedScore

UP, DOWN = Score("val_dice", "dice", "max"), Score("val_error", "error", "min")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")


class Scripted(pl.LightningModule):
    """Learns nothing of interest, and is told how good it is after each epoch."""

    def __init__(self, score, values):
        super().__init__()
        self.score, self.values, self.layer = score, values, nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log(self.score.name, self.values[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return DataLoader(torch.ones(6, 1), batch_size=1)

    def val_dataloader(self):
        return DataLoader(torch.ones(1, 1))


def train(root, values, score=UP, epochs=None, ckpt_path=None, callbacks=(), min_epochs=None, **habits):
    trainer = pl.Trainer(
        default_root_dir=root,
        min_epochs=min_epochs,
        max_epochs=epochs or len(values),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *CheckpointHabits(**habits).callbacks(Path(root), score)],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(Scripted(score, values), ckpt_path=ckpt_path)
    return trainer


def epoch_of(path):
    return torch.load(path, weights_only=True)["epoch"]


# ------------------------------------------------------------------------------------------------------------- smoothed score


def test_the_first_score_counts_as_it_is_and_the_share_of_the_past_grows_to_the_smoothing():
    smoothed = SmoothedScore(UP, 0.9)
    assert smoothed.follow(0.5) == 0.5
    assert smoothed.follow(1.0) == pytest.approx(0.1 * 0.5 + 0.9 * 1.0)
    assert smoothed.follow(0.0) == pytest.approx(2 / 11 * 0.95)
    for _ in range(200):
        smoothed.follow(0.0)
    before = smoothed.value
    assert smoothed.follow(1.0) == pytest.approx(0.9 * before + 0.1)


def test_without_smoothing_it_is_the_score_and_no_score_changes_nothing():
    smoothed = SmoothedScore(UP, 0.0)
    assert math.isnan(smoothed.follow(math.nan))
    assert [smoothed.follow(value) for value in (0.3, math.nan, 0.1)] == [0.3, 0.3, 0.1]


def test_a_lucky_validation_does_not_choose_the_best_checkpoint(tmp_path):
    steady = [0.5] * 30 + [0.9] + [0.5, 0.4, 0.3] + [0.8] * 10
    train(tmp_path, steady)
    assert epoch_of(tmp_path / "best.ckpt") == len(steady) - 1
    train(tmp_path / "raw", steady, smoothing=0.0)
    assert epoch_of(tmp_path / "raw" / "best.ckpt") == 30


@pytest.mark.parametrize("score", [UP, DOWN], ids=["max", "min"])
def test_a_fall_at_the_end_of_a_short_run_is_noticed(tmp_path, score):
    rising = [0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.8, 0.1, 0.1]
    values = rising if score is UP else [1 - value for value in rising]
    trainer = train(tmp_path, values, score)
    assert epoch_of(tmp_path / "best.ckpt") == 7
    assert trainer.callback_metrics[f"{score.name}_ema"] == pytest.approx(0.5, abs=0.3)


# ------------------------------------------------------------------------------------------------------------------- patience


def test_a_run_ends_when_nothing_got_better_and_stays_ended_unless_more_patience_is_asked_for(tmp_path, capsys):
    values = [0.5, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert train(tmp_path, values, patience=3).current_epoch == 5
    assert "3 validations without a better val_dice_ema" in capsys.readouterr().err
    assert train(tmp_path, values, patience=3, ckpt_path=tmp_path / "last.ckpt").current_epoch == 5
    assert train(tmp_path, values, patience=5, ckpt_path=tmp_path / "last.ckpt").current_epoch == 7
    assert train(tmp_path, values, ckpt_path=tmp_path / "last.ckpt").current_epoch == 8


class Watch(pl.Callback):
    """Remember where the run stood that `last.ckpt` holds when an epoch begins, and ask it to end in the epoch `ask`."""

    def __init__(self, path, ask=None):
        self.path, self.ask, self.steps = path, ask, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.steps += [torch.load(self.path, weights_only=True)["global_step"]] if self.path.exists() else []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.ask, 1):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_goes_on_for_the_least_epochs_after_its_patience_keeps_its_state_and_obeys_signals(tmp_path, put_back):
    values, habits = [0.5, *[0.1] * 9], {"patience": 1, "min_epochs": 6, "minutes": 0}
    watch = Watch(tmp_path / "last.ckpt")
    assert train(tmp_path, values, callbacks=[watch], **habits).current_epoch == 6
    assert watch.steps == [6, 12, 18, 24, 30]  # of 6 steps an epoch, though it was to end after the second
    with pytest.raises(SystemExit):
        train(tmp_path / "asked", values, callbacks=[Watch(tmp_path / "asked" / "last.ckpt", ask=4)], **habits)
    assert torch.load(tmp_path / "asked" / "last.ckpt", weights_only=True)["global_step"] == 4 * 6 + 2


# --------------------------------------------------------------------------------------------------- how much work can be lost


class Clock(pl.Callback):
    """A clock on which steps take 60 s and writing a file as long as it is told; remembers the steps of the files."""

    def __init__(self, monkeypatch, writing):
        self.now, self.steps = 0.0, []
        monkeypatch.setattr("medseg_se.tasks.checkpoints.time", SimpleNamespace(monotonic=lambda: self.now))
        save = pl.Trainer.save_checkpoint

        def timed(trainer, path, *args, **kwargs):
            save(trainer, path, *args, **kwargs)
            if Path(path).name == "last.ckpt":
                self.steps.append(trainer.global_step)
                self.now += writing

        monkeypatch.setattr(pl.Trainer, "save_checkpoint", timed)

    def on_train_batch_start(self, *_):
        self.now += 60


@pytest.mark.parametrize(
    ("minutes", "writing", "steps"),
    [
        (0, 1, list(range(1, 19))),
        (2, 1, [2, 4, 6, 8, 10, 12, 14, 16, 18]),  # the last step of an epoch is followed by its validation
        (5, 1, [5, 6, 11, 12, 17, 18]),
        (60, 1, [6, 12, 18]),
        (60, 30, [6, 18]),  # 30 s are too much for 6 minutes
        (5, 30, [5, 10, 15, 18]),
    ],
)
def test_the_state_is_written_every_few_minutes_and_after_epochs_that_are_worth_it(
    tmp_path, monkeypatch, minutes, writing, steps
):
    clock = Clock(monkeypatch, writing)
    train(tmp_path, [0.1, 0.2, 0.3], callbacks=[clock], minutes=minutes)
    assert clock.steps == steps


# ------------------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("habits", "words"),
    [
        ({"minutes": -1}, "`checkpoints.minutes` to be at least 0"),
        ({"smoothing": 1.0}, "`checkpoints.smoothing` to be at least 0 and below 1"),
        ({"patience": 0}, "`checkpoints.patience` to be at least 1, or null"),
    ],
)
def test_values_that_make_no_sense_are_refused(habits, words):
    with pytest.raises(UsageError, match=words):
        CheckpointHabits(**habits)
