"""What a training run leaves for a person: curves, pictures of validation cases, and a page that sums it up.

All of it is made beside the training: nothing draws from its random numbers, changes its metrics or ends it, and the time
that it may take is a small share of the run's.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from medseg_se.data.regions import Regions
from medseg_se.files import atomic_write
from medseg_se.reports.curves import draw_curves
from medseg_se.reports.logs import History, RunLog
from medseg_se.reports.snapshots import Answered, Lie, Segmented, answered_picture, segmented_picture
from medseg_se.structures import Structures
from medseg_se.tasks.base import Task
from medseg_se.tasks.callbacks import Waiting

log = logging.getLogger(__name__)

CURVES, PICTURES, SUMMARY = "curves.png", "pictures", "summary.html"
NO_CURVES = "There are no curves: they need matplotlib (pip install 'medseg-se[report]')."
_EPOCH = "open_epoch"  # in a checkpoint
KEPT = 50  # most pictures of a run
_PATCHES, _SCANS = 4, 12  # that are pictured
_PICTURE_SHARE, _CURVE_SHARE, _CURVE_SECONDS = 0.02, 0.01, 60.0  # of a run's time; least time between two drawings
_FIRST_CURVES = 2.0  # seconds that are taken to be the cost of a drawing before one was made


class RunReport(pl.Callback):
    """Draw curves and pictures as training goes on, and log learning rate and times of every epoch.

    Args:
        folder: Folder of the run.
        table: Its table of what is logged.

    Attributes:
        counted: Structure → number of scans in its last whole-scan Dice.
        seconds: Seconds of this run until its end, those of the runs that it continues left out.
        history: What was logged until then: the best checkpoint is judged afterwards, which is no epoch.
    """

    def __init__(self, folder: Path | str, table: RunLog) -> None:
        self.folder, self.table = Path(folder), table
        self.counted: dict[str, int] = {}
        self.seconds = 0.0
        self.history: History = {}
        self._cases: list[dict[str, Tensor]] = []
        self._complete = False
        self._started = time.monotonic()
        self._epoch = _Epoch()
        self._failed: set[str] = set()
        self._picture = _Rhythm(0.0, _PICTURE_SHARE, 0.0)
        self._curves = _Rhythm(_CURVE_SECONDS, _CURVE_SHARE, _FIRST_CURVES)
        self._pictured = -1  # step of the last picture

    # ----------------------------------------------------------------------------------------------------------------- times

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count, and forget what was logged of steps that are taken again."""
        if trainer.is_global_zero:
            self.table.rewind(trainer.global_step)
        self._started = time.monotonic()
        self._picture.start(self._started)
        self._curves.start(self._started)
        self._epoch = self._epoch.of(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count anew."""
        self._epoch = self._epoch.of(trainer.current_epoch)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch as waiting for data."""
        self._epoch.waiting.end()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the loss, and the time from now on as waiting."""
        if isinstance(outputs, Mapping) and "loss" in outputs:  # which Lightning divides by the batches of a step
            self._epoch.add_loss(float(outputs["loss"]) * trainer.accumulate_grad_batches, len(batch["image"]))
        self._epoch.waiting.begin()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log loss and learning rate, how long the epoch took, and how much of that went into waiting for data.

        The loss is that of the whole epoch, also if the run was interrupted within it: Lightning only knows what came after.
        """
        rates = {"lr": trainer.optimizers[0].param_groups[0]["lr"]} if trainer.optimizers else {}
        pl_module.log_dict({**self._epoch.summary(time.monotonic()), **rates})

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the open epoch has come to; the writing that follows is no waiting for data."""
        # Not as the state of a callback, which Lightning would miss wherever the checkpoint is used without this one.
        checkpoint[_EPOCH] = self._epoch.to_dict(time.monotonic())
        self._epoch.waiting.spoil()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the epoch in which the run was interrupted."""
        if trainer.state.fn == "fit" and _EPOCH in checkpoint:
            self._epoch = _Epoch.from_dict(checkpoint[_EPOCH])

    # -------------------------------------------------------------------------------------------------------------- pictures

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first cases of the first validation, which are pictured from then on."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._complete or not _pictures_here(trainer):
            return
        truth = next((name for name in ("labels", "target") if name in batch), None)
        wanted = _PATCHES if truth == "labels" else _SCANS
        for place in range(len(batch["image"]) if truth else 0):
            if len(self._cases) < wanted:
                self._cases.append({name: batch[name][place].detach().cpu() for name in ("image", str(truth))})
        self._complete = truth is None or len(self._cases) == wanted

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note in how many scans each structure was, before the task forgets it."""
        metrics = getattr(pl_module, "scan_dice", None)
        if trainer.state.fn == "validate" and metrics is not None and trainer.world_size == 1:
            self.counted = {name: int(metric.weight) for name, metric in zip(pl_module.structure_names(), metrics, strict=True)}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what is due; neither that nor the validation is waiting for data."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero:
            self._complete = True  # fewer cases than would be pictured
            if self._picture.due(time.monotonic()):
                self._draw_picture(trainer, pl_module)
            if self._curves.due(time.monotonic()):
                self._draw_curves(pl_module)
        self._epoch.waiting.begin()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the end of the run."""
        self.seconds = time.monotonic() - self._started
        if trainer.is_global_zero:
            if self._pictured != trainer.global_step:
                self._draw_picture(trainer, pl_module)
            self._draw_curves(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what was logged, also of a run that had ended before and has no page yet."""
        if trainer.is_global_zero:
            self.history = self.table.history()

    def _draw_picture(self, trainer: pl.Trainer, task: Any) -> None:
        if not self._cases:
            return
        epoch = max(1, trainer.current_epoch + int(trainer.validating))  # at the end of training, the last one is over

        def draw() -> None:
            score = trainer.callback_metrics.get(task.score.name)
            reached = "" if score is None else f"   {task.score.word} {float(score):.3f}"
            picture = picture_of(task, self._cases, self._names(trainer), f"epoch {epoch}{reached}")
            with atomic_write(self.folder / PICTURES / f"epoch_{epoch:04d}.png") as stream:
                picture.save(stream, format="png", compress_level=1)
            thin_out(self.folder / PICTURES)

        with self._picture.timed():
            self._try("pictures", draw)
        self._pictured = trainer.global_step

    def _names(self, trainer: pl.Trainer) -> list[str]:
        cases = getattr(getattr(trainer, "datamodule", None), "validation", [])
        step = trainer.world_size if len(cases) >= trainer.world_size else 1  # each device judges its share, or all
        return [str(getattr(case, "id", "")) for case in cases[::step]][: len(self._cases)]

    def _draw_curves(self, task: Any) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            return

        def draw() -> None:
            history, path = self.table.history(), self.folder / CURVES
            if history:
                draw_curves(history, path, self.folder.resolve().name, described_network(task), task.score)

        with self._curves.timed():
            self._try("curves", draw)

    def _try(self, what: str, draw: Callable[[], None]) -> None:
        """Draw, and let no failure of it end hours of training: it is said once."""
        if what in self._failed:
            return
        try:
            draw()
        except Exception as error:
            self._failed.add(what)
            log.warning("no more %s of this run: %s", what, str(error).partition("\n")[0] or type(error).__name__)


@dataclass
class _Epoch:
    """What an epoch has come to: `loss` summed over `scans`, its time, and how much of that went into waiting for data."""

    number: int = -1
    loss: float = 0.0
    scans: int = 0
    seconds: float = 0.0  # until `since`, in runs that were interrupted
    waiting: Waiting = field(default_factory=Waiting)
    since: float = 0.0

    def of(self, number: int) -> _Epoch:
        """Return this epoch, which goes on now, if it is that one; else that one, which begins."""
        epoch = self if number == self.number else _Epoch(number)
        epoch.since = time.monotonic()
        epoch.waiting.begin()
        return epoch

    def add_loss(self, loss: float, scans: int) -> None:
        self.loss, self.scans = self.loss + loss * scans, self.scans + scans

    def summary(self, now: float) -> dict[str, float]:
        """Return what is logged."""
        loss = {"train_loss": self.loss / self.scans} if self.scans else {}
        return {**loss, "epoch_seconds": self.seconds + now - self.since, "waiting_seconds": self.waiting.total()}

    def to_dict(self, now: float) -> dict[str, Any]:
        """Return plain data, from which the epoch goes on."""
        waiting = (self.waiting.seconds, self.waiting.measured, self.waiting.gaps)
        return {**vars(self), "seconds": self.seconds + now - self.since, "waiting": list(waiting)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> _Epoch:
        return cls(**{**data, "waiting": Waiting(*data["waiting"])})


class _Rhythm:
    """When something is due again that may take a share of the time, and not more often than every so many seconds."""

    def __init__(self, seconds: float, share: float, cost: float) -> None:
        self.seconds, self.share, self.cost = seconds, share, cost
        self._last = 0.0

    def start(self, now: float) -> None:
        self._last = now

    def due(self, now: float) -> bool:
        return now - self._last >= max(self.seconds, self.cost / self.share)

    @contextmanager
    def timed(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self._last = time.monotonic()
        self.cost = self._last - begun


def picture_of(task: Any, cases: list[dict[str, Tensor]], names: list[str], title: str) -> Any:
    """Return a Pillow picture of what the network that is judged says of some cases.

    Args:
        task: The `Task`.
        cases: "image" (C, *spatial) and "labels" (*spatial) or "target" of each, in the memory of the CPU.
        names: Their names, as far as they are known.
        title: The heading.
    """
    described = task.describe_data()
    lie, answers = Lie.of(described), _answers(task, cases)
    if task.task == "segmentation":
        structures = Structures.from_dict(described["structures"])
        named = [*names, *[""] * len(cases)]
        shown = [
            Segmented(name, case["image"][0].numpy(), case["labels"].numpy(), _labels(answer, described, structures).numpy())
            for name, case, answer in zip(named, cases, answers, strict=False)
        ]
        return segmented_picture(shown, structures, lie, title)
    said = [_words(task, answer, case["target"]) for answer, case in zip(answers, cases, strict=True)]
    return answered_picture(
        [Answered(case["image"][0].numpy(), *words) for case, words in zip(cases, said, strict=True)], lie, title
    )


@torch.no_grad()
def _answers(task: Any, cases: list[dict[str, Tensor]]) -> list[Tensor]:
    """Return the network's answer to each case, in the memory of the CPU; the task is left as it was."""
    training = task.training
    task.eval()
    try:
        with task.trainer.precision_plugin.forward_context():
            return [task.answer(case["image"][None].to(task.device))[0].float().cpu() for case in cases]
    finally:
        task.train(training)


def _labels(logits: Tensor, described: dict[str, Any], structures: Structures) -> Tensor:
    """Return structure indices (*spatial) of logits (classes, *spatial)."""
    targets = described.get("targets")
    if not targets:
        return logits.argmax(0)
    return Regions.named(targets, structures).label_map(lambda place: logits[place] > 0)


def _words(task: Any, answer: Tensor, target: Tensor) -> tuple[str, str, bool | None]:
    """Return what is true of a scan, what was said of it, and whether that is right."""
    if task.task == "classification":
        names, said = task.class_names(), int(answer.argmax())
        return names[int(target)], names[said], said == int(target)
    values = answer * task.target_std.cpu() + task.target_mean.cpu()
    return _figures(target), _figures(values), None


def _figures(values: Tensor) -> str:
    return ", ".join(f"{float(value):.4g}" for value in values.reshape(-1))


def thin_out(folder: Path, kept: int = KEPT) -> None:
    """Leave at most `kept` pictures of epochs, spread over the run, the first and the latest among them."""
    pictures = {int(path.stem[6:]): path for path in folder.glob("epoch_*.png") if path.stem[6:].isdigit()}
    epochs = sorted(pictures)
    while len(epochs) > kept:  # the one whose neighbours are closest together
        place = min(range(1, len(epochs) - 1), key=lambda number: epochs[number + 1] - epochs[number - 1])
        pictures[epochs.pop(place)].unlink(missing_ok=True)


def _pictures_here(trainer: pl.Trainer) -> bool:
    """Tell whether this process draws: the first, where it has the whole network."""
    return trainer.is_global_zero and isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))


def described_network(task: Task) -> str:
    """Return what is trained in a few words: network, attention, data."""
    arguments = task.network_arguments
    attention = arguments.get("attention")
    attention = "+".join(dict.fromkeys(attention)) if isinstance(attention, list) else attention
    return ", ".join(part for part in (task.network_name, attention, task.describe_data().get("dataset", "")) if part)
