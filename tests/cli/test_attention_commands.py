import json

import numpy as np
import pytest
from known_network import write_checkpoint

from medseg_se.cli.attention import split_names
from medseg_se.cli.main import main

TINY = ["--spatial_dims", "2", "--size", "16", "--channels", "4,8", "--device", "cpu", "--repeats", "1"]


def test_cost_prints_a_table_and_writes_json(tmp_path, capsys):
    output = tmp_path / "cost.json"
    assert main(["cost", *TINY, "--attention", "scse,simam", "--attention_at", "skip", "--output", str(output)]) == 0
    content = json.loads(output.read_text(encoding="utf-8"))
    assert [variant["attention"] for variant in content["variants"]] == ["none", "scse", "simam"]
    assert [block["name"] for block in content["variants"][1]["blocks"]] == ["encoder.0.skip"]
    assert content["setting"]["size"] == [16, 16]
    assert "simam" in capsys.readouterr().out


def test_cost_takes_a_size_per_axis(tmp_path):
    output = tmp_path / "cost.json"
    assert main(["cost", *TINY, "--size", "16,8", "--attention", "none", "--output", str(output)]) == 0
    assert json.loads(output.read_text(encoding="utf-8"))["setting"]["size"] == [16, 8]


def test_commas_in_brackets_do_not_split():
    assert split_names("scse, max(eca,simam)+sse ,pe", "attention") == ["scse", "max(eca,simam)+sse", "pe"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--attention", "scse,max(eca"], "`attention`"),
        (["--attention", "scse,,eca"], "`attention`"),
        (["--attention", "scse)"], "`attention`"),
        (["--size", "16,x"], "`size`"),
        (["--channels", "4;8"], "`channels`"),
        (["--attention", "scsee"], "Did you mean 'scse'"),
    ],
)
def test_wrong_words_are_explained_in_a_line(arguments, complaint, capsys):
    assert main(["cost", *TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.fixture
def scan(tmp_path, write_scan, make_affine):
    voxels = np.random.default_rng(0).normal(size=(12, 11, 10)).astype(np.float32)
    return str(write_scan(tmp_path / "scan.nii.gz", voxels, make_affine("LPS", (1, 1.5, 2))))


def checkpoint(tmp_path, **options):
    chosen = {"channels": [4, 8], "attention": "scse", **options}
    return str(write_checkpoint(tmp_path / "model.ckpt", network="unet", options=chosen))


def test_inspect_writes_numbers_maps_and_a_page(tmp_path, scan, capsys):
    output = tmp_path / "inspected"
    assert main(["inspect", checkpoint(tmp_path), scan, "--output", str(output), "--patches", "2", "--device", "cpu"]) == 0
    content = json.loads((output / "inspect.json").read_text(encoding="utf-8"))
    assert (output / "inspect.png").stat().st_size > 10_000
    assert len(list(output.glob("*.nii.gz"))) == 3  # encoder, bottleneck and decoder have a spatial gate each
    assert content
    assert "selectiv" in capsys.readouterr().out.lower()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"attention": "none"}, "attention"), ({"attention": "scse"}, "missing.nii.gz")],
)
def test_inspect_says_what_it_cannot_look_at(tmp_path, scan, capsys, options, words):
    path = scan if options["attention"] == "none" else str(tmp_path / "missing.nii.gz")
    assert main(["inspect", checkpoint(tmp_path, **options), path, "--output", str(tmp_path / "inspected")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "inspected").exists()


def test_cost_lists_what_papers_claim_beside_what_is_counted(tmp_path, capsys):
    output = tmp_path / "published.json"
    assert main(["cost", "--published", "--output", str(output)]) == 0
    claims = {claim["claim"]: claim for claim in json.loads(output.read_text(encoding="utf-8"))["claims"]}
    assert claims["ResNet-50, 1000 classes: parameters"]["counted"] == 25_557_032
    assert "ECA" in capsys.readouterr().out


def test_an_unknown_block_is_one_line(capsys):
    assert main(["cost", "--attention", "scsee"]) == 2
    assert "Did you mean 'scse'?" in capsys.readouterr().err
