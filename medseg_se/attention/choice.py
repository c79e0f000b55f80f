"""A choice that training makes, remembered in the state of the block that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class LearntChoice(nn.Module):
    """The base of blocks that choose: loading a state first makes the choice that the saved block had made.

    Attributes:
        alpha: What the choice is learnt from; None once it is made.
        chosen: Numbers of what was chosen, -1 while it is open.
    """

    alpha: nn.Parameter | None
    chosen: Tensor

    def follow_choice(self, saved: Tensor) -> None:
        """Choose as the block did whose `chosen` is given."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        if (saved := state_dict.get(f"{prefix}chosen")) is not None:
            self.follow_choice(saved)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
