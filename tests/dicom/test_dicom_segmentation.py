import sys

import numpy as np
import pydicom
import pytest
from series_maker import UID_ROOT, write_series

from medseg_se.dicom import find_series
from medseg_se.dicom.codes import ANATOMICAL, LEFT, RIGHT, TISSUE, meaning_of
from medseg_se.dicom.segmentation import on_series, write_dicom_seg
from medseg_se.errors import DataError, OutputError, UsageError
from medseg_se.structures import Structures
from medseg_se.version import __version__
from medseg_se.volumes import Volume, read_labels, reorient, write_volume

highdicom = pytest.importorskip("highdicom")

STRUCTURES = Structures({"Left-Hippocampus": (17,), "absent": (2,), "liver": (300,), "Anterior": (4,)})
SHAPE = (6, 5, 4)  # slices, rows, columns


def scan(seed=0):
    return np.random.default_rng(seed).integers(-500, 1500, size=SHAPE)


@pytest.fixture
def labels():
    """Label values (slices, rows, columns); slice 2 is empty, and nothing is symmetric."""
    values = np.random.default_rng(1).choice([0, 17, 300, 4], p=[0.4, 0.2, 0.2, 0.2], size=SHAPE).astype(np.int16)
    values[2] = 0
    return values


@pytest.fixture
def case(tmp_path, labels):
    """Return a function that writes a series and returns its folder and the label map that lies on it."""

    def make(**options):
        affine = write_series(tmp_path / "in", scan(), **options)
        return tmp_path / "in", Volume(np.ascontiguousarray(labels.transpose(2, 1, 0))[None], affine)

    return make


def voxels_of(path, affine, structures=STRUCTURES):
    """Read a segmentation frame by frame with pydicom and put each voxel where its patient coordinates say, (1, I, J, K)."""
    data = pydicom.dcmread(path)
    names = {segment.SegmentNumber: segment.SegmentLabel for segment in data.SegmentSequence}
    found = np.zeros((SHAPE[2], SHAPE[1], SHAPE[0]), dtype=np.int16)
    frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    shared = data.SharedFunctionalGroupsSequence[0]
    row_mm, column_mm = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    for frame, groups in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        segment = (groups if "SegmentIdentificationSequence" in groups else shared).SegmentIdentificationSequence[0]
        value = structures.values[names[segment.ReferencedSegmentNumber]][0]
        for r, c in np.argwhere(frame):
            lps = position + orientation[:3] * column_mm * c + orientation[3:] * row_mm * r
            index = np.linalg.solve(affine, [-lps[0], -lps[1], lps[2], 1])[:3]
            np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
            i, j, k = np.rint(index).astype(int)
            assert found[i, j, k] == 0
            found[i, j, k] = value
    return found[None]


# ----------------------------------------------------------------------------------------------------------------------- place


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (180, 0, 0), (90, 0, 0), (0, 90, 90), (12, -25, 40)])
def test_every_voxel_lies_where_the_label_map_has_it(tmp_path, case, degrees, reverse):
    folder, labels = case(degrees=degrees, reverse=reverse)
    assert write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "out.dcm")
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.dcm", labels.affine), labels.array)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "IPL"])
def test_a_label_map_whose_axes_were_turned_gives_the_same(tmp_path, case, orientation):
    folder, labels = case(degrees=(12, -25, 40))
    write_volume(reorient(labels, orientation), tmp_path / "turned.nii.gz")
    write_dicom_seg(read_labels(tmp_path / "turned.nii.gz"), folder, STRUCTURES, tmp_path / "out.dcm")
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.dcm", labels.affine), labels.array)
    (series,) = find_series(folder).series
    np.testing.assert_array_equal(on_series(reorient(labels, orientation), series), labels.array[0].transpose(2, 1, 0))


def test_each_frame_refers_to_the_slice_in_whose_place_it_lies(tmp_path, case):
    folder, labels = case(degrees=(12, -25, 40))
    write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "out.dcm")
    by_uid = {data.SOPInstanceUID: data for data in map(pydicom.dcmread, folder.iterdir())}
    made = pydicom.dcmread(tmp_path / "out.dcm")
    assert {item.ReferencedSOPInstanceUID for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence} == set(
        by_uid
    )
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == f"{UID_ROOT}.7"
    expected = sum(len(np.unique(plane[plane > 0])) for plane in labels.array[0].transpose(2, 1, 0))
    assert made.NumberOfFrames == expected == len(made.PerFrameFunctionalGroupsSequence)
    for groups in made.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        theirs = by_uid[source.ReferencedSOPInstanceUID].ImagePositionPatient
        np.testing.assert_allclose(groups.PlanePositionSequence[0].ImagePositionPatient, theirs, atol=1e-4)


def test_another_reader_makes_the_same_of_it(tmp_path, case):
    folder, labels = case()
    write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "out.dcm")
    made = highdicom.seg.segread(tmp_path / "out.dcm")
    uids = [one.tags["SOPInstanceUID"] for one in find_series(folder).series[0].slices]
    combined = made.get_pixels_by_source_instance(
        uids, combine_segments=True, relabel=False, assert_missing_frames_are_empty=True
    )
    values = np.array([0, *(STRUCTURES.values[made.get_segment_description(n).segment_label][0] for n in made.segment_numbers)])
    np.testing.assert_array_equal(values[combined], labels.array[0].transpose(2, 1, 0))


# --------------------------------------------------------------------------------------------------------------------- content


def test_it_says_what_was_found_by_what_and_of_whom(tmp_path, case):
    folder, labels = case()
    write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "out.dcm", model="abc123")
    made = pydicom.dcmread(tmp_path / "out.dcm")
    source = pydicom.dcmread(next(folder.iterdir()))
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "AccessionNumber"):
        assert made[name].value == source[name].value
    assert (made.Modality, made.SegmentationType, made.SeriesNumber) == ("SEG", "BINARY", 799)
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert [one.SegmentLabel for one in made.SegmentSequence] == ["Left-Hippocampus", "liver", "Anterior"]
    first, liver, other = made.SegmentSequence
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("5366008", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    for segment in made.SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("medseg_se", __version__)
        assert "abc123" in algorithm.AlgorithmParameters


def test_absent_structures_become_segments_when_asked_for(tmp_path, case):
    folder, labels = case()
    write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "out.dcm", every=True)
    assert [one.SegmentLabel for one in pydicom.dcmread(tmp_path / "out.dcm").SegmentSequence] == list(STRUCTURES.names)
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.dcm", labels.affine), labels.array)


def test_several_values_of_a_structure_and_unknown_voxels_are_one_segment_and_none(tmp_path, case):
    folder, labels = case()
    structures = Structures({"both": (17, 300)}, ignore=4)
    write_dicom_seg(labels, folder, structures, tmp_path / "out.dcm")
    expected = np.where(np.isin(labels.array, (17, 300)), 17, 0)
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.dcm", labels.affine, structures), expected)


def test_a_series_without_the_entries_that_anonymising_takes_away_will_do(tmp_path, case):
    missing = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime")
    folder, labels = case(**dict.fromkeys((*missing, "AccessionNumber", "FrameOfReferenceUID", "SeriesNumber")))
    write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "out.dcm")
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.dcm", labels.affine), labels.array)
    first = pydicom.dcmread(tmp_path / "out.dcm").FrameOfReferenceUID
    write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "again.dcm")
    assert pydicom.dcmread(tmp_path / "again.dcm").FrameOfReferenceUID == first


def test_where_nothing_was_found_nothing_is_written_and_nothing_old_stays(tmp_path, case):
    folder, labels = case()
    empty = Volume(np.zeros_like(labels.array), labels.affine)
    assert not write_dicom_seg(empty, folder, STRUCTURES, tmp_path / "out.dcm")
    write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "out.dcm")
    assert not write_dicom_seg(empty, folder, STRUCTURES, tmp_path / "out.dcm")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# ------------------------------------------------------------------------------------------------------------------ what breaks


def test_a_label_map_on_another_grid_is_refused(tmp_path, case):
    folder, labels = case()
    moved = labels.affine.copy()
    moved[0, 3] += 1
    for wrong, what in (
        (Volume(labels.array, moved), "affines that put"),
        (Volume(labels.array[:, :, :, :-1], labels.affine), "shape"),
        (Volume(labels.array, labels.affine[:, [1, 0, 2, 3]]), "shape"),
    ):
        with pytest.raises(DataError, match=rf"on the grid of the series in .*{what}"):
            write_dicom_seg(wrong, folder, STRUCTURES, tmp_path / "out.dcm")
    assert not (tmp_path / "out.dcm").exists()


def test_what_is_not_one_series_is_refused(tmp_path, case, labels):
    folder, volume = case()
    write_series(folder, scan(), number=8, prefix="B")
    with pytest.raises(DataError, match="found 2; name a file of it"):
        write_dicom_seg(volume, folder, STRUCTURES, tmp_path / "out.dcm")
    assert write_dicom_seg(volume, folder / "IM000", STRUCTURES, tmp_path / "out.dcm")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="found no DICOM image"):
        write_dicom_seg(volume, tmp_path / "none", STRUCTURES, tmp_path / "out.dcm")
    write_series(tmp_path / "gap", scan()[[0]])
    with pytest.raises(DataError, match="is a single image"):
        write_dicom_seg(volume, tmp_path / "gap", STRUCTURES, tmp_path / "out.dcm")


def test_an_undeclared_value_and_a_folder_that_is_a_file_are_named(tmp_path, case):
    folder, labels = case()
    with pytest.raises(DataError, match="not declared"):
        write_dicom_seg(labels, folder, Structures({"liver": (300,)}), tmp_path / "out.dcm")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write"):
        write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "file" / "out.dcm")


def test_a_missing_package_is_named_with_its_extra(tmp_path, case, monkeypatch):
    folder, labels = case()
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UsageError, match=r"'highdicom', which is not installed.*medseg-se\[dicom\]"):
        write_dicom_seg(labels, folder, STRUCTURES, tmp_path / "out.dcm")


# ----------------------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize(
    ("name", "words", "side"),
    [
        ("Left-Hippocampus", "Hippocampus", LEFT),
        ("kidney_right", "Kidney", RIGHT),
        ("LungL", "Lung", LEFT),
        ("lung_upper_lobe_left", "Upper lobe of lung", LEFT),
        ("Right-Cerebral-White-Matter", "Cerebral White Matter", RIGHT),
        ("3rd-Ventricle", "Third ventricle", None),
        ("vertebrae_L1", "L1 vertebra", None),
        ("vertebrae_T12", "T12 vertebra", None),
        ("rib_left_4", "Rib", LEFT),
        ("liver tumor", "Neoplasm", None),
        ("Brain-Stem", "Brain Stem", None),
        ("Left-Thalamus-Proper", "Thalamus", LEFT),
        ("CSF", "Cerebrospinal Fluid", None),
        ("muscle", "Muscle", None),
    ],
)
def test_common_names_have_codes(name, words, side):
    found = meaning_of(name)
    assert (found.kind[1], found.side) == (words, side)


@pytest.mark.parametrize("name", ["Anterior", "left", "vertebrae_T13", "non-wm", "", "organ 7"])
def test_nothing_is_guessed_of_other_names(name):
    assert (meaning_of(name).category, meaning_of(name).kind) == (ANATOMICAL, TISSUE)


def test_codes_mean_what_the_standard_says():
    from pydicom.sr._concepts_dict import concepts

    from medseg_se.dicom import codes

    standard = {}
    for of_name in concepts["SCT"].values():
        for value, (meaning, _) in of_name.items():
            standard.setdefault(value, set()).add(meaning.lower())
    tables = (codes._STRUCTURES, codes._TISSUES, codes._LESIONS, codes._SUBSTANCES)
    named = [code for table in tables for code in table.values()]
    named += [meaning_of(f"{letter}{n}").kind for letter, count in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, count + 1)]
    for value, words in (*named, codes.ANATOMICAL, codes.TISSUE, codes.ABNORMAL, codes.SUBSTANCE, LEFT, RIGHT):
        assert words.lower() in standard[value]
