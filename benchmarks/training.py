"""How long a training step takes: `python benchmarks/training.py [--batch 9] [--patch 40 56 40] [--rounds 5]`.

The U-Net as `medseg-se fit` trains it (bfloat16 where the CPU has it; eager and compiled, in both layouts) beside nnU-Net 2's
PlainConvUNet of the same levels as nnU-Net trains it on a CPU (float32, eager): network with deep supervision, loss, gradients,
clipping and the optimiser's step, on the same random patches. It needs nnunetv2 and its packages installed; without them ours
are timed alone.

Variants take turns, and each ratio is the median of the ratios within a round. `--output FILE` also writes JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.analysis.timing import time_in_turns
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

    def prepare(self) -> None:
        """Nothing to do."""

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


def ours(patches: Tensor, labels: Tensor, bfloat16: bool, compiled: bool, channels_last: bool = False) -> Step:
    """Return a step of our U-Net with our loss."""
    network = UNet(1, CLASSES, 3, channels=CHANNELS, conv_bias=True, deep_supervision=True)
    if channels_last:
        network, patches = (
            network.to(memory_format=torch.channels_last_3d),
            patches.contiguous(memory_format=torch.channels_last_3d),
        )
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


def main() -> None:
    """Time them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=9, help="patches in a batch")
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40], help="voxels of a patch")
    parser.add_argument("--rounds", type=int, default=5, help="how often each step is timed")
    parser.add_argument("--output", type=Path, help="JSON file to write everything to, too")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    patches = torch.randn(arguments.batch, 1, *arguments.patch)
    labels = torch.randint(0, CLASSES, (arguments.batch, *arguments.patch))
    runs: dict[str, Step] = {}
    peer = nnunets(patches, labels)
    if peer is not None:
        runs["nnU-Net, float32"] = peer
    runs["ours, float32"] = ours(patches, labels, bfloat16=False, compiled=False)
    if has_bfloat16(CPU):
        runs["ours, bfloat16"] = ours(patches, labels, bfloat16=True, compiled=False)
        runs["ours, bfloat16, channels-last"] = ours(patches, labels, bfloat16=True, compiled=False, channels_last=True)
        runs["ours, bfloat16, compiled"] = ours(patches, labels, bfloat16=True, compiled=True)
        last = ours(patches, labels, bfloat16=True, compiled=True, channels_last=True)
        runs["ours, bfloat16, compiled, channels-last"] = last
    for run in runs.values():
        run()

    def failed(name: str, error: Exception) -> None:
        raise RuntimeError(name) from error

    seconds = time_in_turns(runs, arguments.rounds, CPU, failed, progress=True)
    print(f"{arguments.batch} patches of {arguments.patch}, levels {CHANNELS}, {torch.get_num_threads()} threads")
    first = next(iter(runs))
    found = {}
    for name, timing in seconds.items():
        ratio = seconds[first].over(timing)
        low, high = ratio.quartiles
        print(f"  {name:<40} {timing.median:7.3f} s   {ratio.median:.2f} times as fast as {first} ({low:.2f} to {high:.2f})")
        found[name] = {"s": timing.to_dict(), "times_as_fast": ratio.to_dict()}
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
