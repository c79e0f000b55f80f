"""OpenVINO, the fastest on CPUs: https://docs.openvino.ai.

Networks come to it through ONNX and its own reader of that. Its converter for PyTorch is no faster, and reports its use to its
makers unless told not to.
"""

from __future__ import annotations

import tempfile
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_se.checkpoints import reason
from medseg_se.execution import sums_as_convolutions
from medseg_se.hardware import has_bfloat16
from medseg_se.inference.engines.base import ConversionError, filled
from medseg_se.inference.engines.conversion import Conversion
from medseg_se.optional import load_optional

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def openvino_model(conversion: Conversion) -> Any:
    """Return a network as an `openvino.Model`, kept for the next time."""
    return conversion.kept("openvino", lambda: packed(converted(conversion.onnx)), unpacked)


def converted(export: Callable[[], bytes]) -> Any:
    """Return the `openvino.Model` of a network that `export` records as ONNX, in the form that OpenVINO is fast with.

    Raises:
        ConversionError: It cannot be exported, or has operations that OpenVINO has not.
    """
    with sums_as_convolutions():
        content = export()
    try:
        return load_optional("openvino").Core().read_model(content)
    except RuntimeError as error:
        raise ConversionError(f"OpenVINO cannot read this network: {reason(error)}. Choose the engine torch.") from error


def packed(model: Any) -> bytes:
    """Return an `openvino.Model` as bytes: the length of its description, the description, its weights."""
    description, weights = serialised(model)
    return b"".join((len(description).to_bytes(8, "little"), description, weights))


def serialised(model: Any) -> tuple[bytes, bytes]:
    """Return the content of the two files, .xml and .bin, of an `openvino.Model`."""
    with tempfile.TemporaryDirectory(prefix="medseg-openvino-") as folder:  # it writes to nothing else
        path = Path(folder) / "model.xml"
        load_optional("openvino").serialize(model, path)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def unpacked(content: bytes) -> Any:
    """Return the `openvino.Model` that `packed` made bytes of."""
    openvino, end = load_optional("openvino"), 8 + int.from_bytes(content[:8], "little")
    weights = np.frombuffer(content, dtype=np.uint8, offset=end)  # copied below
    return openvino.Core().read_model(content[8:end], openvino.Tensor(weights))


class OpenVINOEngine:
    """An `openvino.Model` compiled for this CPU; see `Engine`.

    It takes as many threads as torch does. They are not bound to processors, or several programs on one machine would all
    compute on the same ones.

    Args:
        model: For exactly `batch` tiles.
        precision: "fp32", "bf16", or "int8" of a model that was quantised, whose other operations are in bf16 where there is
            such a thing.
        batch: The most tiles that it takes at a time.

    Raises:
        ConversionError: OpenVINO cannot compile it.
    """

    name = "openvino"

    def __init__(self, model: Any, precision: str, batch: int) -> None:
        self.precision, self.batch = precision, batch
        rest = "bf16" if has_bfloat16(torch.device("cpu")) else "fp32"
        options = {
            # Never its own choice, which is bf16 wherever there is such a thing.
            "INFERENCE_PRECISION_HINT": _HINTS[rest if precision == "int8" else precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._compiled = load_optional("openvino").Core().compile_model(_channels_last(model), "CPU", options)
        except RuntimeError as error:
            raise ConversionError(f"OpenVINO cannot compile this network: {reason(error)}. Choose the engine torch.") from error
        self._shape = tuple(self._compiled.output(0).shape)
        self._tensor = load_optional("openvino").Tensor
        self._requests: deque[Any] = deque()
        self._rooms: deque[npt.NDArray[np.float32]] = deque()

    def __call__(self, tiles: Tensor) -> Tensor:
        """Answer tiles; on the CPU."""
        whole = filled(tiles.detach().to("cpu", torch.float32), self.batch).contiguous().numpy()
        try:
            request = self._requests.pop()  # one to a call: no two threads share it
        except IndexError:
            request = self._compiled.create_infer_request()
        answer = self._room()
        try:
            request.set_output_tensor(self._tensor(answer, shared_memory=True))
            request.infer({0: whole}, share_inputs=True, share_outputs=True)
        finally:
            self._requests.append(request)
        return torch.from_numpy(answer).movedim(-1, 1)[: len(tiles)]

    def _room(self) -> npt.NDArray[np.float32]:
        """Return room for an answer, which comes back here when the answer is no longer needed; it may be 400 MB."""
        try:
            room = self._rooms.pop()
        except IndexError:
            room = np.empty(self._shape, dtype=np.float32)
        lent = room[...]
        weakref.finalize(lent, self._rooms.append, room).atexit = False
        return lent


def _channels_last(model: Any) -> Any:
    """Return a model whose logits of one voxel lie side by side, as they are added up and decided; the model given stays.

    One that answers for whole scans, (N, numbers), is returned as it is.
    """
    if len(model.output(0).shape) == 2:
        return model
    openvino = load_optional("openvino")
    steps = openvino.preprocess.PrePostProcessor(model.clone())
    spatial = "DHW"[-(len(model.output(0).shape) - 2) :]
    steps.output().model().set_layout(openvino.Layout(f"NC{spatial}"))
    steps.output().tensor().set_layout(openvino.Layout(f"N{spatial}C"))
    return steps.build()
