"""What attention costs a network on this machine: counted on the meta device, and measured in turns with the plain network."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg_se.analysis.counting import Count, Point, count, insertion_points
from medseg_se.analysis.memory import peak_memory
from medseg_se.analysis.result import BlockCost, Cost, CostReport, VariantCost
from medseg_se.analysis.timing import Timing, time_in_turns
from medseg_se.errors import MedsegError, UsageError
from medseg_se.hardware import best_device, free_memory, has_bfloat16
from medseg_se.networks import build_network
from medseg_se.networks.placement import PLACES

Precision = Literal["fp32", "bf16"]
_WHOLE = ""
"""The name of the network itself among its modules, as in torch."""


def measure_cost(
    network: str,
    attention: Sequence[str],
    spatial_dims: int,
    size: Sequence[int],
    batch: int = 1,
    device: str = "auto",
    precision: Precision = "fp32",
    repeats: int = 10,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> CostReport:
    """Measure what a network costs without attention and with each of `attention`, and what each of its blocks costs.

    The network has one channel in and two classes. What goes wrong with one attention while it runs is reported beside the
    numbers of the others.

    Args:
        network: Name of the network.
        attention: Names of attention; "none" comes first by itself.
        spatial_dims: 2 or 3.
        size: Voxels of the input along each axis.
        batch: Scans at once.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps"; the last does not tell its peak memory.
        precision: "bf16" measures under autocast, and counts with parameters and maps of two bytes a number.
        repeats: How often each time is measured.
        options: Further options of the network, such as `channels` or `attention_at`.
        progress: Show a bar on stderr.

    Raises:
        UsageError: A name, an option or a number that makes no sense, or more memory needed than there is.
    """
    variants = {name: {**(options or {}), "attention": name} for name in dict.fromkeys(("none", *attention))}
    report = measure_variants(network, variants, spatial_dims, size, 1, 2, batch, device, precision, repeats, True, progress)
    return CostReport({**report.setting, "options": dict(options or {})}, report.variants)


def measure_variants(
    network: str,
    variants: Mapping[str, Mapping[str, Any]],
    spatial_dims: int,
    size: Sequence[int],
    in_channels: int,
    num_classes: int,
    batch: int = 1,
    device: str = "auto",
    precision: Precision = "fp32",
    repeats: int = 10,
    blocks: bool = True,
    progress: bool = False,
) -> CostReport:
    """Measure what variants of a network cost, in turns.

    What goes wrong with any but the first while it runs is reported beside the numbers of the others.

    Args:
        network: Name of the network.
        variants: Name → options of the network; the first is the one without attention.
        spatial_dims: 2 or 3.
        size: Voxels of the input along each axis.
        in_channels: Channels of the input.
        num_classes: Classes of the output.
        batch: Scans at once.
        device: As for `measure_cost`, like the following.
        precision: What is measured under autocast.
        repeats: How often each time is measured.
        blocks: Whether each block of attention is also measured by itself.
        progress: Show a bar on stderr.

    Raises:
        UsageError: A name, an option or a number that makes no sense, or more memory needed than there is.
    """
    if len(size) != spatial_dims or min(size) < 1:
        raise UsageError(f"Expected `size` to be {spatial_dims} numbers of at least 1, but got {list(size)}.")
    for name, number in (("batch", batch), ("repeats", repeats)):
        if number < 1:
            raise UsageError(f"Expected `{name}` to be at least 1, but got {number}.")
    bench = _Bench((batch, in_channels, *size), best_device(device), precision)
    built = _build_all(network, variants, (in_channels, num_classes, spatial_dims), blocks)
    plain, *others = built
    bench.take(plain)
    for variant in others:
        try:
            bench.take(variant)
        except Exception as error:
            variant.failure = _one_line(error)
    _time(built, bench, repeats, progress)
    setting = {
        "network": network,
        "spatial_dims": spatial_dims,
        "in_channels": in_channels,
        "num_classes": num_classes,
        "size": list(size),
        "batch": batch,
        "precision": precision,
        "repeats": repeats,
        "device": _device_name(bench.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    return CostReport(setting, tuple(variant.cost(plain.counted) for variant in built))


class _Variant:
    """A network with one attention, and what is known of its cost so far."""

    def __init__(self, name: str, build: Callable[[], nn.Module], skeleton: nn.Module, block_names: Sequence[str]) -> None:
        self.attention, self.build, self.skeleton, self.block_names = name, build, skeleton, block_names
        self.counted: Count | None = None
        self.runs: dict[tuple[str, bool], _Run] = {}
        self.memory: dict[str, int] = {}
        self.times: dict[tuple[str, bool], Timing] = {}
        self.failure: str | None = None

    def cost(self, plain: Count | None) -> VariantCost:
        """Return what is known; the network without attention gives the levels."""
        if self.counted is None or plain is None:
            return VariantCost(self.attention, None, failure=self.failure)
        blocks = []
        for point in self.counted.points:
            level = sum(math.prod(size) > math.prod(point.shape[2:]) for size in plain.sizes)
            cost = self._cost_of(point)
            blocks.append(BlockCost(point.name, _place(point.name), level, point.shape, cost))
        return VariantCost(self.attention, self._cost_of(self.counted), tuple(blocks), self.failure)

    def _cost_of(self, counted: Count | Point) -> Cost:
        name = counted.name if isinstance(counted, Point) else _WHOLE
        times = self.times.get((name, False)), self.times.get((name, True))
        return Cost(counted.parameters, counted.work, self.memory.get(name), *times)


def _build_all(
    network: str, variants: Mapping[str, Mapping[str, Any]], sizes: tuple[int, int, int], blocks: bool
) -> list[_Variant]:
    """Build all networks on the meta device, so that a wrong name is known before anything is measured."""
    built, plain = [], None
    for name, options in variants.items():
        build = partial(build_network, network, *sizes, **options)
        with torch.device("meta"):
            skeleton = build()
        plain = plain or skeleton
        built.append(_Variant(name, build, skeleton, insertion_points(skeleton, plain) if blocks else ()))
    return built


class _Bench:
    """Where and on what is measured. Inputs and gradients of outputs are views of one buffer of random numbers."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, precision: Precision) -> None:
        if precision not in ("fp32", "bf16"):
            raise UsageError(f"Expected `precision` to be fp32 or bf16, but got {precision!r}.")
        if precision == "bf16" and not has_bfloat16(device):
            raise UsageError(f"The device {device} does not compute in bfloat16. Leave out the precision.")
        self.shape, self.device = shape, device
        self.map_type = torch.bfloat16 if precision == "bf16" else torch.float32
        self._noise: dict[torch.dtype, Tensor] = {}

    def take(self, variant: _Variant) -> None:
        """Count a variant's work, then let everything run for the first time and measure its memory."""
        skeleton = variant.skeleton.to(self.map_type)
        x = torch.empty(self.shape, dtype=self.map_type, device="meta")
        variant.counted = count(skeleton, x, variant.block_names)
        self._check_room(variant.counted)
        network = variant.build().to(self.device)
        runs = {(_WHOLE, training): _Run(network, self, self.shape, training) for training in (False, True)}
        for point in variant.counted.points:
            block = network.get_submodule(point.name)
            runs |= {(point.name, training): _Run(block, self, point.shape, training, True) for training in (False, True)}
        for (name, training), run in runs.items():
            run.once()
            if training and self.device.type != "mps":
                variant.memory[name] = peak_memory(run, self.device)
                run.prepare()
        variant.runs = runs

    def noise(self, shape: Sequence[int], kind: torch.dtype) -> Tensor:
        """Return random numbers, of which there are as many as the largest map needs."""
        numel = math.prod(shape)
        if kind not in self._noise or self._noise[kind].numel() < numel:
            self._noise[kind] = torch.randn(numel, device=self.device).to(kind)
        return self._noise[kind][:numel].view(tuple(shape))

    def _check_room(self, counted: Count) -> None:
        """Refuse a step that needs more memory than there is: maps that are kept, some that come and go, and parameters."""
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()
        needed = counted.made + 4 * counted.largest + 2 * 4 * counted.parameters
        if needed > free:
            raise UsageError(
                f"A training step on {'×'.join(map(str, self.shape))} numbers needs about {needed / 1e9:.1f} GB of memory, but "
                f"only {free / 1e9:.1f} GB are free. Take a smaller size or batch, or fewer channels."
            )


class _Run:
    """A forward pass of a module on random numbers, in training followed by a backward pass."""

    def __init__(self, module: nn.Module, bench: _Bench, shape: Sequence[int], training: bool, within: bool = False) -> None:
        self.module, self.bench, self.training = module, bench, training
        kind = bench.map_type if within else torch.float32  # inside a network maps have the type of its precision
        self.x = bench.noise(shape, kind).detach().requires_grad_(training and within)

    def prepare(self) -> None:
        """Set the mode and drop gradients."""
        self.module.train(self.training)
        self.module.zero_grad()
        self.x.grad = None

    def once(self) -> None:
        """Run and leave nothing behind."""
        self.prepare()
        self()
        self.prepare()

    def __call__(self) -> None:
        """Run."""
        bench = self.bench
        with torch.set_grad_enabled(self.training):
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.map_type == torch.bfloat16):
                y = self.module(self.x)
            if self.training:
                outputs = [y] if isinstance(y, Tensor) else list(y)
                torch.autograd.backward(outputs, [bench.noise(output.shape, output.dtype) for output in outputs])


def _time(variants: Sequence[_Variant], bench: _Bench, repeats: int, progress: bool) -> None:
    """Time all that ran, in turns: first whole networks, then their blocks."""
    sound = {variant.attention: variant for variant in variants if variant.failure is None}
    keys = [(name, key) for name, variant in sound.items() for key in variant.runs]

    def failed(key: tuple[str, tuple[str, bool]], error: Exception) -> None:
        if key[0] == variants[0].attention:
            raise error
        sound[key[0]].failure = _one_line(error)

    runs = {(name, key): sound[name].runs[key] for name, key in sorted(keys, key=lambda item: item[1][0] != _WHOLE)}
    for (name, key), timing in time_in_turns(runs, repeats, bench.device, failed, progress).items():
        sound[name].times[key] = timing


def _place(name: str) -> str:
    """Return in the words of `PLACES` where a module sits, by its name."""
    parts = ["residual" if part == "before_sum" else part for part in name.split(".")]
    return next((place for place in reversed(PLACES) if place in parts), parts[0])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split())[:300]
    return line if isinstance(error, MedsegError) else f"{type(error).__name__}: {line}"
