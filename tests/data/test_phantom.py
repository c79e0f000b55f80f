"""Phantoms: anatomy that a threshold cannot find, on grids that differ, the same bytes for the same seed."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from medseg_se.data.datalist import read_datalist
from medseg_se.data.phantom import BRAIN_LABELS, TORSO_LABELS, make_subject, write_phantoms
from medseg_se.data.scan import read_channels, read_truth
from medseg_se.errors import DataError, UsageError
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image

LABELS = {"brain": BRAIN_LABELS, "torso": TORSO_LABELS}
TINY = 6.0  # mm; a head of about 30 voxels along each axis


@pytest.fixture(scope="module")
def brains():
    return [make_subject("brain", subject) for subject in (0, 5)]


@pytest.fixture(scope="module")
def torsos():
    return [make_subject("torso", subject) for subject in (0, 3)]


@pytest.fixture(params=["brain", "torso"])
def kind_and_scans(request):
    return request.param, request.getfixturevalue(f"{request.param}s")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def centre(labels: Volume, value: int) -> np.ndarray:
    return (labels.affine @ np.append(np.argwhere(labels.array[0] == value).mean(axis=0), 1))[:3]


def structures(kind: str) -> Structures:
    return Structures.from_labels({"0": "background", **{str(value): name for value, name in LABELS[kind].items()}})


# ------------------------------------------------------------------------------------------------------------------- anatomy


def test_every_structure_is_there_and_nothing_else(kind_and_scans):
    kind, scans = kind_and_scans
    for _, labels in scans:
        values, counts = np.unique(labels.array, return_counts=True)
        assert set(values.tolist()) == {0, *LABELS[kind]}
        assert counts.min() >= 100


def test_left_lies_at_negative_x_and_right_at_positive(kind_and_scans):
    kind, scans = kind_and_scans
    sided = {value: name for value, name in LABELS[kind].items() if name.startswith(("Left-", "Right-"))}
    assert len(sided) >= 8
    for _, labels in scans:
        for value, name in sided.items():
            assert (centre(labels, value)[0] < 0) == name.startswith("Left-"), name


def test_organs_lie_on_their_own_side_of_the_body(torsos):
    value = {name: number for number, name in TORSO_LABELS.items()}
    for _, labels in torsos:
        assert centre(labels, value["Spleen"])[0] < 0 < centre(labels, value["Liver"])[0]
        assert centre(labels, value["Bladder"])[2] < centre(labels, value["Liver"])[2] < centre(labels, value["Heart"])[2]
        assert centre(labels, value["Spine"])[1] < centre(labels, value["Aorta"])[1] < centre(labels, value["Stomach"])[1]


def test_ventricles_lie_in_white_matter_and_white_matter_in_cortex(brains):
    for _, labels in brains:
        array = labels.array[0]
        ventricles, white, cortex = (np.isin(array, values) for values in ((4, 43), (2, 41), (3, 42)))
        around = array[binary_dilation(ventricles) & ~ventricles]
        assert np.mean(around == 0) < 0.01
        assert np.mean(np.isin(around, (2, 41))) > 0.6
        shell = binary_dilation(white) & ~white
        assert np.mean(array[shell] == 0) < 0.03
        assert np.mean(cortex[shell]) > 0.7


def test_the_cortex_is_folded(brains):
    for _, labels in brains:
        cortex, white = np.isin(labels.array[0], (3, 42)), np.isin(labels.array[0], (2, 41))
        faces = sum(int((np.diff((cortex | white).astype(np.int8), axis=axis) != 0).sum()) for axis in range(3))
        volume = int((cortex | white).sum())
        smooth = 6 * (3 * volume / (4 * np.pi)) ** (2 / 3) * np.pi  # faces of a ball of as many voxels
        assert faces > 1.8 * smooth


def test_pairs_look_alike(kind_and_scans):
    kind, scans = kind_and_scans
    names = structures(kind)
    assert len(names.pairs()) >= 4
    values = list(names.values.values())
    for image, labels in scans:
        for left, right in names.pairs():
            one, other = (image.array[labels.array == values[index - 1][0]] for index in (left, right))
            assert abs(float(one.mean()) - float(other.mean())) < max(float(one.std()), float(other.std()))


def test_no_threshold_finds_the_structures(kind_and_scans):
    kind, scans = kind_and_scans
    intensity = np.concatenate([((image.array - image.array.mean()) / image.array.std()).ravel() for image, _ in scans])
    truth = np.concatenate([labels.array.ravel() for _, labels in scans])
    bins = np.digitize(intensity, np.linspace(-3, 6, 512))
    votes = np.zeros((513, 256), dtype=np.int64)
    np.add.at(votes, (bins, truth), 1)
    guess = votes.argmax(axis=1)[bins]  # the best that any rule on the intensity alone can do
    dice = [2 * np.sum((guess == v) & (truth == v)) / (np.sum(guess == v) + np.sum(truth == v)) for v in LABELS[kind]]
    assert np.mean(dice) < 0.25


def test_what_surrounds_the_brain_overlaps_with_it(brains):
    for image, labels in brains:
        grey = image.array[np.isin(labels.array, (3, 42))]
        outside = image.array[labels.array == 0]
        low, high = np.percentile(grey, [10, 90])
        assert np.sum((outside > low) & (outside < high)) > 0.3 * grey.size


def test_noise_and_units(brains, torsos):
    for image, labels in brains:
        assert image.array.dtype == np.float32
        white, grey = (image.array[np.isin(labels.array, values)] for values in ((2, 41), (3, 42)))
        assert white.mean() > 1.2 * grey.mean()
        assert np.median(white) > 15 * image.array[image.array < np.percentile(image.array, 20)].std()
    for image, labels in torsos:
        assert image.array.dtype == np.int16
        assert image.array[0, 0, 0, 0] < -900
        for name, low, high in (("Left-Lung", -900, -700), ("Liver", 80, 130), ("Bladder", -20, 30), ("Right-Hip", 200, 500)):
            value = next(value for value, known in TORSO_LABELS.items() if known == name)
            assert low < np.median(image.array[labels.array == value]) < high, name


# --------------------------------------------------------------------------------------------------------------------- grids


def test_grids_differ_and_image_and_truth_share_theirs():
    scans = [make_subject("brain", subject, resolution=TINY) for subject in range(16)]
    assert len({image.orientation for image, _ in scans}) >= 4
    assert len({tuple(sorted(np.round(image.spacing, 3))) for image, _ in scans}) >= 3
    angles = []
    for image, labels in scans:
        assert image.shape == labels.shape
        assert image.same_grid(labels) is None
        directions = np.abs(image.affine[:3, :3] / image.spacing)
        angles.append(np.degrees(np.arccos(np.clip(directions.max(axis=0), -1, 1))).max())
    assert 1 < max(angles) < 10
    assert min(angles) < 0.01


def test_the_same_subject_at_another_resolution_lies_in_the_same_place(brains):
    _, coarse = make_subject("brain", 0, resolution=4.0)
    for value in (10, 17, 43, 16):
        assert np.linalg.norm(centre(coarse, value) - centre(brains[0][1], value)) < 2


# ------------------------------------------------------------------------------------------------------------------- the seed


@pytest.mark.parametrize("kind", ["brain", "torso"])
def test_a_subject_depends_on_seed_and_number_only(kind):
    resolution = 2 * TINY if kind == "torso" else TINY
    image, labels = make_subject(kind, 3, seed=1, resolution=resolution)
    again, labels_again = make_subject(kind, 3, seed=1, resolution=resolution)
    np.testing.assert_array_equal(image.array, again.array)
    np.testing.assert_array_equal(labels.array, labels_again.array)
    for subject, seed in ((4, 1), (3, 2)):
        other, _ = make_subject(kind, subject, seed=seed, resolution=resolution)
        assert other.array.shape != image.array.shape or np.any(other.array != image.array)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "brian"}, "Did you mean 'brain'"),
        ({"subject": -1}, "`subject` and `seed`"),
        ({"seed": -1}, "`subject` and `seed`"),
        ({"resolution": 0.1}, "`resolution` between 0.8 and 8.0 mm, but got 0.1"),
        ({"resolution": float("nan")}, "`resolution`"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_subject(**{"kind": "brain", "subject": 0, **arguments})


# ------------------------------------------------------------------------------------------------------------------- writing


def test_a_written_dataset_is_read_back_as_it_was_drawn(tmp_path):
    description = write_phantoms(tmp_path / "brains", training=3, test=2, resolution=TINY)
    assert description == tmp_path / "brains" / "dataset.json"
    datalist = read_datalist(description)
    assert (len(datalist.training), len(datalist.test)) == (3, 2)
    assert {int(values[0]): name for name, values in datalist.structures.values.items()} == BRAIN_LABELS
    assert datalist.channels == ("MRI",)
    assert len({case.group for case in datalist.training + datalist.test}) == 5
    stored = {read_image(case.images[0]).header.get_data_dtype().kind for case in datalist.training}
    slopes = {float(read_image(case.images[0]).header["scl_slope"]) for case in datalist.training}
    assert stored == {"i", "f"}
    assert len(slopes) > 1
    assert {case.images[0].suffix for case in datalist.test} == {".nii", ".gz"}
    for subject, case in enumerate(datalist.training + datalist.test):
        image, labels = make_subject("brain", subject, resolution=TINY)
        scan = read_channels(case.images)
        assert scan.same_grid(image) is None
        np.testing.assert_allclose(scan.array, image.array, atol=0.5)
        truth = read_truth(case, datalist.structures, scan)
        np.testing.assert_array_equal(datalist.structures.decode(truth.array), labels.array)


def test_held_out_truth_lies_beside_the_held_out_scans(tmp_path):
    write_phantoms(tmp_path, training=1, test=1, resolution=8.0)
    assert [path.name for path in (tmp_path / "imagesTs").iterdir()] == [
        path.name for path in (tmp_path / "labelsTs").iterdir()
    ]


def test_killed_and_run_again_gives_the_same_bytes(tmp_path):
    write_phantoms(tmp_path, training=2, test=1, resolution=8.0)
    whole = files(tmp_path)
    kept = tmp_path / "imagesTr" / "brain_000.nii.gz"
    time = kept.stat().st_mtime_ns
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "imagesTr" / "brain_001.nii.gz").unlink()
    write_phantoms(tmp_path, training=2, test=1, resolution=8.0)
    assert files(tmp_path) == whole
    assert kept.stat().st_mtime_ns == time


def test_processes_change_nothing(tmp_path):
    write_phantoms(tmp_path / "one", training=2, test=0, resolution=8.0, workers=1)
    write_phantoms(tmp_path / "two", training=2, test=0, resolution=8.0, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("change", [{"seed": 1}, {"resolution": 7.0}, {"kind": "torso", "resolution": 8.0}, {"training": 2}])
def test_other_parameters_are_not_mixed_in(tmp_path, change):
    arguments = {"kind": "brain", "training": 1, "test": 0, "seed": 0, "resolution": 8.0}
    write_phantoms(tmp_path, **arguments)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=f"{next(iter(change))}=.* but got {next(iter(change))}="):
        write_phantoms(tmp_path, **{**arguments, **change})
    assert files(tmp_path) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        write_phantoms(tmp_path, training=1, test=0, resolution=8.0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("counts", [{"training": 0, "test": 0}, {"training": -1}, {"workers": 0}])
def test_counts_that_make_no_sense_are_refused(tmp_path, counts):
    with pytest.raises(UsageError, match="`training` and `test`"):
        write_phantoms(tmp_path / "out", **{"training": 1, "test": 1, "resolution": 8.0, **counts})
    assert not (tmp_path / "out").exists()
