"""The one place that decides where an attention block sits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from medseg_se.attention import attention_names, build_attention
from medseg_se.errors import UsageError, unknown_name

PLACES = {
    "encoder": "after the blocks of each level on the way down",
    "bottleneck": "after the blocks of the lowest level",
    "decoder": "after the blocks of each level on the way up",
    "skip": "on the skip connections",
    "residual": "before every residual sum",
    "after_sum": "after every residual sum and its activation",
    "pre_activation": "before the activation that ends a block, or that begins it in pre-activation networks",
    "depthwise": "inside every inverted-residual or sandglass block, after its (first) depthwise convolution",
    "transition": "after the transitions between dense blocks",
    "module": "on the joined branches of every inception module",
    "new_features": "on what each layer of a dense block adds, before it is joined to the rest",
}
"""Where attention can sit. Each network has some of these places, see its `places`.

At "residual" a channel gate wants batch or group normalisation: after instance normalisation the mean of a channel is the
same whatever the scan.
"""


@dataclass(frozen=True)
class AttentionPlan:
    """Which attention block goes where in a network.

    Attributes:
        names: One block name per level, from the full resolution down to the bottleneck; hybrids as `build_attention` reads
            them.
        places: Some of `PLACES`.
        options: Options for every block, such as `reduction`; or for one kind of block under its name, such as
            ``{"eca": {"kernel_size": 5}}``.
    """

    names: tuple[str, ...]
    places: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        attention: str | Sequence[str],
        places: Sequence[str],
        levels: int,
        options: Mapping[str, Any] | None,
        possible: Sequence[str],
    ) -> AttentionPlan:
        """Spread one name over all `levels`, or check that there is one name a level.

        Args:
            attention: One name, or one a level.
            places: Where the blocks sit.
            levels: Number of levels of the network.
            options: Options of the blocks.
            possible: The places that this network has.

        Raises:
            UsageError: Unknown name or place, a place that this network does not have, or a wrong number of names.
        """
        names = (attention,) * levels if isinstance(attention, str) else tuple(attention)
        if len(names) != levels:
            raise UsageError(f"Expected `attention` to be one name or {levels} of them, one a level, but got {len(names)}.")
        known = {block for name in names for block in attention_names(name)}
        for option, value in (options or {}).items():
            if isinstance(value, Mapping) and option not in known and set(names) != {"adaptive"}:
                raise unknown_name("block in `attention_options`", option, known)
        for place in places:
            if place not in PLACES:
                raise unknown_name("place in `attention_at`", place, PLACES)
            if place not in possible and set(names) != {"none"}:
                raise UsageError(
                    f"Expected `attention_at` to hold some of {', '.join(possible)}, the places of this network with these "
                    f"options, but got {place!r}."
                )
        return cls(names, tuple(places), dict(options or {}))

    def build(self, place: str, level: int, channels: int, spatial_dims: int) -> nn.Module:
        """Return the block for this place and level; Identity where there is none."""
        name = self.names[level]
        if place not in self.places or name == "none":
            return nn.Identity()
        known = attention_names(name)
        alone = set(self.names) == {"adaptive"}  # whose blocks' options need no name around them
        own = {key: value for key, value in self.options.items() if alone or key in known or not isinstance(value, Mapping)}
        block = build_attention(name, channels, spatial_dims, **own)
        block.placed = place  # type: ignore[assignment]
        return block

    def in_residual(self, level: int, channels: int, spatial_dims: int) -> dict[str, nn.Module]:
        """Return the blocks inside a residual block: `before_sum`, `before_act` and `after_sum`."""
        slots = {"before_sum": "residual", "before_act": "pre_activation", "after_sum": "after_sum"}
        return {slot: self.build(place, level, channels, spatial_dims) for slot, place in slots.items()}


def has_attention(network: nn.Module) -> bool:
    """Tell whether a plan placed any block in the network."""
    return any(hasattr(module, "placed") for module in network.modules())
