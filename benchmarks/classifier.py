"""Slices a second of a classifier in torch and OpenVINO, and how often the faster engines choose the class of float32.

    python benchmarks/classifier.py  # ResNet50V2 with SE at 224 × 224 and random weights: speed
    python benchmarks/classifier.py --checkpoint best.ckpt --data FOLDER  # a trained one: agreement, too

Speed is that of the network with the features it is watched by, on prepared slices in batches as `medseg-se predict` asks them;
the median of several rounds, in which the engines take turns. Random weights say nothing about agreement, so none is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from medseg_se.inference.engines import make_engine
from medseg_se.inference.engines.cache import Cache
from medseg_se.inference.engines.conversion import Conversion
from medseg_se.inference.engines.openvino_engine import OpenVINOEngine
from medseg_se.inference.engines.quantise import WHOLE_SCAN, int8_model
from medseg_se.inference.scans.inputs import find_scans
from medseg_se.inference.scans.model import Classifier
from medseg_se.networks import build_network
from medseg_se.networks.witness import Witness

CPU = torch.device("cpu")
BATCH = 8


def witness_of(checkpoint: str | None) -> tuple[Witness, tuple[int, ...], Classifier | None]:
    """Return a network with its features, the shape of a slice, and the model it comes from."""
    if checkpoint is not None:
        model = Classifier.load(checkpoint, "cpu")
        return model.witness, (model.scan.channels, *model.scan.size), model
    torch.manual_seed(0)
    network = build_network("resnet50v2", 1, 4, 2, attention="se", attention_at=["residual"])
    return Witness(network.eval(), 4).eval(), (1, 224, 224), None


def slices(model: Classifier | None, shape: tuple[int, ...], data: str | None, limit: int) -> Tensor:
    """Return prepared slices (N, C, *size), evenly taken from a folder; noise without one."""
    if model is None or data is None:
        return torch.randn((4 * BATCH, *shape), generator=torch.Generator().manual_seed(0))
    cases = find_scans([data], model.scan)
    return torch.stack([model.read(case) for case in cases[:: max(1, len(cases) // limit)][:limit]])


def engines(
    witness: Witness, shape: tuple[int, ...], calibration: Tensor, cache: Path | None
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the engines by name."""
    kept = Cache(cache)
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, precision in (("torch", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
        found[f"{name} {precision}"] = make_engine(witness, name, precision, shape, BATCH, CPU, kept, "benchmark")
    conversion = Conversion(witness, shape, BATCH, CPU, kept, "benchmark")
    found["openvino int8"] = OpenVINOEngine(int8_model(conversion, torch.split(calibration, BATCH), WHOLE_SCAN), "int8", BATCH)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="of a classification; ResNet50V2 with SE and random weights if not given")
    parser.add_argument("--data", help="folder of pictures that are answered for")
    parser.add_argument("--limit", type=int, default=400, help="pictures at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    witness, shape, model = witness_of(arguments.checkpoint)
    scans = slices(model, shape, arguments.data, arguments.limit)
    calibration = scans[:: max(1, len(scans) // 256)]
    found = engines(witness, shape, calibration, None)
    batch = scans[:BATCH]
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(arguments.rounds + 1):
        for name, engine in found.items():
            started = time.perf_counter()
            for _ in range(3):
                engine(batch)
            if number:  # the first warms up
                times[name].append((time.perf_counter() - started) / 3 / len(batch))
    print(f"{witness.network.__class__.__name__} on {shape}, {arguments.threads} threads, {len(scans)} slices")
    chosen = {}
    for name, engine in found.items():
        line = f"{name:14s} {1 / statistics.median(times[name]):7.1f} slices a second (best {1 / min(times[name]):.1f})"
        if model is not None and arguments.data:
            logits = torch.cat([engine(some)[:, : witness.num_classes].float().clone() for some in torch.split(scans, BATCH)])
            chosen[name] = logits.softmax(1)
            same = (chosen[name].argmax(1) == chosen["torch fp32"].argmax(1)).double().mean()
            shift = (chosen[name] - chosen["torch fp32"]).abs().amax(1)
            line += f", {float(same):.2%} identical classes, probabilities off by {float(shift.mean()):.4f} on average"
        print(line, flush=True)


if __name__ == "__main__":
    main()
