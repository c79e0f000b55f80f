import json
import shutil

import pytest
import torch
import yaml


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch, write_decathlon):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medseg_se.planning.machine.busy_share", lambda: 0.0)
    write_decathlon(tmp_path / "data", cases=6, test=0, shape=(16, 14, 12))
    return tmp_path


def test_a_plan_is_measured_shown_kept_and_trained(call, refused, folder):
    code, shown, _ = call("plan", "data", "--budget", "45s", "--device", "cpu", "--folds", "3")
    assert code == 0
    plan = yaml.safe_load((folder / "plan/plan.yaml").read_text())
    model, data = plan["model"]["init_args"], plan["data"]["init_args"]
    assert data["folds"] == 3
    assert data["mirror"] == ["left-right"]
    assert "data.patch_size" in shown
    assert str(data["patch_size"]) in shown
    assert "00:00:0" in plan["trainer"]["max_time"]
    assert (folder / "plan/fingerprint.html").stat().st_size > 10_000
    assert json.loads((folder / "plan/fingerprint.json").read_text())["name"] == "cubes"

    text, trials = ((folder / "plan" / name).read_text() for name in ("plan.yaml", "measurements.json"))
    assert call("plan", "data", "--budget", "45s", "--device", "cpu", "--folds", "3")[0] == 0
    assert (folder / "plan/plan.yaml").read_text() == text
    assert (folder / "plan/measurements.json").read_text() == trials

    line = refused("plan", "data", "--budget", "2s", "--device", "cpu", "--folds", "3")
    assert line.startswith("Expected `budget` of at least ")
    assert "but got 2 s" in line

    (folder / "plan/plan.yaml").write_text(text.replace("lr: ", "lr: 1"))
    assert "was edited since it was planned" in refused("plan", "data", "--budget", "45s", "--device", "cpu", "--folds", "3")
    assert call("plan", "data", "--budget", "45s", "--device", "cpu", "--folds", "3", "--overwrite")[0] == 0
    assert (folder / "plan/plan.yaml").read_text() == text

    short = ["--trainer.max_time", "00:00:00:01", "--data.batches_per_epoch", "2", "--data.progress", "false"]
    assert call("fit", "--config", "plan/plan.yaml", *short)[0] == 0
    last = torch.load("plan/run/checkpoints/last.ckpt", weights_only=True)
    assert last["hyper_parameters"]["channels"] == model["channels"]
    assert last["medseg_se"]["data"]["preprocessing"]["spacing"] == data["spacing"]

    shutil.rmtree("plan/run")
    laid_over = ["--config", "hippocampus_unet3d_scse", "--config", "plan/plan.yaml"]
    code, printed, _ = call("fit", *laid_over, "--print_config")
    assert code == 0
    both = yaml.safe_load(printed)
    assert both["model"]["init_args"]["channels"] == model["channels"]
    assert both["model"]["init_args"]["optimizer"] == "adamw"
    assert both["data"]["init_args"]["store"] == data["store"]


def test_what_makes_no_sense_is_refused(refused, folder):
    assert "such as 30m" in refused("plan", "data", "--budget", "soon")
    assert "such as 8GB" in refused("plan", "data", "--memory", "lots")
    assert "Cannot use the device 'cuda:77'" in refused("plan", "data", "--device", "cuda:77")
    assert "No such dataset: nowhere" in refused("plan", "nowhere")
    assert "Did you mean 'generic'" in refused("plan", "data", "--recipe", "genric")
    assert "recipe of segmentation" in refused("plan", "data", "--recipe", "tumour_inception_se")
    assert "Expected `folds` between 2 and the 6 groups there are, but got 7" in refused("plan", "data", "--folds", "7")
    assert not (folder / "plan/plan.yaml").exists()


def test_a_case_that_cannot_be_prepared_is_named(refused, folder):
    for number in range(6):
        (folder / f"data/labelsTr/case_{number:02d}.nii.gz").write_bytes(b"")
    assert "case_00" in refused("plan", "data", "--budget", "3m", "--device", "cpu")


def test_a_dataset_of_label_maps_alone_is_planned_and_trained(folder, call):
    content = json.loads((folder / "data" / "dataset.json").read_text())
    for entry in content["training"]:
        entry["image"] = None
    (folder / "data" / "dataset.json").write_text(json.dumps(content))
    code, shown, _ = call("plan", "data", "--budget", "40s")
    assert code == 0
    assert "label maps alone" in shown
    code, _, messages = call("fit", "--config", "plan/plan.yaml", "--trainer.max_time", "00:00:00:02")
    assert code == 0, messages


def test_a_plan_keeps_the_slices_of_its_recipe_and_takes_other_structures(folder, call, refused):
    (folder / "one.json").write_text(json.dumps({"labels": {"background": 0, "both": [1, 2]}}))
    command = ["plan", "data", "--budget", "1m", "--recipe", "hippocampus_unet2d_scse", "--structures", "one.json"]
    code, _, messages = call(*command)
    assert code == 0, messages
    data = yaml.safe_load((folder / "plan/plan.yaml").read_text())["data"]["init_args"]
    assert data["slice_axis"] == "coronal"
    assert len(data["patch_size"]) == 2
    assert data["structures"] == str(folder / "one.json")
    assert [found["name"] for found in json.loads((folder / "plan/fingerprint.json").read_text())["structures"]] == ["both"]
    (folder / "plan/fingerprint.html").unlink()
    assert call(*command)[0] == 0
    assert (folder / "plan/fingerprint.html").is_file()
    assert "Expected `workers` to be at least 1" in refused(*command, "--workers", "0")
