"""Gates are computed in float32 even where the maps are not: float16 overflows and bfloat16 loses the logit of a gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medseg_se.attention.tiles import compute_type, full_precision
from medseg_se.dims import convolved
from medseg_se.execution import is_exported


def flat_parameters(layer: nn.Module) -> tuple[Tensor, ...]:
    """Return the weights (out, in) of a linear layer or a 1×1 convolution, and its biases (out) if it has any."""
    bias = layer.bias
    return layer.weight.flatten(1), *(() if bias is None else (bias,))  # type: ignore[operator, return-value]


def mixed_channels(weight: Tensor, a: Tensor) -> Tensor:
    """Return the map (N, out, *spatial) that weights (out, in) make of the channels of each voxel of a map (N, in, *spatial).

    PyTorch is faster with a product of matrices. Other engines have to bring a map into another layout for it, and are faster
    with a convolution.
    """
    if is_exported():
        return convolved(a, weight.reshape(*weight.shape, *[1] * (a.ndim - 2)))
    return (weight @ a.flatten(2)).reshape(len(a), len(weight), *a.shape[2:])


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply `layer` to ``x`` in float32 (float64 stays), whatever the type of its parameters and inside autocast too."""
    return in_type(layer, x, compute_type(x))


def in_type(layer: nn.Module, x: Tensor, kind: torch.dtype) -> Tensor:
    """Apply `layer` to ``x`` in the type `kind`, whatever that of its parameters and inside autocast too."""
    with full_precision(x):
        if all(parameter.dtype == kind for parameter in layer.parameters()):
            y: Tensor = layer(x.to(kind))
        else:
            y = functional_call(layer, {name: value.to(kind) for name, value in layer.named_parameters()}, x.to(kind))
    return y
