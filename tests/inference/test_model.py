import copy
import io
import os
import pickle
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from known_network import STRUCTURES, NearestLevel, checkpoint_content, write_checkpoint

from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import CheckpointError, DataError, UsageError
from medseg_se.files import digest_of
from medseg_se.hardware import free_memory
from medseg_se.inference.model import Model
from medseg_se.networks import NETWORKS
from medseg_se.structures import Structures
from medseg_se.tasks import SegmentationTask
from medseg_se.volumes import Volume, read_image, write_volume

VALUES = np.array([0, 7, 300])
TWO = Structures({"near": (7,)})
UNET = {"channels": [4, 8]}


@pytest.fixture(autouse=True, scope="module")
def _plugged_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "nearest_level", NearestLevel)
        yield


@pytest.fixture
def load(tmp_path):
    """Return a function that writes a checkpoint with the given choices and loads it."""

    def make(**choices):
        return Model.load(write_checkpoint(tmp_path / "model.ckpt", **choices), "cpu")

    return make


def levels(*shape, high=3, seed=0):
    """Random whole intensities 0 … high - 1 of shape (1, *shape)."""
    return np.random.default_rng(seed).integers(0, high, (1, *shape)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- on the scan's own grid


def test_labels_come_back_on_the_grid_of_the_scan_however_it_lies(load, make_affine, axcodes):
    image = Volume(levels(7, 9, 11), make_affine(axcodes, (0.8, 1.1, 3.0), degrees=(10, -5, 20)))
    prediction = load(preprocessing=Preprocessing("LSA", intensity="none")).predict(image)
    assert np.array_equal(prediction.labels.array, VALUES[image.array.astype(int)])
    assert prediction.labels.array.dtype == np.int16
    assert np.array_equal(prediction.labels.affine, image.affine)
    assert prediction.probabilities is None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_2d_network_labels_every_slice(load, make_affine, axis):
    tile = [4, 8, 5]
    tile[axis] = 1
    image = Volume(levels(7, 9, 11), make_affine("PIR", (0.8, 1.1, 3.0)))
    prediction = load(tile=tile, flat_axis=axis).predict(image)
    assert np.array_equal(prediction.labels.array, VALUES[image.array.astype(int)])


@pytest.mark.parametrize("spacing", [(0.5, 1.0, 1.5), (0.5, 0.5, 0.5)])
def test_a_network_on_a_finer_grid_loses_no_voxel(load, make_affine, spacing):
    box = np.zeros((1, 12, 10, 8), dtype=np.float32)
    box[:, 3:8, 2:5, 4:6] = 1
    model = load(structures=TWO, options={"levels": [0.0, 1.0]}, preprocessing=Preprocessing("RAS", spacing, intensity="none"))
    prediction = model.predict(Volume(box, make_affine("RAS", (1, 2, 3), degrees=(10, 20, 30))))
    assert np.array_equal(prediction.labels.array, 7 * box)


@pytest.mark.parametrize("axcodes_", ["RAS", "LPS", "SAL", "IRP"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_on_a_coarser_grid_puts_a_border_where_it_was(load, make_affine, axcodes_, axis):
    half = np.zeros((1, 16, 12, 20), dtype=np.float32)
    half.swapaxes(1, axis + 1)[:, 4:] = 1
    affine = make_affine(axcodes_, (1, 1, 1), degrees=(0, 20, 30))
    model = load(
        structures=TWO, options={"levels": [0.0, 1.0]}, preprocessing=Preprocessing("RAS", (4, 4, 4), intensity="none")
    )
    assert model.preprocessing(Volume(half, affine)).image.array.size == half.size / 64
    assert np.array_equal(model.predict(Volume(half, affine)).labels.array, 7 * half)


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_a_tie_goes_to_the_first_structure(load, spacing):
    model = load(options={"levels": [0.0, 1.0, 1.0]}, preprocessing=Preprocessing(spacing=spacing, intensity="none"))
    labels = model.predict(Volume(np.ones((1, 8, 8, 8), dtype=np.float32), np.eye(4))).labels
    assert (labels.array == 7).all()


def test_what_was_cropped_away_is_background(load, make_affine):
    image = np.zeros((1, 12, 10, 11), dtype=np.float32)
    image[:, 2:9, 3:8, 1:7] = levels(7, 5, 6)
    image[:, 2, 3, 1] = image[:, 8, 7, 6] = 2
    # An intensity of 0 means the first structure here, unless it lies in the border that is cut off.
    model = load(
        options={"levels": [1.0, 0.0, 2.0]},
        structures=Structures({"near": (7,), "far": (300,)}, background=(5, 0)),
        preprocessing=Preprocessing("PIR", crop="nonzero", intensity="none"),
    )
    prediction = model.predict(Volume(image, make_affine("RAS", degrees=(5, 5, 5))), probabilities=True)
    expected = np.full_like(image, 5)
    expected[:, 2:9, 3:8, 1:7] = np.array([7, 5, 300])[image[:, 2:9, 3:8, 1:7].astype(int)]
    assert np.array_equal(prediction.labels.array, expected)
    outside = np.ones(image.shape[1:], dtype=bool)
    outside[2:9, 3:8, 1:7] = False
    assert (prediction.probabilities.array[:, outside] == [[1], [0], [0]]).all()


@pytest.mark.parametrize(
    ("label_dtype", "values", "expected"),
    [("int16", (7, 300), "int16"), ("uint8", (7, 300), "uint16"), ("int32", (1, 2), "int32"), ("", (1, 2), "uint8")],
)
def test_labels_have_the_type_of_the_dataset_if_it_holds_them(load, label_dtype, values, expected):
    structures = Structures({"near": (values[0],), "far": (values[1], 9)}, background=(5, 0))
    labels = load(structures=structures, label_dtype=label_dtype).predict(Volume(levels(4, 5, 6), np.eye(4))).labels.array
    assert labels.dtype == expected
    assert np.array_equal(labels, np.array([5, *values])[levels(4, 5, 6).astype(int)])


def test_the_header_is_kept_bit_for_bit(load, tmp_path, make_affine):
    source = nib.Nifti1Image(levels(6, 7, 8)[0], None)
    source.set_sform(make_affine("LPS", (0.7, 1.3, 2.9), degrees=(3, 4, 5)), code=4)
    source.set_qform(make_affine("LPS", (0.7, 1.3, 2.9), degrees=(3.001, 4, 5)), code=2)
    source.header.set_xyzt_units("mm", "sec")
    nib.save(source, tmp_path / "scan.nii.gz")
    image = read_image(tmp_path / "scan.nii.gz")
    write_volume(load().predict(image).labels, tmp_path / "labels.nii.gz", like=image)
    before, after = (nib.load(tmp_path / f"{name}.nii.gz").header for name in ("scan", "labels"))
    names = ["qform_code", "sform_code", *(f"quatern_{axis}" for axis in "bcd"), *(f"qoffset_{axis}" for axis in "xyz")]
    for name in (*names, "srow_x", "srow_y", "srow_z", "xyzt_units"):
        assert after[name].tobytes() == before[name].tobytes(), name
    assert after["pixdim"][:4].tobytes() == before["pixdim"][:4].tobytes()
    assert (after["qform_code"], after["sform_code"]) == (2, 4)
    assert after.get_data_dtype() == np.int16


# --------------------------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("spacing", [None, (1.3, 0.7, 2.1)])
def test_probabilities_sum_to_one_and_agree_with_the_labels(load, make_affine, spacing):
    model = load(network="unet", options=UNET, preprocessing=Preprocessing("SRA", spacing))
    noise = np.random.default_rng(0).normal(size=(1, 14, 12, 13)).astype(np.float32)
    prediction = model.predict(Volume(noise, make_affine("LAS", degrees=(10, 0, 0))), probabilities=True)
    found = prediction.probabilities.array
    assert found.shape == (3, 14, 12, 13)
    assert found.dtype == np.float32
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    assert len(np.unique(prediction.labels.array)) > 1
    assert np.array_equal(VALUES[found.argmax(0)], prediction.labels.array[0])


def test_probabilities_are_the_softmax_of_the_logits(load, tmp_path):
    image = Volume(levels(5, 6, 7) / 40, np.diag([1, 2, 3, 1.0]))
    prediction = load().predict(image, probabilities=True)
    powers = np.exp([20 * (2 * image.array[0].astype(float) * level - level**2) for level in (0, 1, 2)])
    np.testing.assert_allclose(prediction.probabilities.array, powers / powers.sum(0), atol=1e-6)
    write_volume(prediction.probabilities, tmp_path / "probabilities.nii.gz", like=image)
    written = nib.load(tmp_path / "probabilities.nii.gz")
    assert written.shape == (5, 6, 7, 3)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(written.dataobj), 3, 0), prediction.probabilities.array)
    np.testing.assert_allclose(written.affine, image.affine)


# ------------------------------------------------------------------------------------------------------------ scans it refuses


def test_the_number_of_channels_must_be_right(load):
    model = load(channels=("T1", "T2"))
    both = Volume(np.concatenate([levels(8, 8, 8), levels(8, 8, 8, seed=1)]), np.eye(4))
    assert np.array_equal(model.predict(both).labels.array, VALUES[both.array[:1].astype(int)])
    with pytest.raises(DataError, match=r"Expected 2 channels \(T1, T2\), but scan\.nii has 1"):
        model.predict(Volume(levels(8, 8, 8), np.eye(4), path=Path("scan.nii")))


def test_a_voxel_that_is_no_number_is_refused(load):
    image = levels(8, 8, 8)
    image[0, 1, 2, 3] = np.nan
    with pytest.raises(DataError, match="holds 1 voxels that are NaN or infinite"):
        load().predict(Volume(image, np.eye(4)))


def test_an_answer_that_is_no_number_is_refused(load):
    model = load(options={"levels": [0.0, float("nan"), 2.0]})
    with pytest.raises(DataError, match="answer to the scan is not finite"):
        model.predict(Volume(levels(8, 8, 8), np.eye(4)))


# ------------------------------------------------------------------------------------------------------ checkpoints it refuses


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        Model.load(path, "cpu")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("form", ["plain pickle", "checkpoint", "old checkpoint", "inside a good one"])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, form):
    path, trace = tmp_path / "bomb.ckpt", tmp_path / "executed"
    bomb = Bomb(trace)
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        content = {**checkpoint_content(), "callbacks": bomb} if form == "inside a good one" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=form != "old checkpoint")
    refused(path, "Nothing in it was executed")
    assert not trace.exists()
    if form == "plain pickle":
        pickle.loads(path.read_bytes())
        assert trace.exists(), "the file is not the danger that this test takes it for"


def test_checkpoints_of_other_programs_are_refused(tmp_path):
    path = tmp_path / "other.ckpt"
    weights = torch.nn.Linear(2, 2).state_dict()
    for content in (weights, {"state_dict": weights, "epoch": 3}, [1, 2], torch.zeros(3), {"medseg_se": {"format": 1}}):
        torch.save(content, path)
        refused(path, "was not written by medseg-se")


def test_a_checkpoint_of_another_format_names_both(tmp_path):
    content = checkpoint_content()
    content["medseg_se"] |= {"format": 2, "version": "9.1"}
    torch.save(content, tmp_path / "new.ckpt")
    refused(
        tmp_path / "new.ckpt", r"has checkpoint format 2, but this version reads format 1\. It was written by medseg-se 9\.1"
    )


def test_a_checkpoint_without_a_data_module_is_refused(tmp_path):
    content = checkpoint_content()
    content["medseg_se"]["data"] = {}
    torch.save(content, tmp_path / "bare.ckpt")
    refused(tmp_path / "bare.ckpt", "does not say what data it was trained on")


def test_damaged_files_are_refused(tmp_path):
    path = write_checkpoint(tmp_path / "model.ckpt", network="unet", options=UNET)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, "It may be damaged|or is damaged")
    path.write_text("no checkpoint at all")
    refused(path, "or is damaged")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "something else")
    refused(path, "It may be damaged")


def test_a_single_wrong_byte_in_the_weights_is_noticed(tmp_path):
    path = write_checkpoint(tmp_path / "model.ckpt", network="unet", options=UNET)
    content = bytearray(path.read_bytes())
    weights = torch.load(io.BytesIO(content), weights_only=True)["state_dict"]
    largest = max(weights.values(), key=torch.numel).numpy().tobytes()
    content[content.find(largest) + len(largest) // 2] ^= 1
    path.write_bytes(content)
    refused(path, "checksums do not match")


def test_a_path_without_a_checkpoint_is_named(tmp_path):
    refused(tmp_path / "nowhere.ckpt", "No such checkpoint")
    refused(tmp_path, "is a folder")


def changed(path, value):
    """Return a checkpoint's content with the entry at the dotted `path` of its description replaced, or deleted if ..."""
    content = copy.deepcopy(checkpoint_content(network="unet", options=UNET))
    *parents, last = path.split(".")
    place = content["medseg_se"]
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("network", ..., "network"),
        ("network.name", "nnunet", "Unknown network 'nnunet'"),
        ("network.options", {"channels": [4, 8], "chanels": 3}, "chanels"),
        ("network.options", {"channels": [4, 9]}, "size mismatch"),
        ("network.options", {"channels": [4, 8, 16]}, "Missing key"),
        ("network.num_classes", 4, "size mismatch"),
        ("data.structures", STRUCTURES.to_dict() | {"values": {"near": [7]}}, "its network has 3 classes, its data 2"),
        ("data.structures.background", [], "tuple index out of range"),
        ("data.structures.values", {"near": ["x"], "far": [2]}, "not supported between"),
        ("data.channels", ["T1", "T2"], "its network has 1 channels, its data 2"),
        ("data.flat_axis", 1, "its network has 3 spatial axes, its data 2"),
        ("data.tile", [8, 8], "its tiles have the impossible shape"),
        ("data.tile", [8, 0, 8], "its tiles have the impossible shape"),
        ("data.label_dtype", "float32", "label values are of type 'float32'"),
        ("data.label_dtype", "int17", "int17"),
        ("data.preprocessing.orientation", "RAX", "RAX"),
        ("data.preprocessing.spacing", [1.0, 0.0, 1.0], "three positive numbers"),
        ("data.preprocessing.sharpness", 3, "sharpness"),
        ("data.training", ..., "training"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(tmp_path, path, value, reason):
    torch.save(changed(path, value), tmp_path / "edited.ckpt")
    refused(tmp_path / "edited.ckpt", "Cannot make the model")
    refused(tmp_path / "edited.ckpt", reason)


# -------------------------------------------------------------------------------------------------------- device and precision


def test_the_free_memory_is_known_or_infinite():
    assert free_memory() > 2**20


def test_bfloat16_is_refused_where_the_device_has_none(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "model.ckpt")
    monkeypatch.setattr("medseg_se.inference.engines.base.has_bfloat16", lambda device: False)
    assert Model.load(path, "cpu").precision == "fp32"
    with pytest.raises(UsageError, match="cpu does not compute in bfloat16"):
        Model.load(path, "cpu", "bf16")


def test_bfloat16_rounds_and_nothing_more(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "model.ckpt", network="unet", options=UNET)
    monkeypatch.setattr("medseg_se.inference.engines.base.has_bfloat16", lambda device: True)
    image = Volume(torch.randn(1, 12, 12, 12, generator=torch.Generator().manual_seed(0)).numpy(), np.eye(4))
    exact, rounded = (Model.load(path, "cpu", precision).predict(image, probabilities=True) for precision in ("fp32", "bf16"))
    np.testing.assert_allclose(rounded.probabilities.array, exact.probabilities.array, atol=0.02)
    assert exact.notes == ()
    assert any("torch in bf16" in note for note in rounded.notes)  # whether it was good enough, with the figures


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("meta", "fp32", "`device` to be auto, cpu, cuda.* but got 'meta'"),
        ("", "fp32", "but got ''"),
        ("cuda:99", "fp32", r"Cannot use the device 'cuda:99': .*\. Usable here: .*cpu\."),
        ("cpu", "fp16", "A CPU does not compute in float16 at speed"),
    ],
)
def test_a_device_or_precision_that_is_not_there_is_refused(tmp_path, device, precision, message):
    with pytest.raises(UsageError, match=message):
        Model.load(write_checkpoint(tmp_path / "model.ckpt"), device, precision)


# --------------------------------------------------------------------------------------------------------------- from training


@pytest.mark.parametrize("slice_axis", [None, "coronal"])
def test_a_trained_checkpoint_holds_all_that_inference_needs(tmp_path, write_decathlon, make_affine, slice_axis):
    folder = write_decathlon(tmp_path / "data", affine=make_affine("LPS", (1.0, 1.5, 2.0)))
    data = SegmentationData(
        str(folder),
        patch_size=[8, 8, 8] if slice_axis is None else [8, 8],
        slice_axis=slice_axis,
        folds=3,
        store=str(tmp_path / "store"),
        batches_per_epoch=1,
        intensity="percentile",
        progress=False,
    )
    task = SegmentationTask(1, 3, data.spatial_dims, channels=[4, 8], attention="scse")
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, barebones=False
    )
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "trained.ckpt")

    model = Model.load(tmp_path / "trained.ckpt", "cpu")
    assert model.structures == data.structures
    assert (model.channels, model.preprocessing) == (("T1",), data.preprocessing)
    assert (model.flat_axis, model.label_dtype) == (data.flat_axis, "uint8")
    training, validation = data.split()
    assert model.training == {digest_of(case.images) for case in training}
    assert model.validation == {digest_of(case.images) for case in validation}
    for name, value in task.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value), name

    image = read_image(validation[0].images[0])
    prepared = torch.from_numpy(model.preprocessing(image).image.array)
    task.eval()
    expected = task.segment(prepared[None], prepared.amin((1, 2, 3)))[0]
    torch.testing.assert_close(model.logits(prepared), expected, rtol=1e-4, atol=1e-4)
    labels = model.predict(image).labels
    assert labels.array.shape == image.array.shape
    assert labels.array.dtype == np.uint8
    assert np.array_equal(labels.affine, image.affine)


def test_a_checkpoint_of_another_task_is_refused_by_its_name(tmp_path):
    content = checkpoint_content()
    content["medseg_se"]["task"] = "classification"
    content["medseg_se"]["data"] = {"classes": ["none", "glioma"]}
    torch.save(content, tmp_path / "classes.ckpt")
    with pytest.raises(
        CheckpointError, match=r"Expected a checkpoint of a segmentation, but .*classes\.ckpt is of a classification"
    ):
        Model.load(tmp_path / "classes.ckpt")
