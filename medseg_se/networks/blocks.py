"""Building blocks of the networks, and the one place that decides where an attention block sits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from medseg_se.attention import attention_names, build_attention
from medseg_se.dims import ActivationName, NormName, Size, activation, conv, dropout, norm, per_axis
from medseg_se.errors import UsageError, unknown_name
from medseg_se.networks.recompute import recomputed

PLACES = ("encoder", "bottleneck", "decoder", "skip", "residual")


@dataclass(frozen=True)
class AttentionPlan:
    """Which attention block goes where in a network.

    Attributes:
        names: One block name per level, from the full resolution down to the bottleneck; hybrids as `build_attention` reads
            them.
        places: Some of `PLACES`: after encoder blocks, after the bottleneck block, after decoder blocks, on the skip
            connections, or before every residual sum. At the last a channel gate wants batch or group normalisation: after
            instance normalisation the mean of a channel is the same whatever the scan.
        options: Options for every block, such as `reduction`; or for one kind of block under its name, such as
            ``{"eca": {"kernel_size": 5}}``.
    """

    names: tuple[str, ...]
    places: tuple[str, ...] = ("encoder", "bottleneck", "decoder")
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls, attention: str | Sequence[str], places: Sequence[str], levels: int, options: Mapping[str, Any] | None
    ) -> AttentionPlan:
        """Spread one name over all `levels`, or check that there is one name a level.

        Raises:
            UsageError: Unknown name or place, or a wrong number of names.
        """
        names = (attention,) * levels if isinstance(attention, str) else tuple(attention)
        if len(names) != levels:
            raise UsageError(f"Expected `attention` to be one name or {levels} of them, one a level, but got {len(names)}.")
        known = {block for name in names for block in attention_names(name)}
        for option, value in (options or {}).items():
            if isinstance(value, Mapping) and option not in known and set(names) != {"adaptive"}:
                raise unknown_name("block in `attention_options`", option, known)
        for place in places:
            if place not in PLACES:
                raise unknown_name("place in `attention_at`", place, PLACES)
        return cls(names, tuple(places), dict(options or {}))

    def build(self, place: str, level: int, channels: int, spatial_dims: int) -> nn.Module:
        """Return the block for this place and level; Identity where there is none."""
        name = self.names[level]
        if place not in self.places or name == "none":
            return nn.Identity()
        known = attention_names(name)
        alone = set(self.names) == {"adaptive"}  # whose blocks' options need no name around them
        own = {key: value for key, value in self.options.items() if alone or key in known or not isinstance(value, Mapping)}
        return build_attention(name, channels, spatial_dims, **own)


def he_initialised(layer: nn.Module) -> nn.Module:
    """Return a convolution with He initialisation for leaky ReLU and zero bias, as nnU-Net does; gates keep torch's own."""
    nn.init.kaiming_normal_(layer.get_parameter("weight"), a=0.01)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.get_parameter("bias"))
    return layer


_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
"""Normalisations that give the same values when they run again."""


class ConvUnit(nn.Sequential):
    """Convolution, normalisation, dropout, activation: (N, C, *spatial) to (N, out, *spatial / stride)."""

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
    ) -> None:
        super().__init__()
        layer = conv(spatial_dims, in_channels, out_channels, kernel_size, stride, bias=norm_name == "none")
        self.conv = he_initialised(layer)
        self.norm = norm(norm_name, spatial_dims, out_channels)
        self.dropout = dropout(spatial_dims, dropout_rate)
        self.act = activation(act) if act else nn.Identity()

    def with_attention(self, x: Tensor, attention: nn.Module) -> Tensor:
        """Run the unit and the block after it; training keeps no map more for the block, see `recomputed`."""
        can_run_again = isinstance(self.norm, _NORMS) and isinstance(self.dropout, nn.Identity)
        watched = any(part._forward_hooks or part._forward_pre_hooks for part in self.modules())
        if watched or not can_run_again:
            return attention(self(x))  # type: ignore[no-any-return]
        again = partial(self._finish_again, training=self.norm.training)
        return recomputed(self._finish, attention, self.conv(x), again=again)

    def _finish(self, x: Tensor) -> Tensor:
        return self.act(self.dropout(self.norm(x)))  # type: ignore[no-any-return]

    def _finish_again(self, x: Tensor, training: bool) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):  # whose running statistics stay as they are
            running = (None, None) if training else (norm.running_mean, norm.running_var)
            return self.act(F.batch_norm(x, *running, norm.weight, norm.bias, None in running, 0.0, norm.eps))  # type: ignore[no-any-return]
        return self.act(norm(x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ConvStyle:
    """What all convolutions of a network share."""

    spatial_dims: int
    norm_name: NormName = "instance"
    act: ActivationName = "leaky_relu"
    dropout_rate: float = 0.0


class ConvBlock(nn.Module):
    """Several convolution units and a slot for attention after them.

    Args:
        style: What the convolutions share.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel of every convolution.
        stride: Stride of the first convolution.
        convs: Number of convolution units.
        attention: The block after the last unit (Identity when off).
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
    ) -> None:
        super().__init__()
        self.units = _units(style, in_channels, out_channels, kernel_size, stride, convs, last_act=style.act)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial / stride)."""
        if isinstance(self.attention, nn.Identity):
            return self.units(x)  # type: ignore[no-any-return]
        *units, last = self.units
        for unit in units:
            x = unit(x)
        return last.with_attention(x, self.attention)  # type: ignore[no-any-return, operator]


class ResidualBlock(nn.Module):
    """Convolution units around an identity path (He et al., 2016, https://arxiv.org/abs/1512.03385, figure 2).

    Takes the arguments of `ConvBlock`, and `before_sum`: the attention on the residual before it is added.
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
        before_sum: nn.Module,
    ) -> None:
        super().__init__()
        dims, norm_name = style.spatial_dims, style.norm_name
        self.units = _units(style, in_channels, out_channels, kernel_size, stride, convs, last_act=None)
        self.before_sum = before_sum
        changes = in_channels != out_channels or max(per_axis(stride, dims, "stride")) > 1
        self.shortcut: nn.Module = (
            ConvUnit(dims, in_channels, out_channels, 1, stride, norm_name, None) if changes else nn.Identity()
        )
        self.act = activation(style.act)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial / stride)."""
        residual = self.before_sum(self.units(x))
        x = self.act(self.shortcut(x) + residual)
        return self.attention(x)  # type: ignore[no-any-return]


def _units(
    style: ConvStyle,
    in_channels: int,
    out_channels: int,
    kernel_size: Size,
    stride: Size,
    convs: int,
    last_act: ActivationName | None,
) -> nn.Sequential:
    """Return the convolution units of a block; the first one changes the channels and takes the stride."""
    if convs < 1:
        raise UsageError(f"Expected `convs` to be at least 1, but got {convs}.")
    units = []
    for place in range(convs):
        entering, step = (in_channels, stride) if place == 0 else (out_channels, 1)
        act = last_act if place == convs - 1 else style.act
        units.append(
            ConvUnit(style.spatial_dims, entering, out_channels, kernel_size, step, style.norm_name, act, style.dropout_rate)
        )
    return nn.Sequential(*units)
