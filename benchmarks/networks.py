"""How fast the U-Net is: `python benchmarks/networks.py [peers] [layouts] [compiled] [small]`, or all.

- peers: the U-Net beside nnU-Net's PlainConvUNet (if `dynamic_network_architectures` is installed) and MONAI's DynUNet of the
  same topology: parameters, multiply-adds, time of a tile forward and of a training step.
- layouts: a tile forward through the U-Net with maps in PyTorch's ordinary layout, channels-last with PyTorch's own instance
  normalisation, and channels-last with ours, which is what `medseg_se.execution.fast_layout` chooses by itself; and with the
  weights laid out alike, as those of a loaded model are.
- compiled: the same with torch.compile, in both layouts.
- small: single small maps through one 3×3×3 convolution, PyTorch's way and ours, and the network of the hippocampus recipe.

Variants take turns, and each ratio is the median of the ratios within a round. Writes a table to the terminal, and with
`--output FILE` everything as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from medseg_se.analysis.counting import count, parameters
from medseg_se.analysis.timing import Timing, time_in_turns
from medseg_se.dims import InstanceNorm3d, QuickConv3d, conv
from medseg_se.execution import lay_out_weights
from medseg_se.hardware import has_bfloat16, keep_freed_memory
from medseg_se.networks import UNet

CHANNELS = (32, 64, 128, 256, 320, 320)
CLASSES = 14
CPU = torch.device("cpu")
PRECISIONS = ("fp32", "bf16") if has_bfloat16(CPU) else ("fp32",)


def ours() -> nn.Module:
    """Return the U-Net, with the biases before normalisations that the peers have."""
    return UNet(1, CLASSES, 3, channels=CHANNELS, conv_bias=True)


def nnunets() -> nn.Module | None:
    """Return nnU-Net's network without the deep-supervision heads that it keeps unused; None if it is not installed."""
    try:
        architectures = importlib.import_module("dynamic_network_architectures.architectures.unet")
    except ImportError:
        return None
    norm = {"eps": 1e-5, "affine": True}
    network: nn.Module = architectures.PlainConvUNet(
        *(1, 6, CHANNELS, nn.Conv3d, [3] * 6, [1, 2, 2, 2, 2, 2], [2] * 6, CLASSES, [2] * 5, True, nn.InstanceNorm3d, norm),
        *(None, None, nn.LeakyReLU, {"inplace": True}),
        deep_supervision=False,
    )
    heads: Any = network.get_submodule("decoder").seg_layers
    for place in range(len(heads) - 1):
        heads[place] = nn.Identity()
    return network


def monais() -> nn.Module:
    """Return MONAI's network of the same topology (its convolutions have no biases)."""
    strides = [1, 2, 2, 2, 2, 2]
    norm = ("INSTANCE", {"affine": True})
    return DynUNet(3, 1, CLASSES, [3] * 6, strides, strides[1:], filters=CHANNELS, norm_name=norm, trans_bias=True)


@dataclass
class Forward:
    """A tile through a network, as inference does it."""

    network: nn.Module
    x: Tensor
    precision: str

    def prepare(self) -> None:
        """Nothing to do."""

    def __call__(self) -> object:
        """Run it."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(self.x)


@dataclass
class Step(Forward):
    """A patch forward and backward."""

    def prepare(self) -> None:
        """Drop the gradients."""
        self.network.zero_grad()

    def __call__(self) -> object:
        """Run it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.network(self.x).float().square().mean()
        loss.backward()
        return loss


def measure(runs: Mapping[str, Forward], first: str, rounds: int) -> dict[str, tuple[Timing, Timing]]:
    """Return the seconds of every run, and their ratios to those of the `first`."""
    for run in runs.values():
        run()

    def failed(name: str, error: Exception) -> None:
        raise RuntimeError(name) from error

    seconds = time_in_turns(runs, rounds, CPU, failed, progress=True)
    return {name: (timing, timing.over(seconds[first])) for name, timing in seconds.items()}


def report(title: str, measured: Mapping[str, tuple[Timing, Timing]]) -> dict[str, Any]:
    """Print a table and return it as plain data."""
    print(f"\n{title}")
    for name, (seconds, ratio) in measured.items():
        low, high = ratio.quartiles
        print(f"  {name:<46} {seconds.median:7.3f} s   ×{ratio.median:.2f} ({low:.2f} to {high:.2f})", flush=True)
    return {"title": title, **{name: {"s": s.to_dict(), "ratio": r.to_dict()} for name, (s, r) in measured.items()}}


def measure_peers(size: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the U-Net beside its peers."""
    makers: dict[str, Callable[[], nn.Module | None]] = {"ours": ours, "nnU-Net": nnunets, "MONAI DynUNet": monais}
    networks = {name: network for name, make in makers.items() if (network := make()) is not None}
    x = torch.randn(1, 1, size, size, size)
    print(f"{size}³, {CLASSES} classes, {torch.get_num_threads()} threads")
    for name, make in makers.items():
        with torch.device("meta"):
            network = make()
            if network is not None:
                macs = count(network.eval(), torch.empty(x.shape)).work.macs
                print(f"  {name:<46} {parameters(network):,} parameters, {macs:,} multiply-adds")
    found = []
    for precision in PRECISIONS:
        for kind, run in (("forward", Forward), ("training step", Step)):
            for network in networks.values():
                network.train(kind != "forward")
            runs = {name: run(network, x, precision) for name, network in networks.items()}
            found.append(report(f"{kind}, {precision}", measure(runs, "ours", rounds)))
    return found


def fixed(channels_last: bool, own_norm: bool) -> nn.Module:
    """Return the U-Net with its maps kept in one layout whatever `fast_layout` says, under either instance normalisation."""
    torch.manual_seed(0)
    network = ours().eval().requires_grad_(False)
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)
    for module in network.modules():
        if isinstance(module, InstanceNorm3d) and not own_norm:
            module.__class__ = nn.InstanceNorm3d
    return network


@dataclass
class InLayout(Forward):
    """A tile through a network, as if gradients were wanted, so that no layout is chosen."""

    def __call__(self) -> object:
        """Run it."""
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(self.x)


def measure_layouts(size: int, rounds: int) -> list[dict[str, Any]]:
    """Measure layouts and normalisations."""
    x = torch.randn(1, 1, size, size, size)
    variants: dict[str, Callable[[], nn.Module]] = {
        "ordinary layout": lambda: fixed(False, True),
        "channels-last, PyTorch's instance norm": lambda: fixed(True, False),
        "channels-last, our instance norm": lambda: fixed(True, True),
    }
    found = []
    for precision in PRECISIONS:
        runs: dict[str, Forward] = {name: InLayout(make(), x, precision) for name, make in variants.items()}
        torch.manual_seed(0)
        runs["as chosen"] = Forward(ours().eval(), x, precision)
        loaded = ours().eval()
        lay_out_weights(loaded)
        runs["as chosen, weights too, as a loaded model"] = Forward(loaded, x, precision)
        found.append(report(f"layouts, eager, {precision}", measure(runs, "as chosen", rounds)))
    return found


def measure_compiled(size: int, rounds: int) -> list[dict[str, Any]]:
    """Measure torch.compile in both layouts, beside eager."""
    x = torch.randn(1, 1, size, size, size)
    found = []
    for precision in PRECISIONS:
        runs = {"eager": Forward(ours().eval(), x, precision)}
        for name, layout in (("ordinary layout", torch.contiguous_format), ("channels-last", torch.channels_last_3d)):
            network = ours().eval().to(memory_format=layout)
            network.compile(dynamic=False)
            runs[f"compiled, {name}"] = Forward(network, x, precision)
        found.append(report(f"compiled, forward, {precision}", measure(runs, "eager", rounds)))
    return found


def slowed(network: nn.Module) -> nn.Module:
    """Return the network with PyTorch's own convolutions."""
    for module in network.modules():
        if isinstance(module, QuickConv3d):
            module.__class__ = nn.Conv3d
    return network


def measure_small(size: int, rounds: int) -> list[dict[str, Any]]:
    """Measure single small maps in float32; their sizes are fixed."""
    found = []
    for channels, length in ((16, 24), (32, 16), (320, 6)):
        x = torch.randn(1, channels, length, length, length)
        runs = {
            "ours": Forward(conv(3, channels, channels).eval(), x, "fp32"),
            "PyTorch's": Forward(slowed(conv(3, channels, channels)).eval(), x, "fp32"),
        }
        found.append(report(f"one convolution, {channels} channels, {length}³", measure(runs, "ours", 5 * rounds)))
    x = torch.randn(1, 1, 40, 56, 40)
    small = {"ours": UNet(1, 3, 3, channels=(16, 32, 64, 128)), "PyTorch's": slowed(UNet(1, 3, 3, channels=(16, 32, 64, 128)))}
    runs = {name: Forward(network.eval(), x, "fp32") for name, network in small.items()}
    found.append(report("a U-Net of 16 to 128 channels, 40×56×40", measure(runs, "ours", rounds)))
    return found


def main() -> None:
    """Measure what the command line names."""
    parts: dict[str, Callable[[int, int], list[dict[str, Any]]]] = {
        "peers": measure_peers,
        "layouts": measure_layouts,
        "compiled": measure_compiled,
        "small": measure_small,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="what to measure; everything if not given")
    parser.add_argument("--size", type=int, default=96, help="voxels along every axis")
    parser.add_argument("--rounds", type=int, default=7, help="how often each time is measured")
    parser.add_argument("--output", type=Path, help="JSON file to write everything to, too")
    arguments = parser.parse_args()
    keep_freed_memory()
    found = [row for name in arguments.parts or parts for row in parts[name](arguments.size, arguments.rounds)]
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
