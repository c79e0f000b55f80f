import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from whole_scans import CLASSES, write_ages, write_pictures

from medseg_se.cli.main import main
from medseg_se.cli.recipes import recipe_names, recipe_path, recipe_summary
from medseg_se.data.phantom import write_phantoms
from medseg_se.inference.model import Model

SHIPPED = sorted(path.stem for path in Path(str(files("medseg_se.configs"))).glob("*.yaml"))
SMALL = {  # options that make a network quick where fewer channels a level are not enough or not to be had
    "denisnet_split": {"layers": [2, 1], "growth": 6},
    "densenet121": {"blocks": [2, 1], "growth": 8, "stem_channels": 8},
    "fc_densenet": {"growth": 4, "stem_channels": 4},
    "fpn": {"pyramid_channels": 4},
    "inception": {"modules": [[[8, 4, 8, 4, 8, 8]], [[8, 4, 8, 4, 8, 8]]], "stem_channels": [8, 8, 8]},
    "mobilenetv2": {"blocks": [1, 2, 1], "strides": [1, 2, 2], "expansion": [1, 2, 2], "head_channels": 16},
    "mobilenext": {"blocks": [1, 2, 1], "strides": [1, 2, 2], "reduction": 2},
    "monai:SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "resnet50v2": {"blocks": [1, 1, 1, 1]},
    "sqet": {"depth": 1, "heads": 2},
}
CHANNELS = {"mobilenetv2": [8, 8, 8], "mobilenext": [8, 8, 8], "resnet50v2": [8] * 4, "sqet": [4, 6, 8], "segresnet": [8] * 3}
WITHOUT_CHANNELS = ("denisnet_split", "densenet121", "fc_densenet", "inception", "monai:SwinUNETR")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder / "data", "brain", training=6, test=0, resolution=8.0)
    return folder / "data"


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts")
    return {"ClassificationTask": write_pictures(folder / "pictures"), "RegressionTask": write_ages(folder / "heads")}


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(name):
    return yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))


def task_of(name):
    return plain(name)["model"]["class_path"].rsplit(".", 1)[-1]


def contains(whole, part):
    """Tell whether every value of the nested table `part` is in `whole`."""
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    return whole == part


def small(name):
    """Return a recipe's arguments of the model with as little to compute as its network allows."""
    own = plain(name)["model"]["init_args"]
    network, options = own["network"], own.get("network_options", {})
    arguments = {**own, "network_options": {**options, **SMALL.get(network, {})}}
    if network not in WITHOUT_CHANNELS:
        arguments["channels"] = CHANNELS.get(network, [4] * len(own.get("channels", [0] * 5)))
    return arguments


def fit(name, data):
    """Train with a recipe on a tiny dataset, and return what it wrote of itself."""
    trainer = {"max_epochs": 1, "accelerator": "cpu", "precision": "32-true", "default_root_dir": "run"}
    overlay = {
        "trainer": trainer,
        "model": {"init_args": small(name)},
        "data": {"init_args": {"store": "prepared", "folds": 3, "num_workers": 0, "progress": False, **data}},
    }
    Path("small.yaml").write_text(yaml.safe_dump(overlay))
    assert main(["fit", f"--config={name}", "--config=small.yaml"]) == 0
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert contains(last["hyper_parameters"], small(name))
    return last["medseg_se"]


def test_the_shipped_recipes_are_those_in_the_folder():
    assert recipe_names() == SHIPPED
    assert SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_says_what_it_is_for_and_how_to_run_it(name):
    first, second = recipe_path(name).read_text(encoding="utf-8").splitlines()[:2]
    assert re.fullmatch(r"# .{20,}", first)
    assert recipe_summary(name) == first.lstrip("# ")
    assert f"medseg-se fit --config {name}" in second


@pytest.mark.parametrize("name", SHIPPED)
def test_every_value_of_a_recipe_is_explained(name):
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r" *(?!class_path)[\w-]+: \S", line)]
    assert len(values) > 15
    assert [line for line in values if not re.search(r"  # \S", line)] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_parses_to_what_it_says(name, capsys):
    assert main(["fit", "--config", name, "--print_config"]) == 0
    assert contains(yaml.safe_load(capsys.readouterr().out), plain(name))


def segmentation_cases():
    """Return each recipe in its own dimensions, and those of the plain U-Net in the others too."""
    for name in SHIPPED:
        if task_of(name) == "SegmentationTask":
            own = plain(name)["data"]["init_args"].get("slice_axis")
            axes = [own, "axial" if own is None else None] if plain(name)["model"]["init_args"]["network"] == "unet" else [own]
            yield from (pytest.param(name, axis, id=f"{name}-{'3D' if axis is None else '2D'}") for axis in axes)


@pytest.mark.parametrize(("name", "slice_axis"), list(segmentation_cases()))
def test_every_recipe_for_segmentation_runs_from_end_to_end(name, slice_axis, phantoms, capsys):
    size = 32  # which the strides of five levels leave two voxels of
    if plain(name)["model"]["init_args"]["network"] == "monai:SwinUNETR":
        pytest.importorskip("einops")
        size = 40
    data = {
        "source": str(phantoms),
        "patch_size": [size] * (2 if slice_axis else 3),
        "slice_axis": slice_axis,
        "spacing": [8.0, 8.0, 8.0],
        "batches_per_epoch": 2,
    }
    fit(name, data)
    assert "mean over structures" in capsys.readouterr().err
    model = Model.load("run/checkpoints/best.ckpt", device="cpu")
    assert len(model.structures.names) == 22
    assert sorted(model.tile) == ([1, size, size] if slice_axis else [size] * 3)


@pytest.mark.parametrize("name", [name for name in SHIPPED if task_of(name) != "SegmentationTask"])
def test_every_recipe_for_whole_scans_runs_from_end_to_end(name, cohorts, capsys):
    dims = len(plain(name)["data"]["init_args"]["size"])
    described = fit(name, {"source": str(cohorts[task_of(name)]), "size": [32] * dims, "batch_size": 4, "batches_per_epoch": 2})
    assert described["task"] == task_of(name).removesuffix("Task").lower()
    assert described["data"].get("classes", described["data"].get("values")) in (list(CLASSES), ["age"])
    assert f" {'age' if 'values' in described['data'] else 'AUROC'} " in capsys.readouterr().err
