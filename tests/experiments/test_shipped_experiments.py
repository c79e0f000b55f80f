"""The experiments in `configs/experiments`, each as it ships but for sizes, on phantoms of a few voxels."""

import json
import re
from pathlib import Path

import in_process
import pytest
import yaml

from medseg_se.cli import experiment
from medseg_se.cli.main import main
from medseg_se.cli.recipes import experiment_names, experiment_path, summary
from medseg_se.data.phantom import write_phantoms
from medseg_se.experiments.grid import read_experiment

SMALL = {"unet": {"channels": [4, 4, 4, 4]}, "densenet": {"channels": [4, 4, 4, 4]}, "sdnet": {"channels": [4, 4, 4, 4]}}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Six phantoms; beside them the label maps alone, and their scans as the test of a cross-validation."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder / "whole", "brain", training=6, test=0, resolution=8.0)
    content = json.loads((folder / "whole" / "dataset.json").read_text())
    path = folder / "whole"
    for case in content["training"]:
        case |= {"image": str(path / case["image"]), "label": str(path / case["label"])}
    named = [Path(case["label"]).name.partition(".")[0] for case in content["training"]]
    bare = [{**case, "image": None, "id": name} for case, name in zip(content["training"], named, strict=True)]
    scans = [{**case, "id": f"{name}_t1", "group": name} for case, name in zip(content["training"], named, strict=True)]
    for name, cases in (("training", bare), ("test", scans)):
        (folder / name).mkdir()
        (folder / name / "dataset.json").write_text(json.dumps({**content, "training": cases, "test": []}))
    return folder


@pytest.fixture(autouse=True)
def _kept(put_back, monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "run_jobs", in_process.run_jobs)
    monkeypatch.chdir(tmp_path)


def small(name, phantoms, blocks):
    """Write a shipped experiment with as little to compute as its networks allow, and return what it held."""
    content = yaml.safe_load(experiment_path(name).read_text())
    whole = content["test"] == 40
    data = content["fit"]["data"]["init_args"]
    size = [16] * len(data["patch_size"])
    networks = {label: {**arguments, **SMALL[label]} for label, arguments in content["networks"].items()}
    if blocks and "folds" in content:
        networks = {"unet": networks["unet"]}
    overlay = {
        "data": str(phantoms / ("whole" if whole else "training")),
        "test": 2 if whole else str(phantoms / "test"),
        "budget": {"steps": 2},
        "networks": networks,
        "blocks": blocks or content["blocks"],
        "also": [],
    }
    overlay["fit"] = {**content["fit"], "trainer": {**content["fit"]["trainer"], "accelerator": "cpu", "precision": "32-true"}}
    overlay["fit"]["data"] = {"init_args": {**data, "patch_size": size, "batches_per_epoch": 2, "num_workers": 0}}
    if "spacing" in data:
        overlay["fit"]["data"]["init_args"]["spacing"] = [8.0, 8.0, 8.0]
    Path("small.yaml").write_text(yaml.safe_dump({**content, **overlay}, sort_keys=False))
    return content


def test_there_are_experiments_and_each_says_what_it_is_for():
    assert experiment_names() == ["experiments/brain_labels_2d_attention", "experiments/hippocampus_attention"]
    for name in experiment_names():
        assert len(summary(experiment_path(name))) > 40
        second = experiment_path(name).read_text().splitlines()[1]
        assert f"medseg-se compare {name} --output" in second


@pytest.mark.parametrize("name", experiment_names())
def test_every_value_of_an_experiment_is_explained(name):
    values = [line for line in experiment_path(name).read_text().splitlines() if re.match(r" *[\w-]+: \S", line)]
    assert [line for line in values if not re.search(r" # \S", line)] == []


def test_the_hippocampus_has_every_block_on_every_network_and_two_seeds_of_none_and_scse():
    runs = read_experiment(experiment_path("hippocampus_attention")).runs
    seeds = {}
    for run in runs:
        seeds.setdefault((run.variant.network, run.variant.block), set()).add(run.seed)
    assert len(seeds) == 3 * 8
    assert all(len(seeds[network, block]) == 2 for network in ("unet", "densenet", "sdnet") for block in ("none", "scse"))


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_runs_from_end_to_end(name, phantoms):
    small(name, phantoms, ["none", "scse"])
    assert main(["compare", "small.yaml", "--output", "out"]) == 0
    content = json.loads(Path("out/comparison.json").read_text())
    whole = name.endswith("hippocampus_attention")
    assert len(content["outcomes"]) == (3 * 2 if whole else 2)
    assert len(content["cases"]) == (2 if whole else 6)


@pytest.mark.parametrize("name", experiment_names())
def test_all_variants_of_an_experiment_can_be_built(name, phantoms, monkeypatch):
    def stop(jobs, places, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run_jobs", stop)
    content = small(name, phantoms, None)
    assert main(["compare", "small.yaml", "--output", "out"]) == 130
    runs = 3 * len(content["blocks"]) * len(content.get("folds", [None]))
    assert len(list(Path("out/runs").iterdir())) == runs
