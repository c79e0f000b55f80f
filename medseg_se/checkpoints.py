"""What a checkpoint of a training holds: a description as plain data, and the weights that are judged."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg_se.errors import CheckpointError
from medseg_se.tensors import load_tensors
from medseg_se.version import CHECKPOINT_FORMAT

AVERAGE = "average.module."
"""What the names of averaged weights begin with in a checkpoint; see `medseg_se.tasks.averaging`."""


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Return the description, the network's weights and the digest of a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: The file is missing, damaged, holds code, or was written by another program.
    """
    if path.is_dir():
        raise CheckpointError(f"Expected a checkpoint file, but {path} is a folder; see its checkpoints/best.ckpt.")
    if not path.is_file():
        raise CheckpointError(f"No such checkpoint: {path}.")
    try:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        content = load_tensors(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no checkpoint of tensors and plain data: it holds other objects or code, or is damaged. Nothing in it "
            "was executed."
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise CheckpointError(f"Cannot read the checkpoint {path}: {reason(error)}. It may be damaged.") from error
    description = content.get("medseg_se") if isinstance(content, dict) else None
    if not isinstance(description, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path} was not written by medseg-se: it does not say what the network and its structures are.")
    if description.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {description.get('format')}, but this version reads format {CHECKPOINT_FORMAT}. "
            f"It was written by medseg-se {description.get('version')}."
        )
    if not description.get("data"):
        raise CheckpointError(f"{path} does not say what data it was trained on; it was trained without a data module.")
    averaged = any(name.startswith(AVERAGE) for name in content["state_dict"])  # what was judged, see `Task.answer`
    prefix = AVERAGE if averaged else "network."
    state = {name[len(prefix) :]: value for name, value in content["state_dict"].items() if name.startswith(prefix)}
    return description, state, digest


def task_of(path: Path) -> str:
    """Return what a checkpoint was trained for, without reading its weights; "segmentation" of a file that does not say.

    Whether the file is whole and ours is for `read_checkpoint` to find out.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(content["medseg_se"]["task"])
    except Exception:  # a damaged file may raise anything, and is refused with the reason when it is read
        return "segmentation"


def reason(error: BaseException) -> str:
    """Return the first sentence of what an error says, without its full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0].rstrip(".")[:200]
