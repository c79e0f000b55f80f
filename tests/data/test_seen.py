import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_se.data import seen as seen_module
from medseg_se.data import store as store_module
from medseg_se.data.datalist import read_datalist
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.seen import ScanFacts, facts_of, summarise
from medseg_se.data.segmentation import SegmentationData
from medseg_se.data.store import prepare_cases
from medseg_se.tensors import load_tensors
from medseg_se.volumes import Volume, read_image, read_labels

PLAIN = Preprocessing()


def volume(array, affine):
    return Volume(np.asarray(array, dtype=np.float32)[None], affine)


@pytest.fixture
def dataset(tmp_path, write_decathlon, make_affine):
    return write_decathlon(tmp_path / "data", cases=4, test=0, affine=make_affine("LPS", (1.0, 1.5, 3.0)))


@pytest.fixture
def prepare(tmp_path, dataset):
    def run(**changes):
        datalist = read_datalist(dataset)
        cases = [replace(case, **changes) for case in datalist.training]
        return prepare_cases(cases, PLAIN, datalist.structures, tmp_path / "store", channels=1, progress=False)

    return run


def test_a_scan_is_measured_as_it_was_read(make_affine):
    array = np.random.default_rng(0).permutation(7 * 8 * 9).reshape(7, 8, 9) - 10.0
    facts = facts_of(volume(array, make_affine("PSR", (2.0, 0.5, 0.7), degrees=(5, -7, 3))))
    assert (facts.shape, facts.spacing, facts.orientation) == ((7, 8, 9), (2.0, 0.5, 0.7), "PSR")
    spacing, extent = facts.along("LAI")
    assert spacing == (0.7, 2.0, 0.5)
    assert extent == pytest.approx((6.3, 14.0, 4.0))
    assert facts.stacked == "posterior-anterior"
    (channel,) = facts.channels
    assert (channel.lowest, channel.highest, channel.whole, channel.air) == (-10, 493, True, False)
    expected = np.percentile(array, [0.5, 50, 99.5])
    np.testing.assert_allclose((channel.low, channel.middle, channel.high), expected)
    assert channel.zero == pytest.approx(1 / 504)
    assert ScanFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


def test_even_voxels_are_not_stacked(make_affine):
    assert facts_of(volume(np.zeros((2, 2, 2)), make_affine("RAS", (1.0, 1.2, 1.4)))).stacked == ""
    assert facts_of(volume(np.zeros((2, 2, 2)), make_affine("RAS", (0.5, 2.0, 2.0)))).stacked == ""


def test_a_sample_of_a_large_scan_gives_the_same_percentiles_each_time_and_true_ends(monkeypatch, make_affine):
    array = np.random.default_rng(0).gamma(2.0, 100.0, size=(60, 50, 40))
    array[30, 20, 10], array[1, 2, 3] = 9e4, -50
    whole = facts_of(volume(array, make_affine())).channels[0]
    monkeypatch.setattr(seen_module, "MOST_VOXELS", 10_000)
    drawn = facts_of(volume(array, make_affine())).channels[0]
    assert drawn == facts_of(volume(array, make_affine())).channels[0]
    assert (drawn.lowest, drawn.highest) == (whole.lowest, whole.highest) == (-50, 9e4)
    for name in ("low", "middle", "high"):
        assert getattr(drawn, name) == pytest.approx(getattr(whole, name), rel=0.15)


@pytest.mark.parametrize(("name", "whole", "hu"), [("0", True, True), ("0", False, False), ("CT", False, True)])
def test_air_and_whole_numbers_look_like_hu(make_affine, name, whole, hu):
    array = np.random.default_rng(0).integers(-100, 400, size=(10, 10, 10)).astype(float)
    array[:3] = -1000
    array += 0 if whole else 0.25
    (channel,) = facts_of(volume(array, make_affine())).channels
    assert channel.like_hu(name) is hu
    assert not facts_of(volume(array + 1024, make_affine())).channels[0].like_hu("CT")


def test_codes_and_origin_tell_whether_a_place_is_known(tmp_path, write_scan, make_affine):
    array = np.ones((3, 3, 3), dtype=np.float32)
    assert facts_of(read_image(write_scan(tmp_path / "a.nii", array, make_affine()))).placed
    image = nib.Nifti1Image(array, None)
    nib.save(image, tmp_path / "b.nii")
    assert not facts_of(read_image(tmp_path / "b.nii")).placed
    plain = facts_of(read_image(write_scan(tmp_path / "c.nii", array, np.diag([-2.0, -2.0, 2.0, 1.0]))))
    assert (plain.placed, plain.plain) == (True, True)


def test_the_store_keeps_what_scans_were_like(dataset, prepare):
    stored = prepare()
    for case, made in zip(read_datalist(dataset).training, stored, strict=True):
        assert made.raw == facts_of(read_image(case.images[0]))
    assert prepare() == stored


def test_a_store_of_an_older_version_is_completed_once(dataset, prepare, monkeypatch):
    stored = prepare()
    for case in stored:
        path = case.image_file.parent / "case.json"
        content = json.loads(path.read_text())
        del content["facts"]["raw"]
        path.write_text(json.dumps(content))
    before = [case.image_file.stat().st_mtime_ns for case in stored]
    assert prepare() == stored
    assert [case.image_file.stat().st_mtime_ns for case in stored] == before
    monkeypatch.setattr(store_module, "read_channels", lambda *_: pytest.fail("a scan was read again"))
    assert prepare() == stored


@pytest.mark.parametrize("said", [None, "nonsense", {}, {"format": 0}, {"format": seen_module.FORMAT, "shape": [1, 2]}])
def test_facts_of_another_version_are_measured_again(prepare, said):
    stored = prepare()
    path = stored[0].image_file.parent / "case.json"
    content = json.loads(path.read_text())
    content["facts"]["raw"] = said
    path.write_text(json.dumps(content))
    assert prepare() == stored
    assert json.loads(path.read_text())["facts"]["raw"] == json.loads(json.dumps(stored[0].raw.to_dict()))


def test_a_store_that_cannot_be_written_serves_as_before(prepare, monkeypatch):
    stored = prepare()
    path = stored[0].image_file.parent / "case.json"
    content = json.loads(path.read_text())
    del content["facts"]["raw"]
    path.write_text(json.dumps(content))

    def refuse(folder, facts):
        raise store_module.OutputError("read-only")

    monkeypatch.setattr(store_module, "amend", refuse)
    assert prepare() == stored


def test_of_label_maps_alone_there_are_sizes_only(dataset, prepare):
    stored = prepare(images=())
    label = read_datalist(dataset).training[0].label
    assert stored[0].raw == facts_of(read_labels(label), label_map=True)
    assert stored[0].raw.channels == ()
    content = summarise([case.raw for case in stored], ["T1"], PLAIN)
    assert content["intensities"] is None
    assert content["extent"] == [[12, 12], [16.5, 16.5], [30, 30]]
    path = stored[0].labels_file.parent / "case.json"
    old = json.loads(path.read_text())
    del old["facts"]["raw"]
    path.write_text(json.dumps(old))
    assert prepare(images=()) == stored


def test_the_summary_gives_ranges_along_the_axes_of_the_preprocessing(make_affine):
    first = facts_of(volume(np.arange(24).reshape(2, 3, 4), make_affine("RAS", (1.0, 2.0, 4.0))))
    second = facts_of(volume(np.arange(24).reshape(2, 3, 4) * 3, make_affine("SRA", (5.0, 1.5, 2.5))))
    third = replace(first, channels=(), placed=False)
    content = summarise([first, second, third], ["CT"], Preprocessing("IRP", intensity="window", spacing=(1.0, 1.0, 1.0)))
    assert content == json.loads(json.dumps(content))
    assert (content["scans"], content["orientation"], content["resampled"], content["unplaced"]) == (3, "IRP", True, 1)
    assert content["spacing"] == [[4, 5], [1, 1.5], [2, 2.5]]
    assert content["extent"] == [[10, 16], [2, 4.5], [6, 10]]
    assert content["orientations"] == {"RAS": 2, "SRA": 1}
    assert content["stacked"] == {"inferior-superior": 3}
    (channel,) = content["intensities"]
    assert (channel["scheme"], channel["scans"], channel["hu"]) == ("window", 2, 0)
    assert (channel["lowest"], channel["highest"], channel["middle"]) == ([0, 0], [23, 69], [11.5, 34.5])
    assert summarise([first], ["CT"], PLAIN, synthetic=True)["intensities"] is None
    assert summarise([], ["CT"], PLAIN) is None


def test_the_description_of_a_training_says_what_was_seen(dataset, tmp_path):
    data = SegmentationData(
        str(dataset), fold=0, folds=4, store=str(tmp_path / "store"), intensity="percentile", mirror=["left-right"],
        patch_size=[8, 8, 8], progress=False,
    )  # fmt: skip
    assert data.describe()["seen"] is None
    data.setup("fit")
    described = data.describe()
    assert described["mirror"] == ["left-right"]
    assert described["seen"] == summarise([case.raw for case in data.training], ["T1"], data.preprocessing)
    assert described["seen"]["scans"] == 3
    assert described["seen"]["intensities"][0]["scheme"] == "percentile"
    torch.save(described, tmp_path / "described.pt")
    assert load_tensors(tmp_path / "described.pt") == described


def test_intensities_of_scans_that_were_never_shown_are_not_told(dataset, tmp_path):
    data = SegmentationData(
        str(dataset), fold=0, folds=4, store=str(tmp_path / "store"), synthetic=1.0, patch_size=[8, 8, 8], progress=False
    )
    data.setup("fit")
    assert data.describe()["seen"]["intensities"] is None
    assert data.describe()["seen"]["spacing"] == [[1, 1], [1.5, 1.5], [3, 3]]
