import csv
import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from known_network import NearestLevel, write_checkpoint

from medseg_se.cli.main import main
from medseg_se.files import digest_of
from medseg_se.inference.model import Model
from medseg_se.networks import NETWORKS
from medseg_se.structures import Structures
from medseg_se.volumes import read_labels

RECIPES = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch):
    monkeypatch.setitem(NETWORKS, "nearest_level", NearestLevel)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def dataset(tmp_path, write_scan):
    """A dataset whose intensities are the classes of its label maps: three cases for training and one for a test."""
    rng, folder = np.random.default_rng(0), tmp_path / "data"
    for name, split in (("a", "Tr"), ("b", "Tr"), ("c", "Tr"), ("d", "Ts")):
        labels = rng.integers(0, 3, (9, 8, 7))
        write_scan(folder / f"images{split}" / f"{name}.nii.gz", labels.astype(np.float32))
        write_scan(folder / f"labels{split}" / f"{name}.nii.gz", labels.astype(np.uint8))
    content = {
        "labels": {"0": "background", "1": "near", "2": "far"},
        "training": [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "abc"],
        "test": ["imagesTs/d.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def checkpoint(tmp_path, dataset):
    """A checkpoint that was trained on a, chosen on b, and answers every voxel rightly."""
    return write_checkpoint(
        tmp_path / "model.ckpt",
        structures=Structures({"near": (1,), "far": (2,)}),
        label_dtype="uint8",
        training=[digest_of([dataset / "imagesTr" / "a.nii.gz"])],
        validation=[digest_of([dataset / "imagesTr" / "b.nii.gz"])],
    )


def run(*arguments):
    return main([str(argument) for argument in arguments])


def results(folder):
    return sorted(path.name for path in folder.glob("*.nii.gz"))


def complaint(capsys):
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("medseg-se: error: ")]
    assert err.rstrip().endswith(line)
    return line


# ------------------------------------------------------------------------------------------------------------------------ check


def test_check_says_whether_a_dataset_is_fit(capsys, dataset):
    assert run("check", dataset) == 0
    (dataset / "labelsTr" / "b.nii.gz").write_bytes(b"")
    assert run("check", dataset) == 1
    assert "b.nii.gz" in capsys.readouterr().out
    assert run("check", dataset / "nowhere") == 2
    assert "No such dataset" in complaint(capsys)


def test_check_prints_json_and_nothing_else(capsys, dataset):
    assert run("check", dataset, "--json", "--workers", 1) == 0
    whole = json.loads(capsys.readouterr().out)
    (dataset / "labelsTr" / "b.nii.gz").write_bytes(b"")
    assert run("check", dataset, "--json") == 1
    broken = json.loads(capsys.readouterr().out)
    assert whole != broken
    assert "b.nii.gz" in json.dumps(broken)


# ---------------------------------------------------------------------------------------------------------------------- predict


def test_predict_segments_what_it_is_given(capsys, checkpoint, dataset, tmp_path):
    assert run("predict", checkpoint, dataset / "imagesTs", dataset / "imagesTr" / "a.nii.gz", "--output", tmp_path / "p") == 0
    assert results(tmp_path / "p") == ["a.nii.gz", "d.nii.gz"]
    for name, split in (("a", "Tr"), ("d", "Ts")):
        truth = read_labels(dataset / f"labels{split}" / f"{name}.nii.gz")
        assert np.array_equal(read_labels(tmp_path / "p" / f"{name}.nii.gz").array, truth.array)
    printed = capsys.readouterr().out
    assert "2 done" in printed
    assert "trained on 1 of these scans" in printed


@pytest.mark.parametrize(
    ("which", "expected"), [("all", "abcd"), ("validation", "b"), ("unseen", "cd")], ids=["all", "validation", "unseen"]
)
def test_predict_chooses_cases(checkpoint, dataset, tmp_path, which, expected):
    assert run("predict", checkpoint, dataset, "--output", tmp_path / "p", "--cases", which) == 0
    assert results(tmp_path / "p") == [f"{name}.nii.gz" for name in expected]


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_a_dry_run_only_names_the_files(capsys, checkpoint, dataset, tmp_path, flag):
    (dataset / "imagesTs" / "d.nii.gz").rename(dataset / "imagesTs" / "d [bold].nii.gz")
    assert run("predict", checkpoint, dataset / "imagesTs", "--output", tmp_path / "p", flag) == 0
    scan, result = dataset / "imagesTs" / "d [bold].nii.gz", tmp_path / "p" / "d [bold].nii.gz"
    assert capsys.readouterr().out == f"{scan} → {result}\n"
    assert not (tmp_path / "p").exists()


def test_predict_goes_on_after_a_broken_case_and_exits_with_1(capsys, checkpoint, dataset, tmp_path):
    scan = dataset / "imagesTr" / "b.nii.gz"
    scan.write_bytes(scan.read_bytes()[:100])
    assert run("predict", checkpoint, dataset, "--output", tmp_path / "p") == 1
    assert results(tmp_path / "p") == ["a.nii.gz", "c.nii.gz", "d.nii.gz"]
    printed = capsys.readouterr().out
    assert "3 done, 1 failed" in printed
    assert "truncated or corrupt" in printed
    assert run("evaluate", tmp_path / "p", dataset) == 1
    rows = list(csv.DictReader((tmp_path / "p" / "evaluation.csv").open()))
    near = {row["case"]: row for row in rows if row["structure"] == "near"}
    assert {name: float(row["dice"]) for name, row in near.items()} == {"a": 1, "b": 0, "c": 1, "d": 1}
    assert "truncated" in near["b"]["failure"]


def test_predict_with_probabilities(checkpoint, dataset, tmp_path):
    assert run("predict", checkpoint, dataset / "imagesTs", "--output", tmp_path / "p", "--probabilities") == 0
    assert results(tmp_path / "p") == ["d.nii.gz", "d_probabilities.nii.gz"]
    assert run("evaluate", tmp_path / "p", dataset) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "1"], "`overlap` to be at least 0 and below 1"),
        (["--device", "tpu"], "`device` to be auto, cpu"),
        (["--output", "taken"], "`output` to be a folder"),
        (["--output", "taken/below"], "Not a directory"),
        (["--cases", "validation"], "None of the 1 scans is a validation scan"),
    ],
)
def test_what_predict_cannot_do_is_one_line_and_exit_code_2(
    capsys, checkpoint, dataset, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    assert run("predict", checkpoint, dataset / "imagesTs", "--output", "p", *options) == 2
    assert message in complaint(capsys)
    assert not Path("p").exists()


def test_predict_names_a_checkpoint_or_scan_that_is_not_there(capsys, checkpoint, dataset, tmp_path):
    assert run("predict", tmp_path / "no.ckpt", dataset, "--output", tmp_path / "p") == 2
    assert "No such checkpoint" in complaint(capsys)
    assert run("predict", checkpoint, tmp_path / "no.nii", "--output", tmp_path / "p") == 2
    assert "No such file or folder" in complaint(capsys)


def test_predict_averages_several_checkpoints(checkpoint, dataset, tmp_path, capsys):
    kind = {"structures": Structures({"near": (1,), "far": (2,)}), "label_dtype": "uint8"}
    backward = write_checkpoint(tmp_path / "backward.ckpt", options={"levels": [2.0, 1.0, 0.0]}, **kind)
    truth = read_labels(dataset / "labelsTr" / "c.nii.gz").array
    scan, output = dataset / "imagesTr" / "c.nii.gz", tmp_path / "p"
    for weights, expected in (("2,1", truth), ("[0.1, 0.9]", 2 - truth)):
        options = ["--weights", weights, "--output", output, "--overwrite"]
        assert run("predict", checkpoint, backward, scan, *options) == 0
        assert np.array_equal(read_labels(output / "c.nii.gz").array, expected)
    written = (output / "c.nii.gz").stat().st_mtime_ns
    assert run("predict", backward, checkpoint, scan, "--weights", "9,1", "--output", output) == 0
    assert (output / "c.nii.gz").stat().st_mtime_ns == written
    capsys.readouterr()
    assert run("predict", backward, checkpoint, scan, "--output", output) == 2
    assert "holds predictions of another model" in complaint(capsys)


def test_predict_with_one_checkpoint_records_that_checkpoint(checkpoint, dataset, tmp_path):
    assert run("predict", checkpoint, dataset / "imagesTs", "--output", tmp_path / "p") == 0
    assert run("predict", checkpoint, dataset / "imagesTs", "--output", tmp_path / "p", "--weights", "5") == 0
    assert json.loads((tmp_path / "p" / "predictions.json").read_text())["model"] == Model.load(checkpoint, "cpu").digest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["second.ckpt", "data", "--weights", "0.4"], "`weights` to be 2 positive numbers, one a checkpoint, but got [0.4]"),
        (["second.ckpt", "data", "--weights", "1,0"], "2 positive numbers, one a checkpoint, but got [1.0, 0.0]"),
        (["second.ckpt", "data", "--weights", "some,more"], "`weights` to be numbers such as 0.4,0.4,0.2, but got 'some,more'"),
        (["data", "--weights", "1,1"], "`weights` to be 1 positive number, one a checkpoint"),
        (["second.ckpt"], "scans, folders of scans or datasets after the checkpoints, but got none"),
        (["second.ckpt", "data"], "second.ckpt differ in third"),
        (["nowhere.ckpt", "data"], "No such checkpoint: nowhere.ckpt"),
    ],
)
def test_checkpoints_and_weights_that_do_not_fit(capsys, checkpoint, dataset, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    more = Structures({"near": (1,), "far": (2,), "third": (3,)})
    write_checkpoint(Path("second.ckpt"), structures=more, options={"levels": [0.0, 1.0, 2.0, 3.0]}, label_dtype="uint8")
    assert run("predict", checkpoint, *words, "--output", "p") == 2
    assert message in complaint(capsys)
    assert not Path("p").exists()


def test_predict_on_a_full_disk_exits_with_2_and_the_next_run_finishes(capsys, checkpoint, dataset, tmp_path, monkeypatch):
    sync, refused = os.fsync, []

    def full(descriptor):
        if ".b.nii.gz." in Path(f"/proc/self/fd/{descriptor}").readlink().name and not refused:
            refused.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    command = ["predict", checkpoint, dataset / "imagesTr", "--output", tmp_path / "p"]
    assert run(*command) == 2
    assert "b.nii.gz: the disk is full; free some space and run the same command again." in complaint(capsys)
    left = ["a.nii.gz", "a_volumes.csv", "predictions.json", "status.csv"]
    assert sorted(path.name for path in (tmp_path / "p").iterdir() if path.name != ".predictions.lock") == left
    assert run(*command) == 0
    assert results(tmp_path / "p") == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_ctrl_c_keeps_what_is_done_and_the_next_run_finishes(capsys, checkpoint, dataset, tmp_path, monkeypatch):
    answer = Model.answer

    def interrupted(model, ready, **options):
        if ready.source.path.name == "b.nii.gz":
            os.kill(os.getpid(), signal.SIGINT)
        return answer(model, ready, **options)

    command = ["predict", checkpoint, dataset / "imagesTr", "--output", tmp_path / "p"]
    with monkeypatch.context() as patch:
        patch.setattr(Model, "answer", interrupted)
        assert run(*command) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert results(tmp_path / "p") == ["a.nii.gz"]
    done = (tmp_path / "p" / "a.nii.gz").stat().st_mtime_ns
    assert run(*command) == 0
    assert results(tmp_path / "p") == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert (tmp_path / "p" / "a.nii.gz").stat().st_mtime_ns == done


# --------------------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_writes_a_table_and_a_report(capsys, dataset, tmp_path):
    assert run("evaluate", dataset / "labelsTr", dataset, "--output", tmp_path / "e [x]", "--workers", 1) == 1
    assert run("evaluate", dataset / "labelsTr", dataset / "labelsTr", "--output", tmp_path / "e [x]") == 0
    assert f"Written to {tmp_path}/e [x]/evaluation.csv and {tmp_path}/e [x]/evaluation.json\n" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "e [x]" / "evaluation.csv").open()))
    assert [(row["case"], row["structure"], float(row["dice"]), float(row["hd95_mm"]), row["failure"]) for row in rows] == [
        (name, structure, 1, 0, "") for name in "abc" for structure in ("near", "far")
    ]
    report = json.loads((tmp_path / "e [x]" / "evaluation.json").read_text())
    assert report["mean_foreground"] == 1
    assert report["summary"]["dice"]["far"]["n"] == 3
    assert not list((dataset / "labelsTr").glob("evaluation.*"))


def test_evaluate_takes_structures_from_a_file(capsys, dataset, tmp_path):
    (dataset / "dataset.json").rename(tmp_path / "names.json")
    assert run("evaluate", dataset / "labelsTr", dataset / "labelsTr") == 2
    assert "Give --structures" in complaint(capsys)
    assert run("evaluate", dataset / "labelsTr", dataset / "labelsTr", "--structures", tmp_path / "names.json") == 0
    assert (dataset / "labelsTr" / "evaluation.csv").is_file()


def test_options_of_evaluate(capsys, dataset, tmp_path):
    labels, table = dataset / "labelsTr", tmp_path / "tolerance.json"
    table.write_text('{"near": 2, "default": 0.5}')
    given = ["evaluate", labels, labels, "--structures", dataset, "--output", tmp_path / "e"]
    for tolerance in (str(table), '{"near": 2, "default": 0.5}'):
        options = ["--metrics", "hd95_mm,nsd", "--surface", "surfel", "--lesions", "0.25", "--resample"]
        assert run(*given, *options, "--tolerance", tolerance) == 0
        report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
        chosen = [measure["name"] for measure in report["measures"]]
        assert chosen[:3] == ["dice", "hd95_mm", "nsd"]
        assert "lesion_recall" in chosen
        assert report["tolerances"] == {"near": 2, "far": 0.5}
        assert (report["surface"], report["lesions"]) == ("surfel", 0.25)
    for options, message in (
        (["--tolerance", "{near: 1"], "Expected `tolerance` to be a number of mm, a JSON table or its file"),
        (["--tolerance", tmp_path / "none.json"], "Cannot read"),
        (["--metrics", "dice,nds"], "Did you mean 'nsd'"),
        (["--surface", "mesh"], "Unknown definition of surfaces 'mesh'"),
    ):
        capsys.readouterr()
        assert run(*given, *options) == 2
        assert message in complaint(capsys)


def test_evaluate_names_what_is_not_there(capsys, dataset, tmp_path):
    assert run("evaluate", tmp_path / "nowhere", dataset) == 2
    assert "folder of predicted label maps" in complaint(capsys)
    (tmp_path / "file").write_text("")
    assert run("evaluate", dataset / "labelsTr", dataset / "labelsTr", "--output", tmp_path / "file" / "below") == 2
    assert "Not a directory" in complaint(capsys)


# ---------------------------------------------------------------------------------------------------------------------- configs


def test_configs_lists_every_recipe_and_experiment_with_what_it_is_for(capsys):
    assert run("configs") == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed
    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert list(listed) == [*recipes, *sorted(f"experiments/{path.stem}" for path in (RECIPES / "experiments").glob("*.yaml"))]
    for name, summary in listed.items():
        assert (RECIPES / f"{name}.yaml").read_text().startswith(f"# {summary}\n")


def test_configs_prints_a_recipe(capsys):
    name = min(path.stem for path in RECIPES.glob("*.yaml"))
    for wanted in (name, f"{name}.yaml"):
        assert run("configs", wanted) == 0
        printed = capsys.readouterr().out
        assert printed == (RECIPES / f"{name}.yaml").read_text()
        assert {"model", "data", "trainer"} <= set(yaml.safe_load(printed))


def test_an_unknown_recipe_suggests_the_nearest(capsys):
    name = min(path.stem for path in RECIPES.glob("*.yaml"))
    assert run("configs", f"{name[:-1]}") == 2
    assert f"Unknown recipe {name[:-1]!r}. Did you mean {name!r}?" in complaint(capsys)
