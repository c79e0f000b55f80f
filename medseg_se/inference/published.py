"""Weights that were exported as safetensors, read back: nothing in such files can be executed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.checkpoints import reason
from medseg_se.errors import CheckpointError
from medseg_se.files import atomic_write


def read_published(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Return the description, the network's weights and a digest of PATH.safetensors, with its PATH.json beside it.

    The same as `medseg_se.checkpoints.read_checkpoint` returns of a checkpoint.

    Raises:
        CheckpointError: A file is missing, is no such file, or the weights are not those that the description was written for.
    """
    from safetensors.torch import load

    beside = path.with_suffix(".json")
    try:
        content, described = path.read_bytes(), json.loads(beside.read_text(encoding="utf-8"))
        description, wanted = described["medseg_se"], described["files"][path.name]["sha256"]
    except OSError as error:
        raise CheckpointError(f"Cannot read {error.filename}: {error.strerror}. Both files are needed.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{beside} does not describe {path.name}, as `medseg-se export` would have it.") from error
    if hashlib.sha256(content).hexdigest() != wanted:
        raise CheckpointError(f"The SHA-256 of {path} is not that in {beside.name}. It is damaged, or not what was exported.")
    try:
        state = load(content)
    except Exception as error:  # whatever the library raises
        raise CheckpointError(f"Cannot read the weights in {path}: {reason(error)}.") from error
    return description, state, hashlib.blake2b(content, digest_size=16).hexdigest()


def restore_checkpoint(path: Path, checkpoint: Path) -> None:
    """Write a checkpoint that `Model.load` reads from PATH.safetensors and PATH.json.

    Raises:
        CheckpointError: As `read_published`.
        OutputError: It cannot be written.
    """
    description, state, _ = read_published(path)
    content = {"state_dict": {f"network.{name}": value for name, value in state.items()}, "medseg_se": description}
    with atomic_write(checkpoint) as stream:
        torch.save(content, stream)


def load_weights(path: Path, network: nn.Module) -> nn.Module:
    """Return a copy of `network` with the weights of a safetensors file."""
    import copy

    from safetensors.torch import load

    twin = copy.deepcopy(network)
    for parameter in twin.parameters():
        parameter.data.zero_()
    twin.load_state_dict(load(path.read_bytes()))
    return twin.eval()
