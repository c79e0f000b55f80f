"""What papers claim their blocks cost, beside what this package's blocks cost when counted in the same networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from medseg_se.analysis.counting import Count, Work, count, parameters
from medseg_se.attention import build_attention
from medseg_se.files import write_json
from medseg_se.networks import UNet
from medseg_se.networks.resnet import PostActivationBlock, resnet50

_MIB = 2**20
_Stages = Sequence[tuple[str, Mapping[str, Any]]]
"""For each of the four stages of a ResNet, a block and its options."""


@dataclass(frozen=True)
class Claim:
    """A published number beside ours.

    Attributes:
        claim: What is claimed of what.
        source: By whom.
        published: The number.
        counted: Ours.
        agrees: Whether ours confirms the claim.
        note: How the two come together, or why they do not.
    """

    claim: str
    source: str
    published: float
    counted: float
    agrees: bool
    note: str


def published_claims() -> list[Claim]:
    """Count the networks of the papers; nothing runs."""
    resnet = _ResNet50()
    return [*_resnet_claims(resnet), *_eca_claims(resnet), *_operation_claims(resnet), *_scse_claims()]


def write_claims(claims: Sequence[Claim], path: Path | str) -> None:
    """Write the claims as JSON."""
    write_json(path, {"format": 1, "claims": [asdict(claim) for claim in claims]})


def render_claims(claims: Sequence[Claim], console: Console) -> None:
    """Print the claims as a table."""
    table = Table(title="Published costs, counted again", title_justify="left", show_lines=True)
    for heading in ("claim", "source"):
        table.add_column(heading, overflow="fold")
    for heading in ("published", "counted"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("in a line", overflow="fold")
    for claim in claims:
        counted = Text(_number(claim.counted), "green" if claim.agrees else "yellow")
        table.add_row(Text(claim.claim), Text(claim.source), _number(claim.published), counted, Text(claim.note))
    console.print(table)


class _ResNet50:
    """ResNet-50 for 1000 classes on the meta device, without and with attention before the sum of every bottleneck."""

    def __init__(self) -> None:
        with torch.device("meta"):
            self.network = resnet50(3, 1000, 2).eval()
            self.picture = torch.empty(1, 3, 224, 224)
        self.bottlenecks = [
            (stage, block)
            for stage, blocks in enumerate(self.network.get_submodule("encoder").children())
            for block in blocks.modules()
            if isinstance(block, PostActivationBlock)
        ]
        self.plain = count(self.network, self.picture)

    def with_blocks(self, blocks: _Stages) -> Count:
        """Count the network with these blocks."""
        for stage, bottleneck in self.bottlenecks:
            name, options = blocks[stage]
            with torch.device("meta"):
                bottleneck.before_sum = build_attention(name, _leaving(bottleneck), 2, **options)
        try:
            return count(self.network, self.picture)
        finally:
            for _, bottleneck in self.bottlenecks:
                bottleneck.before_sum = nn.Identity()

    def adds(self, blocks: _Stages) -> tuple[int, Work]:
        """Return the parameters and the work that these blocks add."""
        counted = self.with_blocks(blocks)
        return counted.parameters - self.plain.parameters, counted.work - self.plain.work

    def original_work(self) -> Work:
        """Return the work of the first ResNet, where a stage's stride is in the first 1×1 convolution, not in the 3×3."""
        convolutions: list[list[Any]]
        convolutions = [[unit.get_submodule("conv") for unit in block.units][:2] for _, block in self.bottlenecks]
        strided = [pair for pair in convolutions if pair[1].stride == (2, 2)]
        for first, second in strided:
            first.stride, second.stride = (2, 2), (1, 1)
        try:
            return count(self.network, self.picture).work
        finally:
            for first, second in strided:
                first.stride, second.stride = (1, 1), (2, 2)


def _leaving(bottleneck: PostActivationBlock) -> int:
    """Return the channels that leave a bottleneck."""
    return len(bottleneck.units[-1].get_parameter("norm.weight"))


def _everywhere(name: str, **options: Any) -> _Stages:
    return [(name, options)] * 4


_BLOCKS: dict[str, _Stages] = {
    "SE": _everywhere("se", reduction=16, bias=False),
    "ECA": [("eca", {"kernel_size": size}) for size in (3, 5, 5, 7)],
    "FcaNet TS16": _everywhere("fca", selection="top", frequencies=16),
    "SimAM": _everywhere("simam"),
    "coordinate attention": _everywhere("coordinate", reduction=32),
    "SPSE": _everywhere("spse", reduction=16),
    # the authors leave the last stage, whose map is one region, to SE with biases
    "RGSE": [*(("rgse", {"grid": grid}) for grid in (8, 4, 2)), ("se", {"bias": True})],
}
"""The blocks as their authors put them into ResNet-50."""


def _resnet_claims(resnet: _ResNet50) -> list[Claim]:
    plain, in_binary = resnet.plain.parameters, resnet.plain.parameters / _MIB
    whole = {name: plain + resnet.adds(blocks)[0] for name, blocks in _BLOCKS.items()}
    return [
        _exact("ResNet-50, 1000 classes: parameters", "He et al., 2016", 25_557_032, plain, "No biases before the norms."),
        Claim(
            "ResNet-50, 1000 classes: parameters in M",
            "Wang et al., 2020",
            24.37,
            in_binary,
            round(in_binary, 2) == 24.37,
            f"Their M is 2²⁰; in millions it is {plain / 1e6:.2f}.",
        ),
        *(
            _exact(f"with {name}: parameters", source, published, whole[name], note)
            for name, source, published, note in (
                ("SE", "Hu et al., 2018", 28_071_976, f"{whole['SE'] - plain:,} more with r = 16: the paper's 2.5 million."),
                ("FcaNet TS16", "Qin et al., 2021", 28_071_976, "As many as with SE: its cosines are constants."),
                ("SimAM", "Yang et al., 2021", 25_557_032, "It learns nothing."),
                ("coordinate attention", "Hou et al., 2021", 27_474_864, "r = 32; the published number is their code's."),
                ("SPSE", "Jin et al., 2022", 28_480_728, "r = 16, biases in the gate; the published number is their code's."),
                ("RGSE", "Jin et al., 2022", 28_212_440, "Plain SE in the last stage; the published number is their code's."),
            )
        ),
    ]


def _eca_claims(resnet: _ResNet50) -> list[Claim]:
    by_hand, work = resnet.adds(_BLOCKS["ECA"])
    by_rule, _ = resnet.adds(_everywhere("eca"))
    sigmoids = sum(_leaving(bottleneck) for _, bottleneck in resnet.bottlenecks)
    alone = 2 * work.macs + sigmoids
    return [
        _exact(
            "ResNet-50: parameters that ECA adds",
            "Wang et al., 2020",
            80,
            by_hand,
            f"With k = 3, 5, 5, 7 by stage; the paper's rule for k from the channels gives {by_rule}.",
        ),
        Claim(
            "ResNet-50 at 224²: GFLOPs that ECA adds",
            "Wang et al., 2020",
            4.7e-4,
            alone / 1e9,
            False,
            "No count gives it. The nearest is two per multiply–add and one per sigmoid; multiply–adds alone are "
            f"{work.macs / 1e9:.2g}, and with pooling and scaling, one per number each, it is {work.flops / 1e9:.2g}.",
        ),
    ]


def _operation_claims(resnet: _ResNet50) -> list[Claim]:
    original, here = resnet.original_work(), resnet.plain.work
    added = {name: resnet.adds(blocks)[1] for name, blocks in _BLOCKS.items()}
    se = added["SE"]
    with_se = (original.macs + se.macs + se.elementwise) / 1e9
    return [
        Claim(
            "ResNet-50 at 224²: GFLOPs",
            "Hu et al., 2018",
            3.86,
            original.macs / 1e9,
            round(original.macs / 1e9, 2) == 3.86,
            f"Multiply–adds, strides in the 1×1 convolutions as in 2015; {here.macs / 1e9:.2f} with strides in the 3×3.",
        ),
        Claim(
            "with SE: GFLOPs",
            "Hu et al., 2018",
            3.87,
            with_se,
            round(with_se, 2) == 3.87,
            f"{se.macs / 1e9:.4f} of them are multiply–adds; pooling and scaling are the rest.",
        ),
        *(_share_claim(name, 100 * work.flops / here.flops) for name, work in added.items()),
    ]


def _share_claim(name: str, percent: float) -> Claim:
    note = "Two per multiply–add, one per number for everything else."
    return Claim(f"ResNet-50 at 224²: % of FLOPs that {name} adds, at most", "commonly said", 1.0, percent, percent < 1, note)


def _scse_claims() -> list[Claim]:
    def unet(attention: str, **options: Any) -> int:
        with torch.device("meta"):
            places = ("encoder", "decoder")
            return parameters(
                UNet(1, 28, 2, [64] * 5, kernel_size=5, attention=attention, attention_at=places, attention_options=options)
            )

    plain = unet("none")
    added, with_biases = unet("scse", reduction=2, bias=False) - plain, unet("scse", reduction=2) - plain
    percent = 100 * added / plain
    return [
        Claim(
            "U-Net of 64 channels, 5×5 kernels: parameters that scSE adds",
            "Roy et al., 2018",
            3.3e4,
            added,
            round(added, -3) == 33_000,
            f"64² + 64 for each of 8 blocks, without biases; with them it is {with_biases:,}. Wider levels cost their square.",
        ),
        Claim(
            "the same in % of the network",
            "Roy et al., 2018",
            1.5,
            percent,
            round(percent, 1) == 1.5,
            f"Of {plain:,} parameters, two convolutions a block, four levels and a bottleneck.",
        ),
    ]


def _exact(claim: str, source: str, published: int, counted: int, note: str) -> Claim:
    return Claim(claim, source, published, counted, published == counted, note)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and value > 1 else f"{value:.4g}"
