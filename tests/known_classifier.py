"""A classifier and a regression of which is known what they look at, as checkpoints that a training could have written."""

import torch
from torch import nn

from medseg_se.attention.se import SqueezeExcitation
from medseg_se.networks.base import Network
from medseg_se.version import CHECKPOINT_FORMAT, __version__


class Sides(Network):
    """Linear after its maps: the scan averaged over cells of 4 voxels, channel 0 its half before, channel 1 that after.

    Answers of a classification into dark, left and right: −(left + right), left − right, right − left, of the mean of each
    half along the last axis. Of a regression: their difference. Where `gated`, squeeze and excitation comes before.
    """

    kind = "classification"

    def __init__(self, in_channels, num_classes, spatial_dims=2, gated=False):
        super().__init__(in_channels, num_classes, spatial_dims)
        self.block = SqueezeExcitation(2, spatial_dims, reduction=1) if gated else nn.Identity()
        self.pool = (nn.AvgPool2d if spatial_dims == 2 else nn.AvgPool3d)(4)
        weight = [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]] if num_classes == 3 else [[-1.0, 1.0]]
        self.linear = nn.Linear(2, num_classes, bias=False)
        self.linear.weight.data = torch.tensor(weight)

    def last_maps(self):
        return self.pool

    def forward(self, x):
        before = torch.arange(x.shape[-1]) < x.shape[-1] // 2
        x = x.mean(dim=1, keepdim=True)
        maps = self.pool(self.block(torch.cat([x * before, x * ~before], dim=1)))
        return self.linear(maps.mean(dim=tuple(range(2, maps.ndim))))


def write_checkpoint(path, names, size, task="classification", **options):
    """Write the checkpoint of a network "sides", whose answers are called `names`; NETWORKS must have it."""
    dims = len(size)
    pictures = dims == 2
    torch.manual_seed(0)
    network = Sides(1, len(names), dims, **options)
    preprocessing = {"orientation": "PLS" if pictures else "RAS", "spacing": None, "intensity": "zscore"}
    description = {
        "format": CHECKPOINT_FORMAT,
        "version": __version__,
        "task": task,
        "network": {
            "name": "sides",
            "in_channels": 1,
            "num_classes": len(names),
            "spatial_dims": dims,
            "options": options,
        },
        "data": {
            "dataset": "made up",
            "channels": ["image"],
            {"classification": "classes", "regression": "values"}[task]: list(names),
            "preprocessing": preprocessing,
            "size": list(size),
            "slice_axis": "axial" if pictures else None,
            "flat_axis": 2 if pictures else None,
            "colour": "grey" if pictures else None,
            "training": [],
            "validation": [],
        },
    }
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "medseg_se": description}, path)
    return path
