"""Published weights from a file on this machine, under the names that torchvision gives them.

A network takes part with a method ``pretrained_names()``, which maps the published names of modules to its own. Nothing is
downloaded, and nothing in a file is executed. Flat kernels become kernels of volumes as in I3D, Carreira and Zisserman, 2017,
https://arxiv.org/abs/1705.07750, section 2.4.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from medseg_se.errors import CheckpointError, UsageError
from medseg_se.tensors import load_tensors

log = logging.getLogger(__name__)

_RGB = 3


@dataclass(frozen=True)
class Loaded:
    """What became of a file of weights.

    Attributes:
        loaded: Names of this network's tensors that the file filled.
        adapted: Those of them whose input channels or depth were adapted.
        left: Names of this network's tensors that stay as they were, those of attention blocks among them.
        unused: Names of the file's tensors that have no place here.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    left: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in one line."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        for what, names in (("adapted", self.adapted), ("left as they were", self.left), ("unused", self.unused)):
            if names:
                parts.append(f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})")
        return "; ".join(parts)


def load_pretrained(network: nn.Module, path: Path | str, depth_axis: int = -1) -> Loaded:
    """Fill a network, in place, with what fits of the published weights in a file.

    A tensor fits that has the name and shape of one of ours. Two differences are bridged. Where the first convolution wants C
    channels instead of red, green and blue, each of the C gets the sum of the three kernels divided by C: a grey picture in all
    C channels has the features that it has in red, green and blue. For one channel that is the sum. Where the network is for
    volumes and the kernels are flat, they are repeated D times along the depth and divided by D: a volume of equal slices has
    the features of the slice, away from its ends. A classifier for other classes stays as it was.

    Args:
        network: With a method ``pretrained_names()``.
        path: A .pth or .pt file of tensors by name, perhaps under "state_dict" or "model"; or a .safetensors file.
        depth_axis: The spatial axis along which flat kernels are repeated; the last, along which axial slices are stacked.

    Raises:
        UsageError: A network without published weights, an address instead of a file, or an axis that does not exist.
        CheckpointError: The file is missing or damaged, holds code, or has other weights; the network is as it was before.
    """
    names: Mapping[str, str] = getattr(network, "pretrained_names", dict)()
    if not names:
        raise UsageError(f"Expected a network of which weights are published, but got {type(network).__name__}.")
    if not -3 <= depth_axis < 3:
        raise UsageError(f"Expected `depth_axis` to be one of the three spatial axes, but got {depth_axis}.")
    given = {_canonical(name): tensor for name, tensor in _read(path).items()}
    own = network.state_dict()
    places = {f"{theirs}.{end}": f"{ours}.{end}" for theirs, ours in names.items() for end in _ends(network, ours)}
    fitting: dict[str, Tensor] = {}
    adapted = []
    for theirs, ours in places.items():
        fitted = _fit(given[theirs], own[ours], depth_axis) if theirs in given else None
        if fitted is not None:
            fitting[ours] = fitted
            if fitted is not given[theirs]:
                adapted.append(ours)
    classifier = {f"{ours}.{end}" for ours in names.values() for end in _ends(network, ours) if _is_linear(network, ours)}
    trunk = {name: own[name].numel() for name in places.values() if name not in classifier}
    whole, filled = sum(trunk.values()), sum(size for name, size in trunk.items() if name in fitting)
    if 2 * filled < whole:
        found = f"{filled:,} of them, and {next(iter(given))!r} as its first tensor" if given else "no tensor"
        raise CheckpointError(
            f"Expected {path} to hold the {whole:,} published numbers of this {type(network).__name__}, with "
            f"{next(iter(places))!r} as the first tensor, but got {found}. It is for another network, or for other options."
        )
    network.load_state_dict(fitting, strict=False)
    counters = {name for name in own if name.endswith(".num_batches_tracked")}  # which old files do not have
    left = tuple(name for name in own if name not in fitting and name not in counters)
    unused = tuple(name for name in given if name not in places)
    result = Loaded(tuple(fitting), tuple(adapted), left, unused)
    strange = unused or any(name in trunk for name in left)
    log.log(logging.WARNING if strange else logging.INFO, "%s: %s.", path, result)
    return result


def _ends(network: nn.Module, name: str) -> list[str]:
    """Return the names of the tensors of one of the network's modules."""
    return list(network.get_submodule(name).state_dict())


def _is_linear(network: nn.Module, name: str) -> bool:
    return isinstance(network.get_submodule(name), nn.Linear)


def _fit(tensor: Tensor, wanted: Tensor, depth_axis: int) -> Tensor | None:
    """Return `tensor`, adapted where that is needed and possible, if it can take the place of `wanted`."""
    if tensor.ndim in (4, 5) and tensor.shape[1] == _RGB != wanted.shape[1]:
        channels = wanted.shape[1]
        tensor = (tensor.float().sum(dim=1, keepdim=True) / channels).repeat_interleave(channels, dim=1)
    if tensor.ndim == 4 and wanted.ndim == 5:
        axis = depth_axis % 3 + 2
        depth = wanted.shape[axis]
        tensor = (tensor.float() / depth).unsqueeze(axis).repeat_interleave(depth, dim=axis)
    return tensor if tensor.shape == wanted.shape else None


def _read(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a file by name; nothing in it is executed."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(path)):
        raise UsageError(f"Expected a file of weights on this machine, but got the address {path}. Download it first.")
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No such file of weights: {path}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = load_tensors(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"Expected {path} to hold tensors by name, but it holds other objects or code, or is damaged. Nothing in it was "
            "executed."
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise CheckpointError(f"Cannot read the weights in {path}: it is damaged, or not a file of weights.") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"Expected {path} to hold tensors by name, but it holds a {type(content).__name__}.")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _canonical(name: str) -> str:
    """Return a published name as torchvision writes it today: DenseNets once had ``norm.1``, parallel training ``module.``."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name.removeprefix("module."))
