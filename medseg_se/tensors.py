"""Files of tensors by name and plain data: read without executing anything in them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


def load_tensors(path: Path) -> Any:
    """Return the content of a file written by `torch.save`, on the CPU.

    Raises:
        pickle.UnpicklingError: It holds other objects than tensors and plain data, or code, or is damaged.
        ValueError: Its checksums do not match its content, which PyTorch leaves unchecked.
        Exception: A damaged file may raise anything.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles that are refused in the next line anyway
        content = torch.load(path, map_location="cpu", weights_only=True)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("its checksums do not match its content")
    return content
