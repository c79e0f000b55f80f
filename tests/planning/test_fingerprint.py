import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from medseg_se.data.datalist import read_datalist
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import DataError, UsageError
from medseg_se.planning.fingerprint import Fingerprint, inputs_key, measure
from medseg_se.volumes import Volume, read_image, reorient

LABELS = {"background": 0, "Left-Lung": 7, "Right-Lung": 40000, "nodule": [900, 901], "ignore": 255}


def draw(seed, shape=(18, 14, 10), channels=1):
    """Return a scan (C, I, J, K) and its label map, both in RAS: left lies at low indices of the first axis."""
    rng = np.random.default_rng(seed)
    image = np.zeros((channels, *shape), dtype=np.float32)
    image[:, 1:-1, 2:, :-3] = rng.normal(100, 20, (channels, *(np.array(shape) - (2, 2, 3)))).astype(np.float32)
    labels = np.zeros(shape, dtype=np.int32)
    labels[2 : 5 + seed % 3, 3:9, 1:6] = 7
    labels[10:15, 4:9, 2:6] = 40000
    labels[11, 5, 3:5] = 900, 901
    labels[8, 3, 0] = 255
    return image, labels


@pytest.fixture
def write_dataset(tmp_path, write_scan, make_affine):
    """Return a function that writes RAS scans as they may lie in files, and returns the datalist of them."""

    def write(cases, channels=("T1",), labels=LABELS, axcodes=None, spacing=None, apart=False, folder=None, **more):
        folder = folder or tmp_path / "data"
        entries = []
        for number, (image, truth) in enumerate(cases):
            code = axcodes[number % len(axcodes)] if axcodes else "RAS"
            mm = spacing[number % len(spacing)] if spacing else (1.0, 1.0, 1.0)
            affine = make_affine("RAS", mm)
            turned = [reorient(Volume(array, affine), code) for array in (image, truth[None])]
            name = f"case_{number:02d}"
            paths = [folder / f"{name}_{part}.nii.gz" for part in range(len(image))] if apart else [folder / f"{name}.nii.gz"]
            for path, array in zip(paths, turned[0].array if apart else [np.moveaxis(turned[0].array, 0, 3)], strict=True):
                write_scan(path, array, turned[0].affine)
            write_scan(folder / f"{name}_label.nii.gz", turned[1].array[0], turned[1].affine)
            extra = {key: values[number] for key, values in more.items()}
            entries.append({"id": name, "image": [path.name for path in paths], "label": f"{name}_label.nii.gz", **extra})
        content = {"name": "drawn", "modality": dict(enumerate(channels)), "labels": labels, "training": entries}
        (folder / "dataset.json").write_text(json.dumps(content))
        return read_datalist(folder)

    return write


def fingerprint_of(datalist, **options):
    return measure(datalist, progress=False, **options)


def warnings_of(datalist, *words):
    return [text for text in fingerprint_of(datalist).warnings if all(word in text for word in words)]


# -------------------------------------------------------------------------------------------------------- against brute force


def test_numbers_are_those_of_brute_force_however_the_files_lie(write_dataset):
    cases = [draw(seed) for seed in range(6)]
    mm = (0.8, 1.5, 3.0)
    codes = ["RAS", "LPS", "SRA", "PIR", "ILP", "ASL"]
    found = fingerprint_of(write_dataset(cases, axcodes=codes, spacing=[mm]))
    assert [case.orientation for case in found.cases] == codes
    for case in found.cases:
        assert case.shape == (18, 14, 10)
        assert case.cropped == (16, 12, 7)
        assert case.spacing == mm
        assert case.nonzero == pytest.approx(16 * 12 * 7 / (18 * 14 * 10))
        assert case.bytes == 18 * 14 * 10 * 6
    truths = np.stack([labels for _, labels in cases])
    values = np.stack([image[0] for image, _ in cases])
    assert [case.highest for case in found.cases] == [(value.max(),) for value in values]
    assert [case.lowest for case in found.cases] == [(value.min(),) for value in values]
    inside = values[np.isin(truths, [7, 40000, 900, 901])].astype(np.float64)
    (channel,) = found.channels
    assert (channel.mean, channel.deviation) == pytest.approx((inside.mean(), inside.std()), rel=1e-12)
    assert (channel.minimum, channel.maximum) == (inside.min(), inside.max())
    assert list(channel.percentiles.values()) == pytest.approx(np.percentile(inside, [0.5, 5, 50, 95, 99.5]), rel=1e-12)
    low, high = np.percentile(inside, [0.5, 99.5])
    assert sum(channel.histogram) == np.sum((inside >= low) & (inside <= high))
    known = np.sum(truths != 255)
    for structure, meant in zip(found.structures, ([7], [40000], [900, 901]), strict=True):
        mask = np.isin(truths, meant)
        ml = mask.sum(axis=(1, 2, 3)) * np.prod(mm) / 1000
        assert structure.cases == 6
        assert (structure.smallest_ml, structure.median_ml, structure.largest_ml) == pytest.approx(
            (ml.min(), np.median(ml), ml.max())
        )
        assert [case.volumes[structure.name] for case in found.cases] == pytest.approx(ml)
        assert structure.share == structure.frequency == pytest.approx(mask.sum() / known)
    lung, _, nodule = found.structures
    assert lung.extent_mm == pytest.approx((3 * 0.8, 6 * 1.5, 5 * 3.0))
    assert nodule.extent_mm == pytest.approx((0.8, 1.5, 6.0))
    assert found.background == pytest.approx(np.sum(truths == 0) / known)
    assert found.pairs == (("Left-Lung", "Right-Lung"),)


def test_a_structure_is_counted_where_it_is(write_dataset):
    cases = [draw(seed) for seed in range(4)]
    for _, labels in cases[:2]:
        labels[labels >= 900] *= labels[labels >= 900] == 40000
    cases[3][1][:] = 0
    found = fingerprint_of(write_dataset(cases))
    left, right, nodule = found.structures
    assert [structure.cases for structure in found.structures] == [3, 3, 1]
    assert found.together == ((3, 3, 1), (3, 3, 1), (1, 1, 1))
    assert [case.structures for case in found.cases] == [
        ("Left-Lung", "Right-Lung"),
        ("Left-Lung", "Right-Lung"),
        ("Left-Lung", "Right-Lung", "nodule"),
        (),
    ]
    size = cases[0][1].size
    assert nodule.frequency == pytest.approx(2 / (size - 1))  # one voxel's truth is unknown
    assert nodule.share == pytest.approx(2 / (4 * size - 3))
    assert left.largest_ml == pytest.approx(5 * 6 * 5 / 1000)
    assert right.smallest_ml == pytest.approx(98 / 1000)


def test_every_case_gives_evenly_drawn_voxels(write_dataset):
    rng = np.random.default_rng(0)
    large = rng.normal(0, 1, (1, 40, 40, 30)).astype(np.float32), np.zeros((40, 40, 30), dtype=np.int32)
    large[1][5:38, 3:35, 2:29] = 7
    large[1][rng.random(large[1].shape) < 0.2] = 0
    small = rng.normal(50, 1, (1, 9, 8, 7)).astype(np.float32), np.full((9, 8, 7), 7)
    (channel,) = fingerprint_of(write_dataset([large, small])).channels
    inside = large[0][0][large[1] == 7]
    drawn = np.concatenate([inside[np.linspace(0, len(inside) - 1, 10_000).astype(int)], small[0].ravel()]).astype(np.float64)
    assert len(inside) > 20_000
    assert (channel.mean, channel.deviation) == pytest.approx((drawn.mean(), drawn.std()), rel=1e-12)
    assert list(channel.percentiles.values()) == pytest.approx(np.percentile(drawn, [0.5, 5, 50, 95, 99.5]), rel=1e-12)
    assert channel.minimum == inside.min()  # of every voxel, not of the drawn ones
    assert channel.minimum < drawn.min()
    assert channel.maximum == small[0].max()


@pytest.mark.parametrize("apart", [False, True])
def test_channels_have_their_own_numbers(write_dataset, apart):
    cases = [draw(seed, channels=2) for seed in range(5)]
    for image, _ in cases:
        image[1] = 3 * image[1] - 5
    found = fingerprint_of(write_dataset(cases, channels=("T1", "FLAIR"), apart=apart))
    assert [channel.name for channel in found.channels] == ["T1", "FLAIR"]
    for number, channel in enumerate(found.channels):
        inside = np.concatenate([image[number][(labels > 0) & (labels != 255)] for image, labels in cases])
        assert channel.mean == pytest.approx(inside.mean(dtype=np.float64), rel=1e-12)
        assert (channel.minimum, channel.maximum) == (inside.min(), inside.max())
    assert found.cases[0].bytes == 18 * 14 * 10 * 10
    assert found.cases[0].cropped == (18, 14, 10)  # the second channel is -5 where the first is 0
    assert found.cases[1].lowest == tuple(channel.min() for channel in cases[1][0])


def test_nonzero_voxels_speak_where_nothing_is_labelled(write_dataset):
    cases = [draw(seed) for seed in range(3)]
    full = fingerprint_of(write_dataset(cases)).channels
    for _, labels in cases[1:]:
        labels[:] = 0
    assert fingerprint_of(write_dataset(cases)).channels == fingerprint_of(write_dataset(cases[:1])).channels
    cases[0][1][:] = 0
    (channel,) = fingerprint_of(write_dataset(cases)).channels
    inside = np.concatenate([image[image != 0] for image, _ in cases])
    assert channel.mean == pytest.approx(inside.mean(dtype=np.float64), rel=1e-12)
    assert channel != full[0]


def test_a_dataset_that_is_zero_everywhere_is_measured(write_dataset):
    image, labels = draw(0)
    found = fingerprint_of(write_dataset([(0 * image, 0 * labels)] * 2))
    assert (found.channels[0].mean, found.channels[0].deviation, found.channels[0].maximum) == (0, 0, 0)
    assert found.cases[0].cropped == found.cases[0].shape
    assert found.background == 1


def test_shapes_are_those_that_preprocessing_gives(write_dataset):
    datalist = write_dataset([draw(0)] * 2, axcodes=["PIR"], spacing=[(0.8, 1.5, 3.0)])
    found = fingerprint_of(datalist)
    for crop in ("nonzero", "none"):
        prepared = Preprocessing(spacing=(1.1, 1.0, 2.0), crop=crop)(read_image(datalist.training[0].images[0]))
        assert found.median_shape((1.1, 1.0, 2.0), cropped=crop == "nonzero") == prepared.image.shape


def test_medians_take_each_axis_by_itself(write_dataset):
    spacing = [(1.0, 1.0, 1.0), (2.0, 1.0, 3.0), (1.5, 1.0, 5.0)]
    found = fingerprint_of(write_dataset([draw(seed) for seed in range(3)], spacing=spacing))
    assert found.median_spacing() == (1.5, 1.0, 3.0)
    assert found.median_shape((1.0, 1.0, 1.0)) == (24, 12, 21)


def test_regions_are_kept(write_dataset):
    labels = {"background": 0, "Left-Lung": 7, "Right-Lung": 40000, "nodule": 900, "debris": 901, "lungs": [7, 40000]}
    cases = [draw(seed) for seed in range(5)]
    for _, truth in cases:
        truth[truth == 255] = 0
    assert fingerprint_of(write_dataset(cases, labels=labels)).regions == {"lungs": ("Left-Lung", "Right-Lung")}


# ------------------------------------------------------------------------------------------------------- what cannot be used


def test_a_clean_dataset_has_no_warnings(write_dataset):
    found = fingerprint_of(write_dataset([draw(seed) for seed in range(5)]))
    assert found.warnings == ()
    assert found.unusable == {}


def test_broken_cases_are_named_and_the_rest_goes_on(write_dataset, write_scan):
    cases = [draw(seed) for seed in range(12)]
    cases[1][0][0, 5, 5, 5] = np.nan
    cases[2][1][5, 5, 5] = 33
    datalist = write_dataset(cases)
    folder = datalist.source.parent
    (folder / "case_03.nii.gz").unlink()
    content = (folder / "case_04_label.nii.gz").read_bytes()
    (folder / "case_04_label.nii.gz").write_bytes(content[: len(content) // 2])
    write_scan(folder / "case_05_label.nii.gz", np.zeros((18, 14, 9), dtype=np.uint8), np.eye(4))
    listed = [replace(case, label=None) if case.id == "case_06" else case for case in datalist.training]
    datalist = replace(datalist, training=tuple(listed))
    found = fingerprint_of(datalist)
    expected = {
        "case_01": "NaN or infinite",
        "case_02": "33",
        "case_03": "No such file",
        "case_04": "truncated",
        "case_05": "different grids",
        "case_06": "no label map",
    }
    assert set(found.unusable) == set(expected)
    assert all(words in found.unusable[name] for name, words in expected.items())
    good = [case for case in datalist.training if case.id not in expected]
    alone = fingerprint_of(replace(datalist, training=tuple(good)))
    assert (found.cases, found.channels, found.structures) == (alone.cases, alone.channels, alone.structures)
    (warning,) = found.warnings
    assert warning.startswith("6 of 12 cases cannot be used: case_01, case_02")


def test_no_usable_case_is_an_error(write_dataset):
    datalist = write_dataset([draw(0), draw(1)])
    with pytest.raises(DataError, match="lists no training case"):
        fingerprint_of(replace(datalist, training=()))
    for case in datalist.training:
        case.label.unlink()
    with pytest.raises(DataError, match=r"None of the 2 training cases can be used, the first being case_00: No such file"):
        fingerprint_of(datalist)


def test_the_number_of_workers_changes_nothing(write_dataset):
    datalist = write_dataset([draw(seed) for seed in range(7)], axcodes=["RAS", "LPS"])
    datalist.training[2].label.unlink()
    assert fingerprint_of(datalist, workers=1) == fingerprint_of(datalist, workers=5)
    with pytest.raises(UsageError, match="`workers` to be at least 1, but got 0"):
        fingerprint_of(datalist, workers=0)


# ------------------------------------------------------------------------------------------------------------------- warnings


def test_fewer_groups_than_folds_is_said(write_dataset):
    cases = [draw(seed) for seed in range(6)]
    three = write_dataset(cases, group=["ann", "bob", "cid"] * 2)
    (warning,) = fingerprint_of(three).warnings
    assert "3 groups (patients), fewer than the 5 folds" in warning
    assert "so that 3 are the most" in warning
    assert fingerprint_of(three).groups == 3
    (warning,) = fingerprint_of(write_dataset(cases, group=["ann"] * 6)).warnings
    assert "only 1 group" in warning
    own = fingerprint_of(write_dataset(cases, group=["ann", "bob", "cid"] * 2, fold=[0, 1, 1] * 2))
    assert own.folds
    assert own.warnings == ()


def test_structures_of_one_case_one_patient_or_none_are_named(write_dataset):
    cases = [draw(seed) for seed in range(6)]
    for number, (_, labels) in enumerate(cases):
        labels[np.isin(labels, [900, 901])] = 900 * (number == 3)
        labels[labels == 40000] *= number in (0, 1)
        labels[labels == 7] = 0
    datalist = write_dataset(cases, group=["ann", "ann", "bob", "cid", "dan", "eve"])
    assert warnings_of(datalist, "No usable case holds Left-Lung.")
    (single,) = warnings_of(datalist, "Seen in one patient")
    assert "Right-Lung (only in group ann), nodule (only in case case_03)" in single
    (empty,) = warnings_of(datalist, "holds no structure")
    assert "cases case_02, case_04, case_05" in empty


def test_an_odd_spacing_is_named(write_dataset):
    usual, odd = (1.0, 1.02, 2.0), (1.0, 1.0, 9.0)
    datalist = write_dataset([draw(seed) for seed in range(6)], spacing=[usual, usual, usual, odd, usual, usual])
    (warning,) = fingerprint_of(datalist).warnings
    assert "in 1 of 6 cases: case_03 (1 × 1 × 9 mm)" in warning
    assert "median of 1 × 1.02 × 2 mm" in warning
    spread = [(1.0, 1.0, mm) for mm in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    assert fingerprint_of(write_dataset([draw(seed) for seed in range(6)], spacing=spread)).warnings == ()


def test_mixed_orientations_are_said(write_dataset):
    (warning,) = fingerprint_of(write_dataset([draw(seed) for seed in range(5)], axcodes=["LPS", "RAS", "LPS"])).warnings
    assert "2 orientations: LPS (3), RAS (2)" in warning


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR"])
def test_swapped_sides_are_noticed(write_dataset, code):
    cases = [draw(seed) for seed in range(5)]
    swapped = [(image, np.select([labels == 7, labels == 40000], [40000, 7], labels)) for image, labels in cases]
    (warning,) = fingerprint_of(write_dataset(swapped, axcodes=[code])).warnings
    assert warning.startswith("Left-Lung lies to the right of Right-Lung in 5 of 5 cases.")
    (warning,) = fingerprint_of(write_dataset([*cases[:4], swapped[4]], axcodes=[code])).warnings
    assert warning.startswith("Left and right seem swapped in case case_04,")


def test_sides_are_judged_in_the_world_and_not_in_the_file(tmp_path, write_dataset, write_scan, make_affine):
    datalist = write_dataset([draw(seed) for seed in range(5)])
    for case in datalist.training:
        labels = read_image(case.label).array[0].astype(np.int32)
        image = read_image(case.images[0]).array[0]
        tilted = make_affine("RAS", degrees=(10.0, 20.0, 30.0))
        for path, array in ((case.label, labels), (case.images[0], image)):
            write_scan(path, array, tilted @ np.diag([-1, 1, 1, 1]))  # the header claims the mirror image
    (warning,) = fingerprint_of(datalist).warnings
    assert "in 5 of 5 cases" in warning


def test_hounsfield_units_are_recognised(write_dataset):
    rng = np.random.default_rng(0)
    cases = [draw(seed) for seed in range(5)]
    hu = [
        (np.where(image == 0, -1000, image - 60).round() + rng.integers(-9, 9, image.shape), labels) for image, labels in cases
    ]
    hu = [(image.astype(np.float32), labels) for image, labels in hu]

    def found(scans, name):
        fingerprint = fingerprint_of(write_dataset(scans, channels=(name,)))
        return fingerprint.channels[0].looks_like_ct, [text for text in fingerprint.warnings if "called CT" in text]

    assert found(hu, "image") == (True, [])
    assert found([hu[0], hu[1], hu[2], *cases[3:]], "image")[0]
    assert not found([hu[0], hu[1], *cases[2:]], "image")[0]
    resampled = [(image + np.float32(0.25), labels) for image, labels in hu]
    assert not found(resampled, "image")[0]
    assert found(resampled, "CT_venous") == (True, [])
    shifted = [(image + 1024, labels) for image, labels in hu]
    like, said = found(shifted, "CT")
    assert not like
    assert "'CT' is called CT, but most scans hold no values like HU" in said[0]
    assert found(cases, "T1") == (False, [])
    assert found(shifted, "spectral") == (False, [])


# ------------------------------------------------------------------------------------------------------------------- the file


def test_a_fingerprint_survives_its_file(tmp_path, write_dataset):
    labels = {"background": 0, "Left-Lung": 7, "Right-Lung": 40000, "nodule": 900, "debris": 901, "both": [900, 901]}
    cases = [draw(seed) for seed in range(3)]
    cases[0][1][8, 3, 0] = cases[1][1][8, 3, 0] = 0
    datalist = write_dataset(cases, labels=labels, axcodes=["LPS", "RAS"])
    found = fingerprint_of(datalist)
    found.write(tmp_path / "fingerprint.json")
    assert found.unusable
    assert found.warnings
    assert Fingerprint.read(tmp_path / "fingerprint.json") == found
    assert json.loads((tmp_path / "fingerprint.json").read_text())["digest"] == found.digest


def test_files_that_are_no_fingerprint_are_refused(tmp_path, write_dataset):
    found = fingerprint_of(write_dataset([draw(0)]))
    path = tmp_path / "fingerprint.json"
    with pytest.raises(DataError, match=r"fingerprint\.json"):
        Fingerprint.read(path)
    content = found.to_dict()
    for change, words in (
        ({"format": 0}, "fingerprint of format 1, but got 0"),
        ({"cases": [{"id": "a"}]}, "damaged"),
        ({"channels": 3}, "damaged"),
        ({"nonsense": 3}, "damaged"),
        ({"background": "much"}, "damaged"),
        ({"cases": [{**content["cases"][0], "shape": "large"}]}, "damaged"),
        ({"unusable": ["a"]}, "damaged"),
        ({"warnings": [3]}, "damaged"),
        ({"source": None}, "damaged"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=f"fingerprint\\.json: .*{words}"):
            Fingerprint.read(path)


def test_the_digest_follows_the_content_and_the_key_the_files(tmp_path, write_dataset):
    cases = [draw(seed) for seed in range(3)]
    datalist = write_dataset(cases)
    found = fingerprint_of(datalist)
    assert found.inputs == inputs_key(datalist)
    moved = read_datalist(shutil.copytree(datalist.source.parent, tmp_path / "moved"))
    assert fingerprint_of(moved).digest == found.digest
    assert inputs_key(moved) != found.inputs
    status = datalist.training[0].label.stat()
    os.utime(datalist.training[0].label, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert inputs_key(datalist) != found.inputs
    assert fingerprint_of(datalist).digest == found.digest
    cases[0][1][3, 4, 2] = 900
    changed = write_dataset(cases)
    assert fingerprint_of(changed).digest != found.digest
    (changed.source.parent / "case_00.nii.gz").unlink()
    assert inputs_key(changed) != inputs_key(write_dataset(cases))
