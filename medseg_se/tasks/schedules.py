"""Learning-rate schedules as a function of how much of the run is done, so that a time limit bends them too."""

from __future__ import annotations

import math
from typing import Literal, get_args

from medseg_se.errors import unknown_name

Schedule = Literal["cosine", "poly", "steps", "constant"]


def learning_rate_factor(schedule: Schedule, done: float, warmup: float) -> float:
    """Return the factor on the base learning rate.

    Args:
        schedule: "cosine" to 1 % (Loshchilov & Hutter, 2017), "poly" ``(1 - done)^0.9`` (nnU-Net), "steps" by a factor of ten
            after each third (as Roy et al., 2018, every ten of thirty epochs), or "constant".
        done: Share of the run that is over, 0 to 1.
        warmup: Share of the run during which the rate rises linearly from 1 % on.

    Raises:
        UsageError: There is no such schedule.
    """
    if schedule not in get_args(Schedule):
        raise unknown_name("schedule", schedule, get_args(Schedule))
    done = min(1.0, max(0.0, done))
    if done < warmup:
        return max(0.01, done / warmup)
    rest = (done - warmup) / (1 - warmup)
    if schedule == "cosine":
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * rest))
    if schedule == "poly":
        return float((1 - rest) ** 0.9)
    if schedule == "steps":
        return float(0.1 ** min(2, math.floor(3 * rest)))
    return 1.0
