"""Maps that the backward pass computes anew instead of keeping them: cheap to compute, large to keep.

A block after normalisation and activation needs its input again for its gradient, and the next convolution needs the block's
output: one more map to keep per block. But the normalisation keeps its own input anyway, and from that the block's input is
two light steps away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from medseg_se.errors import UsageError
from medseg_se.execution import is_recorded

REPEATABLE = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
"""Normalisations that give the same values when they run again, see `normalised_again`."""


def normalised_again(norm: nn.Module, x: Tensor, training: bool) -> Tensor:
    """Normalise once more, as it was done in this mode; running statistics stay as they are."""
    if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
        running = (None, None) if training else (norm.running_mean, norm.running_var)
        return F.batch_norm(x, *running, norm.weight, norm.bias, None in running, 0.0, norm.eps)
    return norm(x)  # type: ignore[no-any-return]


def is_watched(module: nn.Module) -> bool:
    """Tell whether a hook would see a module run again."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def recomputed(
    first: Callable[..., Tensor], then: Callable[[Tensor], Tensor], *inputs: Tensor, again: Callable[..., Tensor]
) -> Tensor:
    """Return ``then(first(*inputs))`` without keeping the map in between for the backward pass.

    Args:
        first: The cheap part; it must leave its inputs as they are.
        then: The rest.
        inputs: What `first` works on, and keeps for its own gradient in any case. Saved-tensor hooks around the call see
            nothing of what is kept here.
        again: Returns the same values as `first`, without its lasting effects such as new running statistics.

    Raises:
        UsageError: `then` changes its input in place.
    """
    if not torch.is_grad_enabled() or is_recorded(inputs[0]):
        return then(first(*inputs))
    middle = _Middle(again, inputs)
    with saved_tensors_hooks(middle.pack, middle.unpack):
        x = first(*inputs)
        middle.forget(x)
        y = then(x)
    if x._version != middle.version:
        raise UsageError(
            "Expected the block after a normalisation to leave its input as it is, but it changed it in place; "
            "let it work on a copy."
        )
    return y


class _Middle:
    """The map in between: how to compute it, and its value from its first use in the backward pass to the last.

    Every operation that would keep the map keeps this object instead, so that the value goes with the last of them.
    """

    def __init__(self, again: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.again, self.inputs = again, tuple(x.detach() for x in inputs)
        kind = inputs[0].device.type
        self.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self.value: Tensor | None = None
        self.version = 0
        self.where: tuple[Any, ...] | None = None
        self.early: list[_Saved] = []

    def pack(self, tensor: Tensor) -> Any:
        """Return what is kept for `tensor`, cut off from the graph: an operation that kept its own result would never end."""
        if self.where is not None:
            return self if self.where == _where(tensor) and tensor._version == self.version else tensor.detach()
        self.early.append(_Saved(tensor.detach()))
        return self.early[-1]

    def forget(self, x: Tensor) -> None:
        """From here on ``x`` is the map in between; let go where it was kept already."""
        self.where, self.version = _where(x), x._version
        for saved in self.early:
            if isinstance(saved.content, Tensor) and _where(saved.content) == self.where:
                saved.content = self
        self.early.clear()

    def unpack(self, kept: Any) -> Tensor:
        """Return the tensor for which `kept` was kept."""
        if isinstance(kept, _Saved):
            kept = kept.content
        if isinstance(kept, Tensor):
            return kept
        if self.value is None:
            kind, dtype, enabled = self.autocast
            with torch.no_grad(), torch.autocast(kind, dtype, enabled=enabled):
                self.value = self.again(*self.inputs)
        return self.value


class _Saved:
    """What is kept for one operation, still to be settled."""

    __slots__ = ("content",)

    def __init__(self, content: Tensor | _Middle) -> None:
        self.content = content


def _where(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
