"""Time from typing a command to its help: `python benchmarks/startup.py`. Prints the median of ten runs of each in seconds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(arguments: list[str]) -> float:
    """Return the wall-clock time of one run."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "medseg_se", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    for arguments in (["--help"], ["check", "--help"], ["predict", "--help"], ["configs"], ["fit", "--help"]):
        times = [seconds(arguments) for _ in range(10)]
        print(f"medseg-se {' '.join(arguments):<16} {statistics.median(times):.2f} s  (max {max(times):.2f})")


if __name__ == "__main__":
    main()
