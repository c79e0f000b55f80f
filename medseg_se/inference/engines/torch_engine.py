"""PyTorch itself: as it is, on any device, or compiled for tiles of one shape."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.checkpoints import reason
from medseg_se.inference.engines.base import ConversionError, filled

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """The network as it is, under autocast where less than float32 is asked for; see `Engine`."""

    name = "torch"

    def __init__(self, network: nn.Module, precision: str, batch: int, device: torch.device) -> None:
        self.network, self.precision, self.batch, self.device = network, precision, batch, device

    def __call__(self, tiles: Tensor) -> Tensor:
        """Answer tiles; on the device."""
        with torch.inference_mode(), _precision(self.device, self.precision):
            logits: Tensor = self.network(tiles.to(self.device))
        return logits


class CompiledEngine:
    """The network compiled by Inductor for one shape of tiles, which shares its weights with the network; see `Engine`.

    Compiling takes from seconds to minutes, anew in every process.

    Raises:
        ConversionError: The network cannot be compiled here, for example for want of a C++ compiler.
    """

    name = "compiled"

    def __init__(self, network: nn.Module, precision: str, shape: tuple[int, ...], batch: int, device: torch.device) -> None:
        self.precision, self.batch, self.device = precision, batch, device
        # On a CPU compiled convolutions and normalisations are fastest in this layout; weights are in it already.
        last = {3: torch.channels_last, 4: torch.channels_last_3d}.get(len(shape)) if device.type == "cpu" else None
        self._layout = last or torch.contiguous_format
        try:
            self._network: Any = torch.compile(network, dynamic=False)
            self(torch.zeros((batch, *shape)))
        except Exception as error:  # a compiler may raise anything
            raise ConversionError(f"This network cannot be compiled here: {reason(error)}. Choose the engine torch.") from error

    def __call__(self, tiles: Tensor) -> Tensor:
        """Answer tiles; on the device."""
        with torch.inference_mode(), _precision(self.device, self.precision):
            # A copy, so that all tiles are inference tensors of one layout: others would be compiled for once more.
            whole = filled(tiles, self.batch).to(self.device).clone(memory_format=self._layout)
            logits: Tensor = self._network(whole)
            return logits[: len(tiles)].clone() if len(tiles) < self.batch else logits


def _precision(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, _TYPES[precision] if precision != "fp32" else None, enabled=precision != "fp32")
