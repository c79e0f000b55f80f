import json
import logging

import nibabel as nib
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from whole_scans import write_pictures

from medseg_se.checkpoints import read_checkpoint
from medseg_se.cli.main import main
from medseg_se.data.classification import ClassificationData
from medseg_se.data.phantom import write_phantoms
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.inference.model import Model
from medseg_se.tasks import ClassificationTask, SegmentationTask
from medseg_se.tasks.schedules import learning_rate_factor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")
SHAPE = (16, 14, 12)
THREE = {"background": 0, "near": 1, "far": 2, "shell": 3}


@pytest.fixture
def make_data(tmp_path, write_decathlon):
    """Return a function that makes data with these label values, channels and options, cached by name."""

    def build(name="old", labels=None, channels=("T1",), **options):
        folder = tmp_path / f"data_{name}"
        if not folder.exists():
            write_decathlon(folder, cases=4, test=0, shape=SHAPE, channels=len(channels))
            content = json.loads((folder / "dataset.json").read_text())
            content["labels"] = labels or THREE
            content["modality"] = {str(number): channel for number, channel in enumerate(channels)}
            (folder / "dataset.json").write_text(json.dumps(content))
            for path in (folder / "labelsTr").iterdir():  # some of the third structure, where there is one
                voxels = np.asarray(nib.load(path).dataobj).copy()
                voxels[-1] = np.max([np.max(value) for value in content["labels"].values()])
                nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
        defaults = {"folds": 2, "patch_size": [12, 12, 12], "batch_size": 2, "batches_per_epoch": 2, "num_workers": 0}
        return SegmentationData(str(folder), store=str(tmp_path / "store"), progress=False, **{**defaults, **options})

    return build


def task_for(data, seed=0, **options):
    torch.manual_seed(seed)
    defaults = {"channels": [4, 6, 8], "deep_supervision": False, "lr": 1e-2}
    return SegmentationTask(data.in_channels, data.num_classes, data.spatial_dims, **{**defaults, **options})


class First(pl.Callback):
    """Remembers the weights before the first step."""

    def on_train_start(self, trainer, pl_module):
        self.weights = weights(pl_module)
        averaged = {} if pl_module.average is None else pl_module.average.module.state_dict()
        self.average = {name: value.clone() for name, value in averaged.items()}


def weights(task):
    return {name: value.detach().clone() for name, value in task.network.state_dict().items()}


def fit(task, data, folder, epochs=1, ckpt_path=None, callbacks=()):
    first = First()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[first, *callbacks],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(task, data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return first


@pytest.fixture
def old(tmp_path, make_data):
    """Return a trained checkpoint of three structures, with and without further options of the task."""

    def train(data=None, **options):
        data = make_data() if data is None else data
        fit(task_for(data, seed=1, **options), data, tmp_path / "old")
        return tmp_path / "old" / "last.ckpt"

    return train


def begin(data, path, folder, **options):
    """Return the weights that a run begins with and those that were drawn for it."""
    task = task_for(data, seed=2, start_from=str(path), **options)
    drawn = weights(task)
    return fit(task, data, folder).weights, drawn


# -------------------------------------------------------------------------------------------------------------- what is loaded


def test_rows_follow_the_names_of_structures_and_new_ones_stay_as_drawn(tmp_path, make_data, old, caplog):
    path = old(deep_supervision=True)
    _, state, digest = read_checkpoint(path)
    data = make_data("new", {"background": 0, "far": 1, "halo": 2, "near": 3})
    first, drawn = begin(data, path, tmp_path / "new", deep_supervision=True)
    heads = [name for name in state if "head" in name]
    assert len(heads) == 4
    for name in heads:
        for row, earlier in ((0, 0), (1, 2), (3, 1)):  # background, far, near
            assert torch.equal(first[name][row], state[name][earlier])
        assert torch.equal(first[name][2], drawn[name][2])
    for name in set(state) - set(heads):
        assert torch.equal(first[name], state[name])
    assert f"{path}: {len(state)} of {len(state)} tensors loaded; matched by name: 4 (head.weight, head.bias, " in caplog.text
    assert "; new outputs: halo." in caplog.text
    written = json.loads((tmp_path / "new" / "start.json").read_text())
    assert (written["digest"], sorted(written["adapted"]), written["left"]) == (digest, sorted(heads), [])


def test_fewer_structures_keep_their_rows(tmp_path, make_data, old):
    path = old()
    state = read_checkpoint(path)[1]
    first, _ = begin(make_data("new", {"background": 0, "far": [1, 2]}), path, tmp_path / "new")
    assert torch.equal(first["head.weight"], state["head.weight"][[0, 2]])
    assert torch.equal(first["head.bias"], state["head.bias"][[0, 2]])


def test_a_new_channel_changes_nothing_at_first_whatever_the_order(tmp_path, make_data, old):
    path = old()
    data = make_data("new", channels=("FLAIR", "T1"))
    first, _ = begin(data, path, tmp_path / "new")
    kernel = first["encoder.0.block.units.0.conv.weight"]
    assert torch.equal(kernel[:, 1:], read_checkpoint(path)[1]["encoder.0.block.units.0.conv.weight"])
    assert not kernel[:, 0].any()
    trained = read_checkpoint(tmp_path / "new" / "last.ckpt")[1]["encoder.0.block.units.0.conv.weight"]
    assert trained[:, 0].any()  # and it is learnt


def test_channels_of_other_names_share_the_kernels(tmp_path, make_data, old):
    path = old(make_data(channels=("T1", "T2")))
    kernel = read_checkpoint(path)[1]["encoder.0.block.units.0.conv.weight"]
    first, _ = begin(make_data("new", channels=("CT", "PET", "MRA")), path, tmp_path / "new")
    expected = kernel.sum(1, keepdim=True).expand(-1, 3, -1, -1, -1) / 3
    torch.testing.assert_close(first["encoder.0.block.units.0.conv.weight"], expected)


@pytest.mark.parametrize("network", ["unet", "densenet", "sdnet"])
@pytest.mark.parametrize(("before", "after"), [("none", "scse"), ("scse", "none"), ("eca", "scse")])
def test_attention_that_is_another_is_left_and_the_rest_is_loaded(tmp_path, make_data, old, network, before, after):
    options = {"network": network, "deep_supervision": None, "channels": [4, 6]}
    path = old(attention=before, **options)
    state = read_checkpoint(path)[1]
    data = make_data()
    first, drawn = begin(data, path, tmp_path / "new", attention=after, **options)
    plain = set(weights(task_for(data, **options)))
    assert plain <= set(first)
    assert all(torch.equal(first[name], state[name]) for name in plain)
    assert all(torch.equal(first[name], drawn[name]) for name in set(first) - plain)


def test_choices_that_were_made_do_not_enter_a_search(tmp_path, make_data, old):
    options = {"attention": "adaptive", "attention_options": {"blocks": ["cse", "eca"]}, "discretise_after": 0.5}
    path = old(**options)
    place = "encoder.0.block.attention"
    assert read_checkpoint(path)[1][f"{place}.chosen"] >= 0
    first, drawn = begin(make_data(), path, tmp_path / "new", **options)
    assert first[f"{place}.chosen"] == -1
    assert torch.equal(first[f"{place}.alpha"], drawn[f"{place}.alpha"])
    assert torch.equal(first["bottleneck.units.0.conv.weight"], read_checkpoint(path)[1]["bottleneck.units.0.conv.weight"])


def test_the_averaged_weights_are_what_begins_and_the_new_average_begins_with_them(tmp_path, make_data, old):
    path = old(ema=0.9)
    state = read_checkpoint(path)[1]
    last = torch.load(path, weights_only=True)["state_dict"]
    assert not torch.equal(state["head.weight"], last["network.head.weight"])
    data = make_data()
    run = fit(task_for(data, seed=2, start_from=str(path), ema=0.9), data, tmp_path / "new")
    for begun in (run.weights, run.average):
        assert all(torch.equal(begun[name], value) for name, value in state.items())


def test_classes_follow_their_names(tmp_path):
    def data_of(name, classes):
        folder = write_pictures(tmp_path / name, classes=classes)
        options = {"folds": 2, "size": [16, 16], "batch_size": 4, "num_workers": 0, "progress": False}
        return ClassificationData(str(folder), store=str(tmp_path / "store"), **options)

    def task_of(data, **options):
        torch.manual_seed(len(options))
        small = {"channels": [4, 6], "blocks": [1, 1], "strides": [1, 2]}
        return ClassificationTask(data.in_channels, data.num_classes, 2, network="resnet18", network_options=small, **options)

    before = data_of("old", ("dark", "right"))
    fit(task_of(before), before, tmp_path / "a")
    path = tmp_path / "a" / "last.ckpt"
    state = read_checkpoint(path)[1]
    after = data_of("new", ("left", "dark", "right"))
    task = task_of(after, start_from=str(path))
    drawn = weights(task)["head.linear.weight"]
    first = fit(task, after, tmp_path / "b").weights
    expected = torch.stack([state["head.linear.weight"][0], drawn[1], state["head.linear.weight"][1]])
    assert after.classes == ("dark", "left", "right")
    assert torch.equal(first["head.linear.weight"], expected)
    assert all(torch.equal(first[name], value) for name, value in state.items() if not name.startswith("head"))


def test_the_command_line_begins_with_a_run_of_other_structures(tmp_path, capfd, caplog, put_back):
    source = write_phantoms(tmp_path / "brains", "brain", training=4, test=0, resolution=8.0)
    labels = json.loads(source.read_text())["labels"]
    names = {name: int(value) for value, name in labels.items()} if "0" in labels else labels
    every = [name for name in names if name != "background"]
    wanted = [every[5], every[1], every[9]]
    rest = [value for name, value in names.items() if name not in wanted]
    (tmp_path / "few.json").write_text(json.dumps({"background": rest, **{name: names[name] for name in wanted}}))
    common = ["fit", "--model=SegmentationTask", "--model.channels=[4,6]", "--data=SegmentationData", f"--data.source={source}"]
    common += [f"--data.store={tmp_path / 'store'}", "--data.patch_size=[8,8,8]", "--data.folds=2", "--data.num_workers=0"]
    common += ["--data.batches_per_epoch=2", "--data.batch_size=1", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    old, new = tmp_path / "all", tmp_path / "some"
    assert main([*common, f"--trainer.default_root_dir={old}"]) == 0
    path = old / "checkpoints" / "best.ckpt"
    start = [f"--data.structures={tmp_path / 'few.json'}", f"--model.start_from={path}", "--model.freeze=[encoder]"]
    start += ['--model.lr_factors={"bottleneck": 0.1, "head": 1.0e-9}', f"--trainer.default_root_dir={new}"]
    assert main([*common, *start]) == 0
    _, before, _ = read_checkpoint(path)
    described, after, _ = read_checkpoint(new / "checkpoints" / "best.ckpt")
    assert list(described["data"]["structures"]["values"]) == wanted
    whole = len(before)
    assert caplog.text.count(f"{path}: {whole} of {whole} tensors loaded; matched by name: 2 (head.weight, head.bias).") == 1
    rows = [0, 6, 2, 10]
    torch.testing.assert_close(after["head.weight"], before["head.weight"][rows], rtol=1e-5, atol=1e-6)  # it hardly learnt
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("encoder."))
    assert any(not torch.equal(after[name], value) for name, value in before.items() if name.startswith("decoder."))
    path.unlink()
    assert main([*common, *start, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    again = [*common, *start, f"--trainer.default_root_dir={tmp_path / 'third'}", f"--data.store={tmp_path / 'unused'}"]
    assert main(again) == 2
    assert f"No such checkpoint: {path}" in capfd.readouterr().err
    assert not (tmp_path / "unused").exists()  # it said so before the scans were prepared


# ---------------------------------------------------------------------------------------------------------- what is said of it


def test_scans_that_are_prepared_otherwise_are_told(tmp_path, make_data, old, caplog):
    path = old()
    begin(make_data(spacing=[2.0, 1.0, 1.0], intensity="percentile"), path, tmp_path / "new")
    line = next(record.getMessage() for record in caplog.records if "prepared otherwise" in record.getMessage())
    assert "spacing None there, [2.0, 1.0, 1.0] here" in line
    assert "intensity zscore there, percentile here" in line
    assert "orientation" not in line


def test_validation_scans_that_were_trained_on_are_told_and_no_longer_count_as_new(tmp_path, make_data, old, caplog):
    path = old()  # of fold 0
    data = make_data(fold=1)
    begin(data, path, tmp_path / "new")
    assert "was trained on 2 of the 2 validation scans" in caplog.text
    model = Model.load(tmp_path / "new" / "last.ckpt")
    every = {case.digest for case in (*data.training, *data.validation)}
    assert (model.training, model.validation) == (every, set())


def test_a_perfect_fit_is_no_warning(tmp_path, make_data, old, caplog):
    path = old()
    begin(make_data(), path, tmp_path / "new")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"channels": [3, 5, 7]},
            r"Expected weights of .*unet with channels \[3, 5, 7\].* of .*unet with channels \[4, 6, 8\]",
        ),
        ({"network": "sdnet", "deep_supervision": None}, r"Expected weights of the network sdnet"),
        ({"patch_size": [12, 12], "slice_axis": "axial"}, r"Expected weights of a network in 2D, but got those of one in 3D"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, make_data, old, options, complaint):
    path = old()
    flat = {name: options[name] for name in ("patch_size", "slice_axis") if name in options}
    options = {name: value for name, value in options.items() if name not in flat}
    with pytest.raises(CheckpointError, match=complaint) as refusal:
        begin(make_data(**flat), path, tmp_path / "new", **options)
    assert str(path) in str(refusal.value)


# ------------------------------------------------------------------------------------------------------------- what is frozen


def test_what_is_frozen_stays_to_the_last_bit_and_the_rest_learns(tmp_path, make_data, old):
    options = {"norm": "batch", "attention": "scse", "dropout": 0.5}
    data = make_data()
    task = task_for(data, freeze=["encoder", "decoder.0"], start_from=str(old(**options)), **options)
    before = fit(task, data, tmp_path / "run").weights
    after = weights(task)
    for name, value in before.items():
        frozen = name.startswith(("encoder.", "decoder.0."))
        assert not frozen or torch.equal(after[name], value), name
    for part in ("bottleneck", "decoder.1", "head"):
        assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith(part))
    task.train()
    assert not any(module.training for module in task.network.encoder.modules())
    assert task.network.bottleneck.training
    x = torch.randn(2, 1, *SHAPE)
    assert torch.equal(task.network.encoder[0](x)[0], task.network.encoder[0](x)[0])  # nothing is dropped


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"freeze": ["encodr"]},
            r"part of the network in `freeze` 'encodr'.*'encoder'.*: bottleneck, decoder, encoder, head\.",
        ),
        ({"freeze": ["stem"]}, r"'stem'.*Valid names: bottleneck, decoder, encoder, head\."),
        ({"freeze": ["encoder.9"]}, r"'encoder.9'.*Valid names: encoder\.0, encoder\.1\."),
        ({"freeze": ["encoder", "bottleneck", "decoder", "head"]}, r"Expected `freeze` to leave something that learns"),
        ({"lr_factors": {"tail": 0.1}}, r"part of the network in `lr_factors` 'tail'"),
        ({"lr_factors": {"encoder": 0.0}}, r"above 0, but got 0\.0 for encoder\. .*`freeze`"),
        ({"lr_factors": {"encoder": -1.0}}, r"above 0, but got -1\.0"),
        ({"freeze": ["encoder"], "lr_factors": {"encoder.0": 0.1}}, r"encoder\.0 is frozen"),
        ({"network": "monai:BasicUNet", "channels": None, "deep_supervision": None, "freeze": ["x"]}, r"network\.conv_0"),
    ],
)
def test_parts_that_make_no_sense_are_refused(make_data, options, complaint):
    with pytest.raises(UsageError, match=complaint):
        task_for(make_data(), **options)


@pytest.mark.parametrize("options", [{"attention": "scse"}, {"data": ("FLAIR", "T1")}])
def test_what_is_frozen_must_come_from_the_checkpoint(tmp_path, make_data, old, options):
    path = old()
    data = make_data("new", channels=options.pop("data", ("T1",)))
    with pytest.raises(UsageError, match=r"what does not learn to come from the checkpoint whole.*encoder\.0.*Freeze less"):
        begin(data, path, tmp_path / "new", freeze=["encoder"], **options)


def test_what_was_drawn_at_random_is_not_frozen(tmp_path, make_data):
    data = make_data()
    complaint = r"Expected `freeze` for weights that come from elsewhere, but \d+ tensors of encoder would stay as drawn"
    with pytest.raises(UsageError, match=complaint):
        fit(task_for(data, freeze=["encoder"]), data, tmp_path / "run")


# ------------------------------------------------------------------------------------------------------------- learning rates


class Rates(pl.Callback):
    """Remembers the learning rates of every step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = trainer.optimizers[0].param_groups
        self.seen = [*getattr(self, "seen", []), (pl_module.done(), [group["lr"] for group in groups])]


def test_the_smallest_part_that_holds_a_weight_says_its_learning_rate(make_data):
    task = task_for(make_data(), lr=0.1, lr_factors={"encoder": 0.1, "encoder.0": 0.5, "head": 2.0}, freeze=["decoder.0"])
    rate_of = {
        parameter: group["lr"]
        for group in task.configure_optimizers()["optimizer"].param_groups
        for parameter in group["params"]
    }
    full = {"encoder.0": 0.5, "encoder.1": 0.1, "bottleneck": 1.0, "decoder.1": 1.0, "head": 2.0}
    for name, parameter in task.network.named_parameters():
        factor = next((factor for part, factor in full.items() if name.startswith(f"{part}.")), None)
        expected = None if factor is None else pytest.approx(0.1 * factor * learning_rate_factor("cosine", 0.0, 0.02))
        assert rate_of.get(parameter) == expected


def test_the_schedule_scales_every_group_and_a_run_that_goes_on_needs_no_file_and_ends_the_same(tmp_path, make_data, old):
    path, data = old(), make_data()
    options = {"start_from": str(path), "lr_factors": {"encoder": 0.1}, "schedule": "poly", "freeze": ["decoder.0"], "ema": 0.9}
    rates = Rates()
    whole = task_for(data, seed=2, **options)
    pl.seed_everything(0)
    fit(whole, data, tmp_path / "whole", epochs=2, callbacks=[rates])
    for done, (full, less) in rates.seen:
        assert (full, less) == pytest.approx((factor := 1e-2 * learning_rate_factor("poly", done, 0.02), 0.1 * factor))

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")
                raise KeyboardInterrupt

    pl.seed_everything(0)
    with pytest.raises(SystemExit):
        fit(task_for(data, seed=2, **options), data, tmp_path / "first", epochs=2, callbacks=[Stop()])
    path.unlink()
    again = task_for(data, seed=3, **options)
    pl.seed_everything(0)
    fit(again, data, tmp_path / "second", epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "adamw"),
        ("lr", 0.5),
        ("weight_decay", 0.1),
        ("momentum", 0.5),
        ("freeze", ["decoder"]),
        ("lr_factors", {"encoder": 0.2, "head": 2.0}),
        ("lr_factors", {"head": 2.0, "encoder": 0.1}),
        ("lr_factors", None),
    ],
)
def test_a_run_does_not_go_on_with_options_that_it_would_not_take_up(tmp_path, make_data, name, value):
    data = make_data()
    options = {"optimizer": "sgd", "lr": 0.004, "lr_factors": {"encoder": 0.1, "head": 2.0}}
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.strategy.connect(task_for(data, **options))
    path = tmp_path / "begun.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    with pytest.raises(UsageError, match=rf"Expected `{name}` to be .* as in the run that goes on, but got .*start_from"):
        fit(task_for(data, **{**options, name: value}), data, tmp_path / "run", ckpt_path=path)


def test_groups_survive_choices_that_are_made(tmp_path, make_data):
    options = {"attention": "adaptive", "attention_options": {"blocks": ["cse", "eca"]}, "discretise_after": 0.4}
    data = make_data()
    task = task_for(data, lr_factors={"encoder": 0.1, "encoder.0.block.attention": 0.5}, **options)
    fit(task, data, tmp_path / "run")
    fit(task_for(data, lr_factors=task.start.lr_factors, **options), data, tmp_path / "run", 2, tmp_path / "run" / "last.ckpt")
    groups = task.trainer.optimizers[0].param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in task.network.parameters()}
    assert len(groups) == 3
