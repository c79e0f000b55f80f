"""SegmentationTask: scans to a class of every voxel, with per-structure Dice while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.segmentation import DiceScore

from medseg_se.dims import ActivationName, NormName
from medseg_se.losses import DeepSupervisionLoss, DiceCELoss
from medseg_se.metrics.overlap import confusion, dice_from_confusion
from medseg_se.structures import IGNORE
from medseg_se.tasks.base import AttentionOptions, NetworkOptions, Optimisation, OptimizerName, Score, Stage, Task, given
from medseg_se.tasks.schedules import Schedule


class SegmentationTask(Task):
    """Train a segmentation network by name.

    Every argument is a name or a plain value, so a checkpoint holds tensors and plain data only.

    Args:
        in_channels: Channels of a scan; taken from the data on the command line.
        num_classes: Structures and background; taken from the data on the command line.
        spatial_dims: 2 or 3; taken from the data on the command line.
        network: One of `medseg_se.networks.NETWORKS`; `medseg-se networks` lists them with their options. From here to
            `attention_options`, what is not given is the network's own choice, and what it does not have is refused.
        channels: Feature channels per level.
        strides: Stride into each level after the first, or one number for all.
        kernel_size: Kernel per level, or one number for all.
        convs: Convolutions in each block, or one number a level.
        residual: Whether blocks have an identity path; "encoder": only those on the way down.
        norm: Normalisation.
        activation: Activation.
        dropout: Share of channels dropped.
        deep_supervision: Whether every decoder level is trained.
        attention: Name of an attention block, or one a level.
        attention_at: Where it sits, some of `medseg_se.networks.placement.PLACES`.
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

    task = "segmentation"
    kind = "segmentation"
    score = Score("val_dice", "dice", "max")
    meaning = "structures"
    advice = "To judge it from the files, on their own grid, run `medseg-se predict` and `medseg-se evaluate`."

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        network: str = "unet",
        channels: list[int] | None = None,
        strides: int | list[int] | list[list[int]] | None = None,
        kernel_size: int | list[int] | list[list[int]] | None = None,
        convs: int | list[int] | None = None,
        residual: bool | Literal["encoder"] | None = None,
        norm: NormName | None = None,
        activation: ActivationName | None = None,
        dropout: float | None = None,
        deep_supervision: bool | None = None,
        attention: str | list[str] | None = None,
        attention_at: list[str] | None = None,
        attention_options: AttentionOptions | None = None,
        discretise_after: float | None = None,
        network_options: NetworkOptions | None = None,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        schedule: Schedule = "cosine",
        warmup: float = 0.02,
    ) -> None:
        named = given(
            channels=channels,
            strides=strides,
            kernel_size=kernel_size,
            convs=convs,
            residual=residual,
            norm=norm,
            activation=activation,
            dropout=dropout,
            deep_supervision=deep_supervision,
            attention=attention,
            attention_at=attention_at,
            attention_options=attention_options,
        )
        arguments = {**named, **(network_options or {})}
        optimisation = Optimisation(optimizer, lr, weight_decay, schedule, warmup, discretise_after)
        super().__init__(in_channels, num_classes, spatial_dims, network, arguments, optimisation)
        self.save_hyperparameters()
        self.loss = DeepSupervisionLoss(DiceCELoss(dice_weight, ce_weight))
        self.patch_dice = DiceScore(
            num_classes, include_background=False, average="none", aggregation_level="global", input_format="index"
        )
        self.scan_dice = nn.ModuleList(MeanMetric(nan_strategy="ignore") for _ in range(num_classes - 1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map scans (N, C, *spatial) to logits (N, num_classes, *spatial)."""
        return cast("Tensor | tuple[Tensor, ...]", self.network(x))

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch of patches."""
        loss: Tensor = self.loss(self.network(batch["image"]), batch["labels"])
        return loss

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
            dice = self.patch_dice.compute().reshape(-1)  # torchmetrics gives no axis to a single structure
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

    def table(self, metrics: Mapping[str, Tensor], stage: Stage) -> Table:
        """Return the whole-scan Dice of every structure and their mean."""
        table = Table("structure", "Dice (mean over scans)")
        for name in self.structure_names():
            dice = float(metrics.get(f"{stage}_scan_dice/{name}", math.nan))
            table.add_row(name, f"{dice:.3f}" if dice == dice else "not counted: absent")
        mean = float(metrics.get(f"{stage}_scan_dice", math.nan))
        table.add_row("mean over structures", f"{mean:.3f}" if mean == mean else "not counted", style="bold")
        return table

    def structure_names(self) -> list[str]:
        """Return the names of the structures, numbers where the data does not tell."""
        described = self.describe_data()
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
        described = self.describe_data()
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
