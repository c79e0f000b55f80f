"""The interface of engines, and which of them compute where and in which precision."""

from __future__ import annotations

import importlib.util
from typing import Literal, Protocol

import torch
from torch import Tensor

from medseg_se.errors import UsageError, unknown_name
from medseg_se.hardware import has_bfloat16
from medseg_se.optional import load_optional

EngineName = Literal["auto", "torch", "compiled", "openvino", "onnx"]
EnginePrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16"),
    "compiled": ("fp32", "bf16", "fp16"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnx": ("fp32",),
}
"""Engine → the precisions that it has on some device."""

PACKAGES = {
    "torch": (),
    "compiled": (),
    "openvino": ("openvino", "onnx", "onnxscript"),
    "onnx": ("onnxruntime", "onnx", "onnxscript"),
}
"""Engine → the optional packages that it needs: the engine itself, and what converts a network for it."""


class Engine(Protocol):
    """What answers tiles; several threads may call it at a time.

    Attributes:
        name: "torch", "compiled", "openvino" or "onnx".
        precision: "fp32", "bf16", "fp16" or "int8".
        batch: The most tiles that it takes at a time.
    """

    name: str
    precision: str
    batch: int

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return logits (N, maps, *spatial) of tiles (N, C, *spatial), float32, of which there are at most `batch`."""
        ...


class ConversionError(UsageError):
    """An engine cannot take over a network; another one can answer in its place."""


def check_engine(name: str, precision: str, device: torch.device) -> None:
    """Refuse an engine or precision that is unknown, not installed, or not to be had on `device`; neither is "auto".

    Raises:
        UsageError: As said.
    """
    if name not in PRECISIONS:
        raise unknown_name("engine", name, ["auto", *PRECISIONS])
    every = ("fp32", "bf16", "fp16", "int8")
    if precision not in every:
        raise unknown_name("precision", precision, ["auto", *every])
    for package in (*PACKAGES[name], *(["nncf"] if precision == "int8" else [])):
        if importlib.util.find_spec(package) is None:  # to import them all would take a second, and not all may be needed
            load_optional(package)
    if precision not in PRECISIONS[name]:
        fitting = [other for other, known in PRECISIONS.items() if precision in known]
        raise UsageError(
            f"Expected the precision of the engine {name!r} to be one of {', '.join(PRECISIONS[name])}, but got {precision!r}, "
            f"which {', '.join(fitting)} has."
        )
    if name == "openvino" and device.type != "cpu":
        raise UsageError(f"The engine 'openvino' computes on the CPU, but the device is {device}. Add --device cpu.")
    if name == "onnx" and device.type not in _onnx_devices():
        raise UsageError(
            f"The engine 'onnx' computes on {' and '.join(_onnx_devices())} here, but the device is {device}. "
            "Choose another engine or device, or install onnxruntime-gpu in place of onnxruntime."
        )
    if precision == "bf16" and not has_bfloat16(device):
        raise UsageError(f"The device {device} does not compute in bfloat16. Leave out the precision.")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("A CPU does not compute in float16 at speed. Leave out the precision.")


def _onnx_devices() -> list[str]:
    providers = load_optional("onnxruntime").get_available_providers()
    return ["cpu", *(["cuda"] if "CUDAExecutionProvider" in providers else [])]


def best_engine(device: torch.device) -> str:
    """Return what "auto" stands for: on a CPU "openvino" where it is installed, and "torch" elsewhere."""
    installed = all(importlib.util.find_spec(package) for package in PACKAGES["openvino"])
    return "openvino" if device.type == "cpu" and installed else "torch"


def best_precision(name: str, device: torch.device) -> str:
    """Return what "auto" stands for: bf16 where the hardware has it, fp16 on other CUDA devices, fp32 elsewhere."""
    if "bf16" in PRECISIONS[name] and has_bfloat16(device):
        return "bf16"
    return "fp16" if "fp16" in PRECISIONS[name] and device.type == "cuda" else "fp32"


def filled(tiles: Tensor, batch: int) -> Tensor:
    """Return tiles (N, C, *spatial) with tiles of 0 after them up to `batch`.

    Raises:
        ValueError: There are more.
    """
    if len(tiles) > batch:
        raise ValueError(f"Expected at most {batch} tiles at a time, but got {len(tiles)}.")
    if len(tiles) == batch:
        return tiles
    return torch.cat([tiles, tiles.new_zeros((batch - len(tiles), *tiles.shape[1:]))])
