"""Classifiers and regressions of whole scans: what a run leaves in the checkpoint, and what the model says with it."""

import json
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from series_maker import write_series
from trained_scans import train_classifier, train_regression
from whole_scans import CLASSES, picture

from medseg_se import Classifier, Model, Regressor, Volume
from medseg_se.checkpoints import read_checkpoint, task_of
from medseg_se.cli.main import main
from medseg_se.data.answers import read_answers
from medseg_se.data.datalist import Case
from medseg_se.data.pictures import read_picture
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.inference.scans.model import OLD
from medseg_se.inference.scans.panel import Panel, load_panel
from medseg_se.inference.scans.reading import as_picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning:pytorch_lightning")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("scans")


@pytest.fixture(scope="module")
def checkpoint(root):
    return train_classifier(root)


@pytest.fixture(scope="module")
def ages(root):
    return train_regression(root / "ages")


@pytest.fixture
def folder(tmp_path):
    """Pictures that the model has not seen, in class folders."""
    rng = np.random.default_rng(7)
    for kind in CLASSES:
        (tmp_path / "new" / kind).mkdir(parents=True)
        Image.fromarray(picture(kind, rng)).save(tmp_path / "new" / kind / "a.png")
    return tmp_path / "new"


def predict(*words):
    return main(["predict", *map(str, words), "--engine", "torch", "--precision", "fp32", "--device", "cpu"])


def without_answers(path, copy, change=lambda description: description.pop("answers")):
    content = torch.load(path, weights_only=True)
    change(content["medseg_se"])
    torch.save(content, copy)
    return copy


# ------------------------------------------------------------------------------------------------------------- the checkpoint


def test_a_run_leaves_temperature_and_likeness_in_its_best_checkpoint(checkpoint):
    answers = read_checkpoint(checkpoint)[0]["answers"]
    assert answers["temperature"] > 0
    assert answers["unlike"]["held_out"] == 24
    assert answers["unlike"]["false_alarms"] == pytest.approx(1 / 25)
    assert task_of(checkpoint) == "classification"


def test_probabilities_are_those_of_the_logits_divided_by_the_temperature(checkpoint, folder, tmp_path):
    def hotter(description):
        description["answers"]["temperature"] = 2.5

    model = Classifier.load(without_answers(checkpoint, tmp_path / "hot.ckpt", hotter), "cpu")
    scan = model.read(Case("a", (folder / "left" / "a.png",)))[None]
    with torch.inference_mode():
        expected = (model.network(scan).double() / 2.5).softmax(1)
    torch.testing.assert_close(model.answer(scan)[0], expected)


def test_a_run_that_held_nothing_out_says_so(root):
    model = Classifier.load(train_classifier(root, epochs=1, fold=None), "cpu")
    assert model.likeness is None
    assert len(model.notes) == 2
    assert all("no scan was held out" in note for note in model.notes)


def test_a_checkpoint_from_before_answers_with_a_note(checkpoint, folder, tmp_path, capsys):
    old = without_answers(checkpoint, tmp_path / "old.ckpt")
    assert predict(old, folder, "--output", tmp_path / "out") == 0
    assert OLD[:60] in " ".join(capsys.readouterr().out.split())
    answers = read_answers(tmp_path / "out")
    assert np.isnan(answers.distance).all()
    assert not answers.unlike.any()


# --------------------------------------------------------------------------------------------------------------- the model


def test_it_tells_classes_and_what_is_unlike(checkpoint, folder, tmp_path):
    model = Classifier.load(checkpoint, "cpu")
    for kind in CLASSES:
        answer = model.predict(read_picture(folder / kind / "a.png"))
        assert answer.chosen == kind
        assert sum(answer.numbers.values()) == pytest.approx(1)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40]
    odd = {
        "blank": np.full((40, 40), 9),
        "chess": (rows // 5 + columns // 5) % 2 * 255,
        "disc": 255 * ((rows - 20) ** 2 + (columns - 20) ** 2 < 100),
        "photo": rng.integers(0, 255, (5, 5)).repeat(8, 0).repeat(8, 1),
    }
    for name, array in odd.items():
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / f"{name}.png")
        assert model.predict(read_picture(tmp_path / f"{name}.png")).unlike, name


def test_mirror_images_are_averaged_as_probabilities(checkpoint, folder):
    model = Classifier.load(checkpoint, "cpu")
    scan = model.read(Case("a", (folder / "left" / "a.png",)))[None]
    plain, distance = model.answer(scan)
    images = [scan, scan.flip(3), scan.flip(2), scan.flip(2, 3)]
    expected = torch.stack([model.answer(image)[0] for image in images]).mean(0)
    found, same = model.answer(scan, ["left-right", "anterior-posterior"])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(same, distance)
    assert not torch.allclose(found, plain)
    with pytest.raises(UsageError, match="cannot be mirrored from inferior to superior"):
        model.answer(scan, ["inferior-superior"])


def test_several_threads_get_the_answers_of_one(checkpoint, folder):
    model = Classifier.load(checkpoint, "cpu")
    images = [read_picture(folder / kind / "a.png") for kind in CLASSES] * 4
    alone = [model.predict(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model.predict, images)) == alone


def test_several_checkpoints_answer_by_their_weights(root, checkpoint, folder):
    other = train_classifier(root, epochs=1, seed=1)
    panel = load_panel([checkpoint, other], [3, 1], "cpu")
    scan = panel.read(Case("a", (folder / "right" / "a.png",)))
    parts = [member.answer(scan[0][None]) for member in panel.members]
    numbers, distance = panel.answer([scan])
    torch.testing.assert_close(numbers, 0.75 * parts[0][0] + 0.25 * parts[1][0])
    torch.testing.assert_close(distance, 0.75 * parts[0][1] + 0.25 * parts[1][1])
    assert Panel(panel.members[::-1], [1, 3]).digest == panel.digest


def test_the_wrong_door_names_the_right_one(checkpoint, ages):
    with pytest.raises(CheckpointError, match=r"`medseg_se.Classifier.load`"):
        Model.load(checkpoint)
    with pytest.raises(CheckpointError, match=r"use `Classifier.load`"):
        Regressor.load(checkpoint)
    with pytest.raises(CheckpointError, match="answer the same"):
        load_panel([checkpoint, ages], device="cpu")


def test_numbers_come_in_their_own_units(ages, root):
    model = Regressor.load(ages, "cpu")
    case = Case("a", (root / "ages" / "heads" / "images" / "head9.nii.gz",))
    with torch.inference_mode():
        standard = model.network(model.read(case)[None]).double()
    targets = read_checkpoint(ages)[0]["targets"]
    expected = standard * targets["std"][0] + targets["mean"][0]
    torch.testing.assert_close(model.answer(model.read(case)[None])[0], expected)


@pytest.mark.parametrize("across", ["S", "L", "A"])
def test_a_slice_of_a_scan_is_laid_as_it_is_looked_at(across):
    shown = np.arange(20, dtype=np.float32).reshape(4, 5)
    # Rows run to the back (feet) and columns to the left (back), as radiologists see axial (coronal, sagittal) slices
    flips = {"S": ("L", "P"), "L": ("P", "I"), "A": ("L", "I")}[across]
    axes = {"L": 0, "P": 1, "I": 2}
    first, second = (axes[letter] for letter in flips)
    array = shown.T if first < second else shown
    array = np.expand_dims(array, next(axis for axis in range(3) if axis not in (first, second)))
    affine = np.diag([-1.0, -1.0, -1.0, 1.0])  # voxels run to the left, back and feet
    found = as_picture(Volume(array[None], affine))
    np.testing.assert_array_equal(found.array[0, :, :, 0], shown)


# ------------------------------------------------------------------------------------------------------------- the command


def test_bad_files_are_named_and_the_rest_goes_on(checkpoint, folder, tmp_path, capsys):
    good = (folder / "left" / "a.png").read_bytes()
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "torn.png").write_bytes(good[: len(good) // 2])
    (folder / "text.jpg").write_text("no picture")
    Image.new("L", (9, 9)).save(folder / "moving.webp", save_all=True, append_images=[Image.new("L", (9, 9), 200)])
    (folder / "jpeg_called.nii.gz").write_bytes(good)
    (folder / "called_otherwise.jpg").write_bytes(good)  # which is a PNG all the same
    Image.open(folder / "left" / "a.png").convert("CMYK").save(folder / "cmyk.jpg")
    Image.open(folder / "left" / "a.png").convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(Image.open(folder / "left" / "a.png")).astype(np.uint16) * 256).save(folder / "deep.png")
    assert predict(checkpoint, folder, "--output", tmp_path / "out") == 1
    answers = read_answers(tmp_path / "out")
    bad = {"zero.jpg", "torn.png", "text.jpg", "moving.webp", "jpeg_called.nii.gz"}
    assert {case for case, answered in zip(answers.ids, answers.answered, strict=True) if not answered} == bad
    chosen = dict(zip(answers.ids, answers.chosen, strict=True))
    assert [chosen[name] for name in ("called_otherwise.jpg", "cmyk.jpg", "alpha.png", "deep.png")] == [1] * 4
    assert [chosen[f"{kind}/a.png"] for kind in CLASSES] == [0, 1, 2]
    lines = (tmp_path / "out" / "status.csv").read_text().splitlines()
    for name in bad:
        (line,) = [line for line in lines if line.startswith(f"{name},failed,")]
        assert str(folder / name) in line
    assert "5 failed" in capsys.readouterr().out


def test_a_second_run_answers_what_is_missing_or_new(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(checkpoint, folder, "--output", out) == 0
    first = (out / "predictions.csv").read_text()
    capsys.readouterr()
    assert predict(checkpoint, folder, "--output", out) == 0
    assert (out / "predictions.csv").read_text() == first
    assert " a second" not in capsys.readouterr().out  # nothing was asked
    (folder / "dark" / "a.png").write_bytes((folder / "left" / "a.png").read_bytes())
    assert predict(checkpoint, folder, "--output", out) == 0
    assert dict(zip(*(lambda a: (a.ids, a.chosen))(read_answers(out)), strict=True))["dark/a.png"] == 1
    assert predict(checkpoint, folder, "--output", out, "--mirror", "left-right") == 2
    assert predict(checkpoint, folder, "--output", out, "--mirror", "left-right", "--overwrite") == 0


def test_shards_fill_one_table(checkpoint, folder, tmp_path):
    for part in ("1/2", "2/2"):
        assert predict(checkpoint, folder, "--output", tmp_path / "out", "--shard", part) == 0
    answers = read_answers(tmp_path / "out")
    assert sorted(answers.ids) == ["dark/a.png", "left/a.png", "right/a.png"]
    assert answers.answered.all()


def test_unseen_scans_alone(checkpoint, root, folder, tmp_path):
    (folder / "left" / "seen.png").write_bytes((root / "pictures" / "left" / "0.png").read_bytes())
    assert predict(checkpoint, folder, "--output", tmp_path / "out", "--cases", "unseen") == 0
    assert sorted(read_answers(tmp_path / "out").ids) == ["dark/a.png", "left/a.png", "right/a.png"]
    assert predict(checkpoint, root / "pictures", "--output", tmp_path / "val", "--cases", "validation") == 0
    assert len(read_answers(tmp_path / "val").ids) == 24


def test_strict_refuses_what_is_unlike(checkpoint, tmp_path):
    Image.new("L", (30, 30), 9).save(tmp_path / "blank.png")
    assert predict(checkpoint, tmp_path / "blank.png", "--output", tmp_path / "out", "--strict") == 1
    assert not read_answers(tmp_path / "out").answered.any()
    assert predict(checkpoint, tmp_path / "blank.png", "--output", tmp_path / "out") == 0
    assert read_answers(tmp_path / "out").unlike.all()


def test_nifti_dicom_and_lists(checkpoint, folder, tmp_path):
    shown = np.asarray(Image.open(folder / "left" / "a.png")).astype(np.float32)
    nib.save(nib.Nifti1Image(shown.T[:, :, None], np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "axial.nii.gz")
    (tmp_path / "list.csv").write_text("id,image,split\none,new/left/a.png,train\ntwo,new/right/a.png,test\n")
    write_series(tmp_path / "series", np.stack([shown, shown[:, ::-1]]).astype(np.int16), spacing=(1.0, 1.0, 3.0))
    inputs = [folder / "axial.nii.gz", tmp_path / "list.csv", tmp_path / "series"]
    assert predict(checkpoint, *inputs, "--output", tmp_path / "out") == 0
    answers = read_answers(tmp_path / "out")
    slices = sorted(path.name for path in (tmp_path / "series").iterdir())
    expected = {"axial.nii.gz": 1, "one": 1, "two": 2, slices[0]: 1, slices[1]: 2}
    assert dict(zip(answers.ids, answers.chosen, strict=True)) == expected
    left = dict(zip(answers.ids, answers.numbers, strict=True))
    np.testing.assert_allclose(left["axial.nii.gz"], left["one"], atol=1e-6)


def test_ages_of_a_dataset_with_its_test_cases(ages, root, tmp_path):
    assert predict(ages, root / "ages" / "heads", "--output", tmp_path / "out") == 0
    answers = read_answers(tmp_path / "out")
    assert (answers.is_classification, answers.names, len(answers.ids)) == (False, ("age",), 11)
    assert np.isfinite(answers.numbers).all()


def test_what_makes_no_sense_is_refused_in_a_line(checkpoint, folder, tmp_path, capsys):
    assert predict(checkpoint, folder, "--output", tmp_path / "out", "--dicom-seg", "--tiles", "fitted") == 2
    assert "leave out --tiles, --dicom_seg" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("mine")
    assert predict(checkpoint, folder, "--output", tmp_path / "out") == 2
    assert (tmp_path / "out" / "predictions.csv").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert predict(checkpoint, tmp_path / "empty", "--output", tmp_path / "other") == 2
    assert "holds no picture" in " ".join(capsys.readouterr().err.split())


def test_the_record_is_plain_json(checkpoint, folder, tmp_path):
    predict(checkpoint, folder, "--output", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["cases"]["left/a.png"]["answer"]["image"].endswith("left/a.png")


@pytest.mark.engines
def test_openvino_answers_as_torch(checkpoint, folder, tmp_path):
    pytest.importorskip("openvino")
    model = Classifier.load(checkpoint, "cpu", "fp32", "openvino")
    plain = Classifier.load(checkpoint, "cpu")
    scans = torch.stack([plain.read(Case(kind, (folder / kind / "a.png",))) for kind in CLASSES])
    for found, expected in zip(model.answer(scans), plain.answer(scans), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert "the same class for 3 of 3 scans" in model.engine.notes[0]
