"""Losses of a segmentation by name: weights that follow from the data, and regions from training to label maps."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from medseg_se.data.datalist import read_datalist
from medseg_se.data.phantom import write_phantoms
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import CheckpointError, DataError, UsageError
from medseg_se.inference.ensemble import Ensemble
from medseg_se.inference.model import Model
from medseg_se.losses import BoundaryLoss, FocalTverskyLoss
from medseg_se.planning.fingerprint import measure
from medseg_se.tasks import SegmentationTask
from medseg_se.volumes import read_image, read_labels

SHAPE = (16, 14, 12)
NESTED = ["both", "far"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")


@pytest.fixture
def dataset(tmp_path, write_decathlon):
    """Return a dataset of structures near and far, of which both is a region."""
    folder = write_decathlon(tmp_path / "data", cases=6, test=0, shape=SHAPE)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "regions": {"both": ["near", "far"]}}))
    return folder


@pytest.fixture
def make_data(tmp_path, dataset):
    def build(**options):
        defaults = {"folds": 3, "patch_size": [12, 12, 12], "batches_per_epoch": 3, "num_workers": 0, "progress": False}
        return SegmentationData(str(dataset), store=str(tmp_path / "store"), **{**defaults, **options})

    return build


def make_task(num_classes=3, seed=0, **options):
    torch.manual_seed(seed)
    defaults = {"in_channels": 1, "channels": [4, 8], "deep_supervision": False}
    return SegmentationTask(num_classes=num_classes, **{**defaults, **options})


def of_regions(**options):
    return make_task(2, loss="dice_bce_regions", **options)


def make_trainer(root, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=root, accelerator="cpu", **{"max_epochs": 1, **quiet, **options})


def fit(task, data, root, **options):
    trainer = make_trainer(root, **options)
    trainer.fit(task, data)
    trainer.save_checkpoint(root / "model.ckpt")
    return trainer, root / "model.ckpt"


# --------------------------------------------------------------------------------------------------------------- by their names


@pytest.mark.parametrize(
    ("options", "kind", "values"),
    [
        ({"loss": "focal_tversky", "loss_options": {"gamma": 2.0, "batch_dice": False}}, FocalTverskyLoss, {"gamma": 2.0}),
        ({"loss": "boundary", "dice_weight": 0.5, "edge_weight": 3.0}, BoundaryLoss, {"dice_weight": 0.5, "edge_weight": 3.0}),
        ({"loss": "boundary", "loss_options": {"boundary_weight": 0.2}}, BoundaryLoss, {"boundary_weight": 0.2}),
    ],
)
def test_losses_train_by_name(make_data, tmp_path, options, kind, values):
    task = make_task(**options)
    trainer, _ = fit(task, make_data(), tmp_path / "run")
    assert type(task.loss.loss) is kind
    assert {name: getattr(task.loss.loss, name) for name in values} == values
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    assert 0 <= float(trainer.callback_metrics["val_dice"]) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dice"}, r"Unknown loss 'dice'.*boundary, dice_bce_regions, dice_ce, focal_tversky"),
        ({"loss": "focal_tversky", "dice_weight": 1.0}, "Unknown option of loss 'focal_tversky' 'dice_weight'"),
        (
            {"loss": "focal_tversky", "class_weights": "median_frequency"},
            "Unknown option of loss 'focal_tversky' 'class_weights'",
        ),
        ({"loss": "dice_bce_regions", "edge_weight": 1.0}, "Unknown option of loss 'dice_bce_regions' 'edge_weight'"),
        ({"loss_options": {"gamma": 1.0}}, "Unknown option of loss 'dice_ce' 'gamma'"),
        (
            {"class_weights": "balanced"},
            "to be none, median_frequency, root_median_frequency, or a weight for each structure, but got 'balanced'",
        ),
        ({"class_weights": {"near": -1.0}}, "weights of at least 0"),
        ({"edge_weight": "auto"}, "`class_weights` where `edge_weight` is auto"),
    ],
)
def test_what_a_loss_does_not_have_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make_task(**options)


# -------------------------------------------------------------------------------------------------------------- class weights


def test_frequencies_are_those_of_the_fingerprint(tmp_path):
    source = write_phantoms(tmp_path / "phantoms", "brain", training=3, test=0, resolution=8.0)
    data = SegmentationData(str(source), fold=None, store=str(tmp_path / "store"), num_workers=0, progress=False)
    data.setup("fit")
    fingerprint = measure(read_datalist(source), workers=1, progress=False)
    of_structures = [structure.frequency for structure in fingerprint.structures]
    assert data.class_frequencies() == pytest.approx([fingerprint.background, *of_structures], rel=1e-12)
    assert len(set(data.class_frequencies())) > 3


def weights_of(task):
    return task.loss.loss.class_weights.tolist()


def test_weights_follow_from_the_training_cases_and_stay_in_the_checkpoint(make_data, tmp_path):
    data, task = make_data(), make_task(class_weights="median_frequency", edge_weight="auto")
    _, path = fit(task, data, tmp_path / "run")
    shares = [(np.concatenate([case.labels().ravel() for case in data.training]) == index).mean() for index in range(3)]
    expected = [np.median(shares) / share for share in shares]
    assert weights_of(task) == pytest.approx(expected, rel=1e-6)
    assert min(expected) < 0.1 < 0.9 < max(expected)

    again = make_task(class_weights="median_frequency")
    make_trainer(tmp_path / "run", max_epochs=2).fit(again, make_data(), ckpt_path=path)
    assert weights_of(again) == weights_of(task)
    gentler = make_task(class_weights="root_median_frequency")
    fit(gentler, make_data(), tmp_path / "gentler")
    assert weights_of(gentler) == pytest.approx([weight**0.5 for weight in expected], rel=1e-6)
    other = make_data()
    other.class_frequencies = lambda: pytest.fail("the checkpoint has the weights")
    later = make_task(class_weights="median_frequency")
    make_trainer(tmp_path / "run").validate(later, other, ckpt_path=path, verbose=False)
    assert weights_of(later) == weights_of(task)


def test_weights_may_be_given_by_name(make_data, tmp_path):
    task = make_task(class_weights={"far": 2.5, "background": 0.1})
    fit(task, make_data(), tmp_path / "run")
    assert weights_of(task) == pytest.approx([0.1, 1.0, 2.5])
    with pytest.raises(UsageError, match=r"Unknown structure in `class_weights` 'fare'.*'far'.*background, far, near"):
        fit(make_task(class_weights={"fare": 2.0}), make_data(), tmp_path / "other")


def test_weights_need_data_that_tell_them(make_data, tmp_path):
    data = make_data()
    data.setup("fit")
    with pytest.raises(UsageError, match="data module with `class_frequencies`"):
        make_trainer(tmp_path / "run").fit(make_task(class_weights="median_frequency"), data.train_dataloader())


def test_a_run_that_goes_on_takes_the_weights_that_it_is_told_to(make_data, tmp_path):
    _, named = fit(make_task(class_weights={"far": 5.0}), make_data(), tmp_path / "named")
    _, plain = fit(make_task(), make_data(), tmp_path / "plain")
    reference = make_task(class_weights="median_frequency")
    fit(reference, make_data(), tmp_path / "reference")
    for path in (named, plain):
        balanced = make_task(class_weights="median_frequency")
        make_trainer(tmp_path, max_epochs=2).fit(balanced, make_data(), ckpt_path=path)
        assert weights_of(balanced) == weights_of(reference)
    unweighted = make_task()
    make_trainer(tmp_path, max_epochs=2).fit(unweighted, make_data(), ckpt_path=named)
    assert unweighted.loss.loss.class_weights is None
    trainer = make_trainer(tmp_path)
    for task in (make_task(class_weights="median_frequency"), make_task(class_weights={"far": 3.0})):
        trainer.validate(task, make_data(), ckpt_path=plain, verbose=False)
    assert 0 <= float(trainer.callback_metrics["val_scan_dice"]) <= 1


def test_structures_in_another_order_are_refused(make_data, tmp_path):
    _, path = fit(make_task(), make_data(), tmp_path / "run")
    turned = tmp_path / "turned.json"
    turned.write_text(json.dumps({"labels": {"background": 0, "far": 2, "near": 1}}))
    for what in ("fit", "validate"):
        with pytest.raises(CheckpointError, match=r"in their order: far, near; but got near, far\. .*`--model.start_from`"):
            getattr(make_trainer(tmp_path, max_epochs=2), what)(make_task(), make_data(structures=str(turned)), ckpt_path=path)


@pytest.mark.parametrize(("then", "now", "advice"), [(0.0, 0.9, "set `--model.ema 0`"), (0.9, 0.0, "as then")])
def test_an_average_that_one_of_both_has_is_said(make_data, tmp_path, then, now, advice):
    _, path = fit(make_task(ema=then), make_data(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=advice):
        make_trainer(tmp_path).validate(make_task(ema=now), make_data(), ckpt_path=path, verbose=False)


# -------------------------------------------------------------------------------------------------------------------- regions


@pytest.fixture
def trained(make_data, tmp_path):
    """Return a run of regions on the tiny dataset: its task, data, trainer and checkpoint."""
    data = make_data(targets=NESTED, fold=None, spatial_probability=0.0, batches_per_epoch=12)
    task = of_regions(lr=2e-2, channels=[8, 16])
    trainer, path = fit(task, data, tmp_path / "run", max_epochs=3)
    return task, data, trainer, path


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_regions_are_learnt_and_become_label_maps(trained, tmp_path):
    task, data, trainer, path = trained
    assert (data.num_classes, task.structure_names()) == (2, NESTED)
    assert float(trainer.callback_metrics["val_dice"]) > 0.8
    assert {f"val_dice/{name}" for name in NESTED} <= set(trainer.callback_metrics)
    model, case = Model.load(path, "cpu"), data.datalist.training[0]
    prediction = model.predict(read_image(case.images[0]), probabilities=True)
    found, truth = prediction.labels.array[0], read_labels(case.label).array[0]
    assert set(np.unique(found)) == {0, 1, 2}
    assert dice(found > 0, truth > 0) > 0.8
    assert dice(found == 2, truth == 2) > 0.8
    both, far = prediction.probabilities.array
    assert np.array_equal(found, np.where(far > 0.5, 2, np.where(both > 0.5, 1, 0)))


def test_whole_scans_are_judged_by_region(trained, make_data, tmp_path):
    _, data, _, path = trained
    trainer = make_trainer(tmp_path)
    trainer.validate(of_regions(channels=[8, 16]), data, ckpt_path=path, verbose=False)
    model = Model.load(path, "cpu")
    expected = {name: [] for name in NESTED}
    for case in data.datalist.training:
        both, far = model.predict(read_image(case.images[0]), probabilities=True).probabilities.array > 0.5
        truth = read_labels(case.label).array[0]
        expected["both"].append(dice(both, truth > 0))
        expected["far"].append(dice(far, truth == 2))
    for name, values in expected.items():
        assert float(trainer.callback_metrics[f"val_scan_dice/{name}"]) == pytest.approx(np.mean(values), abs=0.01)


def test_an_ensemble_averages_the_probabilities_of_regions(make_data, tmp_path):
    paths = []
    for seed, targets in enumerate((NESTED, NESTED[::-1])):  # in an order of their own
        _, path = fit(of_regions(seed=seed, lr=1e-2), make_data(targets=targets), tmp_path / str(seed))
        paths.append(path)
    models = [Model.load(path, "cpu") for path in paths]
    image = read_image(make_data().datalist.training[0].images[0])
    ensemble = Ensemble(models, (0.75, 0.25))
    answer = ensemble.predict(image, probabilities=True)
    apart = {model.regions.names: model.predict(image, probabilities=True).probabilities.array for model in models}
    forth, back = apart[tuple(NESTED)], apart[tuple(NESTED[::-1])][::-1]
    mean = 0.75 * forth + 0.25 * back
    answered = answer.probabilities.array if ensemble.regions.names == tuple(NESTED) else answer.probabilities.array[::-1]
    np.testing.assert_allclose(answered, mean, atol=1e-6)
    assert np.array_equal(answer.labels.array[0], np.where(answered[1] > 0.5, 2, np.where(answered[0] > 0.5, 1, 0)))
    _, other = fit(make_task(), make_data(), tmp_path / "structures")
    with pytest.raises(CheckpointError, match=r"Expected checkpoints that find the same, but .* both, far"):
        Ensemble([models[0], Model.load(other, "cpu")])


def test_what_was_cut_away_is_in_no_region(make_data, tmp_path):
    _, path = fit(of_regions(), make_data(targets=NESTED, crop="nonzero"), tmp_path / "run")
    image = read_image(make_data().datalist.training[0].images[0])
    image.array[:, :3] = 0
    answer = Model.load(path, "cpu").predict(image, probabilities=True)
    assert (answer.probabilities.array[:, :3] == 0).all()
    assert (answer.labels.array[:, :3] == 0).all()
    assert (answer.probabilities.array[:, 4] > 0).all()


def test_loss_and_targets_have_to_agree(make_data, tmp_path):
    with pytest.raises(UsageError, match="`targets` are regions where `loss` is dice_bce_regions, but got structures"):
        make_trainer(tmp_path).fit(of_regions(), make_data())
    with pytest.raises(UsageError, match="`loss` to be dice_bce_regions for data whose `targets` are both, far"):
        make_trainer(tmp_path).fit(make_task(2), make_data(targets=NESTED))
    with pytest.raises(DataError, match=r"'both' to add one structure .* but it adds near, far"):
        make_data(targets="regions")


def test_a_run_does_not_go_on_with_other_targets(make_data, tmp_path):
    _, path = fit(of_regions(), make_data(targets=NESTED), tmp_path / "run")
    with pytest.raises(CheckpointError, match="that finds near, far, as the data say, but it finds both, far"):
        make_trainer(tmp_path, max_epochs=2).fit(of_regions(), make_data(targets=["near", "far"]), ckpt_path=path)
