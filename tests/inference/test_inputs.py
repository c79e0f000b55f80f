import json

import pytest

from medseg_se.errors import DataError
from medseg_se.inference.inputs import find_cases


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
    with pytest.raises(DataError, match=r"empty holds no \.nii or \.nii\.gz file and no dataset\.json"):
        find_cases([root / "empty"], channels=1)
