"""How operations on tensors are being run, and the layout in memory that runs fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def is_recorded(x: Tensor) -> bool:
    """Tell whether operations are being recorded, transformed or only counted rather than run."""
    transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_compiling() or tracing or x.is_meta or transformed()


def fast_layout(x: Tensor) -> Tensor:
    """Return a map (N, C, *spatial) in the layout in which eager convolutions run fastest; the values stay the same.

    On a CPU without gradients that is channels-last: a 3D U-Net takes a quarter less time, once its normalisation takes that
    layout too, see `medseg_se.dims.InstanceNorm3d`. In training, attention loses more than convolutions gain. Elsewhere, and
    while operations are recorded, it stays as it is. `benchmarks/networks.py` measures it.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or x.ndim not in (4, 5) or is_recorded(x):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
