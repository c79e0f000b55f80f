import colorsys
import struct
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from medseg_se.errors import DataError, UsageError
from medseg_se.reports.palette import colours
from medseg_se.reports.pictures import Shown, case_picture, overview_picture, worst_structures
from medseg_se.structures import IGNORE, Structures
from medseg_se.volumes import Volume, reorient

STRUCTURES = Structures({"left kidney": (5,), "right kidney": (6,), "spine": (7,)})
PIXELS = 120  # per inch
LEGEND = int(2.9 * PIXELS)


def scan(orientation="RAS", spacing=(1.0, 1.0, 1.0)):
    """A grey scan with a block to the patient's left and one to the right, each 10 mm wide, 30 mm apart."""
    array = np.zeros((1, *(round(length / step) for length, step in zip((60, 40, 40), spacing, strict=True))), dtype=np.int16)
    affine = np.diag([*spacing, 1.0])
    i, j, k = (np.arange(n) * step for n, step in zip(array.shape[1:], spacing, strict=True))
    x, y, z = np.meshgrid(i, j, k, indexing="ij")
    inside = (y >= 15) & (y < 25) & (z >= 15) & (z < 25)
    array[0][inside & (x >= 5) & (x < 15)] = 1
    array[0][inside & (x >= 45) & (x < 55)] = 2
    image = np.random.default_rng(0).normal(100, 5, array.shape).astype(np.float32)
    return reorient(Volume(image, affine), orientation), reorient(Volume(array, affine), orientation)


def pixels_of(picture, name):
    """Places (row, column) of the pixels, the legend aside, that have the colour of a structure."""
    apart = np.abs(picture[:, :-LEGEND, :3] - np.array(colours(STRUCTURES)[name])).max(axis=2)
    return np.argwhere(apart < 0.02)


def draw(tmp_path, *arguments, **options):
    path = tmp_path / "case.png"
    case_picture(*arguments, STRUCTURES, path, **options)
    return imread(path)


def test_a_case_is_a_png_with_one_row_per_map(tmp_path):
    image, labels = scan()
    draw(tmp_path, image, labels, labels, dice={"left kidney": 1.0}, title="case 1")
    content = (tmp_path / "case.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    # The box is 50 (+ 20 %, cut at the scan's edge) x 30 x 30 mm: a square plane and two of the same shape twice as wide.
    assert (width, height) == (int((0.35 + 3.2 * 5 + 2.9) * PIXELS), int((0.8 + 3.2 * 2 + 0.3) * PIXELS))
    single = draw(tmp_path, image, None, labels)
    assert single.shape[0] == int((0.8 + 3.2 + 0.3) * PIXELS)
    assert [path.name for path in tmp_path.iterdir()] == ["case.png"]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAL"])
def test_the_patients_right_is_on_the_left_whatever_the_axes_of_the_file(tmp_path, orientation):
    image, labels = scan(orientation)
    picture = draw(tmp_path, image, None, labels)
    for start in (0.35 + 3.2, 0.35 + 3.2 * 3):  # coronal and axial planes
        middle = (start + 3.2) * PIXELS
        for name, on_the_right in (("left kidney", False), ("right kidney", True)):
            columns = pixels_of(picture, name)[:, 1]
            columns = columns[(columns > start * PIXELS) & (columns < (start + 6.4) * PIXELS)]
            assert columns.size > 20
            # In these data index 1 lies where x is small, which is the patient's left.
            assert np.all((columns < middle) == on_the_right)


def test_anterior_is_on_the_left_of_the_sagittal_plane_and_superior_on_top(tmp_path):
    image, labels = scan()
    spine = labels.array.copy()
    spine[0, 5:15, 5:10, 15:20] = 3  # behind and below the left kidney
    picture = draw(tmp_path, image, None, replace(labels, array=spine))
    sagittal = {
        name: pixels_of(picture[:, : int(3.5 * PIXELS) + LEGEND], name).mean(axis=0) for name in ("left kidney", "spine")
    }
    assert sagittal["left kidney"][1] < sagittal["spine"][1]
    assert sagittal["left kidney"][0] < sagittal["spine"][0]


def test_outlines_keep_their_shape_in_mm_on_an_anisotropic_grid(tmp_path):
    image, labels = scan(spacing=(1.0, 1.0, 5.0))
    picture = draw(tmp_path, image, None, labels)
    rows, columns = pixels_of(picture, "right kidney").T
    coronal = (columns > 3.6 * PIXELS) & (columns < 9.9 * PIXELS)
    # 10 mm by 10 mm; the outline stays a square though it has 10 voxels one way and 2 the other.
    assert np.ptp(rows[coronal]) == pytest.approx(np.ptp(columns[coronal]), rel=0.05)


def test_only_structures_of_the_prediction_are_outlined_in_its_row(tmp_path):
    image, prediction = scan()
    truth = replace(prediction, array=prediction.array.copy())
    truth.array[0, 25:35, 15:25, 15:25] = 3
    picture = draw(tmp_path, image, truth, prediction)
    half = int((0.8 + 3.2) * PIXELS)
    assert len(pixels_of(picture[:half], "spine")) > 20
    assert len(pixels_of(picture[half:], "spine")) == 0
    assert len(pixels_of(picture[half:], "right kidney")) > 20


def test_empty_maps_ignored_voxels_flat_scans_and_single_slices_are_pictured(tmp_path):
    image, labels = scan()
    empty = replace(labels, array=np.zeros_like(labels.array))
    unknown = replace(labels, array=np.where(labels.array == 0, IGNORE, labels.array).astype(np.int16))
    assert len(pixels_of(draw(tmp_path, image, empty, empty), "left kidney")) == 0
    assert len(pixels_of(draw(tmp_path, image, unknown, empty), "left kidney")) > 20
    constant = replace(image, array=np.full_like(image.array, np.nan))
    assert len(pixels_of(draw(tmp_path, constant, None, labels), "left kidney")) > 20
    flat = [replace(volume, array=volume.array[..., 20:21]) for volume in (image, labels)]
    assert len(pixels_of(draw(tmp_path, flat[0], None, flat[1]), "left kidney")) > 20


def test_the_legend_shows_the_worst_when_there_is_little_room(tmp_path):
    many = Structures({f"s{number}": (number,) for number in range(1, 41)})
    array = np.zeros((1, 42, 20, 20), dtype=np.int16)
    array[0, 1:41, 5:15, 5:15] = np.arange(1, 41)[:, None, None]
    labels = Volume(array, np.eye(4))
    dice = {name: number / 40 for number, name in enumerate(many.names)}
    pictures = []
    for order in (1, -1):
        shown = dict(zip(many.names, list(dice.values())[::order], strict=True))
        case_picture(Volume(array.astype(np.float32), np.eye(4)), None, labels, many, tmp_path / "many.png", shown)
        pictures.append(imread(tmp_path / "many.png")[:, -LEGEND:, :3])
    first, last = (np.abs(picture - np.array(colours(many)["s1"])).max(axis=2).min() < 0.02 for picture in pictures)
    assert first
    assert not last


def test_the_worst_structures_are_named_worst_first():
    dice = {"left amygdala": 0.7104, "brain stem": 0.95, "right amygdala": 0.8, "lesion": float("nan"), "cortex": 0.9}
    assert worst_structures(dice) == "worst: left amygdala 0.710, right amygdala 0.800, cortex 0.900"
    assert worst_structures({"lesion": float("nan")}) == ""


def test_left_and_right_share_a_hue_and_structures_have_colours_of_their_own():
    names = [f"{side} {organ}" for organ in ("kidney", "lung", "adrenal") for side in ("right", "left")]
    structures = Structures({name: (value,) for value, name in enumerate([*names, "liver", "spleen"], start=1)})
    found = colours(structures)
    assert len(set(found.values())) == len(structures.names)
    left, right = (colorsys.rgb_to_hls(*found[f"{side} lung"]) for side in ("left", "right"))
    assert left[0] == pytest.approx(right[0], abs=1e-6)
    assert left[1] > right[1]


def test_an_overview_has_a_row_per_case(tmp_path):
    image, labels = scan()
    cases = [Shown(image, labels, labels, "a"), Shown(image, labels, None, "b")]
    overview_picture(cases, STRUCTURES, tmp_path / "overview.png", title="Kidneys")
    picture = imread(tmp_path / "overview.png")
    assert picture.shape[0] == int((0.8 + 3.2 * 2 + 0.3) * PIXELS)
    half = int((0.8 + 3.2) * PIXELS)
    assert min(len(pixels_of(part, "right kidney")) for part in (picture[:half], picture[half:])) > 20
    with pytest.raises(UsageError, match="at least one case"):
        overview_picture([], STRUCTURES, tmp_path / "none.png")


def test_maps_elsewhere_or_not_encoded_are_refused(tmp_path):
    image, labels = scan()
    cut = replace(labels, array=labels.array[:, 1:])
    with pytest.raises(DataError, match="the prediction on the grid of the image"):
        draw(tmp_path, image, labels, cut)
    with pytest.raises(DataError, match=r"the truth as structure indices 0 … 3, but it holds 12"):
        draw(tmp_path, image, replace(labels, array=labels.array * 6), labels)
    assert not list(tmp_path.iterdir())
