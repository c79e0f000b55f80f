"""MONAI's networks for segmentation.

A class here says what MONAI's own does not: which sizes work, where its stages are, what it registers and never uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from monai.networks import nets
from torch import Tensor, nn

from medseg_se.dims import per_axis
from medseg_se.errors import UsageError, unknown_name
from medseg_se.networks.monai_base import MonaiNetwork, drop_cross_attention
from medseg_se.networks.monai_stages import U_SHAPE, Sizes, Stage, check_length, divided, multiples_of, product, u_shape


class UNet(MonaiNetwork):
    """U-Net of single convolutions or residual units, with the stride at the start of each level.

    Levels: from the first map, already reduced by a stride, to the bottleneck; the decoder's maps count with those of their
    size. Its last block makes the logits, so no attention comes after it.
    """

    paper = "Kerfoot et al., 2019, https://doi.org/10.1007/978-3-030-12029-0_40"
    places = U_SHAPE
    monai = nets.UNet
    defaults: ClassVar[Mapping[str, Any]] = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2)}

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse strides that would be ignored."""
        check_length("strides", options["strides"], len(options["channels"]) - 1)
        return options

    def fitting(self) -> Sizes:
        """Every stride divides a size."""
        return multiples_of(product(self.network.strides, self.spatial_dims))

    def stages(self) -> list[Stage]:
        """Each level is nested into the one above."""
        levels = ["model" + ".1.submodule" * level for level in range(len(self.network.channels))]
        down = [f"{level}.0" for level in levels[:-1]]
        return u_shape([*down, levels[-1]], [f"{level}.2" for level in levels[1:-1]])


class AttentionUnet(MonaiNetwork):
    """U-Net with gates on its skip connections. Levels: from the full resolution to the bottleneck."""

    paper = "Oktay et al., 2018, https://arxiv.org/abs/1804.03999"
    places = U_SHAPE
    monai = nets.AttentionUnet
    defaults: ClassVar[Mapping[str, Any]] = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2)}

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse strides that would be ignored."""
        check_length("strides", options["strides"], len(options["channels"]) - 1)
        return options

    def fitting(self) -> Sizes:
        """Every stride divides a size."""
        return multiples_of(product(self.network.strides, self.spatial_dims))

    def stages(self) -> list[Stage]:
        """Each level is nested into the one above; a gate, the way up and what lies below form one module."""
        up = ["model.1" + ".submodule.1" * level for level in range(len(self.network.channels) - 1)]
        return u_shape(["model.0", *(f"{level}.submodule.0" for level in up[:-1]), f"{up[-1]}.submodule"], up)


class BasicUNet(MonaiNetwork):
    """U-Net of five levels with max pooling. Levels: from the full resolution to the bottleneck."""

    paper = "Falk et al., 2019, https://doi.org/10.1038/s41592-018-0261-2"
    places = U_SHAPE
    monai = nets.BasicUNet

    def fitting(self) -> Sizes:
        """Four poolings by 2, which would drop the last voxels of other sizes."""
        return multiples_of([16] * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The block of each level on the way down and up."""
        return u_shape(["conv_0", "down_1", "down_2", "down_3", "down_4"], [f"upcat_{level}" for level in (1, 2, 3, 4)])


class BasicUNetPlusPlus(MonaiNetwork):
    """UNet++ of five levels; its deep supervision has four outputs, all at the full resolution.

    Levels: from the full resolution to the bottleneck. In the decoder, attention sits on the last node of each level.
    """

    paper = "Zhou et al., 2018, https://arxiv.org/abs/1807.10165"
    places = U_SHAPE
    monai = nets.BasicUNetPlusPlus

    def adapt(self) -> None:
        """Without deep supervision only the last head is used."""
        if not self.network.deep_supervision:
            for node in (1, 2, 3):
                setattr(self.network, f"final_conv_0_{node}", nn.Identity())

    def fitting(self) -> Sizes:
        """As the BasicUNet."""
        return multiples_of([16] * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The first node of each level on the way down, the last one on the way up."""
        return u_shape([f"conv_{level}_0" for level in range(5)], [f"upcat_{level}_{4 - level}" for level in range(4)])

    def run(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """MONAI returns a list that ends with the output of the deepest nest."""
        outputs = self.network(x)
        return tuple(reversed(outputs)) if self.training and len(outputs) > 1 else outputs[-1]


class DynUNet(MonaiNetwork):
    """MONAI's version of nnU-Net's U-Net. Levels: from the full resolution to the bottleneck.

    MONAI registers every block twice and, after each step of deep supervision, keeps its outputs, so that the network cannot
    be copied. Here each is registered once, `run` does what its forward does, and deep outputs have their own sizes instead of
    being enlarged. Transposed convolutions have the strides as kernels.
    """

    paper = "Isensee et al., 2019, https://arxiv.org/abs/1904.08128"
    places = U_SHAPE
    monai = nets.DynUNet
    withheld = ("upsample_kernel_size",)
    defaults: ClassVar[Mapping[str, Any]] = {"kernel_size": 3, "strides": (1, 2, 2, 2, 2)}

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Spread one kernel over all levels and derive the way up from the strides."""
        strides, kernels = options["strides"], options["kernel_size"]
        if max(per_axis(strides[0], self.spatial_dims, "strides")) > 1:
            raise UsageError(f"Expected `strides` to begin with 1, for the full resolution, but got {strides}.")
        if isinstance(kernels, int):
            kernels = [kernels] * len(strides)
        if options.get("filters") is not None:
            check_length("filters", options["filters"], len(strides))
        return {**options, "kernel_size": kernels, "upsample_kernel_size": strides[1:]}

    def adapt(self) -> None:
        """Drop the nested copy of the blocks."""
        del self.network.skip_layers
        self.network.heads = []

    def fitting(self) -> Sizes:
        """Every stride divides a size."""
        return multiples_of(product(self.network.strides, self.spatial_dims))

    def stages(self) -> list[Stage]:
        """The block of each level on the way down and up."""
        steps = len(self.network.downsamples)
        down = ["input_block", *(f"downsamples.{step}" for step in range(steps)), "bottleneck"]
        return u_shape(down, [f"upsamples.{step}" for step in reversed(range(steps + 1))])

    def run(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits; in training with deep supervision those of the next levels too."""
        net, skips, maps = self.network, [], []
        for block in (net.input_block, *net.downsamples):
            x = block(x)
            skips.append(x)
        x = net.bottleneck(x)
        for block, skip in zip(net.upsamples, reversed(skips), strict=True):
            x = block(x, skip)
            maps.append(x)
        logits: Tensor = net.output_block(x)
        if self.training and net.deep_supervision:
            coarse = list(reversed(maps[:-1]))[: net.deep_supr_num]
            return (logits, *(head(part) for head, part in zip(net.deep_supervision_heads, coarse, strict=True)))
        return logits


class SegResNet(MonaiNetwork):
    """Residual encoder and light decoder. Levels: from the full resolution to the bottleneck."""

    paper = "Myronenko, 2018, https://arxiv.org/abs/1810.11654"
    places = U_SHAPE
    monai = nets.SegResNet
    withheld = ("norm_name", "num_groups", "use_conv_final")

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse a decoder that does not mirror the encoder."""
        if {"blocks_down", "blocks_up"} & set(options):
            down = options.get("blocks_down", (1, 2, 2, 4))
            check_length("blocks_up", options.get("blocks_up", (1, 1, 1)), len(down) - 1)
        return options

    def adapt(self) -> None:
        """The last activation is registered a second time beside the layers that it is in."""
        del self.network.act_mod

    def fitting(self) -> Sizes:
        """Every level but the first halves the map."""
        return multiples_of([2 ** (len(self.network.blocks_down) - 1)] * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The blocks of each level on the way down and up."""
        steps = len(self.network.blocks_up)
        return u_shape(
            [f"down_layers.{level}" for level in range(steps + 1)], [f"up_layers.{step}" for step in reversed(range(steps))]
        )


class SegResNetDS(MonaiNetwork):
    """SegResNet with deep supervision of `dsdepth` levels, and with strides that follow the `resolution`.

    Levels: from the full resolution to the bottleneck.
    """

    paper = "Myronenko, 2018, https://arxiv.org/abs/1810.11654"
    places = U_SHAPE
    monai = nets.SegResNetDS
    withheld = ("preprocess",)

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse a decoder that does not mirror the encoder."""
        if options.get("blocks_up") is not None:
            check_length("blocks_up", options["blocks_up"], len(options.get("blocks_down", (1, 2, 2, 4))) - 1)
        return options

    def fitting(self) -> Sizes:
        """MONAI tells."""
        return multiples_of([int(factor) for factor in self.network.shape_factor()])

    def stages(self) -> list[Stage]:
        """The blocks of each level on the way down and up."""
        levels = len(self.network.blocks_down)
        down = [f"encoder.layers.{level}.blocks" for level in range(levels)]
        return u_shape(down, [f"up_layers.{step}.blocks" for step in reversed(range(levels - 1))])

    def run(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """MONAI returns a list in training with deep supervision."""
        outputs: Tensor | list[Tensor] = self.network(x)
        return outputs if isinstance(outputs, Tensor) else tuple(outputs)


class VNet(MonaiNetwork):
    """V-Net of five levels, for 1, 2, 4, 8 or 16 channels. Levels: from the full resolution to the bottleneck.

    Dropout takes whole channels.
    """

    paper = "Milletari et al., 2016, https://arxiv.org/abs/1606.04797"
    places = U_SHAPE
    monai = nets.VNet
    withheld = ("dropout_prob", "dropout_dim")

    def adapt(self) -> None:
        """MONAI's dropout is for 3D, whatever the map: in 2D it would take whole scans."""
        for transition in self.network.children():
            for name, layer in list(transition.named_children()):
                if isinstance(layer, nn.Dropout3d) and self.spatial_dims == 2:
                    setattr(transition, name, nn.Dropout2d(layer.p))

    def fitting(self) -> Sizes:
        """Four strides of 2."""
        return multiples_of([16] * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The transitions down and up."""
        return u_shape(
            ["in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"], ["up_tr32", "up_tr64", "up_tr128", "up_tr256"]
        )


class HighResNet(MonaiNetwork):
    """Dilated residual blocks at the full resolution throughout.

    MONAI normalises the logits themselves over each scan and puts an activation after them.

    Levels: after the first convolution, and after each group of blocks of one dilation.
    """

    paper = "Li et al., 2017, https://arxiv.org/abs/1707.01992"
    places = ("encoder",)
    monai = nets.HighResNet

    def stages(self) -> list[Stage]:
        """The last block before each change of dilation."""
        dilations = [block.layers[1].conv.dilation if hasattr(block, "layers") else None for block in self.network.blocks]
        last = [here for here, (now, then) in enumerate(pairwise(dilations)) if now != then]
        return [Stage("encoder", level, f"blocks.{here}") for level, here in enumerate(last)]


class FlexibleUNet(MonaiNetwork):
    """U-Net whose encoder is an EfficientNet or a ResNet, named by `backbone`; never with weights of others.

    The backbones resnet18 and resnet34 are refused: in MONAI 1.6 no gradient passes through their shortcuts.

    Levels: the full resolution, where there is only a decoder, then the backbone's five outputs, the last one being the
    bottleneck.
    """

    paper = "Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597"
    places = U_SHAPE
    monai = nets.FlexibleUNet
    withheld = ("is_pad",)
    always: ClassVar[Mapping[str, Any]] = {"pretrained": False}
    defaults: ClassVar[Mapping[str, Any]] = {"backbone": "efficientnet-b0"}

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse backbones that do not train as they should."""
        names = [name for name in nets.FLEXUNET_BACKBONE.register_dict if name not in ("resnet18", "resnet34")]
        if options["backbone"] not in names:
            raise unknown_name("backbone", str(options["backbone"]), names)
        if "decoder_channels" in options:
            check_length("decoder_channels", options["decoder_channels"], 5)
        return options

    def adapt(self) -> None:
        """The encoder has a classifier's last layers, and never uses them."""
        for name in ("_conv_head", "_conv_head_padding", "_bn1", "_fc"):
            if hasattr(self.network.encoder, name):
                delattr(self.network.encoder, name)

    def fitting(self) -> Sizes:
        """Five strides of 2."""
        return multiples_of([32] * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The backbone's outputs, and the blocks of the decoder, of which only the last has the full resolution."""
        encoder = self.network.encoder
        last = ["act", "layer1", "layer2", "layer3", "layer4"]
        if hasattr(encoder, "extract_stacks"):
            last = [f"_blocks.{end - 1}" for end in encoder.extract_stacks]
        down = [None, *(f"encoder.{path}" for path in last)]
        return u_shape(down, [f"decoder.blocks.{step}" for step in reversed(range(5))])


class MedNeXt(MonaiNetwork):
    """ConvNeXt blocks in a U-Net. Levels: from the full resolution to the bottleneck."""

    paper = "Roy et al., 2023, https://arxiv.org/abs/2303.09975"
    places = U_SHAPE
    monai = nets.MedNeXt
    withheld = ("norm_type",)

    def fitting(self) -> Sizes:
        """Every level but the first halves the map."""
        return multiples_of([2 ** len(self.network.enc_stages)] * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The blocks of each level on the way down and up."""
        levels = range(len(self.network.enc_stages))
        down = [*(f"enc_stages.{level}" for level in levels), "bottleneck"]
        return u_shape(down, [f"dec_stages.{step}" for step in reversed(levels)])


class UNETR(MonaiNetwork):
    """Vision transformer as encoder, convolutions as decoder, for scans of up to `img_size` (multiples of 16) voxels.

    Levels: the four resolutions of the convolutional maps, from the full one down. The transformer itself holds tokens, so
    there is no attention in it.
    """

    paper = "Hatamizadeh et al., 2021, https://arxiv.org/abs/2103.10504"
    places = ("encoder", "decoder")
    monai = nets.UNETR
    withheld = ("save_attn",)
    packages = ("einops",)
    defaults: ClassVar[Mapping[str, Any]] = {"img_size": 96}

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Remember the size that fits."""
        self.img_size = divided("img_size", options["img_size"], 16, self.spatial_dims)
        return {**options, "img_size": self.img_size}

    def adapt(self) -> None:
        """Drop what only a decoder's transformer uses."""
        drop_cross_attention(self.network.vit)

    def fitting(self) -> Sizes:
        """The position of every patch has a weight."""
        return Sizes((1,) * self.spatial_dims, self.img_size, self.img_size)

    def stages(self) -> list[Stage]:
        """The convolutions after the transformer, and those of the decoder."""
        down = [Stage("encoder", level, f"encoder{level + 1}") for level in range(4)]
        return [*down, *(Stage("decoder", level, f"decoder{level + 2}") for level in range(4))]


class SwinUNETR(MonaiNetwork):
    """Swin transformer as encoder, convolutions as decoder.

    Levels: from the full resolution to the bottleneck. Attention comes after the convolution of each level; the last but one
    has none, there it comes after the transformer's stage.
    """

    paper = "Hatamizadeh et al., 2022, https://arxiv.org/abs/2201.01266"
    places = U_SHAPE
    monai = nets.SwinUNETR
    withheld = (
        *("patch_size", "norm_layer", "use_hyena", "hyena_stages", "hyena_kernel_size", "hyena_kernel_mlp_dim"),
        *("hyena_kernel_layers", "hyena_mask_max_attenuation", "hyena_fft_padding", "hyena_grid_type", "hyena_use_chunked_fft"),
        *("hyena_use_fft_short_conv", "hyena_omega_0", "hyena_l_cache", "hyena_short_conv_fft_chunks"),
    )
    packages = ("einops",)

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse other numbers of stages than the decoder has levels for."""
        for name in ("depths", "num_heads"):
            if name in options:
                check_length(name, options[name], 4)
        return options

    def fitting(self) -> Sizes:
        """Patches of 2 voxels, and four times two patches become one."""
        return multiples_of([32] * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """The convolutions after the transformer's stages, and those of the decoder."""
        down = ["encoder1", "encoder2", "encoder3", "encoder4", "swinViT.layers3.0", "encoder10"]
        return u_shape(down, [f"decoder{level}" for level in (1, 2, 3, 4, 5)])
