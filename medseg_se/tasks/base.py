"""Task: what training a network by name has in common, whatever it is trained for."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import pytorch_lightning as pl
import torch
from rich.table import Table
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medseg_se.attention import discretise, follow_choices, is_open
from medseg_se.checkpoints import AVERAGE
from medseg_se.dims import check_dims
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.files import write_json
from medseg_se.networks import build_network
from medseg_se.networks.base import Kind
from medseg_se.tasks.averaging import AveragedNetwork
from medseg_se.tasks.compiling import Compiled
from medseg_se.tasks.optimisation import Optimisation
from medseg_se.tasks.starting import Start, check_same_fold, say_seen, with_earlier_scans
from medseg_se.version import CHECKPOINT_FORMAT, __version__

Option = int | float | bool | str | None | list[str]
AttentionOptions = dict[str, Option | dict[str, Option | dict[str, Option]]]
NetworkOptions = dict[str, Option | list[int] | list[list[int]] | list[list[list[int]]]]
Stage = Literal["val", "test"]
_FIXED = ("optimizer", "lr", "weight_decay", "momentum", "freeze", "lr_factors")  # as long as a run goes on


@dataclass(frozen=True)
class Score:
    """The number that chooses the best checkpoint of a run.

    Attributes:
        name: What it is logged as.
        word: What the progress bar calls it.
        mode: "max" if more is better, else "min".
    """

    name: str
    word: str
    mode: Literal["max", "min"]

    def best(self, *values: float | None) -> float | None:
        """Return the best of those values that there are."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        return max(found) if self.mode == "max" else min(found)


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None; the others are left to the network's own defaults."""
    return {name: value for name, value in options.items() if value is not None}


class Task(pl.LightningModule, ABC):
    """A network by name, its optimiser and schedule, and checkpoints that say everything inference needs.

    Args:
        in_channels: Channels of a scan.
        num_classes: What the network returns so many of: structures and background, classes, or values.
        spatial_dims: 2 or 3.
        network: One of `medseg_se.networks.NETWORKS`.
        network_arguments: Options of the network.
        optimisation: How weights are optimised.
        start: What the weights are before the first step, and which of them learn.
        compile_network: Whether the network is compiled for training.

    Attributes:
        task: Its name in a checkpoint.
        kind: The kind of network that it trains.
        score: What chooses the best checkpoint.
        meaning: The key of the data's description that tells what the network's outputs mean.
        advice: What to do after a run, for a person.
    """

    task: ClassVar[Literal["segmentation", "classification", "regression"]]
    kind: ClassVar[Kind]
    score: ClassVar[Score]
    meaning: ClassVar[str]
    advice: ClassVar[str]

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int,
        network: str,
        network_arguments: Mapping[str, Any],
        optimisation: Optimisation,
        start: Start,
        compile_network: bool,
    ) -> None:
        super().__init__()
        check_dims(spatial_dims)
        self.in_channels, self.num_classes, self.spatial_dims = in_channels, num_classes, spatial_dims
        self.network_name, self.network_arguments = network, dict(network_arguments)
        self.optimisation, self.start, self.compile_network = optimisation, start, compile_network
        self.network = build_network(network, in_channels, num_classes, spatial_dims, self.kind, **self.network_arguments)
        if optimisation.discretise_after is not None and not is_open(self.network):
            raise UsageError(
                "Expected `attention` with a choice to learn, adaptive or fca_search, where `discretise_after` is given."
            )
        self.start.freeze(self.network)
        self.average = AveragedNetwork(self.network, optimisation.ema) if optimisation.ema else None
        self.model_description: dict[str, Any] = {}
        self._earlier: Mapping[str, Any] = {}  # data that the weights were trained on before
        self._compiled: Compiled | None = None

    @abstractmethod
    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a training batch."""

    @abstractmethod
    def table(self, metrics: Mapping[str, Tensor], stage: Stage) -> Table:
        """Return the result of a validation or test, of what it logged, as a person reads it."""

    def setup(self, stage: str) -> None:
        """Refuse data for another task.

        Raises:
            UsageError: The data are not for this task.
        """
        data = getattr(self.trainer, "datamodule", None)
        made_for = getattr(data, "task", self.task)
        if made_for != self.task:
            raise UsageError(f"Expected data for {self.task}, but {type(data).__name__} is for {made_for}.")

    def train(self, mode: bool = True) -> Self:
        """Switch between training and judging; what is frozen keeps its statistics."""
        super().train(mode)
        self.start.keep_frozen(self.network)
        return self

    def answer(self, image: Tensor) -> Any:
        """Return what is judged: the network's answer to scans (N, C, *spatial), with averaged weights where they are kept."""
        judged = self.network if self.average is None else self.average.module
        with torch.compiler.set_stance("force_eager"):  # other shapes than in training are not worth compiling for
            return judged(image)

    # ------------------------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        """Begin with the weights of another checkpoint where one is named, unless the run goes on from its own.

        What became of each of its tensors is written to `start.json` in the folder of the run.

        Raises:
            UsageError: See `Start.load` and `Start.check_frozen`.
            CheckpointError: See `Start.load`.
        """
        if self.trainer.ckpt_path is None:
            drawn = self.load_published()
            loaded = self.start.load(self.network, self.task, self._describe_network(), self.describe_data())
            if loaded is None:
                self.start.check_frozen(self.network, drawn)
            else:
                self._earlier = loaded.data
                if self.average is not None:
                    self.average.module.load_state_dict(self.network.state_dict())
                if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
                    write_json(Path(self.trainer.default_root_dir) / "start.json", loaded.to_dict())
        if self.compile_network:
            self._compiled = Compiled(self.network)

    def load_published(self) -> Collection[str]:
        """Fill the network with published weights where the task has any; returns the names of the tensors left as drawn."""
        return self.network.state_dict().keys()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            UsageError: The loss is not finite.
        """
        if self._compiled is not None:
            self._compiled.try_once(lambda: self.training_loss(batch))
        loss = self.training_loss(batch)
        value = float(loss.detach())
        if self._on_any_device(not math.isfinite(value)):
            raise UsageError(
                f"The loss became {math.nan if math.isfinite(value) else value} at step {self.global_step}. Lower `lr`, or "
                "check the scans with `medseg-se check`; the last checkpoint is intact."
            )
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser and a schedule that follows the share of the run that is done."""
        optimizer = self.optimisation.make(self.start.groups(self.network, self.optimisation.lr))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: self.optimisation.factor(self._done_everywhere()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and let the average of the weights follow."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Make the step's randomness its own, and learnt choices of attention final once their share of the run is over.

        What is random in a step, such as dropout, follows from the run's seed and the step's number alone, as patches do: a run
        that was interrupted goes on as if it had not been.
        """
        seeds = (int(os.environ.get("PL_GLOBAL_SEED", 0)), self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        self._settle_choices()

    def _settle_choices(self) -> None:
        after = self.optimisation.discretise_after
        if after is None or self.done() < after or not is_open(self.network):
            return
        if self.trainer.world_size > 1:
            raise UsageError("Expected one device where `discretise_after` is given: several might choose at different steps.")
        chosen = discretise(self.network)
        left = set(self.network.parameters())
        for optimizer in self.trainer.optimizers:  # nothing of what was dropped may reach the checkpoint
            for group in optimizer.param_groups:
                dropped = [parameter for parameter in group["params"] if parameter not in left]
                group["params"] = [parameter for parameter in group["params"] if parameter in left]
                for parameter in dropped:
                    optimizer.state.pop(parameter, None)
        if self.average is not None:  # of what was chosen
            self.average = AveragedNetwork(self.network, self.optimisation.ema).to(self.device)
        self.trainer.print("Attention chosen: " + ", ".join(f"{path} {choice}" for path, choice in chosen.items()))

    def done(self) -> float:
        """Return the share of the run that is over, by steps or by the clock, whichever is further."""
        trainer = self._trainer
        if trainer is None or trainer.num_training_batches == math.inf:
            # Not begun. To ask for the steps now would make the loader before a resumed run knows its place.
            return 0.0
        steps = trainer.estimated_stepping_batches
        by_steps = self.global_step / steps if 0 < steps < math.inf else 0.0
        by_clock = 0.0
        for timer in self._timers():
            if (left := timer.time_remaining("train")) is not None:
                spent = timer.time_elapsed("train")
                by_clock = spent / max(1e-9, spent + left)
        return min(1.0, max(by_steps, by_clock))

    def _timers(self) -> list[Any]:
        return [callback for callback in self.trainer.callbacks if isinstance(callback, pl.callbacks.Timer)]

    def _done_everywhere(self) -> float:
        """Return the share of the run that is over, where a clock tells it by the first device's: all have the same rate."""
        done = self.done()
        return done if self._trainer is None or not self._timers() else float(self.trainer.strategy.broadcast(done))

    def _on_any_device(self, decision: bool) -> bool:
        """Tell whether any device decides so, and thus all do; one that went its own way would leave the others waiting."""
        return decision if self._trainer is None else self._trainer.strategy.reduce_boolean_decision(decision, all=False)

    def on_validation_start(self) -> None:
        """Let devices judge as many scans as each has, which may be one more than another, with the same statistics."""
        wrapped = self.trainer.model
        if isinstance(wrapped, DistributedDataParallel):
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)
            wrapped.require_forward_param_sync = False  # it would wait in every batch for a device that has no more

    def on_validation_end(self) -> None:
        """Let devices train in step again."""
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_forward_param_sync = True

    # ----------------------------------------------------------------------------------------------------------------- data

    def training_targets(self) -> Tensor | None:
        """Return what the training scans of the run are to be taken for; None where its data do not tell."""
        ask = getattr(getattr(self.trainer, "datamodule", None), "training_targets", None)
        return cast(Tensor, ask()) if ask is not None else None

    def describe_data(self) -> dict[str, Any]:
        """Return what the data say of themselves: those of the run, or those that the loaded checkpoint was trained on."""
        datamodule = getattr(self._trainer, "datamodule", None) if self._trainer is not None else None
        if datamodule is not None and hasattr(datamodule, "describe"):
            return cast("dict[str, Any]", datamodule.describe())
        return cast("dict[str, Any]", self.model_description.get("data", {}))

    # ---------------------------------------------------------------------------------------------------------- checkpoints

    def _describe_network(self) -> dict[str, Any]:
        return {
            "name": self.network_name,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "spatial_dims": self.spatial_dims,
            "options": self.network_arguments,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add everything that inference needs, as plain data."""
        checkpoint["medseg_se"] = {
            "format": CHECKPOINT_FORMAT,
            "version": __version__,
            "task": self.task,
            "network": self._describe_network(),
            "data": with_earlier_scans(self.describe_data(), self._earlier),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the description, for runs without a data module.

        Raises:
            CheckpointError: The checkpoint is of another task or fold, or of a network that is built otherwise or means
                something else.
            UsageError: A run is to go on with an option that its optimiser or its weights were made with, but that is another.
        """
        self.model_description = checkpoint.get("medseg_se", {})
        self._earlier = self.model_description.get("data", {})
        trained_for = self.model_description.get("task", self.task)
        if trained_for != self.task:
            raise CheckpointError(f"Expected a checkpoint of a {self.task}, but this one is of a {trained_for}.")
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._check_options(checkpoint.get("hyper_parameters", {}))
        follow_choices(self, checkpoint["state_dict"])
        self._check_weights(checkpoint["state_dict"])
        theirs, ours = (data.get(self.meaning) for data in (self.model_description.get("data", {}), self.describe_data()))
        if isinstance(theirs, list) and theirs != ours:
            raise CheckpointError(
                f"Expected a checkpoint whose {self.meaning} are those of the data, {', '.join(ours or [])}, but its are "
                f"{', '.join(theirs)}."
            )
        self._check_scans(checkpoint.get("hyper_parameters", {}))

    def _check_scans(self, before: Mapping[str, Any]) -> None:
        """Refuse to go on in another fold, and warn where scans are judged that were trained on."""
        if self._trainer is None:
            return
        path, theirs, ours = str(self.trainer.ckpt_path), self.model_description.get("data", {}), self.describe_data()
        if self.trainer.state.fn == "fit":
            check_same_fold(path, theirs, ours, bool(self.start.path or before.get("start_from")))
        elif self.trainer.state.fn == "validate":
            say_seen(path, theirs, ours)

    def _check_options(self, before: Mapping[str, Any]) -> None:
        """Refuse options that a run which goes on cannot take up, given those that it began with."""
        ours = dict(self.hparams)
        for name in (name for name in _FIXED if name in before and name in ours):
            # Nothing may be null or empty; and the optimiser knows its groups by their order.
            theirs, wanted = (list(it.items()) if isinstance(it, dict) else it for it in (before[name], ours[name]))
            if (theirs or None) != (wanted or None):
                raise UsageError(
                    f"Expected `{name}` to be {before[name]} as in the run that goes on, but got {ours[name]}. To change it, "
                    "begin another run with `--model.start_from`."
                )

    def _check_weights(self, state: Mapping[str, Tensor]) -> None:
        """Refuse weights that do not fit this network, or an average of them where none is kept and the other way round."""
        averaged = any(name.startswith(AVERAGE) for name in state)
        if averaged != (self.average is not None):
            raise CheckpointError(
                "Expected a checkpoint of a run with `ema`, but this one is of a run without; set `--model.ema 0`."
                if self.average is not None
                else "Expected a checkpoint of a run without `ema`, but this one keeps an average; set `--model.ema` as then."
            )
        shapes = {name: value.shape for name, value in state.items()}
        if shapes == {name: value.shape for name, value in self.state_dict().items()}:
            return
        theirs, ours = (
            {**network, **network.get("options", {})}
            for network in (self.model_description.get("network", {}), self._describe_network())
        )
        other = [key for key in ours if key != "options" and theirs.get(key) != ours[key]]
        listed = ", ".join(f"{key} {theirs.get(key)} instead of {ours[key]}" for key in other)
        raise CheckpointError(f"The checkpoint holds another network: {listed or 'its weights have other shapes'}.")
