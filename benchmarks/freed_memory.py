"""What keeping freed memory is worth in training on a CPU: `python benchmarks/freed_memory.py`.

Prints the median time of a training step with and without `keep_freed_memory`, in fresh processes that take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def measure(keep: bool) -> float:
    """Return the median seconds of ten steps of the hippocampus recipe's network (2 patches of 40×56×40)."""
    import torch

    from medseg_se.hardware import has_bfloat16, keep_freed_memory
    from medseg_se.losses import DeepSupervisionLoss, DiceCELoss
    from medseg_se.networks import build_network

    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    network = build_network("unet", 1, 3, 3, channels=(16, 32, 64, 128), attention="scse", deep_supervision=True)
    loss, optimizer = DeepSupervisionLoss(DiceCELoss()), torch.optim.AdamW(network.parameters())
    image, labels = torch.randn(2, 1, 40, 56, 40), torch.randint(0, 3, (2, 40, 56, 40))
    times = []
    for _ in range(13):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            value = loss(network(image), labels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def main() -> None:
    """Measure in turns and print."""
    if len(sys.argv) > 1:
        print(measure(sys.argv[1] == "keep"))
        return
    found: dict[str, list[float]] = {"give back": [], "keep": []}
    for _ in range(3):
        for way, times in found.items():
            done = subprocess.run([sys.executable, __file__, way], check=True, capture_output=True, text=True)
            times.append(float(done.stdout))
    for way, times in found.items():
        print(f"{way:<10} {statistics.median(times):.3f} s a step  (runs: {', '.join(f'{t:.3f}' for t in times)})")
    print(f"ratio {statistics.median(found['give back']) / statistics.median(found['keep']):.2f}")


if __name__ == "__main__":
    main()
