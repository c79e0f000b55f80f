"""The weights that all variants of a network and seed begin with: those of the network without attention."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg_se.data.segmentation import SegmentationData
from medseg_se.files import atomic_write
from medseg_se.tasks import SegmentationTask

_NOT_THE_NETWORK = ("in_channels", "num_classes", "spatial_dims", "start_from", "freeze", "lr_factors", "discretise_after")


def write_start(settings: Mapping[str, Any], data: SegmentationData, path: Path) -> str:
    """Write a checkpoint of the network without attention as its seed draws it; returns a digest of the weights.

    A training that begins with it (`model.start_from`) takes every parameter that it shares with that network by name and
    shape, and draws those of its blocks at random.

    Args:
        settings: The config of a run.
        data: Its data; their structures and channels tell which output and input is which.
        path: The checkpoint.

    Raises:
        OutputError: It cannot be written.
    """
    given = {
        name: value
        for name, value in settings["model"]["init_args"].items()
        if name not in _NOT_THE_NETWORK and not name.startswith("attention")
    }
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed_everything"])
        task = SegmentationTask(data.in_channels, data.num_classes, data.spatial_dims, attention="none", **given)
    task.model_description = {
        "data": {
            "structures": data.structures.to_dict(),
            "channels": list(data.datalist.channels),
            "targets": list(data.regions.names) if data.regions else None,
            "preprocessing": data.preprocessing.to_dict(),
            "slice_axis": data.slice_axis,
        }
    }
    state = task.network.state_dict()
    checkpoint: dict[str, Any] = {"state_dict": {f"network.{name}": value for name, value in state.items()}}
    task.on_save_checkpoint(checkpoint)
    with atomic_write(path) as stream:
        torch.save(checkpoint, stream)
    return digest_of_weights(state)


def digest_of_weights(state: Mapping[str, Tensor]) -> str:
    """Return a digest of the names and values of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in state.items():
        digest.update(name.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
