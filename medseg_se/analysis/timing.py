"""Latencies of several things against each other, measured in turns so that a drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

Key = TypeVar("Key", bound=Hashable)


class Run(Protocol):
    """What can be timed."""

    def prepare(self) -> None:
        """Do what is not to be timed, such as dropping old gradients."""

    def __call__(self) -> object:
        """Do what is."""


@dataclass(frozen=True)
class Timing:
    """Repeated measurements, in seconds or as ratios, in the order of the rounds they were taken in."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The values below which a quarter and three quarters of the measurements lie."""
        low, high = np.quantile(self.values, (0.25, 0.75))
        return float(low), float(high)

    def over(self, other: Timing) -> Timing:
        """Return the ratios to what was measured of another in the same rounds."""
        return Timing(tuple(mine / its for mine, its in zip(self.values, other.values, strict=True)))

    def to_dict(self) -> dict[str, float | int]:
        """Return median, quartiles and the number of repeats."""
        low, high = self.quartiles
        return {"median": self.median, "lower_quartile": low, "upper_quartile": high, "n": len(self.values)}


def time_in_turns(
    runs: Mapping[Key, Run],
    repeats: int,
    device: torch.device,
    failed: Callable[[Key, Exception], None],
    progress: bool = False,
) -> dict[Key, Timing]:
    """Time every run once a round, each round beginning with the next one.

    Args:
        runs: What is timed; it must have run before, for first runs are slow.
        repeats: Number of rounds.
        device: Where it runs.
        failed: Told of a run that raised; it takes no part in later rounds and has no result.
        progress: Show a bar on stderr.
    """
    left, values = dict(runs), {key: list[float]() for key in runs}
    rounds = track(range(repeats), "measuring", console=Console(stderr=True), transient=True, disable=not progress)
    for number in rounds:
        keys = list(left)
        first = number % max(1, len(keys))
        for key in (*keys[first:], *keys[:first]):
            try:
                values[key].append(_seconds(left[key], device))
            except Exception as error:
                del left[key]
                failed(key, error)
    return {key: Timing(tuple(values[key])) for key in left}


def _seconds(run: Run, device: torch.device) -> float:
    run.prepare()
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    seconds = time.perf_counter() - start
    run.prepare()
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
