import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from known_network import NearestLevel, checkpoint_content

from medseg_se.cli.main import main
from medseg_se.networks import NETWORKS
from medseg_se.structures import Structures

SIDED = Structures({"left lung": (1,), "right lung": (2,)})


@pytest.fixture(autouse=True, scope="module")
def _plugged_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "nearest_level", NearestLevel)
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with three scans and a checkpoint whose training mirrored left to right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    Path("scans").mkdir()
    for number, name in enumerate("abc"):
        array = np.random.default_rng(number).integers(0, 3, (9, 8, 10)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), f"scans/{name}.nii.gz")
    content = checkpoint_content(structures=SIDED, label_dtype="uint8")
    content["medseg_se"]["data"]["mirror"] = ["left-right"]
    torch.save(content, "m.ckpt")
    return tmp_path


def run(*arguments):
    return main(["predict", "m.ckpt", "scans", "--output", "p", "--engine", "torch", *map(str, arguments)])


def settings():
    return json.loads(Path("p/predictions.json").read_text())["options"]["settings"]


def table(name):
    return list(csv.DictReader(Path("p", name).read_text().splitlines()))


def complaint(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medseg-se: error: ")]
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"overlap": 0.5, "mirror": [], "skip": "constant", "tiles": "trained"}),
        (("--quality", "fast"), {"overlap": 0.25, "mirror": [], "skip": "air", "tiles": "fitted"}),
        (("--quality", "best"), {"overlap": 0.5, "mirror": ["left-right"], "skip": "constant", "tiles": "trained"}),
        (("--quality", "best", "--mirror", "none"), {"overlap": 0.5, "mirror": [], "skip": "constant", "tiles": "trained"}),
        (
            ("--mirror", "trained", "--skip", "none"),
            {"overlap": 0.5, "mirror": ["left-right"], "skip": "none", "tiles": "trained"},
        ),
        (
            ("--quality", "fast", "--overlap", 0.6, "--mirror", "left-right, inferior-superior", "--tiles", "trained"),
            {"overlap": 0.6, "mirror": ["left-right", "inferior-superior"], "skip": "air", "tiles": "trained"},
        ),
    ],
)
def test_a_quality_is_a_choice_of_settings_of_which_each_can_be_another(words, expected):
    assert run(*words) == 0
    assert settings() == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--mirror", "upside-down"),
            "Expected `mirror` to name directions (left-right, anterior-posterior, inferior-superior)",
        ),
        (("--overlap", "1"), "Expected `overlap` to be at least 0 and below 1, but got 1.0"),
        (("--engine", "tenserflow"), "Unknown engine 'tenserflow'."),
        (("--engine", "opnvino"), "Did you mean 'openvino'?"),
        (
            ("--precision", "int8", "--engine", "auto"),
            "Expected scans to calibrate int8 with, but got none. Name some with --calibrate.",
        ),
        (("--precision", "int8"), "Expected the precision of the engine 'torch' to be one of fp32, bf16, fp16, but got 'int8'"),
        (("--shard", "4/3"), "Expected `shard` to be a part of a whole"),
        (("--workers", "0"), "Expected `workers` and `readers` to be at least 1"),
        (
            ("--uncertainty", "--no_volumes"),
            "The uncertainty of structures is told in the report of volumes, which is left out",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(capsys, words, message):
    assert run(*words) == 2
    assert message in complaint(capsys)
    assert not Path("p").exists()


def test_shards_fill_one_folder_together():
    assert run("--shard", "1/2") == 0
    assert sorted(path.name for path in Path("p").glob("?.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
    assert run("--shard", "2/2") == 0
    assert {row["case"]: row["status"] for row in table("status.csv")} == dict.fromkeys("abc", "done")


def test_each_result_has_its_volumes():
    assert run("--uncertainty") == 0
    rows = table("volumes.csv")
    assert len(rows) == 6
    for row in rows:
        labels = np.asarray(nib.load(f"p/{row['case']}.nii.gz").dataobj)
        voxels = int((labels == SIDED.values[row["structure"]][0]).sum())
        assert int(row["voxels"]) == voxels
        assert float(row["ml"]) == pytest.approx(voxels * 6 / 1000, abs=1e-3)
        assert 0 <= float(row["uncertainty"]) <= 1
    assert run("--no_volumes", "--overwrite") == 0


def test_a_scan_unlike_those_of_the_training_is_doubted_and_strictly_refused(capsys):
    nib.save(nib.Nifti1Image(np.full((9, 8, 10), 4, dtype=np.int16), np.eye(4)), "scans/d.nii.gz")
    assert run() == 0
    (row,) = [row for row in table("status.csv") if row["case"] == "d"]
    assert "is empty: every voxel is 4" in row["warnings"]
    capsys.readouterr()
    assert run("--strict") == 1
    assert "Leave out `--strict` to segment it all the same." in " ".join(capsys.readouterr().out.split())
