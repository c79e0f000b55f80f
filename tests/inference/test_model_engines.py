import numpy as np
import pytest
import torch
import torch.nn.functional as F
from known_network import write_checkpoint

from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import UsageError
from medseg_se.inference.ensemble import load_model
from medseg_se.inference.export import export_model
from medseg_se.inference.model import Model
from medseg_se.inference.settings import Settings
from medseg_se.volumes import Volume, write_volume

pytestmark = pytest.mark.engines

pytest.importorskip("openvino")
UNET = {"channels": [4, 8]}


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "model.ckpt", network="unet", options=UNET, preprocessing=Preprocessing("SRA"))


def scan(seed=0):
    coarse = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 3, 3, 3)).astype(np.float32))
    return Volume(F.interpolate(coarse, size=(15, 12, 18), mode="trilinear")[0].numpy(), np.eye(4))


@pytest.mark.parametrize("engine", ["openvino", "onnx", "auto"])
def test_another_engine_says_the_same_and_what_it_needed_is_kept(checkpoint, engine):
    expected = Model.load(checkpoint, "cpu").predict(scan(), probabilities=True).probabilities.array
    for _ in range(2):
        model = Model.load(checkpoint, "cpu", engine=engine)
        answer = model.predict(scan(), probabilities=True)
        np.testing.assert_allclose(answer.probabilities.array, expected, atol=1e-4)
        name = "openvino" if engine == "auto" else engine
        assert any(f"{name} in fp32 decides as torch in fp32 does" in note for note in answer.notes)
    assert any((checkpoint.parent / ".medseg_cache").iterdir())


def test_an_engine_is_made_for_each_shape_of_tiles(checkpoint):
    model = Model.load(checkpoint, "cpu", engine="openvino")
    trained, fitted = (model.predict(scan(), Settings(tiles=tiles)).labels.array for tiles in ("trained", "fitted"))
    plain = Model.load(checkpoint, "cpu").predict(scan(), Settings(tiles="fitted")).labels.array
    assert (fitted == plain).mean() > 0.999
    assert trained.shape == fitted.shape


def test_slices_are_answered_in_their_batches(tmp_path):
    path = write_checkpoint(tmp_path / "flat.ckpt", network="unet", options=UNET, tile=(8, 1, 8), flat_axis=1)
    expected = Model.load(path, "cpu").predict(scan(), probabilities=True).probabilities.array
    found = Model.load(path, "cpu", engine="openvino").predict(scan(), probabilities=True).probabilities.array
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_members_of_an_ensemble_each_have_their_engine(checkpoint, tmp_path):
    other = write_checkpoint(tmp_path / "other.ckpt", network="unet", options={"channels": [4, 4]})
    plain, fast = (load_model([checkpoint, other], device="cpu", engine=engine) for engine in ("torch", "openvino"))
    found = [model.predict(scan(), probabilities=True).probabilities.array for model in (plain, fast)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


def test_int8_needs_scans_and_is_checked(checkpoint, tmp_path):
    pytest.importorskip("nncf")
    with pytest.raises(UsageError, match="Expected scans to calibrate int8 with, but got none"):
        Model.load(checkpoint, "cpu", "int8", "openvino")
    write_volume(scan(1), tmp_path / "one.nii.gz")
    model = Model.load(checkpoint, "cpu", "int8", "openvino", [tmp_path / "one.nii.gz"], least_dice=1.0)
    with pytest.raises(UsageError, match=r"int8 does not decide as fp32 does: .* a Dice of 1 are asked for"):
        model.predict(scan())


def test_exported_weights_predict_as_their_checkpoint(checkpoint, tmp_path):
    export_model(checkpoint, tmp_path / "weights.safetensors", "safetensors")
    expected = Model.load(checkpoint, "cpu").predict(scan()).labels.array
    assert np.array_equal(Model.load(tmp_path / "weights.safetensors", "cpu").predict(scan()).labels.array, expected)
