"""RegressionTask: a scan to a number, such as the age, or to several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from medseg_se.errors import UsageError
from medseg_se.metrics.whole_scan import pearson
from medseg_se.tasks.base import AttentionOptions, NetworkOptions, Score, Stage, given
from medseg_se.tasks.mixing import Mixing
from medseg_se.tasks.optimisation import Optimisation, OptimizerName
from medseg_se.tasks.schedules import Schedule
from medseg_se.tasks.starting import Start
from medseg_se.tasks.whole_scan import WholeScanTask

LOSSES: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss, "huber": F.huber_loss}


class RegressionTask(WholeScanTask):
    """Train a network that says a number, or several, of a whole scan.

    It learns the numbers in standard deviations from their mean over the training scans; both are kept in the checkpoint.
    Every argument is a name or a plain value, so a checkpoint holds tensors and plain data only.

    Args:
        in_channels: Channels of a scan; taken from the data on the command line.
        num_classes: How many numbers; taken from the data on the command line.
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
        loss: "l1", "mse" or "huber" (the square below one standard deviation, linear beyond).
        mixup: α of mixup: pairs of scans are added up by a share λ ~ Beta(α, α), and so are their losses; 0 for none.
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

    task = "regression"
    score = Score("val_error", "error/sd", "min")
    meaning = "values"
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1,
        spatial_dims: int = 3,
        network: str = "resnet18v2",
        channels: list[int] | None = None,
        dropout: float | None = None,
        attention: str | list[str] | None = None,
        attention_at: list[str] | None = None,
        attention_options: AttentionOptions | None = None,
        discretise_after: float | None = None,
        network_options: NetworkOptions | None = None,
        pretrained: str | None = None,
        loss: Literal["l1", "mse", "huber"] = "l1",
        mixup: float = 0.0,
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
            Mixing(mixup, probability=mixing_probability),
        )
        self.save_hyperparameters()
        if loss not in LOSSES:
            raise UsageError(f"Expected `loss` to be one of {', '.join(LOSSES)}, but got {loss!r}.")
        self.loss = LOSSES[loss]
        self.register_buffer("target_mean", torch.zeros(num_classes))
        self.register_buffer("target_std", torch.ones(num_classes))

    def setup(self, stage: str) -> None:
        """Take mean and standard deviation of the numbers from the training scans, where the data tell.

        Raises:
            UsageError: The data are for another task.
        """
        super().setup(stage)
        targets = self.training_targets() if stage == "fit" else None
        if targets is not None:
            self.target_mean.copy_(targets.double().mean(dim=0))
            self.target_std.copy_(targets.double().std(dim=0, correction=0))

    def forward(self, x: Tensor) -> Tensor:
        """Map scans (N, C, *spatial) to numbers (N, num_classes) in their own units."""
        return self._in_units(self.network(x).float())

    def _in_units(self, standard: Tensor) -> Tensor:
        return standard * self.target_std.to(standard.device) + self.target_mean.to(standard.device)

    def loss_of(self, answers: Tensor, target: Tensor) -> Tensor:
        """Return the loss of answers (N, num_classes) in standard deviations from the mean and numbers in their own units."""
        return self.loss(answers, (target - self.target_mean) / self.target_std)

    def judge(self, answers: Tensor, truth: Tensor, stage: Stage) -> None:
        """Log the errors of every number and its correlation with the truth."""
        predicted = self._in_units(answers)
        absolute = (predicted - truth).abs()
        # In standard deviations, for the numbers may have different units.
        self.log(f"{stage}_error", (absolute.mean(dim=0) / self.target_std.cpu()).mean(), prog_bar=True)
        found = {
            "mae": absolute.mean(dim=0),
            "rmse": absolute.square().mean(dim=0).sqrt(),
            "pearson": pearson(predicted, truth),
        }
        for key, values in found.items():
            named = zip(self.value_names(), values.float(), strict=True)
            self.log_dict({f"{stage}_{key}/{name}": value for name, value in named})

    def value_names(self) -> list[str]:
        """Return the names of the numbers, numbered where the data does not tell."""
        return list(self.describe_data().get("values", map(str, range(self.num_classes))))

    def table(self, metrics: Mapping[str, Tensor], stage: Stage) -> Table:
        """Return the errors of every number and its correlation with the truth."""
        table = Table("value", "mean absolute error", "root mean square error", "Pearson's r")
        for name in self.value_names():
            found = [metrics.get(f"{stage}_{key}/{name}", math.nan) for key in ("mae", "rmse", "pearson")]
            mae, rmse, correlation = map(float, found)
            r = f"{correlation:.3f}" if correlation == correlation else "not counted: constant"
            table.add_row(name, f"{mae:.3f}", f"{rmse:.3f}", r)
        return table

    # ---------------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add everything that inference needs, as plain data."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["medseg_se"]["targets"] = {"mean": self.target_mean.tolist(), "std": self.target_std.tolist()}
