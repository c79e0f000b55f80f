"""How many things to do at once: as many as this process has processors, and not more than the memory of as many scans."""

from __future__ import annotations

import os


def cores() -> int:
    """Return how many processors this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_share(processes: int) -> dict[str, str]:
    """Return the environment that gives one of several processes its share of the processors; nothing for one alone."""
    return {"OMP_NUM_THREADS": str(max(1, cores() // processes))} if processes > 1 else {}


def at_once(most: int = 8) -> int:
    """Return how many scans are worked on at once where nobody says otherwise: one a processor, at most `most`."""
    return min(most, cores())
