"""DenseNet F-CNN and QuickNAT: dense blocks, unpooling with the encoder's indices, and skip connections.

Roy et al., Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks, 2018,
https://arxiv.org/abs/1803.02579; QuickNAT, Roy et al., 2019, https://arxiv.org/abs/1801.04161.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.dims import NormName, Size, conv, dropout, norm
from medseg_se.execution import fast_layout
from medseg_se.networks.base import preset
from medseg_se.networks.blocks import he_initialised
from medseg_se.networks.unpooling import UnpoolingNetwork


class DenseNet(UnpoolingNetwork):
    """DenseNet F-CNN with attention at named places.

    Any input size works, also one that the poolings do not divide: windows at the far end are then smaller.

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background.
        spatial_dims: 2 or 3.
        channels: Feature channels per level, of every convolution there, the last one being the bottleneck. The published
            networks have the same number everywhere; where two levels differ, a 1×1 convolution before the unpooling leads
            from one to the other.
        kernel_size: A number for all levels, or one entry a level (numbers or one number per axis).
        dropout: Share of channels dropped after each block of encoder and decoder in training.
        norm: Normalisation before each activation.
        conv_bias: Whether convolutions have a bias, as the published networks' have. The normalisations after it take most
            of it away again.
        attention: Name of an attention block, or one name a level.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`. By default not in the bottleneck, where the
            authors' code has none.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Roy et al., 2018, https://arxiv.org/abs/1803.02579; 2019, https://arxiv.org/abs/1801.04161"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (64, 64, 64, 64, 64),
        kernel_size: int | Sequence[Size] = 3,
        dropout: float = 0.0,
        norm: NormName = "batch",
        conv_bias: bool = False,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder", "decoder"),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        def block(entering: int, leaving: int, kernel: Size, rate: float, after: nn.Module) -> nn.Module:
            return DenseBlock(spatial_dims, entering, leaving, kernel, norm, rate, after, conv_bias)

        super().__init__(
            in_channels,
            num_classes,
            spatial_dims,
            block,
            channels,
            kernel_size,
            dropout,
            norm,
            attention,
            attention_at,
            attention_options,
        )


_AS_PUBLISHED: dict[str, Any] = {"channels": (64,) * 5, "kernel_size": 5, "dropout": 0.2, "conv_bias": True}

densenet_roy2018 = preset(DenseNet, "Roy et al., 2018, https://arxiv.org/abs/1808.08127", **_AS_PUBLISHED)
"""The DenseNet of the scSE paper: 64 channels and 5×5 convolutions at each of 4 + 1 + 4 levels."""

quicknat = preset(DenseNet, "Roy et al., 2019, https://arxiv.org/abs/1801.04161", **_AS_PUBLISHED)
"""QuickNAT as its authors' PyTorch code builds it by default: that DenseNet, without attention."""


class DenseBlock(nn.Module):
    """Three times normalisation, PReLU and convolution, each on all that came before; then attention and dropout.

    Huang et al., Densely Connected Convolutional Networks, 2017, https://arxiv.org/abs/1608.06993. The last convolution is
    1×1, and the three PReLUs have one slope for all channels in common.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of each convolution's output, and so of the block's.
        kernel_size: Kernel of the first two convolutions, odd along every axis.
        norm_name: Normalisation.
        dropout_rate: Share of channels dropped in training.
        attention: The block after the last convolution (Identity when off).
        bias: Whether convolutions have a bias; without normalisation they always have.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        norm_name: NormName,
        dropout_rate: float,
        attention: nn.Module,
        bias: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels + convs * out_channels for convs in range(3)]
        self.norms = nn.ModuleList(norm(norm_name, spatial_dims, width) for width in widths)
        self.act = nn.PReLU()
        self.convs = nn.ModuleList(
            he_initialised(conv(spatial_dims, width, out_channels, kernel, bias=bias or norm_name == "none"))
            for width, kernel in zip(widths, (kernel_size, kernel_size, 1), strict=True)
        )
        self.attention = attention
        self.dropout = dropout(spatial_dims, dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial)."""
        for step in range(2):
            x = torch.cat([x, self._convolved(x, step)], dim=1)
            x = fast_layout(x)  # which it loses where one channel, a scan's, is joined
        x = self._convolved(x, 2)
        return self.dropout(self.attention(x))  # type: ignore[no-any-return]

    def _convolved(self, x: Tensor, step: int) -> Tensor:
        return fast_layout(self.convs[step](self.act(self.norms[step](x))))
