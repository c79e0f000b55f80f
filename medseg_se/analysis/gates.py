"""Where the attention blocks of a network sit, and the gates they use at every pass.

A block takes part by having a method ``look(x)``, which returns the gates it uses on its input ``x`` (N, C, *spatial) by name:
"channel" (N, C, 1, …), "spatial" (N, 1, *spatial), "voxel" (N, C, *spatial) and "axis i" (N, C or 1, its length along that
axis, 1 along the others). Blocks made of blocks, their ``blocks`` or else their children, put the number of the part before the
name. A block that weighs alternatives may have ``choice()``: alternative → learnt weight, in the order of its parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class InsertionPoint:
    """A place where an attention block sits in a network.

    Attributes:
        name: In words and without its like in the network, for example "encoder 0": the part and the depth.
        path: Path of the module, for example "encoder.0.block.attention".
        block: How the block is called.
        place: "encoder", "bottleneck", "decoder", "skip", "residual", or "network" where the path says none of these.
        depth: 0 at full resolution, 1 at the next coarser one that the network has, and so on.
        stride: Voxels of the network's input along each axis that one voxel stands for here.
        channels: Channels of the map.
        choice: Alternative → learnt weight, for a block that weighs alternatives.
    """

    name: str
    path: str
    block: str
    place: str
    depth: int
    stride: tuple[int, ...]
    channels: int
    choice: Mapping[str, float]


# ------------------------------------------------------------------------------------------------------------------ recording


@dataclass(frozen=True)
class Seen:
    """What a block did in one pass.

    Attributes:
        gates: Its gates by name.
        shape: Shape (N, C, *spatial) of its input.
    """

    gates: Mapping[str, Tensor]
    shape: tuple[int, ...]


class Recorder:
    """Notes, within its context, what the attention blocks of a network do in every pass.

    A block that runs several times in a pass is noted the last time.

    Attributes:
        blocks: Path → block: every module with a `look` or a `choice`, without what lies inside of such a module.
    """

    def __init__(self, network: nn.Module) -> None:
        self.blocks: dict[str, nn.Module] = {}
        self._convs: list[nn.Module] = []
        for path, module in network.named_modules():
            if any(path.startswith(f"{outer}.") for outer in self.blocks):
                continue
            if path and any(callable(getattr(module, name, None)) for name in ("look", "choice")):
                self.blocks[path] = module
            elif isinstance(module, nn.Conv2d | nn.Conv3d):
                self._convs.append(module)
        self._seen: dict[str, Seen] = {}
        self._shapes: set[tuple[int, ...]] = set()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Recorder:
        for path, block in self.blocks.items():
            self._handles.append(block.register_forward_pre_hook(self._note(path)))
        for layer in self._convs:
            self._handles.append(layer.register_forward_hook(self._note_shape))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> dict[str, Seen]:
        """Return path → what was seen since the last call, in the order of the data flow."""
        seen, self._seen = self._seen, {}
        return seen

    def points(self, seen: Mapping[str, Seen], shape: Sequence[int]) -> list[InsertionPoint]:
        """Return the insertion points of a pass over an input of `shape` (spatial axes only), in the order of the data flow."""
        resolutions = _resolutions(self._shapes, tuple(shape))
        points: list[InsertionPoint] = []
        for path, one in seen.items():
            block, place = self.blocks[path], _place(path)
            depth, stride = resolutions[one.shape[2:]]
            label = _label(block)
            name = _name(path, place, depth, label, {point.name for point in points})
            points.append(InsertionPoint(name, path, label, place, depth, stride, one.shape[1], _choice(block)))
        return points

    def total_stride(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the stride of the network's coarsest map along each axis, after a pass over an input of `shape`."""
        return max((stride for _, stride in _resolutions(self._shapes, tuple(shape)).values()), key=math.prod)

    def _note(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        look: Callable[[Tensor], Mapping[str, Tensor]] = getattr(self.blocks[path], "look", lambda x: {})

        def hook(block: nn.Module, inputs: tuple[Any, ...]) -> None:
            x: Tensor = inputs[0]
            with torch.no_grad():
                gates = {_gate_name(block, kind): gate for kind, gate in look(x).items()}
            self._seen[path] = Seen(gates, tuple(x.shape))
            self._shapes.add(tuple(x.shape[2:]))

        return hook

    def _note_shape(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self._shapes.add(tuple(output.shape[2:]))


def _resolutions(
    shapes: Collection[tuple[int, ...]], full: tuple[int, ...]
) -> dict[tuple[int, ...], tuple[int, tuple[int, ...]]]:
    """Return shape → (depth, stride against the full resolution); strides multiply from one resolution to the next.

    Dividing a length by that of a far coarser level would not do: 40 voxels shrink to 20, 10, 5 and 3 at strides of 2, where
    one stands for 16 and the last of them reaches beyond the end.
    """
    chain = sorted({*shapes, full}, key=math.prod, reverse=True)
    stride, finer = (1,) * len(full), full
    found = {}
    for depth, shape in enumerate(chain):
        stride = tuple(step * math.ceil(long / short) for step, long, short in zip(stride, finer, shape, strict=True))
        found[shape], finer = (depth, stride), shape
    return found


def _choice(block: nn.Module) -> dict[str, float]:
    weights: Callable[[], Mapping[str, float]] = getattr(block, "choice", dict)
    return {name: float(weight) for name, weight in weights().items()}


def _parts(block: nn.Module) -> list[nn.Module]:
    return [part for part in getattr(block, "blocks", block.children()) if hasattr(part, "look")]


def _label(block: nn.Module) -> str:
    """Return what a block calls itself; one without a name of its own is called by its parts."""
    return str(getattr(block, "label", "+".join(map(_label, _parts(block))) or type(block).__name__))


def _gate_name(block: nn.Module, name: str) -> str:
    """Say the parts of a block by name instead of number: "1 spatial" becomes "sSE spatial"."""
    number, _, rest = name.partition(" ")
    parts = list(getattr(block, "blocks", block.children()))
    if not number.isdecimal() or int(number) >= len(parts):
        return name
    labels, place = list(_choice(block)) or [_label(part) for part in parts], int(number)
    label = labels[place] if labels.count(labels[place]) == 1 else f"{labels[place]} {number}"
    return f"{label} {_gate_name(parts[place], rest)}"


def _place(path: str) -> str:
    words = path.split(".")
    names = {"before_sum": "residual", "skip": "skip", "encoder": "encoder", "bottleneck": "bottleneck", "decoder": "decoder"}
    return next((place for word, place in names.items() if word in words), "network")


def _name(path: str, place: str, depth: int, label: str, taken: Collection[str]) -> str:
    """Return "encoder 0", or "encoder 0 residual"; the block's name or the whole path are added where that is not enough."""
    part = _place(path.replace("before_sum", "")) if place == "residual" else place
    name = f"{part} {depth}" + (" residual" if place == "residual" else "")
    return next(one for one in (name, f"{name} {label}", f"{name} {path}") if one not in taken)


# ----------------------------------------------------------------------------------------------------------------------- maps


def is_channel_gate(name: str) -> bool:
    """Tell whether the gate called `name` is one number a channel."""
    return name.split()[-1] == "channel"


def gate_maps(seen: Seen) -> dict[str, Tensor]:
    """Return kind → map (N, 1, *spatial) of the gates that vary in space, at the block's own resolution.

    Per-voxel gates are averaged over the channels; the gates per axis are multiplied with each other first, as "axes".
    """
    maps: dict[str, Tensor] = {}
    for name, gate in seen.gates.items():
        if not is_channel_gate(name):
            kind = re.sub(r"axis \d+$", "axes", name)
            maps[kind] = maps[kind] * gate if kind in maps else gate
    size = (seen.shape[0], 1, *seen.shape[2:])
    return {kind: gate.float().mean(1, keepdim=True).expand(size) for kind, gate in maps.items()}


def enlarged(gate: Tensor, stride: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Bring a map (N, 1, *coarse) to the network's input of `shape`, linearly.

    A coarse voxel is centred on the block of `stride` voxels for which the decoder's transposed convolutions write it.
    """
    mode = "bilinear" if gate.ndim == 4 else "trilinear"
    size = [max(n * step, full) for n, step, full in zip(gate.shape[2:], stride, shape, strict=True)]
    full = F.interpolate(gate, size=size, mode=mode, align_corners=False) if size != list(gate.shape[2:]) else gate
    return full[(slice(None), slice(None), *(slice(length) for length in shape))]
