import json

import known_classifier
import numpy as np
import pytest
import torch
from known_classifier import Sides
from known_network import write_checkpoint
from whole_scans import CLASSES, write_ages, write_pictures

from medseg_se.cli.attention import split_names
from medseg_se.cli.main import main
from medseg_se.networks import NETWORKS

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


def test_inspect_shows_what_speaks_for_the_answers_of_a_classifier(tmp_path, call, refused, monkeypatch):
    monkeypatch.setitem(NETWORKS, "sides", Sides)
    pictures = write_pictures(tmp_path / "pictures", each=3)
    path = known_classifier.write_checkpoint(tmp_path / "a.ckpt", CLASSES, (16, 16), gated=True)
    output = tmp_path / "seen"
    code, said, _ = call(
        "inspect",
        str(path),
        str(pictures / "left"),
        str(pictures / "right" / "0.png"),
        "--output",
        str(output),
        "--device",
        "cpu",
    )
    assert code == 0
    assert "4 of 4 scans in pictures" in said
    content = json.loads((output / "inspect.json").read_text(encoding="utf-8"))
    names = [scan["case"] for scan in content["scans"]]
    assert names == [*(str(pictures / "left" / f"{number}.png") for number in range(3)), str(pictures / "right" / "0.png")]
    chosen = [content["names"][int(np.argmax(scan["answers"]))] for scan in content["scans"]]
    assert chosen == ["left", "left", "left", "right"]
    (point,) = content["insertion_points"]
    assert point["gates"]["channel"]["n"] == 8
    assert point["selectivity"]["channel"]["n"] == 4
    page = (output / "inspect.html").read_text(encoding="utf-8")
    assert page.count("<article") == 4
    assert "by answered class: left 3, right 1" in page
    assert "No such file" in refused("inspect", str(path), str(tmp_path / "none.png"), "--output", str(output))
    (tmp_path / "empty").mkdir()
    assert "holds none" in refused("inspect", str(path), str(tmp_path / "empty"), "--output", str(output))


def test_inspect_shows_a_regression_in_the_units_of_its_number(tmp_path, call, monkeypatch):
    monkeypatch.setitem(NETWORKS, "sides", Sides)
    heads = write_ages(tmp_path / "heads", cases=2, test=0)
    path = known_classifier.write_checkpoint(tmp_path / "a.ckpt", ["age"], (8, 8, 8), "regression")
    content = torch.load(path, weights_only=True)
    scores = []
    for mean, spread in ((0.0, 1.0), (50.0, 10.0)):
        content["medseg_se"]["targets"] = {"mean": [mean], "std": [spread]}
        torch.save(content, path)
        assert call("inspect", str(path), str(heads / "images"), "--output", str(tmp_path / "seen"), "--device", "cpu")[0] == 0
        found = json.loads((tmp_path / "seen" / "inspect.json").read_text(encoding="utf-8"))
        scores.append([scan["answers"][0] for scan in found["scans"]])
    np.testing.assert_allclose(scores[1], 50 + 10 * np.array(scores[0]))
    assert (tmp_path / "seen" / "inspect.html").read_text(encoding="utf-8").count('class="heat"') == 6
