import gzip
import json
import re

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from medseg_se.data_prep.main import main
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from medseg_se.data.datalist import read_datalist
from medseg_se.dicom import find_series, read_series
from medseg_se.errors import DataError
from medseg_se.volumes import read_image

SERIES = "1.2.826.0.1.999.7"
IDENTITY = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "PID-4711-0815",
    "PatientBirthDate": "19640812",
    "PatientAddress": "Heidestrasse 17",
    "AccessionNumber": "ACC99887766",
    "StudyDate": "20190305",
    "SeriesDate": "20190306",
    "ReferringPhysicianName": "Quacksalber^Ignaz",
    "InstitutionName": "Charite Nirgendwo",
    "StudyDescription": "Schaedel Verdacht",
    "SeriesDescription": "Ax T1 Erika privat",
    "PatientComments": "Nachbarin von Hans",
    "StationName": "SCANNER3KELLER",
    "DeviceSerialNumber": "SN77665544",
}


def turned(degrees=(0, 0, 0)):
    """Row, column and normal (columns of a matrix), rotated about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (i, j) = np.eye(3), [other for other in range(3) if other != axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def voxels(count=6, rows=5, columns=4, seed=0):
    return np.random.default_rng(seed).integers(-500, 1500, size=(count, rows, columns)).astype(np.int16)


def write_slice(path, stored, number, position, directions, spacing=(0.8, 0.5), syntax=ExplicitVRLittleEndian, **tags):
    """Write one file as a scanner does; `tags` overwrite entries, None takes one away."""
    kind = tags.pop("SOPClassUID", CTImageStorage)
    series = tags.get("SeriesInstanceUID", SERIES)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = UID(f"{series}.{tags.pop('image', number)}")
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    entries = {
        **IDENTITY,
        "SOPClassUID": kind,
        "SOPInstanceUID": data.file_meta.MediaStorageSOPInstanceUID,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Modality": "CT",
        "Manufacturer": "ACME",
        "StudyInstanceUID": "1.2.826.0.1.999",
        "SeriesInstanceUID": series,
        "InstanceNumber": number,
        "ImagePositionPatient": [f"{value:.6f}" for value in position],
        "ImageOrientationPatient": [f"{value:.6f}" for value in directions[:, :2].T.ravel()],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "PixelSpacing": list(spacing),
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        **tags,
    }
    for name, value in entries.items():
        if value is not None:
            setattr(data, name, value)
    data.PixelData = stored.astype("<i2").tobytes()
    if syntax == RLELossless:
        data.compress(RLELossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def write_series(folder, stored=None, step=2.5, degrees=(0, 0, 0), shear=(0, 0, 0), each=None, leave_out=(), **tags):
    """Write a series of which slice k lies k steps along the normal; names and numbers do not follow the positions.

    `shear` (mm, LPS) shifts each slice more than the one before; `each` gives more tags by slice.
    """
    stored = voxels() if stored is None else stored
    matrix, origin = turned(degrees), np.array([-20.0, 11.0, 42.5])
    names = np.random.default_rng(7).permutation(len(stored))
    prefix = tags.pop("prefix", "IM")
    for k, plane in enumerate(stored):
        if k not in leave_out:
            own = {**tags, **(each(k) if each else {})}
            position = origin + matrix[:, 2] * step * k + np.array(shear) * k
            write_slice(folder / f"{prefix}{names[k]:03d}", plane, int(names[k]) + 1, position, matrix, **own)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ matrix * [0.5, 0.8, step]
    affine[:3, 3] = np.diag([-1, -1, 1]) @ origin
    return stored.transpose(2, 1, 0), affine


def summary(folder):
    return json.loads((folder / "conversion.json").read_text())


def only_reason(folder):
    """Why the one series that was left out was."""
    (why,) = summary(folder)["left_out"].values()
    return why


def convert(tmp_path, *options):
    return main(["dicom", str(tmp_path / "in"), str(tmp_path / "out"), *options])


# ----------------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("degrees", [(0, 0, 0), (90, 0, 0), (0, 90, 90), (12, -25, 40)])
def test_slices_are_put_in_the_order_of_their_places(tmp_path, degrees):
    array, affine = write_series(tmp_path / "in", degrees=degrees)
    assert convert(tmp_path) == 0
    (case,) = read_datalist(tmp_path / "out").training
    written = nib.load(case.images[0])
    np.testing.assert_array_equal(written.get_fdata(), array)
    np.testing.assert_allclose(written.affine, affine, atol=1e-4)
    assert re.fullmatch("series_[0-9a-f]{12}", case.id)
    assert case.attributes == {"modality": "CT", "manufacturer": "ACME"}
    assert read_datalist(tmp_path / "out").channels == ("CT",)


def test_the_place_agrees_with_what_another_reader_makes_of_it(tmp_path):
    write_series(tmp_path, degrees=(12, -25, 40))
    (series,) = find_series(tmp_path).series
    ours = read_series(series)
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    theirs = SimpleITK.ReadImage(names)
    for index in [(0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5), (3, 4, 5)]:
        x, y, z = theirs.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((ours.affine @ [*index, 1])[:3], (-x, -y, z), atol=1e-3)
        assert ours.array[(0, *index)] == theirs[index]


def test_values_are_rescaled_slice_by_slice(tmp_path):
    stored = np.abs(voxels())
    write_series(
        tmp_path / "in",
        stored,
        SOPClassUID=PositronEmissionTomographyImageStorage,
        Modality="PT",
        each=lambda k: {"RescaleSlope": f"{0.5 + k / 4}", "RescaleIntercept": "-3"},
    )
    assert convert(tmp_path) == 0
    (case,) = read_datalist(tmp_path / "out").training
    expected = stored.transpose(2, 1, 0) * (0.5 + np.arange(6) / 4) - 3
    np.testing.assert_allclose(read_image(case.images[0]).array[0], expected)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_other_encodings_hold_the_same_numbers(tmp_path, syntax):
    array, _ = write_series(tmp_path, voxels(rows=64, columns=64), syntax=syntax)
    (series,) = find_series(tmp_path).series
    np.testing.assert_array_equal(read_series(series).array[0], array)


def test_a_file_stands_for_its_series(tmp_path):
    write_series(tmp_path, prefix="a")
    array, _ = write_series(tmp_path, voxels(4, seed=3), prefix="b", SeriesInstanceUID=f"{SERIES}1")
    found = find_series(tmp_path / "b000")
    assert [series.uid for series in found.series] == [f"{SERIES}1"]
    np.testing.assert_array_equal(read_series(found.series[0]).array[0], array)


def test_places_that_were_rounded_are_believed(tmp_path):
    """Slices 0.625 mm apart whose places are given to a tenth of a millimetre, which makes steps of 0.6 and 0.7 mm."""
    write_series(tmp_path, voxels(9), each=lambda k: {"ImagePositionPatient": [0, 0, f"{0.625 * k:.1f}"]})
    (series,) = find_series(tmp_path).series
    assert read_series(series).spacing == pytest.approx((0.5, 0.8, 0.625))


# --------------------------------------------------------------------------------------------------------- several in a folder


def test_a_folder_of_everything(tmp_path):
    """Two patients, one with two series in one folder, a localizer, a secondary capture, a report and other files."""
    source = tmp_path / "in"
    first, _ = write_series(source / "disc" / "a", voxels(seed=1))
    second, _ = write_series(source / "disc" / "a", voxels(seed=2), prefix="X", SeriesInstanceUID=f"{SERIES}1")
    third, _ = write_series(source / "b", voxels(seed=3), SeriesInstanceUID="1.9.1", PatientID="other", PatientName="Else")
    directions, place = turned(), np.zeros(3)
    plane = voxels(1)[0]
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.9.2"}
    write_slice(source / "scout.dcm", plane, 1, place, directions, **scout)
    photo = {"SOPClassUID": SecondaryCaptureImageStorage, "SeriesInstanceUID": "1.9.3"}
    write_slice(source / "photo.dcm", plane, 1, place, directions, **photo)
    report = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11", "SeriesInstanceUID": "1.9.4", "Modality": "SR"}
    write_slice(source / "report.dcm", plane, 1, place, directions, **report)
    (source / "readme.txt").write_text("hello")
    (source / "empty").touch()
    (source / "._IM000").write_text("left by a Mac")
    for path in (source / "b").iterdir():  # the same once more
        (source / "copy" / path.name).parent.mkdir(exist_ok=True)
        (source / "copy" / path.name).write_bytes(path.read_bytes())
    assert convert(tmp_path) == 0
    cases = read_datalist(tmp_path / "out").training
    images = [read_image(case.images[0]).array[0] for case in cases]
    by_sum = {int(image.sum()): case for image, case in zip(images, cases, strict=True)}
    one, two, other = (by_sum[int(array.sum())] for array in (first, second, third))
    assert one.group == two.group != other.group
    assert summary(tmp_path / "out")["notes"] == [
        "6 files passed over: copy of an image.",
        "1 file passed over: localizer.",
        "2 files passed over: no DICOM file.",
        "1 file passed over: no scan (report, contour, segmentation, plan or the like).",
        "1 file passed over: secondary capture.",
    ]


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("EchoTime", (4.9, 12.5)),
        ("TemporalPositionIdentifier", (1, 2)),
        ("ImageType", ("ORIGINAL\\PRIMARY\\W", "ORIGINAL\\PRIMARY\\F")),
    ],
)
def test_volumes_of_one_series_are_parted(tmp_path, tag, values):
    arrays = []
    for number, value in enumerate(values):
        tags = {tag: value, "AcquisitionTime": f"10{number}000"}
        arrays.append(
            write_series(
                tmp_path / "in" / str(number), voxels(seed=number), **tags, each=lambda k, n=number: {"image": 10 * n + k}
            )[0]
        )
    assert convert(tmp_path) == 0
    cases = read_datalist(tmp_path / "out").training
    assert [case.id[-2:] for case in cases] == ["_1", "_2"]
    assert cases[0].group == cases[1].group
    found = [read_image(case.images[0]).array[0] for case in cases]
    expected = arrays if tag != "ImageType" else arrays[::-1]  # F before W
    np.testing.assert_array_equal(found, expected)
    (note,) = summary(tmp_path / "out")["cases"][cases[0].id]["notes"]
    assert note == f"It is volume 1 of its series, whose volumes differ in {tag}."


def test_a_time_point_that_was_broken_off_is_left_out_alone(tmp_path):
    whole, _ = write_series(tmp_path / "in" / "1", TemporalPositionIdentifier=1)
    write_series(tmp_path / "in" / "2", leave_out=(4, 5), TemporalPositionIdentifier=2, each=lambda k: {"image": 50 + k})
    assert convert(tmp_path) == 1
    assert only_reason(tmp_path / "out") == "It has 4 slices where another volume of its series has 6."
    (case,) = read_datalist(tmp_path / "out").training
    np.testing.assert_array_equal(read_image(case.images[0]).array[0], whole)


def test_orientations_of_one_series_are_parted(tmp_path):
    write_series(tmp_path / "in" / "1")
    write_series(tmp_path / "in" / "2", voxels(4), degrees=(90, 0, 0), each=lambda k: {"image": 50 + k})
    assert convert(tmp_path) == 0
    shapes = [read_image(case.images[0]).shape for case in read_datalist(tmp_path / "out").training]
    assert sorted(shapes) == [(4, 5, 4), (4, 5, 6)]


def test_one_modality_is_chosen(tmp_path, capsys):
    write_series(tmp_path / "in" / "ct")
    write_series(tmp_path / "in" / "mr", Modality="MR", SeriesInstanceUID="1.9", MagneticFieldStrength="1.5")
    assert convert(tmp_path) == 2
    assert "several modalities, CT (1), MR (1). Choose one with --modality." in capsys.readouterr().err
    assert convert(tmp_path, "--modality", "PT") == 2
    assert "one of those found, CT (1), MR (1), but got 'PT'" in capsys.readouterr().err
    assert convert(tmp_path, "--modality", "mr") == 0
    (case,) = read_datalist(tmp_path / "out").training
    assert case.attributes == {"modality": "MR", "manufacturer": "ACME", "field_strength": 1.5}
    assert summary(tmp_path / "out")["notes"] == ["1 series of CT passed over."]


@pytest.mark.parametrize(("group", "count"), [("patient", 2), ("study", 3), ("series", 4)])
def test_groups(tmp_path, group, count):
    people = [("1.1", "A", "s1"), ("1.2", "A", "s1"), ("1.3", "A", "s2"), ("1.4", "B", "s3")]
    for uid, person, study in people:
        write_series(
            tmp_path / "in" / uid, voxels(2), SeriesInstanceUID=uid, PatientID=person, StudyInstanceUID=f"1.7.{study[1]}"
        )
    assert convert(tmp_path, "--group", group) == 0
    assert len({case.group for case in read_datalist(tmp_path / "out").training}) == count


def test_nameless_patients_are_grouped_by_study_and_one_name_for_all_is_doubted(tmp_path):
    nameless = {"PatientID": None, "PatientName": None}
    for uid, study in (("1.1", "1.7.1"), ("1.2", "1.7.1"), ("1.3", "1.7.2")):
        write_series(tmp_path / "in" / uid, voxels(2), SeriesInstanceUID=uid, StudyInstanceUID=study, **nameless)
        write_series(tmp_path / "anonymous" / uid, voxels(2), SeriesInstanceUID=uid, StudyInstanceUID=study, PatientID="Anon")
    assert convert(tmp_path) == 0
    assert len({case.group for case in read_datalist(tmp_path / "out").training}) == 2
    assert summary(tmp_path / "out")["notes"] == ["3 series do not say whose they are; each study is taken for a patient."]
    for path in (tmp_path / "in").rglob("IM*"):  # the name alone tells one person from the other
        data = pydicom.dcmread(path)
        data.PatientName = "Else" if data.SeriesInstanceUID == "1.2" else "Erika"
        data.save_as(path)
    assert convert(tmp_path) == 0
    assert len({case.group for case in read_datalist(tmp_path / "out").training}) == 2
    assert summary(tmp_path / "out")["notes"] == []
    assert main(["dicom", str(tmp_path / "anonymous"), str(tmp_path / "out2")]) == 0
    assert "All 2 studies are of one patient" in summary(tmp_path / "out2")["notes"][0]


# -------------------------------------------------------------------------------------------------------------- what is refused


def tilted():
    return {"shear": (0, 2.5 * np.tan(np.radians(15)), 0)}


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ({"leave_out": (3,)}, "It has slices 2.50 mm apart, but 5.00 mm between instance 1 and instance 2. Slices are missing"),
        (tilted(), "It was taken with a gantry tilted by 15.0 degrees"),
        (
            {"each": lambda k: {"PixelSpacing": [0.8, 0.5 if k else 0.6]}},
            "different pixel sizes: 0.8 x 0.5 mm (5), 0.8 x 0.6 mm (1)",
        ),
        (
            {"each": lambda k: {"RescaleSlope": "1", "RescaleIntercept": "0"} if k else {}},
            "different scales: rescaled (5), as stored (1)",
        ),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "a rescale slope that is 0"),
        ({"each": lambda k: {"ImagePositionPatient": None} if k == 2 else {}}, "1 of 6 slices that do not say where they lie"),
        ({"ImageOrientationPatient": None}, "6 of 6 slices that do not say where they point"),
        ({"PixelSpacing": None}, "do not say how large their pixels are"),
        ({"PixelSpacing": [0, 0.5]}, "claims pixels of 0"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.8, 0]}, "not at right angles"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "stored as MONOCHROME1"),
        ({"SOPClassUID": EnhancedMRImageStorage, "NumberOfFrames": 1, "leave_out": range(1, 6)}, "It is a single image."),
        (
            {"each": lambda k: {"ImagePositionPatient": [0, 0, max(k, 1)], "image": k}},
            "1 slices that lie where another one does",
        ),
        (
            {"each": lambda k: {"ImagePositionPatient": [0.3 * (k == 2), 0, k]}},
            "slices that are shifted sideways, instance 1 by 0.30 mm",
        ),
        (
            {"each": lambda k: {"ImagePositionPatient": [0, 0, 0], "TemporalPositionIdentifier": k}},
            "5 slices that lie where another one does",
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "It holds mosaics, many slices in one image"),
        ({"step": 0.05, "leave_out": (3,)}, "It has slices 0.05 mm apart, but 0.10 mm between instance 1 and instance 2"),
    ],
)
def test_what_makes_no_volume_is_left_out_by_name(tmp_path, faults, why):
    array, _ = write_series(tmp_path / "in" / "good", SeriesInstanceUID="1.9")
    write_series(tmp_path / "in" / "bad", **faults)
    assert convert(tmp_path) == 1
    assert why in only_reason(tmp_path / "out")
    (case,) = read_datalist(tmp_path / "out").training
    np.testing.assert_array_equal(read_image(case.images[0]).array[0], array)


def test_slices_of_another_size_are_named(tmp_path):
    write_series(tmp_path / "in" / "good", SeriesInstanceUID="1.9")
    write_series(tmp_path / "in" / "bad", leave_out=(5,))
    write_series(tmp_path / "in" / "bad2", voxels(rows=7), leave_out=range(5))
    assert convert(tmp_path) == 1
    assert "different sizes (rows x columns): 5 x 4 (5), 7 x 4 (1), for example instance " in only_reason(tmp_path / "out")


def test_enhanced_colour_and_lookup_tables_are_refused(tmp_path):
    source = tmp_path / "in"
    write_series(source / "good", SeriesInstanceUID="1.9")
    many = {"SOPClassUID": EnhancedMRImageStorage, "NumberOfFrames": 6, "SeriesInstanceUID": "1.9.1"}
    write_slice(source / "many", voxels(), 1, np.zeros(3), turned(), **many)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "SeriesInstanceUID": "1.9.2"}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    write_slice(source / "colour", np.zeros((5, 6), np.int16), 1, np.zeros(3), turned(), **colour, **bits, Columns=4)
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [4, 0, 16], "US", np.arange(4, dtype="<u2").tobytes()
    write_series(source / "table", SeriesInstanceUID="1.9.3", ModalityLUTSequence=[table])
    assert convert(tmp_path) == 1
    reasons = sorted(why.split(": ")[-1] for why in summary(tmp_path / "out")["left_out"].values())
    assert reasons[0].startswith("It is an enhanced or multi-frame image")
    assert reasons[1].startswith("It is in colour")
    assert re.match(r"instance \d codes its values by a lookup table", reasons[2])


def test_too_few_slices_are_left_out_if_asked(tmp_path, capsys):
    write_series(tmp_path / "in")
    assert convert(tmp_path, "--slices", "7") == 2
    assert "It has 6 slices; at least 7 were asked for." in capsys.readouterr().err
    assert convert(tmp_path, "--slices", "1") == 2
    assert "Expected `slices` to be at least 2, but got 1." in capsys.readouterr().err
    assert convert(tmp_path, "--slices", "6") == 0


def test_a_folder_without_scans_is_refused(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    assert convert(tmp_path) == 2
    assert f"DICOM files of one or several scans in {tmp_path / 'in'}, but found 1 x no DICOM file." in capsys.readouterr().err


def test_a_damaged_file_leaves_out_its_series_until_it_is_mended(tmp_path):
    write_series(tmp_path / "in" / "good", SeriesInstanceUID="1.9")
    array, _ = write_series(tmp_path / "in" / "bad", voxels(rows=64, columns=64, seed=4))
    file = tmp_path / "in" / "bad" / "IM003"
    content = file.read_bytes()
    file.write_bytes(content[:-3000])
    (tmp_path / "in" / "stub").write_bytes(content[:300])
    assert convert(tmp_path) == 1
    left_out = summary(tmp_path / "out")["left_out"]
    assert left_out.pop("damaged_1").startswith("It is truncated or corrupt and does not say")
    assert list(left_out.values()) == ["It has 1 file that cannot be read (truncated or corrupt). Copy it again."]
    (case,) = read_datalist(tmp_path / "out").training
    before = case.images[0].stat().st_mtime_ns

    file.write_bytes(content)
    (tmp_path / "in" / "stub").unlink()
    assert convert(tmp_path) == 0
    cases = read_datalist(tmp_path / "out").training
    assert case.images[0].stat().st_mtime_ns == before
    (mended,) = (other for other in cases if other.id != case.id)
    np.testing.assert_array_equal(read_image(mended.images[0]).array[0], array)


def test_a_series_with_a_problem_is_not_read(tmp_path):
    write_series(tmp_path, leave_out=(3,))
    (series,) = find_series(tmp_path).series
    with pytest.raises(DataError, match=rf"The series in {re.escape(str(tmp_path))} has slices 2.50 mm apart"):
        read_series(series)
    with pytest.raises(DataError, match=r"^scan 1 has slices"):
        read_series(series, name="scan 1")


# -------------------------------------------------------------------------------------------------------------------- privacy


def test_nothing_that_identifies_a_person_is_written(tmp_path):
    """Neither in headers nor in names nor in reasons, for series that are converted, left out, damaged or passed over."""
    source = tmp_path / "in" / "Mustermann_Erika_PID-4711-0815"
    write_series(source / "20190305")
    write_series(source / "gap", SeriesInstanceUID="1.9.1", leave_out=(3,), prefix="Erika")
    write_series(source / "table", SeriesInstanceUID="1.9.2", ModalityLUTSequence=[lookup_table()], prefix="Erika")
    write_series(source / "torn", SeriesInstanceUID="1.9.3", prefix="Erika")
    (source / "torn" / "Erika001").write_bytes((source / "torn" / "Erika001").read_bytes()[:-30])
    (source / "Erika.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (source / "Erika.txt").write_text("Erika")
    assert convert(tmp_path) == 1
    words = {part for value in IDENTITY.values() for part in re.split(r"[\^ ]", value) if len(part) > 3}
    words |= {SERIES, "1.2.826.0.1.999", "in/Muster", "Erika"}
    assert {"Mustermann", "PID-4711-0815", "20190305", "Heidestrasse"} <= words
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in found} > {"dataset.json", "conversion.json"}
    assert len([path for path in found if path.name.endswith(".nii.gz")]) == 1
    for path in found:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        text = str(path.relative_to(tmp_path / "out")) + content.decode("latin-1")
        assert not [word for word in words if word.lower() in text.lower()]
    assert len(summary(tmp_path / "out")["left_out"]) == 4


def lookup_table():
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [4, 0, 16], "US", np.arange(4, dtype="<u2").tobytes()
    return table


def test_the_screen_says_which_files_are_which(tmp_path, capsys, caplog):
    write_series(tmp_path / "in" / "good", SeriesInstanceUID="1.9")
    write_series(tmp_path / "in" / "gap", leave_out=(3,))
    assert convert(tmp_path, "--dry_run") == 1
    assert re.search(rf"series_\w+  training  {tmp_path}/in/good/IM\d+ and 5 more", capsys.readouterr().out)
    assert re.search(rf"series_\w+ is left out; its first file is {tmp_path}/in/gap/IM\d+", caplog.text)
    assert not (tmp_path / "out").exists()


def test_a_name_stays_when_more_is_added(tmp_path):
    write_series(tmp_path / "in" / "a", SeriesInstanceUID="1.9.5")
    assert convert(tmp_path) == 0
    (case,) = read_datalist(tmp_path / "out").training
    before = case.images[0].stat().st_mtime_ns
    for number in range(4):
        write_series(tmp_path / "in" / f"b{number}", voxels(2), SeriesInstanceUID=f"1.9.{number}")
    assert convert(tmp_path) == 0
    assert len(read_datalist(tmp_path / "out").training) == 5
    assert case.images[0].stat().st_mtime_ns == before


# ------------------------------------------------------------------------------------------- what is whole only at first sight


@pytest.mark.parametrize(
    ("each", "why"),
    [
        (lambda k: {"EchoTime": (80, 10)[k % 2]}, "different echo times (ms): 80 (3), 10 (3)"),
        (lambda k: {"EchoNumbers": (1, 2)[k % 2]}, "different echo numbers: 1 (3), 2 (3)"),
        (lambda k: {"DiffusionBValue": 0.0 if k < 2 else 1000.0}, "different b-values (s/mm2): 1000 (4), 0 (2)"),
        (lambda k: {"DiffusionBValue": 1000.0} if k else {}, "different b-values (s/mm2): 1000 (5), none (1)"),
        (lambda k: {"TemporalPositionIdentifier": (1, 2)[k > 2]}, "different time points: 1 (3), 2 (3)"),
        (lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "MP"[k > 1], "ND"]}, "different kinds (ImageType): P (4), M (2)"),
    ],
)
def test_slices_of_several_images_in_different_places_are_no_volume(tmp_path, each, why):
    write_series(tmp_path / "in" / "good", SeriesInstanceUID="1.9")
    write_series(tmp_path / "in" / "bad", each=each)
    assert convert(tmp_path) == 1
    assert why in only_reason(tmp_path / "out")


@pytest.mark.parametrize(
    "each",
    [
        lambda k: {"EchoTime": f"{80 + 0.1 * k:.2f}", "EchoNumbers": 1},
        lambda k: {"EchoTime": ("80", "80.0")[k % 2], "DiffusionBValue": 0.0},
        lambda k: {"TemporalPositionIdentifier": k + 1, "TriggerTime": 10 * k, "AcquisitionNumber": k},
        lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "M", ("ND", "NORM")[k % 2]]},
    ],
)
def test_slices_that_differ_in_nothing_that_matters_are_a_volume(tmp_path, each):
    array, _ = write_series(tmp_path, each=each)
    (series,) = find_series(tmp_path).series
    assert series.problem == ""
    np.testing.assert_array_equal(read_series(series).array[0], array)


@pytest.mark.parametrize(
    ("numbers", "note"),
    [
        ((5, 6, 7, 8, 9, 10), "Its slices are numbered from 5 on; make sure that none before are missing."),
        ((1, 3, 5, 7, 9, 11), "Its slices are numbered in steps of 2; make sure that none between them are missing."),
        ((1, 2, 3, 4, 5, 6), None),
        ((6, 5, 4, 3, 2, 1), None),
        ((0, 1, 2, 3, 4, 5), None),
        ((1, 2, 4, 8, 9, 11), None),
        ((7, 7, 7, 7, 7, 7), None),
    ],
)
def test_numbers_that_leave_in_doubt_whether_slices_are_missing(tmp_path, numbers, note):
    write_series(tmp_path / "in", each=lambda k: {"InstanceNumber": numbers[k], "image": k})
    assert convert(tmp_path) == 0
    (case,) = read_datalist(tmp_path / "out").training
    assert summary(tmp_path / "out")["cases"][case.id]["notes"] == ([note] if note else [])


def test_linked_folders_are_looked_into(tmp_path):
    array, _ = write_series(tmp_path / "store", SeriesInstanceUID="1.9")
    (tmp_path / "in" / "part").mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "store").iterdir())):
        (tmp_path / f"disc{number % 2}").mkdir(exist_ok=True)
        path.rename(tmp_path / f"disc{number % 2}" / path.name)
    (tmp_path / "in" / "one").symlink_to(tmp_path / "disc0")
    (tmp_path / "in" / "two").symlink_to(tmp_path / "disc1")
    (tmp_path / "in" / "part" / "round").symlink_to(tmp_path / "in")
    assert convert(tmp_path) == 0
    (case,) = read_datalist(tmp_path / "out").training
    np.testing.assert_array_equal(read_image(case.images[0]).array[0], array)
    (tmp_path / "in" / "gone").symlink_to(tmp_path / "nowhere")
    assert convert(tmp_path) == 1
    assert set(summary(tmp_path / "out")["left_out"]) == {"damaged_1"}


def test_letters_of_another_encoding_do_no_harm(tmp_path):
    tags = {"SpecificCharacterSet": "ISO_IR 100", "Manufacturer": "Süd Medizintechnik", "PatientName": "Müller^Jörg"}
    write_series(tmp_path / "in", **tags)
    assert convert(tmp_path) == 0
    (case,) = read_datalist(tmp_path / "out").training
    assert case.attributes["manufacturer"] == "S\ufffdd Medizintechnik"


# --------------------------------------------------------------------------------------------------------------------- patients


PEOPLE = {
    "a number here and not there, one study": ([("A", "Erika", "64", "1"), ("", "Erika", "64", "1")], [{0, 1}]),
    "one study, the name is gone": ([("A", "Erika", "64", "1"), ("", "", "", "1"), ("", "", "", "2")], [{0, 1}, {2}]),
    "one name and birthday": ([("A", "Erika", "64", "1"), ("", "ERIKA", "64", "2"), ("A", "", "", "3")], [{0, 1, 2}]),
    "chain": ([("A", "", "", "1"), ("", "Erika", "64", "1"), ("", "Erika", "64", "2"), ("", "", "", "2")], [{0, 1, 2, 3}]),
    "all are called the same": ([("A", "Anon", "", "1"), ("B", "Anon", "", "2"), ("", "Anon", "", "2")], [{0}, {1, 2}]),
    "all are called the same, whose it is is open": (
        [("A", "Anon", "", "1"), ("B", "Anon", "", "2"), ("", "Anon", "", "3")],
        [{0}, {1}, {2}],
    ),
    "born on other days": ([("", "Erika", "64", "1"), ("", "Erika", "70", "2")], [{0}, {1}]),
    "one study of two": ([("A", "", "", "1"), ("B", "", "", "1"), ("", "", "", "1")], [{0}, {1}, {2}]),
}


@pytest.mark.parametrize("name", PEOPLE)
def test_whose_a_series_is(tmp_path, name):
    people, expected = PEOPLE[name]
    for place, (number, called, born, study) in enumerate(people):
        tags = {
            "PatientID": number or None,
            "PatientName": called or None,
            "PatientBirthDate": f"19{born}0101" if born else None,
        }
        tags |= {"SeriesInstanceUID": f"1.8.{place}", "StudyInstanceUID": f"1.7.{study}"}
        stored = np.full((2, 5, 4), place, np.int16)
        write_series(tmp_path / "in" / str(place), stored, **tags)
    assert convert(tmp_path) == 0
    found = {}
    for case in read_datalist(tmp_path / "out").training:
        found.setdefault(case.group, set()).add(int(read_image(case.images[0]).array.max()))
    assert sorted(found.values(), key=min) == expected
