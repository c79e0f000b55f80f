"""How operations on tensors are being run, and the layout in memory that runs fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The layout by the number of axes of a map."""


def is_recorded(x: Tensor) -> bool:
    """Tell whether operations are being recorded, transformed or only counted rather than run."""
    transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
    return torch.compiler.is_compiling() or is_exported() or x.is_meta or transformed()


def is_exported() -> bool:
    """Tell whether operations are being recorded for another engine, which has its own mind of what is fast."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_exporting() or tracing


_SUMS_ARE_CONVOLUTIONS: ContextVar[bool] = ContextVar("sums_are_convolutions", default=False)


@contextmanager
def sums_as_convolutions() -> Iterator[None]:
    """Let sums over some axes of a map, but not all, be recorded as convolutions; for this thread.

    OpenVINO adds up some axes in a loop that takes six times as long, ONNX Runtime convolves so in thirty times as long.
    """
    token = _SUMS_ARE_CONVOLUTIONS.set(True)
    try:
        yield
    finally:
        _SUMS_ARE_CONVOLUTIONS.reset(token)


def sums_are_convolutions() -> bool:
    """Tell whether operations are being recorded inside `sums_as_convolutions`."""
    return is_exported() and _SUMS_ARE_CONVOLUTIONS.get()


def fast_layout(x: Tensor) -> Tensor:
    """Return a map (N, C, *spatial) in the layout in which eager convolutions run fastest; the values stay the same.

    On a CPU without gradients that is channels-last: prediction takes a quarter less time, once the normalisation takes that
    layout too, see `medseg_se.dims.InstanceNorm3d`. While it learns, attention loses more than convolutions gain. On other
    devices, and while operations are recorded, the layout stays as it is. `benchmarks/networks.py` measures it.
    """
    if x.device.type != "cpu" or x.ndim not in _CHANNELS_LAST or torch.is_grad_enabled() or is_recorded(x):
        return x
    return x.contiguous(memory_format=_CHANNELS_LAST[x.ndim])


def empty_like(x: Tensor) -> Tensor:
    """Return an empty map of the shape, type and layout of ``x`` (N, C, *spatial).

    For a single sample the strides of `torch.empty_like` leave open which layout is meant, and convolutions take the other.
    """
    last = _CHANNELS_LAST.get(x.ndim)
    if last is None or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=last)


def lay_out_weights(network: nn.Module) -> None:
    """Put the weights on a CPU, in place, into the layout that `fast_layout` gives to maps: a twentieth less time."""
    for parameter in network.parameters():
        if parameter.device.type == "cpu" and parameter.ndim in _CHANNELS_LAST:
            parameter.data = parameter.data.contiguous(memory_format=_CHANNELS_LAST[parameter.ndim])


_DRAWING = (Tensor.normal_, Tensor.uniform_)
"""What initialisations call that PyTorch does not let be replaced as a whole."""


class Uninitialised(TorchFunctionMode):
    """A context in which layers are made without drawing their weights, which a checkpoint then brings; for this thread alone.

    Drawing 30 million weights takes as long as reading them.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, unless it fills a tensor as initialisations do."""
        options = dict(kwargs or {})
        if func in _DRAWING or getattr(func, "__module__", None) == "torch.nn.init":
            return options.get("tensor", args[0] if args else None)
        return func(*args, **options)
