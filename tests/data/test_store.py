import gzip
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg_se.data import arrays as arrays_module
from medseg_se.data import entries as entries_module
from medseg_se.data import positions as positions_module
from medseg_se.data import store as store_module
from medseg_se.data.datalist import read_datalist
from medseg_se.data.positions import MOST_POSITIONS
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.scan import read_channels, read_truth
from medseg_se.data.store import prepare_cases
from medseg_se.errors import DataError, OutputError, UsageError
from medseg_se.files import digest_of
from medseg_se.structures import Structures
from medseg_se.volumes import read_labels

PLAIN = Preprocessing()


@pytest.fixture
def dataset(tmp_path, write_decathlon):
    return write_decathlon(tmp_path / "data", cases=4, test=0)


@pytest.fixture
def prepare(tmp_path, dataset):
    """Return a function that prepares the dataset's cases, as it lies on disk now, with what the test changes."""

    def run(preprocessing=PLAIN, structures=None, **options):
        datalist = read_datalist(dataset)
        options = {"store": tmp_path / "store", "channels": 1, "progress": False, **options}
        return prepare_cases(datalist.training, preprocessing, structures or datalist.structures, **options)

    return run


def state(cases, kinds=("image", "labels")):
    """Return (case, kind) → what tells whether that entry was touched: inode and time of every file."""
    folders = {(case.id, kind): getattr(case, f"{kind}_file").parent for case in cases for kind in kinds}
    return {
        entry: sorted((path, path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir())
        for entry, folder in folders.items()
    }


def changed(before, after):
    return sorted(entry for entry in before if before[entry] != after[entry])


def files(cases):
    return {path for case in cases for path in (case.image_file, case.labels_file)}


# -------------------------------------------------------------------------------------------------------------------- content


def test_entries_hold_what_preprocessing_makes_of_the_files(dataset, prepare, tmp_path):
    recipe = Preprocessing(orientation="LPS", spacing=(2.0, 1.0, 1.5), crop="nonzero", intensity="percentile")
    datalist = read_datalist(dataset)
    for case, stored in zip(datalist.training, prepare(recipe), strict=True):
        image = read_channels(case.images)
        prepared = recipe(image)
        labels = prepared.apply_to_labels(read_truth(case, datalist.structures, image)).array[0]
        np.testing.assert_array_equal(stored.image(), prepared.image.array)
        np.testing.assert_array_equal(stored.labels(), labels)
        assert stored.id == case.id
        assert stored.image().dtype == np.float32
        assert stored.labels().dtype == np.int16
        assert stored.spacing == pytest.approx(prepared.image.spacing)
        assert stored.spacing == pytest.approx((2.0, 1.0, 1.5), rel=0.1)
        assert stored.lowest == pytest.approx([float(prepared.image.array.min())])
        assert (stored.channels, stored.shape) == (1, labels.shape)


def test_lowest_is_told_for_each_channel(tmp_path, write_decathlon):
    datalist = read_datalist(write_decathlon(tmp_path / "data", cases=1, test=0, channels=3))
    stored = prepare_cases(datalist.training, PLAIN, datalist.structures, tmp_path / "store", channels=3, progress=False)[0]
    assert stored.image().shape[0] == 3
    assert stored.lowest == pytest.approx(stored.image().min(axis=(1, 2, 3)).tolist())


def test_arrays_are_memory_mapped(prepare):
    stored = prepare()[0]
    assert isinstance(stored.image(), np.memmap)
    assert isinstance(stored.labels(), np.memmap)
    assert not stored.image().flags.writeable


@pytest.mark.parametrize("storage", ["npy", "blosc2"])
def test_a_box_is_what_slicing_the_whole_gives(tmp_path, write_decathlon, storage):
    if storage == "blosc2":
        pytest.importorskip("blosc2")
    folder = write_decathlon(tmp_path / "data", cases=1, test=0, channels=3, shape=(70, 35, 18))
    datalist = read_datalist(folder)
    case = prepare_cases(
        datalist.training, PLAIN, datalist.structures, tmp_path / "store", channels=3, progress=False, storage=storage
    )[0]
    image, labels = np.array(case.image()), np.array(case.labels())
    np.testing.assert_array_equal(image, PLAIN(read_channels(datalist.training[0].images)).image.array)
    assert labels.any()
    for box in (
        (slice(0, 70), slice(0, 35), slice(0, 18)),
        (slice(3, 68), slice(15, 33), slice(1, 17)),
        (slice(2, 9), slice(0, 6), slice(5, 6)),
        (slice(69, 70), slice(0, 35), slice(0, 18)),
        (slice(5, 5), slice(0, 35), slice(0, 18)),
    ):
        scan, truth = case.read(box)
        np.testing.assert_array_equal(scan, image[:, *box])
        np.testing.assert_array_equal(truth, labels[box])
        assert (scan.dtype, truth.dtype) == (np.float32, np.int16)
        assert scan.flags.writeable
        assert truth.flags.writeable
        assert scan.flags.c_contiguous
    assert case.image_file.suffix == {"npy": ".npy", "blosc2": ".b2nd"}[storage]


def test_a_box_is_read_when_it_is_asked_for(prepare):
    case = prepare()[0]
    with case.image_file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)  # the last voxel
        stream.write(np.float32(np.nan).tobytes())
    scan, _ = case.read((slice(0, 11), slice(0, 11), slice(0, 10)))
    assert np.isfinite(scan).all()
    assert np.isnan(case.read((slice(11, 12), slice(10, 11), slice(9, 10)))[0]).all()


def test_a_case_is_small_and_reads_the_same_in_another_process(prepare):
    case = prepare()[0]
    content = pickle.dumps(case)
    assert len(content) < 1500
    assert pickle.loads(content) == case
    box = (slice(2, 9), slice(0, 6), slice(5, 6))
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            scan, labels = pool.apply(case.read, (box,))
        np.testing.assert_array_equal(scan, case.read(box)[0])
        np.testing.assert_array_equal(labels, case.read(box)[1])


def test_large_arrays_are_compressed_by_themselves_and_small_ones_are_not(prepare, monkeypatch):
    pytest.importorskip("blosc2")
    assert {path.suffix for path in files(prepare())} == {".npy"}
    monkeypatch.setattr(arrays_module, "LARGE", 12 * 11 * 10)
    assert {path.suffix for path in files(prepare(Preprocessing("LPS")))} == {".b2nd"}
    monkeypatch.setattr(arrays_module, "find_spec", lambda _: None)  # as where it is not installed
    assert {path.suffix for path in files(prepare(Preprocessing("SAR")))} == {".npy"}


def test_blosc2_that_is_not_installed_is_named_with_its_extra(prepare, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(UsageError, match=r"'blosc2', which is not installed.*medseg-se\[fast\]"):
        prepare(storage="blosc2")
    with pytest.raises(UsageError, match=r"Unknown storage 'blosc'\. Did you mean 'blosc2'"):
        prepare(storage="blosc")
    assert not (tmp_path / "store").exists()


def test_positions_are_all_voxels_of_each_structure(prepare):
    for stored in prepare():
        assert stored.present() == (1, 2)
        for index in stored.present():
            places = stored.positions(index)
            assert isinstance(places, np.memmap)
            assert places.dtype == np.int32
            np.testing.assert_array_equal(places, np.argwhere(stored.labels() == index))
        assert stored.positions(3).shape == (0, 3)


def test_positions_do_not_depend_on_how_many_voxels_are_looked_at_together(monkeypatch):
    labels = np.random.default_rng(0).integers(-1, 4, size=(17, 9, 8)).astype(np.int16)
    monkeypatch.setattr(positions_module, "MOST_POSITIONS", 50)
    whole = positions_module.find_positions(labels)
    monkeypatch.setattr(positions_module, "SLAB", 37)
    parts = positions_module.find_positions(labels)
    assert list(whole) == list(parts) == [1, 2, 3]
    for index, places in whole.items():
        np.testing.assert_array_equal(places, parts[index])
        every = np.argwhere(labels == index)
        np.testing.assert_array_equal(places, every[np.linspace(0, len(every) - 1, 50).astype(int)])


def test_positions_of_a_large_structure_are_few_distinct_and_spread(tmp_path, write_scan):
    labels = np.ones((40, 40, 40), dtype=np.int16)
    labels[:2] = -7  # unknown truth
    labels[20:22, 5:7, 5:7] = 2
    write_scan(tmp_path / "data" / "a.nii.gz", np.random.default_rng(0).normal(size=labels.shape).astype(np.float32))
    write_scan(tmp_path / "data" / "a_label.nii.gz", labels)
    description = {"labels": {"background": 0, "big": 1, "small": 2, "ignore": -7}, "modality": {"0": "CT"}}
    entries = [{"image": "a.nii.gz", "label": "a_label.nii.gz"}]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**description, "training": entries}))
    datalist = read_datalist(tmp_path / "data")
    stored = prepare_cases(datalist.training, PLAIN, datalist.structures, tmp_path / "store", channels=1, progress=False)[0]
    assert set(np.unique(stored.labels())) == {-1, 1, 2}
    assert stored.present() == (1, 2)
    positions = {index: stored.positions(index) for index in stored.present()}
    assert {index: len(places) for index, places in positions.items()} == {1: MOST_POSITIONS, 2: 8}
    assert len({tuple(place) for place in positions[1]}) == MOST_POSITIONS
    for index, places in positions.items():
        assert (stored.labels()[tuple(places.T)] == index).all()
    assert positions[1].min(axis=0).tolist() == [2, 0, 0]
    assert positions[1].max(axis=0).tolist() == [39, 39, 39]
    np.testing.assert_allclose(positions[1].mean(axis=0), np.argwhere(stored.labels() == 1).mean(axis=0), atol=0.3)


def test_a_case_without_any_structure_has_no_positions(dataset, prepare, write_scan):
    write_scan(dataset / "labelsTr" / "case_01.nii.gz", np.zeros((12, 11, 10), dtype=np.uint8))
    stored = prepare()[1]
    assert stored.present() == ()
    assert len(stored.positions(1)) == 0
    assert not stored.labels().any()


# --------------------------------------------------------------------------------------------------------------------- again


def test_a_second_run_makes_nothing_again(prepare):
    first = prepare()
    second = prepare()
    assert first == second
    assert state(first) == state(second)


def test_a_second_run_does_not_need_to_understand_the_scans(prepare, monkeypatch):
    first = prepare()
    monkeypatch.setattr(store_module, "read_channels", lambda *_: pytest.fail("a scan was read again"))
    assert prepare() == first


def test_a_changed_scan_or_label_map_is_made_again_alone(dataset, prepare):
    first = prepare()
    image = dataset / "imagesTr" / "case_01.nii.gz"
    content = bytearray(gzip.decompress(image.read_bytes()))
    content[400:404] = np.float32(123.0).tobytes()  # a voxel
    image.write_bytes(gzip.compress(bytes(content)))
    second = prepare()
    assert changed(state(first), state(second)) == [("case_01", "image"), ("case_01", "labels")]
    assert first[1].digest != second[1].digest

    label = dataset / "labelsTr" / "case_02.nii.gz"
    content = bytearray(gzip.decompress(label.read_bytes()))
    content[-1] = 2
    label.write_bytes(gzip.compress(bytes(content)))
    third = prepare()
    assert changed(state(second), state(third)) == [("case_02", "labels")]
    assert third[2].digest == second[2].digest  # the scan itself is the same
    assert third[2].labels()[-1, -1, -1] == 2


def test_a_scan_under_another_name_is_recognised(dataset, prepare):
    first = prepare()
    for kind in ("imagesTr", "labelsTr"):
        (dataset / kind / "case_00.nii.gz").rename(dataset / kind / "renamed.nii.gz")
    text = (dataset / "dataset.json").read_text()
    (dataset / "dataset.json").write_text(text.replace("case_00", "renamed"))
    second = prepare()
    assert second[0].id == "renamed"
    assert replace(second[0], id="case_00") == first[0]


@pytest.mark.parametrize("other", [{"orientation": "LPS"}, {"spacing": (2, 2, 2)}, {"crop": "nonzero"}], ids=str)
def test_another_grid_makes_entries_of_its_own_and_keeps_the_old(prepare, other):
    first = prepare()
    before = state(first)
    second = prepare(replace(PLAIN, **other))
    assert not files(first) & files(second)
    assert state(prepare()) == before


@pytest.mark.parametrize(
    "other", [{"intensity": "minmax"}, {"intensity": "dataset", "mean": 3.0, "deviation": 2.0}, {"interpolation": "cubic"}]
)
def test_other_intensities_make_other_scans_and_keep_the_label_maps(prepare, other, monkeypatch):
    first = prepare()
    before = state(first)
    monkeypatch.setattr(store_module, "read_truth", lambda *_: pytest.fail("a label map was read again"))
    second = prepare(replace(PLAIN, **other))
    assert not {case.image_file for case in first} & {case.image_file for case in second}
    assert [case.labels_file for case in first] == [case.labels_file for case in second]
    assert state(prepare()) == before


@pytest.mark.parametrize(
    "other",
    [
        Structures({"near": (1,), "far": (2,)}, background=(0, 3)),
        Structures({"both": (1, 2)}),
        Structures({"far": (2,), "near": (1,)}),  # the same names and values, but other indices
        Structures({"near": (1,)}, ignore=2),
    ],
    ids=lambda structures: ",".join(structures.names),
)
def test_other_structures_make_other_labels_and_keep_the_scans(prepare, other, monkeypatch):
    first = prepare()
    monkeypatch.setattr(store_module, "read_channels", lambda *_: pytest.fail("a scan was read again"))
    second = prepare(structures=other)
    assert not {case.labels_file for case in first} & {case.labels_file for case in second}
    assert [case.image_file for case in first] == [case.image_file for case in second]
    for old, new in zip(first, second, strict=True):
        translated = other.encode(old.labels())
        np.testing.assert_array_equal(new.labels(), translated)


def test_regions_that_are_only_judged_do_not_make_entries_again(prepare):
    first = prepare()
    second = prepare(structures=Structures({"near": (1,), "far": (2,)}, regions={"any": ("near", "far")}))
    assert second == first


def test_cases_with_the_same_content_share_an_entry(dataset, prepare, tmp_path):
    for kind in ("imagesTr", "labelsTr"):
        for name in ("case_01", "case_02", "case_03"):
            (dataset / kind / f"{name}.nii.gz").write_bytes((dataset / kind / "case_00.nii.gz").read_bytes())
    stored = prepare(workers=4)
    assert [case.id for case in stored] == ["case_00", "case_01", "case_02", "case_03"]
    assert len(files(stored)) == 2
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_digest_depends_on_content_and_order(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    assert digest_of([first, second]) != digest_of([second, first])
    before = digest_of([first])
    first.rename(tmp_path / "c")
    assert digest_of([tmp_path / "c"]) == before
    with pytest.raises(DataError, match=r"Cannot read .*nothing"):
        digest_of([tmp_path / "nothing"])


# ---------------------------------------------------------------------------------------------------------------- what breaks


def test_broken_cases_are_counted_and_the_first_is_named(dataset, prepare, tmp_path):
    (dataset / "imagesTr" / "case_01.nii.gz").write_bytes(b"no scan")
    (dataset / "labelsTr" / "case_03.nii.gz").unlink()
    with pytest.raises(
        DataError, match=r"2 of 4 cases cannot be used, the first being case_01: .*case_01\.nii\.gz.*medseg-se check"
    ):
        prepare()
    assert len(list((tmp_path / "store").iterdir())) == 4  # the sound ones are kept


def test_a_case_without_a_label_map_is_refused(prepare, dataset, tmp_path):
    case = replace(read_datalist(dataset).training[0], label=None)
    with pytest.raises(DataError, match=r"1 of 1 cases.*case_00 has no label map"):
        prepare_cases([case], PLAIN, Structures({"near": (1,)}), tmp_path / "store", channels=1, progress=False)


def test_the_number_of_channels_is_checked(prepare):
    with pytest.raises(DataError, match=r"4 of 4 cases.*Expected 2 channels"):
        prepare(channels=2)


def test_a_write_that_fails_is_an_output_error_and_leaves_nothing(prepare, tmp_path):
    """A limit on the size of files stands for a full disk: the write fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*store"):
            prepare(workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "store").iterdir()) == []
    assert len(prepare()) == 4


@pytest.mark.parametrize("file", ["image.npy", "labels.npy", "positions.npy"])
def test_a_full_disk_is_said_in_words(prepare, tmp_path, monkeypatch, file):
    written = entries_module.write_array

    def full(path, array):
        written(path, array)
        if path.name == file:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(entries_module, "write_array", full)
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        prepare(workers=1)
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith((".", file.split(".")[0]))]


@pytest.mark.parametrize("storage", ["npy", "blosc2"])
@pytest.mark.parametrize("file", ["image", "labels", "positions", "case"])
def test_an_entry_that_is_no_longer_whole_is_made_again(prepare, storage, file):
    if storage == "blosc2":
        pytest.importorskip("blosc2")
    first = prepare(storage=storage)
    before = state(first)
    expected = [case.read((slice(0, 12), slice(0, 11), slice(0, 10))) for case in first]
    (damaged,) = (first[1].image_file if file in ("image", "case") else first[1].labels_file).parent.glob(f"{file}.*")
    with damaged.open("r+b") as stream:
        stream.truncate(damaged.stat().st_size // 2)
    second = prepare(storage=storage)
    assert second == first
    kind = "image" if file in ("image", "case") else "labels"
    assert changed(before, state(second)) == [("case_01", kind)]
    for case, (image, labels) in zip(second, expected, strict=True):
        scan, truth = case.read((slice(0, 12), slice(0, 11), slice(0, 10)))
        np.testing.assert_array_equal(scan, image)
        np.testing.assert_array_equal(truth, labels)
    assert len(list(damaged.parents[1].iterdir())) == 8


@pytest.mark.parametrize("storage", ["npy", "blosc2"])
@pytest.mark.parametrize("file", ["image", "labels"])
def test_an_entry_whose_content_changed_is_made_again_though_it_is_as_long(prepare, storage, file):
    if storage == "blosc2":
        pytest.importorskip("blosc2")
    first = prepare(storage=storage)
    path = getattr(first[1], f"{file}_file")
    content = path.read_bytes()
    path.write_bytes(content[:-64] + bytes(64))
    os.utime(path, ns=(1, 1))
    prepare(storage=storage)
    assert path.read_bytes() == content


def test_an_entry_that_was_copied_is_used_as_it_is(prepare, tmp_path, monkeypatch):
    first = prepare()
    shutil.copytree(tmp_path / "store", tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.setattr(store_module, "read_channels", lambda *_: pytest.fail("read again"))
    second = prepare(store=tmp_path / "copy")
    np.testing.assert_array_equal(second[0].image(), first[0].image())


@pytest.mark.parametrize("change", [-64, 40, -10_000_000])
def test_a_file_that_changes_its_length_while_it_is_used_is_not_read(prepare, change):
    case = prepare()[0]
    content = case.image_file.read_bytes()
    case.image_file.write_bytes((content + bytes(100))[: max(0, len(content) + change)])
    with pytest.raises(DataError, match="It was changed since it was prepared"):
        case.read([slice(0, 4)] * 3)


def test_compressed_blocks_that_are_damaged_while_they_are_used_are_named(prepare):
    pytest.importorskip("blosc2")
    case = prepare(storage="blosc2")[0]
    content = bytearray(case.labels_file.read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = b"\xff" * (2 * len(content) // 3 - len(content) // 3)
    case.labels_file.write_bytes(bytes(content))
    with pytest.raises(DataError):
        case.read([slice(0, length) for length in case.shape])


def test_small_cases_are_prepared_once_whether_large_ones_would_be_compressed_or_not(prepare, monkeypatch):
    monkeypatch.setattr(arrays_module, "find_spec", lambda _: None)
    first = prepare(storage="auto")
    assert prepare(storage="npy") == first


def test_an_entry_that_lost_a_file_is_made_again(prepare):
    first = prepare()
    first[2].labels_file.unlink()
    (first[3].image_file.parent / "case.json").write_text("[1, 2]")
    second = prepare()
    assert second == first
    assert second[2].labels_file.is_file()


def test_a_file_that_is_gone_while_it_is_used_is_named(prepare):
    case = prepare()[0]
    case.image_file.unlink()
    with pytest.raises(DataError, match=r"Cannot read .*image\.npy.*start the same run again"):
        case.image()


def test_what_killed_runs_left_is_removed_after_a_day(prepare, tmp_path):
    store = tmp_path / "store"
    for name in (".image-a.x.entry", ".labels-b.y.entry", ".mine"):
        (store / name / "whole").mkdir(parents=True)
    (store / ".image-a.x.entry" / "whole" / "image.npy").write_bytes(b"half")
    yesterday = time.time() - 25 * 60 * 60
    for name in (".image-a.x.entry", ".mine"):
        os.utime(store / name, (yesterday, yesterday))
    prepare()
    assert sorted(path.name for path in store.glob(".*")) == [".labels-b.y.entry", ".mine"]


# ----------------------------------------------------------------------------------------------------------- label maps alone


@pytest.mark.parametrize("recipe", [PLAIN, Preprocessing("LPS", (2.0, 1.0, 1.5), "nonzero", "minmax")], ids=["plain", "all"])
def test_a_label_map_alone_becomes_a_case_without_channels(dataset, tmp_path, recipe):
    datalist = read_datalist(dataset)
    first, second = (replace(case, images=()) for case in datalist.training[:2])
    cases = [first, second, datalist.training[2]]  # mixed with one that has a scan
    stored = prepare_cases(cases, recipe, datalist.structures, tmp_path / "store", channels=1, progress=False)
    assert [case.channels for case in stored] == [0, 0, 1]
    for case, made in zip(cases[:2], stored[:2], strict=True):
        labels = read_labels(case.label)
        encoded = replace(labels, array=datalist.structures.encode(labels.array))
        expected = recipe.prepare_labels(encoded)
        np.testing.assert_array_equal(made.labels(), expected.array[0])
        assert made.shape == expected.shape
        assert made.spacing == pytest.approx(expected.spacing)
        assert (made.lowest, made.digest, made.image_file) == ((), digest_of([case.label]), None)
        assert made.present() == (1, 2)
        image, truth = made.read((slice(0, 3), slice(1, 5), slice(2, 3)))
        assert (image.shape, image.dtype) == ((0, 3, 4, 1), np.float32)
        np.testing.assert_array_equal(truth, expected.array[0, 0:3, 1:5, 2:3])
        with pytest.raises(DataError, match=f"Case {case.id} is a label map alone"):
            made.image()
    again = prepare_cases(cases, recipe, datalist.structures, tmp_path / "store", channels=1, progress=False)
    assert again == stored
    assert len(list((tmp_path / "store").iterdir())) == 4


def test_a_store_that_is_a_file_is_an_output_error(prepare, tmp_path):
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(OutputError, match=r"Cannot write .*store"):
        prepare()


def test_a_killed_run_leaves_no_entry_and_loses_no_finished_one(dataset, prepare, tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from medseg_se.data import entries
        from medseg_se.data.datalist import read_datalist
        from medseg_se.data.preprocessing import Preprocessing
        from medseg_se.data.store import prepare_cases

        written = []
        write_array = entries.write_array

        def killed_in_the_third(path, array):
            written.append(path)
            if len(written) == 8:  # two cases of a scan, a label map and positions, then a scan
                os.kill(os.getpid(), signal.SIGKILL)
            write_array(path, array)

        entries.write_array = killed_in_the_third
        datalist = read_datalist(sys.argv[1])
        prepare_cases(datalist.training, Preprocessing(), datalist.structures, Path(sys.argv[2]), 1, workers=1, progress=False)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(dataset), str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(Path(store_module.__file__).parents[2])}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    finished = {path for path in (tmp_path / "store").iterdir() if not path.name.startswith(".")}
    assert len(finished) == 5
    times = {path: (path / "case.json").stat().st_mtime_ns for path in finished}
    stored = prepare()
    assert finished < {path.parent for path in files(stored)}
    assert all((path / "case.json").stat().st_mtime_ns == time for path, time in times.items())
    assert all(case.image().shape == (1, 12, 11, 10) for case in stored)


def test_an_interrupt_does_not_wait_for_the_cases_that_have_not_begun(prepare, monkeypatch):
    begun = []

    def interrupted(paths, channels):
        begun.append(paths)
        if len(begun) == 1:
            raise KeyboardInterrupt
        time.sleep(0.4)  # long enough for the interrupt to be noticed
        raise DataError("read although nobody waits for it")

    monkeypatch.setattr(store_module, "read_channels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(workers=1)
    assert len(begun) < 4
