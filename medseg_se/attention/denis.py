"""The squeeze and excitation of DenisNet-SE, without and with the input added.

Densely Connected and Inter-Sparse Convolutional Networks with aggregated Squeeze-and-Excitation transformations, 2021; the
authors' code is at https://github.com/voriarty/DenisNet. The gate is that of Hu et al., see `se`, with r = 6 and no biases.
"""

from __future__ import annotations

from medseg_se.attention.se import SqueezeExcitation


class DenisSE(SqueezeExcitation):
    """SE on the few channels that a dense layer adds: ``x · σ(W₂ relu(W₁ mean(x)))``.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: The hidden layer has ``max(1, channels // reduction)`` units.
    """

    label = "DenisNet SE"

    def __init__(self, channels: int, spatial_dims: int, reduction: int = 6) -> None:
        super().__init__(channels, spatial_dims, reduction)


class DenisSERE(SqueezeExcitation):
    """The same with the input added: ``x · σ(W₂ relu(W₁ mean(x))) + x``.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: The hidden layer has ``max(1, channels // reduction)`` units.
    """

    label = "DenisNet SERE"

    def __init__(self, channels: int, spatial_dims: int, reduction: int = 6) -> None:
        super().__init__(channels, spatial_dims, reduction, residual=True)
