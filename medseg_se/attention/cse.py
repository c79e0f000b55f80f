"""Channel squeeze and excitation (cSE), the SE block.

Hu et al., Squeeze-and-Excitation Networks, 2018, https://arxiv.org/abs/1709.01507; as used for segmentation (r = 2, with
biases) by Roy et al., 2018, https://arxiv.org/abs/1803.02579, equation 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.precision import in_float32
from medseg_se.attention.recalibration import ChannelGate


class ChannelSE(ChannelGate):
    """Scale each channel by a gate computed from all channel means: ``x · σ(W₂ relu(W₁ mean(x)))``.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: The hidden layer has ``max(1, channels // reduction)`` units.
        bias: Whether both linear layers have biases.
    """

    label = "cSE"

    def __init__(self, channels: int, spatial_dims: int, reduction: int = 2, bias: bool = True) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims, reduction)
        self.channels, self.spatial_dims = channels, spatial_dims
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=bias)
        self.excite = nn.Linear(hidden, channels, bias=bias)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the gate (N, C, 1, 1[, 1]) in (0, 1) for the channel means."""
        return (torch.sigmoid(self.logit(statistics[0])),)

    def logit(self, squeezed: Tensor) -> Tensor:
        """Return ``W₂ relu(W₁ squeezed)``, of the shape (N, C, 1, 1[, 1]) of what it gets."""
        hidden = torch.relu(in_float32(self.squeeze, squeezed.flatten(1)))
        return in_float32(self.excite, hidden).reshape(squeezed.shape)
