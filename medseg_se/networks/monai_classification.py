"""MONAI's networks for classification and regression, as `medseg_se.networks.monai_segmentation` has the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from monai.networks import nets
from torch import Tensor, nn

from medseg_se.networks.monai_base import MonaiClassifier, drop_cross_attention
from medseg_se.networks.monai_stages import Sizes, Stage, divided


class DenseNet(MonaiClassifier):
    """Densely connected layers. Levels: the dense blocks. Smaller scans are lengthened to 32 voxels for four blocks."""

    paper = "Huang et al., 2017, https://arxiv.org/abs/1608.06993"
    monai = nets.DenseNet

    def fitting(self) -> Sizes:
        """A stride, a pooling, and one more pooling after each block but the last."""
        return Sizes((1,) * self.spatial_dims, (2 ** (1 + len(self.stages())),) * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The dense blocks."""
        names = [name for name, _ in self.network.features.named_children() if name.startswith("denseblock")]
        return [Stage("encoder", level, f"features.{name}") for level, name in enumerate(names)]

    def last_maps(self) -> nn.Module:
        """The last activation, after the normalisation of the last block."""
        return self.network.class_layers.relu  # type: ignore[no-any-return]


class ResNet(MonaiClassifier):
    """Residual network in four stages, which are its levels; any size works.

    MONAI's options `act` and `norm` reach its first layers only, and its shortcuts of type A pass no gradient, so these are not
    offered.
    """

    paper = "He et al., 2016, https://arxiv.org/abs/1512.03385"
    monai = nets.ResNet
    renamed = ("n_input_channels", "num_classes")
    withheld = ("feed_forward", "shortcut_type", "act", "norm")
    defaults: ClassVar[Mapping[str, Any]] = {"block": "basic", "layers": (2, 2, 2, 2), "block_inplanes": (64, 128, 256, 512)}

    def stages(self) -> list[Stage]:
        """The four stages."""
        return [Stage("encoder", level, f"layer{level + 1}") for level in range(4)]


class SENet(MonaiClassifier):
    """Residual network with squeeze and excitation in every block; its four stages are its levels; from 3 voxels on."""

    paper = "Hu et al., 2018, https://arxiv.org/abs/1709.01507"
    monai = nets.SENet
    renamed = ("in_channels", "num_classes")
    defaults: ClassVar[Mapping[str, Any]] = {
        "block": "se_resnet_bottleneck",
        "layers": (3, 4, 6, 3),
        "groups": 1,
        "reduction": 16,
        "dropout_prob": None,
        "inplanes": 64,
        "downsample_kernel_size": 1,
        "input_3x3": False,
    }

    def fitting(self) -> Sizes:
        """The first stride leaves the first pooling something."""
        return Sizes((1,) * self.spatial_dims, (3,) * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The four stages."""
        return [Stage("encoder", level, f"layer{level + 1}") for level in range(4)]


class EfficientNetBN(MonaiClassifier):
    """EfficientNet, named by `model_name`; never with weights of others. Levels: its seven groups of blocks."""

    paper = "Tan and Le, 2019, https://arxiv.org/abs/1905.11946"
    monai = nets.EfficientNetBN
    renamed = ("in_channels", "num_classes")
    withheld = ("progress", "adv_prop")
    always: ClassVar[Mapping[str, Any]] = {"pretrained": False}
    defaults: ClassVar[Mapping[str, Any]] = {"model_name": "efficientnet-b0"}

    def fitting(self) -> Sizes:
        """MONAI's padding is made for one size; below 32 voxels kernels may find too few."""
        return Sizes((1,) * self.spatial_dims, (32,) * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The groups of blocks."""
        return [Stage("encoder", level, f"_blocks.{level}") for level in range(len(self.network._blocks))]

    def last_maps(self) -> nn.Module:
        """The activation after the last convolution, whose last call that is."""
        return self.network._swish  # type: ignore[no-any-return]


class ViT(MonaiClassifier):
    """Vision transformer for scans of up to `img_size` voxels, a multiple of `patch_size`; smaller ones are lengthened.

    Its features are tokens rather than maps, so it takes no attention.
    """

    paper = "Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929"
    places = ()
    monai = nets.ViT
    renamed = ("in_channels", "num_classes")
    withheld = ("save_attn",)
    packages = ("einops",)
    always: ClassVar[Mapping[str, Any]] = {"classification": True, "post_activation": ""}
    defaults: ClassVar[Mapping[str, Any]] = {"img_size": 96, "patch_size": 16}

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Remember the size that fits."""
        self.img_size = divided("img_size", options["img_size"], options["patch_size"], self.spatial_dims)
        return {**options, "img_size": self.img_size}

    def adapt(self) -> None:
        """Drop what only a decoder's transformer uses."""
        drop_cross_attention(self.network)

    def fitting(self) -> Sizes:
        """The position of every patch has a weight."""
        return Sizes((1,) * self.spatial_dims, self.img_size, self.img_size)

    def run(self, x: Tensor) -> Tensor:
        """MONAI returns the logits and the tokens of every layer."""
        return self.network(x)[0]  # type: ignore[no-any-return]
