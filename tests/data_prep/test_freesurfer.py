"""FreeSurfer: .mgz volumes read with distrust, label values kept, sessions of a person in one group."""

import gzip
import json
import struct

import nibabel as nib
import numpy as np
import pytest
from medseg_se.data_prep.main import main
from medseg_se.data_prep.reading import read_any_image, read_any_labels

from medseg_se.data.datalist import read_datalist
from medseg_se.errors import DataError
from medseg_se.volumes import read_image, read_labels

SHAPE = (5, 6, 7)
IMAGE = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)


def write_mgz(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.MGHImage(array, affine), path)


def labels_of(*values):
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels.ravel()[: len(values)] = values
    return labels


@pytest.fixture
def subject(tmp_path, make_affine):
    """Return a function that writes the volumes of one subject as recon-all names them."""

    def write(name, values=(2, 3, 41, 42, 17, 53, 77, 251), **volumes):
        affine = make_affine("LIA", (1.0, 1.0, 1.0), (127.0, -128.0, 128.0))
        folder = tmp_path / "subjects" / name / "mri"
        for volume, array in {"norm": IMAGE, "aseg": labels_of(*values), **volumes}.items():
            write_mgz(folder / f"{volume}.mgz", array, affine)
        return folder

    return write


def convert(tmp_path, *options):
    return main(["freesurfer", str(tmp_path / "subjects"), str(tmp_path / "out"), *options])


def test_voxels_affine_and_groups(tmp_path, subject, make_affine):
    subject("disc1/OAS1_0001_MR1")
    subject("disc2/OAS1_0001_MR2")
    subject("disc2/OAS1_0002_MR1")
    subject("disc2/fsaverage")
    subject("disc2/OAS1_0001_MR1.long.base")
    assert convert(tmp_path) == 0
    datalist = read_datalist(tmp_path / "out")
    assert {case.id: case.group for case in datalist.training} == {
        "OAS1_0001_MR1": "OAS1_0001",
        "OAS1_0001_MR2": "OAS1_0001",
        "OAS1_0002_MR1": "OAS1_0002",
    }
    case = datalist.training[0]
    image, truth = read_image(case.images[0]), read_labels(case.label)
    assert np.array_equal(image.array[0], IMAGE)
    assert np.allclose(image.affine, make_affine("LIA", (1.0, 1.0, 1.0), (127.0, -128.0, 128.0)))
    assert truth.array.ravel()[:8].tolist() == [2, 3, 41, 42, 17, 53, 77, 251]
    notes = json.loads((tmp_path / "out" / "conversion.json").read_text())["notes"]
    assert notes == ["Templates and runs of a longitudinal stream are not taken: OAS1_0001_MR1.long.base, fsaverage."]


@pytest.mark.parametrize(
    ("folder", "person"),
    [
        ("sub-07_ses-02", "sub-07"),
        ("sub-01_ses-01_run-1", "sub-01"),
        ("sub-02_ses-2_acq-x", "sub-02"),
        ("sub-02", "sub-02"),
        ("P1_ses-02_run-1", "P1"),
        ("002_S_0295_bl", "002_S_0295"),
        ("002_S_0295_m12", "002_S_0295"),
        ("0295_m12", "0295"),
        ("control_m12", "control_m12"),
        ("OAS30001_MR_d0129", "OAS30001"),
        ("OAS30001_Freesurfer53_d0129", "OAS30001"),
        ("bert", "bert"),
    ],
)
def test_sessions_of_other_collections(tmp_path, subject, folder, person):
    subject(folder)
    assert convert(tmp_path) == 0
    assert read_datalist(tmp_path / "out").training[0].group == person


def test_parcels_are_the_cortex_of_their_side(tmp_path, subject):
    subject("bert", **{"aparc+aseg": labels_of(1002, 2035, 2, 17), "T1": IMAGE + 1})
    assert convert(tmp_path, "--labels", "aparc+aseg", "--image", "T1") == 0
    datalist = read_datalist(tmp_path / "out")
    truth = read_labels(datalist.training[0].label)
    assert truth.array.ravel()[:4].tolist() == [1002, 2035, 2, 17]
    named = datalist.structures.encode(truth.array).ravel()[:2]
    assert [datalist.structures.names[index - 1] for index in named] == ["Left-Cerebral-Cortex", "Right-Cerebral-Cortex"]
    assert datalist.structures.decode(named).tolist() == [3, 42]
    assert np.array_equal(read_image(datalist.training[0].images[0]).array[0], IMAGE + 1)


def test_28_classes(tmp_path, subject):
    subject("bert")
    assert convert(tmp_path, "--structures", "28") == 0
    structures = read_datalist(tmp_path / "out").structures
    assert structures.num_classes == 28
    assert len(structures.pairs()) == 12
    assert structures.encode(np.array([0, 5, 26, 24, 77, 251, 85])).tolist() == [0] * 7
    assert convert(tmp_path, "--structures", "all") == 0
    assert len(read_datalist(tmp_path / "out").structures.pairs()) == 16


def test_what_cannot_be_used_is_left_out_and_made_once_it_is_mended(tmp_path, subject, make_affine, capsys):
    good = subject("good")
    unfinished = subject("unfinished")
    (unfinished / "aseg.mgz").unlink()
    truncated = subject("truncated")
    (truncated / "norm.mgz").write_bytes((good / "norm.mgz").read_bytes()[:100])
    subject("unknown", values=(2, 29))
    elsewhere = subject("elsewhere")
    write_mgz(elsewhere / "aseg.mgz", labels_of(2), make_affine("LIA", (1.0, 1.0, 1.2), (127.0, -128.0, 128.0)))
    assert convert(tmp_path) == 1
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (summary["found"], summary["usable"]) == (5, 1)
    assert "unfinished/mri/aseg.mgz is missing" in summary["left_out"]["unfinished"]
    assert "truncated or corrupt" in summary["left_out"]["truncated"]
    assert "holds label value {29}" in summary["left_out"]["unknown"]
    assert "different grids" in summary["left_out"]["elsewhere"]
    before = (tmp_path / "out" / "imagesTr" / "good.nii.gz").stat().st_mtime_ns
    for name in ("unfinished", "truncated", "unknown", "elsewhere"):
        subject(name)
    capsys.readouterr()
    assert convert(tmp_path) == 0
    assert "1 of them were there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "imagesTr" / "good.nii.gz").stat().st_mtime_ns == before


def test_one_subject_and_nifti_twins(tmp_path, subject, write_scan, make_affine):
    folder = subject("bert")
    affine = make_affine("RAS")
    for name, array in (("norm", IMAGE), ("aseg", labels_of(4))):
        (folder / f"{name}.mgz").unlink()
        write_scan(folder / f"{name}.nii.gz", array, affine)
    assert main(["freesurfer", str(tmp_path / "subjects" / "bert"), str(tmp_path / "out")]) == 0
    (case,) = read_datalist(tmp_path / "out").training
    assert case.id == "bert"
    assert np.allclose(read_image(case.images[0]).affine, affine)


def test_a_folder_without_subjects_is_refused(tmp_path, capsys):
    (tmp_path / "subjects").mkdir()
    assert convert(tmp_path) == 2
    assert "SUBJECT/mri/norm.mgz, but found none" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- the .mgz reader


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
def test_every_type_of_voxel(tmp_path, make_affine, kind, suffix):
    array = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2).astype(kind)
    affine = make_affine("LIA", (0.5, 1.0, 2.0), degrees=(5.0, -3.0, 10.0))
    write_mgz(tmp_path / f"scan{suffix}", array, affine)
    volume = read_any_image(tmp_path / f"scan{suffix}")
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, np.moveaxis(array, 3, 0))
    assert np.allclose(volume.affine, affine, atol=1e-4)
    write_mgz(tmp_path / f"labels{suffix}", array[..., 0], affine)
    labels = read_any_labels(tmp_path / f"labels{suffix}")
    assert labels.array.dtype.kind in "iu"
    assert labels.array.dtype.isnative
    assert np.array_equal(labels.array[0], array[..., 0])
    with pytest.raises(DataError, match="2 frames"):
        read_any_labels(tmp_path / f"scan{suffix}")


@pytest.fixture
def damaged(tmp_path):
    """Return a function that writes an .mgz with bytes of its header replaced."""

    def write(at, content, keep=None):
        path = tmp_path / "whole.mgz"
        write_mgz(path, IMAGE, np.eye(4))
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[at : at + len(content)] = content
        path.write_bytes(gzip.compress(bytes(raw[:keep])))
        return path

    return write


@pytest.mark.parametrize(
    ("at", "content", "keep", "reason"),
    [
        (0, struct.pack(">i", 2), None, "not a FreeSurfer volume"),
        (0, b"", 200, "not a FreeSurfer volume"),
        (4, struct.pack(">i", 0), None, r"impossible shape \(0, 6, 7, 1\)"),
        (4, struct.pack(">i", 2**30), None, "GiB in memory"),
        (20, struct.pack(">i", 5), None, "MGH's type 5"),
        (30, struct.pack(">f", 0.0), None, "span no volume"),
        (30, struct.pack(">f", float("nan")), None, "span no volume"),
        (42, struct.pack(">3f", 0.9, 0.3, 0.3), None, "not orthogonal"),
        (0, b"", 300, "holds only 16"),
    ],
)
def test_a_header_that_contradicts_its_file_is_refused(damaged, at, content, keep, reason):
    with pytest.raises(DataError, match=reason):
        read_any_image(damaged(at, content, keep))


def test_a_volume_that_does_not_say_how_it_lies(damaged, caplog):
    volume = read_any_image(damaged(28, struct.pack(">h", 0)))
    assert volume.orientation == "LIA"
    assert volume.spacing == (1.0, 1.0, 1.0)
    assert np.allclose(volume.affine @ [2.5, 3.0, 3.5, 1.0], [0.0, 0.0, 0.0, 1.0])
    assert "does not say how it lies" in caplog.text


def test_labels_must_be_whole(tmp_path):
    write_mgz(tmp_path / "scan.mgz", IMAGE.astype(np.float32) + 0.5, np.eye(4))
    with pytest.raises(DataError, match="whole label values"):
        read_any_labels(tmp_path / "scan.mgz")
    with pytest.raises(DataError, match="No such file"):
        read_any_labels(tmp_path / "none.mgz")


# ------------------------------------------------------------------------------------------------------------ names and persons


def groups_of(tmp_path):
    return {case.id: case.group for case in read_datalist(tmp_path / "out").training}


def test_sessions_in_folders_of_their_own(tmp_path, subject):
    for name in ("sub-01/ses-01", "sub-02/ses-01", "sub-02/ses-02"):
        subject(name)
    assert convert(tmp_path) == 0
    assert groups_of(tmp_path) == {"sub-01_ses-01": "sub-01", "sub-02_ses-01": "sub-02", "sub-02_ses-02": "sub-02"}
    assert main(["freesurfer", str(tmp_path / "subjects" / "sub-02"), str(tmp_path / "out")]) == 0
    assert groups_of(tmp_path) == {"ses-01": "sub-02", "ses-02": "sub-02"}


def test_visits_of_persons_without_a_pattern(tmp_path, subject):
    for name in ("Anna/before", "Anna/after", "Bert/before"):
        subject(name)
    assert convert(tmp_path) == 0
    assert groups_of(tmp_path) == {"after": "Anna", "Anna_before": "Anna", "Bert_before": "Bert"}


def test_linked_subjects_keep_the_names_of_the_links(tmp_path, subject):
    """As where a store keeps each subject in a folder called fs; a link that leads back finds none twice."""
    links = tmp_path / "links"
    links.mkdir()
    for name in ("anna", "bert"):
        (links / name).symlink_to(subject(f"{name}/fs").parent)
    (links / "round").symlink_to(links)
    assert main(["freesurfer", str(links), str(tmp_path / "out")]) == 0
    assert groups_of(tmp_path) == {"anna": "anna", "bert": "bert"}


def test_persons_by_a_pattern(tmp_path, subject, capsys):
    for name in ("siteA/P01-first", "siteA/P01-second", "siteB/P02-first"):
        subject(name)
    assert convert(tmp_path, "--group", "P[0-9]+") == 0
    assert groups_of(tmp_path) == {"P01-first": "P01", "P01-second": "P01", "P02-first": "P02"}
    assert convert(tmp_path, "--group", "P01") == 2
    assert "'P01' finds none in 'siteB/P02-first'" in capsys.readouterr().err
    assert convert(tmp_path, "--group", "P[") == 2
    assert "Expected `group` to be a regular expression, but got 'P['" in capsys.readouterr().err


def test_a_folder_that_cannot_be_looked_into_is_not_passed_over(tmp_path, subject, monkeypatch, capsys):
    subject("anna")
    subject("bert")
    look = type(tmp_path).iterdir

    def iterdir(path):
        if path.name == "bert":
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", iterdir)
    assert convert(tmp_path) == 2
    assert "bert: Permission denied. Make it readable, or move it away." in capsys.readouterr().err
