import json
import pickle
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.utils.data import DataLoader

from medseg_se.data.augmentation import NO_AUGMENTATION, Augmentation, SpatialChange
from medseg_se.data.cutting import read_patch
from medseg_se.data.datalist import read_datalist
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.raw_batch import RawBatch
from medseg_se.data.sampling import EpochSampler, PatchDataset, PatchSettings, RawPatches, one_thread
from medseg_se.data.store import prepare_cases
from medseg_se.structures import IGNORE, Structures

LABELS = {"background": 0, "left thing": 1, "right thing": 2, "middle": 3, "ignore": 9}
STRUCTURES = Structures.from_labels(LABELS)
LEFT, RIGHT, MIDDLE = (STRUCTURES.index(name) for name in ("left thing", "right thing", "middle"))
STRONG = Augmentation(
    elastic=1.5, spatial_probability=1, mirror=("left-right", "anterior-posterior"), intensity_probability=0.5
)
SHAPE = (20, 22, 18)


@pytest.fixture
def store_case(tmp_path, write_scan, make_affine):
    """Return a function that stores a scan (C, I, J, K) with structure indices (I, J, K), intensities as they are."""
    stored = []

    def store(image, labels=None, axcodes="RAS", spacing=(1.0, 1.0, 1.0)):
        folder = tmp_path / f"scan_{len(stored)}"
        labels = np.zeros(image.shape[1:], dtype=np.int16) if labels is None else labels
        affine = make_affine(axcodes, spacing)
        write_scan(folder / "image.nii", np.moveaxis(image, 0, -1).astype(np.float32), affine)
        write_scan(folder / "labels.nii", np.where(labels == IGNORE, 9, labels).astype(np.int16), affine)
        entry = {"image": "image.nii", "label": "labels.nii", "id": str(len(stored))}
        (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "training": [entry]}))
        plain = Preprocessing(orientation=axcodes, intensity="none")
        cases = prepare_cases(
            read_datalist(folder).training, plain, STRUCTURES, tmp_path / "store", channels=len(image), progress=False
        )
        stored.append(cases[0])
        return cases[0]

    return store


@pytest.fixture
def three_threads():
    """Let PyTorch compute on three threads; worker processes have one each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def coordinates(shape=SHAPE):
    """Return a scan with three channels that tell each voxel's own indices."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)


def random_labels(shape=SHAPE, seed=0):
    labels = np.random.default_rng(seed).integers(IGNORE, 4, size=shape).astype(np.int16)
    labels[0, 0, :5] = np.arange(IGNORE, 4)
    return labels


def settings(size=(8, 6, 10), orientation="RAS", foreground=0.5, flat_axis=None, seed=0, weights=()):
    return PatchSettings(size, orientation, foreground, flat_axis, seed, weights)


def patches(cases, augmentation=None, **options):
    return PatchDataset(cases, settings(**options), augmentation, STRUCTURES)


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in ("image", "labels"))


def change(matrix=None, warp=None, mirrored=()):
    return SpatialChange(np.eye(3) if matrix is None else np.asarray(matrix, dtype=float), warp, tuple(mirrored))


def cut(case, centre, size, change):
    patch, truth = read_patch(case, centre, size, change).cut()
    return patch, truth


def cut_straight(case, centre, size):
    return cut(case, centre, size, SpatialChange(None, None, ()))


def quarter_turn(axis):
    matrix = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    matrix[[first, first, second, second], [first, second, first, second]] = 0, -1, 1, 0
    return matrix, (first, second)


def rotation(degrees):
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (i, j) = np.eye(3), [other for other in range(3) if other != axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix


# ------------------------------------------------------------------------------------------------------- which sample is which


def test_the_number_alone_decides_a_sample(store_case):
    cases = [store_case(coordinates(), random_labels(seed=seed)) for seed in range(3)]
    dataset = patches(cases, STRONG)
    samples = [dataset[number] for number in range(7)]
    again = patches(cases, STRONG)
    for number in (6, 0, 3, 3, 5):  # in any order
        assert same(again[number], samples[number])
    assert not same(samples[0], samples[3])
    assert not same(patches(cases, STRONG, seed=1)[0], samples[0])


def test_workers_and_threads_do_not_change_the_samples(store_case, three_threads):
    cases = [store_case(coordinates((37, 41, 39)), random_labels((37, 41, 39), seed=seed)) for seed in range(2)]
    dataset = patches(cases, STRONG, size=(33, 35, 37))  # so large that PyTorch shares the work among threads

    def images(workers):
        batches = list(DataLoader(dataset, 2, sampler=EpochSampler(6), num_workers=workers))
        assert len(batches) == 3
        return torch.cat([batch["image"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])

    image, labels = images(0)
    assert torch.get_num_threads() == 3
    for workers in (1, 2):
        other = images(workers)
        assert torch.equal(other[0], image)
        assert torch.equal(other[1], labels)


@pytest.mark.parametrize("flat", [None, 1])
def test_patches_that_are_changed_later_are_the_same(store_case, flat):
    cases = [store_case(coordinates(), random_labels(seed=seed)) for seed in range(2)]
    size = (8, 6 if flat is None else 1, 10)
    dataset = patches(cases, STRONG, size=size, flat_axis=flat)
    raw = RawPatches(dataset)
    assert len(raw) == 2
    loader = DataLoader(raw, 3, sampler=range(6), collate_fn=RawBatch.of, num_workers=1)
    for batch, numbers in zip(loader, ((0, 1, 2), (3, 4, 5)), strict=True):
        finished = batch.to(torch.device("cpu")).finished()
        for place, number in enumerate(numbers):
            assert same({name: values[place] for name, values in finished.items()}, dataset[number])


def test_a_batch_keeps_every_voxel_of_its_samples(store_case):
    case = store_case(coordinates(), random_labels())
    raw = RawPatches(patches([case, case.without_image()], STRONG))
    samples = [raw[number] for number in range(4)]
    assert len({sample.patch.labels.shape for sample in samples}) > 1  # boxes of turned patches are of any size
    assert {len(sample.patch.image) for sample in samples} == {0, 3}
    for sample, kept in zip(samples, RawBatch.of(samples).samples(), strict=True):
        assert torch.equal(kept.patch.image, sample.patch.image)
        assert torch.equal(kept.patch.labels, sample.patch.labels)


def test_all_voxels_of_a_batch_go_to_its_device(store_case):
    raw = RawPatches(patches([store_case(coordinates(), random_labels())], STRONG))
    batch = RawBatch.of([raw[number] for number in range(4)]).to(torch.device("meta"))
    for sample in batch.samples():
        assert sample.patch.image.device.type == sample.patch.labels.device.type == "meta"


def test_a_batch_needs_few_file_descriptors_however_many_samples_it_has(store_case):
    resource = pytest.importorskip("resource")
    case, highest = store_case(coordinates(), random_labels()), max(int(path.name) for path in Path("/dev/fd").iterdir())
    raw = RawPatches(patches([case], STRONG, size=(8, 1, 10), flat_axis=1))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 60, before[1]))
    try:
        batches = list(DataLoader(raw, 64, sampler=range(192), collate_fn=RawBatch.of, num_workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [len(batch.finished()["labels"]) for batch in batches] == [64, 64, 64]


def test_threads_are_given_back_also_after_an_error(three_threads):
    with suppress(ValueError), one_thread():
        raise ValueError("broken")
    assert torch.get_num_threads() == 3


def test_each_pass_takes_every_case_once_in_a_new_order(store_case):
    cases = [store_case(np.full((1, 8, 8, 8), value)) for value in range(7)]
    dataset = patches(cases, size=(4, 4, 4))
    assert len(dataset) == 7
    orders = [[int(dataset[number]["image"][0, 0, 0, 0]) for number in range(first, first + 7)] for first in (0, 7, 14, 21)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    other = patches(cases, size=(4, 4, 4), seed=5)
    assert [int(other[number]["image"][0, 0, 0, 0]) for number in range(7)] != orders[0]


def test_epochs_follow_one_another():
    sampler = EpochSampler(6)
    assert len(sampler) == 6
    assert list(sampler) == list(range(6))
    sampler.set_epoch(3)
    assert list(sampler) == list(range(18, 24)) == list(sampler)


def test_a_resumed_epoch_begins_where_it_stopped_and_the_next_ones_are_whole():
    sampler = EpochSampler(6, first=16)
    sampler.set_epoch(2)
    assert list(sampler) == [16, 17]
    sampler.set_epoch(3)
    assert list(sampler) == list(range(18, 24))


def test_a_run_resumed_between_epochs_begins_with_the_next():
    assert list(EpochSampler(6, first=12)) == list(range(12, 18))  # even before the epoch is told


def test_devices_share_an_epoch_without_overlap():
    samplers = [EpochSampler(12, device=device, devices=3) for device in range(3)]
    for sampler in samplers:
        sampler.set_epoch(2)
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers] == [4, 4, 4]
    assert sorted(number for share in shares for number in share) == list(range(24, 36))


# --------------------------------------------------------------------------------------------------------------- where it lies


def test_patches_stay_inside_a_scan_that_is_large_enough(store_case):
    image, labels = coordinates(), random_labels()
    size = (8, 6, 10)
    dataset = patches([store_case(image, labels)], size=size)
    starts = set()
    for number in range(150):
        sample = dataset[number]
        start = tuple(int(index) for index in sample["image"][:, 0, 0, 0])
        box = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
        np.testing.assert_array_equal(sample["image"], image[(slice(None), *box)])
        np.testing.assert_array_equal(sample["labels"], labels[box])
        assert sample["image"].dtype == torch.float32
        assert sample["labels"].dtype == torch.int64
        starts.add(start)
    reached = np.array(sorted(starts))
    assert reached.min(axis=0).tolist() == [0, 0, 0]
    assert reached.max(axis=0).tolist() == [12, 16, 8]


def test_an_axis_shorter_than_the_patch_is_centred(store_case):
    image = coordinates((20, 5, 18)) + 1
    sample = patches([store_case(image)], size=(8, 10, 10), foreground=0)[0]
    row = sample["image"][1, 0, :, 0].tolist()
    assert row == [1, 1, 1, 1, 2, 3, 4, 5, 1, 1]  # the lowest intensity of that channel is 1
    assert sample["image"].shape == (3, 8, 10, 10)


def test_foreground_is_the_share_of_patches_on_a_structure_and_structures_are_equally_likely(store_case):
    labels = np.zeros((40, 40, 40), dtype=np.int16)
    labels[8, 8, 8] = LEFT  # one voxel
    labels[26:34, 26:34, 26:34] = RIGHT  # 512 of them
    labels[20, 4, 35] = IGNORE
    case = store_case(labels[None], labels)
    drawn = 600

    def shares(foreground):
        dataset = patches([case], size=(6, 6, 6), foreground=foreground)
        held = [set(dataset[number]["labels"].unique().tolist()) for number in range(drawn)]
        return [np.mean([index in values for values in held]) for index in (LEFT, RIGHT)]

    assert shares(1.0) == pytest.approx([0.5, 0.5], abs=0.06)
    chance = shares(0.0)
    assert chance[0] < 0.02
    assert chance[1] < 0.08
    assert shares(0.4) == pytest.approx([0.2 + 0.6 * chance[0], 0.2 + 0.6 * chance[1]], abs=0.06)


def test_structures_are_drawn_among_those_that_the_case_has(store_case):
    labels = np.zeros((20, 20, 20), dtype=np.int16)
    labels[3, 4, 5] = MIDDLE
    dataset = patches([store_case(labels[None], labels)], size=(4, 4, 4), foreground=1.0)
    assert all((dataset[number]["labels"] == MIDDLE).any() for number in range(50))


def test_weights_say_how_often_patches_are_drawn_around_each_structure(store_case):
    labels = np.zeros((40, 40, 40), dtype=np.int16)
    for index, place in ((LEFT, 8), (RIGHT, 20), (MIDDLE, 32)):
        labels[place, place, place] = index
    case = store_case(labels[None], labels)

    def shares(*weights):
        dataset = patches([case], size=(6, 6, 6), foreground=1.0, weights=weights)
        held = [set(dataset[number]["labels"].unique().tolist()) for number in range(500)]
        return [np.mean([index in values for values in held]) for index in (LEFT, RIGHT, MIDDLE)]

    assert shares(1.0, 1.0, 1.0) == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=0.07)
    assert shares(3.0, 0.0, 1.0) == pytest.approx([0.75, 0.0, 0.25], abs=0.07)


def test_a_case_with_none_of_the_weighted_structures_gives_random_patches(store_case):
    labels = np.zeros((20, 22, 18), dtype=np.int16)
    labels[3, 4, 5] = MIDDLE
    dataset = patches([store_case(coordinates(), labels)], size=(4, 4, 4), foreground=1.0, weights=(1.0, 1.0, 0.0))
    assert len({tuple(dataset[number]["image"][:, 0, 0, 0].tolist()) for number in range(30)}) > 20


def test_nothing_of_the_cases_is_held_in_memory(store_case):
    few, many = np.zeros((30, 30, 30), dtype=np.int16), np.full((30, 30, 30), MIDDLE, dtype=np.int16)
    small, large = (patches([store_case(labels[None], labels)]) for labels in (few, many))
    for dataset in (small, large):
        assert dataset[3]["image"].shape == (1, 8, 6, 10)
    assert abs(len(pickle.dumps(large)) - len(pickle.dumps(small))) < 200


def test_a_case_without_structures_gives_random_patches(store_case):
    dataset = patches([store_case(coordinates())], foreground=1.0)
    assert len({tuple(dataset[number]["image"][:, 0, 0, 0].tolist()) for number in range(30)}) > 20


# --------------------------------------------------------------------------------------------------------------------- content


def cropped(image, labels, centre, size, lowest):
    """Crop by hand: pad everything far out, then index."""
    far = 60
    channels = [np.pad(channel, far, constant_values=value) for channel, value in zip(image, lowest, strict=True)]
    box = tuple(slice(c - s // 2 + far, c - s // 2 + far + s) for c, s in zip(centre, size, strict=True))
    return np.stack(channels)[(slice(None), *box)], np.pad(labels, far)[box]


PLACES = [
    ((10, 11, 9), (8, 6, 10)),
    ((0, 0, 0), (8, 6, 10)),
    ((19, 21, 17), (7, 9, 5)),
    ((2, 20, 9), (9, 8, 1)),
    ((10, 11, 9), (40, 3, 30)),
]


@pytest.mark.parametrize(("centre", "size"), PLACES)
def test_a_straight_patch_is_a_crop_and_beyond_the_scan_lies_lowest_intensity_and_background(store_case, centre, size):
    image = np.random.default_rng(1).normal([[[[5.0]]], [[[-80.0]]]], 10, size=(2, *SHAPE)).astype(np.float32)
    labels = random_labels()
    patch, truth = cut_straight(store_case(image, labels), np.array(centre), size)
    expected, expected_truth = cropped(image, labels, centre, size, image.min(axis=(1, 2, 3)))
    np.testing.assert_array_equal(patch, expected)
    np.testing.assert_array_equal(truth, expected_truth)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.9)])
@pytest.mark.parametrize(("centre", "size"), PLACES)
def test_interpolating_without_a_change_gives_the_straight_patch(store_case, centre, size, spacing):
    image = np.random.default_rng(1).normal([[[[5.0]]], [[[-8.0]]]], 3, size=(2, *SHAPE)).astype(np.float32)
    case = store_case(image, random_labels(), spacing=spacing)
    straight, truth = cut_straight(case, np.array(centre), size)
    patch, warped_truth = cut(case, np.array(centre), size, change())
    torch.testing.assert_close(patch, straight, atol=1e-4, rtol=0)
    assert torch.equal(warped_truth, truth)
    assert (warped_truth == IGNORE).any()


def test_no_matrix_means_a_straight_cut(store_case):
    case = store_case(coordinates(), random_labels())
    straight, truth = cut_straight(case, np.array([5, 6, 7]), (4, 4, 4))
    patch, same_truth = cut(case, np.array([5, 6, 7]), (4, 4, 4), SpatialChange(None, None, ()))
    assert torch.equal(patch, straight)
    assert torch.equal(same_truth, truth)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_rot90(store_case, axis):
    image = np.random.default_rng(1).normal(size=(2, 15, 15, 15)).astype(np.float32)
    case = store_case(image, random_labels((15, 15, 15)))
    centre, size = np.array([7, 7, 7]), (9, 9, 9)
    matrix, plane = quarter_turn(axis)
    patch, truth = cut(case, centre, size, change(matrix))
    straight, straight_truth = cut_straight(case, centre, size)
    turned = np.rot90(straight, -1, axes=(plane[0] + 1, plane[1] + 1))
    np.testing.assert_allclose(patch, turned, atol=1e-4)
    np.testing.assert_array_equal(truth, np.rot90(straight_truth, -1, axes=plane))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.5)])
def test_the_sampled_places_are_turned_and_scaled_in_millimetres(store_case, spacing):
    """Linear interpolation is exact for the channels that hold the voxels' own indices, so they tell where was sampled."""
    case = store_case(coordinates((40, 40, 40)), spacing=spacing)
    matrix = rotation((12, -20, 31)) * 1.15
    size, centre = (7, 8, 5), np.array([20, 19, 21])
    patch, _ = cut(case, centre, size, change(matrix))
    offsets = np.stack(np.meshgrid(*[np.arange(length) - length // 2 for length in size], indexing="ij"))
    scale = np.array(spacing).reshape(3, 1, 1, 1)
    expected = np.einsum("ab,bijk->aijk", matrix, offsets * scale) / scale + centre.reshape(3, 1, 1, 1)
    np.testing.assert_allclose(patch, expected, atol=1e-3)


@pytest.mark.parametrize(("points", "size"), [((4, 4, 4), (11, 9, 10)), ((2, 5, 3), (11, 9, 10)), ((4, 4, 4), (9, 1, 12))])
def test_a_turned_and_warped_patch_is_interpolated_as_scipy_does(store_case, monkeypatch, points, size):
    image = np.random.default_rng(1).normal([[[[5.0]]], [[[-8.0]]]], 3, size=(2, *SHAPE)).astype(np.float32)
    labels, spacing = random_labels(), np.array([0.7, 1.0, 1.9])
    matrix, warp = rotation((12, -20, 31)) * 1.2, np.random.default_rng(3).normal(0, 1.5, size=(3, *points))
    centre = np.array([4, 15, 10])  # so that a part lies beyond the scan
    case = store_case(image, labels, spacing=tuple(spacing))
    patch, truth = cut(case, centre, size, change(matrix, warp))
    offsets = np.stack(np.meshgrid(*[np.arange(length) - length // 2 for length in size], indexing="ij"))
    places = np.einsum("ab,bijk->aijk", matrix, offsets * spacing.reshape(3, 1, 1, 1))
    steps = np.stack(
        np.meshgrid(*[np.linspace(0, n - 1, s) if s > 1 else [0] for n, s in zip(points, size, strict=True)], indexing="ij")
    )
    places += np.stack([map_coordinates(values, steps, order=1) for values in warp])
    places = places / spacing.reshape(3, 1, 1, 1) + centre.reshape(3, 1, 1, 1)
    for channel, values, low in zip(patch, image, image.min(axis=(1, 2, 3)), strict=True):
        expected = map_coordinates(values.astype(float), places, order=1, mode="grid-constant", cval=float(low))
        np.testing.assert_allclose(channel, expected, atol=2e-4)
    nearest = np.floor(places + 0.5).astype(int)
    inside = ((nearest >= 0) & (nearest < np.array(SHAPE).reshape(3, 1, 1, 1))).all(axis=0)
    clipped = np.clip(nearest, 0, np.array(SHAPE).reshape(3, 1, 1, 1) - 1)
    settled = (np.abs(places - nearest) < 0.499).all(axis=0)  # not on the border between two voxels
    np.testing.assert_array_equal(truth.numpy()[settled], np.where(inside, labels[tuple(clipped)], 0)[settled])
    monkeypatch.setattr("medseg_se.data.cutting.SLAB", 200)  # piece by piece as in one go
    again, same_truth = cut(case, centre, size, change(matrix, warp))
    torch.testing.assert_close(again, patch)
    assert torch.equal(same_truth, truth)


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_a_slice_reads_its_slice_alone_and_a_turned_patch_the_box_it_touches(store_case, monkeypatch, flat):
    case = store_case(coordinates((40, 40, 40)), spacing=(1.0, 0.7, 2.3))
    read, boxes = type(case).read, []
    monkeypatch.setattr(type(case), "read", lambda self, box: boxes.append(box) or read(self, box))
    size = [12, 12, 12]
    size[flat] = 1
    angles = np.zeros(3)
    angles[flat] = 30
    cut(case, np.array([20, 20, 20]), size, change(rotation(angles)))
    cut(case, np.array([20, 20, 20]), (10, 10, 10), change(rotation((0, 45, 0))))
    slices, turned = ([part.stop - part.start for part in box] for box in boxes)
    assert slices[flat] == 1
    assert turned[1] <= 13
    assert max(turned) < 40


def ball(shape, spacing, radius):
    offsets = [(np.arange(length) - length // 2) * step for length, step in zip(shape, spacing, strict=True)]
    return (sum(axis**2 for axis in np.meshgrid(*offsets, indexing="ij")) <= radius**2).astype(np.int16)


def test_a_ball_stays_a_ball_when_an_anisotropic_scan_is_turned(store_case):
    shape, spacing = (41, 41, 21), (1.0, 1.0, 2.0)
    labels = ball(shape, spacing, 12.0)
    case = store_case(labels[None], labels, spacing=spacing)
    _, truth = cut(case, np.array([20, 20, 10]), shape, change(rotation((0, 40, 25))))
    assert 2 * (truth.numpy() * labels).sum() / (truth.numpy().sum() + labels.sum()) > 0.94  # turned in voxels: 0.7


def test_a_matrix_above_one_shows_more_of_the_scan_and_structures_smaller(store_case):
    labels = ball((41, 41, 41), (1, 1, 1), 12.0)
    case = store_case(labels[None], labels)
    sizes = [float(cut(case, np.full(3, 20), (31, 31, 31), change(np.eye(3) * scale))[1].sum()) for scale in (1.0, 1.5)]
    assert sizes[1] == pytest.approx(sizes[0] / 1.5**3, rel=0.05)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.5)])
def test_displacements_are_millimetres_between_control_points_over_the_patch(store_case, spacing):
    case = store_case(coordinates((40, 40, 40)), spacing=spacing)
    warp = np.random.default_rng(3).normal(0, 2, size=(3, 4, 4, 4))
    size, centre = (10, 7, 9), np.array([20, 19, 21])
    patch, _ = cut(case, centre, size, change(warp=warp))
    straight, _ = cut_straight(case, centre, size)
    places = np.stack(np.meshgrid(*[np.linspace(0, 3, length) for length in size], indexing="ij"))
    displaced = np.stack([map_coordinates(points, places, order=1) for points in warp])
    moved = (patch - straight).numpy() * np.array(spacing).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(moved, displaced, atol=3e-3)


def test_values_between_the_border_and_beyond_are_interpolated_towards_the_lowest_intensity(store_case):
    image = np.full((1, 10, 10, 10), 4.0, dtype=np.float32)
    image[0, 5, 5, 5] = -2.0
    case = store_case(image)
    shift = np.zeros((3, 4, 4, 4))
    shift[0] = 0.5
    patch, _ = cut(case, np.array([9, 2, 2]), (3, 3, 3), change(warp=shift))
    np.testing.assert_allclose(patch[0, :, 1, 1], [4.0, 1.0, -2.0], atol=1e-4)  # x = 8.5, 9.5 (half beyond), 10.5


def test_labels_are_never_mixed(store_case):
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[::2] = MIDDLE  # halves would be 1 or 2
    case = store_case(labels[None], labels)
    _, truth = cut(case, np.array([10, 11, 9]), (9, 9, 9), change(rotation((7, 15, 33)) * 0.8))
    assert set(truth.unique().tolist()) == {0, MIDDLE}


# ------------------------------------------------------------------------------------------------------------------- mirroring


def mirrored_labels(truth):
    """Exchange the sides by hand."""
    table = {IGNORE: IGNORE, 0: 0, LEFT: RIGHT, RIGHT: LEFT, MIDDLE: MIDDLE}
    return truth.clone().apply_(table.__getitem__)


@pytest.mark.parametrize("interpolated", [False, True])
@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("LPS", 0), ("PIR", 2), ("ASL", 2), ("SRA", 1)])
def test_mirroring_left_to_right_flips_that_axis_alone_and_exchanges_the_sides(store_case, orientation, axis, interpolated):
    case = store_case(coordinates(), random_labels(), axcodes=orientation)
    mirror = replace(NO_AUGMENTATION, mirror=("left-right",), spatial_probability=float(interpolated))
    plain = patches([case], orientation=orientation)
    changed = patches([case], mirror, orientation=orientation)
    flips = 0
    for number in range(20):
        before, after = plain[number], changed[number]
        if torch.allclose(after["image"], before["image"], atol=1e-3):
            assert torch.equal(after["labels"], before["labels"])
            continue
        flips += 1
        torch.testing.assert_close(after["image"], before["image"].flip(axis + 1), atol=1e-3, rtol=0)
        assert torch.equal(after["labels"], mirrored_labels(before["labels"].flip(axis)))
        assert (after["labels"] == IGNORE).any()
    assert 3 < flips < 17


@pytest.mark.parametrize(("name", "axis"), [("anterior-posterior", 1), ("inferior-superior", 2)])
def test_mirroring_another_axis_keeps_the_sides(store_case, name, axis):
    case = store_case(coordinates(), random_labels())
    plain, changed = patches([case]), patches([case], replace(NO_AUGMENTATION, mirror=(name,)))
    flipped = [number for number in range(12) if not same(plain[number], changed[number])]
    assert flipped
    for number in flipped:
        assert torch.equal(changed[number]["labels"], plain[number]["labels"].flip(axis))


# ---------------------------------------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize(("orientation", "flat"), [("RAS", 0), ("RAS", 1), ("RAS", 2), ("PIR", 2), ("ASL", 1)])
def test_slices_are_slices(store_case, orientation, flat):
    image, labels = coordinates(), random_labels()
    size = [8, 6, 10]
    size[flat] = 1
    dataset = patches(
        [store_case(image, labels, axcodes=orientation)], size=tuple(size), orientation=orientation, flat_axis=flat
    )
    depths = set()
    for number in range(40):
        sample = dataset[number]
        assert sample["image"].shape == (3, *np.delete(size, flat))
        assert sample["labels"].shape == tuple(np.delete(size, flat))
        places = sample["image"].long().numpy()
        np.testing.assert_array_equal(sample["labels"], labels[tuple(places)])
        assert len(np.unique(places[flat])) == 1
        depths.add(int(places[flat].flat[0]))
    assert len(depths) > 8


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_slices_are_turned_scaled_and_warped_within_their_plane(store_case, flat):
    size = [12, 12, 12]
    size[flat] = 1
    turned = Augmentation(rotation=45, scaling=0.3, elastic=0.5, spatial_probability=1, intensity_probability=0)
    labels = np.zeros((40, 40, 40), dtype=np.int16)
    labels[20, 20, 20] = MIDDLE  # far enough from the border for a turned patch
    case = store_case(coordinates((40, 40, 40)), labels, spacing=(1.0, 1.5, 2.0))
    plain = patches([case], size=tuple(size), flat_axis=flat, foreground=1.0)
    dataset = patches([case], turned, size=tuple(size), flat_axis=flat, foreground=1.0)
    first, second = [axis for axis in range(3) if axis != flat]
    for number in range(12):
        before, after = plain[number]["image"], dataset[number]["image"]
        torch.testing.assert_close(after[flat], before[flat], atol=1e-3, rtol=0)  # still the same slice
        assert (after[[first, second]] - before[[first, second]]).abs().max() > 0.3
    assert dataset[0]["image"].is_contiguous()


def test_unknown_truth_survives_every_change(store_case):
    labels = random_labels((30, 30, 30))
    labels[10:20, 10:20, 10:20] = IGNORE
    dataset = patches([store_case(coordinates((30, 30, 30)), labels)], STRONG, size=(12, 12, 12), foreground=1.0)
    samples = [dataset[number]["labels"] for number in range(12)]
    assert all(sample.min() >= IGNORE and sample.max() <= MIDDLE for sample in samples)
    assert sum((sample == IGNORE).any().item() for sample in samples) >= 6
