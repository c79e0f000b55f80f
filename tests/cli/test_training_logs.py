import csv
import os
import re
import shutil
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from whole_scans import CLASSES, write_pictures

from medseg_se.checkpoints import read_checkpoint
from medseg_se.data.sampling import PatchDataset
from medseg_se.tasks import SegmentationTask
from medseg_se.tasks.checkpoints import AtomicCheckpointIO

RECIPE = {
    "trainer": {
        "default_root_dir": "run",
        "max_epochs": 1,
        "accelerator": "cpu",
        "precision": "32-true",
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
    },
    "model": {
        "class_path": "medseg_se.tasks.SegmentationTask",
        "init_args": {"channels": [4, 8], "deep_supervision": False, "dropout": 0.2},
    },
    "data": {
        "class_path": "medseg_se.data.segmentation.SegmentationData",
        "init_args": {"source": "data", "folds": 3, "patch_size": [12, 12, 12], "batches_per_epoch": 3, "num_workers": 0},
    },
}
LAST, BEST = Path("run/checkpoints/last.ckpt"), Path("run/checkpoints/best.ckpt")
CURVES, PICTURES, SUMMARY = Path("run/curves.png"), Path("run/pictures"), Path("run/summary.html")


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch, write_decathlon):
    """Work in a folder with a dataset, one of whose structures has a name to be escaped, and a recipe."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write_decathlon(tmp_path / "data", cases=6, test=0, shape=(16, 14, 12))
    datalist = tmp_path / "data" / "dataset.json"
    datalist.write_text(datalist.read_text().replace('"near"', '"<b>near & $far$"'))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))


@pytest.fixture
def fit(call):
    """Return a function that trains with the recipe and further arguments, and returns the lines of its messages."""

    def run(*arguments):
        code, _, messages = call("fit", "--config", "recipe.yaml", *arguments)
        assert code == 0, messages
        return messages.splitlines()

    return run


def rows(version=0):
    with Path(f"run/logs/version_{version}/metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def weights(folder):
    return torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


class Page(HTMLParser):
    """What a page shows: its text, its rows, and whatever it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.text, self.rows, self.fetched, self.tags = "", [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def test_a_run_leaves_table_curves_pictures_and_a_page_and_says_where(fit):
    lines = fit("--trainer.max_epochs", "2")
    assert lines[-1] == f"Summary: {SUMMARY} (beside it: curves.png and pictures)."
    trained = [row for row in rows() if row["train_loss"]]
    assert [row["epoch"] for row in trained] == ["0", "1"]
    assert all(0 <= float(row["lr"]) <= 1e-3 for row in trained)
    assert all(0 <= float(row["waiting_seconds"]) <= float(row["epoch_seconds"]) for row in trained)
    assert len(rows()) < 10  # nothing is logged by the step
    assert [path.name for path in sorted(PICTURES.iterdir())] == ["epoch_0001.png", "epoch_0002.png"]
    for path in (CURVES, *PICTURES.iterdir()):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
    page = Page(SUMMARY.read_text(encoding="utf-8"))
    assert len(page.fetched) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not {"script", "link", "b"} & set(page.tags)
    whole = next(row for row in rows() if row["val_scan_dice"])
    near = next(row for row in page.rows if row[0] == "<b>near & $far$")
    assert near[1] == f"{float(whole['val_scan_dice/<b>near & $far$']):.3f}"
    assert near[3] == "2"  # scans
    assert f"{float(whole['val_scan_dice']):.3f} mean Dice" in " ".join(page.text.split())
    assert "These scans chose the checkpoint" in page.text
    facts = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert facts["its digest"] == read_checkpoint(BEST)[2]
    assert facts["steps"] == "6 in 2 epochs"
    assert facts["cases"] == "4 to train on, 2 to validate (fold 0 of 3)"
    assert re.fullmatch(r"unet, 3D, [\d,]+ parameters", facts["network"])
    assert facts["seed"] == "0"
    assert "medseg-se fit --config recipe.yaml --trainer.max_epochs 2" in page.text


def test_the_command_of_the_page_makes_the_same_run_again(fit, call):
    fit()
    page = Page(SUMMARY.read_text(encoding="utf-8"))
    command = next(line for line in page.text.splitlines() if "NEW_FOLDER" in line)
    command = command[command.index("medseg-se fit") :].partition("NEW_FOLDER")[0].split()
    assert call(*command[1:], "again")[0] == 0
    for name, value in weights("run").items():
        torch.testing.assert_close(weights("again")[name], value, rtol=0, atol=0)


def test_watching_a_run_does_not_change_it(fit):
    fit("--trainer.max_epochs", "2")
    fit("--trainer.max_epochs", "2", "--trainer.logger", "false", "--trainer.default_root_dir", "bare")
    for name, value in weights("run").items():
        torch.testing.assert_close(weights("bare")[name], value, rtol=0, atol=0)
    assert sorted(path.name for path in Path("bare").iterdir() if path.name != ".lock") == ["checkpoints", "config.yaml"]


def test_a_run_that_goes_on_has_one_table_with_every_epoch_once(fit):
    fit()
    shutil.copy(LAST, "earlier.ckpt")
    fit("--ckpt_path", "last", "--trainer.max_epochs", "3")
    shutil.copy("earlier.ckpt", LAST)  # as if it had been killed before it wrote another
    fit("--ckpt_path", "last", "--trainer.max_epochs", "4")
    assert [path.name for path in Path("run/logs").iterdir()] == ["version_0"]
    for column in ("train_loss", "val_loss", "val_dice_ema"):
        assert [row["epoch"] for row in rows() if row[column]] == ["0", "1", "2", "3"]
    assert [row["step"] for row in rows() if row["val_scan_dice"]] == ["3", "12"]
    page = Page(SUMMARY.read_text(encoding="utf-8"))
    assert ["steps", "12 in 4 epochs"] in page.rows


def test_a_run_that_had_ended_is_not_judged_again_and_keeps_its_page(fit):
    fit()
    page, table = SUMMARY.read_bytes(), rows()
    lines = fit("--ckpt_path", "last")
    assert lines == ["The run had ended already, after 3 steps: nothing was trained or judged anew."]
    assert (SUMMARY.read_bytes(), rows()) == (page, table)
    SUMMARY.unlink()  # as if it had been killed before it was judged
    assert fit("--ckpt_path", "last")[-1].startswith(f"Summary: {SUMMARY}")
    assert ["steps", "3 in 1 epochs"] in Page(SUMMARY.read_text(encoding="utf-8")).rows


class Clock:
    """Stands for the module `time`."""

    now = 0.0

    def monotonic(self):
        return self.now

    def taking(self, seconds, function):
        """Return the function, which takes so many seconds."""

        def slow(*arguments, **options):
            self.now += seconds
            return function(*arguments, **options)

        return slow


def test_an_epoch_that_was_interrupted_is_logged_whole(fit, call, monkeypatch):
    clock = Clock()
    for module in ("reports.training", "tasks.callbacks"):
        monkeypatch.setattr(f"medseg_se.{module}.time", clock)
    for kind, name, seconds in (
        (PatchDataset, "__getitem__", 2),  # of which a batch has two
        (SegmentationTask, "training_step", 10),
        (SegmentationTask, "validation_step", 50),
        (AtomicCheckpointIO, "save_checkpoint", 100),
    ):
        monkeypatch.setattr(kind, name, clock.taking(seconds, getattr(kind, name)))
    step = SegmentationTask.training_step

    def interrupted(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    options = ["--trainer.max_epochs", "2", "--data.batches_per_epoch", "6", "--trainer.val_check_interval", "3"]
    options += ["--trainer.accumulate_grad_batches", "2", "--trainer.logger", "true", "--model.schedule", "constant"]
    options += ["--model.warmup", "0", "--model.lr_factors", "{head: 10.0}"]
    fit(*options, "--trainer.default_root_dir", "whole")
    Path("whole").rename("run")
    whole = [row for row in rows() if row["train_loss"]]
    shutil.rmtree("run")
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", interrupted)
        assert call("fit", "--config", "recipe.yaml", *options)[0] == 130
    assert torch.load(LAST, weights_only=True)["global_step"] == 4  # of three an epoch
    fit(*options, "--ckpt_path", "last")
    found = [row for row in rows() if row["train_loss"]]
    for row, expected in zip(found, whole, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(expected["train_loss"]), rel=1e-6)
        assert float(row["lr"]) == pytest.approx(1e-3)  # and not that of the head
        assert float(row["waiting_seconds"]) == float(expected["waiting_seconds"]) == 6 * 4
        assert float(row["epoch_seconds"]) >= 6 * (4 + 10) + 2 * 2 * 50


def test_a_logger_of_one_s_own_is_added_to_the_table(fit):
    fit("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "mine")
    assert [row["epoch"] for row in rows() if row["train_loss"]] == ["0"]
    with next(Path("mine").rglob("metrics.csv")).open(newline="") as stream:
        assert "0" in [row["epoch"] for row in csv.DictReader(stream) if row["train_loss"]]
    assert SUMMARY.is_file()


def test_without_matplotlib_there_is_a_page_without_curves_and_one_line_says_why(fit, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    lines = fit("--trainer.max_epochs", "2")
    assert sum("medseg-se[report]" in line for line in lines) == 1
    assert lines[-1].startswith(f"Summary: {SUMMARY} (beside it: pictures). There are no curves: they need matplotlib")
    assert not CURVES.exists()
    page = Page(SUMMARY.read_text(encoding="utf-8"))
    assert len(page.fetched) == 1  # the picture
    assert "There are no curves" in page.text


def test_pictures_that_cannot_be_written_do_not_end_the_run(fit, caplog):
    PICTURES.parent.mkdir()
    PICTURES.write_text("in the way")
    fit("--trainer.max_epochs", "2")
    assert sum("no more pictures of this run" in message for message in caplog.messages) == 1
    assert LAST.is_file()
    assert SUMMARY.is_file()


def test_a_run_that_ends_before_a_validation_says_that_nothing_was_judged(fit):
    lines = fit("--trainer.max_steps", "2")
    assert lines[-1].startswith(f"Summary: {SUMMARY}")
    assert "No checkpoint was judged" in Page(SUMMARY.read_text(encoding="utf-8")).text


def test_nothing_is_left_by_a_trial(fit):
    fit("--trainer.fast_dev_run", "true")
    assert not any(path.exists() for path in (CURVES, PICTURES, SUMMARY))


def test_regions_are_drawn_as_the_label_map_that_follows_from_them(fit):
    datalist = Path("data/dataset.json")
    datalist.write_text(
        datalist.read_text().replace('"training":', '"regions": {"whole": ["<b>near & $far$", "far"]}, "training":')
    )
    fit("--data.targets", "[whole, far]", "--model.loss", "dice_bce_regions")
    assert len(list(PICTURES.iterdir())) == 1
    page = Page(SUMMARY.read_text(encoding="utf-8"))
    assert ["2 regions", "whole, far"] in page.rows


def test_a_classifier_has_a_page_of_its_classes_and_pictures_of_its_answers(call):
    write_pictures(Path("pictures"))
    options = "{channels: [4, 4, 8, 8], stem: small}"
    model = ["--model", "ClassificationTask", "--model.network_options", options]
    data = ["--data", "ClassificationData", "--data.source", "pictures", "--data.size", "[16, 16]", "--data.folds", "3"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.default_root_dir", "run"]
    assert call("fit", *model, *data, *trainer, "--data.num_workers", "0")[0] == 0
    assert [path.name for path in sorted(PICTURES.iterdir())] == ["epoch_0001.png", "epoch_0002.png"]
    shown = {row[0]: row for row in Page(SUMMARY.read_text(encoding="utf-8")).rows}
    validated = [row for row in rows() if row["val_loss"]]
    assert len(validated) == 3  # after each epoch, and once more of the best
    for name in CLASSES:
        assert shown[name][1] == f"{float(validated[2][f'val_recall/{name}']):.3f}"
        assert shown[name][-1] == f"{float(validated[1][f'val_recall/{name}']):.3f}"
    assert shown["balanced accuracy while training"][1].startswith(
        f"{float(validated[1]['val_balanced_accuracy']):.3f} at the end"
    )
