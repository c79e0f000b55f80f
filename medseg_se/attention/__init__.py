"""Attention blocks: each takes a feature map (N, C, *spatial) and returns one of the same shape and type, recalibrated.

`ATTENTION` maps a name to its class; plug in your own with ``ATTENTION["mine"] = Mine``. A class is called with
``(channels, spatial_dims, **options)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from medseg_se.attention.checks import check_options
from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.scse import ChannelSpatialSE
from medseg_se.attention.simam import SimAM
from medseg_se.attention.sse import SpatialSE
from medseg_se.errors import UsageError, unknown_name

ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "cse": ChannelSE,
    "sse": SpatialSE,
    "scse": ChannelSpatialSE,
    "simam": SimAM,
}

__all__ = ["ATTENTION", "ChannelSE", "ChannelSpatialSE", "SimAM", "SpatialSE", "build_attention"]


def build_attention(name: str, channels: int, spatial_dims: int, **options: Any) -> nn.Module:
    """Build the block called `name` for maps of `channels` channels; "none" is Identity.

    Raises:
        UsageError: Unknown name, an option that the block does not have, or a value it refuses.
    """
    if name == "none":
        if options:
            raise UsageError(f"Attention 'none' takes no options, but got {', '.join(options)}.")
        return nn.Identity()
    if name not in ATTENTION:
        raise unknown_name("attention", name, [*ATTENTION, "none"])
    block = ATTENTION[name]
    check_options(f"attention {name!r}", block, ("channels", "spatial_dims"), options)
    return block(channels, spatial_dims, **options)
