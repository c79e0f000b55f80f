"""Bottleneck attention module (BAM): channels and places are judged side by side.

Park et al., BAM: Bottleneck Attention Module, 2018, https://arxiv.org/abs/1807.06514, equations 1 to 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.norms import GateNorm, GateNormName
from medseg_se.attention.precision import flat_parameters, in_float32, mixed_channels
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.tiles import condense, full_precision
from medseg_se.errors import UsageError


class BAM(Recalibration):
    """Amplify each voxel of each channel by up to 2: ``x · (1 + σ(channel(x) + spatial(x)))``.

    channel(x) = norm(W₂ relu(W₁ mean(x) + b₁) + b₂), one value per channel, and spatial(x) one value per voxel: 1×1
    convolution to the hidden channels, two dilated 3×3 convolutions, each of the three with norm and relu, then norm(1×1
    convolution to one channel). This follows the paper; the published code multiplies the branches, has a norm on the hidden
    units of the channel branch (where "layer" would leave two units nothing but their signs), and none at the ends.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: Both branches have ``max(1, channels // reduction)`` hidden channels.
        dilation: Of the 3×3 convolutions.
        norm: See `GateNorm`. "batch" is the authors' choice and cannot train on one scan at a time; "layer" is over the
            channels, and the voxels in the spatial branch, of each scan.
    """

    label = "BAM"

    def __init__(
        self, channels: int, spatial_dims: int, reduction: int = 16, dilation: int = 4, norm: GateNormName = "layer"
    ) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims, reduction)
        if dilation < 1:
            raise UsageError(f"Expected `dilation` to be at least 1, but got {dilation}.")
        self.channels, self.spatial_dims = channels, spatial_dims
        hidden = max(1, channels // reduction)
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.channel_norm = GateNorm(norm, channels)
        self.reduce = convolution(channels, hidden, 1)
        self.dilated = nn.ModuleList(convolution(hidden, hidden, 3, padding=dilation, dilation=dilation) for _ in range(2))
        self.norms = nn.ModuleList(GateNorm(norm, hidden) for _ in range(3))
        self.locate = convolution(hidden, 1, 1, bias=norm == "none")  # the norm of one channel takes a bias away again
        self.spatial_norm = GateNorm(norm, 1)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of the channels (N, C, 1, 1[, 1])."""
        (means,) = statistics
        hidden = torch.relu(in_float32(self.squeeze, means.flatten(1)))
        return (self.channel_norm(in_float32(self.excite, hidden)).reshape(means.shape),)

    def gate(self, channel: Tensor, spatial: Tensor) -> Tensor:
        """Return the gate (N, C, *spatial) in (0, 1)."""
        return (channel + spatial).sigmoid_()

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Amplify the voxels."""
        return torch.addcmul(a, a, self.gate(*gates), out=out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the map and of both logits."""
        gate = self.gate(*gates)
        d_logit = torch.ops.aten.sigmoid_backward(dy * a, gate)
        return torch.addcmul(dy, dy, gate), *(d_logit.sum_to_size(logits.shape) for logits in gates)

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the gate of every voxel and channel, and what each branch alone would make of its logits."""
        channel, spatial = gates
        return {"voxel": self.gate(channel, spatial), "channel": channel.sigmoid(), "spatial": spatial.sigmoid()}

    def gated(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return ``x`` and the logits of both gates."""
        x, (channel,) = super().gated(x)
        weight, bias = flat_parameters(self.reduce)
        hidden = condense(_project, len(weight), x, weight, bias)
        with full_precision(x):
            first, *others = self.norms
            hidden = torch.relu(first(hidden))
            for layer, norm in zip(self.dilated, others, strict=True):
                hidden = torch.relu(norm(in_float32(layer, hidden)))
            return x, (channel, self.spatial_norm(in_float32(self.locate, hidden)))


def _project(a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the 1×1 convolution of (n, C, *spatial) with weights (hidden, C) and biases (hidden)."""
    return mixed_channels(weight, a) + bias.reshape(-1, *[1] * (a.ndim - 2))
