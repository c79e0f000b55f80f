"""A network traced into TorchScript, which runs without the code that made it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg_se.inference.description import network_tile
from medseg_se.inference.engines.conversion import recording
from medseg_se.inference.model import Model


def network_shape(model: Model) -> tuple[int, ...]:
    """Return (C, *spatial) of the tiles that the network takes."""
    return (len(model.channels), *network_tile(model))


def torchscript(model: Model, extra: Mapping[str, str] | None = None) -> bytes:
    """Return the traced network as the content of a TorchScript file, for one tile at a time.

    Args:
        model: The model.
        extra: Files to put inside, by name.
    """
    content = io.BytesIO()
    with recording():
        tile = torch.zeros((1, *network_shape(model)))
        traced: Any = torch.jit.trace(model.network, tile, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, content, _extra_files=dict(extra or {}))
    return content.getvalue()


def load_torchscript(path: Path, model: Model) -> Callable[[Tensor], Tensor]:
    """Return the network in a TorchScript file."""
    network: Callable[[Tensor], Tensor] = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return network
