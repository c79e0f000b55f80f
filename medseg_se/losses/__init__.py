"""Losses by name. `LOSSES` maps a name to its class; plug in your own with ``LOSSES["mine"] = Mine``.

A loss maps logits (N, C, *spatial) and targets (N, *spatial) of structure indices to a scalar; voxels that are `IGNORE` do not
count. Where several devices train together it is the loss of all their batches as if they were one, see `over_devices`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from medseg_se.attention.checks import check_options
from medseg_se.errors import UsageError, unknown_name
from medseg_se.losses.boundary import BoundaryLoss
from medseg_se.losses.deep_supervision import DeepSupervisionLoss, shrink
from medseg_se.losses.dice_ce import DiceCELoss
from medseg_se.losses.focal_tversky import FocalTverskyLoss
from medseg_se.losses.regions import DiceBCERegionsLoss
from medseg_se.losses.sums import over_devices
from medseg_se.losses.weights import median_frequency_weights

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "boundary": BoundaryLoss,
    "dice_bce_regions": DiceBCERegionsLoss,
    "dice_ce": DiceCELoss,
    "focal_tversky": FocalTverskyLoss,
}

__all__ = [
    "LOSSES",
    "BoundaryLoss",
    "DeepSupervisionLoss",
    "DiceBCERegionsLoss",
    "DiceCELoss",
    "FocalTverskyLoss",
    "build_loss",
    "median_frequency_weights",
    "over_devices",
    "shrink",
]


def build_loss(name: str, **options: Any) -> nn.Module:
    """Build the loss called `name`.

    Args:
        name: One of `LOSSES`.
        options: Options of the loss.

    Raises:
        UsageError: Unknown name, an option that the loss does not have, or a value it refuses.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    check_options(f"loss {name!r}", LOSSES[name], (), options)
    try:
        return LOSSES[name](**options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{option} {value!r}" for option, value in options.items())
        raise UsageError(f"Loss {name!r} cannot be made with {given}: {error}.") from error
