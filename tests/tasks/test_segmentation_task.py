import json
import math

import nibabel as nib
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from medseg_se.attention import discretise, is_open
from medseg_se.data.sampling import PatchDataset
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.inference.model import Model
from medseg_se.structures import Structures
from medseg_se.tasks import SegmentationTask
from medseg_se.tasks.callbacks import TrainingProgress
from medseg_se.tasks.checkpoints import AtomicCheckpointIO, CheckpointHabits
from medseg_se.tasks.schedules import learning_rate_factor

SHAPE = (16, 14, 12)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")


@pytest.fixture
def dataset(tmp_path, write_decathlon):
    """Return a dataset of six cases in which the truth of some voxels is unknown."""
    folder = write_decathlon(tmp_path / "data", cases=6, test=0, shape=SHAPE)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "labels": {**content["labels"], "9": "ignore"}}))
    for path in (folder / "labelsTr").iterdir():
        labels = np.asarray(nib.load(path).dataobj).copy()
        labels[::3, ::2, 4:7] = 9
        nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
    return folder


@pytest.fixture
def make_data(tmp_path, dataset):
    def build(**options):
        defaults = {"folds": 3, "patch_size": [12, 12, 12], "batches_per_epoch": 3, "num_workers": 0, "progress": False}
        return SegmentationData(str(dataset), store=str(tmp_path / "store"), **{**defaults, **options})

    return build


def make_task(seed=0, **options):
    torch.manual_seed(seed)
    return SegmentationTask(**{"in_channels": 1, "num_classes": 3, "channels": [4, 8], "deep_supervision": False, **options})


class Record(pl.Callback):
    """Remember every step, and interrupt the run before the step `stop`."""

    def __init__(self, stop=None):
        self.stop, self.steps, self.patches = stop, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.stop:
            raise KeyboardInterrupt
        self.steps.append((trainer.current_epoch, pl_module.done(), trainer.optimizers[0].param_groups[0]["lr"]))
        self.patches.append(batch["image"])


def make_trainer(root, callbacks=(), **options):
    defaults = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "max_epochs": 2,
    }
    every = [*callbacks, *CheckpointHabits(minutes=0).callbacks(root, SegmentationTask.score)]
    return pl.Trainer(default_root_dir=root, callbacks=every, plugins=[AtomicCheckpointIO()], **{**defaults, **options})


def weights(task):
    return {name: value.clone() for name, value in task.network.state_dict().items()}


def dice_by_hand(prediction, truth, index):
    """Count Dice with sets of voxels, leaving out those whose truth is unknown."""
    predicted, true = (set(map(tuple, np.argwhere((labels == index) & (truth != -1)))) for labels in (prediction, truth))
    return 2 * len(predicted & true) / (len(predicted) + len(true)) if predicted or true else math.nan


# -------------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_steps_on_a_batch_lower_its_loss(make_data, optimizer, deep_supervision):
    data = make_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    task = make_task(
        optimizer=optimizer, lr=1e-2, warmup=0, channels=[4, 8, 8], deep_supervision=deep_supervision, attention="scse"
    )
    configured = task.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(6):
        loss = task.training_step(batch, 0)
        losses.append(float(loss.detach()))
        configured.zero_grad()
        loss.backward()
        configured.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_training_learns_the_tiny_dataset(make_data, tmp_path):
    data = make_data(fold=None, spatial_probability=0.0, batches_per_epoch=12)
    trainer = make_trainer(tmp_path / "run", max_epochs=3)
    trainer.fit(make_task(lr=2e-2, channels=[8, 16]), data)
    assert float(trainer.callback_metrics["val_dice"]) > 0.8
    assert float(trainer.callback_metrics["val_loss"]) < 0.6


def test_a_loss_that_is_not_finite_says_what_to_do():
    batch = {"image": torch.full((1, 1, 8, 8, 8), math.nan), "labels": torch.zeros(1, 8, 8, 8, dtype=torch.long)}
    with pytest.raises(
        UsageError, match=r"The loss became nan at step 0\. Lower `lr`.*medseg-se check.*last checkpoint is intact"
    ):
        make_task().training_step(batch, 0)


def test_only_parameters_that_require_it_are_optimised():
    task = make_task()
    for parameter in task.network.encoder.parameters():
        parameter.requires_grad = False
    held = {id(parameter) for group in task.configure_optimizers()["optimizer"].param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in task.network.parameters() if parameter.requires_grad}


# -------------------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(("options", "total"), [({}, 6), ({"accumulate_grad_batches": 2}, 4), ({"limit_train_batches": 2}, 4)])
def test_the_learning_rate_follows_the_steps(make_data, tmp_path, options, total):
    record = Record()
    task = make_task(lr=0.05, schedule="poly", warmup=0.3)
    trainer = make_trainer(tmp_path / "run", [record], **options)
    trainer.fit(task, make_data())
    assert trainer.global_step == total
    done = [done for _, done, _ in record.steps]
    assert sorted(set(done)) == pytest.approx([step / total for step in range(total)])
    for _, share, rate in record.steps:
        assert rate == pytest.approx(0.05 * learning_rate_factor("poly", share, 0.3))
    assert task.done() == 1.0


class Clock:
    """Stands for the module `time` in Lightning's timer; ten seconds pass a batch."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


def test_the_schedule_and_the_end_follow_the_clock(make_data, tmp_path, monkeypatch):
    clock, record = Clock(), Record()
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", clock)
    task = make_task(lr=0.05, schedule="cosine", warmup=0.0)

    class Tick(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            clock.now += 10

    trainer = make_trainer(tmp_path / "run", [record, Tick()], max_epochs=1000, max_time={"seconds": 100})
    trainer.fit(task, make_data())
    assert [done for _, done, _ in record.steps] == pytest.approx([step / 10 for step in range(10)], abs=0.01)
    for _, share, rate in record.steps[1:]:
        assert rate == pytest.approx(0.05 * learning_rate_factor("cosine", share, 0.0), rel=1e-3)
    assert (trainer.global_step, task.done()) == (10, 1.0)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 10


def test_whichever_ends_first_bends_the_schedule(make_data, tmp_path, monkeypatch):
    clock, record = Clock(), Record()
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", clock)
    task = make_task()
    trainer = make_trainer(tmp_path / "run", [record], max_epochs=2, max_time={"seconds": 100})
    trainer.fit(task, make_data())  # the clock stands still
    assert [done for _, done, _ in record.steps] == pytest.approx([step / 6 for step in range(6)])


def test_nothing_is_done_without_a_run():
    assert make_task().done() == 0.0


# ----------------------------------------------------------------------------------------------------------------- validation


class KeepPatches(pl.Callback):
    """Keep what the network says of each validation patch of the last epoch."""

    def __init__(self):
        self.kept = []

    def on_validation_epoch_start(self, trainer, pl_module):
        self.kept = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        with torch.no_grad():
            self.kept.append((pl_module.network(batch["image"]).argmax(1).numpy(), batch["labels"].numpy()))


def test_the_dice_of_patches_is_ours_over_all_of_them_together(make_data, tmp_path):
    keep = KeepPatches()
    trainer = make_trainer(tmp_path / "run", [keep], max_epochs=3)
    data = make_data()
    trainer.fit(make_task(lr=1e-2, channels=[8, 16]), data)
    predictions, truths = (np.concatenate(arrays) for arrays in zip(*keep.kept, strict=True))
    assert (truths == -1).any()
    assert len(truths) == len(data.validation) == 2
    expected = [dice_by_hand(predictions, truths, index) for index in (1, 2)]
    assert [float(trainer.callback_metrics[f"val_dice/{name}"]) for name in ("near", "far")] == pytest.approx(expected)
    assert float(trainer.callback_metrics["val_dice"]) == pytest.approx(np.mean(expected))
    assert 0 < np.mean(expected) < 1


def test_validation_patches_are_the_same_in_every_epoch_and_hold_structures(make_data, tmp_path):
    seen = []

    class Keep(KeepPatches):
        def on_validation_epoch_end(self, trainer, pl_module):
            seen.append(np.concatenate([labels for _, labels in self.kept]))

    make_trainer(tmp_path / "run", [Keep()], max_epochs=2, num_sanity_val_steps=0).fit(make_task(), make_data())
    np.testing.assert_array_equal(seen[0], seen[1])
    assert all((patch > 0).any() for patch in seen[0])


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_dice_of_scans_is_the_mean_over_scans_of_ours(make_data, tmp_path, stage, dataset):
    """The patch is larger than the scans, so that the network sees each at once, padded with its lowest intensity."""
    content = json.loads((dataset / "dataset.json").read_text())
    content["test"] = [content["training"].pop()]
    (dataset / "dataset.json").write_text(json.dumps(content))
    data = make_data(patch_size=[18, 14, 20])
    task = make_task(channels=[4, 8])
    trainer = make_trainer(tmp_path / "run")
    getattr(trainer, stage)(task, datamodule=data, verbose=False)
    expected = []
    assert [case.id for case in data.test] == ([] if stage == "validate" else [content["test"][0]["image"][9:-7]])
    for case in data.validation if stage == "validate" else data.test:
        image = np.array(case.image())
        padded = np.pad(image, [(0, 0), (1, 1), (0, 0), (4, 4)], constant_values=image.min())
        with torch.no_grad():
            logits = task.network(torch.from_numpy(padded)[None])[0, :, 1:17, :, 4:16]
        expected.append([dice_by_hand(logits.argmax(0).numpy(), np.array(case.labels()), index) for index in (1, 2)])
    metrics = trainer.callback_metrics
    prefix = {"validate": "val", "test": "test"}[stage]
    found = [float(metrics[f"{prefix}_scan_dice/{name}"]) for name in ("near", "far")]
    assert found == pytest.approx(np.mean(expected, axis=0))
    assert float(metrics[f"{prefix}_scan_dice"]) == pytest.approx(np.mean(expected))


def test_a_structure_that_is_nowhere_is_not_counted(make_data, tmp_path, dataset):
    content = json.loads((dataset / "dataset.json").read_text())
    content["labels"]["7"] = "absent"
    (dataset / "dataset.json").write_text(json.dumps(content))
    task = make_task(num_classes=4)
    nn.init.zeros_(task.network.head.weight)
    task.network.head.bias = nn.Parameter(torch.tensor([0.0, 5.0, -5.0, -9.0]))  # says "near" everywhere, "absent" nowhere
    trainer = make_trainer(tmp_path / "run")
    trainer.validate(task, datamodule=make_data(), verbose=False)
    near, far, absent = (float(trainer.callback_metrics[f"val_scan_dice/{name}"]) for name in ("near", "far", "absent"))
    assert near > 0
    assert far == 0
    assert math.isnan(absent)
    assert float(trainer.callback_metrics["val_scan_dice"]) == pytest.approx(near / 2)
    trainer = make_trainer(tmp_path / "run", max_epochs=1)
    trainer.fit(task, make_data())
    assert math.isnan(float(trainer.callback_metrics["val_dice/absent"]))
    assert 0 <= float(trainer.callback_metrics["val_dice"]) <= 1


@pytest.mark.parametrize("axis", [None, "sagittal", "coronal", "axial"])
@pytest.mark.parametrize("size", [6, 9, 40])
def test_tiles_are_put_together_where_they_belong(make_data, tmp_path, axis, size):
    """For a network that looks at single voxels, tiling must not matter."""
    data = make_data(patch_size=[size] * (2 if axis else 3), slice_axis=axis)
    task = make_task(spatial_dims=data.spatial_dims)
    kind = nn.Conv2d if axis else nn.Conv3d
    task.network = kind(1, 3, 1)
    trainer = make_trainer(tmp_path / "run")
    trainer.validate(task, datamodule=data, verbose=False)  # attaches the trainer
    image = torch.from_numpy(np.array(data.validation[0].image()))[None]
    weight, bias = task.network.weight.detach().reshape(3, 1, 1, 1, 1), task.network.bias.detach()
    expected = nn.functional.conv3d(image, weight, bias)
    found = task.segment(image, torch.tensor(data.validation[0].lowest))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# -------------------------------------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("seconds_of_writing", [0, 100])
def test_the_share_of_waiting_and_the_time_left_follow_the_clock(make_data, tmp_path, monkeypatch, capsys, seconds_of_writing):
    clock = Clock()
    monkeypatch.setattr("medseg_se.tasks.callbacks.time", clock)

    def taking(seconds, function):
        def slow(*arguments, **options):
            clock.now += seconds
            return function(*arguments, **options)

        return slow

    monkeypatch.setattr(PatchDataset, "__getitem__", taking(2, PatchDataset.__getitem__))  # 4 seconds a batch
    monkeypatch.setattr(SegmentationTask, "training_step", taking(12, SegmentationTask.training_step))
    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", taking(seconds_of_writing, save))
    data = make_data(fold=None)
    trainer = make_trainer(
        tmp_path / "run", [TrainingProgress()], max_epochs=3, enable_progress_bar=True, num_sanity_val_steps=0
    )
    trainer.fit(make_task(), data)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    # An epoch of 3 batches takes 48 seconds, its 6 validation patches 12.
    assert all("waiting for data 25%" in line for line in lines)
    if seconds_of_writing:
        return
    assert [part for line in lines for part in line.split("  ") if "left" in part] == ["left 2:00", "left 1:00", "left 0:00"]


# -------------------------------------------------------------------------------------------------------------- two dimensions


@pytest.mark.parametrize("axis", ["sagittal", "axial"])
def test_a_2d_network_trains_on_slices_and_is_judged_on_scans(make_data, tmp_path, axis):
    data = make_data(patch_size=[12, 10], slice_axis=axis)
    task = make_task(spatial_dims=2, channels=[4, 8])
    record = Record()
    trainer = make_trainer(tmp_path / "run", [record], max_epochs=1)
    trainer.fit(task, data)
    assert record.patches[0].shape == (2, 1, 12, 10)
    trainer.validate(task, datamodule=data, verbose=False)
    assert 0 <= float(trainer.callback_metrics["val_scan_dice"]) <= 1
    model = Model.load(tmp_path / "run" / "last.ckpt", device="cpu")
    assert model.flat_axis == data.flat_axis


# ---------------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_tensors_and_plain_data_that_tell_inference_everything(make_data, tmp_path):
    data, task = make_data(), make_task(attention="scse", attention_options={"reduction": 2})
    make_trainer(tmp_path / "run", max_epochs=1).fit(task, data)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best.ckpt", "last.ckpt"]
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(tmp_path / "run" / name, weights_only=True)
        described = checkpoint["medseg_se"]
        assert json.loads(json.dumps(described)) == described
        assert described["task"] == "segmentation"
        assert described["data"] == data.describe()
        assert described["network"]["name"] == "unet"
        assert described["network"]["options"]["attention"] == "scse"
        assert {key: described["network"][key] for key in ("in_channels", "num_classes", "spatial_dims")} == {
            "in_channels": 1,
            "num_classes": 3,
            "spatial_dims": 3,
        }
        assert Structures.from_dict(described["data"]["structures"]) == data.structures
    model = Model.load(tmp_path / "run" / "last.ckpt", device="cpu")
    for name, value in weights(task).items():
        assert torch.equal(model.network.state_dict()[name], value)


def test_a_task_loaded_alone_knows_its_structures(make_data, tmp_path):
    make_trainer(tmp_path / "run", max_epochs=1).fit(make_task(), make_data())
    assert make_task().structure_names() == ["1", "2"]
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert loaded.structure_names() == ["near", "far"]


@pytest.mark.parametrize("stop", [2, 3, 4])  # within the first epoch, between the two, within the second
@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(make_data, tmp_path, stop, workers):
    whole = Record()
    task = make_task(lr=1e-2)
    make_trainer(tmp_path / "whole", [whole]).fit(task, make_data(num_workers=workers))
    first, second = Record(stop), Record()
    with pytest.raises(SystemExit):
        make_trainer(tmp_path / "parts", [first]).fit(make_task(lr=1e-2), make_data(num_workers=workers))
    resumed, trainer = make_task(seed=5, lr=1e-2), make_trainer(tmp_path / "parts", [second])
    trainer.fit(resumed, make_data(num_workers=workers), ckpt_path=tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert (trainer.current_epoch, trainer.global_step) == (2, 6)
    assert len(first.steps) == stop
    for patches, expected in zip(first.patches + second.patches, whole.patches, strict=True):
        torch.testing.assert_close(patches, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(first.steps + second.steps, whole.steps, rtol=1e-6)
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, weights(task)[name], atol=1e-5, rtol=1e-4)


ADAPTIVE = {
    "attention": "adaptive",
    "attention_options": {"adaptive": {"blocks": ["none", "cse", "simam"], "cse": {"reduction": 1}}},
    "discretise_after": 0.5,
}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_learnt_choices_become_final_within_the_run(make_data, tmp_path, optimizer):
    class Watch(pl.Callback):
        def __init__(self):
            self.opened = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.opened.append(is_open(pl_module.network))

    watch = Watch()
    task = make_task(**ADAPTIVE, optimizer=optimizer)
    trainer = make_trainer(tmp_path / "run", [watch])
    trainer.fit(task, make_data())
    assert watch.opened == [True, True, True, False, False, False]
    held = [parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in task.network.parameters()}
    assert set(trainer.optimizers[0].state) <= set(task.network.parameters())
    loaded = Model.load(tmp_path / "run" / "last.ckpt", "cpu")
    assert discretise(loaded.network) == discretise(task.network)
    for name, value in loaded.network.state_dict().items():
        torch.testing.assert_close(value, task.network.state_dict()[name])


@pytest.mark.parametrize("stop", [2, 4])  # before and after the choice
def test_a_run_interrupted_around_the_choice_goes_on_as_if_nothing_had_happened(make_data, tmp_path, stop):
    task = make_task(lr=1e-2, **ADAPTIVE)
    make_trainer(tmp_path / "whole").fit(task, make_data())
    with pytest.raises(SystemExit):
        make_trainer(tmp_path / "parts", [Record(stop)]).fit(make_task(lr=1e-2, **ADAPTIVE), make_data())
    resumed, trainer = make_task(seed=5, lr=1e-2, **ADAPTIVE), make_trainer(tmp_path / "parts")
    trainer.fit(resumed, make_data(), ckpt_path=tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert discretise(resumed.network) == discretise(task.network)
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, weights(task)[name], atol=1e-5, rtol=1e-4)


def test_a_finished_run_goes_on_with_the_next_epoch(make_data, tmp_path):
    whole, first, second = Record(), Record(), Record()
    make_trainer(tmp_path / "whole", [whole], max_epochs=3).fit(make_task(), make_data())
    make_trainer(tmp_path / "parts", [first], max_epochs=2).fit(make_task(), make_data())
    trainer = make_trainer(tmp_path / "parts", [second], max_epochs=3)
    trainer.fit(make_task(), make_data(), ckpt_path=tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert [epoch for epoch, _, _ in first.steps + second.steps] == [epoch for epoch, _, _ in whole.steps]
    for patches, expected in zip(first.patches + second.patches, whole.patches, strict=True):
        assert torch.equal(patches, expected)


# -------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": "unett"}, "Unknown network 'unett'. Did you mean 'unet'?"),
        ({"attention": "scsee"}, "Did you mean 'scse'?"),
        ({"network_options": {"depth": 3}}, "Unknown option of network 'unet' 'depth'"),
        ({"spatial_dims": 4}, "`spatial_dims`"),
        ({"warmup": 1.0}, "Expected `warmup` to be at least 0 and below 1, but got 1.0"),
        ({"discretise_after": 0.5, "attention": "scse"}, "Expected `attention` with a choice to learn"),
        ({"discretise_after": 1.0}, "Expected `discretise_after` to lie between 0 and 1, but got 1.0"),
        ({"lr": 0}, "Expected `lr` to be positive, but got 0"),
        ({"channels": [8]}, "Expected `channels` to hold at least two positive numbers"),
        ({"optimizer": "adam"}, "Expected `optimizer` to be adamw or sgd, but got 'adam'"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin'. Did you mean 'cosine'?"),
    ],
    ids=str,
)
def test_bad_values_are_refused_in_words(options, words):
    with pytest.raises(UsageError) as caught:
        make_task(**options).configure_optimizers()
    assert words in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused_in_words(make_data, tmp_path):
    make_trainer(tmp_path / "run", max_epochs=1).fit(make_task(), make_data())
    other = make_task(channels=[4, 6])
    with pytest.raises(CheckpointError, match=r"another network: channels \[4, 8\] instead of \[4, 6\]\."):
        make_trainer(tmp_path / "other").fit(other, make_data(), ckpt_path=tmp_path / "run" / "last.ckpt", weights_only=True)
