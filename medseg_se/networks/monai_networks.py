"""MONAI's networks by name, such as ``monai:SwinUNETR``.

Left out are networks that are not one scan in, logits out (autoencoders, diffusion, registration, prompts), those that need
packages which cannot be had everywhere (hyena, torchvision), and Quicknat, whose levels all share one attention block in
MONAI 1.6; this package has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from medseg_se.errors import unknown_name
from medseg_se.networks import MONAI_PREFIX
from medseg_se.networks.base import preset
from medseg_se.networks.monai_classification import DenseNet, EfficientNetBN, ResNet, SENet, ViT
from medseg_se.networks.monai_segmentation import (
    UNETR,
    AttentionUnet,
    BasicUNet,
    BasicUNetPlusPlus,
    DynUNet,
    FlexibleUNet,
    HighResNet,
    MedNeXt,
    SegResNet,
    SegResNetDS,
    SwinUNETR,
    UNet,
    VNet,
)


def find_monai_network(name: str) -> Callable[..., nn.Module]:
    """Return what makes MONAI's network called `name`, which begins with ``monai:``.

    Raises:
        UsageError: Unknown name.
    """
    known = name.removeprefix(MONAI_PREFIX)
    if known not in MONAI_NETWORKS:
        raise unknown_name("network", name, [MONAI_PREFIX + other for other in MONAI_NETWORKS])
    return MONAI_NETWORKS[known]


def _mednext(encoder: Sequence[int], bottleneck: int, blocks: Sequence[int]) -> Callable[..., nn.Module]:
    """Return a size of MedNeXt; its decoder mirrors its encoder."""
    return preset(
        MedNeXt,
        encoder_expansion_ratio=encoder,
        decoder_expansion_ratio=encoder[::-1],
        bottleneck_expansion_ratio=bottleneck,
        blocks_down=blocks,
        blocks_bottleneck=blocks[-1],
        blocks_up=blocks[::-1],
        kernel_size=3,
        use_residual_connection=True,
    )


_SE_RESNET: dict[str, Any] = {"dropout_prob": 0.2}
_SE_RESNEXT: dict[str, Any] = {"block": "se_resnetxt_bottleneck", "groups": 32}
_BOTTLENECK: dict[str, Any] = {"block": "bottleneck"}

MONAI_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "AttentionUnet": AttentionUnet,
    "BasicUNet": BasicUNet,
    "BasicUNetPlusPlus": BasicUNetPlusPlus,
    "DynUNet": DynUNet,
    "FlexibleUNet": FlexibleUNet,
    "HighResNet": HighResNet,
    "MedNeXt": MedNeXt,
    "MedNeXtS": _mednext((2, 2, 2, 2), 2, (2, 2, 2, 2)),
    "MedNeXtB": _mednext((2, 3, 4, 4), 4, (2, 2, 2, 2)),
    "MedNeXtM": _mednext((2, 3, 4, 4), 4, (3, 4, 4, 4)),
    "MedNeXtL": _mednext((3, 4, 8, 8), 8, (3, 4, 8, 8)),
    "SegResNet": SegResNet,
    "SegResNetDS": SegResNetDS,
    "SwinUNETR": SwinUNETR,
    "UNETR": UNETR,
    "UNet": UNet,
    "VNet": VNet,
    "DenseNet": DenseNet,
    "DenseNet121": DenseNet,
    "DenseNet169": preset(DenseNet, block_config=(6, 12, 32, 32)),
    "DenseNet201": preset(DenseNet, block_config=(6, 12, 48, 32)),
    "DenseNet264": preset(DenseNet, block_config=(6, 12, 64, 48)),
    "EfficientNetBN": EfficientNetBN,
    "ResNet": ResNet,
    "resnet10": preset(ResNet, layers=(1, 1, 1, 1)),
    "resnet18": ResNet,
    "resnet34": preset(ResNet, layers=(3, 4, 6, 3)),
    "resnet50": preset(ResNet, layers=(3, 4, 6, 3), **_BOTTLENECK),
    "resnet101": preset(ResNet, layers=(3, 4, 23, 3), **_BOTTLENECK),
    "resnet152": preset(ResNet, layers=(3, 8, 36, 3), **_BOTTLENECK),
    "resnet200": preset(ResNet, layers=(3, 24, 36, 3), **_BOTTLENECK),
    "SENet": SENet,
    "SENet154": preset(
        SENet,
        **_SE_RESNET,
        block="se_bottleneck",
        layers=(3, 8, 36, 3),
        groups=64,
        inplanes=128,
        downsample_kernel_size=3,
        input_3x3=True,
    ),
    "SEResNet50": SENet,
    "SEResNet101": preset(SENet, layers=(3, 4, 23, 3), **_SE_RESNET),
    "SEResNet152": preset(SENet, layers=(3, 8, 36, 3), **_SE_RESNET),
    "SEResNext50": preset(SENet, **_SE_RESNEXT),
    "SEResNext101": preset(SENet, layers=(3, 4, 23, 3), **_SE_RESNEXT),
    "ViT": ViT,
}
"""MONAI's name → what makes the network. Sizes that MONAI has under names of their own are presets here."""
