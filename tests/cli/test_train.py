import csv
import json
import os
import pickle
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from torchmetrics.segmentation import DiceScore

from medseg_se.data.segmentation import SegmentationData
from medseg_se.tasks import SegmentationTask

RECIPE = {
    "trainer": {"default_root_dir": "run", "max_epochs": 1, "accelerator": "cpu", "precision": "32-true"},
    "model": {"class_path": "medseg_se.tasks.SegmentationTask", "init_args": {"channels": [4, 8], "deep_supervision": False}},
    "data": {
        "class_path": "medseg_se.data.segmentation.SegmentationData",
        "init_args": {
            "source": "data",
            "folds": 3,
            "patch_size": [12, 12, 12],
            "batches_per_epoch": 3,
            "num_workers": 0,
        },
    },
}
LAST, BEST = Path("run/checkpoints/last.ckpt"), Path("run/checkpoints/best.ckpt")


@pytest.fixture(autouse=True)
def folder(put_back, tmp_path, monkeypatch, write_decathlon):
    """Work in a folder with a dataset and a recipe."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write_decathlon(tmp_path / "data", cases=6, test=0, shape=(16, 14, 12))
    shutil.copy("data/dataset.json", "data/a b.json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return tmp_path


@pytest.fixture
def fit(call):
    """Return a function that trains with the recipe and further arguments."""

    def run(*arguments):
        return call("fit", "--config", "recipe.yaml", *arguments)

    return run


def edit(old, new):
    text = Path("recipe.yaml").read_text()
    assert old in text
    Path("recipe.yaml").write_text(text.replace(old, new))


def line_of(text, path="recipe.yaml"):
    return next(number for number, line in enumerate(Path(path).read_text().splitlines(), start=1) if text in line)


def state(path=LAST):
    return torch.load(path, weights_only=True)


def metrics(logs):
    return list(csv.DictReader((logs / "metrics.csv").read_text().splitlines()))


def interrupt(monkeypatch, how, step):
    """Let `how` happen before the step `step` of the next runs."""

    def hook(self, batch, batch_idx):
        if self.trainer.global_step == step:
            how()

    monkeypatch.setattr(SegmentationTask, "on_train_batch_start", hook)


def kill(number):
    return lambda: os.kill(os.getpid(), number)


# ---------------------------------------------------------------------------------------------------------------------- a run


def test_fit_writes_checkpoints_config_and_metrics_and_says_how_good_it_is(fit, recwarn):
    code, _, messages = fit("--trainer.max_epochs", "2")
    assert code == 0
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (state()["epoch"], state()["global_step"]) == (2, 6)  # both count what is done
    assert state(BEST)["medseg_se"]["data"]["dataset"] == "cubes"
    logs = Path("run/logs/version_0")
    assert yaml.safe_load((logs / "config.yaml").read_text())["model"]["init_args"]["channels"] == [4, 8]
    rows = metrics(logs)
    assert [row["epoch"] for row in rows if row["train_loss"]] == ["0", "1"]
    assert [row["epoch"] for row in rows if row["val_dice"]] == ["0", "1"]
    assert sum(bool(row["val_scan_dice/near"]) for row in rows) == 1
    lines = messages.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    for word in ("loss ", "dice ", "left ", "waiting for data ", "best "):
        assert word in lines[0]
    assert f"Best checkpoint: {BEST.resolve()}" in lines
    assert any("near" in line for line in lines)
    assert "arning" not in messages
    assert [str(warning.message) for warning in recwarn if "pytorch_lightning" in warning.filename] == []


def test_a_written_config_makes_the_same_run_again(fit, call):
    fit()
    assert call("fit", "--config", "run/logs/version_0/config.yaml", "--trainer.default_root_dir", "again")[0] == 0
    for name, value in state()["state_dict"].items():
        torch.testing.assert_close(state("again/checkpoints/last.ckpt")["state_dict"][name], value)


def test_the_command_line_wins_over_the_config_and_a_later_config_over_an_earlier(call):
    Path("overlay.yaml").write_text("model:\n  init_args:\n    channels: [2, 4]\n    lr: 0.5\n")
    code, *_ = call("fit", "--config", "recipe.yaml", "-c", "overlay.yaml", "--model.init_args.lr", "0.25")
    assert code == 0
    assert state()["hyper_parameters"]["channels"] == [2, 4]
    assert state()["hyper_parameters"]["lr"] == 0.25


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.enable_progress_bar", "false", "--trainer.logger", "false"],
        ["--trainer.enable_checkpointing", "false", "--data.init_args.fold", "null"],
        ["--trainer.fast_dev_run", "true"],
        ["--trainer.limit_val_batches", "0"],
        ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val_loss"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_other_ways_to_run(fit, arguments):
    code, _, messages = fit(*arguments)
    assert code == 0
    assert "Traceback" not in messages


def test_a_run_that_ends_before_a_validation_says_where_its_weights_are(fit):
    _, _, messages = fit("--trainer.max_steps", "2")
    assert f"no checkpoint is best. The last one: {LAST}" in messages
    assert not BEST.exists()
    assert state()["global_step"] == 2


def test_the_bar_in_a_terminal(fit, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, _, messages = fit()
    assert code == 0
    assert "100 %" in messages
    assert messages.count("\x1b[?25l") == messages.count("\x1b[?25h")  # the cursor is shown again


# ----------------------------------------------------------------------------------------------------------------- continuing


def test_a_second_run_in_the_same_folder_is_refused_with_a_hint(fit, refused):
    fit()
    before = LAST.stat().st_mtime_ns
    complaint = refused("fit", "--config", "recipe.yaml")
    assert complaint.startswith("run already holds a run. Continue it with `--ckpt_path last`")
    assert LAST.stat().st_mtime_ns == before


def test_continuing_goes_on_with_the_next_epoch(fit):
    fit()
    code, _, messages = fit("--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert code == 0
    assert (state()["epoch"], state()["global_step"]) == (3, 9)
    assert [line.split("  ")[0] for line in messages.splitlines() if line.startswith("epoch")] == ["epoch 2/3", "epoch 3/3"]
    rows = metrics(Path("run/logs/version_0"))
    assert [row["epoch"] for row in rows if row["train_loss"]] == ["0", "1", "2"]


def test_a_run_without_validation_shows_how_far_it_is_and_keeps_its_last_state(fit):
    code, _, messages = fit("--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0")
    assert code == 0
    assert [line.split("  ")[0] for line in messages.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "ended before a validation" in messages
    assert state()["epoch"] == 2


@pytest.mark.parametrize("moved", [False, True])
def test_the_best_of_all_runs_is_kept_and_shown(fit, monkeypatch, moved):
    _, _, messages = fit()
    best = messages.split("best ")[1].split()[0]
    if moved:
        Path("run").rename("elsewhere")
    root = Path("elsewhere" if moved else "run")
    kept = (root / "checkpoints" / "best.ckpt").read_bytes()
    monkeypatch.setattr(DiceScore, "compute", lambda self: torch.zeros(2))  # no epoch will be better
    code, _, messages = fit("--trainer.default_root_dir", str(root), "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert code == 0
    assert "dice 0.000" in messages
    assert messages.split("best ")[1].split()[0] == best != "0.000"
    assert (root / "checkpoints" / "best.ckpt").read_bytes() == kept
    assert f"Best checkpoint: {(root / 'checkpoints' / 'best.ckpt').resolve()}" in messages


def test_another_checkpoint_does_not_overwrite_a_run(fit, refused):
    fit()
    fit("--trainer.default_root_dir", "other")
    elsewhere = ["fit", "--config", "recipe.yaml", "--ckpt_path", "other/checkpoints/last.ckpt"]
    assert refused(*elsewhere).startswith("run already holds a run")
    own = ["--ckpt_path", str(LAST), "--trainer.max_epochs", "2"]
    assert fit(*own)[0] == 0
    assert state()["global_step"] == 6


@pytest.mark.parametrize(
    ("how", "words"), [("last", "Nothing to continue: there is no run"), ("best", "No such checkpoint: run")]
)
def test_nothing_to_continue_is_refused(refused, how, words):
    assert refused("fit", "--config", "recipe.yaml", "--ckpt_path", how).startswith(words)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("command", "address"),
    [("fit", "https://example.org/model.ckpt"), ("fit", "s3://bucket/a"), ("validate", "http://localhost/a")],
)
def test_addresses_are_not_fetched(refused, command, address):
    complaint = refused(command, "--config", "recipe.yaml", "--ckpt_path", address)
    assert complaint == f"Expected `ckpt_path` to be a file, but got the address {address}. Download and inspect it first."


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_checkpoint_that_holds_code_is_refused_and_not_run(refused):
    torch.save({"state_dict": {}, "medseg_se": Harmful()}, "harmful.ckpt")
    Path("pickled.ckpt").write_bytes(pickle.dumps(Harmful()))
    Path("text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, "foreign.ckpt")
    for name in ("harmful.ckpt", "pickled.ckpt", "text.ckpt", "foreign.ckpt", "missing.ckpt"):
        assert name in refused("fit", "--config", "recipe.yaml", "--ckpt_path", name)
    assert not Path("harm").exists()


def test_a_checkpoint_of_another_network_is_refused(fit, refused):
    fit()
    complaint = refused("fit", "--config", "recipe.yaml", "--ckpt_path", "last", "--model.init_args.channels", "[4, 6]")
    assert complaint == "The checkpoint holds another network: channels [4, 8] instead of [4, 6]."


# --------------------------------------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_keeps_its_steps_and_says_how_to_continue(fit, monkeypatch, number):
    interrupt(monkeypatch, kill(number), step=4)
    code, _, messages = fit("--trainer.max_epochs", "3", "--data.structures", "data/a b.json")
    assert code == 130
    assert "Traceback" not in messages
    assert state()["global_step"] in (4, 5)  # SIGTERM is noticed after the step
    command = messages.splitlines()[-1]
    assert command.startswith("Interrupted; the state is saved. Continue with: medseg-se fit --config recipe.yaml ")
    assert command.endswith("--data.structures 'data/a b.json' --ckpt_path last")


def test_the_printed_command_continues(fit, call, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, kill(signal.SIGINT), step=4)
        _, _, messages = fit("--trainer.max_epochs", "3", "--ckpt_path=null")
    command = messages.partition("Continue with: medseg-se ")[2].strip()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code, *_ = call(*shlex.split(command))
    assert code == 0
    assert (state()["epoch"], state()["global_step"]) == (3, 9)
    with monkeypatch.context() as patch:  # and once more, from a run that was continued
        interrupt(patch, kill(signal.SIGTERM), step=10)
        code, _, messages = call(*shlex.split(command), "--trainer.max_epochs", "5")
    assert code == 130
    command = messages.partition("Continue with: medseg-se ")[2].strip()
    assert command.count("--ckpt_path") == 1
    assert call(*shlex.split(command))[0] == 0
    assert (state()["epoch"], state()["global_step"]) == (5, 15)


def test_an_interruption_before_the_first_step_promises_nothing(fit, monkeypatch):
    monkeypatch.setattr(SegmentationData, "train_dataloader", lambda self: kill(signal.SIGINT)())
    code, _, messages = fit()
    assert code == 130
    assert "Interrupted before the first step" in messages
    assert not LAST.exists()


def test_an_interruption_in_validation_keeps_the_steps(fit, monkeypatch):
    def hook(self, batch, batch_idx):
        if self.trainer.global_step == 6:
            kill(signal.SIGINT)()

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "on_validation_batch_start", hook)
        assert fit("--trainer.max_epochs", "3")[0] == 130
    assert state()["global_step"] == 6
    assert fit("--trainer.max_epochs", "3", "--ckpt_path", "last")[0] == 0
    assert (state()["epoch"], state()["global_step"]) == (3, 9)


def test_a_loss_that_is_not_finite_ends_in_one_line_and_keeps_the_last_epoch(fit, call, monkeypatch):
    def spoil(self, batch, batch_idx):
        if self.trainer.global_step == 4:
            batch["image"].fill_(float("nan"))

    monkeypatch.setattr(SegmentationTask, "on_train_batch_start", spoil)
    code, _, messages = fit("--trainer.max_epochs", "3")
    assert code == 2
    assert "The loss became nan at step 4. Lower `lr`" in messages.splitlines()[-1]
    assert state()["global_step"] == 3


# --------------------------------------------------------------------------------------------------------- validate and test


def test_without_labelled_test_cases_there_is_no_test(fit, refused):
    fit()
    assert "lists no test case with a label map" in refused("test", "--config", "recipe.yaml")


def test_the_best_checkpoint_is_judged_unless_another_is_named(fit, call):
    command = "validate"
    _, _, messages = fit("--trainer.max_epochs", "2")
    code, output, _ = call(command, "--config", "recipe.yaml")
    assert code == 0
    table = [line.split() for line in messages.splitlines() if line.startswith("│")]
    assert [line.split() for line in output.splitlines() if line.startswith("│")] == table
    assert [row[1] for row in table] == ["near", "far", "mean"]
    shutil.copy(LAST, "mine.ckpt")
    code, other, _ = call(
        command, "--config", "recipe.yaml", "--ckpt_path", "mine.ckpt", "--trainer.default_root_dir", "elsewhere"
    )
    assert code == 0
    assert "near" in other


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_untrained_network_is_not_judged(refused, command):
    assert refused(command, "--config", "recipe.yaml") == f"No such checkpoint: {BEST}."


# ------------------------------------------------------------------------------------------------------------ wrong configs


@pytest.mark.parametrize(
    ("old", "new", "key", "guess"),
    [
        ("channels:", "chanels:", "chanels", "model.channels"),
        ("max_epochs:", "max_epoch:", "trainer.max_epoch", "trainer.max_epochs"),
        ("patch_size:", "patchsize:", "patchsize", "data.patch_size"),
        ("folds: 3", "folds: 3\n    mirrors: []", "mirrors", "data.mirror"),
    ],
)
def test_an_unknown_key_is_named_with_its_file_line_and_the_nearest_valid_key(refused, old, new, key, guess):
    edit(old, new)
    line = line_of(key.rsplit(".", 1)[-1] + ":")
    complaint = refused("fit", "--config", "recipe.yaml")
    assert complaint == f"Unknown key {key!r} (recipe.yaml, line {line}). Did you mean {guess!r}?"
    assert not Path("run").exists()


def test_an_unknown_section_is_named(refused):
    edit("trainer:", "trainr:")
    complaint = refused("fit", "--config", "recipe.yaml")
    assert "Unknown key 'trainr.default_root_dir' (recipe.yaml, line 1)" in complaint
    assert "'trainer.default_root_dir'" in complaint


def test_the_file_of_an_unknown_key_is_the_right_one_of_several(refused):
    Path("overlay.yaml").write_text("trainer:\n  max_epochs: 2\n  gradient_clip: 1\n")
    complaint = refused("fit", "--config", "recipe.yaml", "--config=overlay.yaml")
    assert "(overlay.yaml, line 3)" in complaint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.init_args.chanels", "[4]"], "Unknown key 'chanels'. Did you mean 'model.channels'?"),
        (["--trainer.max_epoch", "2"], "Unknown key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?"),
        (["--trainer.max_ep", "2"], "Unknown key 'trainer.max_ep'."),  # abbreviations are not accepted
        (["--ckpt", "last"], "Unknown key 'ckpt'. Did you mean 'ckpt_path'?"),
        (["--conf", "recipe.yaml"], "Unknown key 'conf'. Did you mean 'config'?"),
        (["--frobnicate"], "Unknown key 'frobnicate'."),
        (["left over"], "Unknown key 'left"),
        (["--model.init_args.attention", "scsee"], "Unknown attention 'scsee'. Did you mean 'scse'? Valid names: "),
        (["--model.network", "unett"], "Unknown network 'unett'. Did you mean 'unet'? Valid names: "),
        (["--model.init_args.attention_at", "[everywhere]"], "'everywhere'. Valid names: after_sum, bottleneck"),
        (["--data.folds", "three"], "Expected 'folds' to be of type int, but got three."),
        (["--trainer.max_epochs", "a few"], "Expected 'trainer.max_epochs' to be of type int, but got a few."),
        (["--model.init_args.lr", "fast"], "Expected 'lr' to be of type float, but got fast."),
        (["--model.init_args.optimizer", "adam"], "Expected 'optimizer' to be one of adamw, sgd, but got adam."),
        (["--data.slice_axis", "oblique"], "Expected 'slice_axis' to be one of sagittal, coronal, axial, but got oblique."),
        (["--data.init_args.window", "[1]"], "Expected `window` to be a lower and a higher intensity, but got (1.0,)."),
        (["--model", "Network"], "Expected 'model' to be the path of a class"),
        (["--data.patch_size", "[8, 8]"], "Expected `patch_size` to be three positive numbers, but got [8, 8]."),
        (["--data.fold", "7"], "Expected `fold` between 0 and 2, but got 7."),
        (["--data.source", "nowhere"], "No such dataset: nowhere."),
        (["--model.lr", "-1"], "Expected `lr` to be positive, but got -1.0."),
        (["--trainer.accelerator", "abacus"], "The trainer refuses its settings: You selected an invalid accelerator name"),
        (["--trainer.max_time", "5 minutes"], "Expected a string in the format DD:HH:MM:SS."),
        (["--seed_everything", "-3"], "Expected `seed_everything` between 0 and"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_explained_in_one_line(refused, arguments, words):
    assert words in refused("fit", "--config", "recipe.yaml", *arguments)
    assert not LAST.exists()


def test_a_wrong_value_in_a_config_is_named_with_its_line(refused):
    edit("folds: 3", "folds: three")
    complaint = refused("fit", "--config", "recipe.yaml")
    assert complaint == f"Expected 'folds' (recipe.yaml, line {line_of('folds')}) to be of type int, but got three."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"trainer: [1, 2\nmodel: {}\n", "Cannot read the config broken.yaml: line 2, column 6: expected ',' or ']'"),
        (b"trainer:\n\tmax_epochs: 1\n", "Cannot read the config broken.yaml: line 2, column 1"),
        (b"\xff\xfe\x00", "Cannot read the config broken.yaml: it is no text in UTF-8"),
        (b"just words", "Expected the config broken.yaml to hold keys such as `trainer:`"),
        (b"", "Expected the config broken.yaml to hold keys such as `trainer:`"),
    ],
    ids=["bracket", "tab", "binary", "text", "empty"],
)
def test_a_config_that_cannot_be_read_is_named(refused, content, words):
    Path("broken.yaml").write_bytes(content)
    assert refused("fit", "--config", "recipe.yaml", "--config", "broken.yaml").startswith(words)


@pytest.mark.parametrize("name", ["nowhere.yaml", "folder/nowhere.yaml", "data", "other.yml"])
def test_a_config_that_is_not_there_is_named_with_what_there_is(refused, name):
    for arguments in (["--config", name], [f"--config={name}"], ["-c", name]):
        complaint = refused("fit", *arguments)
        assert complaint.startswith(f"No such config: {name}. Expected a YAML file or a shipped recipe: ")
        assert "hippocampus_unet3d_scse" in complaint


def test_a_recipe_that_does_not_exist_is_named_with_the_nearest(refused):
    assert "Did you mean 'hippocampus_unet3d_scse'?" in refused("fit", "--config", "hippocampus_unet3d_scs")


def test_nothing_to_train_is_explained(refused):
    assert refused("fit").startswith("Nothing says what to train. Give a recipe: `--config`")


def test_a_broken_dataset_is_explained(fit, refused):
    Path("data/imagesTr/case_02.nii.gz").write_bytes(b"no scan")
    complaint = refused("fit", "--config", "recipe.yaml")
    assert "1 of 6 cases cannot be used" in complaint
    assert "case_02" in complaint


def test_a_folder_that_cannot_be_written_is_explained(refused):
    Path("file").write_text("")
    assert "file" in refused("fit", "--config", "recipe.yaml", "--trainer.default_root_dir", "file/run")
    assert "Cannot write" in refused("fit", "--config", "recipe.yaml", "--data.store", "file/store")


def test_help_lists_every_key(call):
    code, output, _ = call("fit", "--help")
    assert code == 0
    for key in ("--config", "--ckpt_path", "--trainer.max_epochs", "--model", "--data"):
        assert key in output


def test_the_checkpoint_names_its_own_version_and_structures(fit):
    fit()
    described = state()["medseg_se"]
    assert json.loads(json.dumps(described)) == described
    assert list(described["data"]["structures"]["values"]) == ["near", "far"]


def test_a_dataset_of_one_structure_is_trained(folder, fit):
    content = json.loads((folder / "data" / "dataset.json").read_text())
    content["labels"] = {"background": 0, "both": [1, 2]}
    (folder / "data" / "dataset.json").write_text(json.dumps(content))
    code, _, messages = fit()
    assert code == 0, messages
    assert "both" in messages
