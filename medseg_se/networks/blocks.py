"""Building blocks of the networks, with slots for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, Size, activation, average_pool, conv, dropout, norm, per_axis
from medseg_se.errors import UsageError
from medseg_se.execution import fast_layout
from medseg_se.networks.recompute import REPEATABLE, is_watched, normalised_again, recomputed


def he_initialised(layer: nn.Module) -> nn.Module:
    """Return a convolution with He initialisation for leaky ReLU and zero bias, as nnU-Net does; gates keep torch's own."""
    nn.init.kaiming_normal_(layer.get_parameter("weight"), a=0.01)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.get_parameter("bias"))
    return layer


class ConvUnit(nn.Sequential):
    """Convolution, normalisation, dropout, activation: (N, C, *spatial) to (N, out, *spatial / stride), rounded up.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel, odd along every axis.
        stride: Stride along every axis.
        norm_name: Normalisation.
        act: Activation; none if not given.
        dropout_rate: Share of channels dropped in training.
        bias: Whether the convolution has a bias. Before a normalisation it changes nothing; some published networks have it.
        before_act: Attention between normalisation and activation (Identity when off).
        groups: Into how many groups the channels fall that are convolved apart.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        norm_name: NormName = "instance",
        act: ActivationName | None = "leaky_relu",
        dropout_rate: float = 0.0,
        bias: bool = False,
        before_act: nn.Module | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        with_bias = bias or norm_name == "none"
        layer = conv(spatial_dims, in_channels, out_channels, kernel_size, stride, bias=with_bias, groups=groups)
        self.conv = he_initialised(layer)
        self.norm = norm(norm_name, spatial_dims, out_channels)
        self.dropout = dropout(spatial_dims, dropout_rate)
        self.before_act = before_act or nn.Identity()
        self.act = activation(act) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the unit."""
        return self._finish(fast_layout(self.conv(x)))

    def with_attention(self, x: Tensor, attention: nn.Module) -> Tensor:
        """Run the unit and the block after it; training keeps no map more for the block, see `recomputed`."""
        if isinstance(attention, nn.Identity):
            return self(x)  # type: ignore[no-any-return]
        between = (self.dropout, self.before_act)
        can_run_again = isinstance(self.norm, REPEATABLE) and all(isinstance(part, nn.Identity) for part in between)
        if not can_run_again or is_watched(self):
            return attention(self(x))  # type: ignore[no-any-return]
        again = partial(self._finish_again, training=self.norm.training)
        return recomputed(self._finish, attention, fast_layout(self.conv(x)), again=again)

    def _finish(self, x: Tensor) -> Tensor:
        return self.act(self.before_act(self.dropout(self.norm(x))))  # type: ignore[no-any-return]

    def _finish_again(self, x: Tensor, training: bool) -> Tensor:
        return self.act(normalised_again(self.norm, x, training))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ConvStyle:
    """What all convolutions of a network share."""

    spatial_dims: int
    norm_name: NormName = "instance"
    act: ActivationName = "leaky_relu"
    dropout_rate: float = 0.0
    bias: bool = False

    def unit(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        act: bool = True,
        before_act: nn.Module | None = None,
        groups: int = 1,
    ) -> ConvUnit:
        """Return a convolution unit in this style, with or without the activation."""
        return ConvUnit(
            self.spatial_dims,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            self.norm_name,
            self.act if act else None,
            self.dropout_rate,
            self.bias,
            before_act,
            groups,
        )


class ConvBlock(nn.Module):
    """Several convolution units and slots for attention.

    Args:
        style: What the convolutions share.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel of every convolution.
        stride: Stride of the first convolution.
        convs: Number of convolution units.
        attention: The block after the last unit (Identity when off).
        before_act: The block before the activation of the last unit (Identity when off).
    """

    def __init__(
        self,
        style: ConvStyle,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        convs: int,
        attention: nn.Module,
        before_act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.units = _units(style, in_channels, out_channels, kernel_size, stride, convs, True, before_act)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial / stride)."""
        *units, last = self.units
        for unit in units:
            x = unit(x)
        return last.with_attention(x, self.attention)  # type: ignore[no-any-return, operator]


class ResidualBlock(nn.Module):
    """Convolution units around an identity path (He et al., 2016, https://arxiv.org/abs/1512.03385, figure 2).

    Where the stride is above 1 the identity path takes means, where the channels change a 1×1 convolution: the ResNet-D of
    He et al., 2019, https://arxiv.org/abs/1812.01187, figure 2c.

    Args:
        style: What the convolutions share.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel of every convolution.
        stride: Stride of the first convolution.
        convs: Number of convolution units.
        before_sum: Attention on the residual before it is added (Identity when off).
        before_act: Attention on the sum, before its activation.
        after_sum: Attention after the activation.
    """

    def __init__(
        self,
        style: ConvStyle,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        convs: int,
        before_sum: nn.Module | None = None,
        before_act: nn.Module | None = None,
        after_sum: nn.Module | None = None,
    ) -> None:
        super().__init__()
        dims = style.spatial_dims
        self.units = _units(style, in_channels, out_channels, kernel_size, stride, convs, False, None)
        self.before_sum = before_sum or nn.Identity()
        shrinks = max(per_axis(stride, dims, "stride")) > 1
        self.shortcut = nn.Sequential()
        if shrinks:
            self.shortcut.add_module("pool", average_pool(dims, stride))
        if in_channels != out_channels:
            unit = ConvUnit(dims, in_channels, out_channels, 1, 1, style.norm_name, None)
            self.shortcut.add_module("unit", unit)
        self.before_act = before_act or nn.Identity()
        self.act = activation(style.act)
        self.after_sum = after_sum or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial / stride)."""
        residual = self.before_sum(self.units(x))
        x = self.act(self.before_act(self.shortcut(x) + residual))
        return self.after_sum(x)  # type: ignore[no-any-return]


class ResidualStage(nn.Module):
    """Residual blocks one after the other, and a slot for attention after the last."""

    def __init__(self, blocks: Sequence[nn.Module], attention: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial / stride)."""
        return self.attention(self.blocks(x))  # type: ignore[no-any-return]


def _units(
    style: ConvStyle,
    in_channels: int,
    out_channels: int,
    kernel_size: Size,
    stride: Size,
    convs: int,
    last_act: bool,
    before_act: nn.Module | None,
) -> nn.Sequential:
    """Return the convolution units of a block; the first one changes the channels and takes the stride."""
    if convs < 1:
        raise UsageError(f"Expected `convs` to be at least 1, but got {convs}.")
    units = []
    for place in range(convs):
        entering, step = (in_channels, stride) if place == 0 else (out_channels, 1)
        last = place == convs - 1
        units.append(style.unit(entering, out_channels, kernel_size, step, last_act or not last, before_act if last else None))
    return nn.Sequential(*units)
