"""Training on synthetic scans: of label maps alone, and mixed with real ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from medseg_se.cli.main import main
from medseg_se.data.intensity import Scaling
from medseg_se.data.phantom import write_phantoms
from medseg_se.data.sampling import PatchDataset, RawPatches
from medseg_se.data.segmentation import SegmentationData
from medseg_se.data.synthetic_scan import rescale
from medseg_se.errors import UsageError
from medseg_se.inference.model import Model


@pytest.fixture
def dataset(tmp_path, write_decathlon):
    return write_decathlon(tmp_path / "data", cases=6, test=0, shape=(24, 22, 20), channels=1)


@pytest.fixture
def alone(dataset):
    """The same dataset without its scans."""
    content = json.loads((dataset / "dataset.json").read_text())
    for entry in content["training"]:
        (dataset / entry["image"]).unlink()
        entry["image"] = None
    (dataset / "dataset.json").write_text(json.dumps(content))
    return dataset


def make(source, **options):
    defaults = {
        "folds": 3,
        "foreground": 1.0,
        "patch_size": [16, 12, 16],
        "store": str(source.parent / "store"),
        "progress": False,
    }
    data = SegmentationData(str(source), **{**defaults, **options})
    data.setup("fit")
    return data


def patches(data, share=None):
    maker = data.synthesiser if share is None else replace(data.synthesiser, share=share)
    return PatchDataset(data.training, data.settings, data.augmentation, data.structures, maker)


def test_label_maps_alone_give_patches_with_an_image_of_every_channel(alone):
    content = json.loads((alone / "dataset.json").read_text())
    content["modality"] = {"0": "T1", "1": "T2"}
    (alone / "dataset.json").write_text(json.dumps(content))
    data = make(alone, intensity="zscore")
    assert {case.channels for case in data.training} == {0}
    drawn = patches(data)
    for number in range(6):
        sample = drawn[number]
        assert sample["image"].shape == (2, 16, 12, 16)
        assert sample["image"].dtype == torch.float32
        torch.testing.assert_close(sample["image"].mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)
        assert not torch.equal(sample["image"][0], sample["image"][1])


def test_a_share_of_the_patches_is_synthetic_and_the_rest_stay_as_they_were(dataset):
    data = make(dataset)
    real, mixed = patches(data), patches(data, 0.5)
    made = [mixed.draw(number).synthetic is not None for number in range(200)]
    assert 70 < sum(made) < 130
    for number in range(8):
        same = torch.equal(real[number]["image"], mixed[number]["image"])
        assert same != made[number]
    assert not any(real.draw(number).synthetic for number in range(20))


def test_scans_and_label_maps_alone_train_together(dataset):
    content = json.loads((dataset / "dataset.json").read_text())
    for entry in content["training"][::2]:
        entry["image"] = None
    (dataset / "dataset.json").write_text(json.dumps(content))
    data = make(dataset)
    drawn = patches(data)
    alone = [drawn.cases[drawn.draw(number).case].channels == 0 for number in range(12)]
    assert set(alone) == {True, False}
    assert [drawn.draw(number).synthetic is not None for number in range(12)] == alone
    assert {tuple(drawn[number]["image"].shape) for number in range(12)} == {(1, 16, 12, 16)}


def test_the_intensities_of_a_synthetic_patch_owe_nothing_to_the_scan(dataset, tmp_path, write_decathlon):
    data = make(dataset, synthetic=1.0)
    other = make(dataset, synthetic=1.0, intensity="minmax", window=[0.0, 1.0])
    for number in range(4):
        assert torch.equal(patches(data)[number]["labels"], patches(other)[number]["labels"])
    assert all(patches(data).draw(number).synthetic is not None for number in range(20))
    raw = patches(data).read(patches(data).draw(0))
    assert raw.patch.image.numel() == 0  # the scan is not even read


@pytest.mark.parametrize("options", [{}, {"patch_size": [16, 12], "slice_axis": "coronal"}], ids=["3D", "2D"])
def test_synthetic_patches_repeat_and_are_the_same_on_the_device(alone, options):
    data = make(alone, mirror=["left-right"], **options)
    drawn = patches(data)
    for number in range(4):
        once, again, later = drawn[number], drawn[number], RawPatches(drawn)[number].finished()
        for name in once:
            assert torch.equal(once[name], again[name])
            torch.testing.assert_close(once[name], later[name], atol=1e-5, rtol=1e-5)
        assert once["image"].shape == (1, *data.patch_size)


@pytest.mark.parametrize("shape", [(256, 256, 8), (64, 64, 48)])
def test_percentiles_of_a_synthetic_scan_see_all_of_it(shape):
    """Also where the first planes hold nothing, as those of a whole head."""
    scan = torch.from_numpy(np.random.default_rng(0).gamma(2.0, 1.0, shape).astype(np.float32))
    scan[:, :, : shape[2] // 4] = 0
    scaling = Scaling("percentile", (0.0, 1.0), 0.0, 1.0)
    found = rescale(scan[None, None], [scaling])[0, 0]
    np.testing.assert_allclose(found, scaling(scan.numpy()), atol=0.05)


def test_mirrored_patches_of_label_maps_change_sides(dataset):
    """With nothing bent, the left spot stays to the left of the right one, whatever is mirrored."""
    content = json.loads((dataset / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "left spot", "2": "right spot"}  # in the files, 1 has the lower R coordinate
    (dataset / "dataset.json").write_text(json.dumps(content))
    still = {"rotation": 0.0, "scaling": [1.0, 1.0], "shearing": 0.0, "warp": 0.0}
    data = make(dataset, synthetic=1.0, mirror=["left-right"], synthesis=still, patch_size=[24, 22, 20])
    drawn = patches(data)
    mirrored = [bool(drawn.draw(number).spatial.mirrored) for number in range(12)]
    assert set(mirrored) == {True, False}
    for number in range(12):
        labels = drawn[number]["labels"]
        left, right = (torch.nonzero(labels == index)[:, 0].float().mean() for index in (1, 2))
        assert left < right


def test_validation_of_label_maps_alone_sees_the_same_scans_each_time(alone):
    data = make(alone)
    first, again = ([sample["image"] for sample in data.whole_scans()] for _ in range(2))
    for one, other, case in zip(first, again, data.validation, strict=True):
        assert torch.equal(one, other)
        assert one.shape == (1, 1, *case.shape)
        assert one.std() > 0
    assert not torch.equal(first[0], first[1])
    for sample in data.whole_scans():
        assert torch.equal(sample["lowest"][0], sample["image"][0].amin(dim=(1, 2, 3)))


def test_real_scans_are_validated_as_they_are(dataset):
    plain, synthetic = make(dataset), make(dataset, synthetic=1.0)
    for one, other in zip(plain.whole_scans(), synthetic.whole_scans(), strict=True):
        assert torch.equal(one["image"], other["image"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"synthetic": 1.5}, "Expected `synthetic` between 0 and 1, but got 1.5"),
        ({"synthesis": {"contrst": "t1"}}, "Unknown range in `synthesis` 'contrst'. Did you mean 'contrast'?"),
        ({"synthesis": {"means": 3.0}}, "Expected `means` of synthetic scans to be a lower and a higher number, but got 3.0"),
        ({"synthesis": {"means": [200.0, 20.0]}}, "Expected `means` of synthetic scans"),
        ({"synthesis": {"noise": "much"}}, "Expected `noise` of synthetic scans to be a number, but got 'much'"),
        ({"synthesis": {"contrast": "t2"}}, "Expected `contrast` of synthetic scans to be one of random, t1, but got 't2'"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(dataset, options, words):
    with pytest.raises(UsageError) as caught:
        make(dataset, **options)
    assert words in str(caught.value)


def test_a_network_trains_on_label_maps_alone_from_the_command_line(alone, tmp_path, monkeypatch, put_back):
    monkeypatch.chdir(tmp_path)
    config = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "precision": "32-true", "default_root_dir": "run"},
        "model": {"class_path": "medseg_se.tasks.SegmentationTask", "init_args": {"channels": [4, 8], "network": "unet"}},
        "data": {
            "class_path": "medseg_se.data.segmentation.SegmentationData",
            "init_args": {
                "source": str(alone),
                "folds": 3,
                "patch_size": [8, 8, 8],
                "batches_per_epoch": 2,
                "synthesis": {"head": 1.0, "means": [50.0, 200.0]},
            },
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml"]) == 0
    model = Model.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert model.channels == ("T1",)
    assert model.structures.names == ("near", "far")


def test_training_on_synthetic_heads_says_something_about_scans_it_never_saw(tmp_path):
    """The generator's scans are like real ones enough that a lookup by brightness order learnt on them beats chance."""
    write_phantoms(tmp_path / "data", "brain", training=4, test=0, resolution=8.0)
    data = make(tmp_path / "data", synthetic=1.0, patch_size=[16, 16, 16], folds=2, synthesis={"contrast": "t1", "head": 0.0})
    white = data.structures.index("Left-Cerebral-White-Matter")
    cortex = data.structures.index("Left-Cerebral-Cortex")
    brighter = []
    drawn = patches(data)
    for number in range(24):
        sample = drawn[number]
        inside = [sample["image"][0][sample["labels"] == index] for index in (white, cortex)]
        if min(map(len, inside)) > 20:
            brighter.append(float(inside[0].mean()) > float(inside[1].mean()))
    assert np.mean(brighter) > 0.8
