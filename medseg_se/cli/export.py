"""`medseg-se export`: a trained model in a form that other programs read."""

from __future__ import annotations

from typing import Literal


def export(
    checkpoint: str,
    *,
    output: str,
    format: Literal["onnx", "torchscript", "torch-export", "openvino", "monai-bundle", "safetensors"] = "onnx",
    overlap: float = 0.5,
    overwrite: bool = False,
) -> int:
    """Write a model in a form that other programs read, after it has answered as the checkpoint does.

    Beside it, or in the bundle, a JSON file describes what a program must do: channels, orientation, spacing, intensities,
    tiles, structures with their label values, and post-processing; with versions and SHA-256.

    Args:
        checkpoint: A checkpoint written by `medseg-se fit` or `medseg-se cv`.
        output: The file (.onnx, .ts, .pt2, .xml or .safetensors); of a MONAI bundle the folder.
        format: The form.
        overlap: Share of a tile that its neighbour should cover too, for the description and the bundle.
        overwrite: Replace what is there.
    """
    from medseg_se.inference.export import export_model

    written = export_model(checkpoint, output, format, overlap, overwrite)
    print(f"{written.path}: logits differ from the checkpoint's by at most {written.difference:.1e} of their range")
    print(f"{written.description}: what a program must know to use it")
    return 0
