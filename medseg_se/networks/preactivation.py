"""Blocks in which normalisation and activation come before the convolution.

He et al., 2016, https://arxiv.org/abs/1603.05027, figure 4e.
"""

from __future__ import annotations

from torch import Tensor, nn

from medseg_se.dims import Size, activation, conv, norm
from medseg_se.execution import fast_layout
from medseg_se.networks.blocks import ConvStyle, he_initialised


class PreActivation(nn.Module):
    """Normalisation, activation: (N, C, *spatial) to the same shape.

    Args:
        style: Normalisation and activation.
        channels: Channels of the map.
        before_act: Attention between the two (Identity when off).
    """

    def __init__(self, style: ConvStyle, channels: int, before_act: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm(style.norm_name, style.spatial_dims, channels)
        self.before_act = before_act or nn.Identity()
        self.act = activation(style.act, inplace=style.norm_name != "none")  # the map itself is needed beside this path, too

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated map."""
        return self.act(self.before_act(self.norm(x)))  # type: ignore[no-any-return]


class PreActivationUnit(nn.Module):
    """Normalisation, activation, convolution: (N, C, *spatial) to (N, out, *spatial / stride), rounded up."""

    def __init__(self, style: ConvStyle, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1) -> None:
        super().__init__()
        self.pre = PreActivation(style, in_channels)
        self.conv = style_conv(style, in_channels, out_channels, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Run the unit."""
        return fast_layout(self.conv(self.pre(x)))


def style_conv(style: ConvStyle, in_channels: int, out_channels: int, kernel_size: Size, stride: Size) -> nn.Module:
    """Return a convolution; only without a normalisation after it does it have a bias."""
    bias = style.norm_name == "none"
    return he_initialised(conv(style.spatial_dims, in_channels, out_channels, kernel_size, stride, bias=bias))
