"""Experiments through `medseg-se compare`, on phantoms of a few voxels."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import in_process
import pytest
import torch
import yaml

from medseg_se import plugins
from medseg_se.attention import ATTENTION
from medseg_se.cli import experiment, experiment_run
from medseg_se.cli.main import main
from medseg_se.data.datalist import read_datalist
from medseg_se.data.phantom import write_phantoms
from medseg_se.evaluation.result import Evaluation
from medseg_se.experiments import sweep
from medseg_se.experiments.cases import read_cases
from medseg_se.experiments.contents import keep_contents
from medseg_se.tasks import SegmentationTask

TINY = {
    "data": "data",
    "test": 2,
    "budget": {"steps": 3},
    "networks": {"unet": {"channels": [4, 8]}, "densenet": {"channels": [4, 4], "dropout": 0.1}},
    "blocks": ["none", "scse"],
    "seeds": [1],
    "fit": {
        "trainer": {"accelerator": "cpu", "precision": "32-true", "limit_val_batches": 0, "enable_progress_bar": False},
        "checkpoints": {"minutes": 0},
        "data": {"init_args": {"patch_size": [16, 16, 16], "batches_per_epoch": 2, "num_workers": 0}},
    },
}


def write(name="tiny.yaml", **changes):
    Path(name).write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))


@pytest.fixture(autouse=True)
def _kept(put_back, monkeypatch):
    monkeypatch.setattr(experiment, "run_jobs", in_process.run_jobs)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a finished experiment, and what was seen of its trainings; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(experiment, "run_jobs", in_process.run_jobs)
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        witness = in_process.Witness(patch)
        write_phantoms(Path("data"), "brain", training=6, test=0, resolution=8.0)
        write()
        assert main(["compare", "tiny.yaml", "--output", "out"]) == 0
    return folder, witness


@pytest.fixture
def work(made, tmp_path, monkeypatch):
    """Work in a copy of that folder, whose cases are still those of the first."""
    shutil.copytree(made[0], tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    for name in ("training.json", "held_out.json", "contents.json"):
        path = Path("out") / name
        path.write_text(path.read_text().replace(str(made[0]), str(tmp_path / "work")))
    for path in Path("out/runs").glob("*/settings.yaml"):
        path.write_text(path.read_text().replace(str(made[0]), str(tmp_path / "work")))
    for path in Path("out/runs").glob("*/finished.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "digest": experiment.RunFolder(path.parent.absolute()).digest()}))
    return tmp_path / "work"


@pytest.fixture
def witness(monkeypatch):
    return in_process.Witness(monkeypatch)


def results(folder="out"):
    """Return the table without what a clock says."""
    rows = csv.DictReader((Path(folder) / "table.csv").open())
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


# --------------------------------------------------------------------------------------------------------------------- fairness


def test_variants_get_the_same_batches_in_the_same_order(made):
    batches = made[1].batches
    assert sorted(batches) == ["densenet-none-seed1", "densenet-scse-seed1", "unet-none-seed1", "unet-scse-seed1"]
    assert len({tuple(seen) for seen in batches.values()}) == 1
    assert len(set(batches["unet-none-seed1"])) == 3


@pytest.mark.parametrize("network", ["unet", "densenet"])
def test_variants_begin_with_the_same_weights_wherever_they_share_any(made, network):
    plain, gated = (made[1].weights[f"{network}-{block}-seed1"] for block in ("none", "scse"))
    assert plain.keys() < gated.keys()
    assert all(torch.equal(gated[name], value) for name, value in plain.items())
    assert all("attention" in name for name in gated.keys() - plain.keys())


def test_another_seed_begins_elsewhere_with_other_batches(work, witness):
    write(networks={"unet": {"channels": [4, 8]}}, seeds=[1, 2])
    assert main(["compare", "tiny.yaml", "--output", "out"]) == 0
    assert sorted(witness.batches) == ["unet-none-seed2", "unet-scse-seed2"]
    assert witness.batches["unet-none-seed2"] == witness.batches["unet-scse-seed2"]
    before = torch.load("out/runs/unet-none-seed1/start.ckpt", weights_only=True)["state_dict"]
    assert not any(
        torch.equal(value, before[f"network.{name}"])
        for name, value in witness.weights["unet-none-seed2"].items()
        if value.ndim > 1
    )


def test_every_run_has_the_same_budget_and_is_judged_on_what_none_was_trained_on(made):
    folder = made[0] / "out"
    held_out = {case.id for case in read_datalist(folder / "held_out.json").training}
    training = {case.id for case in read_datalist(folder / "training.json").training}
    assert (len(held_out), len(training), held_out & training) == (2, 4, set())
    for run in (folder / "runs").iterdir():
        account = json.loads((run / "finished.json").read_text())
        assert (account["steps"], account["cases"]) == (3, 2)
        assert {case.id for case in Evaluation.read_json(run / "evaluation.json").cases} == held_out


# ---------------------------------------------------------------------------------------------------------------- what it makes


def test_the_comparison_has_every_variant_with_its_cost(made):
    folder = made[0] / "out"
    content = json.loads((folder / "comparison.json").read_text())
    assert [one["name"] for one in content["outcomes"]] == ["unet none", "unet scse", "densenet none", "densenet scse"]
    assert [(one["name"], one["reference"]) for one in content["contrasts"]] == [
        ("unet scse", "unet none"),
        ("densenet scse", "densenet none"),
    ]
    costs = {one["name"]: one["cost"] for one in content["outcomes"]}
    weights = made[1].weights["unet-none-seed1"]
    assert costs["unet none"]["parameters"] == sum(value.numel() for value in weights.values())
    assert costs["unet scse"]["flops"] > costs["unet none"]["flops"]
    assert set(costs["unet none"]) == set(content["costs"])
    assert "no evidence of a difference" in content["verdict"]
    for name in ("forest.png", "forest.svg", "pareto.png", "pareto.svg", "table.csv"):
        assert (folder / name).stat().st_size > 1000


def test_a_finished_experiment_trains_nothing_again(work, witness):
    before = results()
    assert main(["compare", "tiny.yaml", "--output", "out"]) == 0
    assert witness.batches == {}
    assert results() == before


# ----------------------------------------------------------------------------------------------------------------------- resume


def test_an_interrupted_experiment_goes_on_and_ends_with_the_same_numbers(work, monkeypatch, capfd):
    step = SegmentationTask.training_step
    seen = []

    def interrupted(task, batch, batch_idx):
        seen.append(task.global_step)
        if seen == [0, 1, 2, 0, 1]:  # within the second of the runs
            raise KeyboardInterrupt
        return step(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", interrupted)
        assert main(["compare", "tiny.yaml", "--output", "anew"]) == 130
        assert [path.parent.name for path in Path("anew/runs").glob("*/finished.json")] == ["unet-none-seed1"]
    witness = in_process.Witness(monkeypatch)
    assert main(["compare", "tiny.yaml", "--output", "anew"]) == 0
    assert "4 runs, 1 of them finished before." in capfd.readouterr().err
    assert sorted(witness.batches) == ["densenet-none-seed1", "densenet-scse-seed1", "unet-scse-seed1"]
    assert len(witness.batches["unet-scse-seed1"]) == 2  # of three
    assert results("anew") == results("out")


def test_a_run_that_fails_is_named_and_nothing_is_compared(work, monkeypatch, capfd):
    def broken(task, batch, batch_idx):
        raise experiment.UsageError("the loss became nan")

    shutil.rmtree("out/runs/unet-scse-seed1")
    monkeypatch.setattr(SegmentationTask, "training_step", broken)
    assert main(["compare", "tiny.yaml", "--output", "out"]) == 1
    messages = capfd.readouterr().err
    assert "unet-scse-seed1 failed: run unet-scse-seed1: error: the loss became nan (see" in messages
    assert "Nothing is compared before all runs have finished" in messages


def test_new_blocks_are_added_and_what_the_grid_has_no_more_is_left_out(work, witness, capfd):
    write(networks={"unet": {"channels": [4, 8]}}, blocks=["none", "scse", "eca"])
    assert main(["compare", "tiny.yaml", "--output", "out"]) == 0
    assert list(witness.batches) == ["unet-eca-seed1"]
    messages = capfd.readouterr().err
    assert "3 runs, 2 of them finished before." in messages
    assert "Left out, as the grid has them no more: densenet-none-seed1, densenet-scse-seed1." in messages
    assert [row["run"] for row in results()[::23]] == ["unet none", "unet scse", "unet eca"]


@pytest.fixture
def forgotten(monkeypatch):
    """Return a function after which no plugin was run in this process; nothing of one is left behind."""

    def forget():
        for name in plugins._loaded:
            sys.modules.pop(name, None)
        plugins._loaded.clear()
        ATTENTION.pop("half", None)
        monkeypatch.setenv(plugins.VARIABLE, "")

    monkeypatch.setattr(sys, "path", [*sys.path])
    forget()
    yield forget
    forget()


def test_a_block_of_ones_own_is_added_and_refused_once_its_file_is_another(work, witness, forgotten, capfd):
    block = "from torch import nn\nfrom medseg_se import ATTENTION\n"
    block += "class Half(nn.Module):\n    def __init__(self, channels, spatial_dims):\n        super().__init__()\n"
    block += "    def forward(self, x):\n        return x / 2\nATTENTION['half'] = Half\n"
    Path("my_half.py").write_text(block)
    write(networks={"unet": {"channels": [4, 8]}}, blocks=["none", "half"])
    command = ["compare", "tiny.yaml", "--output", "out"]
    assert main(command) == 2
    assert "Unknown attention 'half'." in capfd.readouterr().err
    assert main([*command, "--plugins", "my_half.py"]) == 0
    assert list(witness.batches) == ["unet-half-seed1"]
    Path("my_half.py").write_text(block.replace("x / 2", "x / 3"))
    forgotten()
    assert main([*command, "--plugins", "my_half.py"]) == 2
    assert "holds the run unet-half-seed1 with other settings: plugins.my_half.py." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"steps": 4}}, "holds the run unet-none-seed1 with other settings: fit.trainer.max_steps."),
        ({"judged": "best"}, "holds the run unet-none-seed1 with other settings: judged."),
        ({"networks": {"unet": {"channels": [4, 6]}}}, "with other settings: fit.model.channels."),
        ({"test": 3}, "holds an experiment on other cases"),
    ],
    ids=["budget", "judged", "network", "test"],
)
def test_another_experiment_in_the_same_folder_is_refused(work, witness, capfd, changes, message):
    write(**changes)
    assert main(["compare", "tiny.yaml", "--output", "out"]) == 2
    assert message in capfd.readouterr().err
    assert witness.batches == {}


def first_of(name):
    """Return the image and the label map of the first case in a list of an experiment's cases."""
    entry = json.loads((Path("out") / name).read_text())["training"][0]
    return Path(entry["image"][0]), Path(entry["label"])


@pytest.mark.parametrize(("cases", "which"), [("training.json", 0), ("held_out.json", 1)], ids=["scan", "truth"])
def test_files_that_were_replaced_under_their_names_are_refused(work, witness, capfd, cases, which):
    replaced = first_of(cases)[which]
    before, stat = replaced.read_bytes(), replaced.stat()
    replaced.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    os.utime(replaced, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy that keeps the time of the file
    shutil.rmtree("out/runs/unet-scse-seed1")
    assert main(["compare", "tiny.yaml", "--output", "out"]) == 2
    message = capfd.readouterr().err
    assert f"out holds runs on other contents of {replaced}: replaced or changed since the first run began" in message
    assert "Put the earlier files back to go on, or choose another folder." in message
    assert witness.batches == {}
    replaced.write_bytes(before)
    assert main(["compare", "tiny.yaml", "--output", "out"]) == 0
    assert list(witness.batches) == ["unet-scse-seed1"]


def test_a_run_looks_at_the_files_before_it_begins(work, witness, capfd):
    image, _ = first_of("training.json")
    shutil.rmtree("out/runs/unet-scse-seed1/checkpoints")
    Path("out/runs/unet-scse-seed1/finished.json").unlink()
    image.write_bytes(image.read_bytes()[:-1])
    assert experiment_run.main(["out", "unet-scse-seed1"]) == 2
    assert f"other contents of {image}" in capfd.readouterr().err
    assert witness.batches == {}


def test_before_the_first_run_files_may_still_be_mended(work, witness):
    image, _ = first_of("training.json")
    shutil.copytree("out", "begun", ignore=shutil.ignore_patterns("runs"))
    known = json.loads(Path("begun/contents.json").read_text())["files"][str(image)]
    image.with_name("other.nii.gz").write_bytes(first_of("held_out.json")[0].read_bytes())
    image.with_name("other.nii.gz").replace(image)
    cases = read_cases(Path("begun"))
    keep_contents(cases, Path("begun"))
    again = json.loads(Path("begun/contents.json").read_text())["files"]
    assert again[str(image)]["digest"] != known["digest"]
    assert len(again) == 12  # six scans and their label maps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "--trainer.max_steps", "9"], "sets trainer.max_steps itself, but it stands in what follows `--`: see `budget`"),
        (["--", "--model.init_args.attention=cse"], "sets model.attention itself"),
        (["--truth", "data"], "`truth` is for a comparison of folders, but an experiment is given"),
        (["--workers", "2"], "Expected `executor` where `workers` or `cluster` is given"),
        (["--executor", "debug", "--cluster", "timeout"], "parameters such as timeout_min=600"),
        (["--data", "nowhere"], "No such dataset: nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_make_no_sense_are_refused(work, witness, capfd, arguments, message):
    assert main(["compare", "tiny.yaml", "--output", "new", *arguments]) == 2
    assert message in capfd.readouterr().err
    assert witness.batches == {}


def test_a_config_may_not_set_what_the_experiment_sets(work, capfd):
    write(fit={"data": {"init_args": {"fold": 1}}})
    assert main(["compare", "tiny.yaml", "--output", "new"]) == 2
    assert "sets data.fold itself, but it stands in `fit` of tiny.yaml: see `folds`" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------------------ folds


def test_without_a_test_set_every_fold_is_judged_on_what_it_left_out(work, capfd):
    fit = {**TINY["fit"], "data": {"init_args": {**TINY["fit"]["data"]["init_args"], "folds": 2}}}
    content = {**TINY, "networks": {"unet": {"channels": [4, 8]}}, "folds": [0, 1], "fit": fit}
    del content["test"]
    Path("folds.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["compare", "folds.yaml", "--output", "folds"]) == 0
    judged = {
        fold: {case.id for case in Evaluation.read_json(f"folds/runs/unet-none-fold{fold}-seed1/evaluation.json").cases}
        for fold in (0, 1)
    }
    assert judged[0] | judged[1] == {case.id for case in read_datalist("data").training}
    assert not judged[0] & judged[1]
    compared = json.loads(Path("folds/comparison.json").read_text())
    assert (len(compared["cases"]), compared["contrasts"][0]["repeats"]) == (6, [2, 2])


# ------------------------------------------------------------------------------------------------------------------------ sweep


def test_a_sweep_with_optuna_and_submitit_gives_the_same_numbers(work, monkeypatch):
    pytest.importorskip("optuna")
    pytest.importorskip("submitit")
    done = []

    def do(command, log, threads):
        done.append(command[-1])
        return in_process.do(command, log)

    monkeypatch.setattr(sweep, "_do", do)
    assert main(["compare", "tiny.yaml", "--output", "swept", "--executor", "debug", "--workers", "2"]) == 0
    assert sorted(done) == ["densenet-none-seed1", "densenet-scse-seed1", "unet-none-seed1", "unet-scse-seed1"]
    assert results("swept") == results("out")


def test_a_sweep_without_its_packages_names_the_extra(work, monkeypatch, capfd):
    shutil.rmtree("out/runs/unet-scse-seed1")
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert main(["compare", "tiny.yaml", "--output", "out", "--executor", "local"]) == 2
    assert "pip install 'medseg-se[sweep]'" in capfd.readouterr().err
