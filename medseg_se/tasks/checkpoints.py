"""When a run keeps its state, which state is the best, and when it ends early: so that no more than minutes are ever lost.

`last.ckpt` holds a run between two steps, never within one, nor within a validation: continued from it, a run ends with the
same weights, to the last bit, as if it had not been interrupted.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from medseg_se.errors import UsageError
from medseg_se.files import atomic_write
from medseg_se.tasks.base import Score
from medseg_se.tasks.interruption import StopSignals

_SHARE = 0.05  # of a run's time that may go into writing its state after epochs


@dataclass(frozen=True)
class CheckpointHabits:
    """When a run keeps its state, what chooses the best, and when it ends early.

    Attributes:
        minutes: Most minutes of training that a killed run loses: `last.ckpt` is written that often within epochs too; 0 for
            after every step. After an epoch it is written anyway, unless writing would take more than a twentieth of the time.
        smoothing: The score that chooses the best checkpoint is averaged over the validations: this share of the former
            average and the rest of the new score, 0 for none. See `SmoothedScore`.
        patience: Validations without a better smoothed score after which the run ends; null for never. The learning rate
            follows the whole run, so that one that ends early has not come down to the schedule's end.

    Raises:
        UsageError: A value that makes no sense.
    """

    minutes: float = 5.0
    smoothing: float = 0.9
    patience: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.minutes < math.inf:
            raise UsageError(f"Expected `checkpoints.minutes` to be at least 0, but got {self.minutes}.")
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"Expected `checkpoints.smoothing` to be at least 0 and below 1, but got {self.smoothing}.")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"Expected `checkpoints.patience` to be at least 1, or null, but got {self.patience}.")

    def callbacks(self, folder: Path, score: Score) -> list[pl.Callback]:
        """Return the callbacks that do all this, with checkpoints in `folder`."""
        stopping = [] if self.patience is None else [Patience(score, self.patience)]
        best, last = KeepBest(folder, score), KeepLast(folder / "last.ckpt", self.minutes)
        return [SmoothedScore(score, self.smoothing), *stopping, best, last]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their name and rename them: a killed run or a full disk never leaves half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OutputError: The folder is not writable or the disk is full.
        """
        with atomic_write(path) as stream:
            torch.save(checkpoint, stream)


class SmoothedScore(pl.Callback):
    """The running average of a validation's score, logged as `smoothed_name` says: one validation on few patches is noisy.

    After n earlier validations it is ``share · average + (1 - share) · score`` with the smaller of `smoothing` and
    ``n / (9 + n)`` as the share: from about the 80th on nnU-Net's average (Isensee et al., 2021,
    https://doi.org/10.1038/s41592-020-01008-z); in shorter runs it follows more closely, so that the low scores of the
    beginning do not hide a fall at the end. A validation without a score, as none of the structures was there, leaves it.

    Args:
        score: The score.
        smoothing: Largest share of the former average.
    """

    def __init__(self, score: Score, smoothing: float = 0.9) -> None:
        self.score, self.smoothing = score, smoothing
        self.value, self.count = math.nan, 0

    def follow(self, score: float) -> float:
        """Take up the score of another validation and return the average."""
        if math.isfinite(score):
            share = min(self.smoothing, self.count / (9 + self.count))
            self.value = share * self.value + (1 - share) * score if self.count else score
            self.count += 1
        return self.value

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the score of this validation and log the average."""
        score = trainer.callback_metrics.get(self.score.name)
        if trainer.state.fn != "fit" or trainer.sanity_checking or score is None:
            return
        name, value = smoothed_name(self.score), self.follow(float(score))
        # A module logs its score after every callback was asked for its own, so this one cannot go through `log`.
        trainer.callback_metrics[name] = torch.tensor(value)
        for logger in trainer.loggers:
            logger.log_metrics({name: value, "epoch": trainer.current_epoch}, max(0, trainer.global_step - 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many scores are in it."""
        return {"value": self.value, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the average of the run that is continued."""
        self.value, self.count = state_dict["value"], state_dict["count"]


def smoothed_name(score: Score) -> str:
    """Return what the running average of a score is logged as."""
    return f"{score.name}_ema"


class Patience(pl.callbacks.EarlyStopping):
    """End the run when the smoothed score has not become better for some validations.

    Args:
        score: The score.
        patience: How many.
    """

    def __init__(self, score: Score, patience: int) -> None:
        super().__init__(smoothed_name(score), patience=patience, mode=score.mode, strict=False, check_finite=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the continued run stood, but with the patience that is asked for now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End at once where the run that is continued had ended early."""
        if self._exhausted():
            trainer.should_stop = True
            self._say(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why the run ends."""
        if self._exhausted():
            self._say(trainer)

    def _exhausted(self) -> bool:
        return bool(self.wait_count >= self.patience)

    def _say(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            text = (
                f"The run ends early: {self.wait_count} validations without a better {self.monitor} (`checkpoints.patience`)."
            )
            print(text, file=sys.stderr)


class KeepBest(pl.callbacks.ModelCheckpoint):
    """Write `best.ckpt` when the smoothed score of the validation is the best so far.

    Args:
        folder: Where.
        score: The score; a `SmoothedScore` of it has to be among the callbacks.
    """

    def __init__(self, folder: Path, score: Score) -> None:
        super().__init__(folder, "best", monitor=smoothed_name(score), mode=score.mode, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score of the run that is continued, also if its folder was moved since."""
        best = str(Path(self.dirpath) / "best.ckpt")
        if Path(best).is_file() and state_dict["best_model_score"] is not None:
            paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), best)
            state_dict = {
                **state_dict,
                **paths,
                "dirpath": self.dirpath,
                "best_k_models": {best: state_dict["best_model_score"]},
            }
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]


def keeper_of_the_best(trainer: pl.Trainer) -> KeepBest | None:
    """Return what keeps the best checkpoint of a run, beside which a config may name others."""
    return next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, KeepBest)), None)


class KeepLast(pl.callbacks.Checkpoint):
    """Write `last.ckpt` between steps: every so many minutes, after epochs, at the end, and when a signal asks the run to end.

    Nothing is written within a step, between the batches of one step, or between the last step before a validation and its
    end, where a run could not go on as if nothing had happened. Lightning calls it after all other callbacks.

    Args:
        path: The file.
        minutes: See `CheckpointHabits`.
    """

    def __init__(self, path: Path, minutes: float = 5.0) -> None:
        self.path, self.seconds = path, 60 * minutes
        self._signals = StopSignals()
        self._ending = self._written = False
        self._since = self._cost = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note signals from here on.

        Raises:
            UsageError: The run has a limit of steps, and its state is whole after none of them.
        """
        if trainer.max_steps != -1 and not _is_ever_whole(trainer):
            raise UsageError(
                "With `max_steps`, this run has no step after which it could be continued: every step ends an epoch or is "
                "followed by a validation. Limit it by `max_epochs`, or validate less often."
            )
        self._ending = self._written = False
        self._since = time.monotonic()
        self._signals.watch()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run where that was asked for before."""
        if self._ending:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the state where it is whole, if it is time."""
        if not _is_whole(trainer, batch_idx):
            return
        self._write_if(time.monotonic() - self._since >= self.seconds, trainer)
        if self._ending:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state, unless that would take too large a share of the time."""
        if _stops_early(trainer) or trainer.current_epoch + 1 == trainer.max_epochs:
            return  # it is written when training ends, now
        enough = min(self.seconds, self._cost / _SHARE) if self._written else 0.0
        due = time.monotonic() - self._since >= enough
        if trainer.max_steps != -1:
            # With a limit of steps, Lightning goes on from the end of an epoch as if it were still within it.
            self._since = -math.inf if due else self._since
            return
        self._write_if(due, trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state, also when a time limit ended the run within an epoch."""
        self._write_if(True, trainer)
        self._signals.leave()
        if self._ending:
            raise KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the file as it is: what an exception interrupts is no state to go on from."""
        self._signals.leave()

    def _write_if(self, due: bool, trainer: pl.Trainer) -> None:
        """Write the state if it is `due`, or asked for by a signal; all devices decide the same."""
        if not trainer.strategy.reduce_boolean_decision(due or self._signals.wanted, all=False):
            return
        started = time.monotonic()
        trainer.save_checkpoint(self.path)
        self._since = time.monotonic()
        self._cost, self._written = self._since - started, True
        self._ending = trainer.strategy.reduce_boolean_decision(self._signals.wanted, all=False)


def _is_whole(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Tell whether a run can go on from here as it would have: a step is done, and no validation follows."""
    over = _stops_early(trainer) or trainer.global_step == trainer.max_steps
    return not over and _is_between_steps(trainer, batch_idx + 1, trainer.fit_loop.total_batch_idx + 1)


def _stops_early(trainer: pl.Trainer) -> bool:
    """Tell whether the run ends now, as patience or the clock ask it to, and `min_epochs` and `min_steps` are reached."""
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def _is_between_steps(trainer: pl.Trainer, done: int, total: int) -> bool:
    """Tell whether after so many batches of an epoch, and of the run, a step ends, but no epoch, and no validation follows."""
    if done % trainer.accumulate_grad_batches or done == trainer.num_training_batches:
        return False
    every, seen = trainer.val_check_batch, total if trainer.check_val_every_n_epoch is None else done
    return not (isinstance(every, int) and trainer.enable_validation and seen % every == 0)


def _is_ever_whole(trainer: pl.Trainer) -> bool:
    """Tell whether any epoch has a place between steps."""
    batches, steps, every = trainer.num_training_batches, trainer.accumulate_grad_batches, trainer.val_check_batch
    if batches == math.inf:
        return True
    epochs = every if isinstance(every, int) and trainer.check_val_every_n_epoch is None else 1  # until it is all the same
    places = itertools.product(range(epochs), range(steps, int(batches), steps))
    return any(_is_between_steps(trainer, done, epoch * int(batches) + done) for epoch, done in places)
