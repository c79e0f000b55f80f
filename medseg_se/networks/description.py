"""What a network says of itself: for what, in which dimensions, with which options, how large, by whom."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import docstring_parser
import torch
from torch import nn

from medseg_se.errors import UsageError
from medseg_se.networks import find_network, kind_of
from medseg_se.networks.base import Kind, Network, Preset

_GIVEN = ("self", "in_channels", "num_classes", "spatial_dims")


@dataclass(frozen=True)
class NetworkOption:
    """An option of a network: its name, default and meaning."""

    name: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class NetworkDescription:
    """What there is to know of a network before one is built.

    Attributes:
        name: Its name in `NETWORKS`.
        kind: What it is for.
        summary: What it is, in a line.
        dims: The dimensions in which it exists.
        parameters: Its parameters by dimension, with the defaults, for one input channel and two classes.
        options: Its options.
        places: Where attention can sit.
        paper: Who described it.
    """

    name: str
    kind: Kind
    summary: str
    dims: tuple[int, ...]
    parameters: Mapping[int, int]
    options: tuple[NetworkOption, ...]
    places: tuple[str, ...]
    paper: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "summary": self.summary,
            "dims": list(self.dims),
            "parameters": {str(dims): number for dims, number in self.parameters.items()},
            "options": {option.name: option.default for option in self.options},
            "places": list(self.places),
            "paper": self.paper,
        }


def describe_network(name: str) -> NetworkDescription:
    """Describe the network called `name`; it is built, without memory for its weights where that works.

    Raises:
        UsageError: Unknown name.
    """
    network = find_network(name)
    made_by = network.func if isinstance(network, Preset) else network
    known = isinstance(made_by, type) and issubclass(made_by, Network)
    dims: tuple[int, ...] = getattr(made_by, "dims", (2, 3))
    return NetworkDescription(
        name=name,
        kind=kind_of(network),
        summary=(inspect.getdoc(made_by) or "").partition("\n")[0],
        dims=dims,
        parameters={axes: count_parameters(network, axes) for axes in dims} if known else {},
        options=_options(network, made_by),
        places=getattr(made_by, "places", ()),
        paper=getattr(network, "paper", "") or getattr(made_by, "paper", ""),
    )


def count_parameters(network: Callable[..., nn.Module], spatial_dims: int) -> int:
    """Return the parameters of a network with its defaults, for one input channel and two classes."""
    try:
        with torch.device("meta"):
            made = network(1, 2, spatial_dims)
    except (RuntimeError, UsageError):  # some compute with their own numbers while they are built
        made = network(1, 2, spatial_dims)
    return sum(parameter.numel() for parameter in made.parameters())


def _options(network: Callable[..., nn.Module], made_by: Callable[..., nn.Module]) -> tuple[NetworkOption, ...]:
    words = {item.arg_name: item.description or "" for item in docstring_parser.parse(inspect.getdoc(made_by) or "").params}
    return tuple(
        NetworkOption(parameter.name, parameter.default, " ".join(words.get(parameter.name, "").split()))
        for parameter in inspect.signature(network).parameters.values()
        if parameter.name not in _GIVEN and parameter.default is not parameter.empty
    )
