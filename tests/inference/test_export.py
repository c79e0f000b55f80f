import hashlib
import json
import os

import numpy as np
import pytest
import torch
from known_network import NearestLevel, checkpoint_content, write_checkpoint
from safetensors.torch import load_file

from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import CheckpointError, OutputError, UsageError
from medseg_se.inference.export import LIMIT, export_model
from medseg_se.inference.export_forms import FORMS, Form
from medseg_se.inference.model import Model
from medseg_se.inference.published import read_published, restore_checkpoint
from medseg_se.networks import NETWORKS
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image, read_labels

pytestmark = pytest.mark.engines

ENDINGS = {name: (form.endings or ("",))[0] for name, form in FORMS.items()}


@pytest.fixture(autouse=True, scope="module")
def _plugged_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "nearest_level", NearestLevel)
        yield


@pytest.fixture(autouse=True, scope="module")
def _installed():
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that writes a checkpoint with the given choices."""
    return lambda **choices: write_checkpoint(tmp_path / "model.ckpt", **choices)


def unet(attention="none", flat_axis=None, **choices):
    """Return the choices of a checkpoint of a small U-Net."""
    tile = [8, 12, 10]
    if flat_axis is not None:
        tile[flat_axis] = 1
    options = {"channels": [4, 6], "attention": attention}
    return {"network": "unet", "options": options, "tile": tile, "flat_axis": flat_axis, "channels": ("T1", "FLAIR"), **choices}


# ---------------------------------------------------------------------------------------------------------------- in every form


@pytest.mark.parametrize("form", FORMS)
def test_is_compared_with_the_checkpoint_and_described(form, checkpoint, tmp_path):
    path = checkpoint(**unet("scse", preprocessing=Preprocessing("LPS", (1.0, 1.0, 2.0), intensity="percentile")))
    out = tmp_path / "out"
    written = export_model(path, out / f"mine{ENDINGS[form]}", form, overlap=0.25)
    assert written.path == out / f"mine{ENDINGS[form]}"
    assert 0 <= written.difference <= LIMIT
    described = json.loads(written.description.read_text())
    assert described["format"] == form
    assert described["channels"] == ["T1", "FLAIR"]
    assert described["label_values"] == [0, 7, 300]
    assert described["structures"]["values"] == {"near": [7], "far": [300]}
    assert described["input"]["shape"] == [1, 2, 8, 12, 10]
    assert described["input"]["axes"][2:] == ["right to left", "anterior to posterior", "inferior to superior"]
    assert described["output"]["maps"] == ["background", "near", "far"]
    assert described["preprocessing"]["spacing"] == [1.0, 1.0, 2.0]
    assert (described["tile"], described["overlap"], described["orientation"]) == ([8, 12, 10], 0.25, "LPS")
    assert described["verified"]["largest_relative_difference"] == written.difference
    assert described["versions"]["torch"] == torch.__version__
    root = written.path if form == "monai-bundle" else out
    for name, facts in described["files"].items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == facts["sha256"]
    everything = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
    assert everything == {*described["files"], str(written.description.relative_to(root))}


@pytest.mark.parametrize("flat_axis", [None, 1])
@pytest.mark.parametrize("attention", ["scse", "simam", "coordinate", "eca"])
def test_attention_survives_in_every_form_of_torch(attention, flat_axis, checkpoint, tmp_path):
    path = checkpoint(**unet(attention, flat_axis))
    for form in ("torchscript", "torch-export"):
        written = export_model(path, tmp_path / f"mine{ENDINGS[form]}", form, overwrite=True)
        assert written.difference <= LIMIT
        shape = json.loads(written.description.read_text())["input"]["shape"]
        assert shape == ([1, 2, 8, 12, 10] if flat_axis is None else [1, 2, 8, 10])


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_2d_network_survives(form, checkpoint, tmp_path):
    written = export_model(checkpoint(**unet("coordinate", 2)), tmp_path / f"mine{ENDINGS[form]}", form)
    assert written.difference <= LIMIT


def test_regions_are_described(checkpoint, tmp_path):
    written = export_model(write_regions(tmp_path / "model.ckpt"), tmp_path / "mine.ts", "torchscript")
    described = json.loads(written.description.read_text())
    assert described["output"]["maps"] == ["core", "whole"]
    assert "above 0" in described["output"]["decision"]
    assert described["regions"]["written"] == [{"region": "whole", "label": 7}, {"region": "core", "label": 300}]


def write_regions(path):
    """Write a checkpoint of a network that finds two regions: the core from an intensity of 1.5, the whole from 0.5."""
    structures = Structures({"near": (7,), "far": (300,)}, regions={"whole": ("near", "far"), "core": ("far",)})
    content = checkpoint_content(network="thresholds", structures=structures)
    content["medseg_se"]["data"]["targets"] = ["core", "whole"]
    content["medseg_se"]["network"]["num_classes"] = 2
    torch.save(content, path)
    return path


class Thresholds(torch.nn.Module):
    """Two maps: how far the intensity is above 1.5, and above 0.5."""

    def __init__(self, in_channels, num_classes, spatial_dims):
        super().__init__()

    def forward(self, x):
        return torch.cat([x[:, :1] - 1.5, x[:, :1] - 0.5], 1)


@pytest.fixture(autouse=True, scope="module")
def _plugged_in_too():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "thresholds", Thresholds)
        yield


# --------------------------------------------------------------------------------------------------------- nothing half-written


@pytest.fixture
def quick(checkpoint, tmp_path):
    """A checkpoint, and a folder with nothing in it."""
    (tmp_path / "out").mkdir()
    return checkpoint(), tmp_path / "out"


@pytest.mark.parametrize("form", ["torchscript", "monai-bundle", "safetensors"])
def test_what_exists_is_replaced_only_when_asked(form, quick):
    path, out = quick
    place = out / f"mine{ENDINGS[form]}"
    export_model(path, place, form)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(UsageError, match=r"exists\. Choose another `output`, or replace it with --overwrite"):
        export_model(path, place, form, overlap=0.1)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    written = export_model(path, place, form, overlap=0.1, overwrite=True)
    assert json.loads(written.description.read_text())["overlap"] == 0.1
    assert {file for file in out.rglob("*") if file.is_file()} == set(before)


def test_a_folder_that_is_no_bundle_is_never_replaced(quick):
    path, out = quick
    (out / "thesis").mkdir()
    (out / "thesis" / "chapter.txt").write_text("all my work")
    with pytest.raises(UsageError, match="no MONAI bundle, and is not replaced"):
        export_model(path, out / "thesis", "monai-bundle", overwrite=True)
    (out / "mine.ts").mkdir()
    with pytest.raises(UsageError, match="is a folder, which is not replaced"):
        export_model(path, out / "mine.ts", "torchscript", overwrite=True)
    (out / "bundle").write_text("a file")
    with pytest.raises(UsageError, match="is a file, which is not replaced"):
        export_model(path, out / "bundle", "monai-bundle", overwrite=True)
    assert (out / "thesis" / "chapter.txt").read_text() == "all my work"


def test_what_answers_otherwise_is_not_written(quick, monkeypatch):
    path, out = quick
    wrong = Form((".ts",), FORMS["torchscript"].make, lambda path, model: lambda tiles: model.network(tiles) * 1.001)
    monkeypatch.setitem(FORMS, "torchscript", wrong)
    with pytest.raises(OutputError, match=r"logits differ by .* and 0.0001 is the limit. Nothing was written"):
        export_model(path, out / "mine.ts", "torchscript")
    assert not list(out.iterdir())


@pytest.mark.parametrize("form", ["torchscript", "monai-bundle"])
def test_a_disk_that_fills_up_leaves_nothing(form, quick, monkeypatch):
    path, out = quick

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        export_model(path, out / f"mine{ENDINGS[form]}", form)
    assert not list(out.iterdir())


def test_a_folder_that_cannot_be_made_is_named(quick):
    path, out = quick
    (out / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write .*mine\.ts"):
        export_model(path, out / "file" / "deeper" / "mine.ts", "torchscript")


# ------------------------------------------------------------------------------------------------------------------- bad input


def test_an_unknown_form_is_answered_with_the_nearest(quick):
    with pytest.raises(UsageError, match=r"Unknown format 'torch-script'\. Did you mean 'torchscript'\?"):
        export_model(quick[0], quick[1] / "mine.ts", "torch-script")


def test_a_name_that_does_not_suit_the_form_is_refused(quick):
    with pytest.raises(UsageError, match=r"to end in \.onnx for the format onnx, but got 'mine.pt'"):
        export_model(quick[0], quick[1] / "mine.pt", "onnx")
    with pytest.raises(UsageError, match="Expected `overlap`"):
        export_model(quick[0], quick[1] / "mine.onnx", "onnx", overlap=1.0)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="No such checkpoint"):
        export_model(tmp_path / "none.ckpt", tmp_path / "mine.onnx")


class Winding(NearestLevel):
    """Asks about its values, which no recording can follow."""

    def forward(self, x):
        return super().forward(x) if float(x.sum()) > -1e9 else x


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_network_that_cannot_be_exported_is_named(form, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "winding", Winding)
    with pytest.raises(UsageError, match=r"cannot be (exported as torch-export|converted to ONNX)"):
        export_model(checkpoint(network="winding"), tmp_path / f"mine{ENDINGS[form]}", form)


# ------------------------------------------------------------------------------------------------------------------ safetensors


def test_safetensors_come_back_as_the_same_model(checkpoint, tmp_path):
    path = checkpoint(**unet("scse"))
    written = export_model(path, tmp_path / "mine.safetensors", "safetensors")
    described = json.loads(written.description.read_text())
    assert described["weights_sha256"] == hashlib.sha256(written.path.read_bytes()).hexdigest()
    description, state, digest = read_published(written.path)
    original = torch.load(path, weights_only=True)
    assert description == original["medseg_se"]
    assert len(digest) == 32
    assert {f"network.{name}" for name in state} == set(original["state_dict"])
    assert all(torch.equal(value, original["state_dict"][f"network.{name}"]) for name, value in state.items())
    assert state.keys() == load_file(written.path).keys()
    restore_checkpoint(written.path, tmp_path / "again.ckpt")
    image = Volume(np.random.default_rng(0).normal(size=(2, 9, 12, 10)).astype(np.float32), np.eye(4))
    ours, again = (Model.load(file, "cpu").predict(image).labels.array for file in (path, tmp_path / "again.ckpt"))
    assert np.array_equal(ours, again)


def test_weights_that_are_not_those_described_are_refused(quick):
    path, out = quick
    written = export_model(path, out / "mine.safetensors", "safetensors")
    content = bytearray(written.path.read_bytes())
    content[-1] ^= 1
    written.path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256 of .*mine\.safetensors is not that in mine\.json"):
        read_published(written.path)
    written.description.write_text("{}")
    with pytest.raises(CheckpointError, match="does not describe"):
        read_published(written.path)
    written.description.unlink()
    with pytest.raises(CheckpointError, match="Both files are needed"):
        read_published(written.path)


# ----------------------------------------------------------------------------------------------------------------- MONAI bundle


def run_bundle(bundle, scans, out):
    """Run a bundle as a user of MONAI would."""
    from monai.bundle import run

    try:
        run(
            config_file=str(bundle / "configs" / "inference.json"),
            bundle_root=str(bundle),
            dataset_dir=str(scans),
            output_dir=str(out),
        )
    finally:
        torch.set_grad_enabled(True)


def blocks(shape=(12, 10, 11), high=3, channels=1, seed=0):
    """Blocks of 2 voxels of intensities 0 … high - 1, (channels, *shape)."""
    coarse = np.random.default_rng(seed).integers(0, high, (channels, *(-(-size // 2) for size in shape)))
    for axis in (1, 2, 3):
        coarse = coarse.repeat(2, axis)
    return coarse[:, : shape[0], : shape[1], : shape[2]].astype(np.float32)


@pytest.mark.parametrize("flat_axis", [None, 0, 2])
def test_monai_runs_the_bundle_and_finds_the_same(flat_axis, checkpoint, tmp_path, write_scan, make_affine):
    tile = [8, 8, 8]
    if flat_axis is not None:
        tile[flat_axis] = 1
    path = checkpoint(tile=tile, flat_axis=flat_axis, preprocessing=Preprocessing("LSA", crop="nonzero", intensity="none"))
    bundle = export_model(path, tmp_path / "bundle", "monai-bundle").path
    image = blocks()
    image[:, :3] = 0  # cut off
    write_scan(tmp_path / "scans" / "one.nii.gz", image[0], make_affine("PIR", (0.8, 1.1, 3.0), degrees=(10, -5, 20)))
    run_bundle(bundle, tmp_path / "scans", tmp_path / "eval")
    ours = Model.load(path, "cpu").predict(read_image(tmp_path / "scans" / "one.nii.gz")).labels
    theirs = read_labels(tmp_path / "eval" / "one_seg.nii.gz")
    assert np.array_equal(theirs.array, ours.array)
    assert theirs.array.dtype == np.int16
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_monai_resamples_nearly_alike(interpolation, checkpoint, tmp_path, write_scan, make_affine):
    path = checkpoint(
        options={"levels": [0.0, 1.0]},
        structures=Structures({"near": (7,)}),
        preprocessing=Preprocessing(
            "RAS", (1.0, 1.0, 1.5), intensity="window", window=(-1.0, 1.0), interpolation=interpolation
        ),
    )
    bundle = export_model(path, tmp_path / "bundle", "monai-bundle").path
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in (20, 18, 12)], indexing="ij"))
    image = (2 * ((grid**2).sum(0) < 0.5)).astype(np.float32)
    write_scan(tmp_path / "scans" / "one.nii.gz", image, make_affine("LPS", (0.8, 0.9, 2.0)))
    run_bundle(bundle, tmp_path / "scans", tmp_path / "eval")
    ours = Model.load(path, "cpu").predict(read_image(tmp_path / "scans" / "one.nii.gz")).labels.array
    theirs = read_labels(tmp_path / "eval" / "one_seg.nii.gz").array
    for one, other in zip(np.argwhere(ours[0] == 7).mean(0), np.argwhere(theirs[0] == 7).mean(0), strict=True):
        assert abs(one - other) < 0.1  # voxels
    assert 2 * ((ours == 7) & (theirs == 7)).sum() / ((ours == 7).sum() + (theirs == 7).sum()) > 0.97


SCHEMES = {
    "zscore": {"intensity": "zscore"},
    "zscore_nonzero": {"intensity": "zscore_nonzero"},
    "percentile": {"intensity": "percentile"},
    "minmax": {"intensity": "minmax"},
    "window": {"intensity": "window", "window": (0.5, 3.0)},
    "dataset": {"intensity": "dataset", "window": (0.5, 3.0), "mean": 1.2, "deviation": 0.7},
    "one a channel": {"intensity": ("zscore", "window"), "window": ((-1.0, 1.0), (0.0, 9.0))},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_monai_prepares_intensities_alike(scheme, checkpoint, tmp_path, write_scan):
    from monai.bundle import ConfigParser

    preprocessing = Preprocessing(**SCHEMES[scheme])
    path = checkpoint(channels=("T1", "FLAIR"), preprocessing=preprocessing)
    bundle = export_model(path, tmp_path / "bundle", "monai-bundle").path
    image = blocks(channels=2, high=7) + np.random.default_rng(0).random((2, 12, 10, 11), dtype=np.float32) * 0.1
    image[:, :4] = 0
    file = write_scan(tmp_path / "one.nii.gz", image.transpose(1, 2, 3, 0))
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    prepared = parser.get_parsed_content("preprocessing")({"image": str(file)})["image"]
    np.testing.assert_allclose(prepared.numpy(), preprocessing(read_image(file)).image.array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("largest", [False, True])
def test_monai_writes_regions_from_large_to_small_and_keeps_the_largest_piece(largest, tmp_path, write_scan):
    path = write_regions(tmp_path / "model.ckpt")
    if largest:
        pytest.importorskip("skimage")
        content = torch.load(path, weights_only=True)
        content["medseg_se"]["postprocessing"] = {"largest_component": [["near", "far"]]}
        torch.save(content, path)
    bundle = export_model(path, tmp_path / "bundle", "monai-bundle").path
    image = np.zeros((12, 10, 11), dtype=np.float32)
    image[1:6, 2:8, 3:9] = 1
    image[2:4, 3:5, 4:6] = 2
    image[9:11, 1:3, 1:3] = 2
    write_scan(tmp_path / "scans" / "one.nii.gz", image)
    run_bundle(bundle, tmp_path / "scans", tmp_path / "eval")
    expected = np.array([0, 7, 300])[image.astype(int)]
    if largest:
        expected[9:] = 0
    assert np.array_equal(read_labels(tmp_path / "eval" / "one_seg.nii.gz").array[0], expected)
    ours = Model.load(path, "cpu").predict(read_image(tmp_path / "scans" / "one.nii.gz")).labels.array[0]
    assert np.array_equal(ours, expected)


def test_monai_reads_the_network_and_its_metadata(checkpoint, tmp_path):
    from monai.bundle import load
    from monai.data import load_net_with_metadata

    path = checkpoint(**unet("simam"))
    bundle = export_model(path, tmp_path / "bundle", "monai-bundle").path
    network, metadata, _ = load_net_with_metadata(str(bundle / "models" / "model.ts"))
    tile = torch.randn(1, 2, 8, 12, 10)
    with torch.no_grad():
        torch.testing.assert_close(network(tile), Model.load(path, "cpu").network(tile), rtol=1e-4, atol=1e-4)
    stored = json.loads((bundle / "configs" / "metadata.json").read_text())
    needed = {"version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"}
    assert {*needed, "copyright", "network_data_format"} <= set(stored)
    assert metadata["network_data_format"] == stored["network_data_format"]
    assert stored["network_data_format"]["inputs"]["image"]["channel_def"] == {"0": "T1", "1": "FLAIR"}
    assert stored["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "near", "2": "far"}
    loaded, _, _ = load("bundle", model_file="models/model.ts", load_ts_module=True, bundle_dir=str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tile), network(tile))


def test_what_monai_cannot_do_is_said(checkpoint, tmp_path):
    path = checkpoint(preprocessing=Preprocessing(spacing=(1.0, 1.0, 1.0), interpolation="anisotropic"))
    with pytest.raises(UsageError, match="no transform for the interpolation 'anisotropic'"):
        export_model(path, tmp_path / "bundle", "monai-bundle")
    assert [file.name for file in tmp_path.iterdir()] == ["model.ckpt"]
