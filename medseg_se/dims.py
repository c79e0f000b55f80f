"""2D and 3D from one code: a thin, typed face over PyTorch's layers.

Sizes are given per axis or as one number for all axes; every function takes `spatial_dims` (2 or 3) first.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_se.errors import UsageError, unknown_name
from medseg_se.execution import is_recorded

Size = int | Sequence[int]
NormName = Literal["instance", "batch", "group", "none"]
ActivationName = Literal["leaky_relu", "relu", "relu6", "prelu", "gelu", "silu"]

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_ACTIVATIONS: dict[str, Any] = {
    "leaky_relu": lambda inplace: nn.LeakyReLU(0.01, inplace),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "prelu": lambda inplace: nn.PReLU(),
    "gelu": lambda inplace: nn.GELU(),
    "silu": nn.SiLU,
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
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    *,
    bias: bool = True,
    groups: int = 1,
) -> nn.Module:
    """Return a convolution that keeps the size at stride 1, and rounds it up elsewhere; kernels are odd."""
    kernel = per_axis(kernel_size, spatial_dims, "kernel_size")
    if any(length % 2 == 0 for length in kernel):
        raise UsageError(f"Expected `kernel_size` to be odd along every axis, but got {kernel}.")
    padding = tuple(length // 2 for length in kernel)
    strides = per_axis(stride, spatial_dims, "stride")
    layer: Any = nn.Conv2d if spatial_dims == 2 else QuickConv3d
    return cast(nn.Module, layer(in_channels, out_channels, kernel, strides, padding, groups=groups, bias=bias))


def transposed_conv(spatial_dims: int, in_channels: int, out_channels: int, stride: Size, *, bias: bool = True) -> nn.Module:
    """Return a transposed convolution that enlarges each axis by `stride`, every input voxel filling its own block."""
    strides = per_axis(stride, spatial_dims, "stride")
    layer: Any = _TRANSPOSED[spatial_dims]
    return cast(nn.Module, layer(in_channels, out_channels, strides, strides, bias=bias))


def overlapping_transposed_conv(spatial_dims: int, in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """Return a transposed convolution with kernels of 2 · stride - 1, hence 3 at stride 2, whose blocks overlap.

    Called with an `output_size`, it returns exactly that: any size that steps of `stride`, rounded up, shrink to its input's.
    """
    strides = per_axis(stride, spatial_dims, "stride")
    kernel, padding = tuple(2 * step - 1 for step in strides), tuple(step - 1 for step in strides)
    layer: Any = _TRANSPOSED[spatial_dims]
    return cast(nn.Module, layer(in_channels, out_channels, kernel, strides, padding))


def convolved(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """Return the convolution of a map (N, C, *spatial) with kernels (out, C / groups, *kernel), without padding."""
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, groups=groups)


def resized(x: Tensor, shape: Sequence[int], mode: Literal["linear", "nearest"] = "linear") -> Tensor:
    """Interpolate a map (N, C, *spatial) to another spatial `shape`, of the same extent in space."""
    if x.shape[2:] == torch.Size(shape):
        return x
    if mode == "linear":
        return F.interpolate(x, size=tuple(shape), mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=False)
    return F.interpolate(x, size=tuple(shape), mode="nearest")


def max_pool(spatial_dims: int, stride: Size, kernel_size: Size | None = None) -> nn.Module:
    """Return a layer of the largest values of blocks of `stride`, where blocks may reach over the edge.

    With an odd `kernel_size` the blocks overlap and are centred as those of a convolution.
    """
    strides = per_axis(stride, spatial_dims, "stride")
    layer: Any = nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d
    if kernel_size is None:
        return cast(nn.Module, layer(strides, strides, ceil_mode=True))
    kernel = per_axis(kernel_size, spatial_dims, "kernel_size")
    return cast(nn.Module, layer(kernel, strides, tuple(length // 2 for length in kernel)))


def average_pool(spatial_dims: int, stride: Size) -> nn.Module:
    """Return a layer of means over blocks of `stride`; blocks that reach over the edge are means of what is there."""
    strides = per_axis(stride, spatial_dims, "stride")
    layer: Any = nn.AvgPool2d if spatial_dims == 2 else AveragePool3d
    return cast(nn.Module, layer(strides, strides, ceil_mode=True, count_include_pad=False))


class QuickConv3d(nn.Conv3d):
    """A convolution of (N, C, D, H, W) that takes the quick path for single small maps on CPUs, too, and a right one always.

    PyTorch sends float32 maps of one sample with N·C·D·H up to 20,480 to a loop that is up to thirty times slower than oneDNN,
    which is there for all others (measured in `benchmarks/networks.py`). And its gradients of channels-last kernels in bfloat16
    read memory that was never written where there are few channels (PyTorch 2.13, oneDNN), so these learn in the ordinary
    layout; and in either layout so do those of kernels that are deeper than the map (3 on 2), which learn in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        if self._learns_in_bfloat16(input) and input.shape[2] < self.kernel_size[0]:
            with torch.autocast("cpu", enabled=False):
                bias = None if self.bias is None else self.bias.float()
                small: Tensor = self._conv_forward(input.float().contiguous(), self.weight.float().contiguous(), bias)
            return small.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype)
        if self._learns_in_bfloat16(input) and not (input.is_contiguous() and self.weight.is_contiguous()):
            convolved: Tensor = self._conv_forward(input.contiguous(), self.weight.contiguous(), self.bias)
            return convolved
        if (
            len(input) != 1
            or input.device.type != "cpu"
            or input.dtype != torch.float32
            or torch.is_grad_enabled()  # its gradient would take the slow path
            or torch.is_autocast_enabled("cpu")
            or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            or is_recorded(input)
        ):
            return super().forward(input)
        padding = cast("tuple[int, ...]", self.padding)
        return torch.mkldnn_convolution(input, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)

    def _learns_in_bfloat16(self, input: Tensor) -> bool:
        """Tell whether gradients in bfloat16 are wanted on a CPU."""
        return (
            torch.is_grad_enabled()
            and input.device.type == "cpu"
            and (input.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))
            and not is_recorded(input)
        )


class AveragePool3d(nn.AvgPool3d):
    """Means over blocks of (N, C, D, H, W), where PyTorch refuses to: in half precision on CPUs, and along short axes."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the means, computed in float32 at least."""
        lengths = cast("tuple[int, ...]", self.kernel_size)
        kernel = [min(length, size) for length, size in zip(lengths, input.shape[2:], strict=True)]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        return F.avg_pool3d(x, kernel, self.stride, 0, self.ceil_mode, self.count_include_pad).to(input.dtype)


class _InAnyLayout(nn.modules.instancenorm._InstanceNorm):
    """Instance normalisation that leaves a channels-last map in its layout.

    PyTorch's own copies such a map to the other layout, and every convolution after it copies it back: a tile through a 3D
    U-Net takes half as long again (measured in `benchmarks/networks.py`). Its batch normalisation does not, and over one
    sample the two are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each sample of (N, C, *spatial)."""
        if input.is_contiguous() or input.device.type != "cpu" or self.track_running_stats or is_recorded(input):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        samples = [F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps) for x in torch.split(input, 1)]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


class InstanceNorm2d(_InAnyLayout, nn.InstanceNorm2d):
    """For maps (N, C, H, W)."""


class InstanceNorm3d(_InAnyLayout, nn.InstanceNorm3d):
    """For maps (N, C, D, H, W)."""


def norm(name: NormName, spatial_dims: int, channels: int) -> nn.Module:
    """Return an affine normalisation layer; "group" has groups of 8 channels, or of the next number that divides them."""
    if name == "instance":
        return (InstanceNorm2d if spatial_dims == 2 else InstanceNorm3d)(channels, affine=True)
    if name == "batch":
        return (nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d)(channels)
    if name == "group":
        groups = next(groups for groups in range(max(1, channels // 8), 0, -1) if channels % groups == 0)
        return nn.GroupNorm(groups, channels)
    if name == "none":
        return nn.Identity()
    raise unknown_name("norm", name, ("instance", "batch", "group", "none"))


def activation(name: ActivationName, inplace: bool = True) -> nn.Module:
    """Return an activation layer, which overwrites its input where it can, unless `inplace` is false."""
    if name not in _ACTIVATIONS:
        raise unknown_name("activation", name, _ACTIVATIONS)
    return cast(nn.Module, _ACTIVATIONS[name](inplace=inplace))


def dropout(spatial_dims: int, rate: float) -> nn.Module:
    """Return a layer that drops whole channels with probability `rate`; Identity at 0."""
    if not 0 <= rate < 1:
        raise UsageError(f"Expected `dropout` to be at least 0 and below 1, but got {rate}.")
    if not rate:
        return nn.Identity()
    return nn.Dropout2d(rate) if spatial_dims == 2 else nn.Dropout3d(rate)
