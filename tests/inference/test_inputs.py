import json
import pickle
import re

import numpy as np
import pytest
from series_maker import write_series

from medseg_se.errors import DataError
from medseg_se.inference.inputs import find_cases
from medseg_se.inference.reading import read_scan


@pytest.fixture
def touch(tmp_path):
    """Return a function that makes empty files: which cases there are is decided by names alone."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def named(cases):
    """Return case → the names of its files."""
    return {case.id: [path.name for path in case.images] for case in cases}


def test_files_and_folders_are_a_case_a_scan(touch):
    root = touch("one.nii.gz", "scans/b.nii", "scans/a.nii.gz", "scans/notes.txt", "scans/._a.nii.gz")
    cases = find_cases([root / "one.nii.gz", str(root / "scans")], channels=1)
    assert named(cases) == {"one": ["one.nii.gz"], "a": ["a.nii.gz"], "b": ["b.nii"]}


def test_a_file_of_another_kind_is_left_for_prediction_to_refuse(touch):
    assert named(find_cases([touch("photo.jpeg") / "photo.jpeg"], channels=1)) == {"photo": ["photo.jpeg"]}


def test_a_dataset_lists_its_cases(touch):
    root = touch("data/imagesTr/a.nii.gz", "data/imagesTs/b.nii.gz", "data/stray.nii.gz")
    content = {
        "labels": {"0": "background", "1": "liver"},
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", "id": "first"}],
        "test": ["imagesTs/b.nii.gz"],
    }
    (root / "data" / "dataset.json").write_text(json.dumps(content))
    expected = {"first": ["a.nii.gz"], "b": ["b.nii.gz"]}
    assert named(find_cases([root / "data"], channels=1)) == expected
    assert named(find_cases([root / "data" / "dataset.json"], channels=1)) == expected


def test_a_csv_beside_scans_is_a_dataset_only_if_it_lists_images(touch):
    root = touch("a.nii.gz", "a_truth.nii.gz")
    (root / "structures.json").write_text(json.dumps({"background": 0, "liver": 1}))
    (root / "table.csv").write_text("case,Dice\na,0.9\n")
    assert set(named(find_cases([root], channels=1))) == {"a", "a_truth"}
    (root / "table.csv").write_text("id,image,label\nx,a.nii.gz,a_truth.nii.gz\n")
    assert named(find_cases([root], channels=1)) == {"x": ["a.nii.gz"]}
    assert named(find_cases([root / "table.csv"], channels=1)) == {"x": ["a.nii.gz"]}


def test_numbered_files_are_the_channels_of_a_case(touch):
    root = touch("b_0001.nii.gz", "a_0000.nii.gz", "b_0000.nii.gz", "a_0001.nii.gz")
    expected = {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz", "b_0001.nii.gz"]}
    assert named(find_cases([root], channels=2)) == expected
    given = [root / "b_0001.nii.gz", root / "b_0000.nii.gz"]
    assert named(find_cases(given, channels=2)) == {"b": expected["b"]}


def test_for_one_channel_the_channel_number_is_dropped(touch):
    root = touch("a_0000.nii.gz", "b_c_0000.nii.gz")
    assert named(find_cases([root], channels=1)) == {"a": ["a_0000.nii.gz"], "b_c": ["b_c_0000.nii.gz"]}


def test_for_one_channel_a_numbered_series_is_as_many_cases(touch):
    root = touch("scan_0000.nii.gz", "scan_0001.nii.gz", "scan_0002.nii.gz")
    assert list(named(find_cases([root], channels=1))) == ["scan_0000", "scan_0001", "scan_0002"]


def test_files_with_all_channels_are_a_case_each(touch):
    root = touch("a_0010.nii.gz", "a_0011.nii.gz", "b.nii.gz")
    assert list(named(find_cases([root], channels=4))) == ["a_0010", "a_0011", "b"]


@pytest.mark.parametrize(
    "names", [["a_0000.nii.gz"], ["a_0000.nii.gz", "a_0002.nii.gz"], [f"a_000{n}.nii.gz" for n in range(3)]]
)
def test_a_missing_or_surplus_channel_is_named(touch, names):
    root = touch(*names)
    with pytest.raises(DataError, match=r"channels a_0000, a_0001 of case a, but got a_0000\.nii\.gz"):
        find_cases([root], channels=2)


def test_two_inputs_of_one_name_are_refused(touch):
    root = touch("one/a.nii.gz", "two/a.nii.gz", "three/a.nii")
    for other in ("two", "three"):
        with pytest.raises(DataError, match=r"one/a\.nii\.gz and .*a\.nii.* would both be written as a; predict them apart"):
            find_cases([root / "one", root / other], channels=1)


def test_what_is_not_there_is_named(touch):
    root = touch("empty/notes.txt")
    with pytest.raises(DataError, match=r"No such file or folder: .*nowhere"):
        find_cases([root / "nowhere"], channels=1)
    with pytest.raises(DataError, match=r"empty holds no \.nii or \.nii\.gz file and no dataset\.json, nor a DICOM series"):
        find_cases([root / "empty"], channels=1)


# ----------------------------------------------------------------------------------------------------------------------- DICOM


def slices(count=4, seed=0):
    return np.random.default_rng(seed).integers(0, 900, size=(count, 5, 6))


def test_a_dicom_folder_is_a_case_called_after_the_folder(tmp_path):
    write_series(tmp_path / "head 1", slices())
    (tmp_path / "head 1" / "notes.txt").touch()
    (case,) = find_cases([tmp_path / "head 1"], channels=1)
    assert (case.id, case.group, len(case.images)) == ("head_1", "head_1", 4)
    assert {path.parent.name for path in case.images} == {"head 1"}


def test_the_folder_one_stands_in_is_called_by_its_name(tmp_path, monkeypatch):
    write_series(tmp_path / "head", slices())
    monkeypatch.chdir(tmp_path / "head")
    assert [case.id for case in find_cases(["."], channels=1)] == ["head"]


def test_a_folder_of_series_folders_is_a_case_a_series(tmp_path):
    write_series(tmp_path / "in" / "a" / "ct", slices(), number=1)
    write_series(tmp_path / "in" / "b", slices(seed=1), number=2)
    write_series(tmp_path / "in" / "b", slices(seed=2), number=3, prefix="X")
    write_series(tmp_path / "in", slices(seed=3), number=4)
    cases = {case.id: read_scan(case, 1).array[0] for case in find_cases([tmp_path / "in"], channels=1)}
    assert set(cases) == {"a_ct", "b_2", "b_3", "in"}
    np.testing.assert_array_equal(cases["b_3"], slices(seed=2).transpose(2, 1, 0))


def test_series_of_one_number_are_told_apart_by_their_identifiers(tmp_path):
    for number in (1, 2):
        write_series(tmp_path / "in", slices(), number=number, prefix=str(number), SeriesNumber=None)
    first = [case.id for case in find_cases([tmp_path / "in"], channels=1)]
    assert all(re.fullmatch("in_[0-9a-f]{12}", name) for name in first)
    assert len(set(first)) == 2
    assert [case.id for case in find_cases([tmp_path / "in"], channels=1)] == first


def test_a_series_of_two_echoes_is_two_cases(tmp_path):
    write_series(tmp_path / "in", slices(), EchoTime=5)
    write_series(tmp_path / "in", slices(seed=1), prefix="B", EchoTime=40)
    for path in (tmp_path / "in").glob("B*"):  # the same series, other images
        path.write_bytes(path.read_bytes().replace(b"1.2.826.0.1.999.7.", b"1.2.826.0.1.999.8."))
    assert [case.id for case in find_cases([tmp_path / "in"], channels=1)] == ["in_1", "in_2"]


def test_a_dicom_file_stands_for_its_series_once(tmp_path):
    write_series(tmp_path / "in", slices(), number=1)
    write_series(tmp_path / "in", slices(seed=1), number=2, prefix="B")
    (case,) = find_cases([tmp_path / "in" / "B002"], channels=1)
    assert (case.id, {path.name[0] for path in case.images}) == ("in", {"B"})
    assert len(find_cases(sorted((tmp_path / "in").glob("B*")), channels=1)) == 1


@pytest.mark.parametrize("folder", ["Mustermann_CT", "erika", "scan 4711"])
def test_a_folder_named_like_the_patient_names_no_case(tmp_path, folder):
    write_series(tmp_path / folder, slices())
    (case,) = find_cases([tmp_path / folder], channels=1)
    assert re.fullmatch("series_[0-9a-f]{12}", case.id)
    write_series(tmp_path / "made up" / folder, slices(), PatientIdentityRemoved="YES")
    (case,) = find_cases([tmp_path / "made up" / folder], channels=1)
    assert case.id == folder.replace(" ", "_")


def test_a_case_travels_without_saying_whose_it_is(tmp_path):
    write_series(tmp_path / "in", slices())
    (case,) = find_cases([tmp_path / "in"], channels=1)
    sent = pickle.dumps(case)
    for private in (b"Mustermann", b"4711", b"19640812"):
        assert private not in sent
    np.testing.assert_array_equal(read_scan(pickle.loads(sent), 1).array, read_scan(case, 1).array)


def test_a_series_that_makes_no_volume_is_a_case_that_fails_with_the_reason(tmp_path):
    write_series(tmp_path / "in" / "good", slices(), number=1)
    write_series(tmp_path / "in" / "gap", slices(6), number=2, reverse=True)
    (tmp_path / "in" / "gap" / "IM003").unlink()
    write_series(tmp_path / "in" / "single", slices(1), number=3)
    (tmp_path / "in" / "torn").mkdir()
    content = sorted((tmp_path / "in" / "good").iterdir())[0].read_bytes()
    (tmp_path / "in" / "torn" / "x").write_bytes(content[:160])
    cases = {case.id: case for case in find_cases([tmp_path / "in"], channels=1)}
    assert set(cases) == {"good", "gap", "single", "torn"}
    assert read_scan(cases["good"], 1).shape == (6, 5, 4)
    for name, reason in (("gap", "mm apart"), ("single", "is a single image"), ("torn", "truncated or corrupt")):
        with pytest.raises(DataError, match=reason):
            read_scan(cases[name], 1)


def test_the_only_series_says_at_once_why_it_makes_no_volume(tmp_path):
    write_series(tmp_path / "in", slices(1))
    with pytest.raises(DataError, match=r"The series in .*in is a single image"):
        find_cases([tmp_path / "in"], channels=1)
    (tmp_path / "a.nii").touch()
    assert [case.id for case in find_cases([tmp_path / "in", tmp_path / "a.nii"], channels=1)] == ["a", "in"]


def test_a_dicom_file_that_is_no_scan_is_refused(tmp_path):
    write_series(tmp_path / "in", slices(2), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    with pytest.raises(DataError, match=r"Expected a scan, but .*IM000 is something else: no scan"):
        find_cases([tmp_path / "in" / "IM000"], channels=1)


def test_channels_of_dicom_are_folders_with_their_numbers(tmp_path):
    for name, number in (("a_0000", 1), ("a_0001", 2), ("b_0001", 3), ("b_0000", 4)):
        write_series(tmp_path / "in" / name, slices(seed=number), number=number)
    cases = {case.id: case for case in find_cases([tmp_path / "in"], channels=2)}
    assert set(cases) == {"a", "b"}
    image = read_scan(cases["b"], 2)
    np.testing.assert_array_equal(image.array[0], slices(seed=4).transpose(2, 1, 0))
    np.testing.assert_array_equal(image.array[1], slices(seed=3).transpose(2, 1, 0))
    given = [tmp_path / "in" / "a_0001", tmp_path / "in" / "a_0000"]
    assert len(find_cases(given, channels=2)[0].images) == 8


@pytest.mark.parametrize("names", [["a"], ["a_0000"], ["a_0000", "a_0002"], ["a_0000", "a_0001", "b"], ["a_0000", "a_0000"]])
def test_channels_that_are_not_told_apart_for_sure_are_refused(tmp_path, names):
    for number, name in enumerate(names):
        write_series(tmp_path / "in" / name, slices(), number=number, prefix=str(number))
    with pytest.raises(DataError, match=r"scans of 2 channels, but a DICOM series is one.*folder named CASE_0000, CASE_0001"):
        find_cases([tmp_path / "in"], channels=2)
