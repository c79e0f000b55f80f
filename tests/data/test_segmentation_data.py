import json
import logging

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from medseg_se.data.augmentation import Augmentation
from medseg_se.data.datalist import read_datalist
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import DataError, UsageError
from medseg_se.files import digest_of
from medseg_se.structures import Structures


@pytest.fixture
def dataset(tmp_path, write_decathlon):
    return write_decathlon(tmp_path / "data", cases=6, test=1, shape=(12, 11, 10), channels=2)


@pytest.fixture
def make(tmp_path, dataset):
    """Return a function that makes the data of a run from the tiny dataset, with what the test changes."""

    def build(**options):
        defaults = {
            "source": str(dataset),
            "folds": 3,
            "patch_size": [8, 6, 8],
            "store": str(tmp_path / "store"),
            "progress": False,
        }
        return SegmentationData(**{**defaults, **options})

    return build


def edit(dataset, change):
    content = json.loads((dataset / "dataset.json").read_text())
    change(content)
    (dataset / "dataset.json").write_text(json.dumps(content))


def ids(cases):
    return [case.id for case in cases]


# ----------------------------------------------------------------------------------------------------------------- the split


@pytest.mark.parametrize("fold", [0, 2])
def test_the_split_is_that_of_the_datalist(make, dataset, fold):
    data = make(fold=fold, split_seed=4)
    training, validation = read_datalist(dataset).fold(fold, 3, 4)
    data.setup("fit")
    assert ids(data.training) == ids(training)
    assert ids(data.validation) == ids(validation)
    assert not set(ids(data.training)) & set(ids(data.validation))
    assert len(data.training) + len(data.validation) == 6


def test_groups_are_not_parted_and_folds_of_the_dataset_are_taken(make, dataset):
    edit(
        dataset, lambda content: [entry.update(group=f"patient{place // 2}") for place, entry in enumerate(content["training"])]
    )
    for fold in range(3):
        training, validation = make(fold=fold).split()
        assert len(validation) == 2
        assert not {case.group for case in training} & {case.group for case in validation}
    edit(
        dataset,
        lambda content: [entry.update(fold=int(place == 3), group=None) for place, entry in enumerate(content["training"])],
    )
    assert ids(make(fold=1).split()[1]) == ["case_03"]


def test_without_a_fold_every_case_is_trained_on_and_a_warning_says_what_that_means(make, caplog):
    data = make(fold=None)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert ids(data.training) == ids(data.validation) == [f"case_{number:02d}" for number in range(6)]
    assert "says nothing about new scans" in caplog.text
    assert data.describe()["validation"] == []
    assert len(data.describe()["training"]) == 6


def test_test_cases_of_the_dataset_are_never_touched(make):
    data = make(fold=None)
    data.setup("fit")
    assert "case_06" not in ids(data.training)


def test_cases_are_prepared_once(make, monkeypatch):
    data = make()
    data.setup("fit")
    first = data.training
    monkeypatch.setattr("medseg_se.data.segmentation.prepare_cases", lambda *_, **__: pytest.fail("prepared again"))
    data.setup("validate")
    assert data.training is first


# ---------------------------------------------------------------------------------------------------------------- the loaders


def test_training_batches_have_the_patch_size_and_number_asked_for(make):
    data = make(batch_size=3, batches_per_epoch=4, num_workers=0)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 4
    for batch in batches:
        assert batch["image"].shape == (3, 2, 8, 6, 8)
        assert batch["image"].dtype == torch.float32
        assert batch["labels"].shape == (3, 8, 6, 8)
        assert batch["labels"].dtype == torch.int64
        assert set(batch["labels"].unique().tolist()) <= {0, 1, 2}


def test_epochs_have_different_patches_and_a_seed_makes_them_the_same_again(make):
    def epoch(number, **options):
        data = make(batches_per_epoch=2, num_workers=0, **options)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([batch["image"] for batch in loader])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, seed=1))


@pytest.mark.parametrize(("slice_axis", "flat"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
@pytest.mark.parametrize("orientation", ["RAS", "PIR"])
def test_slices_for_a_2d_network(make, slice_axis, flat, orientation):
    data = make(patch_size=[8, 6], slice_axis=slice_axis, orientation=orientation, num_workers=0)
    letters = ("LR", "AP", "IS")[flat]
    assert orientation[data.flat_axis] in letters
    assert data.spatial_dims == 2
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 2, 8, 6)
    assert batch["labels"].shape == (2, 8, 6)
    assert data.describe()["tile"][data.flat_axis] == 1
    assert [size for size in data.describe()["tile"] if size != 1] == [8, 6]


def test_whole_scans_are_the_validation_cases_as_prepared(make):
    data = make()
    data.setup("validate")
    for loader in (data.whole_scans(), data.val_dataloader()):
        batches = list(loader)
        assert len(batches) == len(data.validation) == 2
        for batch, case in zip(batches, data.validation, strict=True):
            np.testing.assert_array_equal(batch["image"][0], case.image())
            np.testing.assert_array_equal(batch["labels"][0], case.labels())
            torch.testing.assert_close(batch["lowest"][0], torch.tensor(case.lowest))
            assert batch["image"].shape == (1, 2, 12, 11, 10)


def test_preprocessing_and_augmentation_are_those_asked_for(make):
    data = make(
        orientation="lps", spacing=[2, 1, 1.5], crop="nonzero", intensity="window", window=(0.0, 200.0), mirror=["left-right"]
    )
    assert data.preprocessing == Preprocessing("LPS", (2.0, 1.0, 1.5), "nonzero", "window", (0.0, 200.0))
    assert data.augmentation == Augmentation(mirror=("left-right",))
    assert make(rotation=3, elastic=2, noise=0.5).augmentation == Augmentation(rotation=3, elastic=2, noise=0.5)


def test_mirroring_without_sides_is_mentioned(make, caplog):
    with caplog.at_level(logging.INFO):
        make(mirror=["left-right"])
    assert "no structure has a left and a right" in caplog.text


def test_a_cpu_takes_no_workers_unless_asked(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = make()
    data.setup("fit")
    assert data.train_dataloader().num_workers == 0
    data.num_workers = 2
    assert data.train_dataloader().num_workers == 2


class Watching(pl.LightningModule):
    """A model that keeps the batches it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.batches = torch.nn.Parameter(torch.zeros(())), {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.batches["train"].append(batch)
        return self.weight * batch["image"].mean()

    def validation_step(self, batch, batch_idx):
        self.batches["val"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("options", [{}, {"patch_size": [8, 6], "slice_axis": "coronal"}], ids=["volumes", "slices"])
def test_patches_changed_on_the_device_are_those_that_workers_change(make, tmp_path, options):
    def batches(**more):
        strong = {"spatial_probability": 0.8, "elastic": 1.0, "mirror": ["left-right"], "intensity_probability": 0.5}
        data = make(batch_size=3, batches_per_epoch=3, **strong, **options, **more)
        model = Watching()
        pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(model, data)
        return model.batches

    by_workers, on_device = batches(num_workers=0), batches(num_workers=1, augment_on="device")
    for stage, count in (("train", 3), ("val", 1)):
        assert len(by_workers[stage]) == len(on_device[stage]) == count
        for first, second in zip(by_workers[stage], on_device[stage], strict=True):
            assert torch.equal(second["labels"], first["labels"])
            torch.testing.assert_close(second["image"], first["image"], atol=1e-4, rtol=1e-5)


def test_patches_changed_on_a_cpu_do_not_depend_on_its_threads(make, tmp_path, write_decathlon):
    source = write_decathlon(tmp_path / "large", cases=3, shape=(44, 43, 42))
    strong = {"spatial_probability": 1.0, "elastic": 2.0, "intensity_probability": 1.0}
    data = make(source=str(source), patch_size=[40, 40, 40], augment_on="device", num_workers=0, batches_per_epoch=4, **strong)
    data.setup("fit")
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append([data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()])
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one["image"], three["image"])
        assert torch.equal(one["labels"], three["labels"])


def test_weights_are_those_of_the_named_structures(make):
    names = make().structures.names
    assert make().settings.weights == (1.0, 1.0)
    assert make(sampling_weights={names[1]: 2.5}).settings.weights == (1.0, 2.5)
    assert make(sampling_weights={names[0]: 0}).settings.weights == (0.0, 1.0)
    with pytest.raises(UsageError, match=r"leave a structure .* but all are 0"):
        make(sampling_weights=dict.fromkeys(names, 0.0))
    with pytest.raises(UsageError, match=rf"Unknown structure in `sampling_weights` '{names[1]}s'. Did you mean '{names[1]}'"):
        make(sampling_weights={f"{names[1]}s": 1.0})
    with pytest.raises(UsageError, match=r"weights of at least 0 in `sampling_weights`, but got -1"):
        make(sampling_weights={names[1]: -1.0})


def test_each_channel_may_be_scaled_in_its_own_way(make):
    data = make(intensity=["minmax", "dataset"], window=[[0, 100], [-5, 200]], mean=[0.0, 40.0], deviation=[1.0, 10.0])
    assert data.preprocessing.intensity == ("minmax", "dataset")
    assert data.preprocessing.window == ((0, 100), (-5, 200))
    data.setup("fit")
    first = np.array(data.training[0].image())
    assert (first[0].min(), first[0].max()) == (0, 1)
    assert first[1].min() >= -4.5
    assert first[1].max() <= 16
    with pytest.raises(UsageError, match="one for each of 2, but got 3"):
        make(intensity=["minmax", "zscore", "none"])


# ------------------------------------------------------------------------------------------------------------ what it tells


def test_the_description_is_plain_data_that_inference_can_read(make, dataset):
    data = make(spacing=[1.0, 1.0, 2.0], orientation="LAS")
    data.setup("fit")
    described = json.loads(json.dumps(data.describe()))
    assert described == data.describe()
    assert Structures.from_dict(described["structures"]) == data.structures
    assert Preprocessing.from_dict(described["preprocessing"]) == data.preprocessing
    assert described["channels"] == ["T1", "T2"]
    assert described["label_dtype"] == "uint8"
    assert described["patch_size"] == described["tile"] == [8, 6, 8]
    assert described["slice_axis"] is described["flat_axis"] is None
    training, validation = read_datalist(dataset).fold(0, 3, 0)
    assert described["training"] == [digest_of(case.images) for case in training]
    assert described["validation"] == [digest_of(case.images) for case in validation]


def test_sizes_for_the_network_are_known_before_anything_is_read(make):
    data = make()
    assert (data.num_classes, data.in_channels, data.spatial_dims) == (3, 2, 3)
    assert data.training == []


def test_structures_can_be_given_by_file(make, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"both": [1, 2]}))
    data = make(structures=str(tmp_path / "labels.json"))
    data.setup("fit")
    assert data.num_classes == 2
    assert set(np.unique(data.training[0].labels())) == {0, 1}


# -------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": [8, 8]}, "Expected `patch_size` to be three positive numbers, but got [8, 8]"),
        ({"patch_size": [8, 8, 0]}, "three positive numbers, but got [8, 8, 0]"),
        ({"patch_size": []}, "three positive numbers, but got []"),
        ({"slice_axis": "axial"}, "two positive numbers for a 2D network, but got [8, 6, 8]"),
        ({"slice_axis": "oblique"}, "Expected `slice_axis` to be one of sagittal, coronal, axial, but got 'oblique'"),
        ({"slice_axis": "axial", "patch_size": [8, 8], "orientation": "RAX"}, "Expected `orientation` to name three axes"),
        ({"foreground": 1.2}, "Expected `foreground` between 0 and 1, but got 1.2"),
        ({"foreground": -0.1}, "Expected `foreground` between 0 and 1"),
        ({"batch_size": 0}, "Expected `batch_size` to be at least 1, but got 0"),
        ({"batches_per_epoch": -3}, "Expected `batches_per_epoch` to be at least 1, but got -3"),
        ({"num_workers": -1}, "Expected `num_workers` to be at least 0, but got -1"),
        ({"augment_on": "gpu"}, "Expected `augment_on` to be workers or device, but got 'gpu'"),
        ({"storage": "zip"}, "Unknown storage 'zip'"),
        ({"seed": -1}, "Expected `seed` to be at least 0, but got -1"),
        ({"spacing": [1.0, 1.0]}, "Expected `spacing` to be three positive numbers in mm, but got [1.0, 1.0]"),
        ({"spacing": [1.0, 0.0, 1.0]}, "Expected `spacing` to be three positive numbers in mm"),
        ({"intensity": "zscores"}, "Expected `intensity` to be one of"),
        ({"mirror": ["up"]}, "Expected `mirror` to hold some of left-right"),
        ({"rotation": -5}, "Expected `rotation` between 0 and 180, but got -5"),
        ({"intensity": "dataset"}, "Expected `mean` and `deviation` of the dataset's intensities"),
        ({"intensity": ["zscore", "dataset"], "mean": 3.0}, "Expected `mean` and `deviation` of the dataset's intensities"),
    ],
    ids=str,
)
def test_bad_values_are_refused_before_anything_is_read(make, options, words):
    with pytest.raises(UsageError) as caught:
        make(**options)
    assert words in str(caught.value)


def test_a_fold_that_does_not_exist_is_refused(make):
    with pytest.raises(UsageError, match="Expected `fold` between 0 and 2, but got 3"):
        make(fold=3).setup("fit")


def test_a_source_that_does_not_exist_is_refused(make, tmp_path):
    with pytest.raises(DataError, match="No such dataset"):
        make(source=str(tmp_path / "nowhere"))


def test_a_dataset_without_labelled_cases_cannot_train(make, dataset):
    edit(dataset, lambda content: content.update(training=[]))
    with pytest.raises(DataError, match="no case with a label map to train on"):
        make().setup("fit")
