import json
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from whole_scans import CLASSES, write_ages, write_pictures

from medseg_se.data.classification import ClassificationData, RegressionData
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.networks import NETWORKS
from medseg_se.networks.base import Network
from medseg_se.tasks import ClassificationTask, RegressionTask, SegmentationTask
from medseg_se.tasks.callbacks import TrainingProgress
from medseg_se.tasks.checkpoints import AtomicCheckpointIO, CheckpointHabits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")


class Halves(Network):
    """Looks at the mean of each half of a scan along its last axis; learns in a few steps."""

    kind = "classification"

    def __init__(self, in_channels, num_classes, spatial_dims=2, width=8):
        super().__init__(in_channels, num_classes, spatial_dims)
        self.layers = nn.Sequential(nn.Linear(2 * in_channels, width), nn.Tanh(), nn.Linear(width, num_classes))

    def forward(self, x):
        self.check_input(x)
        return self.layers(10 * torch.cat([half.flatten(2).mean(2) for half in x.chunk(2, dim=-1)], dim=1))


@pytest.fixture(autouse=True)
def halves(monkeypatch):
    monkeypatch.setitem(NETWORKS, "halves", Halves)


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def heads(tmp_path):
    return write_ages(tmp_path / "heads")


@pytest.fixture
def classes(tmp_path, pictures):
    def build(source=None, **options):
        defaults = {"folds": 3, "size": [16, 16], "batch_size": 4, "num_workers": 0, "progress": False, "intensity": "minmax"}
        return ClassificationData(str(source or pictures), store=str(tmp_path / "store"), **{**defaults, **options})

    return build


@pytest.fixture
def ages(tmp_path, heads):
    def build(source=None, **options):
        defaults = {"target": "age", "folds": 3, "size": [8, 8, 8], "batch_size": 3, "num_workers": 0, "progress": False}
        defaults |= {"intensity": "window", "window": (-20.0, 40.0), "spatial_probability": 0.0, "intensity_probability": 0.0}
        return RegressionData(str(source or heads), store=str(tmp_path / "store"), **{**defaults, **options})

    return build


def classifier(seed=0, **options):
    torch.manual_seed(seed)
    return ClassificationTask(**{"in_channels": 1, "num_classes": 3, "network": "halves", **options})


def regressor(seed=0, **options):
    torch.manual_seed(seed)
    return RegressionTask(**{"in_channels": 1, "num_classes": 1, "spatial_dims": 3, "network": "halves", **options})


def make_trainer(root, task, callbacks=(), **options):
    defaults = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    every = [*CheckpointHabits(minutes=0, smoothing=0).callbacks(root, task.score), *callbacks]
    options = {**defaults, "max_epochs": 2, **options}
    return pl.Trainer(default_root_dir=root, callbacks=every, plugins=[AtomicCheckpointIO()], **options)


def fit(task, data, root, **options):
    trainer = make_trainer(root, task, **options)
    trainer.fit(task, data)
    return trainer


def answers_to(task, cases, data):
    task.eval()
    with torch.no_grad():
        return torch.cat([task(data.scan.read(case)[None]) for case in cases])


def printed(table, width=100):
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# -------------------------------------------------------------------------------------------------------------------- training


def test_classes_are_learnt(classes, tmp_path):
    task = classifier(lr=5e-2)
    trainer = fit(task, classes(), tmp_path / "run", max_epochs=15)
    assert float(trainer.callback_metrics["val_balanced_accuracy"]) == 1.0
    assert float(trainer.callback_metrics["val_auroc"]) == 1.0


@pytest.mark.parametrize("loss", ["l1", "mse", "huber"])
def test_numbers_are_learnt_in_their_own_units(ages, tmp_path, loss):
    task, data = regressor(lr=5e-2, loss=loss), ages(fold=None)
    trainer = fit(task, data, tmp_path / "run", max_epochs=40, check_val_every_n_epoch=40)
    assert float(trainer.callback_metrics["val_mae/age"]) < 5  # of ages from 40 to 80
    assert float(trainer.callback_metrics["val_pearson/age"]) > 0.9


def test_the_loss_of_classes_is_weighted_and_smoothed(classes, pictures, tmp_path):
    for number in range(4):
        (pictures / "dark" / f"{number}.png").unlink()
    task, data = classifier(class_weights="balanced", label_smoothing=0.1, lr=1e-9), classes(fold=None)
    trainer = fit(task, data, tmp_path / "run", max_epochs=1)
    counts = torch.tensor([2.0, 6.0, 6.0])
    torch.testing.assert_close(task.class_weight, 14 / (3 * counts))
    logits = answers_to(task, data.validation, data)
    truth = data.encode(data.validation)
    smooth = F.one_hot(truth, 3) * 0.9 + 0.1 / 3
    losses = -(smooth * logits.log_softmax(1) * (14 / (3 * counts))).sum(1)
    batches = [
        (losses[part].sum() / (14 / (3 * counts))[truth[part]].sum(), len(truth[part])) for part in torch.arange(14).split(4)
    ]
    expected = sum(float(loss) * number for loss, number in batches) / 14
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(expected, rel=1e-5)


def test_without_weights_every_scan_counts_the_same():
    task = classifier()
    batch = {"image": torch.randn(5, 1, 8, 8), "target": torch.tensor([0, 0, 0, 1, 2])}
    expected = F.cross_entropy(task.network(batch["image"]), batch["target"])
    torch.testing.assert_close(task.training_loss(batch), expected)


@pytest.mark.parametrize(("loss", "expected"), [("l1", 1.5), ("mse", 2.5), ("huber", 1.0)])
def test_the_loss_of_numbers_is_in_standard_deviations(loss, expected):
    task = regressor(loss=loss)
    task.target_mean.fill_(50)
    task.target_std.fill_(10)
    found = task.loss_of(torch.tensor([[0.0], [2.0]]), torch.tensor([[60.0], [50.0]]))  # off by 1 and 2
    assert float(found) == pytest.approx(expected)


def test_mean_and_spread_are_those_of_the_training_scans(ages, tmp_path):
    task, data = regressor(num_classes=2), ages(target=["age", "weight"])
    trainer = fit(task, data, tmp_path / "run", max_epochs=1)
    numbers = np.array([[case.attributes["age"], case.attributes["weight"]] for case in data.training])
    np.testing.assert_allclose(task.target_mean, numbers.mean(0), rtol=1e-6)
    np.testing.assert_allclose(task.target_std, numbers.std(0), rtol=1e-6)
    error = np.mean([float(trainer.callback_metrics[f"val_mae/{name}"]) for name in ("age", "weight")] / numbers.std(0))
    assert float(trainer.callback_metrics["val_error"]) == pytest.approx(error, rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_what_is_logged_of_classes_is_ours_over_all_scans(classes, pictures, tmp_path, stage):
    entries = [
        {"image": f"{kind}/{number}.png", "id": f"{kind}{number}", "class": kind} for kind in CLASSES for number in range(6)
    ]
    content = {"training": entries[:4] + entries[6:10] + entries[12:], "test": entries[4:6] + entries[10:12]}  # none of "right"
    (pictures / "dataset.json").write_text(json.dumps(content))
    task, data = classifier(seed=1), classes(batch_size=3)
    trainer = make_trainer(tmp_path / "run", task, max_epochs=1)
    if stage == "fit":
        trainer.fit(task, data)
    else:
        getattr(trainer, stage)(task, datamodule=data, verbose=False)
    cases, prefix = (data.test, "test") if stage == "test" else (data.validation, "val")
    truth, predicted = data.encode(cases).numpy(), answers_to(task, cases, data).argmax(1).numpy()
    metrics = trainer.callback_metrics
    assert float(metrics[f"{prefix}_accuracy"]) == pytest.approx((truth == predicted).mean())
    recalls = [(predicted[truth == index] == index).mean() if (truth == index).any() else math.nan for index in range(3)]
    found = [float(metrics[f"{prefix}_recall/{name}"]) for name in CLASSES]
    assert found == pytest.approx(recalls, nan_ok=True)
    assert float(metrics[f"{prefix}_balanced_accuracy"]) == pytest.approx(np.nanmean(recalls))
    table = printed(task.table(metrics, prefix))
    for name, recall, index in zip(CLASSES, recalls, range(3), strict=True):
        row = next(line for line in table.splitlines() if f" {name} " in line)
        assert ("not counted: absent" if math.isnan(recall) else f"{recall:.3f}") in row
        assert f" {(truth == index).sum()} " in row


def test_what_is_logged_of_numbers_is_ours_over_all_scans(ages, tmp_path):
    task, data = regressor(), ages(batch_size=2)
    trainer = fit(task, data, tmp_path / "run")
    for stage, prefix in (("validate", "val"), ("test", "test")):
        getattr(trainer, stage)(task, datamodule=data, verbose=False)
        cases = data.validation if prefix == "val" else data.test
        difference = (answers_to(task, cases, data) - data.encode(cases)).numpy().ravel()
        metrics = trainer.callback_metrics
        assert float(metrics[f"{prefix}_mae/age"]) == pytest.approx(np.abs(difference).mean(), rel=1e-4)
        assert float(metrics[f"{prefix}_rmse/age"]) == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-4)
        assert f" {float(metrics[f'{prefix}_mae/age']):.3f} " in printed(task.table(metrics, prefix))


def test_a_result_of_nothing_is_not_counted():
    assert printed(classifier().table({}, "val")).count("not counted") == 6
    assert "not counted: constant" in printed(regressor().table({}, "val"))


def test_the_best_checkpoint_is_that_of_the_best_score(ages, tmp_path, capsys):
    class Keep(pl.Callback):
        def __init__(self):
            self.errors = []

        def on_validation_end(self, trainer, pl_module):
            self.errors.append(float(trainer.callback_metrics["val_error"]))

    keep, task = Keep(), regressor(lr=0.3, schedule="constant")
    options = {"max_epochs": 6, "callbacks": [keep, TrainingProgress()], "enable_progress_bar": True, "num_sanity_val_steps": 0}
    trainer = fit(task, ages(), tmp_path / "run", **options)
    assert float(trainer.checkpoint_callback.best_model_score) == pytest.approx(min(keep.errors))
    assert torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["epoch"] == int(np.argmin(keep.errors))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    bests = [f"best {min(keep.errors[: place + 1]):.3f}" for place in range(6)]
    assert [line.split("  ")[-1] for line in lines] == bests
    assert f"error/sd {keep.errors[-1]:.3f}" in lines[-1]


# ---------------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_plain_data_that_tells_what_answers_mean(classes, ages, tmp_path):
    made = {"classification": (classifier(), classes()), "regression": (regressor(), ages())}
    for name, (task, data) in made.items():
        fit(task, data, tmp_path / name, max_epochs=1)
        described = torch.load(tmp_path / name / "best.ckpt", weights_only=True)["medseg_se"]
        assert json.loads(json.dumps(described)) == described
        assert described["task"] == name
        assert described["data"] == data.describe()
        assert described["network"]["name"] == "halves"
    assert described["targets"] == {"mean": task.target_mean.tolist(), "std": task.target_std.tolist()}
    loaded = RegressionTask.load_from_checkpoint(tmp_path / "regression" / "best.ckpt", weights_only=True)
    image = data.scan.read(data.test[0] if data.test else data.validation[0])[None]
    torch.testing.assert_close(loaded.eval()(image), task.eval()(image))
    assert loaded.value_names() == ["age"]
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "classification" / "best.ckpt", weights_only=True)
    assert loaded.class_names() == list(CLASSES)
    assert classifier().class_names() == ["0", "1", "2"]


class Stop(pl.Callback):
    """Interrupt the run before a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [2, 3, 5])  # within the first epoch, between two, within the second
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(classes, tmp_path, stop):
    def make(seed=0):
        return classifier(seed, lr=1e-2, class_weights="balanced"), classes()

    whole, data = make()
    fit(whole, data, tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(*make(), tmp_path / "parts", callbacks=[Stop(stop)])
    resumed, data = make(seed=5)
    trainer = make_trainer(tmp_path / "parts", resumed)
    trainer.fit(resumed, data, ckpt_path=tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert trainer.global_step == 6
    for name, value in resumed.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_numbers_of_a_checkpoint_are_judged_in_its_own_units(ages, heads, tmp_path):
    fit(regressor(), ages(), tmp_path / "run", max_epochs=1)
    trained = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["medseg_se"]["targets"]
    task, data = regressor(seed=3), ages(fold=1)
    make_trainer(tmp_path / "other", task).validate(
        task, datamodule=data, ckpt_path=tmp_path / "run" / "last.ckpt", verbose=False, weights_only=True
    )
    assert task.target_mean.tolist() == trained["mean"]


# -------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (classifier, {"network": "unet"}, "Expected a network for classification, but 'unet' is for segmentation"),
        (classifier, {"network": "halvs"}, "Unknown network 'halvs'. Did you mean 'halves'?"),
        (classifier, {"network_options": {"widht": 3}}, "Unknown option of network 'halves' 'widht'"),
        (classifier, {"class_weights": "fair"}, "Expected `class_weights` to be none or balanced, but got 'fair'"),
        (classifier, {"label_smoothing": 1.0}, "Expected `label_smoothing` to be at least 0 and below 1, but got 1.0"),
        (classifier, {"lr": 0}, "Expected `lr` to be positive, but got 0"),
        (classifier, {"discretise_after": 0.5}, "Expected `attention` with a choice to learn"),
        (regressor, {"loss": "l2"}, "Expected `loss` to be one of l1, mse, huber, but got 'l2'"),
        (regressor, {"optimizer": "adam"}, "Expected `optimizer` to be adamw or sgd, but got 'adam'"),
        (regressor, {"spatial_dims": 4}, "`spatial_dims`"),
    ],
)
def test_bad_values_are_refused_in_words(make, options, words):
    with pytest.raises(UsageError) as caught:
        make(**options)
    assert words in str(caught.value)


def test_a_network_for_whole_scans_does_not_segment():
    with pytest.raises(UsageError, match="Expected a network for segmentation, but 'halves' is for classification"):
        SegmentationTask(1, 3, network="halves")


@pytest.mark.parametrize("kind", ["classification", "regression", "segmentation"])
def test_data_for_another_task_are_refused(classes, ages, tmp_path, kind):
    task, data = {
        "classification": (classifier(spatial_dims=3), ages()),
        "regression": (regressor(spatial_dims=2), classes()),
        "segmentation": (SegmentationTask(1, 3, 2, channels=[4, 8]), classes()),
    }[kind]
    with pytest.raises(UsageError, match=f"Expected data for {kind}, but {type(data).__name__} is for"):
        fit(task, data, tmp_path / "run")


def test_balanced_weights_need_data_that_tell_their_classes(tmp_path):
    samples = [{"image": torch.zeros(1, 8, 8), "target": torch.tensor(0)}] * 4
    task = classifier(class_weights="balanced")
    with pytest.raises(UsageError, match="Expected a data module with `training_targets`"):
        make_trainer(tmp_path / "run", task).fit(task, torch.utils.data.DataLoader(samples))


def test_a_checkpoint_of_another_task_or_meaning_is_refused(classes, ages, pictures, tmp_path):
    fit(classifier(), classes(), tmp_path / "run", max_epochs=1)
    path = tmp_path / "run" / "last.ckpt"
    with pytest.raises(CheckpointError, match="Expected a checkpoint of a regression, but this one is of a classification"):
        RegressionTask.load_from_checkpoint(path, weights_only=True)
    (pictures / "left").rename(pictures / "lower")
    task = classifier()
    with pytest.raises(
        CheckpointError, match="whose classes are those of the data, dark, lower, right, but its are dark, left"
    ):
        make_trainer(tmp_path / "other", task).validate(task, datamodule=classes(), ckpt_path=path, weights_only=True)
    with pytest.raises(CheckpointError, match="another network: num_classes 3 instead of 2"):
        ClassificationTask.load_from_checkpoint(path, num_classes=2, weights_only=True)
