"""One getter for packages that only some users need; its error names the extra that installs them."""

from __future__ import annotations

import importlib
from typing import Any

from medseg_se.errors import UsageError

EXTRA_OF = {
    "blosc2": "fast",
    "einops": "monai",
    "h5py": "mat",
    "highdicom": "dicom",
    "jinja2": "report",
    "matplotlib": "report",
    "nncf": "int8",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "cpu",
    "optuna": "sweep",
    "pydicom": "dicom",
    "ray": "ray",
    "submitit": "sweep",
}


def load_optional(module: str) -> Any:
    """Import an optional `module`.

    Raises:
        UsageError: The package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        raise UsageError(
            f"This needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'medseg-se[{EXTRA_OF[package]}]'."
        ) from error
