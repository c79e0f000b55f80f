"""Time and memory that a person grants, in words and in numbers, and how a training spends its time.

What is measured differs by a few percent from one time to the next. So every measured number is rounded to a preferred one (see
`preferred`) before anything is decided by it or printed: the same data on the same machine then mostly give the same plan, also
where they are measured anew.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from medseg_se.errors import UsageError

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_PREFERRED = (1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.3, 8.0, 10.0)
_EPOCHS = 50
_LONGEST_EPOCH = 600.0
_VALIDATION_SHARE = 0.1


def parse_budget(text: str) -> float:
    """Return the seconds in "30m", "2h", "1d", "90s" or "1h30m".

    Raises:
        UsageError: It is no such time, or none at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", text.lower())
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*(min|[smhd])|\s", "", text.lower())
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if rest or not 0 < seconds < 366 * 86400:
        raise UsageError(f"Expected `budget` to be a time such as 30m, 2h, 1h30m or 1d, but got {text!r}.")
    return seconds


def parse_memory(text: str) -> int:
    """Return the bytes in "8GB" (10⁹ each), "8GiB" (2³⁰ each) or "800MB".

    Raises:
        UsageError: It is no such size, or none at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]I?B)", text.strip().upper())
    size = round(float(found[1]) * _BYTES[found[2]]) if found else 0
    if size <= 0:
        raise UsageError(f"Expected `memory` to be a size such as 8GB, 8GiB or 800MB, but got {text!r}.")
    return size


def preferred(value: float) -> float:
    """Return the nearest preferred number: 1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3 or 8 (ISO 3, R10), times a power of ten.

    Neighbours lie 26 % apart, so that noise of a few percent seldom changes the result.
    """
    if value <= 0:
        return 0.0
    power = math.floor(math.log10(value))
    nearest = min(_PREFERRED, key=lambda number: abs(math.log(value / 10**power / number)))
    return float(f"{nearest * 10.0**power:.3g}")


def spoken_time(seconds: float) -> str:
    """Return a time as one would say it: "12 ms", "50 s", "1 min 30 s", "2 h", "1 d 6 h"."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    left, words = round(seconds), []
    for size, word in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, size)
        if number:
            words.append(f"{number} {word}")
    return " ".join(words[:2])


def spoken_memory(size: float) -> str:
    """Return a size as one would say it: "800 MB", "2.5 GB"."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def clock(seconds: float) -> str:
    """Return a time as the trainer wants it, DD:HH:MM:SS, rounded down."""
    whole = int(seconds)
    return f"{whole // 86400:02d}:{whole // 3600 % 24:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@dataclass(frozen=True)
class Costs:
    """What the parts of a training take, in seconds.

    Attributes:
        startup: From the command to the first step, preparing aside.
        preparing: Preparing all scans.
        step: One step, getting its batch included.
        validation: One validation during the training.
        judging: Judging the best checkpoint on whole scans at the end.
    """

    startup: float
    preparing: float
    step: float
    validation: float
    judging: float

    @property
    def around(self) -> float:
        """All that the clock of the trainer does not see; the last validation ends after it."""
        return self.startup + self.preparing + self.validation + self.judging


@dataclass(frozen=True)
class Timetable:
    """How the budget is spent.

    Attributes:
        training: Seconds from the first to the last step, validations between them included.
        batches_per_epoch: Batches after which validation runs.
        epochs: Epochs that are expected.
        steps: Steps that are expected.
    """

    training: float
    batches_per_epoch: int
    epochs: int
    steps: int


def timetable(budget: float, costs: Costs) -> Timetable:
    """Spend `budget` seconds: about 50 validations, of at most a tenth of the time, and no epoch beyond ten minutes.

    Returns a table without any step where the budget does not suffice.
    """
    training = max(0.0, budget - costs.around)
    epochs = max(_EPOCHS, training / _LONGEST_EPOCH)
    epochs = max(1.0, min(epochs, _VALIDATION_SHARE * training / max(costs.validation, 1e-9), training / (10 * costs.step)))
    left = max(0.0, training - epochs * costs.validation)
    batches = max(1, round(preferred(left / epochs / costs.step)))
    expected = training / (batches * costs.step + costs.validation)
    return Timetable(training, batches, max(1, round(expected)), int(expected * batches))


def smallest_budget(costs: Costs, steps: int) -> float:
    """Return the least seconds in which `steps` steps are done, rounded up to a time that one would ask for."""
    needed = 1.03 * (costs.around + steps * costs.step / (1 - _VALIDATION_SHARE)) + 1
    unit = 10 if needed < 120 else 60 if needed < 3600 else 600 if needed < 36000 else 3600
    return math.ceil(needed / unit) * float(unit)


def written_time(seconds: float) -> str:
    """Return a time as `parse_budget` reads it: "50s", "90m", "3h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
