"""Convolutional block attention module (CBAM): which channels, then where.

Woo et al., CBAM: Convolutional Block Attention Module, 2018, https://arxiv.org/abs/1807.06521, equations 1 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.norms import GateNorm, GateNormName
from medseg_se.attention.precision import in_float32
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.statistics import Maxima
from medseg_se.attention.tiles import Tile, compute_type, condense, full_precision
from medseg_se.dims import conv
from medseg_se.errors import UsageError, unknown_name

Parts = Literal["both", "channel", "spatial"]
_PARTS = ("both", "channel", "spatial")


class CBAM(Recalibration):
    """Scale the channels, and then the voxels of what results.

    The channels by σ(mlp(mean(x)) + mlp(max(x))); then, with m the map so far, the voxels by σ(norm(conv([max m, mean m]))),
    maximum and mean being taken over the channels.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: The hidden layer of the mlp has ``max(1, channels // reduction)`` units.
        kernel_size: Of the convolution, odd; the authors' 7 is 343 weights a channel in 3D.
        parts: "both" gates, or "channel" or "spatial" alone.
        norm: Of the spatial gate, see `GateNorm`. "batch" is the authors' choice; the default "layer" is over the voxels of
            each scan, so that the block does the same in training and afterwards, at any batch size and for a single voxel.
    """

    label = "CBAM"

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        reduction: int = 16,
        kernel_size: int = 7,
        parts: Parts = "both",
        norm: GateNormName = "layer",
    ) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims, reduction)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UsageError(f"Expected `kernel_size` to be odd and at least 1, but got {kernel_size}.")
        if parts not in _PARTS:
            raise unknown_name("parts", parts, _PARTS)
        self.channels, self.spatial_dims, self.parts = channels, spatial_dims, parts
        if parts != "spatial":
            hidden = max(1, channels // reduction)
            self.squeeze = nn.Linear(channels, hidden)
            self.excite = nn.Linear(hidden, channels)
        norm_layer = GateNorm(norm, 1, momentum=0.01)  # a wrong name is refused for every choice of parts
        if parts != "channel":
            self.locate = conv(spatial_dims, 2, 1, kernel_size, bias=False)
            self.norm = norm_layer

    def statistic(self) -> MeanAndMaximum | None:
        """Mean and maximum of every channel."""
        return None if self.parts == "spatial" else MeanAndMaximum()

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the channel gate (N, C, 1, 1[, 1]) in (0, 1)."""
        if not statistics:
            return ()
        logits = [in_float32(self.excite, torch.relu(in_float32(self.squeeze, pooled.flatten(1)))) for pooled in statistics[:2]]
        return (torch.sigmoid(logits[0] + logits[1]).reshape(statistics[0].shape),)

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale channels and voxels."""
        return torch.mul(a, gates[0] if len(gates) == 1 else gates[0] * gates[1], out=out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the map and of the gates."""
        both = dy * a
        if len(gates) == 1:
            return dy * gates[0], both.sum_to_size(gates[0].shape)
        channel, spatial = gates
        d_spatial = (both * channel).sum(1, keepdim=True)
        return dy * (channel * spatial), both.mul_(spatial).sum_to_size(channel.shape), d_spatial

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the gates that there are."""
        return dict(zip(("channel", "spatial") if self.parts == "both" else (self.parts,), gates, strict=True))

    def gated(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return ``x`` and the gates that there are."""
        x, gates = super().gated(x)
        if self.parts == "channel":
            return x, gates
        pooled = condense(_maximum_and_mean, 2, x, *gates)
        with full_precision(x):
            return x, (*gates, torch.sigmoid(self.norm(in_float32(self.locate, pooled))))


class MeanAndMaximum(Maxima):
    """Mean, maximum, and the number of voxels that hold it, of every channel of every sample, as (N, C, 1, 1[, 1])."""

    def whole(self, a: Tensor) -> tuple[Tensor, ...]:
        """Compute all of a whole map."""
        return a.mean(tuple(range(2, a.ndim)), keepdim=True), *super().whole(a)

    def collect(self, x: Tensor, pieces: Iterator[tuple[Tile, Tensor]]) -> tuple[Tensor, ...]:
        """Add up the means of the tiles while the maxima pass over them."""
        axes = tuple(range(2, x.ndim))
        mean = x.new_zeros((*x.shape[:2], *[1] * len(axes)), dtype=compute_type(x))

        def passing() -> Iterator[tuple[Tile, Tensor]]:
            for tile, a in pieces:
                mean[tile[0]] += a.sum(axes, keepdim=True) / math.prod(x.shape[2:])
                yield tile, a

        maxima = super().collect(x, passing())
        return mean, *maxima

    def gradient(self, a: Tensor, tile: Tile, shape: torch.Size, results: tuple[Tensor, ...], grads: Any) -> Tensor:
        """Spread the gradient of the mean over all voxels, and that of the maximum over those that hold it."""
        of_mean: Tensor = grads[0][tile[0]] / math.prod(shape[2:])
        return super().gradient(a, tile, shape, results[1:], grads[1:]) + of_mean


def _maximum_and_mean(a: Tensor, *gates: Tensor) -> Tensor:
    """Return maximum and mean over the channels of the gated map, (n, 2, *spatial)."""
    for gate in gates:
        a = a * gate
    return torch.cat([a.amax(1, keepdim=True), a.mean(1, keepdim=True)], dim=1)
