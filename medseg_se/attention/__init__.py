"""Attention blocks: each takes a feature map (N, C, *spatial) and returns one of the same shape and type, recalibrated.

`ATTENTION` maps a name to what builds the block, mostly its class, called with ``(channels, spatial_dims, **options)``; plug in
your own with ``ATTENTION["mine"] = Mine``, for the command line in a file that `--plugins` names. `FeatureWeighting`, for
features without space, stands beside the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medseg_se.attention.adaptive import AdaptiveAttention, Unchanged
from medseg_se.attention.bam import BAM
from medseg_se.attention.cbam import CBAM
from medseg_se.attention.checks import check_options
from medseg_se.attention.coordinate import CoordinateAttention
from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.denis import DenisSE, DenisSERE
from medseg_se.attention.eca import EfficientChannelAttention
from medseg_se.attention.fca import FrequencyAttention, FrequencySearch
from medseg_se.attention.feature_weighting import FeatureWeighting
from medseg_se.attention.hybrid import Hybrid, parse
from medseg_se.attention.project_excite import ProjectExcite
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.scse import ChannelSpatialSE
from medseg_se.attention.se import SqueezeExcitation
from medseg_se.attention.self_attention import GatedSelfAttention, WindowAttention
from medseg_se.attention.simam import SimAM
from medseg_se.attention.spatial_pooling import GridSE, PyramidSE
from medseg_se.attention.sse import SpatialSE
from medseg_se.errors import UsageError, unknown_name

__all__ = [
    "ATTENTION",
    "BAM",
    "CBAM",
    "AdaptiveAttention",
    "ChannelSE",
    "ChannelSpatialSE",
    "CoordinateAttention",
    "DenisSE",
    "DenisSERE",
    "EfficientChannelAttention",
    "FeatureWeighting",
    "FrequencyAttention",
    "FrequencySearch",
    "GatedSelfAttention",
    "GridSE",
    "ProjectExcite",
    "PyramidSE",
    "Recalibration",
    "SimAM",
    "SpatialSE",
    "SqueezeExcitation",
    "WindowAttention",
    "attention_names",
    "build_attention",
    "discretise",
    "follow_choices",
    "is_open",
]


def _adaptive(
    channels: int, spatial_dims: int, blocks: Sequence[str] = ("none", "cse", "eca", "coordinate", "simam"), **options: Any
) -> AdaptiveAttention:
    """Build the block that learns which of several `blocks` to use; "none" is one of them.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        blocks: Names of blocks that work in one pass; `max` and `add` hybrids too, but none with `+`.
        options: For each block by its name, such as ``eca={"kernel_size": 5}``.
    """
    if isinstance(blocks, str) or not all(isinstance(name, str) for name in blocks):
        raise UsageError(f"Expected `blocks` to be a list of names, but got {blocks!r}.")
    known = {name for block in blocks for name in attention_names(block)}
    for option in options:
        if option not in known:
            raise unknown_name("option of attention 'adaptive'", option, ["blocks", *known])
    built: dict[str, Recalibration] = {}
    for name in blocks:
        own = {block: options[block] for block in attention_names(name) if block in options}
        block = Unchanged(channels, spatial_dims) if name == "none" else build_attention(name, channels, spatial_dims, **own)
        if not isinstance(block, Recalibration):
            raise UsageError(f"Expected `blocks` to be blocks that recalibrate a map in one pass, but got {name!r}.")
        built[name] = block
    return AdaptiveAttention(built)


ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "cse": ChannelSE,
    "sse": SpatialSE,
    "scse": ChannelSpatialSE,
    "se": SqueezeExcitation,
    "project_excite": ProjectExcite,
    "eca": EfficientChannelAttention,
    "fca": FrequencyAttention,
    "fca_search": FrequencySearch,
    "coordinate": CoordinateAttention,
    "simam": SimAM,
    "spse": PyramidSE,
    "rgse": GridSE,
    "cbam": CBAM,
    "bam": BAM,
    "denis_se": DenisSE,
    "denis_sere": DenisSERE,
    "adaptive": _adaptive,
    "gated_attention": GatedSelfAttention,
    "window_attention": WindowAttention,
}


def build_attention(name: str, channels: int, spatial_dims: int, **options: Any) -> nn.Module:
    """Build the block called `name` for maps of `channels` channels; "none" is Identity.

    ``eca+coordinate`` runs blocks in order, ``max(eca,coordinate)`` and ``add(eca,coordinate)`` side by side.

    Args:
        name: A block of `ATTENTION`, or several joined.
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        options: Of the block; or of each block of several by its name, such as ``eca={"kernel_size": 5}``.

    Raises:
        UsageError: Unknown name, an option that the block does not have, or a value it refuses.
    """
    names, found = attention_names(name), parse(name)
    if isinstance(found, Hybrid):
        for option, value in options.items():
            if option not in names or not isinstance(value, Mapping):
                raise UsageError(
                    f"Expected options of attention {name!r} under the names of its blocks ({', '.join(names)}), "
                    f"such as {names[0]}={{...}}, but got {option!r}."
                )
        return found.build(lambda block: _build_one(block, channels, spatial_dims, options.get(block, {})))
    flat = {option: value for option, value in options.items() if option != name}
    own = options.get(name, {})
    if not isinstance(own, Mapping):
        raise UsageError(f"Expected the options under {name!r} to be a mapping, but got {own!r}.")
    return _build_one(found, channels, spatial_dims, {**flat, **own})


def _build_one(name: str, channels: int, spatial_dims: int, options: Mapping[str, Any]) -> nn.Module:
    if name == "none":
        if options:
            raise UsageError(f"Attention 'none' takes no options, but got {', '.join(options)}.")
        return nn.Identity()
    check_options(f"attention {name!r}", ATTENTION[name], ("channels", "spatial_dims"), options)
    return ATTENTION[name](channels, spatial_dims, **options)


def attention_names(name: str) -> list[str]:
    """Return the names of the blocks in `name`, in order.

    Raises:
        UsageError: Unknown block, or a name that cannot be read.
    """
    found = parse(name)
    names = found.names() if isinstance(found, Hybrid) else [found]
    for block in names:
        if block not in (*ATTENTION, "none"):
            raise unknown_name("attention", block, [*ATTENTION, "none"], "Name the file of a block of your own by --plugins.")
    return names


def discretise(network: nn.Module) -> dict[str, str]:
    """Make every learnt choice in a network final, in place: adaptive blocks and searched frequencies.

    Returns what was chosen by the path of the block. Parameters go, so do this before an optimiser is made.
    """
    return {path: str(block.discretise()) for path, block in network.named_modules() if hasattr(block, "discretise")}


def follow_choices(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make the choices that the network with this `state` had made, so that it can be loaded and optimised as that one was."""
    for path, block in network.named_modules():
        if hasattr(block, "follow_choice") and f"{path}.chosen" in state:
            block.follow_choice(state[f"{path}.chosen"])


def is_open(network: nn.Module) -> bool:
    """Tell whether a learnt choice is still to be made final in a network."""
    return any(hasattr(block, "discretise") and getattr(block, "alpha", None) is not None for block in network.modules())
