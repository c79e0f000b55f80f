"""How long a training step takes: `python benchmarks/training.py [--batch 9] [--patch 40 56 40] [--rounds 5]`.

The U-Net as `medseg-se fit` trains it (bfloat16 where the CPU has it; eager and compiled) beside nnU-Net 2's
PlainConvUNet of the same levels as nnU-Net trains it on a CPU (float32, eager): network with deep supervision, loss, gradients,
clipping and the optimiser's step, on the same random patches. It needs nnunetv2 and its packages installed; without them ours
are timed alone. Each runs in a process of its own, ours with the memory that `medseg-se fit` lets a process keep.

Variants take turns, and each ratio is the median of the ratios within a round. `--output FILE` also writes JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.analysis.timing import Timing
from medseg_se.hardware import has_bfloat16, keep_freed_memory
from medseg_se.losses import DeepSupervisionLoss, DiceCELoss
from medseg_se.networks import UNet
from medseg_se.tasks.compiling import Compiled

CHANNELS = (32, 64, 128, 256)
CLASSES = 3
CPU = torch.device("cpu")


@dataclass
class Step:
    """One step of training, from patches to new weights."""

    network: nn.Module
    loss: Callable[[Any], Tensor]
    patches: Tensor
    bfloat16: bool
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.network.train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-2, 0.99, weight_decay=3e-5, nesterov=True)

    def forward(self) -> Tensor:
        """Return the loss."""
        mixed: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()
        with mixed:
            return self.loss(self.network(self.patches))

    def __call__(self) -> object:
        """Take the step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return loss.item()


def ours(patches: Tensor, labels: Tensor, bfloat16: bool, compiled: bool) -> Step:
    """Return a step of our U-Net with our loss."""
    network = UNet(1, CLASSES, 3, channels=CHANNELS, conv_bias=True, deep_supervision=True)
    loss = DeepSupervisionLoss(DiceCELoss())
    step = Step(network, lambda outputs: loss(outputs, labels), patches, bfloat16)
    if compiled:
        Compiled(network).try_once(step.forward)
    return step


def nnunets(patches: Tensor, labels: Tensor) -> Step | None:
    """Return a step of nnU-Net's network with its loss; None if it is not installed."""
    try:
        architectures = importlib.import_module("dynamic_network_architectures.architectures.unet")
        compound = importlib.import_module("nnunetv2.training.loss.compound_losses")
        dice = importlib.import_module("nnunetv2.training.loss.dice")
        wrapper = importlib.import_module("nnunetv2.training.loss.deep_supervision")
    except ImportError:
        return None
    levels = len(CHANNELS)
    network: nn.Module = architectures.PlainConvUNet(
        *(1, levels, CHANNELS, nn.Conv3d, [3] * levels, [1, *[2] * (levels - 1)], [2] * levels, CLASSES, [2] * (levels - 1)),
        *(True, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True}),
        deep_supervision=True,
    )
    options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    one = compound.DC_and_CE_loss(options, {}, 1, 1, dice_class=dice.MemoryEfficientSoftDiceLoss)
    weights = [2 / 3, 1 / 3, 0.0]  # as its trainer weights three outputs
    loss = wrapper.DeepSupervisionWrapper(one, weights)
    targets = [labels[:, None, :: 2**level, :: 2**level, :: 2**level].float() for level in range(levels - 1)]
    return Step(network, lambda outputs: loss(outputs, targets), patches, bfloat16=False)


VARIANTS: dict[str, Callable[[Tensor, Tensor], Step | None]] = {
    "nnU-Net, float32": nnunets,
    "ours, float32": lambda patches, labels: ours(patches, labels, bfloat16=False, compiled=False),
    "ours, bfloat16": lambda patches, labels: ours(patches, labels, bfloat16=True, compiled=False),
    "ours, bfloat16, compiled": lambda patches, labels: ours(patches, labels, bfloat16=True, compiled=True),
}


def serve(name: str, batch: int, patch: Sequence[int], turn: Connection) -> None:
    """Take a step whenever asked to, and answer with the seconds; with None at first if this variant is not to be had."""
    if name.startswith("ours"):
        keep_freed_memory()
    torch.manual_seed(0)
    patches, labels = torch.randn(batch, 1, *patch), torch.randint(0, CLASSES, (batch, *patch))
    step = VARIANTS[name](patches, labels)
    if step is not None:
        step()
    turn.send(None if step is None else 0.0)
    while step is not None and turn.recv():
        start = time.perf_counter()
        step()
        turn.send(time.perf_counter() - start)


def main() -> None:
    """Time them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=9, help="patches in a batch")
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40], help="voxels of a patch")
    parser.add_argument("--rounds", type=int, default=5, help="how often each step is timed")
    parser.add_argument("--output", type=Path, help="JSON file to write everything to, too")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    turns: dict[str, Connection] = {}
    for name in VARIANTS:
        if "bfloat16" in name and not has_bfloat16(CPU):
            continue
        here, there = context.Pipe()
        context.Process(target=serve, args=(name, arguments.batch, arguments.patch, there), daemon=True).start()
        if here.recv() is not None:
            turns[name] = here
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(arguments.rounds):
        for name, turn in turns.items():
            turn.send(True)
            seconds[name].append(turn.recv())
    for turn in turns.values():
        turn.send(False)
    print(f"{arguments.batch} patches of {arguments.patch}, levels {CHANNELS}, {torch.get_num_threads()} threads")
    first = next(iter(turns))
    found = {}
    for name, values in seconds.items():
        timing, reference = Timing(tuple(values)), Timing(tuple(seconds[first]))
        ratio = reference.over(timing)
        low, high = ratio.quartiles
        print(f"  {name:<40} {timing.median:7.3f} s   {ratio.median:.2f} times as fast as {first} ({low:.2f} to {high:.2f})")
        found[name] = {"s": timing.to_dict(), "times_as_fast": ratio.to_dict()}
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
