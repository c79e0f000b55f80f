"""The forms of export: for each a function that makes the content of files, and one that reads them back as others would."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg_se.inference.bundle import bundle_files
from medseg_se.inference.description import weights_file
from medseg_se.inference.engines.conversion import onnx_bytes, recording
from medseg_se.inference.model import Model
from medseg_se.inference.published import load_weights
from medseg_se.inference.torchscript import load_torchscript, network_shape, torchscript
from medseg_se.optional import load_optional

Files = dict[str, bytes]
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """How models are exported in one form.

    Attributes:
        endings: What the name of the file may end in; nothing for a folder.
        make: From a model, its description and the name of the file to the content of every file by its name.
        load: From the path of the file or folder, and a model for its networks, to what answers tiles.
        packages: Optional packages that are needed.
    """

    endings: tuple[str, ...]
    make: Callable[[Model, dict[str, Any], str], Files]
    load: Callable[[Path, Model], Network]
    packages: tuple[str, ...] = ()


def _onnx(model: Model, description: dict[str, Any], name: str) -> Files:
    return {name: onnx_bytes(model.network, network_shape(model), 1, model.device)}


def _load_onnx(path: Path, model: Model) -> Network:
    session = load_optional("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda tiles: torch.from_numpy(session.run(["logits"], {"tiles": tiles.numpy()})[0])


def _torchscript(model: Model, description: dict[str, Any], name: str) -> Files:
    return {name: torchscript(model, {"medseg_se.json": json.dumps(description)})}


def _torch_export(model: Model, description: dict[str, Any], name: str) -> Files:
    content = io.BytesIO()
    with recording():
        program = torch.export.export(model.network, (torch.zeros((1, *network_shape(model))),), strict=False)
        torch.export.save(program, content, extra_files={"medseg_se.json": json.dumps(description)})
    return {name: content.getvalue()}


def _load_torch_export(path: Path, model: Model) -> Network:
    with recording():
        network: Network = torch.export.load(path).module()
    return network


def _openvino(model: Model, description: dict[str, Any], name: str) -> Files:
    from medseg_se.inference.engines.openvino_engine import converted, serialised

    text, weights = serialised(converted(lambda: onnx_bytes(model.network, network_shape(model), 1, model.device)))
    return {Path(name).with_suffix(".bin").name: weights, name: text}


def _load_openvino(path: Path, model: Model) -> Network:
    from medseg_se.inference.engines.openvino_engine import OpenVINOEngine

    return OpenVINOEngine(load_optional("openvino").Core().read_model(path), "fp32", 1)


def _safetensors(model: Model, description: dict[str, Any], name: str) -> Files:
    return {name: weights_file(model.network.state_dict())}


def _load_safetensors(path: Path, model: Model) -> Network:
    return load_weights(path, model.network)


def _bundle(model: Model, description: dict[str, Any], name: str) -> Files:
    return bundle_files(model, description, name)


def _load_bundle(path: Path, model: Model) -> Network:
    return load_torchscript(path / "models" / "model.ts", model)


FORMS: dict[str, Form] = {
    "onnx": Form((".onnx",), _onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Form((".ts", ".pt"), _torchscript, load_torchscript),
    "torch-export": Form((".pt2",), _torch_export, _load_torch_export),
    "openvino": Form((".xml",), _openvino, _load_openvino, ("openvino", "onnx", "onnxscript")),
    "monai-bundle": Form((), _bundle, _load_bundle),
    "safetensors": Form((".safetensors",), _safetensors, _load_safetensors),
}
