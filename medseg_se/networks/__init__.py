"""Networks by name. `NETWORKS` maps a name to its class; plug in your own with ``NETWORKS["mine"] = Mine``.

A class is called with ``(in_channels, num_classes, spatial_dims, **options)`` and maps (N, C, *spatial) to logits, of every
voxel where its `kind` is "segmentation", of the scan where it is "classification".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from medseg_se.attention.checks import check_options
from medseg_se.errors import UsageError, unknown_name
from medseg_se.networks.base import Kind, Network
from medseg_se.networks.denisnet import DenisNet, denisnet_split
from medseg_se.networks.densenet import DenseNet, densenet_roy2018, quicknat
from medseg_se.networks.densenet121 import densenet121, densenet169, densenet201
from medseg_se.networks.fc_densenet import FCDenseNet, fc_densenet56, fc_densenet67, fc_densenet103
from medseg_se.networks.fpn import FPN
from medseg_se.networks.inception import Inception
from medseg_se.networks.mobilenetv2 import MobileNetV2
from medseg_se.networks.mobilenext import MobileNeXt
from medseg_se.networks.placement import has_attention
from medseg_se.networks.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from medseg_se.networks.resnetv2 import resnet18v2, resnet34v2, resnet50v2, resnet101v2, resnet152v2
from medseg_se.networks.sdnet import SDNet, sdnet_roy2018
from medseg_se.networks.segresnet import SegResNet
from medseg_se.networks.sqet import SQET
from medseg_se.networks.unet import UNet, unet_resenc, unet_roy2018

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "denisnet": DenisNet,
    "denisnet_split": denisnet_split,
    "densenet": DenseNet,
    "densenet_roy2018": densenet_roy2018,
    "densenet121": densenet121,
    "densenet169": densenet169,
    "densenet201": densenet201,
    "fc_densenet": FCDenseNet,
    "fc_densenet56": fc_densenet56,
    "fc_densenet67": fc_densenet67,
    "fc_densenet103": fc_densenet103,
    "fpn": FPN,
    "inception": Inception,
    "mobilenetv2": MobileNetV2,
    "mobilenext": MobileNeXt,
    "quicknat": quicknat,
    "resnet18": resnet18,
    "resnet18v2": resnet18v2,
    "resnet34": resnet34,
    "resnet34v2": resnet34v2,
    "resnet50": resnet50,
    "resnet50v2": resnet50v2,
    "resnet101": resnet101,
    "resnet101v2": resnet101v2,
    "resnet152": resnet152,
    "resnet152v2": resnet152v2,
    "sdnet": SDNet,
    "sdnet_roy2018": sdnet_roy2018,
    "segresnet": SegResNet,
    "sqet": SQET,
    "unet": UNet,
    "unet_resenc": unet_resenc,
    "unet_roy2018": unet_roy2018,
}

MONAI_PREFIX = "monai:"

__all__ = ["MONAI_PREFIX", "NETWORKS", "UNet", "build_network", "find_network"]


def find_network(name: str) -> Callable[..., nn.Module]:
    """Return what makes the network called `name`; a name such as ``monai:SwinUNETR`` is one of MONAI's.

    Raises:
        UsageError: Unknown name.
    """
    if name.startswith(MONAI_PREFIX):
        from medseg_se.networks.monai_networks import find_monai_network  # takes two seconds to import

        return find_monai_network(name)
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS, "Name the file of a network of your own by --plugins.")
    return NETWORKS[name]


def build_network(
    name: str, in_channels: int, num_classes: int, spatial_dims: int, kind: Kind | None = None, **options: Any
) -> nn.Module:
    """Build the network called `name`.

    Args:
        name: One of `NETWORKS`, or ``monai:`` and one of `MONAI_NETWORKS`.
        in_channels: Channels of the scan.
        num_classes: Structures and background; or classes; or values to regress.
        spatial_dims: 2 or 3.
        kind: What the network must be for, "segmentation" or "classification"; anything if not given.
        options: Options of the network.

    Raises:
        UsageError: Unknown name, another kind of network, an option that the network does not have, or a value it refuses.
    """
    network = find_network(name)
    made_for = kind_of(network)
    if kind is not None and made_for != kind:
        fitting = [other for other, factory in NETWORKS.items() if kind_of(factory) == kind]
        raise UsageError(
            f"Expected a network for {kind}, but {name!r} is for {made_for}. Those for {kind}: {', '.join(fitting)}."
        )
    check_options(f"network {name!r}", network, ("in_channels", "num_classes", "spatial_dims"), options)
    try:
        made = network(in_channels, num_classes, spatial_dims, **options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{option} {value!r}" for option, value in options.items())
        raise UsageError(f"Network {name!r} cannot be made with {given or 'its defaults'}: {error}.") from error
    asked = options.get("attention", "none")
    names = {asked} if isinstance(asked, str) else set(asked)
    if isinstance(made, Network) and names != {"none"} and not has_attention(made):
        raise UsageError(
            f"Expected network {name!r} to have a place for `attention` {asked!r} with these options, but it has none at "
            f"`attention_at` {options.get('attention_at', 'of its own')}."
        )
    return made


def kind_of(network: Callable[..., nn.Module]) -> Kind:
    """Return what a network is for; those that do not say are for segmentation."""
    kind: Kind = getattr(getattr(network, "func", network), "kind", "segmentation")
    return kind
