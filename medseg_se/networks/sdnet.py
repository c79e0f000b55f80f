"""SD-Net (SkipDeconv-Net): one convolution a level, unpooling with the encoder's indices, and skip connections.

Roy et al., Error Corrective Boosting for Learning Fully Convolutional Networks with Limited Data, 2017,
https://arxiv.org/abs/1705.00938; with scSE as in Roy et al., 2018, https://arxiv.org/abs/1803.02579.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medseg_se.dims import NormName, Size, conv, dropout, norm
from medseg_se.execution import fast_layout
from medseg_se.networks.base import preset
from medseg_se.networks.blocks import he_initialised
from medseg_se.networks.unpooling import UnpoolingNetwork


class SDNet(UnpoolingNetwork):
    """SD-Net with attention at named places.

    Any input size works, also one that the poolings do not divide: windows at the far end are then smaller.

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background.
        spatial_dims: 2 or 3.
        channels: Feature channels per level, the last one being the bottleneck. The published network has the same number
            everywhere; where two levels differ, a 1×1 convolution before the unpooling leads from one to the other.
        kernel_size: A number for all levels, or one entry a level (numbers or one number per axis).
        dropout: Share of channels dropped after each block of encoder and decoder in training.
        norm: Normalisation after each activation.
        attention: Name of an attention block, or one name a level.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Roy et al., 2017, https://arxiv.org/abs/1705.00938"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (64, 64, 64, 64, 64),
        kernel_size: int | Sequence[Size] = 3,
        dropout: float = 0.0,
        norm: NormName = "batch",
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder", "bottleneck", "decoder"),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        def block(entering: int, leaving: int, kernel: Size, rate: float, after: nn.Module) -> nn.Module:
            return SDBlock(spatial_dims, entering, leaving, kernel, norm, rate, after)

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


sdnet_roy2018 = preset(
    SDNet, "Roy et al., 2018, https://arxiv.org/abs/1808.08127", channels=(64, 64, 64, 64, 64), kernel_size=7
)
"""The SD-Net of the scSE paper: 64 channels and one 7×7 convolution at each of 4 + 1 + 4 levels."""


class SDBlock(nn.Module):
    """Convolution, PReLU with one slope for all channels, normalisation, attention, dropout.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel, odd along every axis.
        norm_name: Normalisation.
        dropout_rate: Share of channels dropped in training.
        attention: The block after the normalisation (Identity when off).
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
    ) -> None:
        super().__init__()
        self.conv = he_initialised(conv(spatial_dims, in_channels, out_channels, kernel_size))
        self.act = nn.PReLU()
        self.norm = norm(norm_name, spatial_dims, out_channels)
        self.attention = attention
        self.dropout = dropout(spatial_dims, dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial)."""
        x = fast_layout(self.conv(x))
        x = self.norm(self.act(x))
        return self.dropout(self.attention(x))  # type: ignore[no-any-return]
