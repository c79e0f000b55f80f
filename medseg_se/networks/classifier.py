"""What the networks that classify a whole scan have in common: the way through them, and their last layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medseg_se.dims import NormName
from medseg_se.errors import UsageError
from medseg_se.networks.base import Network, check_statistics


class Classifier(Network):
    """A network that maps scans (N, in_channels, *spatial) to (N, num_classes): a stem, levels, and a head.

    Attributes:
        norm_name: Its normalisation.
        shrinkage: Product of all strides, along each axis.
        stem: What comes before the first level.
        encoder: The levels.
        head: What comes after the last.
    """

    kind = "classification"

    norm_name: NormName
    shrinkage: Sequence[int]
    stem: nn.Module
    encoder: nn.ModuleList
    head: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map scans (N, C, *spatial) to logits or values (N, num_classes).

        Raises:
            UsageError: Not a map of this network's axes and channels, or too little of it for its normalisation.
        """
        self.check_input(x)
        check_statistics(x, self.norm_name, self.shrinkage, self.training)
        x = self.stem(x)
        for level in self.encoder:
            x = level(x)
        return self.head(x)  # type: ignore[no-any-return]

    def last_maps(self) -> nn.Module:
        """Return the module that puts out the last maps, of which the head takes the mean."""
        return self.head.get_submodule("before")


class ClassificationHead(nn.Module):
    """Mean over all voxels, dropout and a linear layer: (N, C, *spatial) to (N, num_classes).

    Args:
        channels: Channels of the map.
        num_classes: Classes, or values to regress.
        dropout_rate: Share of the means dropped in training.
        before: What comes before the mean, such as a last activation (Identity when off).
    """

    def __init__(self, channels: int, num_classes: int, dropout_rate: float = 0.0, before: nn.Module | None = None) -> None:
        super().__init__()
        if not 0 <= dropout_rate < 1:
            raise UsageError(f"Expected `dropout` to be at least 0 and below 1, but got {dropout_rate}.")
        self.before = before or nn.Identity()
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate else nn.Identity()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return one row of numbers for each scan."""
        means = self.before(x).mean(dim=tuple(range(2, x.ndim)))
        return self.linear(self.dropout(means))  # type: ignore[no-any-return]
