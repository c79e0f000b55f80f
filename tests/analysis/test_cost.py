import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from medseg_se.analysis import cost
from medseg_se.analysis.cost import measure_cost
from medseg_se.attention import ATTENTION, build_attention
from medseg_se.errors import UsageError
from medseg_se.networks import UNet

SMALL = {"network": "unet", "spatial_dims": 2, "size": [16, 16], "device": "cpu", "repeats": 2, "options": {"channels": [4, 8]}}
METRICS = ("parameters", "macs", "elementwise", "flops", "bytes_moved", "peak_memory", "forward_seconds", "step_seconds")


def measure(attention, **changed):
    return measure_cost(attention=attention, **{**SMALL, **changed})


def printed(report, width=80):
    console = Console(file=io.StringIO(), width=width)
    report.render(console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def report():
    return measure(["scse", "simam"])


@pytest.fixture
def broken(monkeypatch):
    """Register blocks that fail when counted, when run, and at the third training step."""

    class Broken(nn.Module):
        def __init__(self, channels, spatial_dims, when):
            super().__init__()
            self.when, self.steps = when, 0

        def forward(self, x):
            self.steps += self.training and not x.is_meta
            if self.when == "counted" or (self.when == "run" and not x.is_meta) or self.steps > 2:
                raise ValueError(f"broken\nwhen {self.when}")
            return x * 2

    for when in ("counted", "run", "timed"):
        monkeypatch.setitem(ATTENTION, when, lambda channels, dims, when=when: Broken(channels, dims, when))


def test_json_holds_every_number_and_its_ratio_to_none(report, tmp_path):
    report.write_json(tmp_path / "cost.json")
    content = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))
    assert content["setting"]["size"] == [16, 16]
    assert content["setting"]["options"] == {"channels": [4, 8]}
    assert content["conventions"]["macs"]
    none, *others = content["variants"]
    assert [variant["attention"] for variant in content["variants"]] == ["none", "scse", "simam"]
    for variant in content["variants"]:
        assert variant["failure"] is None
        assert set(METRICS) <= set(variant)
        assert set(variant["ratio_to_none"]) == set(METRICS)
        for name in METRICS[:6]:
            assert variant["ratio_to_none"][name] == variant[name] / none[name]
        for name in METRICS[6:]:
            assert variant[name]["n"] == variant["ratio_to_none"][name]["n"] == 2
            assert 0 < variant[name]["lower_quartile"] <= variant[name]["median"] <= variant[name]["upper_quartile"]
    assert {none["ratio_to_none"][name] for name in METRICS[:6]} == {1.0}
    assert {none["ratio_to_none"][name]["median"] for name in METRICS[6:]} == {1.0}
    assert none["blocks"] == []
    assert [len(variant["blocks"]) for variant in others] == [3, 3]


def test_every_block_is_named_placed_and_measured(report):
    none, scse, simam = report.to_dict()["variants"]
    assert [(block["name"], block["place"], block["level"], block["channels"], block["size"]) for block in scse["blocks"]] == [
        ("encoder.0.block.attention", "encoder", 0, 4, [16, 16]),
        ("bottleneck.attention", "bottleneck", 1, 8, [8, 8]),
        ("decoder.0.block.attention", "decoder", 0, 4, [16, 16]),
    ]
    for variant in (scse, simam):
        for name in METRICS[:5]:
            assert variant[name] - none[name] == sum(block[name] for block in variant["blocks"])
        for block in variant["blocks"]:
            assert block["peak_memory"] >= 2 * 4 * block["channels"] * block["size"][0] ** 2  # its result and a gradient
            assert block["ratio_to_none"]["macs"] == block["macs"] / none["macs"]
            assert block["step_seconds"]["n"] == 2
    assert scse["blocks"][0]["parameters"] == sum(p.numel() for p in build_attention("scse", 4, 2).parameters())
    assert {block["parameters"] for block in simam["blocks"]} == {0}


def test_parameters_and_operations_are_those_of_the_network(report):
    none = report.none
    assert none.parameters == sum(parameter.numel() for parameter in UNet(1, 2, 2, channels=(4, 8)).parameters())
    fourfold = measure([], batch=4).none
    assert fourfold.parameters == none.parameters
    assert fourfold.work.macs == 4 * none.work.macs
    assert none.memory < fourfold.memory < 4.5 * none.memory


def test_table_shows_all_and_fits_a_narrow_terminal(report):
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("unet on 1 × 16²", "none", "scse", "simam", "×1.000", "bottleneck", "8 × 8²", "0.00%", "MACs:"):
        assert expected in text
    assert f"{report.none.parameters:,}" in text


def test_one_broken_attention_leaves_the_others_their_numbers(broken):
    report = measure(["counted", "run", "simam", "timed"], repeats=3)
    assert report.failures == {when: f"ValueError: broken when {when}" for when in ("counted", "run", "timed")}
    none, counted, run, simam, timed = report.variants
    assert counted.cost is None
    assert run.cost.work.elementwise > none.cost.work.elementwise
    assert run.cost.memory is run.cost.step is None
    assert timed.cost.memory > none.cost.memory
    assert timed.cost.step is None
    assert len(simam.cost.step.values) == len(none.cost.step.values) == 3
    text = printed(report)
    assert "run failed: ValueError: broken when run" in text
    assert report.to_dict()["variants"][1]["failure"] == "ValueError: broken when counted"


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"network": "unett"}, "Did you mean 'unet'"),
        ({"attention": ["scsee"]}, "Did you mean 'scse'"),
        ({"options": {"chanels": [4, 8]}}, "Did you mean 'channels'"),
        ({"size": [16, 16, 16]}, "`size` to be 2 numbers"),
        ({"size": [16, 0]}, "`size` to be 2 numbers"),
        ({"batch": 0}, "`batch`"),
        ({"repeats": 0}, "`repeats`"),
        ({"precision": "fp16"}, "fp32 or bf16"),
        ({"device": "tpu"}, "`device`"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, complaint):
    with pytest.raises(UsageError, match=complaint):
        measure(**{"attention": ["scse"], **changed})


def test_a_step_that_needs_more_memory_than_there_is_is_refused_before_it_runs(monkeypatch):
    def build(*arguments, **options):
        network = UNet(*arguments[1:], **options)
        assert next(network.parameters()).is_meta
        return network

    monkeypatch.setattr(cost, "build_network", build)
    with pytest.raises(UsageError, match=r"needs about .* GB of memory, but only .* GB are free"):
        measure([], size=[2**20, 2**20])


def test_bfloat16_needs_the_hardware(monkeypatch):
    monkeypatch.setattr(cost, "has_bfloat16", lambda device: False)
    with pytest.raises(UsageError, match="does not compute in bfloat16"):
        measure([], precision="bf16")


def test_bfloat16_runs_under_autocast(monkeypatch):
    seen = []

    class Outer(nn.Module):
        def __init__(self, channels, spatial_dims):
            super().__init__()

        def forward(self, x):
            if not x.is_meta:
                seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return x + 0

    monkeypatch.setitem(ATTENTION, "outer", Outer)
    monkeypatch.setattr(cost, "has_bfloat16", lambda device: True)
    full, half = measure(["outer"]), measure(["outer"], precision="bf16")
    assert (torch.bfloat16, True) in seen
    assert full.variants[1].blocks[0].cost.work.moved == 2 * half.variants[1].blocks[0].cost.work.moved
