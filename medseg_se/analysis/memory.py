"""The peak of the memory that a step takes, as the allocator sees it: exact and repeatable, unlike the size of the process."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.autograd.profiler import profile

from medseg_se.errors import UsageError


def peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Return the largest number of bytes that `step` holds at once, beyond what was held before it ran.

    On a CPU every allocation of tensors is followed, the work space of oneDNN included; what the step frees of older memory is
    not counted in its favour. On CUDA it is what the caching allocator has handed out, so let the step run once before: its
    first run also takes work space that stays.

    Args:
        step: Such as a forward and a backward pass; run once.
        device: Where it allocates: a CPU or CUDA.

    Raises:
        UsageError: The device does not tell.
    """
    if device.type == "cpu":
        return _peak_on_cpu(step)
    if device.type != "cuda":
        raise UsageError(f"Expected `device` to be a CPU or CUDA to measure peak memory, but got {str(device)!r}.")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(step: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler prints to stderr whenever it starts and stops
    with profile(profile_memory=True) as profiler:
        step()
    results = profiler.kineto_results
    if results is None:
        raise RuntimeError("The profiler of torch gave no results.")
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak
