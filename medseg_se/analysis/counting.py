"""What a forward pass computes and moves, counted without computing it: tensors on the meta device have shapes, no values.

The conventions, which papers often leave unsaid:

- Convolutions and matrix products count in multiply–adds (MACs), biases left out. Most papers' "GFLOPs" are these.
- Every other operation that computes (sums, norms, activations, gates, pooling) counts one per number, of its largest input or
  output, however many steps its formula has. Copies, fills and views compute nothing.
- FLOPs are both together, a multiply–add being two.
- Bytes moved are the inputs read and the outputs written by every operation, views aside, each as if from main memory. A
  `Recalibration` runs in tiles that stay in the cache, so it counts what that form moves: the map is read for every statistic
  (most blocks have one), read again and written, and beside it move all smaller tensors from the statistics to the gates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from medseg_se.attention.modes import evaluated
from medseg_se.attention.recalibration import Recalibration

_aten = torch.ops.aten
_ALLOCATIONS = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten._unsafe_view, _aten.lift_fresh}
_FILLS = {_aten.copy_, _aten.fill_, _aten.zero_}
"""They overwrite their first argument without reading it."""
_MOVES = {
    *_FILLS,
    *(_aten.clone, _aten._to_copy, _aten.cat, _aten.stack, _aten.repeat, _aten.constant_pad_nd, _aten.flip, _aten.roll),
    *(_aten.index, _aten.index_select, _aten.gather, _aten.zeros, _aten.zeros_like, _aten.ones, _aten.ones_like),
    *(_aten.full, _aten.full_like, _aten.new_zeros, _aten.new_ones, _aten.new_full, _aten.arange, _aten.scalar_tensor),
}


@dataclass(frozen=True)
class Work:
    """What is computed and moved.

    Attributes:
        macs: Multiply–adds of convolutions and matrix products.
        elementwise: Operations of everything else.
        moved: Bytes read and written.
    """

    macs: int = 0
    elementwise: int = 0
    moved: int = 0

    @property
    def flops(self) -> int:
        """Multiply–adds as two operations each, and the elementwise ones."""
        return 2 * self.macs + self.elementwise

    def __add__(self, other: Work) -> Work:
        return Work(self.macs + other.macs, self.elementwise + other.elementwise, self.moved + other.moved)

    def __sub__(self, other: Work) -> Work:
        return Work(self.macs - other.macs, self.elementwise - other.elementwise, self.moved - other.moved)


@dataclass(frozen=True)
class Point:
    """What happens at one attention block of a network.

    Attributes:
        name: The module's name in the network.
        shape: Of the map, (N, C, *spatial).
        parameters: Numbers that the block learns.
        work: What it computes and moves.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    work: Work


@dataclass(frozen=True)
class Count:
    """What `count` found of a network.

    Attributes:
        parameters: Numbers that the network learns.
        work: What one forward pass computes and moves.
        made: Bytes of all tensors that it makes: about what training keeps for the backward pass.
        largest: Bytes of the largest of them.
        sizes: The spatial sizes of its convolutions' results, from the largest to the smallest.
        points: The blocks asked for, in the order they run.
    """

    parameters: int
    work: Work
    made: int
    largest: int
    sizes: tuple[tuple[int, ...], ...]
    points: tuple[Point, ...]


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations on meta tensors inside ``with Counter() as counter``; see `Count` for the attributes.

    Args:
        below: Of tensors with as many numbers or more the bytes are not counted.
    """

    def __init__(self, below: float = math.inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work, self.made, self.largest, self.below = Work(), 0, 0, below
        self.sizes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        kind = func.overloadpacket
        written = _tensors(results)
        if func.is_view or kind in _ALLOCATIONS or not written:
            return results
        given = _tensors((args, kwargs))
        read = given[1:] if kind in _FILLS else given
        macs = elementwise = 0
        if kind in flop_registry:
            macs = flop_registry[kind](*args, **kwargs, out_val=results) // 2  # the registry says two operations each
        elif kind not in _MOVES:
            elementwise = max(tensor.numel() for tensor in (*given, *written))
        moved = sum(_bytes(tensor) for tensor in (*read, *written) if tensor.numel() < self.below)
        self.work += Work(macs, elementwise, moved)
        new = [_bytes(result) for result in written if not any(result is tensor for tensor in given)]
        self.made += sum(new)
        self.largest = max(self.largest, *new, 0)
        if kind is _aten.convolution:
            self.sizes.add(tuple(results.shape[2:]))
        return results


def count(network: nn.Module, x: Tensor, blocks: Sequence[str] = ()) -> Count:
    """Count what `network`, as in `eval`, does with the scans ``x``.

    Args:
        network: On the meta device; it is left in the mode that it is in.
        x: A meta tensor (N, C, *spatial).
        blocks: Names of modules to be counted apart, too.
    """
    points: list[Point] = []
    with evaluated(network), ExitStack() as hooks, torch.no_grad(), Counter() as counter:
        for module in network.modules():
            if _is_streamed(module):
                _hook(hooks, module, _StreamedBytes(counter))
        for name in blocks:
            _hook(hooks, network.get_submodule(name), _Apart(counter, name, points))
        network(x)
    sizes = sorted(counter.sizes, key=lambda size: (math.prod(size), size), reverse=True)
    return Count(parameters(network), counter.work, counter.made, counter.largest, tuple(sizes), tuple(points))


def insertion_points(network: nn.Module, plain: nn.Module) -> list[str]:
    """Return the names of the modules of `network` at whose place `plain`, the same without attention, has Identity."""
    slots = {name for name, module in plain.named_modules() if isinstance(module, nn.Identity)}
    return [name for name, module in network.named_modules() if name in slots and not isinstance(module, nn.Identity)]


def parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def streamed_bytes(block: Recalibration, x: Tensor) -> int:
    """Return the bytes that `block` moves in tiles; see the conventions above."""
    with Counter(below=x.numel()) as counter, _Passes(x) as passes:
        _, gates = block.gated(x)
    moved: int = (passes.number + 2) * _bytes(x) + counter.work.moved + sum(map(_bytes, gates))
    return moved


class _Passes(TorchFunctionMode):
    """Counts how often a map is gone over for statistics: each time it is first cast to the type that they are computed in."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.shape, self.number = x.shape, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look whether it is such a cast."""
        self.number += func is Tensor.to and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def _is_streamed(module: nn.Module) -> bool:
    return isinstance(module, Recalibration) and type(module).forward is Recalibration.forward


class _Watch:
    """Sees a module before and after its forward pass."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def before(self, module: nn.Module, args: Any) -> None:
        self.start, self.made = self.counter.work, self.counter.made

    def after(self, module: nn.Module, args: Any, y: Any) -> None:
        raise NotImplementedError


class _StreamedBytes(_Watch):
    """Counts the bytes of a block as it moves them in tiles, rather than those of its formula written out."""

    def after(self, module: nn.Module, args: Any, y: Any) -> None:
        counter, end = self.counter, self.counter.work
        moved = self.start.moved + streamed_bytes(module, args[0])  # type: ignore[arg-type]
        counter.work, counter.made = Work(end.macs, end.elementwise, moved), self.made + _bytes(y)


class _Apart(_Watch):
    """Notes what a module adds to the count."""

    def __init__(self, counter: Counter, name: str, points: list[Point]) -> None:
        super().__init__(counter)
        self.name, self.points = name, points

    def after(self, module: nn.Module, args: Any, y: Any) -> None:
        self.points.append(Point(self.name, tuple(y.shape), parameters(module), self.counter.work - self.start))


def _hook(hooks: ExitStack, module: nn.Module, watch: _Watch) -> None:
    hooks.enter_context(module.register_forward_pre_hook(watch.before))
    hooks.enter_context(module.register_forward_hook(watch.after))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor has in memory; along an expanded axis it has one entry."""
    distinct: Iterable[int] = (size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step or not size)
    return math.prod(distinct) * tensor.element_size()
