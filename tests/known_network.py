"""A network whose answer is known voxel by voxel, and checkpoints made without training, for several test files."""

from __future__ import annotations

import torch
from torch import nn

from medseg_se.data.preprocessing import Preprocessing
from medseg_se.networks import build_network
from medseg_se.structures import Structures

STRUCTURES = Structures({"near": (7,), "far": (300,)})


class NearestLevel(nn.Module):
    """Give each voxel the class whose level is nearest to the intensity of the first channel.

    -(x - level)² without the x² that all classes share: logits linear in x, so they commute with linear resampling.
    """

    def __init__(self, in_channels, num_classes, spatial_dims, levels=(0.0, 1.0, 2.0)):
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels).reshape(-1, *[1] * spatial_dims))

    def forward(self, x):
        return 20 * (2 * x[:, :1] * self.levels - self.levels**2)


def checkpoint_content(
    network="nearest_level",
    options=None,
    structures=STRUCTURES,
    channels=("T1",),
    preprocessing=Preprocessing(intensity="none"),  # noqa: B008 - frozen
    tile=(8, 8, 8),
    flat_axis=None,
    label_dtype="int16",
    training=(),
    validation=(),
):
    """Return what a checkpoint of `network` with random (but always the same) weights holds."""
    spatial_dims = 3 if flat_axis is None else 2
    torch.manual_seed(0)
    made = build_network(network, len(channels), structures.num_classes, spatial_dims, **(options or {}))
    return {
        "state_dict": {f"network.{name}": value for name, value in made.state_dict().items()},
        "medseg_se": {
            "format": 1,
            "version": "0",
            "task": "segmentation",
            "network": {
                "name": network,
                "in_channels": len(channels),
                "num_classes": structures.num_classes,
                "spatial_dims": spatial_dims,
                "options": options or {},
            },
            "data": {
                "dataset": "cubes",
                "channels": list(channels),
                "structures": structures.to_dict(),
                "label_dtype": label_dtype,
                "preprocessing": preprocessing.to_dict(),
                "flat_axis": flat_axis,
                "tile": list(tile),
                "training": list(training),
                "validation": list(validation),
            },
        },
    }


def write_checkpoint(path, **choices):
    """Write such a checkpoint to `path` and return the path."""
    torch.save(checkpoint_content(**choices), path)
    return path
