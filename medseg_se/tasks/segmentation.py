"""SegmentationTask: a network, its loss, optimiser and schedule, and per-structure Dice while it trains."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.segmentation import DiceScore

from medseg_se.attention import discretise, follow_choices, is_open
from medseg_se.dims import ActivationName, NormName, check_dims
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.losses import DeepSupervisionLoss, DiceCELoss
from medseg_se.metrics.overlap import confusion, dice_from_confusion
from medseg_se.networks import build_network
from medseg_se.structures import IGNORE
from medseg_se.tasks.schedules import Schedule, learning_rate_factor
from medseg_se.version import CHECKPOINT_FORMAT, __version__

Option = int | float | bool | str | None | list[str]


class SegmentationTask(pl.LightningModule):
    """Train a segmentation network by name.

    Every argument is a name or a plain value, so a checkpoint holds tensors and plain data only.

    Args:
        in_channels: Channels of a scan; taken from the data on the command line.
        num_classes: Structures and background; taken from the data on the command line.
        spatial_dims: 2 or 3; taken from the data on the command line.
        network: One of `medseg_se.networks.NETWORKS`.
        channels: Feature channels per level.
        strides: Stride into each level after the first, or one number for all.
        kernel_size: Kernel per level, or one number for all.
        convs: Convolutions in each block.
        residual: Whether blocks have an identity path.
        norm: Normalisation.
        activation: Activation.
        dropout: Share of channels dropped.
        deep_supervision: Whether every decoder level is trained.
        attention: Name of an attention block, or one a level.
        attention_at: Some of encoder, bottleneck, decoder, skip, residual.
        attention_options: Options of the attention block, such as `reduction`; or of each kind of block under its name.
        discretise_after: Share of the run after which learnt choices (attention `adaptive`, `fca_search`) become final: each
            place keeps its winner and the rest of the run trains it alone. Never if not given.
        network_options: Further options that only this network has.
        dice_weight: Factor of the Dice term of the loss.
        ce_weight: Factor of the cross-entropy term.
        optimizer: "adamw" or "sgd" (Nesterov momentum 0.99).
        lr: Highest learning rate.
        weight_decay: Weight decay.
        schedule: "cosine", "poly" or "constant"; it ends with the run, be that `max_epochs` or `max_time`.
        warmup: Share of the run during which the learning rate rises.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        network: str = "unet",
        channels: list[int] = [32, 64, 128, 256, 320],  # noqa: B006 - never changed; a list is what YAML gives
        strides: int | list[int] | list[list[int]] = 2,
        kernel_size: int | list[int] | list[list[int]] = 3,
        convs: int = 2,
        residual: bool = False,
        norm: NormName = "instance",
        activation: ActivationName = "leaky_relu",
        dropout: float = 0.0,
        deep_supervision: bool = True,
        attention: str | list[str] = "none",
        attention_at: list[str] = ["encoder", "bottleneck", "decoder"],  # noqa: B006
        attention_options: dict[str, Option | dict[str, Option | dict[str, Option]]] | None = None,
        discretise_after: float | None = None,
        network_options: dict[str, int | float | bool | str | list[int]] | None = None,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        schedule: Schedule = "cosine",
        warmup: float = 0.02,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_dims(spatial_dims)
        if not 0 <= warmup < 1:
            raise UsageError(f"Expected `warmup` to be at least 0 and below 1, but got {warmup}.")
        if discretise_after is not None and not 0 < discretise_after < 1:
            raise UsageError(f"Expected `discretise_after` to lie between 0 and 1, but got {discretise_after}.")
        if lr <= 0:
            raise UsageError(f"Expected `lr` to be positive, but got {lr}.")
        if weight_decay < 0:
            raise UsageError(f"Expected `weight_decay` to be at least 0, but got {weight_decay}.")
        self.spatial_dims, self.num_classes, self.in_channels = spatial_dims, num_classes, in_channels
        self.network_name = network
        self.network_arguments: dict[str, Any] = {
            "channels": channels,
            "strides": strides,
            "kernel_size": kernel_size,
            "convs": convs,
            "residual": residual,
            "norm": norm,
            "activation": activation,
            "dropout": dropout,
            "deep_supervision": deep_supervision,
            "attention": attention,
            "attention_at": attention_at,
            "attention_options": attention_options,
            **(network_options or {}),
        }
        self.network = build_network(network, in_channels, num_classes, spatial_dims, **self.network_arguments)
        if discretise_after is not None and not is_open(self.network):
            raise UsageError(
                "Expected `attention` with a choice to learn, adaptive or fca_search, where `discretise_after` is given."
            )
        self.loss = DeepSupervisionLoss(DiceCELoss(dice_weight, ce_weight))
        self.optimizer_name, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.schedule, self.warmup, self.discretise_after = schedule, warmup, discretise_after
        self.patch_dice = DiceScore(
            num_classes, include_background=False, average="none", aggregation_level="global", input_format="index"
        )
        self.scan_dice = nn.ModuleList(MeanMetric(nan_strategy="ignore") for _ in range(num_classes - 1))
        self.model_description: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map scans (N, C, *spatial) to logits (N, num_classes, *spatial)."""
        return cast("Tensor | tuple[Tensor, ...]", self.network(x))

    # ------------------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of patches.

        Raises:
            UsageError: The loss is not finite.
        """
        loss: Tensor = self.loss(self.network(batch["image"]), batch["labels"])
        if not math.isfinite(float(loss.detach())):
            raise UsageError(
                f"The loss became {float(loss.detach())} at step {self.global_step}. Lower `lr`, or check the scans with "
                "`medseg-se check`; the last checkpoint is intact."
            )
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser and a schedule that follows the share of the run that is done."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if self.optimizer_name == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)
        elif self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(parameters, self.lr, momentum=0.99, nesterov=True, weight_decay=self.weight_decay)
        else:
            raise UsageError(f"Expected `optimizer` to be adamw or sgd, but got {self.optimizer_name!r}.")
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda _: learning_rate_factor(self.schedule, self.done(), self.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Make learnt choices of attention final once their share of the run is over."""
        if self.discretise_after is None or self.done() < self.discretise_after or not is_open(self.network):
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
        rank_zero_info("Attention chosen: " + ", ".join(f"{path} {choice}" for path, choice in chosen.items()))

    def done(self) -> float:
        """Return the share of the run that is over, by steps or by the clock, whichever is further."""
        trainer = self._trainer
        if trainer is None or trainer.num_training_batches == math.inf:
            # Not begun. To ask for the steps now would make the loader before a resumed run knows its place.
            return 0.0
        steps = trainer.estimated_stepping_batches
        by_steps = self.global_step / steps if 0 < steps < math.inf else 0.0
        by_clock = 0.0
        for callback in trainer.callbacks:
            if isinstance(callback, pl.callbacks.Timer) and (left := callback.time_remaining("train")) is not None:
                spent = callback.time_elapsed("train")
                by_clock = spent / max(1e-9, spent + left)
        return min(1.0, max(by_steps, by_clock))

    # ----------------------------------------------------------------------------------------------------------- validation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Judge patches while fitting, whole scans otherwise."""
        if self.trainer.state.fn == "fit":
            self._judge_patches(batch)
        else:
            self._judge_scan(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Judge a whole scan."""
        self._judge_scan(batch)

    def _judge_patches(self, batch: dict[str, Tensor]) -> None:
        logits, target = self.network(batch["image"]), batch["labels"]
        self.log("val_loss", self.loss(logits, target), batch_size=len(target), sync_dist=True)
        counted = target != IGNORE
        self.patch_dice.update(logits.argmax(1) * counted, target * counted)

    def _judge_scan(self, batch: dict[str, Tensor]) -> None:
        prediction = self.segment(batch["image"], batch["lowest"][0])[0].argmax(0)
        matrix = confusion(prediction.cpu().numpy(), batch["labels"][0].cpu().numpy(), self.num_classes)
        groups = [(index,) for index in range(1, self.num_classes)]
        for metric, dice in zip(self.scan_dice, dice_from_confusion(matrix, groups), strict=True):
            cast(MeanMetric, metric).update(float(dice))

    def on_validation_epoch_end(self) -> None:
        """Log the Dice of every structure and their mean."""
        if self.trainer.state.fn == "fit":
            dice = self.patch_dice.compute()
            self.patch_dice.reset()
            self._log_dice(dice, "val")
        else:
            self._log_scan_dice("val")

    def on_test_epoch_end(self) -> None:
        """Log the Dice of every structure and their mean."""
        self._log_scan_dice("test")

    def _log_scan_dice(self, stage: str) -> None:
        dice = torch.stack([cast(MeanMetric, metric).compute().float() for metric in self.scan_dice])
        for metric in self.scan_dice:
            cast(MeanMetric, metric).reset()
        self._log_dice(dice, f"{stage}_scan")

    def _log_dice(self, dice: Tensor, stage: str) -> None:
        names = self.structure_names()
        counted = dice[torch.isfinite(dice)]
        nothing = 0.0 if stage == "val" else math.nan  # while fitting, the checkpoint is chosen by a number
        mean = counted.mean() if len(counted) else torch.tensor(nothing)
        self.log(f"{stage}_dice", mean, prog_bar=True)
        self.log_dict({f"{stage}_dice/{name}": value for name, value in zip(names, dice, strict=True)})

    def structure_names(self) -> list[str]:
        """Return the names of the structures, numbers where the data does not tell."""
        described = self._describe_data()
        if described:
            return list(described["structures"]["values"])
        return [str(index) for index in range(1, self.num_classes)]

    @torch.no_grad()
    def segment(self, image: Tensor, lowest: Tensor) -> Tensor:
        """Return the logits (1, num_classes, I, J, K) of a whole prepared scan (1, C, I, J, K).

        Tiles overlap by half and are weighted with a Gaussian; a 2D network sees one slice after another.

        Args:
            image: The scan.
            lowest: Lowest intensity per channel (C,), which fills the margin of scans smaller than a patch.
        """
        described = self._describe_data()
        size: list[int] = described["patch_size"]
        axis: int | None = described["flat_axis"]
        if axis is not None:
            image = image[0].movedim(axis + 1, 0)
        short = [max(0, wanted - have) for wanted, have in zip(size, image.shape[2:], strict=True)]
        margins = [m for missing in reversed(short) for m in (missing // 2, missing - missing // 2)]
        base = lowest.reshape(1, -1, *[1] * len(size))
        padded = F.pad(image - base, margins) + base
        logits = cast(Tensor, sliding_window_inference(padded, size, 4, self.network, overlap=0.5, mode="gaussian"))
        inside = [slice(missing // 2, missing // 2 + have) for missing, have in zip(short, image.shape[2:], strict=True)]
        logits = logits[(slice(None), slice(None), *inside)]
        return logits if axis is None else logits.movedim(0, axis + 1)[None]

    # ---------------------------------------------------------------------------------------------------------- checkpoints

    def _describe_data(self) -> dict[str, Any]:
        datamodule = getattr(self._trainer, "datamodule", None) if self._trainer is not None else None
        if datamodule is not None and hasattr(datamodule, "describe"):
            return cast("dict[str, Any]", datamodule.describe())
        return cast("dict[str, Any]", self.model_description.get("data", {}))

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
            "task": "segmentation",
            "network": self._describe_network(),
            "data": self._describe_data(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the description, for runs without a data module.

        Raises:
            CheckpointError: The weights are those of a network that is built otherwise.
        """
        self.model_description = checkpoint.get("medseg_se", {})
        follow_choices(self, checkpoint["state_dict"])
        shapes = {name: value.shape for name, value in checkpoint["state_dict"].items()}
        if shapes == {name: value.shape for name, value in self.state_dict().items()}:
            return
        theirs, ours = (
            {**network, **network.get("options", {})}
            for network in (self.model_description.get("network", {}), self._describe_network())
        )
        other = [key for key in ours if key != "options" and theirs.get(key) != ours[key]]
        listed = ", ".join(f"{key} {theirs.get(key)} instead of {ours[key]}" for key in other)
        raise CheckpointError(f"The checkpoint holds another network: {listed or 'its weights have other shapes'}.")
