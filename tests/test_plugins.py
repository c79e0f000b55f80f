"""Blocks of a user's own, from a Python file: through the command line, into a checkpoint and out of it again."""

import importlib
import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from medseg_se import plugins
from medseg_se.attention import ATTENTION, build_attention
from medseg_se.cli.main import main
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.inference.model import Model
from medseg_se.inference.source import ModelSource
from medseg_se.tasks import SegmentationTask

BLOCK = """
import torch
from torch import nn

from medseg_se import ATTENTION


class OwnMean(nn.Module):
    def __init__(self, channels, spatial_dims, start=1.0):
        super().__init__()
        self.bias = nn.Parameter(torch.full((1, channels, *[1] * spatial_dims), start))

    def forward(self, x):
        return x * torch.sigmoid(x.mean(tuple(range(2, x.ndim)), keepdim=True) + self.bias)


ATTENTION["own_mean"] = OwnMean
"""
NETWORK = """
from torch import nn

from medseg_se.networks import NETWORKS


class Plain(nn.Sequential):
    def __init__(self, in_channels, num_classes, spatial_dims):
        super().__init__(nn.Conv3d(in_channels, num_classes, 1))


NETWORKS["plain"] = Plain
"""


def forget():
    """Be as a process that no plugin was run in."""
    for name in plugins._loaded:
        sys.modules.pop(name, None)
    plugins._loaded.clear()
    ATTENTION.pop("own_mean", None)


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch):
    """Work in a folder with a file that adds a block; nothing of it is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_block.py").write_text(BLOCK)
    yield tmp_path
    forget()


def run_anew(*arguments):
    """Run the command line as a process of its own would; returns the exit code."""
    forget()
    os.environ[plugins.VARIABLE] = ""
    return main(list(arguments))


@pytest.fixture
def trained(folder, write_decathlon):
    """A checkpoint of a network with the block, made from a recipe that names it."""
    write_decathlon(folder / "data", cases=4, test=0, shape=(14, 12, 12))
    model = {"channels": [4, 8], "deep_supervision": False, "attention": "own_mean+cse"}
    model["attention_options"] = {"own_mean": {"start": 0.5}}
    data = {"source": "data", "folds": 2, "patch_size": [12, 12, 12], "batches_per_epoch": 1, "num_workers": 0}
    recipe = {
        "trainer": {"default_root_dir": "run", "max_epochs": 1, "accelerator": "cpu", "precision": "32-true"},
        "model": {"class_path": "medseg_se.tasks.SegmentationTask", "init_args": model},
        "data": {"class_path": "medseg_se.data.segmentation.SegmentationData", "init_args": data},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run_anew("fit", "--plugins", "my_block.py", "--config", "recipe.yaml") == 0
    return Path("run/checkpoints/best.ckpt")


def test_a_block_trains_from_a_recipe_and_its_checkpoint_loads_again(trained, capfd):
    state = torch.load(trained, weights_only=True)["state_dict"]
    assert any(tuple(value.shape) == (1, 4, 1, 1, 1) for name, value in state.items() if name.endswith(".bias"))
    scan = next(Path("data/imagesTr").glob("*.nii.gz"))
    capfd.readouterr()
    assert run_anew("predict", str(trained), str(scan), "--output", "without", "--device", "cpu") == 2
    message = capfd.readouterr().err
    assert f"the model that {trained} describes: Unknown attention 'own_mean'. If it is of your own making, name" in message
    assert "--plugins FILE.py" in message
    arguments = ("predict", str(trained), str(scan), "--output", "out", "--device", "cpu", "--plugins=my_block.py")
    assert run_anew(*arguments) == 0
    assert list(Path("out").glob("*.nii.gz"))
    summary = Path("run/summary.html").read_text()
    assert f"--plugins {shlex.quote(str(Path('my_block.py').absolute()))}" in summary


def test_in_python_the_block_is_there_once_its_file_has_run(trained):
    forget()
    with pytest.raises(CheckpointError, match="in Python run that file before the checkpoint is loaded"):
        Model.load(trained, "cpu")
    exec(BLOCK, {})
    assert Model.load(trained, "cpu").structures.names


def test_a_process_that_predicts_runs_the_file_too(trained):
    described = pickle.dumps(ModelSource((trained,), device="cpu"))
    forget()
    source = pickle.loads(described)
    assert source.plugins == (Path("my_block.py").absolute(),)
    assert source.load().structures.names
    assert pickle.loads(pickle.dumps(ATTENTION["own_mean"])) is ATTENTION["own_mean"]


def test_an_interrupted_run_says_how_to_go_on_with_the_block(trained, monkeypatch, capfd):
    def interrupted(task, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(SegmentationTask, "training_step", interrupted)
    more = ("--trainer.max_epochs", "2", "--ckpt_path", "last", "--plugins", "my_block.py")
    assert run_anew("fit", "--config", "recipe.yaml", *more) == 130
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"--plugins {Path('my_block.py').absolute()} --ckpt_path last" in said


def test_processes_that_a_command_starts_run_the_same_files(folder):
    plugins.load_plugins([Path("my_block.py")])
    Path("elsewhere").mkdir()
    script = "import sys; from medseg_se.cli.main import main; main(['configs', 'generic'])"
    script += "; from medseg_se import ATTENTION; sys.exit('own_mean' not in ATTENTION)"
    package = {"PYTHONPATH": str(Path(plugins.__file__).parents[1])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd="elsewhere", env={**os.environ, **package}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_module_that_was_imported_before_is_not_run_again(folder):
    Path("my_block.py").write_text(BLOCK + "\nopen('runs', 'a').write('x')\n")
    sys.path.insert(0, str(folder))
    importlib.import_module("my_block")
    plugins.load_plugins([Path("my_block.py")])
    assert Path("runs").read_text() == "x"
    assert plugins.loaded_plugins() == (folder / "my_block.py",)


def test_a_network_may_come_from_a_file(folder, capfd):
    from medseg_se.networks import NETWORKS

    Path("my_network.py").write_text(NETWORK)
    assert main(["networks", "--plugins", "my_network.py", "--plugins", "my_block.py"]) == 0
    try:
        assert "plain" in capfd.readouterr().out
        assert plugins.plugin_of(NETWORKS["plain"]) == Path("my_network.py").absolute()
        assert plugins.plugin_of(ATTENTION["own_mean"]) == Path("my_block.py").absolute()
        assert plugins.plugin_of(ATTENTION["cse"]) is None
    finally:
        del NETWORKS["plain"]


def test_a_file_is_run_once(folder):
    Path("my_block.py").write_text(BLOCK + "\nopen('runs', 'a').write('x')\n")
    plugins.load_plugins([Path("my_block.py")])
    plugins.load_plugins([Path("my_block.py"), Path("my_block.py").absolute()])
    assert Path("runs").read_text() == "x"
    assert build_attention("own_mean", 4, 2)(torch.ones(1, 4, 3, 3)).shape == (1, 4, 3, 3)
    assert plugins.plugin_words() == ["--plugins", str(Path("my_block.py").absolute())]


def test_the_flag_is_taken_from_anywhere_in_a_command():
    words = ["fit", "--plugins", "a.py", "--config", "x.yaml", "--plugins=b.py", "--trainer.plugins", "c"]
    others, files = plugins.take_plugins(words)
    assert others == ["fit", "--config", "x.yaml", "--trainer.plugins", "c"]
    assert files == [Path("a.py"), Path("b.py")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.py", None, "none.py to be a Python file, but it does not exist."),
        ("block.txt", "", "block.txt to be a Python file, but it is something else."),
        ("my-block.py", "", "to have a name of letters, digits and _"),
        ("json.py", "", "has the name of another module. Give it one of its own, such as own_json.py."),
        ("my_fault.py", "x = 1\ndef f(:\n", "my_fault.py: line 2: SyntaxError"),
        ("my_fault.py", "x = 1\n\ny = z\n", "my_fault.py: line 3: NameError: name 'z' is not defined"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_in_a_line(folder, capfd, name, content, message):
    if content is not None:
        Path(name).write_text(content)
    assert main(["networks", "--plugins", name]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert "my_fault" not in sys.modules
    assert json.__name__ in sys.modules


@pytest.mark.parametrize("words", [["fit", "--plugins"], ["fit", "--plugins", "--config"], ["fit", "--plugins="]])
def test_a_flag_without_a_file_is_refused(words):
    with pytest.raises(UsageError, match="Expected a Python file after --plugins"):
        plugins.take_plugins(words)


def test_a_checkpoint_and_a_recipe_never_run_a_file(trained, capfd):
    text = Path("recipe.yaml").read_text()
    Path("asking.yaml").write_text(f"plugins: [my_block.py]\n{text}")
    assert run_anew("fit", "--config", "asking.yaml") == 2
    assert "own_mean" not in ATTENTION
    assert "plugins" in capfd.readouterr().err
