"""What attention costs in time and memory: `python benchmarks/attention.py [blocks] [eager] [compiled]`, or all three.

- blocks: each block alone on 1×32×96³ in float32, forward, beside the form in which papers write it and beside the time that
  reading a map twice and writing it once takes.
- eager, compiled: a training step of a 3D U-Net (32 to 256 channels, 1×96³) with a block after every encoder and decoder
  stage, in bfloat16 and float32, beside the same network without and beside the papers' forms.

Variants take turns, and each ratio is the median of the ratios within a round. Peak memory is what the allocator hands out in
one step. Writes a table to the terminal, and with `--output FILE` everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_se.analysis.memory import peak_memory
from medseg_se.attention import build_attention
from medseg_se.hardware import has_bfloat16, keep_freed_memory
from medseg_se.networks import UNet
from medseg_se.networks.blocks import ConvBlock

BLOCKS = ("cse", "sse", "scse", "eca", "simam", "coordinate", "spse")
OTHERS = ("se", "project_excite", "fca", "rgse", "cbam", "bam")
CPU = torch.device("cpu")


class Written(nn.Module):
    """A block as its paper writes it, one tensor operation a sign, with the parameters of ours."""

    def __init__(self, name: str, block: nn.Module) -> None:
        super().__init__()
        self.block, self.form = block, getattr(self, name)

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate ``x`` (N, C, D, H, W)."""
        return self.form(self.block, x)

    @staticmethod
    def cse(block: nn.Module, x: Tensor) -> Tensor:
        """Return x · σ(W₂ relu(W₁ mean))."""
        hidden = torch.relu(block.squeeze(x.mean((2, 3, 4))))
        return x * torch.sigmoid(block.excite(hidden))[:, :, None, None, None]

    @staticmethod
    def sse(block: nn.Module, x: Tensor) -> Tensor:
        """Return x · σ(conv(x))."""
        return x * torch.sigmoid(block.project(x))

    @classmethod
    def scse(cls, block: nn.Module, x: Tensor) -> Tensor:
        """Maximum of both."""
        return torch.maximum(cls.cse(block.channel, x), cls.sse(block.spatial, x))

    @staticmethod
    def eca(block: nn.Module, x: Tensor) -> Tensor:
        """Return x · σ(conv1d(mean))."""
        (gate,) = block.gates(F.adaptive_avg_pool3d(x, 1).float())
        return x * gate.to(x.dtype)

    @staticmethod
    def simam(block: nn.Module, x: Tensor) -> Tensor:
        """Return x · σ(d / 4(Σd/n + λ) + ½)."""
        n = x[0, 0].numel() - 1
        d = (x - x.mean((2, 3, 4), keepdim=True)).pow(2)
        return x * torch.sigmoid(d / (4 * (d.sum((2, 3, 4), keepdim=True) / n + block.smoothing)) + 0.5)

    @staticmethod
    def coordinate(block: nn.Module, x: Tensor) -> Tensor:
        """Return x · a_d · a_h · a_w."""
        profiles = [x.mean([other for other in (2, 3, 4) if other != axis], keepdim=True) for axis in (2, 3, 4)]
        for gate in block.gates(*(profile.float() for profile in profiles)):
            x = x * gate.to(x.dtype)
        return x

    @staticmethod
    def spse(block: nn.Module, x: Tensor) -> Tensor:
        """Return x · σ(fc(Σ depthwise(pool)))."""
        (gate,) = block.gates(*(F.adaptive_avg_pool3d(x, size).float() for size in (1, 2, 4)))
        return x * gate.to(x.dtype)


class Forwarding(nn.Module):
    """Leaves its place to the attention that comes after it."""

    def with_attention(self, x: Tensor, attention: nn.Module) -> Tensor:
        """Run the attention alone."""
        return attention(x)  # type: ignore[no-any-return]


def in_turns(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, to: str) -> float:
    """Return the median over the rounds of one step's time over another's."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def measure_blocks(rounds: int = 9) -> list[dict[str, object]]:
    """Measure each block alone."""
    torch.manual_seed(0)
    x, other = torch.randn(1, 32, 96, 96, 96), torch.empty(1, 32, 96, 96, 96)
    steps: dict[str, Callable[[], object]] = {"copy": lambda: other.copy_(x)}
    for name in (*BLOCKS, *OTHERS):
        block = build_attention(name, 32, 3).eval()
        steps[name] = lambda block=block: block(x)
        if name in BLOCKS:
            written = Written(name, block).eval()
            torch.testing.assert_close(written(x), block(x), rtol=1e-4, atol=1e-5)
            steps[f"{name} as written"] = lambda written=written: written(x)
    with torch.no_grad():
        seconds = in_turns(steps, rounds)
    rows: list[dict[str, object]] = []
    for name in (*BLOCKS, *OTHERS):
        row: dict[str, object] = {"block": name, "ms": 1e3 * statistics.median(seconds[name])}
        row["times the bound"] = ratio(seconds, name, "copy") / 1.5  # a copy reads once and writes once
        row["as written / ours"] = ratio(seconds, f"{name} as written", name) if name in BLOCKS else None
        rows.append(row)
    return rows


def training_step(attention: str, written: bool, precision: str, compiled: bool) -> Callable[[], object]:
    """Return a function that does one training step."""
    torch.manual_seed(0)
    network = UNet(1, 4, 3, channels=(32, 64, 128, 256), attention=attention)
    if written:
        for module in network.modules():
            if isinstance(module, ConvBlock):
                module.attention = nn.Sequential(module.units[-1], Written(attention, module.attention))
                module.units[-1] = Forwarding()  # so that the block's input is kept, as it is wherever blocks are put by hand
    if compiled:
        network.compile(dynamic=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    x, labels = torch.randn(1, 1, 96, 96, 96), torch.randint(0, 4, (1, 96, 96, 96))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_network(precision: str, compiled: bool, names: tuple[str, ...], rounds: int) -> list[dict[str, object]]:
    """Measure the training step with every block and without."""
    steps = {"none": training_step("none", False, precision, compiled)}
    for name in names:
        steps[name] = training_step(name, False, precision, compiled)
        if not compiled:
            steps[f"{name} as written"] = training_step(name, True, precision, compiled)
    seconds = in_turns(steps, rounds)
    bytes_held = {name: peak_memory(step, CPU) for name, step in steps.items()}
    return [
        {
            "block": name,
            "seconds": statistics.median(seconds[name]),
            "extra time": ratio(seconds, name, "none") - 1,
            "MB": bytes_held[name] / 1e6,
            "extra memory": bytes_held[name] / bytes_held["none"] - 1,
        }
        for name in steps
    ]


def show(title: str, rows: list[dict[str, object]]) -> None:
    """Print a table."""
    print(f"\n{title}")
    for row in rows:
        cells = [
            f"{key} {value:+.1%}" if key.startswith("extra") else f"{key} {value:.2f}"
            for key, value in row.items()
            if isinstance(value, float)
        ]
        print(f"  {row['block']:<24}{'  '.join(cells)}", flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", choices=[[], "blocks", "eager", "compiled"], default=[])
    parser.add_argument("--names", default=",".join(BLOCKS), help="blocks, with commas between")
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    parts = arguments.parts or ["blocks", "eager", "compiled"]
    names = tuple(arguments.names.split(","))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, bfloat16 in hardware: {has_bfloat16(CPU)}")
    found: dict[str, list[dict[str, object]]] = {}
    for title in ("as torch is", "freed memory kept for the next step, as training does here"):
        if "blocks" in parts:
            found[f"block alone, {title}"] = measure_blocks()
            show(f"Each block alone, 1×32×96³, float32, forward; {title}", found[f"block alone, {title}"])
        keep_freed_memory()  # for good
    for way in ("eager", "compiled"):
        for precision in arguments.precisions.split(",") if way in parts else ():
            title = f"Training step, U-Net 32–256, 1×96³, {way}, {precision}"
            found[title] = measure_network(precision, way == "compiled", names, arguments.rounds)
            show(title, found[title])
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
