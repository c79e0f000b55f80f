"""What computes a network's answer to tiles: torch, compiled torch, OpenVINO or ONNX Runtime, behind one small interface."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from medseg_se.errors import UsageError
from medseg_se.inference.engines.base import Engine, check_engine
from medseg_se.inference.engines.cache import Cache

__all__ = ["Engine", "make_engine"]


def make_engine(
    network: nn.Module,
    name: str,
    precision: str,
    shape: tuple[int, ...],
    batch: int,
    device: torch.device,
    cache: Path | Cache | None,
    digest: str,
) -> Engine:
    """Make an engine that answers as `network` does; see `medseg_se.inference.engines.checked` for one that proves it.

    Args:
        network: In evaluation, on `device`. Its weights are shared or copied, never changed.
        name: "torch", "compiled", "openvino" or "onnx".
        precision: "fp32", "bf16" or "fp16", as far as the engine and the device have it.
        shape: (C, *spatial) of a tile.
        batch: The most tiles it takes at a time.
        device: Where it computes.
        cache: The folder in which converted models are kept; None keeps nothing.
        digest: What tells the weights apart from all others, such as the digest of the checkpoint.

    Raises:
        UsageError: The engine is unknown, needs a package that is not installed, does not compute there or in that precision,
            or cannot take over this network (`ConversionError`).
    """
    check_engine(name, precision, device)
    kept = cache if isinstance(cache, Cache) else Cache(cache)
    if name == "torch":
        from medseg_se.inference.engines.torch_engine import TorchEngine

        return TorchEngine(network, precision, batch, device)
    if name == "compiled":
        from medseg_se.inference.engines.torch_engine import CompiledEngine

        return CompiledEngine(network, precision, shape, batch, device)
    if precision == "int8":
        raise UsageError("Expected scans to calibrate int8 with, but got none.")
    from medseg_se.inference.engines.conversion import Conversion

    conversion = Conversion(network, shape, batch, device, kept, digest)
    if name == "openvino":
        from medseg_se.inference.engines.openvino_engine import OpenVINOEngine, openvino_model

        return OpenVINOEngine(openvino_model(conversion), precision, batch)
    from medseg_se.inference.engines.onnx_engine import ONNXEngine, onnx_model

    return ONNXEngine(onnx_model(conversion), batch, device)
