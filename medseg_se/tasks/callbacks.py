"""What every training run gets: checkpoints that survive, and a progress bar that says what a person wants to know."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from medseg_se.hardware import best_device, has_bfloat16
from medseg_se.tasks.base import Score
from medseg_se.tasks.checkpoints import AtomicCheckpointIO, CheckpointHabits, keeper_of_the_best, smoothed_name
from medseg_se.tasks.segmentation import SegmentationTask
from medseg_se.tasks.self_knowledge import SelfKnowledge


def trainer_defaults(
    folder: Path | str,
    device: str = "auto",
    score: Score = SegmentationTask.score,
    habits: CheckpointHabits | None = None,
) -> dict[str, Any]:
    """Return what every run gets, as arguments for `pytorch_lightning.Trainer`.

    Checkpoints in `folder/checkpoints`, curves in `folder/logs`, the progress bar, and bfloat16 where `device` has it.

    Args:
        folder: Folder of the run.
        device: See `best_device`.
        score: What chooses the best checkpoint, the `score` of the task.
        habits: When checkpoints are written and which is the best; the defaults if not given.
    """
    root = Path(folder)
    keeping = (habits or CheckpointHabits()).callbacks(root / "checkpoints", score)
    return {
        "default_root_dir": str(root),
        "callbacks": [*keeping, SelfKnowledge(), TrainingProgress()],  # in which the smoothed score is known
        "plugins": [AtomicCheckpointIO()],
        "logger": CSVLogger(str(root), name="logs"),
        "log_every_n_steps": 1,  # short epochs are logged too
        "enable_model_summary": False,
        "precision": "bf16-mixed" if has_bfloat16(best_device(device)) else "32-true",
    }


@dataclass
class Waiting:
    """How long an epoch waits for data: the time between its batches, but for validations and the writing of checkpoints.

    When a checkpoint has been written is not told, so that the gap it falls into is taken to be as long as the others.

    Attributes:
        seconds: Length of the gaps that were measured.
        measured: How many these are.
        gaps: How many there were.
    """

    seconds: float = 0.0
    measured: int = 0
    gaps: int = 0
    _since: float | None = field(default=None, init=False)

    def begin(self) -> None:
        """Begin a gap, or begin it anew."""
        self._since = time.monotonic()

    def spoil(self) -> None:
        """Do not measure this gap."""
        self._since = None

    def end(self) -> None:
        """End a gap."""
        self.gaps += 1
        if self._since is not None:
            self.seconds, self.measured = self.seconds + time.monotonic() - self._since, self.measured + 1

    def total(self) -> float:
        """Return the length of all gaps in seconds."""
        return self.seconds * self.gaps / self.measured if self.measured else 0.0


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
        self._waiting, self._working = Waiting(), 0.0
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
        self._waiting.begin()
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
        self._waiting, self._working = Waiting(), 0.0
        self._waiting.begin()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch as waiting for data."""
        self._waiting.end()
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the time of the step as work and move the bar."""
        self._working += time.monotonic() - self._last
        self._waiting.begin()
        if isinstance(outputs, dict) and "loss" in outputs:
            loss = float(outputs["loss"])
            self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        if self._bar is not None:
            self._bar.update(
                self._task, completed=pl_module.done(), description=self._place(trainer), facts=self._facts(trainer)
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line for an epoch that no validation follows, as none is wanted."""
        if self._enabled and not trainer.enable_validation:
            self._print_line(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line for the epoch."""
        if self._enabled and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._print_line(trainer, pl_module)

    def _print_line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        earlier = getattr(keeper_of_the_best(trainer), "best_model_score", None)  # of the run that is continued
        score: Score = pl_module.score
        now = trainer.callback_metrics.get(smoothed_name(score))
        self._best = score.best(self._best, *(float(value) for value in (now, earlier) if value is not None))
        best = f"  best {self._best:.3f}" if self._best is not None else ""
        self._console.print(f"{self._place(trainer)}  {self._facts(trainer)}{best}", highlight=False, soft_wrap=True)
        self._waiting.begin()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note that a checkpoint is written, which is no waiting for data."""
        self._waiting.spoil()

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
        reached, smoothed = (trainer.callback_metrics.get(name) for name in (score.name, smoothed_name(score)))
        waited = (waiting := self._waiting.total()) / max(1e-9, waiting + self._working)
        facts = [
            f"loss {self._loss:.3f}" if self._loss is not None else "",
            f"{score.word} {float(reached):.3f}" if reached is not None else "",
            f"smoothed {float(smoothed):.3f}" if smoothed is not None else "",
            f"left {_clock(left)}" if left is not None else "",
            f"waiting for data {waited:.0%}",
        ]
        return "  ".join(fact for fact in facts if fact)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
