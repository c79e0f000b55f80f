import gzip
import os
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from known_network import NearestLevel, checkpoint_content, write_checkpoint

from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import OutputError
from medseg_se.inference import passage
from medseg_se.inference.ensemble import Ensemble
from medseg_se.inference.model import Model
from medseg_se.inference.settings import Settings
from medseg_se.networks import NETWORKS
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image, write_volume

VALUES = np.array([0, 7, 300])
UNET = {"channels": [4, 8]}
FINER = Preprocessing("SRA", (1.3, 0.7, 2.1))


@pytest.fixture(autouse=True, scope="module")
def _plugged_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "nearest_level", NearestLevel)
        yield


@pytest.fixture
def load(tmp_path):
    def make(**choices):
        return Model.load(write_checkpoint(tmp_path / "model.ckpt", **choices), "cpu")

    return make


def smooth(*shape, seed=0):
    """A scan of a few large areas, so that the network's answer has areas too."""
    coarse = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 3, 3, 3)).astype(np.float32))
    return F.interpolate(coarse, size=shape, mode="trilinear")[0].numpy()


# ------------------------------------------------------------------------------------------------- streamed and at once alike


@pytest.mark.parametrize("lies", ["RAS", "LPI", "SAL", "IPR"])
@pytest.mark.parametrize("spacing", [None, (1.3, 0.7, 2.1), (0.4, 0.5, 0.9)])
def test_a_scan_is_segmented_as_if_all_logits_were_resampled_at_once(load, make_affine, lies, spacing):
    model = load(network="unet", options=UNET, preprocessing=Preprocessing("PIR", spacing))
    image = Volume(smooth(21, 15, 18), make_affine(lies, (1, 1, 1), degrees=(4, 5, 6)))
    prepared = model.preprocessing(image)
    logits = model.logits(torch.from_numpy(prepared.image.array))
    whole = F.interpolate(logits[None], size=prepared.cut_shape, mode="trilinear")[0]
    expected = prepared.restore(VALUES[whole.argmax(0).numpy()][None]).array
    top = whole.topk(2, 0).values
    clear = prepared.restore((top[0] - top[1] > 1e-4).numpy()[None].astype(np.uint8)).array > 0
    found = model.predict(image).labels.array
    assert clear.mean() > 0.99
    assert len(np.unique(found)) > 1
    assert np.array_equal(found[clear], expected[clear])


def test_the_type_of_the_sums_changes_next_to_no_voxel(load, monkeypatch):
    model = load(network="unet", options=UNET, preprocessing=FINER)
    image = Volume(smooth(21, 15, 18), np.eye(4))
    expected = model.predict(image)
    assert expected.notes == ()
    monkeypatch.setattr(passage, "LARGE_RING", 1)
    found = model.predict(image)
    assert (found.labels.array == expected.labels.array).mean() > 0.999
    assert any("half precision" in note for note in found.notes)


@pytest.mark.parametrize("skip", ["none", "constant", "air"])
def test_what_is_not_computed_changes_nothing_here(load, skip):
    array = np.full((1, 40, 24, 24), -1.0, dtype=np.float32)
    array[:, 4:18, 4:20, 4:20] = 1 + smooth(14, 16, 16)
    model = load(preprocessing=Preprocessing(intensity="none"))
    image = Volume(array, np.eye(4))
    expected = model.predict(image, Settings(skip="none")).labels.array
    found = model.predict(image, Settings(skip=skip))
    assert np.array_equal(found.labels.array, expected)
    assert any("left out" in note for note in found.notes) == (skip == "air")


def test_mirror_images_have_a_say(load):
    sided = Structures({"left lung": (7,), "right lung": (300,)})
    model = load(network="unet", options=UNET, structures=sided)
    image = smooth(16, 12, 14)
    plain = model.predict(Volume(image, np.eye(4)), probabilities=True)
    mirrored = model.predict(Volume(image, np.eye(4)), Settings(mirror=("left-right",)), probabilities=True)
    assert not np.array_equal(plain.probabilities.array, mirrored.probabilities.array)
    # A scan that is mirrored itself then gets the mirrored answer, with left and right exchanged.
    other = model.predict(Volume(image[:, ::-1].copy(), np.eye(4)), Settings(mirror=("left-right",)), probabilities=True)
    np.testing.assert_allclose(other.probabilities.array[[0, 2, 1], ::-1], mirrored.probabilities.array, atol=1e-5)


def test_several_threads_may_ask_at_a_time(load):
    model = load(network="unet", options=UNET, preprocessing=FINER)
    images = [Volume(smooth(12, 13, 14, seed=seed), np.eye(4)) for seed in range(8)]
    alone = [model.predict(image).labels.array for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: model.predict(image).labels.array, images))
    assert all(map(np.array_equal, alone, together))


def test_the_time_in_the_network_is_told(load):
    seconds = load().predict(Volume(smooth(8, 8, 8), np.eye(4))).seconds
    assert set(seconds) == {"network", "rest"}
    assert min(seconds.values()) > 0


# -------------------------------------------------------------------------------------------------- probabilities in a file


@pytest.mark.parametrize("name", ["p.nii", "p.nii.gz"])
@pytest.mark.parametrize("crop", ["none", "nonzero"])
def test_probabilities_are_written_as_if_they_had_been_held(load, tmp_path, make_affine, name, crop):
    model = load(network="unet", options=UNET, preprocessing=Preprocessing("SRA", (1.3, 0.7, 2.1), crop=crop))
    scan = np.pad(smooth(9, 8, 7), [(0, 0), (1, 2), (0, 3), (2, 0)])
    write_volume(Volume(scan, make_affine("LPS", degrees=(10, 0, 5))), tmp_path / "scan.nii.gz")
    image = read_image(tmp_path / "scan.nii.gz")
    held = model.predict(image, probabilities=True)
    streamed = model.predict(image, probabilities=tmp_path / name)
    assert streamed.probabilities is None
    assert np.array_equal(streamed.labels.array, held.labels.array)
    write_volume(held.probabilities, tmp_path / "held.nii", like=image)
    content = (tmp_path / name).read_bytes()
    assert (gzip.decompress(content) if name.endswith(".gz") else content) == (tmp_path / "held.nii").read_bytes()
    assert nib.load(tmp_path / name).shape == (12, 11, 9, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["held.nii", "model.ckpt", name, "scan.nii.gz"])


def test_of_probabilities_that_do_not_fit_on_the_disk_nothing_is_left(load, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"Cannot write .*p\.nii: the disk is full"):
        load().predict(Volume(smooth(8, 8, 8), np.eye(4)), probabilities=tmp_path / "p.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_of_a_scan_that_fails_midway_no_probabilities_are_left(load, tmp_path):
    model = load(options={"levels": [0.0, float("nan"), 2.0]})
    with pytest.raises(Exception, match="not finite"):
        model.predict(Volume(smooth(8, 8, 8), np.eye(4)), probabilities=tmp_path / "p.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


# -------------------------------------------------------------------------------------------------------------- uncertainty


def test_the_uncertainty_of_a_structure_is_the_mean_entropy_over_its_voxels(load):
    model = load(preprocessing=Preprocessing(intensity="none"), structures=Structures({"near": (7,), "far": (300,)}))
    image = Volume(smooth(9, 8, 7) / 20 + 0.5, np.eye(4))
    answer = model.predict(image, probabilities=True, uncertainty=True)
    found = answer.probabilities.array.astype(np.float64)
    entropy = -(found * np.log(np.maximum(found, 1e-300))).sum(0) / np.log(3)
    assert list(answer.uncertainty) == ["near", "far"]
    for name, value in (("near", 7), ("far", 300)):
        inside = answer.labels.array[0] == value
        expected = entropy[inside].mean() if inside.any() else np.nan
        np.testing.assert_allclose(answer.uncertainty[name], expected, rtol=1e-5)
    assert not np.isnan(answer.uncertainty["near"])


def test_a_model_that_finds_regions_tells_how_sure_each_is(tmp_path):
    structures = Structures({"edema": (2,), "core": (1,)}, regions={"whole": ("edema", "core"), "inner": ("core",)})
    content = checkpoint_content(structures=Structures({"inner": (1,)}), options={"levels": [0.0, 1.0]})
    content["medseg_se"]["data"] |= {"structures": structures.to_dict(), "targets": ["whole", "inner"]}
    torch.save(content, tmp_path / "m.ckpt")
    model = Model.load(tmp_path / "m.ckpt", "cpu")
    answer = model.predict(Volume(smooth(8, 8, 8), np.eye(4)), probabilities=True, uncertainty=True)
    assert set(answer.uncertainty) == {"edema", "core"}
    measured = [value for value in answer.uncertainty.values() if not np.isnan(value)]
    assert measured
    assert all(0 <= value <= 1 for value in measured)


def test_an_ensemble_of_one_says_what_its_member_says(load):
    model = load(network="unet", options=UNET, preprocessing=FINER)
    image = Volume(smooth(12, 13, 14), np.eye(4))
    alone = model.predict(image, probabilities=True, uncertainty=True)
    ensemble = Ensemble([model]).predict(image, probabilities=True, uncertainty=True)
    assert np.array_equal(alone.labels.array, ensemble.labels.array)
    np.testing.assert_allclose(alone.probabilities.array, ensemble.probabilities.array, atol=1e-6)
    assert alone.uncertainty == pytest.approx(ensemble.uncertainty, nan_ok=True)
