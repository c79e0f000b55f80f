"""Normalisation inside a gate, where a training batch may hold a single value per channel.

Ioffe and Szegedy, Batch Normalization, 2015, https://arxiv.org/abs/1502.03167; Ba et al., Layer Normalization, 2016,
https://arxiv.org/abs/1607.06450; Wu and He, Group Normalization, 2018, https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_se.errors import UsageError, unknown_name

GateNormName = Literal["layer", "group", "batch", "none"]

_NORMS = ("layer", "group", "batch", "none")
_EPSILON = 1e-5


class GateNorm(nn.Module):
    """Normalise (N, C) or (N, C, *spatial), then scale and shift each channel.

    A group of a single value would always become 0, so it is only scaled and shifted; a group of two becomes ±1 nearly
    always, so "none" suits layers of two or three units without space better.

    Args:
        name: "layer" is over the channels and positions of each sample; "group" the same within groups of 8 channels, or of
            the next number that divides them; "batch" is over the batch and the positions of each channel, and in evaluation
            with running averages; "none" changes nothing.
        channels: C.
        momentum: Share of the new batch in the running averages.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, name: GateNormName, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        if name not in _NORMS:
            raise unknown_name("norm", name, _NORMS)
        self.name, self.momentum = name, momentum
        groups = range(max(1, channels // 8), 0, -1) if name == "group" else (1,)
        self.groups = next(count for count in groups if channels % count == 0)
        if name != "none":
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        if name == "batch":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))
            self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, in its own type.

        Raises:
            UsageError: "batch" in training with a single value per channel.
        """
        if self.name == "none":
            return x
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if self.name == "batch":
            return self._over_batch(x, weight, bias)
        if math.prod(x.shape[1:]) == self.groups:
            shape = (-1, *[1] * (x.ndim - 2))
            return x * weight.reshape(shape) + bias.reshape(shape)
        return F.group_norm(x, self.groups, weight, bias, _EPSILON)

    def _over_batch(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            raise UsageError(
                "Expected more than one value per channel where `norm` is 'batch', but got one in training; "
                "take a larger batch or `norm` 'layer', 'group' or 'none'."
            )
        mean, variance = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)
        y = F.batch_norm(x, mean, variance, weight, bias, self.training, self.momentum, _EPSILON)
        if self.training:
            self.num_batches_tracked += 1
            if mean is not self.running_mean:
                self.running_mean.copy_(mean)
                self.running_var.copy_(variance)
        return y
