"""Networks by name. `NETWORKS` maps a name to its class; plug in your own with ``NETWORKS["mine"] = Mine``.

A class is called with ``(in_channels, num_classes, spatial_dims, **options)`` and maps (N, C, *spatial) to logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from medseg_se.attention.checks import check_options
from medseg_se.errors import unknown_name
from medseg_se.networks.unet import UNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet}

__all__ = ["NETWORKS", "UNet", "build_network"]


def build_network(name: str, in_channels: int, num_classes: int, spatial_dims: int, **options: Any) -> nn.Module:
    """Build the network called `name`.

    Raises:
        UsageError: Unknown name, an option that the network does not have, or a value it refuses.
    """
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    network = NETWORKS[name]
    check_options(f"network {name!r}", network, ("in_channels", "num_classes", "spatial_dims"), options)
    return network(in_channels, num_classes, spatial_dims, **options)
