"""Squeeze and excitation (SE) as for classification: r = 16 and no biases.

Hu et al., Squeeze-and-Excitation Networks, 2018, https://arxiv.org/abs/1709.01507, equations 2 to 4; the squeeze and the
gate are varied in section 6.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.statistics import Averages, Maxima
from medseg_se.errors import unknown_name

Pooling = Literal["mean", "max"]
GateName = Literal["sigmoid", "tanh", "relu"]

_POOLINGS = ("mean", "max")
_GATES = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


class SqueezeExcitation(ChannelSE):
    """Scale each channel by a gate computed from all squeezed channels: ``x · σ(W₂ relu(W₁ squeeze(x)))``.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: The hidden layer has ``max(1, channels // reduction)`` units.
        pooling: What a channel is squeezed to: its "mean" (the authors' choice) or its "max".
        gate: The last function: "sigmoid" (the authors' choice), "tanh" or "relu"; the latter bounds nothing, so that
            float16 may overflow.
        bias: Whether both linear layers have biases.
        residual: Add the input, ``x · s + x``, so that a channel is never shut off.
    """

    label = "SE"

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        reduction: int = 16,
        pooling: Pooling = "mean",
        gate: GateName = "sigmoid",
        bias: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__(channels, spatial_dims, reduction, bias)
        if pooling not in _POOLINGS:
            raise unknown_name("pooling", pooling, _POOLINGS)
        if gate not in _GATES:
            raise unknown_name("gate", gate, _GATES)
        self.pooling, self.gate, self.residual = pooling, gate, residual

    def statistic(self) -> Averages | Maxima:
        """Mean or maximum of every channel."""
        return Maxima() if self.pooling == "max" else Averages((1,) * self.spatial_dims)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the gate (N, C, 1, 1[, 1]) for the squeezed channels."""
        return (_GATES[self.gate](self.logit(statistics[0])),)

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale the channels."""
        return super().apply_gates(a, self._factor(gates[0]), out=out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the map and of the gate."""
        return super().derivative(dy, a, self._factor(gates[0]))

    def _factor(self, gate: Tensor) -> Tensor:
        return gate + 1 if self.residual else gate
