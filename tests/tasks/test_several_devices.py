"""Two processes that train together do what one would do with batches of twice the size."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from medseg_se.cli.main import main
from medseg_se.data.phantom import write_phantoms
from medseg_se.data.sampling import OnceSampler
from medseg_se.tasks import SegmentationTask

RECIPE = {
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "32-true"},
    "model": {
        "class_path": "medseg_se.tasks.SegmentationTask",
        "init_args": {"channels": [4, 8], "deep_supervision": False, "ema": 0.9},
    },
    "data": {
        "class_path": "medseg_se.data.segmentation.SegmentationData",
        # 3 cases to validate, of which one device has two and the other one
        "init_args": {"source": "data", "folds": 2, "patch_size": [8, 8, 8], "batches_per_epoch": 2, "num_workers": 0},
    },
}


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch):
    """Work in a folder with a dataset and a recipe."""
    monkeypatch.chdir(tmp_path)
    write_phantoms(tmp_path / "data", "brain", training=6, test=0, resolution=8.0)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))


def scores(root):
    """Return everything logged about validations, epoch by epoch, and about whole scans at the end."""
    files = sorted(Path(root, "logs").glob("*/metrics.csv"))  # forked processes are new ones for the whole scans
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    names = {name for row in rows for name in row if name.startswith(("val_dice", "val_scan_dice"))}
    return {name: [float(row[name]) for row in rows if row.get(name)] for name in names}


@pytest.mark.parametrize("launch", ["fork", pytest.param("torchrun", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["dice and cross-entropy", pytest.param("batch normalisation", marks=pytest.mark.slow)])
def test_two_devices_train_as_one_with_twice_the_batch(capfd, monkeypatch, launch, kind):
    def drawn(task, cases, names, title):
        label_maps = [case["labels"].tolist() for case in cases]
        Path(task.trainer.default_root_dir, "drawn.json").write_text(json.dumps(dict(zip(names, label_maps, strict=True))))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("medseg_se.reports.training.picture_of", drawn)
    norm = ["--model.norm", "batch"] if kind == "batch normalisation" else []
    command = ["fit", "--config", "recipe.yaml", *norm]
    assert main([*command, "--data.batch_size", "2", "--trainer.default_root_dir", "one"]) == 0
    capfd.readouterr()
    shared = ["--data.batch_size", "1", "--trainer.default_root_dir", "two", "--data.store", "new", "--trainer.devices", "2"]
    if launch == "fork":
        assert main([*command, *shared, "--trainer.strategy", "ddp_fork"]) == 0
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "medseg_se"]
        subprocess.run([*torchrun, *command, *shared, "--trainer.strategy", "ddp"], check=True)
    messages = capfd.readouterr().err
    for said_once in ("epoch 1/2", "epoch 2/2", "Best checkpoint: ", "These scans chose the checkpoint."):
        assert messages.count(said_once) == 1
    one, two = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 4
    assert sorted(path.name for path in Path("two/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    if launch == "fork":  # pictures have the names of the cases that the first device judges, the first and the third
        first, second = (json.loads(Path(name, "drawn.json").read_text()) for name in ("one", "two"))
        assert list(second) == list(first)[::2]
        assert all(first[name] == label_map for name, label_map in second.items())
    if kind == "batch normalisation":  # each device has its own statistics, so only the run itself is tested
        return
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=0, atol=1e-6)
    torch.testing.assert_close(scores("two"), scores("one"), rtol=0, atol=1e-6, equal_nan=True)


def test_a_loss_that_is_not_finite_on_one_device_ends_all(monkeypatch, capfd):
    def spoil(self, batch, batch_idx):
        if self.global_rank == 1 and self.global_step == 3:
            batch["image"].fill_(float("nan"))

    monkeypatch.setattr(SegmentationTask, "on_train_batch_start", spoil)
    devices = ["--trainer.default_root_dir", "two", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert main(["fit", "--config", "recipe.yaml", *devices]) == 2
    messages = capfd.readouterr().err
    assert messages.splitlines()[-1].startswith("medseg-se: error: The loss became nan at step 3. Lower `lr`")
    assert "Traceback" not in messages
    assert torch.load("two/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_every_scan_is_judged_once(devices):
    samplers = [OnceSampler(7, device, devices) for device in range(devices)]
    assert sorted(place for sampler in samplers for place in sampler) == list(range(7))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


def test_with_fewer_scans_than_devices_each_judges_all():
    assert [list(OnceSampler(2, device, 3)) for device in range(3)] == [[0, 1]] * 3
