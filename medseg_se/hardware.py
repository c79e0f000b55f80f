"""What this machine can do: which device to use and whether it computes in bfloat16."""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path

import torch

from medseg_se.errors import UsageError


def best_device(wanted: str = "auto") -> torch.device:
    """Return the device called `wanted`; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UsageError: The device is unknown or not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", wanted):
        raise UsageError(f"Expected `device` to be auto, cpu, cuda, cuda:1 (any number from 0) or mps, but got {wanted!r}.")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UsageError(f"Cannot use the device {wanted!r}: {reason}. Usable here: {', '.join(_usable())}.") from error
    return device


def _usable() -> list[str]:
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether `device` multiplies matrices in bfloat16 itself rather than emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def free_memory() -> float:
    """Return the bytes of main memory that can still be taken; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    known = {name: float(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if rest.strip()}
    free = known.get("MemAvailable", math.inf) + known.get("SwapFree", 0.0)
    for container in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if container.is_file() and (limit := container.read_text(encoding="ascii").strip()).isdigit():
            free = min(free, float(limit))
    return free


def keep_freed_memory() -> bool:
    """Let the process keep the memory it frees, for the next step needs as much again; returns whether that was possible.

    glibc hands large blocks back to the system at once, and each step then pays for zeroed pages anew: about a tenth of a
    training step on a CPU. Other C libraries are left alone.
    """
    trim_threshold, mmap_max = -1, -4  # of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def return_freed_memory() -> None:
    """Hand all memory that the process has freed back to the system, where its C library can: see `keep_freed_memory`.

    For the step from one kind of work to another, of which neither should pay for what the other needed.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
