"""Callbacks of every training run: a progress bar that says what a person wants to know, and checkpoints that survive."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from medseg_se.files import atomic_write
from medseg_se.hardware import best_device, has_bfloat16
from medseg_se.tasks.base import Score
from medseg_se.tasks.segmentation import SegmentationTask


def trainer_defaults(folder: Path | str, device: str = "auto", score: Score = SegmentationTask.score) -> dict[str, Any]:
    """Return what every run gets, as arguments for `pytorch_lightning.Trainer`.

    Checkpoints in `folder/checkpoints`, curves in `folder/logs`, the progress bar, and bfloat16 where `device` has it.

    Args:
        folder: Folder of the run.
        device: See `best_device`.
        score: What chooses the best checkpoint, the `score` of the task.
    """
    root = Path(folder)
    checkpoints = root / "checkpoints"
    return {
        "default_root_dir": str(root),
        "callbacks": [TrainingProgress(), KeepLast(checkpoints / "last.ckpt"), KeepBest(checkpoints, score)],
        "plugins": [AtomicCheckpointIO()],
        "logger": CSVLogger(str(root), name="logs"),
        "log_every_n_steps": 1,  # short epochs are logged too
        "enable_model_summary": False,
        "precision": "bf16-mixed" if has_bfloat16(best_device(device)) else "32-true",
    }


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their name and rename them: a killed run or a full disk never leaves half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OutputError: The folder is not writable or the disk is full.
        """
        with atomic_write(path) as stream:
            torch.save(checkpoint, stream)


class KeepLast(pl.Callback):
    """Write `last.ckpt` when training ends or is interrupted, besides the one after every epoch.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the final weights, also when a time limit ended the run within an epoch."""
        trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the weights when a person or the scheduler ends the run; after any other error the last epoch's are kept."""
        stopped = isinstance(exception, (KeyboardInterrupt, pl.utilities.exceptions.SIGTERMException))
        if stopped and trainer.state.fn == "fit" and trainer.global_step > 0:
            trainer.save_checkpoint(self.path)


class KeepBest(pl.callbacks.ModelCheckpoint):
    """Write `best.ckpt` when the score of the validation is the best so far, and `last.ckpt` after every epoch.

    Args:
        folder: Where.
        score: What chooses, the `score` of the task.
    """

    def __init__(self, folder: Path, score: Score = SegmentationTask.score) -> None:
        super().__init__(folder, "best", monitor=score.name, mode=score.mode, save_last=True, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score of the run that is continued, also if its folder was moved since."""
        best = str(Path(self.dirpath) / "best.ckpt")
        if Path(best).is_file():
            paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), best)
            state_dict = {
                **state_dict,
                **paths,
                "dirpath": self.dirpath,
                "best_k_models": {best: state_dict["best_model_score"]},
            }
        super().load_state_dict(state_dict)


class TrainingProgress(pl.callbacks.ProgressBar):
    """One bar for the whole run, with loss, score, time left and the share of the time spent waiting for data.

    In a terminal the bar is live; otherwise a line is printed after each epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._enabled = True
        self._started = self._last = time.monotonic()
        self._done_at_start = 0.0
        self._waiting = self._working = 0.0
        self._loss: float | None = None
        self._best: float | None = None

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            self._console.print(*args)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._started = self._last = time.monotonic()
        self._done_at_start = pl_module.done()
        if self._enabled and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[facts]}"),
            )
            self._bar = Progress(*columns, console=self._console, refresh_per_second=2)
            self._task = self._bar.add_task("training", total=1.0, facts="")
            self._bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting this epoch's waiting anew."""
        self._waiting = self._working = 0.0
        self._last = time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch as waiting for data."""
        now = time.monotonic()
        self._waiting += now - self._last
        self._last = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the time of the step as work and move the bar."""
        now = time.monotonic()
        self._working += now - self._last
        self._last = now
        if isinstance(outputs, dict) and "loss" in outputs:
            loss = float(outputs["loss"])
            self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        if self._bar is not None:
            self._bar.update(
                self._task, completed=pl_module.done(), description=self._place(trainer), facts=self._facts(trainer)
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line for the epoch."""
        if not self._enabled or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        earlier = getattr(trainer.checkpoint_callback, "best_model_score", None)  # of the run that is continued
        score: Score = pl_module.score
        now = trainer.callback_metrics.get(score.name)
        self._best = score.best(self._best, *(float(value) for value in (now, earlier) if value is not None))
        best = f"  best {self._best:.3f}" if self._best is not None else ""
        self._console.print(f"{self._place(trainer)}  {self._facts(trainer)}{best}", highlight=False, soft_wrap=True)
        self._last = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _place(self, trainer: pl.Trainer) -> str:
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        return f"epoch {trainer.current_epoch + 1}{epochs}"

    def _facts(self, trainer: pl.Trainer) -> str:
        done = trainer.lightning_module.done() - self._done_at_start
        elapsed = time.monotonic() - self._started
        left = elapsed / done * (1 - self._done_at_start - done) if done > 0 else None
        score: Score = trainer.lightning_module.score
        reached = trainer.callback_metrics.get(score.name)
        waited = self._waiting / max(1e-9, self._waiting + self._working)
        facts = [
            f"loss {self._loss:.3f}" if self._loss is not None else "",
            f"{score.word} {float(reached):.3f}" if reached is not None else "",
            f"left {_clock(left)}" if left is not None else "",
            f"waiting for data {waited:.0%}",
        ]
        return "  ".join(fact for fact in facts if fact)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
