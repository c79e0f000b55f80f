"""The machine that a plan is for: its device, its name, its memory and the precision it computes in."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from medseg_se.hardware import best_device, has_bfloat16
from medseg_se.processors import cores
from medseg_se.version import __version__

_SHARE_OF_MEMORY = {"cpu": 0.8, "cuda": 0.9, "mps": 0.6}  # the rest is for the system, on CUDA for its own context


@dataclass(frozen=True)
class Machine:
    """What a training runs on.

    Attributes:
        device: Name of the device, such as "cpu" or "cuda:0".
        name: What the processor or the graphics card is called, with its number of cores or its memory.
        memory: Bytes that a training may take where nothing else is said.
        precision: Precision of the trainer.
        versions: What else a measurement depends on.
    """

    device: str
    name: str
    memory: int
    precision: str
    versions: str

    @property
    def kind(self) -> Literal["cpu", "cuda", "mps"]:
        """The kind of the device."""
        kind = self.device.partition(":")[0]
        return "cuda" if kind == "cuda" else "mps" if kind == "mps" else "cpu"

    @property
    def key(self) -> str:
        """A digest of all of it: measurements on another machine, or with another version, do not count here."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()

    def trainer(self) -> dict[str, str | int | list[int]]:
        """Return the settings of the trainer that choose this device."""
        number = int(self.device.partition(":")[2] or 0)
        return {"accelerator": self.kind, "devices": [number] if number else 1, "precision": self.precision}


def describe_machine(wanted: str = "auto") -> Machine:
    """Return the machine with the device called `wanted`; see `medseg_se.hardware.best_device`.

    Raises:
        UsageError: The device is unknown or not there.
    """
    device = best_device(wanted)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        total, name = properties.total_memory, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        total = total_memory()
        name = f"{_processor()}, {cores()} cores, {total / 2**30:.0f} GiB"
    return Machine(
        device=f"cuda:{device.index or 0}" if device.type == "cuda" else device.type,
        name=name,
        memory=int(total * _SHARE_OF_MEMORY.get(device.type, 0.8)),
        precision="bf16-mixed" if has_bfloat16(device) else "32-true",
        versions=f"medseg-se {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads",
    )


def total_memory() -> int:
    """Return the bytes of main memory of the machine, or of the container that this process runs in if that has less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        total = 8 * 2**30  # the system does not tell: what nearly every machine has
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
            total = min(total, int(text))
    return total


def busy_share(seconds: float = 0.5) -> float:
    """Return the share of its time that the processor works for others while this process waits; 0 where it does not tell.

    Args:
        seconds: How long to watch.
    """
    before = _processor_times()
    time.sleep(seconds)
    after = _processor_times()
    busy, idle = (new - old for new, old in zip(after, before, strict=True))
    return busy / (busy + idle) if busy + idle > 0 else 0.0


def _processor_times() -> tuple[float, float]:
    """Return how long all cores together were busy and idle since the system started."""
    try:
        times = [float(number) for number in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0, 0.0
    idle = times[3] + times[4]
    return sum(times[:8]) - idle, idle


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
