"""What networks with different attention cost: as a table, and as JSON with every number also as a ratio to "none"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.analysis.counting import Work
from medseg_se.analysis.timing import Timing
from medseg_se.files import write_json

CONVENTIONS = {
    "parameters": "Learned numbers.",
    "macs": "Multiply–adds of convolutions and matrix products in one forward pass, biases left out; most papers' FLOPs.",
    "elementwise": "Operations of everything else in one forward pass, one per number.",
    "flops": "Two per multiply–add, and the elementwise ones.",
    "bytes_moved": "Read and written in one forward pass; attention in its tiled form, which reads the map for every statistic "
    "(most blocks have one) and for the result, and writes it once.",
    "peak_memory": "Bytes that forward and backward pass hold at most at once, gradients included, beyond parameters and "
    "input; no optimiser.",
    "seconds": "Forward: one forward pass without gradients. Step: forward and backward pass, no optimiser. Median and "
    "quartiles of repeats taken in turns.",
    "ratio_to_none": "The number divided by that of the whole network without attention; times round by round.",
}


@dataclass(frozen=True)
class Cost:
    """What a network or a block costs; what was not measured is None.

    Attributes:
        parameters: Numbers that it learns.
        work: What one forward pass computes and moves.
        memory: Bytes that a training step holds at most at once, beyond parameters and input.
        forward: Seconds of a forward pass.
        step: Seconds of a forward and a backward pass.
    """

    parameters: int
    work: Work
    memory: int | None = None
    forward: Timing | None = None
    step: Timing | None = None

    def numbers(self) -> dict[str, int | None]:
        """Return all but the times, by name."""
        return {
            "parameters": self.parameters,
            "macs": self.work.macs,
            "elementwise": self.work.elementwise,
            "flops": self.work.flops,
            "bytes_moved": self.work.moved,
            "peak_memory": self.memory,
        }

    def times(self) -> dict[str, Timing | None]:
        """Return the times, by name."""
        return {"forward_seconds": self.forward, "step_seconds": self.step}

    def ratios(self, base: Cost) -> dict[str, Any]:
        """Return every number divided by that of `base`, times as `Timing`; None where one of them is missing or 0."""
        ratios: dict[str, Any] = {}
        for name, value in self.numbers().items():
            its = base.numbers()[name]
            ratios[name] = value / its if value is not None and its else None
        for name, timing in self.times().items():
            other = base.times()[name]
            ratios[name] = timing.over(other) if timing and other else None
        return ratios

    def to_dict(self, base: Cost | None) -> dict[str, Any]:
        """Return all numbers, and their ratios to `base`."""
        content: dict[str, Any] = {**self.numbers(), **self.times()}
        if base is not None:
            content["ratio_to_none"] = _plain(self.ratios(base))
        return _plain(content)


@dataclass(frozen=True)
class BlockCost:
    """What one attention block costs.

    Attributes:
        name: The module's name in the network.
        place: Where it sits, in the words of `attention_at`.
        level: How many coarser steps lie between the scan and its map; 0 is the scan's resolution.
        shape: Of its map, (N, C, *spatial).
        cost: What it costs, measured by itself on a map of that shape.
    """

    name: str
    place: str
    level: int
    shape: tuple[int, ...]
    cost: Cost


@dataclass(frozen=True)
class VariantCost:
    """What the network costs with one attention; where something failed, what was known by then.

    Attributes:
        attention: The attention's name.
        cost: Of the whole network.
        blocks: Of every attention block.
        failure: What went wrong, or None.
    """

    attention: str
    cost: Cost | None
    blocks: tuple[BlockCost, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class CostReport:
    """What `measure_cost` found.

    Attributes:
        setting: What was measured where, as plain data.
        variants: The network without attention, then with each.
    """

    setting: Mapping[str, Any]
    variants: tuple[VariantCost, ...]

    @property
    def none(self) -> Cost:
        """The cost of the network without attention."""
        cost = self.variants[0].cost
        if cost is None:
            raise ValueError("The first variant has no cost.")
        return cost

    @property
    def failures(self) -> dict[str, str]:
        """Attention → what went wrong."""
        return {variant.attention: variant.failure for variant in self.variants if variant.failure is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "format": 1,
            "setting": dict(self.setting),
            "conventions": CONVENTIONS,
            "variants": [self._variant(variant) for variant in self.variants],
        }

    def write_json(self, path: Path | str) -> None:
        """Write everything as JSON."""
        write_json(path, self.to_dict())

    def render(self, console: Console) -> None:
        """Print the networks, their attention blocks, what failed, and how it was counted."""
        setting = self.setting
        scans, where = f"{setting['batch']} × {_size(setting['size'])}", f"{setting['precision']} on {setting['device']}"
        whole = [(variant.attention, variant.cost) for variant in self.variants if variant.cost]
        console.print(_table(f"{setting['network']} on {scans}, {where}", "attention", whole, self.none, "×{:.3f}"))
        for variant in self.variants:
            blocks = [
                (f"{block.place} {block.level}\n{block.shape[1]} × {_size(block.shape[2:])}", block.cost)
                for block in variant.blocks
            ]
            if blocks:
                title = f"{variant.attention}: its blocks, and their share of the network without attention"
                console.print(_table(title, "block", blocks, self.none, "{:.2%}"))
        for attention, failure in self.failures.items():
            console.print(Text(f"{attention} failed: {failure}", "bold red"))
        for heading, name in (("MACs", "macs"), ("other", "elementwise"), ("moved", "bytes_moved"), ("memory", "peak_memory")):
            console.print(Text(f"{heading}: {CONVENTIONS[name]}", "dim"))
        console.print(Text(f"{CONVENTIONS['seconds']} ± is half the distance of the quartiles.", "dim"))

    def _variant(self, variant: VariantCost) -> dict[str, Any]:
        blocks = [
            {
                "name": block.name,
                "place": block.place,
                "level": block.level,
                "channels": block.shape[1],
                "size": list(block.shape[2:]),
                **block.cost.to_dict(self.none),
            }
            for block in variant.blocks
        ]
        whole = variant.cost.to_dict(self.none) if variant.cost else {}
        return {"attention": variant.attention, "failure": variant.failure, **whole, "blocks": blocks}


_HEADINGS = {
    "parameters": "params",
    "macs": "MACs",
    "elementwise": "other",
    "bytes_moved": "moved\nbytes",
    "peak_memory": "memory\nbytes",
    "forward_seconds": "forward\nms",
    "step_seconds": "step\nms",
}


def _table(title: str, first: str, rows: Sequence[tuple[str, Cost]], base: Cost, form: str) -> Table:
    """Return a table of costs; the second line of a cell is the ratio to `base`, written as `form` says."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for heading in _HEADINGS.values():
        table.add_column(heading, justify="right", overflow="fold")
    for label, cost in rows:
        numbers, times, ratios = cost.numbers(), cost.times(), cost.ratios(base)
        cells = [
            _cell(_amount(numbers[name], exact=name == "parameters"), ratios[name], form)
            for name in numbers
            if name in _HEADINGS
        ]
        cells += [_cell(_milliseconds(times[name]), ratios[name], form) for name in times]
        table.add_row(Text(label), *cells)
    return table


def _cell(written: str, ratio: Timing | float | None, form: str) -> str:
    share = ratio.median if isinstance(ratio, Timing) else ratio
    return written if share is None else f"{written}\n{form.format(share)}"


def _amount(number: int | None, exact: bool) -> str:
    if number is None:
        return "–"
    if exact or number < 1000:
        return f"{number:,}"
    power = min(4, (len(f"{float(f'{number:.3g}'):.0f}") - 1) // 3)
    return f"{float(f'{number:.3g}') / 1000**power:.4g} {' kMGT'[power]}"


def _milliseconds(timing: Timing | None) -> str:
    if timing is None:
        return "–"
    low, high = timing.quartiles
    spread = 50 * (high - low) / timing.median
    return f"{1000 * timing.median:,.{1 if timing.median < 0.1 else 0}f} ±{spread:.0f}%"


def _size(lengths: Sequence[int]) -> str:
    if len(set(lengths)) == 1:
        return f"{lengths[0]}{'²' if len(lengths) == 2 else '³'}"
    return "×".join(map(str, lengths))


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to_dict() if isinstance(value, Timing) else value for name, value in content.items()}
