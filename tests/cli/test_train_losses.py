"""Losses on the command line: their options, and regions from `fit` to `evaluate`."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

RECIPE = {
    "trainer": {"default_root_dir": "run", "max_epochs": 1, "accelerator": "cpu", "precision": "32-true"},
    "model": {
        "class_path": "medseg_se.tasks.SegmentationTask",
        "init_args": {"channels": [4, 8], "deep_supervision": True, "lr": 0.02},
    },
    "data": {
        "class_path": "medseg_se.data.segmentation.SegmentationData",
        "init_args": {"source": "data", "folds": 3, "patch_size": [12, 12, 12], "batches_per_epoch": 6, "num_workers": 0},
    },
}


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch, write_decathlon):
    """Work in a folder with a recipe and a dataset that declares a region."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    path = write_decathlon(tmp_path / "data", cases=6, test=0, shape=(16, 14, 12)) / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "regions": {"both": ["near", "far"]}}))
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))


@pytest.fixture
def fit(call):
    """Return a function that trains with the recipe and further arguments."""

    def run(*arguments):
        code, output, messages = call("fit", "--config", "recipe.yaml", *arguments)
        assert code == 0, output + messages
        return messages

    return run


def test_regions_from_training_to_judged_label_maps(fit, call):
    messages = fit("--model.loss", "dice_bce_regions", "--data.targets", "[both, far]")
    assert "both" in messages
    assert "near" not in messages
    config = next(Path("run").rglob("config.yaml"))
    code, *said = call("validate", "--config", str(config))
    assert code == 0, said
    code, *said = call("predict", "run/checkpoints/best.ckpt", "data", "--output", "found", "--probabilities")
    assert code == 0, said
    found = sorted(path for path in Path("found").glob("*.nii.gz") if "probabilities" not in path.name)
    assert len(found) == 6
    for path in found:
        labels = np.asarray(nib.load(path).dataobj)
        both, far = np.moveaxis(
            np.asarray(nib.load(path.with_name(path.name.replace(".nii", "_probabilities.nii"))).dataobj), -1, 0
        )
        assert np.array_equal(labels, np.where(far > 0.5, 2, np.where(both > 0.5, 1, 0)))
    code, output, messages = call("evaluate", "found", "data")
    assert code == 0, messages
    assert all(name in output + messages for name in ("near", "far", "both (region)"))


def test_weights_of_classes_and_edges_reach_the_loss(fit):
    fit("--model.class_weights", "median_frequency", "--model.edge_weight", "auto")
    weights = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]["loss.loss.class_weights"]
    assert weights[0] < 0.2
    fit("--model.class_weights", "{far: 3.0}", "--model.edge_weight", "2", "--trainer.default_root_dir", "other")
    weights = torch.load("other/checkpoints/last.ckpt", weights_only=True)["state_dict"]["loss.loss.class_weights"]
    assert weights.tolist() == [1.0, 1.0, 3.0]


def test_options_of_a_loss_are_typed_and_named(fit, refused):
    fit("--model.loss", "focal_tversky", "--model.loss_options", "{alpha: 0.6, beta: 0.4, batch_dice: false}")
    start = ("fit", "--config", "recipe.yaml", "--trainer.default_root_dir", "other")
    assert "Unknown loss 'tversky'. Did you mean 'focal_tversky'?" in refused(*start, "--model.loss", "tversky")
    assert "Valid names: alpha, batch_dice, beta, gamma, smooth" in refused(
        *start, "--model.loss", "focal_tversky", "--model.loss_options", "{delta: 1.0}"
    )
    assert "class_weights" in refused(*start, "--model.class_weights", "balanced")
    assert "edge_weight" in refused(*start, "--model.edge_weight", "strong")
    assert "to add one structure to the regions inside it" in refused(*start, "--data.targets", "regions")
    assert "Add `--data.targets regions`" in refused(*start, "--model.loss", "dice_bce_regions")
