"""ONNX Runtime in float32, on a CPU or, with its package for that, on CUDA: https://onnxruntime.ai."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medseg_se.checkpoints import reason
from medseg_se.inference.engines.base import ConversionError, filled
from medseg_se.inference.engines.conversion import Conversion
from medseg_se.optional import load_optional


def onnx_model(conversion: Conversion) -> bytes:
    """Return a network as an ONNX model, kept for the next time."""
    return conversion.kept("onnx", conversion.onnx, lambda content: content)


class ONNXEngine:
    """An ONNX model in a session of ONNX Runtime; see `Engine`.

    Args:
        model: For exactly `batch` tiles.
        batch: The most tiles that it takes at a time.
        device: A CPU or a CUDA device.

    Raises:
        ConversionError: ONNX Runtime cannot run it.
    """

    name, precision = "onnx", "fp32"

    def __init__(self, model: bytes, batch: int, device: torch.device) -> None:
        self.batch = batch
        onnxruntime = load_optional("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # its own exceptions have no common base
            raise ConversionError(f"ONNX Runtime cannot run this network: {reason(error)}. Choose the engine torch.") from error

    def __call__(self, tiles: Tensor) -> Tensor:
        """Answer tiles; on the CPU."""
        whole = filled(tiles.detach().to("cpu", torch.float32), self.batch).contiguous().numpy()
        (answer,) = self._session.run(["logits"], {"tiles": whole})
        return torch.from_numpy(answer)[: len(tiles)]
