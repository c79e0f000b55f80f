import base64
import gzip
import io
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from evaluation_maker import AFFINE, evaluated, truth_of
from PIL import Image

from medseg_se.errors import DataError
from medseg_se.reports.case_view import CaseView, Window, find_images, view_case
from medseg_se.reports.embedding import coarser_shape, embed
from medseg_se.reports.overlays import grey, planes
from medseg_se.volumes import Volume, reorient, write_volume

WINDOW = Window(0, 255, "window")


def as_view(truth, prediction, image=None, affine=None):
    """Return a view of arrays (R, A, S)."""
    affine = np.eye(4) if affine is None else affine
    scan = None if image is None else Volume(image[None].astype(np.float32), affine)
    maps = [Volume(array[None].astype(np.int16), affine) for array in (truth, prediction)]
    return CaseView("a", scan, maps[0], maps[1])


def unpacked(text):
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
    return np.asarray(image.dataobj), image


def test_a_case_is_turned_and_its_labels_are_indices(tmp_path):
    evaluation, data = evaluated(tmp_path)
    images = find_images(evaluation)
    assert images == {f"case_{number}": data / "imagesTr" / f"case_{number}.nii.gz" for number in range(3)}
    view = view_case(evaluation.cases[1], evaluation.structures, images["case_1"])
    assert view.truth.orientation == view.image.orientation == "RAS"
    expected = reorient(Volume(truth_of(1)[None], AFFINE), "RAS").array[0]
    np.testing.assert_array_equal(view.truth.array[0], np.select([expected == 3, expected == 7], [1, 2]))
    assert np.flatnonzero((view.truth.array[0] == 1).any(axis=(1, 2))).max() < 12  # the left of the patient: low along R
    assert view.prediction.array.any()


def test_a_failed_prediction_is_empty_and_a_lost_file_an_error(tmp_path):
    evaluation, _ = evaluated(tmp_path)
    failed = evaluation.cases[2]
    assert failed.failure
    view = view_case(failed, evaluation.structures, None)
    assert not view.prediction.array.any()
    assert "no scan was given" in view.note
    with pytest.raises(DataError, match=r"gone\.nii\.gz"):
        view_case(replace(evaluation.cases[0], prediction=tmp_path / "gone.nii.gz"), evaluation.structures, None)
    with pytest.raises(DataError, match="does not say where the truth"):
        view_case(replace(evaluation.cases[0], truth=None), evaluation.structures, None)


def test_a_scan_on_another_grid_is_not_shown(tmp_path):
    evaluation, _ = evaluated(tmp_path)
    write_volume(Volume(np.zeros((1, 5, 5, 5), np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    view = view_case(evaluation.cases[0], evaluation.structures, tmp_path / "scan.nii.gz")
    assert view.image is None
    assert "different grid" in view.note


def test_a_resampled_prediction_is_shown_on_the_grid_of_the_truth(tmp_path):
    evaluation, _ = evaluated(tmp_path)
    wider = np.pad(truth_of(0), 2)
    affine = AFFINE.copy()
    affine[:3, 3] -= AFFINE[:3, :3] @ [2, 2, 2]
    write_volume(Volume(wider[None], affine), tmp_path / "wider.nii.gz")
    case = replace(evaluation.cases[0], prediction=tmp_path / "wider.nii.gz")
    with pytest.raises(DataError, match="different grid"):
        view_case(case, evaluation.structures, None)
    view = view_case(replace(case, resampled="shape"), evaluation.structures, None)
    np.testing.assert_array_equal(view.prediction.array, view.truth.array)


def test_scans_are_found_in_folders_and_refused_where_none_fits(tmp_path):
    evaluation, data = evaluated(tmp_path)
    assert set(find_images(evaluation, data / "imagesTr")) == {"case_0", "case_1", "case_2"}
    for path in (data / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    assert find_images(evaluation, data / "imagesTr")["case_1"].name == "case_1_0000.nii.gz"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no scan of a judged case, such as case_0"):
        find_images(evaluation, tmp_path / "empty")
    with pytest.raises(DataError, match="No such scans"):
        find_images(evaluation, tmp_path / "nowhere")


def test_planes_are_cut_where_truth_and_prediction_differ_most_by_size_of_structure():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (9, 10, 11)), rng.integers(0, 4, (9, 10, 11))
    size = [[max(1, int((labels == index).sum())) for index in range(4)] for labels in (truth, prediction)]
    weight = np.zeros(truth.shape)
    for place in np.ndindex(*truth.shape):
        if truth[place] != prediction[place]:
            weight[place] = sum(
                1 / size[kind][labels[place]] for kind, labels in enumerate((truth, prediction)) if labels[place]
            )
    expected = tuple(int(weight.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3))
    assert as_view(truth, prediction).slices == expected


def test_where_nothing_differs_the_structures_are_cut():
    truth = np.zeros((9, 9, 9), int)
    truth[2:5, 3:6, 4:7] = 1
    assert as_view(truth, truth).slices == (3, 4, 5)


def test_the_window_follows_what_is_segmented_in_hounsfield_units():
    truth = np.zeros((8, 8, 8), int)
    truth[2:6, 2:6, 2:6] = 1
    for inside, name in ((-800, "lung"), (40, "soft-tissue"), (500, "bone")):
        image = np.where(truth, inside, -1000)
        assert name in as_view(truth, truth, image).window().name
    other = as_view(truth, truth, np.where(truth, 50, 10)).window()
    assert 10 <= other.low < other.high <= 50
    assert as_view(truth, truth, np.full(truth.shape, 7)).window().high > 7


def test_greys_are_those_of_the_window():
    values = np.array([-10.0, 0.0, 60.0, 100.0, 200.0, np.nan])
    assert grey(values, Window(0, 100, "")).tolist() == [0, 0, 153, 255, 255, 0]


def test_the_patients_right_lies_on_the_left_of_the_picture():
    shape = (20, 16, 12)  # R, A, S
    truth, image = np.zeros(shape, int), np.zeros(shape)
    truth[14:19, 2:6, 3:9] = 1  # right and behind
    image[truth > 0] = 255
    truth[1:3, 12:15, 0:2] = 2
    prediction = truth.copy()
    prediction[14, 2:6, 3:9] = 0  # so that the planes are cut there
    text = planes(as_view(truth, prediction, image), ["a <b>", "c"], ["#ff0000", "#00ff00"], WINDOW)
    sagittal, coronal, axial = re.findall(r"<figure.*?</figure>", text)
    # Right on the left, behind below, as a radiologist sees an axial slice from the feet.
    for figure, letters in ((sagittal, "APIS"), (coronal, "RLIS"), (axial, "RLPA")):
        assert re.findall(r'class="e\d">(\w)<', figure) == list(letters)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", axial)[1])))).astype(float)
    rows, columns = pixels.shape
    assert pixels[:, : columns // 2].sum() > 4 * pixels[:, columns // 2 :].sum()
    assert pixels[rows // 2 :].sum() > 4 * pixels[: rows // 2].sum()
    for kind in ("p", "t"):
        path = re.search(rf'<g class="{kind}"><path class="o1"[^>]* d="M(-?\d+) (-?\d+)', axial)
        assert int(path[1]) < columns  # in halves of a pixel
        assert int(path[2]) > rows
    assert "<title>a &lt;b&gt;, truth</title>" in axial
    assert 'aria-label="axial, z = 6 mm; truth: a &lt;b&gt;; prediction: a &lt;b&gt;"' in axial


def test_a_scan_of_one_slice_has_one_plane_and_no_volume():
    truth = np.zeros((20, 16, 1), int)
    truth[4:9, 4:9] = 1
    view = as_view(truth, truth)
    assert planes(view, ["a"], ["#ff0000"], WINDOW).count("<figure") == 1
    assert embed(view, WINDOW, 10**6) is None


def test_small_volumes_are_embedded_voxel_by_voxel_where_they_lie():
    rng = np.random.default_rng(0)
    truth = np.zeros((30, 30, 30), int)
    truth[5:15, 6:18, 7:20] = rng.integers(1, 4, (10, 12, 13))
    image = rng.uniform(0, 255, truth.shape)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = [-7, 3, 11]
    view = as_view(truth, np.roll(truth, 1, axis=0), image, affine)
    held = embed(view, WINDOW, 10**6)
    assert not held.coarsened
    for text, array in ((held.truth, truth), (held.prediction, np.roll(truth, 1, axis=0)), (held.image, grey(image, WINDOW))):
        voxels, packed = unpacked(text)
        np.testing.assert_array_equal(voxels, array[view.box])
        np.testing.assert_allclose(packed.affine[:3, 3], affine[:3, :3] @ [part.start for part in view.box] + affine[:3, 3])
    assert unpacked(held.truth)[1].header["intent_code"] == 1002  # NiiVue takes them for labels
    assert held.centre == tuple(place - part.start for place, part in zip(view.slices, view.box, strict=True))


def test_volumes_are_coarsened_to_the_room_there_is_and_left_out_where_there_is_none():
    rng = np.random.default_rng(0)
    truth = np.zeros((90, 80, 70), int)
    truth[5:85, 5:75, 5:65] = 1
    view = as_view(truth, truth, rng.uniform(0, 255, truth.shape))
    whole = embed(view, WINDOW, 10**7)
    half = embed(view, WINDOW, whole.size // 2)
    assert not whole.coarsened
    assert half.coarsened
    assert half.size <= whole.size // 2
    corner = np.array([-0.5, -0.5, -0.5, 1])
    for text in (whole.truth, half.truth):  # the same place, whichever grid
        voxels, packed = unpacked(text)
        np.testing.assert_allclose(packed.affine @ corner, [-0.5, -0.5, -0.5, 1], atol=1e-3)
        np.testing.assert_allclose(
            (packed.affine @ [*(np.array(voxels.shape) - 0.5), 1])[:3], np.array(truth.shape) - 0.5, atol=1e-3
        )
    assert embed(view, WINDOW, 500) is None


@pytest.mark.parametrize("most", [10**9, 200_000, 50_000, 1000])
def test_the_finest_axes_are_coarsened_first(most):
    volume = Volume(np.zeros((1, 200, 180, 20), np.uint8), np.diag([0.5, 0.5, 4.0, 1.0]))
    shape = coarser_shape(volume, most)
    assert np.prod(shape) <= max(most, 1) or shape == volume.shape
    if most == 200_000:
        assert shape[2] == 20
        assert np.prod(shape) > 0.9 * most
