"""From the weights of one network to those of another that was built with other inputs, outputs or attention.

Which tensors have an entry for each channel of the scan, or for each output, is not told by their names: it is found by
building the network with one channel more and with one output more, and looking which tensors grew, and along which axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg_se.errors import CheckpointError, UsageError
from medseg_se.networks import build_network
from medseg_se.networks.pretrained import Loaded

Role = Literal["channels", "outputs"]
Rows = tuple[int | None, ...]


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor.

    Attributes:
        role: What its first entries belong to; None if the size has nothing to do with channels and outputs.
        rest: Further entries that follow, as where a dense block joins its own features to the scan.
        tied: Whether its entries belong to both or to several at once, and cannot be told apart.
    """

    role: Role | None = None
    rest: int = 0
    tied: bool = False


@dataclass(frozen=True)
class Ports:
    """What goes into a network and comes out of it.

    Attributes:
        channels: Names of the channels of a scan; None for those that have none, which are like no other.
        outputs: Names of the outputs, the background among them; or None.
    """

    channels: tuple[str | None, ...]
    outputs: tuple[str | None, ...]

    def rows_of(self, other: Ports) -> dict[Role, Rows]:
        """Return, for each of these channels and outputs, its place in the other network; None where that has none."""
        return {"channels": _places(self.channels, other.channels), "outputs": _places(self.outputs, other.outputs)}


def transfer(
    network: nn.Module,
    described: Mapping[str, Any],
    ports: Ports,
    state: Mapping[str, Tensor],
    their_description: Mapping[str, Any],
    their_ports: Ports,
) -> Loaded:
    """Fill a network, in place, with what fits of the weights of another.

    A tensor fits that has the name and shape of one of ours, but attention only if it is the same kind of block. What has an
    entry for each output is matched by the outputs' names, never by their order; outputs that the other network does not have
    stay as drawn. What has an entry for each channel of the scan is matched by the channels' names. A channel that the other
    network does not know begins with kernels of zero beside those that it does: the first features are those that it had, and
    the new channel is learnt. Where it knows none of them, each gets the sum of all kernels divided by the number of channels,
    so that a scan that is the same in all channels has the features that such a scan had.

    Args:
        network: The network; what of it does not require gradients must be filled whole.
        described: How it was built: "name", "in_channels", "num_classes", "spatial_dims" and "options".
        ports: Its channels and outputs.
        state: The weights of the other one.
        their_description: How that was built.
        their_ports: Its channels and outputs.

    Raises:
        CheckpointError: The other network has other dimensions, or less than half of the encoder's numbers fit.
        UsageError: A part of the network that does not learn would stay as drawn, in whole or in part.
    """
    if described["spatial_dims"] != their_description["spatial_dims"]:
        raise CheckpointError(
            f"Expected weights of a network in {described['spatial_dims']}D, but got those of one in "
            f"{their_description['spatial_dims']}D. Kernels of slices do not fit volumes."
        )
    own = network.state_dict()
    axes, rows = _axes(described, own), ports.rows_of(their_ports)
    withheld = _other_attention(network, state, their_description)
    fitting: dict[str, Tensor] = {}
    adapted, unfinished = [], set(own)
    for name, tensor in own.items():
        usable = name in state and not any(name.startswith(f"{path}.") for path in withheld)
        fitted = _fit(tensor.cpu(), state[name], axes[name], rows, their_ports) if usable else None
        if fitted is None:
            continue
        fitting[name] = fitted
        here = {role: rows[role] for role in ("channels", "outputs") if role in {axis.role for axis in axes[name]}}
        if any(found != tuple(range(len(getattr(their_ports, role)))) for role, found in here.items()):
            adapted.append(name)
        if not any(_partly(found) for found in here.values()):
            unfinished.discard(name)
    _check_share(network, described, axes, fitting, their_description)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad and name in unfinished]
    if frozen:
        listed = ", ".join(frozen[:3]) + (", …" if len(frozen) > 3 else "")
        raise UsageError(
            f"Expected what does not learn to come from the checkpoint whole, but {len(frozen)} tensors of it would stay as "
            f"drawn, in whole or in part: {listed}. Freeze less."
        )
    network.load_state_dict(fitting, strict=False)
    left = tuple(name for name in own if name not in fitting)
    return Loaded(tuple(fitting), tuple(adapted), left, tuple(name for name in state if name not in fitting))


def _places(names: Sequence[str | None], others: Sequence[str | None]) -> Rows:
    """Return the place of each name among the others; of several that are the same, each has a place of its own."""
    free: dict[str, list[int]] = {}
    for place, name in enumerate(others):
        if name is not None:
            free.setdefault(name, []).append(place)
    return tuple(free[name].pop(0) if name is not None and free.get(name) else None for name in names)


def _partly(rows: Rows) -> bool:
    """Tell whether some, but not all, have a place in the other network."""
    return None in rows and any(row is not None for row in rows)


def _fit(own: Tensor, given: Tensor, axes: Sequence[Axis], rows: Mapping[Role, Rows], theirs: Ports) -> Tensor | None:
    """Return `own` with all of `given` that has a place in it; None if they do not fit."""
    if own.ndim != given.ndim:
        return None
    given, picks = given.to(own.dtype), []
    for place, axis in enumerate(axes):
        if axis.tied and any(found != tuple(range(len(getattr(theirs, role)))) for role, found in rows.items()):
            return None
        if axis.role is None:
            if own.shape[place] != given.shape[place]:
                return None
            continue
        found, before = rows[axis.role], len(getattr(theirs, axis.role))
        if given.shape[place] != before + axis.rest:
            return None
        known = [(ours, row) for ours, row in enumerate(found) if row is not None]
        if not known and axis.role == "outputs":
            return None
        if not known:
            given, known = _spread(given, place, before, len(found)), [(ours, ours) for ours in range(len(found))]
            before = len(found)
        elif axis.role == "channels" and own.ndim > 1:
            own = own.index_fill(place, torch.tensor([ours for ours, row in enumerate(found) if row is None]).long(), 0)
        known += [(len(found) + further, before + further) for further in range(axis.rest)]
        ours, others = (torch.tensor(side) for side in zip(*known, strict=True))
        picks.append((place, ours, others))
    return _placed(own, given, picks)


def _spread(given: Tensor, place: int, before: int, wanted: int) -> Tensor:
    """Return a tensor in which the first entries along an axis, one a channel, are those that any other channel should have."""
    channels, rest = given.narrow(place, 0, before), given.narrow(place, before, given.shape[place] - before)
    one = channels.mean(place, keepdim=True) if given.ndim == 1 else channels.sum(place, keepdim=True) / wanted
    return torch.cat([one.repeat_interleave(wanted, place), rest], place)


def _placed(own: Tensor, given: Tensor, picks: Sequence[tuple[int, Tensor, Tensor]]) -> Tensor:
    """Return `own` with entries of `given` along each axis that is picked, and all of `given` along the others."""
    if not picks:
        return given
    (axis, ours, theirs), *others = picks
    part = _placed(own.index_select(axis, ours), given.index_select(axis, theirs), others)
    return own.index_copy(axis, ours, part)


def _axes(described: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of every tensor of a network."""
    more_channels, channels_more = _grown(described, own, "in_channels")
    more_outputs, outputs_more = _grown(described, own, "num_classes")

    def axis(size: int, with_channels: int, with_outputs: int) -> Axis:
        grown = (with_channels - size, with_outputs - size)
        if grown == (channels_more, 0) and size >= described["in_channels"]:
            return Axis("channels", size - described["in_channels"])
        if grown == (0, outputs_more) and size >= described["num_classes"]:
            return Axis("outputs", size - described["num_classes"])
        return Axis(tied=grown != (0, 0))

    found = {}
    for name, tensor in own.items():
        # Of networks that have no kin nothing is known; what a kin lacks does not depend on what it has more of.
        kin = [(state, tensor.shape if state else ()) for state in (more_channels, more_outputs)]
        shapes = [state[name].shape if name in state else missing for state, missing in kin]
        same = all(len(shape) == tensor.ndim for shape in shapes)
        found[name] = tuple(map(axis, tensor.shape, *shapes)) if same else (Axis(tied=True),) * tensor.ndim
    return found


def _grown(described: Mapping[str, Any], own: Mapping[str, Tensor], size: str) -> tuple[Mapping[str, Tensor], int]:
    """Return the tensors of the network with more channels or outputs, and how many more; no tensors if it has no such kin.

    One more, unless that is refused or makes another network of it: a residual block has no convolution on its identity path
    where as many channels leave as enter. Where any more make another network, as of one with such a block for its scans, the
    first of these.
    """
    other: tuple[Mapping[str, Tensor], int] = {}, 0
    for more in (1, 2, 3, 4):
        try:
            state = _without_memory({**described, size: described[size] + more}).state_dict()
        except UsageError:
            continue
        if state.keys() == own.keys():
            return state, more
        other = other if other[0] else (state, more)
    return other


def _without_memory(described: Mapping[str, Any]) -> nn.Module:
    """Build a network for its shapes alone; where that cannot be, with weights."""
    size = (described["in_channels"], described["num_classes"], described["spatial_dims"])
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build_network(described["name"], *size, **described["options"])
        except (RuntimeError, UsageError):  # some compute with their own numbers while they are built
            return build_network(described["name"], *size, **described["options"])


def _other_attention(network: nn.Module, state: Mapping[str, Tensor], their_description: Mapping[str, Any]) -> list[str]:
    """Return the paths of our attention that is not what the other network has there, or that has other choices made."""
    try:
        theirs = dict(_without_memory(their_description).named_modules())
    except UsageError as error:
        raise CheckpointError(f"Its network cannot be built here: {error}") from error
    found = []
    for path, block in network.named_modules():
        chosen = getattr(block, "chosen", None)
        settled = isinstance(chosen, Tensor) and not torch.equal(state.get(f"{path}.chosen", torch.empty(0)), chosen.cpu())
        other = hasattr(block, "placed") and (path not in theirs or _kinds(block) != _kinds(theirs[path]))
        if settled or other:
            found.append(path)
    return found


def _kinds(block: nn.Module) -> list[tuple[str, type[nn.Module]]]:
    return [(path, type(module)) for path, module in block.named_modules()]


def _check_share(
    network: nn.Module,
    described: Mapping[str, Any],
    axes: Mapping[str, Sequence[Axis]],
    fitting: Mapping[str, Tensor],
    their_description: Mapping[str, Any],
) -> None:
    """Refuse weights of which less than half of the encoder's numbers can be used; attention and outputs do not count."""
    attention = [f"{path}." for path, block in network.named_modules() if hasattr(block, "placed")]
    trunk = {
        name: parameter.numel()
        for name, parameter in network.named_parameters()
        if not name.startswith(tuple(attention)) and not any(axis.role == "outputs" for axis in axes[name])
    }
    encoder = {name: size for name, size in trunk.items() if name.startswith(("stem.", "encoder."))} or trunk
    whole, filled = sum(encoder.values()), sum(size for name, size in encoder.items() if name in fitting)
    if 2 * filled < whole:
        raise CheckpointError(
            f"Expected weights of {_spoken(described)}, but got those of {_spoken(their_description)}: {filled:,} of the "
            f"{whole:,} numbers of the encoder fit. Give the same network and the same widths."
        )


def _spoken(described: Mapping[str, Any]) -> str:
    widths = ("channels", "kernel_size", "convs", "residual", "norm")
    given = [f"{name} {value}" for name, value in described["options"].items() if name in widths]
    return f"the network {described['name']} with {' and '.join(given) or 'its own widths'}"
