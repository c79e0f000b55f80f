"""ResNet with pre-activation in 2D and 3D for whole scans, with attention at named places.

He et al., 2016, https://arxiv.org/abs/1603.05027, figure 4e.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medseg_se.networks.base import preset
from medseg_se.networks.blocks import ConvStyle
from medseg_se.networks.placement import AttentionPlan
from medseg_se.networks.preactivation import PreActivation, PreActivationUnit, style_conv
from medseg_se.networks.resnet import Layer, ResNet, total_stride


class PreActivationBlock(nn.Module):
    """Activations and convolutions beside an identity path that nothing changes.

    Where the shape changes the identity path is a strided 1×1 convolution of the first activation.

    Args:
        style: What the convolutions share.
        plan: The attention: before the sum, after it, before the first activation.
        level: The stage.
        entering: Channels of the input.
        layers: The convolutions.
        activated: Whether the input is activated already, as it is after the stem: then the block begins with a convolution.
    """

    def __init__(
        self, style: ConvStyle, plan: AttentionPlan, level: int, entering: int, layers: Sequence[Layer], activated: bool = False
    ) -> None:
        super().__init__()
        dims, (kernel, channels, step) = style.spatial_dims, layers[0]
        leaving, stride = layers[-1][1], total_stride(layers, dims)
        units: list[nn.Module] = [style_conv(style, entering, channels, kernel, step)]
        for kernel, width, step in layers[1:]:
            units.append(PreActivationUnit(style, channels, width, kernel, step))
            channels = width
        before_act = nn.Identity() if activated else plan.build("pre_activation", level, entering, dims)
        self.projects = entering != leaving or max(stride) > 1
        self.pre = nn.Identity() if activated else PreActivation(style, entering, before_act)
        self.shortcut = style_conv(style, entering, leaving, 1, stride) if self.projects else nn.Identity()
        self.units = nn.Sequential(*units)
        self.before_sum = plan.build("residual", level, leaving, dims)
        self.after_sum = plan.build("after_sum", level, leaving, dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, channels of the last layer, *spatial / stride)."""
        activated = self.pre(x)
        x = self.shortcut(activated if self.projects else x) + self.before_sum(self.units(activated))
        return self.after_sum(x)  # type: ignore[no-any-return]


class ResNetV2(ResNet):
    """Stages of pre-activation residual blocks, a last activation, global mean, linear layer.

    Input sizes, arguments and stages are those of `medseg_se.networks.resnet.ResNet`. As the paper's appendix has it, the first
    activation follows the first convolution, before the paths split for the first time: the first block begins without one,
    and without attention at "pre_activation".
    """

    paper = "He et al., 2016, https://arxiv.org/abs/1603.05027"
    block_type = PreActivationBlock

    def pretrained_names(self) -> dict[str, str]:
        """Return nothing: the published weights are those of the first ResNet."""
        return {}

    def _before_head(self, style: ConvStyle, channels: int) -> nn.Module:
        return PreActivation(style, channels)


resnet18v2 = preset(ResNetV2, blocks=(2, 2, 2, 2), bottleneck=False)
"""18 layers: two basic blocks a stage."""

resnet34v2 = preset(ResNetV2, blocks=(3, 4, 6, 3), bottleneck=False)
"""34 layers of basic blocks."""

resnet50v2 = preset(ResNetV2, blocks=(3, 4, 6, 3))
"""50 layers of bottleneck blocks."""

resnet101v2 = preset(ResNetV2, blocks=(3, 4, 23, 3))
"""101 layers of bottleneck blocks."""

resnet152v2 = preset(ResNetV2, blocks=(3, 8, 36, 3))
"""152 layers of bottleneck blocks."""
