"""2D and 3D from one code: a thin, typed face over MONAI's layer factories.

Sizes are given per axis or as one number for all axes; every function takes `spatial_dims` (2 or 3) first.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, cast

from monai.networks.layers.factories import Conv, Dropout
from torch import nn

from medseg_se.errors import UsageError, unknown_name

Size = int | Sequence[int]
NormName = Literal["instance", "batch", "group", "none"]
ActivationName = Literal["leaky_relu", "relu", "prelu", "gelu", "silu"]

_ACTIVATIONS: dict[str, Any] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
}


def per_axis(size: Size, spatial_dims: int, name: str = "size") -> tuple[int, ...]:
    """Return `size` as one positive number per axis.

    Raises:
        UsageError: A wrong number of axes, or something other than a whole number above 0.
    """
    try:
        sizes = tuple(map(operator.index, size)) if isinstance(size, Sequence) else (operator.index(size),) * spatial_dims
    except TypeError:
        sizes = ()
    if len(sizes) != spatial_dims or min(sizes) < 1:
        raise UsageError(f"Expected `{name}` to be a positive whole number or {spatial_dims} of them, but got {size}.")
    return sizes


def check_dims(spatial_dims: int) -> None:
    """Refuse anything but 2 and 3."""
    if spatial_dims not in (2, 3):
        raise UsageError(f"Expected `spatial_dims` to be 2 or 3, but got {spatial_dims}.")


def conv(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1, *, bias: bool = True
) -> nn.Module:
    """Return a convolution that keeps the size at stride 1; kernels are odd."""
    kernel = per_axis(kernel_size, spatial_dims, "kernel_size")
    if any(length % 2 == 0 for length in kernel):
        raise UsageError(f"Expected `kernel_size` to be odd along every axis, but got {kernel}.")
    padding = tuple(length // 2 for length in kernel)
    strides = per_axis(stride, spatial_dims, "stride")
    return cast(nn.Module, Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel, strides, padding, bias=bias))


def transposed_conv(spatial_dims: int, in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """Return a transposed convolution that enlarges each axis by `stride`, every input voxel filling its own block."""
    strides = per_axis(stride, spatial_dims, "stride")
    return cast(nn.Module, Conv[Conv.CONVTRANS, spatial_dims](in_channels, out_channels, strides, strides))


def norm(name: NormName, spatial_dims: int, channels: int) -> nn.Module:
    """Return an affine normalisation layer; "group" has groups of 8 channels, or of the next number that divides them."""
    if name == "instance":
        return (nn.InstanceNorm2d if spatial_dims == 2 else nn.InstanceNorm3d)(channels, affine=True)
    if name == "batch":
        return (nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d)(channels)
    if name == "group":
        groups = next(groups for groups in range(max(1, channels // 8), 0, -1) if channels % groups == 0)
        return nn.GroupNorm(groups, channels)
    if name == "none":
        return nn.Identity()
    raise unknown_name("norm", name, ("instance", "batch", "group", "none"))


def activation(name: ActivationName) -> nn.Module:
    """Return an activation layer."""
    if name not in _ACTIVATIONS:
        raise unknown_name("activation", name, _ACTIVATIONS)
    return cast(nn.Module, _ACTIVATIONS[name]())


def dropout(spatial_dims: int, rate: float) -> nn.Module:
    """Return a layer that drops whole channels with probability `rate`; Identity at 0."""
    if not 0 <= rate < 1:
        raise UsageError(f"Expected `dropout` to be at least 0 and below 1, but got {rate}.")
    return cast(nn.Module, Dropout[Dropout.DROPOUT, spatial_dims](rate)) if rate else nn.Identity()
