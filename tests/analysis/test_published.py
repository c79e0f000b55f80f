import io
import json

import pytest
from rich.console import Console

from medseg_se.analysis.published import published_claims, render_claims, write_claims

RESNET = 25_557_032
EXACT = {
    "ResNet-50, 1000 classes: parameters": RESNET,
    "with SE: parameters": RESNET + 2_514_944,
    "with FcaNet TS16: parameters": RESNET + 2_514_944,
    "with SimAM: parameters": RESNET,
    "with coordinate attention: parameters": RESNET + 1_917_832,
    "with SPSE: parameters": RESNET + 2_923_696,
    "with RGSE: parameters": RESNET + 2_655_408,
    "ResNet-50: parameters that ECA adds": 80,
    "U-Net of 64 channels, 5×5 kernels: parameters that scSE adds": 8 * (64**2 + 64),
}


@pytest.fixture(scope="module")
def claims():
    return {claim.claim: claim for claim in published_claims()}


@pytest.mark.parametrize(("claim", "number"), EXACT.items())
def test_parameters_are_the_published_ones(claims, claim, number):
    assert claims[claim].counted == number
    assert claims[claim].agrees


def test_ratios_and_operations_that_come_out(claims):
    assert claims["ResNet-50, 1000 classes: parameters in M"].counted == pytest.approx(24.373, abs=5e-4)
    assert claims["ResNet-50 at 224²: GFLOPs"].counted == pytest.approx(3.858, abs=5e-4)
    assert claims["the same in % of the network"].counted == pytest.approx(1.498, abs=5e-4)
    names = ("ResNet-50 at 224²: GFLOPs", "with SE: GFLOPs", "the same in % of the network")
    assert all(claims[name].agrees and claims[name].note for name in names)


def test_ecas_parameters_by_its_own_rule_are_told(claims):
    assert "86" in claims["ResNet-50: parameters that ECA adds"].note


def test_ecas_gflops_are_no_count(claims):
    claim = claims["ResNet-50 at 224²: GFLOPs that ECA adds"]
    channels = {256: 3, 512: 4, 1024: 6, 2048: 3}
    macs = sum(k * c * blocks for k, (c, blocks) in zip((3, 5, 5, 7), channels.items(), strict=True))
    assert claim.published == 4.7e-4
    assert claim.counted == (2 * macs + sum(c * blocks for c, blocks in channels.items())) / 1e9
    assert not claim.agrees
    assert f"{macs / 1e9:.2g}" in claim.note


def test_channel_gates_add_less_than_a_percent_of_the_operations(claims):
    shares = {name: claim for name, claim in claims.items() if "% of FLOPs" in name}
    assert len(shares) == 7
    for block in ("SE", "ECA", "SimAM"):
        (claim,) = (claim for name, claim in shares.items() if f"that {block} adds" in name)
        assert 0 < claim.counted < 1
    assert all(claim.agrees == (claim.counted < claim.published) for claim in shares.values())


def test_claims_are_written_and_printed(claims, tmp_path):
    write_claims(list(claims.values()), tmp_path / "claims.json")
    written = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert [claim["claim"] for claim in written] == list(claims)
    assert written[0]["published"] == written[0]["counted"] == RESNET
    console = Console(file=io.StringIO(), width=160)
    render_claims(list(claims.values()), console)
    text = console.file.getvalue()
    for expected in ("25,557,032", "28,071,976", "28,480,728", "24.37", "0.00047", "33,280"):
        assert expected in text
