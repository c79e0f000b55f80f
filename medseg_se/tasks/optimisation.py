"""How weights are optimised: the optimiser, its schedule over the run, and the average of the weights, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from medseg_se.errors import UsageError
from medseg_se.tasks.schedules import Schedule, learning_rate_factor

OptimizerName = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Optimisation:
    """How weights are optimised.

    Attributes:
        optimizer: "adamw" or "sgd".
        lr: Highest learning rate.
        weight_decay: Weight decay.
        schedule: "cosine", "poly", "steps" or "constant"; it ends with the run, be that `max_epochs` or `max_time`.
        warmup: Share of the run during which the learning rate rises.
        discretise_after: Share of the run after which learnt choices of attention become final; never if None.
        momentum: Nesterov momentum of "sgd".
        ema: Decay of the running average of the weights; 0 for none.

    Raises:
        UsageError: A value that makes no sense.
    """

    optimizer: OptimizerName
    lr: float
    weight_decay: float
    schedule: Schedule
    warmup: float
    discretise_after: float | None
    momentum: float = 0.99
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise UsageError(f"Expected `optimizer` to be adamw or sgd, but got {self.optimizer!r}.")
        if self.lr <= 0:
            raise UsageError(f"Expected `lr` to be positive, but got {self.lr}.")
        if self.weight_decay < 0:
            raise UsageError(f"Expected `weight_decay` to be at least 0, but got {self.weight_decay}.")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"Expected `warmup` to be at least 0 and below 1, but got {self.warmup}.")
        if self.discretise_after is not None and not 0 < self.discretise_after < 1:
            raise UsageError(f"Expected `discretise_after` to lie between 0 and 1, but got {self.discretise_after}.")
        for name, value in (("momentum", self.momentum), ("ema", self.ema)):
            if not 0 <= value < 1:
                raise UsageError(f"Expected `{name}` to be at least 0 and below 1, but got {value}.")
        self.factor(0.0)

    @property
    def follows_the_run(self) -> bool:
        """Whether anything depends on the share of the run that is over."""
        return self.schedule != "constant" or self.warmup > 0 or self.discretise_after is not None

    def factor(self, done: float) -> float:
        """Return the factor on the learning rate when the share `done` of the run is over."""
        return learning_rate_factor(self.schedule, done, self.warmup)

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimiser of these groups of parameters, some of which have a learning rate of their own."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, self.lr, weight_decay=self.weight_decay)
        nesterov = self.momentum > 0
        return torch.optim.SGD(groups, self.lr, self.momentum, nesterov=nesterov, weight_decay=self.weight_decay)
