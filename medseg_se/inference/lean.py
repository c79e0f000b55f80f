"""Checkpoints for inference alone: the weights that are judged and the description, without the state of a training."""

from __future__ import annotations

from pathlib import Path

import torch

from medseg_se.checkpoints import read_checkpoint
from medseg_se.files import atomic_write
from medseg_se.inference.postprocessing import PostProcessing


def write_lean(checkpoint: Path, path: Path, postprocessing: PostProcessing, label_dtype: str) -> None:
    """Write what `Model.load` needs of `checkpoint` to `path`, together with what is done to its label maps.

    Args:
        checkpoint: The checkpoint of a training.
        path: The file that is written.
        postprocessing: What is done to label maps.
        label_dtype: Their type, in which models must agree that predict together.

    Raises:
        CheckpointError: See `read_checkpoint`.
        OutputError: The file cannot be written.
    """
    description, state, _ = read_checkpoint(checkpoint)
    content = {
        "state_dict": {f"network.{name}": value for name, value in state.items()},
        "medseg_se": {
            **description,
            "data": {**description["data"], "label_dtype": label_dtype},
            "postprocessing": postprocessing.to_dict(),
        },
    }
    with atomic_write(path) as stream:
        torch.save(content, stream)
