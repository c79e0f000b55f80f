"""Signals that ask a run to end, as a wish that is granted between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
_TWICE = 0.5  # seconds; a launcher such as torchrun passes on what the terminal has sent to every process already


class StopSignals:
    """Ctrl-C, SIGTERM and SIGUSR1, which a scheduler can send ahead of its time limit, noted instead of obeyed at once.

    A second Ctrl-C interrupts on the spot.

    Attributes:
        wanted: Whether the run was asked to end.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._pressed: float | None = None
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Note signals from here on; only the main thread can."""
        self.wanted, self._pressed = False, None
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for name in _SIGNALS:
            number = getattr(signal, name, None)  # Windows has not all
            if number is not None:
                self._before[number] = signal.signal(number, self._note)

    def leave(self) -> None:
        """Leave signals to what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._pressed is not None and now - self._pressed > _TWICE:
                raise KeyboardInterrupt
            self._pressed = now if self._pressed is None else self._pressed
        if not self.wanted and is_first_process():
            # Not `print`, which may be at work on a line when the signal arrives.
            os.write(2, b"\nThe run ends after this step and keeps its state; another Ctrl-C ends it at once.\n")
        self.wanted = True


def is_first_process() -> bool:
    """Tell whether this is the process of a run that speaks for all, also before there is a trainer to ask."""
    return rank_zero_only.rank in (0, None)
