"""Efficient channel attention (ECA).

Wang et al., ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, 2020,
https://arxiv.org/abs/1910.03151, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.precision import in_float32
from medseg_se.attention.recalibration import ChannelGate
from medseg_se.errors import UsageError


class EfficientChannelAttention(ChannelGate):
    """Scale each channel by a gate computed from the means of its k neighbours: ``x · σ(conv₁d(mean(x)))``.

    Beyond the first and the last channel the means count as 0, so that there may be fewer channels than k.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        kernel_size: k, an odd number; None takes that of `adaptive_kernel_size`.
        gamma: γ in that rule.
        bias_term: b in that rule.
    """

    label = "ECA"

    def __init__(
        self, channels: int, spatial_dims: int, kernel_size: int | None = None, gamma: int = 2, bias_term: int = 1
    ) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims)
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise UsageError(f"Expected `kernel_size` to be an odd number above 0 or None, but got {kernel_size}.")
        self.channels, self.spatial_dims = channels, spatial_dims
        self.kernel_size = kernel_size or adaptive_kernel_size(channels, gamma, bias_term)
        self.conv = nn.Linear(self.kernel_size, 1, bias=False)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the gate (N, C, 1, 1[, 1]) in (0, 1) for the channel means."""
        (means,) = statistics
        beyond = self.kernel_size // 2
        neighbours = F.pad(means.flatten(1), (beyond, beyond)).unfold(1, self.kernel_size, 1)  # (N, C, k)
        return (torch.sigmoid(in_float32(self.conv, neighbours)).reshape(means.shape),)


def adaptive_kernel_size(channels: int, gamma: int = 2, bias_term: int = 1) -> int:
    """Return k for a number of channels: t = ⌊(log₂C + b)/γ⌋, or t + 1 where t is even.

    With γ = 2 and b = 1 that is 1 below 8 channels, 3 below 128, 5 below 2048 and 7 below 32768. It is computed with whole
    numbers, so that no rounded logarithm decides at the powers of two.

    Raises:
        UsageError: γ below 1 or b below 0.
    """
    if gamma < 1:
        raise UsageError(f"Expected `gamma` to be a whole number above 0, but got {gamma}.")
    if bias_term < 0:
        raise UsageError(f"Expected `bias_term` to be a whole number of at least 0, but got {bias_term}.")
    return (channels.bit_length() - 1 + bias_term) // gamma | 1
