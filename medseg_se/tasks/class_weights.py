"""What classes weigh in the loss of a segmentation: given by name, or found in the training cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from medseg_se.errors import UsageError, unknown_name
from medseg_se.losses import median_frequency_weights

ClassWeights = Literal["none", "median_frequency", "root_median_frequency"] | dict[str, float]
POWERS = {"median_frequency": 1.0, "root_median_frequency": 0.5}
"""How far the frequencies of the classes are balanced, see `median_frequency_weights`."""


def check_class_weights(chosen: ClassWeights) -> None:
    """Refuse a choice that makes no sense, before any data are read.

    Raises:
        UsageError: An unknown word, or a weight below 0.
    """
    if isinstance(chosen, str):
        if chosen not in ("none", *POWERS):
            raise UsageError(
                f"Expected `class_weights` to be none, {', '.join(POWERS)}, or a weight for each structure, but got {chosen!r}."
            )
    elif not chosen or not all(0 <= weight < math.inf for weight in chosen.values()):
        raise UsageError(f"Expected `class_weights` to hold weights of at least 0, but got {chosen}.")


def find_class_weights(chosen: ClassWeights, names: Sequence[str], data: Any) -> tuple[float, ...]:
    """Return the weight of every class, in the order of their names.

    Args:
        chosen: One of `POWERS`, or name → weight with 1 for those not named.
        names: Names of the classes, background first.
        data: The data module of the run.

    Raises:
        UsageError: A name that is none, or data that do not tell how frequent their classes are.
    """
    if not isinstance(chosen, str):
        for name in chosen:
            if name not in names:
                raise unknown_name("structure in `class_weights`", name, names)
        return tuple(chosen.get(name, 1.0) for name in names)
    ask = getattr(data, "class_frequencies", None)
    if ask is None:
        raise UsageError(f"Expected a data module with `class_frequencies` where `class_weights` is {chosen}, but got none.")
    return median_frequency_weights(ask(), POWERS[chosen])
