"""SegmentationTask: scans to a class of every voxel, with per-structure Dice while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.segmentation import DiceScore

from medseg_se.data.regions import Regions
from medseg_se.dims import ActivationName, NormName
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.losses import DeepSupervisionLoss, DiceBCERegionsLoss, build_loss
from medseg_se.metrics.overlap import confusion, dice_from_confusion
from medseg_se.structures import BACKGROUND_NAMES, IGNORE, Structures
from medseg_se.tasks.base import AttentionOptions, NetworkOptions, Score, Stage, Task, given
from medseg_se.tasks.class_weights import ClassWeights, check_class_weights, find_class_weights
from medseg_se.tasks.optimisation import Optimisation, OptimizerName
from medseg_se.tasks.schedules import Schedule
from medseg_se.tasks.starting import Start

CLASS_WEIGHTS = "loss.loss.class_weights"  # in a checkpoint


class SegmentationTask(Task):
    """Train a segmentation network by name.

    Every argument is a name or a plain value, so a checkpoint holds tensors and plain data only.

    Args:
        in_channels: Channels of a scan; taken from the data on the command line.
        num_classes: Structures and background, or regions; taken from the data on the command line.
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
        loss: One of `medseg_se.losses.LOSSES`: "dice_ce"; "focal_tversky", which weighs what is missed against false alarms;
            "boundary", dice_ce plus distances to the true boundary; or "dice_bce_regions" for data whose `targets` are
            regions.
        loss_options: Further options of the loss, such as `gamma` of focal_tversky or `boundary_weight` of boundary. What a
            loss does not have is refused, here and in the next four.
        dice_weight: Factor of the Dice term of the loss; 1 if not given.
        ce_weight: Factor of the cross-entropy term; 1 if not given.
        class_weights: What a voxel weighs in the cross-entropy: "none", all the same; "median_frequency", ω = median(f) / f of
            its class, where f is the share of the class in the training cases that show it, and 0 for a class that none shows;
            "root_median_frequency", its square root, for volumes whose classes differ in size by orders of magnitude; or
            structure → weight, also background → weight, with 1 for those not named.
        edge_weight: What a voxel weighs more there that has a neighbour of another class along an axis of the patch; "auto" is
            twice the largest class weight.
        optimizer: "adamw" or "sgd".
        lr: Highest learning rate.
        weight_decay: Weight decay.
        schedule: "cosine", "poly", "steps" or "constant"; it ends with the run, be that `max_epochs` or `max_time`.
        warmup: Share of the run during which the learning rate rises.
        momentum: Nesterov momentum of "sgd".
        ema: Decay of a running average of the weights, such as 0.999, which is judged and kept in place of the last step's; 0
            for none. See `AveragedNetwork`.
        start_from: A checkpoint to begin with, also one of other structures, channels or attention; see `Start`.
        freeze: Parts of the network that do not learn, such as encoder.
        lr_factors: Part of the network → factor on its learning rate.
        compile_network: Whether the network is compiled for training, which costs up to a minute and saves a share of every
            step; one that cannot be compiled is run as it is, and the reason is said.
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
        loss: str = "dice_ce",
        loss_options: dict[str, float | bool] | None = None,
        dice_weight: float | None = None,
        ce_weight: float | None = None,
        class_weights: ClassWeights = "none",
        edge_weight: float | Literal["auto"] = 0.0,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        schedule: Schedule = "cosine",
        warmup: float = 0.02,
        momentum: float = 0.99,
        ema: float = 0.0,
        start_from: str | None = None,
        freeze: list[str] | None = None,
        lr_factors: dict[str, float] | None = None,
        compile_network: bool = False,
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
        optimisation = Optimisation(optimizer, lr, weight_decay, schedule, warmup, discretise_after, momentum, ema)
        start = Start(start_from, tuple(freeze or ()), lr_factors or {})
        super().__init__(in_channels, num_classes, spatial_dims, network, arguments, optimisation, start, compile_network)
        self.save_hyperparameters()
        check_class_weights(class_weights)
        self.class_weights = class_weights
        weighing = given(
            dice_weight=dice_weight,
            ce_weight=ce_weight,
            class_weights=None if class_weights == "none" else [1.0] * num_classes,  # those meant follow from the data
            edge_weight=edge_weight or None,
        )
        self.loss = DeepSupervisionLoss(build_loss(loss, **{**weighing, **(loss_options or {})}))
        self.finds_regions = isinstance(self.loss.loss, DiceBCERegionsLoss)
        self.patch_dice = DiceScore(
            num_classes,
            include_background=self.finds_regions,
            average="none",
            aggregation_level="global",
            input_format="one-hot" if self.finds_regions else "index",
        )
        judged = num_classes if self.finds_regions else num_classes - 1
        self.scan_dice = nn.ModuleList(MeanMetric(nan_strategy="ignore") for _ in range(judged))

    def setup(self, stage: str) -> None:
        """Refuse data for another task, or whose targets are not what the loss is for.

        Raises:
            UsageError: The data are not for this task, or not for this loss.
        """
        super().setup(stage)
        self._take_targets()

    def _take_targets(self) -> None:
        """Learn from the data what the regions are."""
        described = self.describe_data()
        if not described:
            return
        targets: list[str] | None = described.get("targets")
        if not isinstance(self.loss.loss, DiceBCERegionsLoss):
            if targets:
                raise UsageError(
                    f"Expected `loss` to be dice_bce_regions for data whose `targets` are {', '.join(targets)}, but got one of "
                    "structures."
                )
            return
        if not targets:
            raise UsageError(
                "Expected data whose `targets` are regions where `loss` is dice_bce_regions, but got structures. Add "
                "`--data.targets regions`, or name them in a list."
            )
        self.loss.loss.regions = Regions.named(targets, Structures.from_dict(described["structures"])).members

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map scans (N, C, *spatial) to logits (N, num_classes, *spatial)."""
        return cast("Tensor | tuple[Tensor, ...]", self.network(x))

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch of patches."""
        loss: Tensor = self.loss(self.network(batch["image"]), batch["labels"])
        return loss

    # -------------------------------------------------------------------------------------------------------- class weights

    def on_fit_start(self) -> None:
        """Take the weights of the classes from the training cases, those of a run that goes on too.

        Raises:
            UsageError: See `Start.load`; or the data do not tell what the weights need.
            CheckpointError: See `Start.load`.
        """
        super().on_fit_start()
        if self.class_weights == "none":
            return
        names = [BACKGROUND_NAMES[0], *self.structure_names()]
        weights = find_class_weights(self.class_weights, names, getattr(self.trainer, "datamodule", None))
        buffer = cast(Tensor, self.loss.loss.class_weights)
        buffer.copy_(torch.tensor(weights))
        listed = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(names, weights, strict=True))
        self.trainer.print(f"Weights in the cross-entropy: {listed}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the description, for runs without a data module; what classes weigh is asked of the data.

        Raises:
            CheckpointError: As for every task; or the checkpoint has other targets, or structures or channels in another order.
            UsageError: The checkpoint's targets are not what the loss is for.
        """
        state = checkpoint["state_dict"]
        if self.class_weights == "none":
            state.pop(CLASS_WEIGHTS, None)
        else:
            state.setdefault(CLASS_WEIGHTS, self.loss.loss.class_weights)
        super().on_load_checkpoint(checkpoint)
        theirs, ours = (data.get("targets") for data in (self.model_description.get("data", {}), self.describe_data()))
        if theirs != ours:
            found = [", ".join(targets) if targets else "structures" for targets in (ours, theirs)]
            raise CheckpointError(f"Expected a checkpoint that finds {found[0]}, as the data say, but it finds {found[1]}.")
        data = self.describe_data()
        its, wanted = _structures_in_order(self.model_description.get("data", {})), _structures_in_order(data)
        if its != wanted:
            raise CheckpointError(
                f"Expected a checkpoint whose structures are those of the data, in their order: {wanted}; but got {its}. To "
                "begin with its weights, matched by name, give `--model.start_from`."
            )
        channels = list(self.model_description.get("data", {}).get("channels", ()))
        if channels != data.get("channels", channels) and sorted(channels) == sorted(data["channels"]):
            raise CheckpointError(
                f"Expected the channels of the data in the order of the checkpoint, {', '.join(channels)}, but got "
                f"{', '.join(data['channels'])}."
            )
        self._take_targets()

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
        logits, target = self.answer(batch["image"]), batch["labels"]
        self.log("val_loss", self.loss(logits, target), batch_size=len(target) * self.trainer.world_size, sync_dist=True)
        counted = target != IGNORE
        if isinstance(self.loss.loss, DiceBCERegionsLoss):
            self.patch_dice.update((logits > 0) & counted[:, None], self.loss.loss.truth(target, self.num_classes))
        else:
            self.patch_dice.update(logits.argmax(1) * counted, target * counted)

    def _judge_scan(self, batch: dict[str, Tensor]) -> None:
        logits, target = self.segment(batch["image"], batch["lowest"][0])[0], batch["labels"]
        if isinstance(self.loss.loss, DiceBCERegionsLoss):
            truth = self.loss.loss.truth(target, self.num_classes)[0]
            found = _dice_of_masks((logits > 0) & (target != IGNORE), truth)
        else:
            matrix = confusion(logits.argmax(0).cpu().numpy(), target[0].cpu().numpy(), self.num_classes)
            found = dice_from_confusion(matrix, [(index,) for index in range(1, self.num_classes)]).tolist()
        for metric, dice in zip(self.scan_dice, found, strict=True):
            cast(MeanMetric, metric).update(dice)

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
        mean = counted.mean() if len(counted) else torch.tensor(math.nan)
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
        """Return the names of the structures, or regions, that are judged; numbers where the data does not tell."""
        described = self.describe_data()
        if described:
            return list(described.get("targets") or described["structures"]["values"])
        return [str(index) for index in range(1, len(self.scan_dice) + 1)]

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
        logits = cast(Tensor, sliding_window_inference(padded, size, 4, self.answer, overlap=0.5, mode="gaussian"))
        inside = [slice(missing // 2, missing // 2 + have) for missing, have in zip(short, image.shape[2:], strict=True)]
        logits = logits[(slice(None), slice(None), *inside)]
        return logits if axis is None else logits.movedim(0, axis + 1)[None]


def _dice_of_masks(found: Tensor, truth: Tensor) -> list[float]:
    """Return the Dice of each of several masks (R, *spatial); NaN where both lack it."""
    both, either = ((one.flatten(1).sum(1)) for one in (found & truth, found))
    dice: list[float] = (2 * both / (either + truth.flatten(1).sum(1))).tolist()
    return dice


def _structures_in_order(data: Mapping[str, Any]) -> str:
    """Return the names of the structures in the order of their indices, and what the regions among the targets hold."""
    structures = data.get("structures", {})
    regions = structures.get("regions", {})
    members = [f"{name} = {' + '.join(regions[name])}" for name in data.get("targets") or () if name in regions]
    return ", ".join([*structures.get("values", ()), *members])
