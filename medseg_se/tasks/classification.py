"""ClassificationTask: a scan to one of several classes, with recall, balanced accuracy and AUROC while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from medseg_se.errors import UsageError
from medseg_se.metrics.whole_scan import aurocs, class_confusion, recalls
from medseg_se.tasks.base import AttentionOptions, NetworkOptions, Score, Stage, given
from medseg_se.tasks.mixing import Mixing
from medseg_se.tasks.optimisation import Optimisation, OptimizerName
from medseg_se.tasks.schedules import Schedule
from medseg_se.tasks.starting import Start
from medseg_se.tasks.whole_scan import WholeScanTask


class ClassificationTask(WholeScanTask):
    """Train a network that says which class a whole scan belongs to.

    Every argument is a name or a plain value, so a checkpoint holds tensors and plain data only.

    Args:
        in_channels: Channels of a scan; taken from the data on the command line.
        num_classes: Number of classes; taken from the data on the command line.
        spatial_dims: 2 or 3; taken from the data on the command line.
        network: One of `medseg_se.networks.NETWORKS` for classification; `medseg-se networks` lists them with their options.
            From here to `attention_options`, what is not given is the network's own choice, and what it does not have is
            refused.
        channels: Feature channels per level.
        dropout: Share of features dropped.
        attention: Name of an attention block, or one a level.
        attention_at: Where it sits, some of `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, such as `reduction`; or of each kind of block under its name.
        discretise_after: Share of the run after which learnt choices (attention `adaptive`, `fca_search`) become final: each
            place keeps its winner and the rest of the run trains it alone. Never if not given.
        network_options: Further options of this network.
        pretrained: File of published weights (.pth, .pt or .safetensors, with torchvision's names) to begin with; see
            `load_pretrained`. A run that goes on, and a trained checkpoint, do not need it.
        class_weights: "balanced" gives every class the same weight in the loss, however rare it is in training; "none" every
            scan.
        label_smoothing: Share of the truth that is spread over all classes.
        mixup: α of mixup: pairs of scans are added up by a share λ ~ Beta(α, α), and so are their losses; 0 for none.
        cutmix: α of CutMix: a box of one scan is put into the other; 0 for none. With both, each takes half of the batches.
        mixing_probability: Share of the batches that are mixed.
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

    task = "classification"
    score = Score("val_balanced_accuracy", "balanced accuracy", "max")
    meaning = "classes"
    class_weight: Tensor

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 2,
        network: str = "resnet18v2",
        channels: list[int] | None = None,
        dropout: float | None = None,
        attention: str | list[str] | None = None,
        attention_at: list[str] | None = None,
        attention_options: AttentionOptions | None = None,
        discretise_after: float | None = None,
        network_options: NetworkOptions | None = None,
        pretrained: str | None = None,
        class_weights: Literal["none", "balanced"] = "none",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixing_probability: float = 1.0,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        momentum: float = 0.99,
        ema: float = 0.0,
        start_from: str | None = None,
        freeze: list[str] | None = None,
        lr_factors: dict[str, float] | None = None,
        compile_network: bool = False,
    ) -> None:
        named = given(
            channels=channels,
            dropout=dropout,
            attention=attention,
            attention_at=attention_at,
            attention_options=attention_options,
        )
        arguments = {**named, **(network_options or {})}
        optimisation = Optimisation(optimizer, lr, weight_decay, schedule, warmup, discretise_after, momentum, ema)
        start = Start(start_from, tuple(freeze or ()), lr_factors or {})
        super().__init__(
            in_channels,
            num_classes,
            spatial_dims,
            network,
            arguments,
            optimisation,
            start,
            compile_network,
            pretrained,
            Mixing(mixup, cutmix, mixing_probability),
        )
        self.save_hyperparameters()
        if class_weights not in ("none", "balanced"):
            raise UsageError(f"Expected `class_weights` to be none or balanced, but got {class_weights!r}.")
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"Expected `label_smoothing` to be at least 0 and below 1, but got {label_smoothing}.")
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        self.register_buffer("class_weight", torch.ones(num_classes))
        self.confusion = torch.zeros(num_classes, num_classes)

    def setup(self, stage: str) -> None:
        """Take the weights of the classes from the training scans.

        Raises:
            UsageError: The data are for another task, or do not tell their classes where the weights need them.
        """
        super().setup(stage)
        if stage != "fit" or self.class_weights == "none":
            return
        targets = self.training_targets()
        if targets is None:
            raise UsageError("Expected a data module with `training_targets` where `class_weights` is balanced, but got none.")
        counts = torch.bincount(targets, minlength=self.num_classes)
        self.class_weight.copy_(len(targets) / (self.num_classes * counts))

    def forward(self, x: Tensor) -> Tensor:
        """Map scans (N, C, *spatial) to logits (N, num_classes)."""
        return cast(Tensor, self.network(x))

    def loss_of(self, answers: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of logits (N, num_classes) and class numbers (N,)."""
        return F.cross_entropy(answers, target, self.class_weight, label_smoothing=self.label_smoothing)

    def judge(self, answers: Tensor, truth: Tensor, stage: Stage) -> None:
        """Log accuracy, recall of every class, their mean, and the mean AUROC of the classes, each against the rest."""
        probabilities, truth = answers.softmax(dim=1), truth.long()
        self.confusion = class_confusion(probabilities.argmax(dim=1), truth, self.num_classes)
        recall = recalls(self.confusion)
        self.log(f"{stage}_accuracy", (self.confusion.trace() / self.confusion.sum()).float())
        self.log(f"{stage}_balanced_accuracy", recall.nanmean().float(), prog_bar=True)
        self.log(f"{stage}_auroc", aurocs(probabilities, truth).nanmean())
        names = self.class_names()
        self.log_dict({f"{stage}_recall/{name}": value.float() for name, value in zip(names, recall, strict=True)})

    def class_names(self) -> list[str]:
        """Return the names of the classes, numbers where the data does not tell."""
        return list(self.describe_data().get("classes", map(str, range(self.num_classes))))

    def table(self, metrics: Mapping[str, Tensor], stage: Stage) -> Table:
        """Return the recall of every class, and what sums it up."""
        table = Table("class", "recognised", "scans")
        for name, row in zip(self.class_names(), self.confusion, strict=True):
            recall, scans = float(metrics.get(f"{stage}_recall/{name}", math.nan)), int(row.sum())
            table.add_row(name, f"{recall:.3f}" if scans else "not counted: absent", str(scans))
        total = str(int(self.confusion.sum()))
        for key, words in (("balanced_accuracy", "mean over classes"), ("accuracy", "accuracy"), ("auroc", "AUROC")):
            value = float(metrics.get(f"{stage}_{key}", math.nan))
            table.add_row(words, f"{value:.3f}" if value == value else "not counted", total, style="bold")
        return table
