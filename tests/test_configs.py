import logging
import re
import signal
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml

from medseg_se.cli.main import main
from medseg_se.cli.recipes import recipe_names, recipe_path, recipe_summary
from medseg_se.data.phantom import write_phantoms
from medseg_se.inference.model import Model

SHIPPED = sorted(path.stem for path in Path(str(files("medseg_se.configs"))).glob("*.yaml"))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder / "data", "brain", training=6, test=0, resolution=8.0)
    return folder / "data"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    level = logging.getLogger("pytorch_lightning").level
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    logging.getLogger("pytorch_lightning").setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def plain(name):
    return yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))


def contains(whole, part):
    """Tell whether every value of the nested table `part` is in `whole`."""
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    return whole == part


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
def test_every_recipe_parses_to_what_it_says(name, capsys):
    assert main(["fit", "--config", name, "--print_config"]) == 0
    assert contains(yaml.safe_load(capsys.readouterr().out), plain(name))


@pytest.mark.parametrize("slice_axis", [None, "axial"], ids=["3D", "2D"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_runs_from_end_to_end(name, slice_axis, phantoms, capsys):
    levels = len(plain(name)["model"]["init_args"]["channels"])
    size = 2**levels  # the smallest patch that the strides leave more than a voxel of
    arguments = {
        "data.source": str(phantoms),
        "data.store": "prepared",
        "data.folds": "3",
        "data.patch_size": str([size] * (2 if slice_axis else 3)),
        "data.slice_axis": slice_axis or "null",
        "data.spacing": "[8.0, 8.0, 8.0]",
        "data.batches_per_epoch": "2",
        "data.num_workers": "0",
        "model.channels": str([4] * levels),
        "trainer.max_epochs": "1",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.default_root_dir": "run",
    }
    flags = [word for key, value in arguments.items() for word in (f"--{key}", value)]
    assert main(["fit", f"--config={name}", *flags]) == 0
    assert "mean over structures" in capsys.readouterr().err
    model = Model.load("run/checkpoints/best.ckpt", device="cpu")
    assert len(model.structures.names) == 22
    assert model.tile == ((size, size, 1) if slice_axis else (size, size, size))
    trained = torch.load("run/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert contains(trained, {**plain(name)["model"]["init_args"], "channels": [4] * levels})
