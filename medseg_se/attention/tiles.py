"""Maps are worked on in tiles that stay in the cache, and the backward pass computes anew what it needs from the input.

Written out with tensor operations, a gate reads and writes the whole map for every sign in its formula, and autograd keeps
most of those maps for the backward pass. Here a formula runs from its first to its last sign on one tile before the next tile
is touched, in float32 (float64 stays) whatever the type of the map, and only the input is kept: `summarise` computes
statistics, `modulate` computes a new map. Both can be differentiated twice. While a graph is recorded (torch.compile, export,
tracing), the same formula runs on the whole map, and the compiler does the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from medseg_se.execution import empty_like, is_recorded

Formula = Callable[..., Tensor]
"""Maps (n, C, *tile) and further tensors, cut to the tile where they have its axes, to (n, C, *tile); voxel by voxel.

With `out` it writes there. That is done only where no graph is recorded.
"""

Derivative = Callable[..., tuple[Tensor, ...] | None]
"""From the gradient of a formula's value and its arguments to the gradients of the arguments; None leaves it to autograd."""

Tile = tuple[slice, ...]

_TILE_SIZE = {"cpu": 2**19, "other": 2**24}
"""Numbers in a tile: on a CPU a few of them fit the cache, elsewhere only the memory that they take matters."""


class Statistic(Protocol):
    """What `summarise` needs to know of a statistic, such as `Averages` or `Moments`."""

    def whole(self, a: Tensor) -> tuple[Tensor, ...]:
        """Compute the results from a whole map, with operations that autograd knows."""

    def collect(self, x: Tensor, pieces: Iterator[tuple[Tile, Tensor]]) -> tuple[Tensor, ...]:
        """Compute the results from the tiles of a map shaped like `x`."""

    def gradient(self, a: Tensor, tile: Tile, shape: torch.Size, results: tuple[Tensor, ...], grads: Any) -> Tensor:
        """Return the gradient of the results with respect to the tile ``a``, broadcastable to it."""


def modulate(formula: Formula, x: Tensor, *gates: Tensor, derivative: Derivative | None = None) -> Tensor:
    """Return ``formula(x, *gates)``, of the shape and type of ``x``.

    Args:
        formula: Works voxel by voxel; it may mix channels.
        x: A map (N, C, *spatial).
        gates: Those with as many axes as ``x`` have its length or 1 along each and are cut to tiles; others are passed whole.
        derivative: Of the formula, written out where that is faster than what autograd does.
    """
    gates = tuple(gate.to(compute_type(x)) for gate in gates)
    with full_precision(x):
        if is_recorded(x):
            return formula(x.to(compute_type(x)), *gates).to(x.dtype)
        return _Modulate.apply(formula, derivative, x, *gates)  # type: ignore[no-any-return, no-untyped-call]


def condense(formula: Formula, channels: int, x: Tensor, *gates: Tensor) -> Tensor:
    """Return ``formula(x, *gates)``, a map (N, channels, *spatial) in float32 (float64 for such maps); see `modulate`."""
    gates = tuple(gate.to(compute_type(x)) for gate in gates)
    with full_precision(x):
        if is_recorded(x):
            return formula(x.to(compute_type(x)), *gates)
        return _Condense.apply(formula, channels, x, *gates)  # type: ignore[no-any-return, no-untyped-call]


def summarise(statistic: Statistic, x: Tensor) -> tuple[Tensor, ...]:
    """Return ``x`` itself, to be handed on to `modulate`, and its statistics.

    Only the returned map may be used further, and only in `modulate` and `condense`: its gradients are added up in place.
    """
    with full_precision(x):
        if is_recorded(x):
            return x, *statistic.whole(x.to(compute_type(x)))
        return _Summarise.apply(statistic, x)  # type: ignore[no-any-return, no-untyped-call]


def compute_type(x: Tensor) -> torch.dtype:
    """Return float32, or float64 for such maps."""
    return torch.promote_types(x.dtype, torch.float32)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Leave autocast; meta tensors know none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def larger(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the elementwise maximum.

    While a graph is recorded to be differentiated it is written without a comparison: the masks in the gradient of
    `torch.maximum` keep Inductor from vectorising on CPUs, which took twelve times as long.
    """
    if is_recorded(a) and torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return 0.5 * (a + b + (a - b).abs())
    return torch.maximum(a, b, out=out)


def tiles(x: Tensor) -> Iterator[Tile]:
    """Cut (N, C, *spatial) into index tuples: several samples, or some rows of an axis where one sample is too large."""
    limit = _TILE_SIZE.get(x.device.type, _TILE_SIZE["other"])
    axes = (0, *range(2, x.ndim))
    depth = row = 0
    for depth in range(len(axes)):
        row = x.shape[1] * math.prod(x.shape[axis] for axis in axes[depth + 1 :])
        if row <= limit:
            break
    size = x.shape[axes[depth]]
    count = min(size, max(1, round(size * row / limit)))
    single = [[slice(at, at + 1) for at in range(x.shape[axis])] for axis in axes[:depth]]
    rows = [slice(number * size // count, (number + 1) * size // count) for number in range(count)]
    rest = [[slice(None)]] * (len(axes) - depth - 1)
    for samples, *spatial in itertools.product(*single, rows, *rest):
        yield (samples, slice(None), *spatial)


def part(tensor: Tensor, tile: Tile) -> Tensor:
    """Cut `tensor` to the tile along the axes that it has with more than one entry; other tensors are returned whole."""
    if tensor.ndim != len(tile):
        return tensor
    return tensor[tuple(slice(None) if size == 1 else cut for size, cut in zip(tensor.shape, tile, strict=True))]


class _Modulate(torch.autograd.Function):
    """`modulate` tile by tile."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, derivative: Derivative | None, x: Tensor, *gates: Tensor) -> Tensor:
        ctx.formula, ctx.derivative = formula, derivative
        ctx.save_for_backward(x, *gates)
        y = empty_like(x)
        for tile in tiles(x):
            arguments = [x[tile].to(compute_type(x)), *(part(gate, tile) for gate in gates)]
            if y.dtype == arguments[0].dtype:
                formula(*arguments, out=y[tile])
            else:
                y[tile] = formula(*arguments)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        x = inputs[0]
        with full_precision(x):
            if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
                y = ctx.formula(x.to(compute_type(x)), *inputs[1:])
                needed = [tensor for tensor, need in zip(inputs, ctx.needs_input_grad[2:], strict=True) if need]
                found = iter(_gradients(y, needed, dy.to(y.dtype), again=True))
                return None, None, *(next(found) if need else None for need in ctx.needs_input_grad[2:])
            dx, gate_grads = empty_like(x), [torch.zeros_like(gate) for gate in inputs[1:]]
            for tile in tiles(x):
                arguments = [x[tile].to(compute_type(x)), *(part(gate, tile) for gate in inputs[1:])]
                dx[tile], *tile_grads = differentiate(ctx.formula, ctx.derivative, dy[tile].to(compute_type(x)), arguments)
                for total, grad in zip(gate_grads, tile_grads, strict=True):
                    part(total, tile).add_(grad)
        return None, None, dx, *gate_grads


class _Condense(_Modulate):
    """`condense` tile by tile; its gradient is found as that of `modulate` is."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, channels: int, x: Tensor, *gates: Tensor) -> Tensor:  # type: ignore[override]
        ctx.formula, ctx.derivative = formula, None
        ctx.save_for_backward(x, *gates)
        y = x.new_empty((x.shape[0], channels, *x.shape[2:]), dtype=compute_type(x))
        for tile in tiles(x):
            y[tile] = ctx.formula(x[tile].to(y.dtype), *(part(gate, tile) for gate in gates))
        return y


def differentiate(formula: Formula, derivative: Derivative | None, dy: Tensor, arguments: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of the arguments of a formula on one tile."""
    written_out = derivative(dy, *arguments) if derivative is not None else None
    if written_out is not None:
        return written_out
    with torch.enable_grad():
        leaves = [argument.detach().requires_grad_() for argument in arguments]
        y = formula(*leaves)
    return _gradients(y, leaves, dy)


class _Summarise(torch.autograd.Function):
    """`summarise` tile by tile."""

    @staticmethod
    def forward(ctx: Any, statistic: Statistic, x: Tensor) -> tuple[Tensor, ...]:
        results = statistic.collect(x, ((tile, x[tile].to(compute_type(x))) for tile in tiles(x)))
        ctx.statistic, ctx.results = statistic, [result.detach() for result in results]
        ctx.save_for_backward(x)
        return x, *results

    @staticmethod
    def backward(ctx: Any, dx: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with full_precision(x):
            if torch.is_grad_enabled():
                results = ctx.statistic.whole(x.to(compute_type(x)))
                return None, dx + _gradients(results, [x], grads, again=True)[0]
            for tile in tiles(x):
                share = ctx.statistic.gradient(x[tile], tile, x.shape, ctx.results, grads)
                dx[tile].add_(share.to(dx.dtype))  # of one type: mixed, a channels-last sum takes four times as long
        return None, dx


def _gradients(outputs: Any, inputs: Any, grads: Any, again: bool = False) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.autograd.grad(outputs, inputs, grads, create_graph=again, materialize_grads=True)
    return found
