from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from medseg_se.data.intensity import Scaling
from medseg_se.data.separable import along_axes, coarsening, refining, spreading
from medseg_se.data.synthesis import Look, Synthesis, SyntheticChange, draw_deformation, draw_synthesis
from medseg_se.data.synthetic_head import TISSUES, Head, draw_head, paint_head
from medseg_se.data.synthetic_scan import rescale, synthesise
from medseg_se.data.tissues import generation_classes, tissues_of
from medseg_se.errors import UsageError
from medseg_se.structures import Structures

PLAIN = Synthesis(
    deviations=(0, 0),
    t1_spread=0,
    bias=0,
    gamma=0,
    sharp=1,
    blur=0,
    noise=0,
    rotation=0,
    scaling=(1, 1),
    shearing=0,
    warp=0,
    head=0,
)
SPACING = (1.0, 1.0, 1.0)
BRAIN = Structures(
    {
        "Left-Cortex": (3,),
        "Right-Cortex": (42,),
        "Brain-Stem": (16,),
        "Left-Putamen": (12,),
        "Right-Putamen": (51,),
        "Odd": (99,),
    }
)


def rng(seed=0):
    return np.random.default_rng(seed)


def structures(number):
    return Structures({f"part {index}": (index,) for index in range(1, number + 1)})


def labels_of(shape, highest, seed=0):
    """Blocks of labels from 0 to `highest`, none of them missing."""
    coarse = np.random.default_rng(seed).integers(0, highest + 1, size=[-(-length // 3) for length in shape])
    coarse.flat[: highest + 1] = np.arange(highest + 1)
    for axis in range(3):
        coarse = coarse.repeat(3, axis)
    return torch.from_numpy(coarse[tuple(slice(length) for length in shape)])


def draw(synthesis, shape, number=3, seed=0, spacing=SPACING, channels=1):
    return draw_synthesis(synthesis, rng(seed), tissues_of(structures(number)), shape, spacing, channels)


def looking(change, **different):
    return replace(change, looks=tuple(replace(look, **different) for look in change.looks))


def unit(values):
    return (values - values.min()) / (values.max() - values.min())


# ------------------------------------------------------------------------------------------------ one step alone, by formula


def test_without_spread_a_scan_is_the_table_of_means():
    labels = labels_of((9, 10, 11), 3)
    change = draw(PLAIN, labels.shape)
    scan = synthesise(labels[None], [change])
    means = torch.from_numpy(change.looks[0].means).float()[labels]
    expected = unit(means) * (labels > 0)
    assert scan.shape == (1, 1, 9, 10, 11)
    assert scan.dtype == torch.float32
    torch.testing.assert_close(scan[0, 0], unit(expected))


def test_unknown_voxels_look_like_background():
    labels = labels_of((9, 10, 11), 3)
    unknown = torch.where(labels == 0, -1, labels)
    change = draw(Synthesis(head=1), labels.shape)
    assert (unknown == -1).any()
    assert torch.equal(synthesise(labels[None], [change]), synthesise(unknown[None], [change]))
    assert (unknown == -1).any(), "the labels were changed"


def test_gamma_bends_the_brightness():
    labels = labels_of((9, 9, 9), 3).clamp(min=1)
    change = looking(draw(PLAIN, labels.shape), gamma=2.2)
    means = torch.from_numpy(change.looks[0].means).float()[labels]
    torch.testing.assert_close(synthesise(labels[None], [change])[0, 0], unit(means) ** 2.2)


def test_the_bias_field_multiplies_smoothly_and_never_darkens_to_nothing():
    labels = torch.ones(24, 30, 20, dtype=torch.int64)
    points = rng(3).normal(0, 0.5, (3, 4, 2))
    change = looking(draw(PLAIN, labels.shape), bias=points)
    logarithm = F.interpolate(
        torch.from_numpy(points)[None, None].float(), size=labels.shape, mode="trilinear", align_corners=True
    )
    torch.testing.assert_close(synthesise(labels[None], [change])[0, 0], unit(logarithm.exp())[0, 0], atol=1e-5, rtol=0)


def test_each_structure_has_the_mean_and_deviation_that_were_drawn():
    labels = torch.arange(1, 5).repeat_interleave(10)[:, None, None].expand(40, 40, 40)
    means, deviations = np.array([0, 90, 120, 150, 200]), np.array([0, 4, 8, 12, 16])
    change = draw(PLAIN, labels.shape, number=4)
    look = {"means": np.append(means, [0] * len(TISSUES)), "deviations": np.append(deviations, [0] * len(TISSUES))}
    scan = synthesise(labels[None], [looking(change, **look)])[0, 0]
    found = [scan[labels == index] for index in range(1, 5)]
    scale = (found[3].mean() - found[0].mean()) / (200 - 90)
    for values, mean, deviation in zip(found, means[1:], deviations[1:], strict=True):
        assert (values.mean() - found[0].mean()) / scale == pytest.approx(mean - 90, abs=0.5)
        assert values.std() / scale == pytest.approx(deviation, rel=0.03)


def test_brightness_is_never_negative():
    labels = torch.ones(20, 20, 20, dtype=torch.int64)
    table = {"means": np.zeros(2 + len(TISSUES)), "deviations": np.full(2 + len(TISSUES), 30.0)}
    scan = synthesise(labels[None], [looking(draw(PLAIN, labels.shape, number=1), **table)])
    assert (scan == 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_noise_is_a_share_of_the_brightest():
    labels = torch.ones(40, 40, 40, dtype=torch.int64)
    labels[20:] = 2
    change = looking(draw(PLAIN, labels.shape, number=2), noise=0.05, means=np.array([0, 100, 200] + [0] * len(TISSUES)))
    scan = synthesise(labels[None], [change])[0, 0]
    bright, dark = scan[labels == 2], scan[labels == 1]
    assert bright.std() / bright.mean() == pytest.approx(0.05, rel=0.03)
    assert dark.mean() / bright.mean() == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.03)  # a magnitude


# ------------------------------------------------------------------------------------------------------ resolution


def test_partial_volume_mixes_at_borders_and_keeps_the_mean():
    labels = torch.ones(6, 7, 64, dtype=torch.int64)
    labels[:, :, 40:] = 2
    change = looking(
        draw(PLAIN, labels.shape, number=2),
        means=np.array([0, 50, 250] + [0] * len(TISSUES)),
        slices=(6, 7, 16),
        blur=(0.0, 0.0, 3.0),
    )
    scan = synthesise(labels[None], [change])[0, 0]
    line = scan[2, 3]
    assert (line.diff() >= -1e-6).all()
    assert ((line > 0.02) & (line < 0.98)).sum() >= 6
    assert scan.mean() == pytest.approx(24 / 64, abs=2e-3)
    assert torch.equal(scan, line.expand_as(scan))


def test_coarsening_averages_with_gaussian_weights_about_the_slices():
    matrix = coarsening(12, 4, 1.5, torch.device("cpu")).double().numpy()
    weights = np.exp(-0.5 * ((np.arange(12) - np.array([[1.0], [4.0], [7.0], [10.0]])) / 1.5) ** 2)
    np.testing.assert_allclose(matrix, weights / weights.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(("length", "points"), [(12, 5), (9, 2), (1, 1), (7, 7)])
def test_spreading_and_refining_interpolate_as_torch_does(length, points):
    values = torch.from_numpy(rng().normal(size=points)).float()
    for align, matrix in (
        (True, spreading(length, points, values.device)),
        (False, refining(length, points, length / points, values.device)),
    ):
        expected = F.interpolate(values[None, None], size=length, mode="linear", align_corners=align)[0, 0]
        torch.testing.assert_close(matrix @ values, expected)


def test_matrices_work_along_their_own_axis():
    picture = torch.from_numpy(rng().normal(size=(4, 5, 6))).float()
    matrices = [torch.from_numpy(rng(n).normal(size=(n + 7, n + 4))).float() for n in range(3)]
    expected = torch.einsum("ijk,ai,bj,ck->abc", picture, *matrices)
    torch.testing.assert_close(along_axes(picture, matrices), expected, atol=1e-4, rtol=1e-4)
    for axis in range(3):
        alone = [matrix if number == axis else None for number, matrix in enumerate(matrices)]
        expected = torch.tensordot(matrices[axis], picture, dims=([1], [axis])).movedim(0, axis)
        torch.testing.assert_close(along_axes(picture, alone), expected, atol=1e-5, rtol=1e-5)


def acquisitions(synthesis, size, spacing, number=300):
    drawn = [draw(synthesis, size, seed=seed, spacing=spacing).looks[0] for seed in range(number)]
    return np.array([look.slices for look in drawn]), np.array([look.blur for look in drawn])


def test_one_axis_at_a_time_is_coarsened_up_to_the_slice_distance():
    size, spacing = np.array([96, 80, 64]), np.array([1.0, 1.0, 1.5])
    slices, blur = acquisitions(replace(PLAIN, sharp=0, isotropic=0, slice_distance=6.0, blur=0.4), size, spacing)
    coarse = slices < size
    assert (coarse.sum(axis=1) <= 1).all()
    assert (coarse.sum(axis=0) > 60).all(), "each axis should be chosen about a third of the time"
    distances = size * spacing / slices
    assert distances.max() <= 6.0 * 1.1
    assert distances.max(axis=0).min() > 5.5
    assert (blur[~coarse] == 0.4).all()
    thickness = blur * spacing / 0.75
    assert (thickness[coarse] >= np.broadcast_to(spacing, coarse.shape)[coarse] - 1e-9).all()
    assert (thickness[coarse] <= distances[coarse] * 1.1).all()
    assert (thickness[coarse] < distances[coarse] * 0.5).any(), "slices are as thick as they are apart, or thinner"


def test_all_axes_are_coarsened_alike_where_resolution_is_isotropic():
    size = np.array([96, 80, 64])
    slices, _ = acquisitions(replace(PLAIN, sharp=0, isotropic=1, resolution=4.0), size, SPACING)
    distances = size / slices
    assert distances.max() <= 4.2
    assert distances.max() > 3.8
    assert (np.ptp(distances, axis=1) < 0.25).all()


def test_nothing_is_acquired_finer_than_the_labels():
    slices, _ = acquisitions(Synthesis(), (32, 1, 32), (5.0, 5.0, 9.0), number=50)
    assert (slices <= [32, 1, 32]).all()
    assert (slices[:, 2] == 32).all()


def test_shares_of_sharp_and_isotropic_scans():
    size = np.array([100, 100, 100])
    slices, _ = acquisitions(Synthesis(sharp=0.3, isotropic=0.4), size, SPACING, number=600)
    coarse = (slices < size).sum(axis=1)
    assert np.mean(coarse == 0) == pytest.approx(0.3, abs=0.06)
    assert np.mean(coarse == 3) == pytest.approx(0.7 * 0.4, abs=0.06)


# ------------------------------------------------------------------------------------------------ what structures look like


def test_left_and_right_share_a_class():
    assert generation_classes(BRAIN).tolist() == [0, 1, 1, 2, 3, 3, 4]


def test_left_and_right_look_alike_and_others_do_not():
    look = draw_synthesis(Synthesis(), rng(), tissues_of(BRAIN), (8, 8, 8), SPACING).looks[0]
    for table in (look.means, look.deviations):
        assert table[1] == table[2]
        assert table[4] == table[5]
        assert len(np.unique(table)) == len(table) - 2


def test_random_brightness_fills_its_range():
    looks = [draw(Synthesis(means=(40, 60), deviations=(2, 9)), (4, 4, 4), number=20, seed=seed).looks[0] for seed in range(40)]
    means, deviations = np.array([look.means[:-1] for look in looks]), np.array([look.deviations[:-1] for look in looks])
    for drawn, low, high in ((means, 40, 60), (deviations, 2, 9)):
        assert low <= drawn.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < drawn.max() <= high
    assert max(look.means[-1] for look in looks) <= 15, "air is dark"


@pytest.mark.parametrize(
    ("darker", "brighter"),
    [
        ("Left-Lateral-Ventricle", "Left-Cerebral-Cortex"),
        ("Left-Inf-Lat-Vent", "Left-vessel"),
        ("3rd-Ventricle", "Left-choroid-plexus"),
        ("CSF", "Left-Accumbens-area"),
        ("left_cerebral_cortex", "left_putamen"),
        ("ctx-lh-precuneus", "Left-Thalamus-Proper"),
        ("caudate_left", "PallidumRight"),
        ("Hippocampus", "brainstem"),
        ("cerebellum cortex", "cerebellum_white_matter"),
        ("WM-hypointensities", "Right-Cerebral-White-Matter"),
        ("Left-Amygdala", "left_ventral_dc"),
        ("grey matter", "CC_Posterior"),
    ],
)
def test_t1_knows_structures_by_name(darker, brighter):
    tissues = tissues_of(Structures({darker: (1,), brighter: (2,)}))
    first, second = (
        draw_synthesis(replace(PLAIN, contrast="t1"), rng(seed), tissues, (4, 4, 4), SPACING).looks[0] for seed in (0, 1)
    )
    assert first.means[1] < first.means[2]
    assert np.array_equal(first.means, second.means), "all means are given"
    assert np.array_equal(first.deviations, second.deviations)


def test_t1_draws_what_it_does_not_know():
    synthesis, tissues = replace(PLAIN, contrast="t1", means=(25, 225)), tissues_of(BRAIN)
    first, second = (draw_synthesis(synthesis, rng(seed), tissues, (4, 4, 4), SPACING).looks[0].means for seed in (0, 1))
    assert (first != second).tolist() == [False] * 6 + [True] + [False] * len(TISSUES)


def test_t1_varies_by_its_spread_and_keeps_sides_alike():
    synthesis, tissues = Synthesis(contrast="t1", t1_spread=5), tissues_of(BRAIN)
    drawn = np.array([draw_synthesis(synthesis, rng(n), tissues, (4, 4, 4), SPACING).looks[0].means for n in range(400)])
    assert drawn[:, 3].std() == pytest.approx(5, rel=0.15)
    assert np.array_equal(drawn[:, 1], drawn[:, 2])


# ------------------------------------------------------------------------------------------------------- around the brain


def ball(radius, shape=(40, 40, 40), spacing=SPACING):
    middle = [(length - 1) / 2 * mm for length, mm in zip(shape, spacing, strict=True)]
    places = np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij")
    return torch.from_numpy(sum((p - m) ** 2 for p, m in zip(places, middle, strict=True)) <= radius**2)


def plain_head(spacing=SPACING, **different):
    """5 mm of fluid, 12 mm of bone with marrow from 8 to 14 mm, muscle from 17 to 23 mm."""
    nothing = np.zeros((1, 1, 1))
    return replace(Head(spacing, 5.0, 12.0, 6.0, nothing, nothing, nothing), **different)


def depth_outside(brain, spacing=SPACING):
    """The distance in mm to the surface of the brain; centres of voxels lie about half a voxel behind it."""
    return torch.from_numpy(distance_transform_edt(~brain.numpy(), sampling=spacing)) - 0.5 * np.mean(spacing)


def only(tissue, distance, layers, tolerance=1.5):
    """Whether there is one tissue between each two distances, `tolerance` mm off their borders."""
    for low, high, name in layers:
        there = tissue[(distance > low + tolerance) & (distance < high - tolerance)]
        assert len(there)
        if not (there == TISSUES.index(name)).all():
            return False
    return True


@pytest.mark.parametrize(("shape", "radius"), [((40, 40, 40), 4), ((96, 110, 90), 20)])
@pytest.mark.parametrize("spacing", [SPACING, (1.0, 1.3, 1.6)])
def test_shells_lie_at_their_distances_from_the_brain(shape, radius, spacing):
    brain = ball(radius, shape, spacing)
    layers = [(0, 5, "csf"), (5, 8, "bone"), (8, 14, "marrow"), (14, 17, "bone"), (17, 23, "muscle"), (23, 99, "air")]
    tolerance = 0.9 * max(spacing) if max(shape) <= 40 else 2.5  # mm; the larger patch has cells of 2 or 3 voxels
    wide = [layer for layer in layers if layer[1] - layer[0] > 2 * tolerance]
    assert only(paint_head(brain, plain_head(spacing)), depth_outside(brain, spacing), wide, tolerance)


@pytest.mark.parametrize(("shape", "radius"), [((40, 40, 40), 6), ((96, 110, 90), 20)])
def test_shells_are_as_thick_as_drawn(shape, radius):
    brain = ball(radius, shape)
    shells = paint_head(brain, plain_head()).masked_fill(brain, -1)
    volumes = [4 / 3 * np.pi * (radius + outer) ** 3 for outer in (0, 5, 17, 23)]
    for names, expected in zip((["csf"], ["bone", "marrow"]), np.diff(volumes), strict=False):
        found = sum((shells == TISSUES.index(name)).sum().item() for name in names)
        assert found == pytest.approx(expected, rel=0.12)


def test_a_narrow_gap_in_the_brain_holds_fluid_and_a_wide_one_a_skull():
    for gap, bone in ((8, False), (36, True)):
        brain = torch.ones(40, 20, 20, dtype=torch.bool)
        brain[20 - gap // 2 : 20 + gap // 2] = False
        tissue = paint_head(brain, plain_head())[~brain]
        found = {TISSUES[index] for index in tissue.unique().tolist()}
        assert found == ({"csf", "bone", "marrow", "muscle"} if bone else {"csf"})


def test_flesh_thickens_mixes_and_has_cavities():
    brain = ball(3)
    depth, constant = depth_outside(brain), np.ones((1, 1, 1))
    thick = paint_head(brain, plain_head(scalp=2.0, flesh=6 * constant))
    assert only(thick, depth, [(17, 25, "muscle"), (25, 99, "air")])
    assert torch.equal(paint_head(brain, plain_head(flesh=-30 * constant)), paint_head(brain, plain_head()))
    fat = paint_head(brain, plain_head(mixture=constant))
    assert only(fat, depth, [(17, 23, "fat"), (23, 99, "air")])
    hollow = paint_head(brain, plain_head(mixture=3 * constant, scalp=16.0))
    assert only(hollow, depth, [(17, 23, "air"), (23, 30, "fat")])


def test_wobble_stretches_the_shells():
    brain = ball(6)
    near, far = (paint_head(brain, plain_head(wobble=np.full((1, 1, 1), w))) == TISSUES.index("air") for w in (0.3, -0.3))
    assert near.sum() > far.sum()


def test_drawn_thicknesses_stay_in_their_ranges():
    heads = [draw_head(rng(n), (64, 64, 64), SPACING, (1, 2), (5, 6), (7, 9)) for n in range(50)]
    for name, low, high in (("csf", 1, 2), ("skull", 5, 6), ("scalp", 7, 9)):
        drawn = [getattr(head, name) for head in heads]
        assert low <= min(drawn) < low + 0.2
        assert high - 0.2 < max(drawn) <= high


def test_a_share_of_the_scans_has_a_head():
    found = [draw(Synthesis(head=0.3), (8, 8, 8), seed=seed).head is not None for seed in range(400)]
    assert np.mean(found) == pytest.approx(0.3, abs=0.06)


def test_a_stripped_scan_is_black_outside_and_a_whole_head_is_not():
    labels = ball(8, (30, 30, 30)).long()
    for seed in range(5):
        stripped = synthesise(labels[None], [draw(Synthesis(head=0), labels.shape, number=1, seed=seed)])[0, 0]
        whole = synthesise(labels[None], [draw(Synthesis(head=1), labels.shape, number=1, seed=seed)])[0, 0]
        assert (stripped[labels == 0] == 0).all()
        assert whole[labels == 0].std() > 0.02


@pytest.mark.parametrize("head", [0, 1])
def test_a_patch_of_background_alone_is_finite(head):
    scan = synthesise(torch.zeros(1, 12, 9, 10, dtype=torch.int16), [draw(Synthesis(head=head), (12, 9, 10))])
    assert torch.isfinite(scan).all()
    assert scan.min() == 0
    assert scan.max() <= 1


# --------------------------------------------------------------------------------------------------------------- the whole


def test_the_same_parameters_give_the_same_scan_and_others_another():
    labels = labels_of((20, 21, 22), 3)[None]
    first, again, other = (draw(Synthesis(head=1), (20, 21, 22), seed=seed) for seed in (4, 4, 5))
    scan = synthesise(labels, [first])
    assert torch.equal(scan, synthesise(labels, [again]))
    assert not torch.allclose(scan, synthesise(labels, [other]), atol=0.05)
    assert not torch.allclose(scan, synthesise(labels, [replace(first, seed=first.seed + 1)]), atol=1e-3)


def test_a_batch_is_its_scans_one_by_one():
    labels = torch.stack([labels_of((20, 21, 22), 3, seed) for seed in range(4)])
    changes = [draw(Synthesis(), (20, 21, 22), seed=seed, channels=2) for seed in range(4)]
    assert {change.head is None for change in changes} == {True, False}
    together = synthesise(labels, changes)
    assert together.shape == (4, 2, 20, 21, 22)
    for number in range(4):
        assert torch.equal(together[number], synthesise(labels[number : number + 1], changes[number : number + 1])[0])


def test_channels_are_contrasts_of_their_own_on_one_body():
    labels = labels_of((20, 20, 20), 3)
    change = draw(replace(PLAIN, head=1), labels.shape, channels=3)
    scan = synthesise(labels[None], [change])[0]
    tissue = torch.where(labels > 0, labels, 4 + paint_head(labels > 0, change.head))
    for channel, look in zip(scan, change.looks, strict=True):
        torch.testing.assert_close(channel, unit(torch.from_numpy(look.means).float()[tissue]))
    assert len({look.means[1] for look in change.looks}) == 3


@pytest.mark.parametrize("shape", [(17, 1, 23), (1, 1, 5), (1, 1, 1), (2, 3, 45), (64, 41, 7)])
@pytest.mark.parametrize("head", [0, 1])
def test_any_shape_gives_finite_intensities_from_0_to_1(shape, head):
    labels = torch.from_numpy(rng().integers(-1, 4, size=shape))
    for seed in range(4):
        scan = synthesise(labels[None], [draw(Synthesis(head=head), shape, seed=seed, spacing=(0.8, 3.0, 1.1))])
        assert scan.shape == (1, 1, *shape)
        assert torch.isfinite(scan).all()
        assert scan.min() >= 0
        assert scan.max() <= 1 + 1e-6
        assert scan.max() > 0.99 or len(scan.unique()) == 1


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint8])
def test_any_integer_labels_will_do(dtype):
    labels = labels_of((12, 12, 12), 3)
    change = draw(Synthesis(), labels.shape)
    assert torch.equal(synthesise(labels[None].to(dtype), [change]), synthesise(labels[None], [change]))


# --------------------------------------------------------------------------------------------------------------- the shape


def test_nothing_allowed_leaves_the_shape():
    change = draw_deformation(PLAIN, rng(), (32, 40, 48), SPACING, mirrored=(1,))
    np.testing.assert_allclose(change.matrix, np.eye(3), atol=1e-12)
    assert change.warp is None
    assert change.mirrored == (1,)


def test_a_rotation_keeps_lengths_and_scaling_changes_them_by_axis():
    turned = draw_deformation(replace(PLAIN, rotation=40), rng(), (32, 32, 32), SPACING).matrix
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    assert np.abs(turned - np.eye(3)).max() > 0.1
    scaled = np.array(
        [draw_deformation(replace(PLAIN, scaling=(0.7, 1.1)), rng(n), (8, 8, 8), SPACING).matrix for n in range(99)]
    )
    np.testing.assert_allclose(scaled, scaled * np.eye(3))
    stretches = scaled[:, [0, 1, 2], [0, 1, 2]]
    assert 0.7 <= stretches.min() < 0.72
    assert 1.08 < stretches.max() <= 1.1
    sheared = draw_deformation(replace(PLAIN, shearing=0.2), rng(), (8, 8, 8), SPACING).matrix
    assert (np.diag(sheared) == 1).all()
    assert 0 < np.abs(sheared - np.eye(3)).max() <= 0.2


def test_control_points_of_the_warp_are_as_far_apart_as_asked():
    change = draw_deformation(replace(PLAIN, warp=4, warp_distance=20), rng(), (60, 1, 100), (1.0, 5.0, 2.0))
    assert change.warp.shape == (3, 4, 1, 11)
    spreads = [draw_deformation(replace(PLAIN, warp=4), rng(n), (96, 96, 96), SPACING).warp.std() for n in range(60)]
    assert 3.5 < max(spreads) < 4.6
    assert min(spreads) < 0.5


def test_a_translation_shifts_the_whole_patch_by_a_share_of_it():
    for seed in range(20):
        warp = draw_deformation(replace(PLAIN, translation=0.25), rng(seed), (40, 60, 80), (1.0, 1.0, 0.5)).warp
        assert (np.ptp(warp, axis=(1, 2, 3)) == 0).all()
        assert (np.abs(warp).max(axis=(1, 2, 3)) <= [10, 15, 10]).all()
        assert np.abs(warp).max() > 0.5


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_a_slice_is_deformed_in_its_plane_only(flat):
    size = [1 if axis == flat else 40 for axis in range(3)]
    change = draw_deformation(Synthesis(translation=0.2), rng(), size, (1.0, 2.0, 3.0), flat)
    expected = np.eye(3)[flat]
    np.testing.assert_allclose(change.matrix[flat], expected, atol=1e-12)
    np.testing.assert_allclose(change.matrix[:, flat], expected, atol=1e-12)
    assert (change.warp[flat] == 0).all()
    assert np.abs(np.delete(change.warp, flat, axis=0)).max() > 0


# ---------------------------------------------------------------------------------------------------- the network's scale


@pytest.mark.parametrize("scheme", ["zscore", "zscore_nonzero", "percentile", "minmax", "none"])
def test_scales_are_those_of_real_scans(scheme):
    labels = torch.stack([ball(9, (24, 25, 26)).long()] * 2)
    scans = synthesise(labels, [draw(Synthesis(head=seed), (24, 25, 26), number=1, seed=seed) for seed in range(2)])
    scaling = Scaling(scheme, (-1, 1), 0, 1)
    found = rescale(scans, [scaling])
    for before, after in zip(scans, found, strict=True):
        np.testing.assert_allclose(after[0], scaling(before[0].numpy()), atol=2e-4)
    assert found.dtype == torch.float32


def test_window_and_dataset_take_the_scan_for_the_window():
    scan = torch.linspace(0, 1, 60).reshape(1, 1, 3, 4, 5)
    for scheme in ("window", "dataset"):
        scaling = Scaling(scheme, (-100, 300), 40, 80)
        hounsfield = -100 + 400 * scan[0, 0].numpy()
        np.testing.assert_allclose(rescale(scan, [scaling])[0, 0], scaling(hounsfield), atol=1e-5)


@pytest.mark.parametrize("scheme", ["zscore", "zscore_nonzero", "percentile", "minmax"])
def test_a_black_scan_stays_black(scheme):
    assert (rescale(torch.zeros(1, 1, 4, 5, 6), [Scaling(scheme, (0, 1), 0, 1)]) == 0).all()


def test_each_channel_has_its_own_scale():
    labels = labels_of((12, 12, 12), 3)
    scan = synthesise(labels[None], [draw(Synthesis(), labels.shape, channels=2)])
    scaled = rescale(scan, [Scaling("none", (0, 1), 0, 1), Scaling("zscore", (0, 1), 0, 1)])
    assert torch.equal(scaled[:, 0], scan[:, 0])
    assert scaled[:, 1].mean() == pytest.approx(0, abs=1e-5)
    with pytest.raises(UsageError, match="one scaling a channel, 2, but got 1"):
        rescale(scan, [Scaling("none", (0, 1), 0, 1)])


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("contrast", "t2"),
        ("means", (200.0, 100.0)),
        ("means", (-5.0, 100.0)),
        ("means", (0.0, 256.0)),
        ("deviations", (1.0,)),
        ("deviations", (1.0, 300.0)),
        ("thickness", (0.5, 1.5)),
        ("scaling", (0.0, 1.0)),
        ("scaling", (1.0, 10.5)),
        ("scaling", (float("nan"), 1.0)),
        ("head_csf", (3.0, 2.0)),
        ("head_skull", (-1.0, 2.0)),
        ("head_scalp", (2.0, float("inf"))),
        ("head_csf", (2.0, 101.0)),
        ("bias_distance", 0.9),
        ("resolution", -1.0),
        ("slice_distance", float("nan")),
        ("warp_distance", float("inf")),
        ("warp_distance", 0.5),
    ],
)
def test_ranges_that_make_no_sense_are_refused(option, value):
    with pytest.raises(UsageError, match=f"`{option}` of synthetic scans"):
        Synthesis(**{option: value})


@pytest.mark.parametrize("option", [item.name for item in fields(Synthesis) if item.type == "float"])
def test_no_single_number_may_be_negative_or_unlimited(option):
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"`{option}` of synthetic scans"):
            Synthesis(**{option: value})


def test_labels_and_changes_must_belong_together():
    labels = labels_of((8, 8, 8), 3)
    change, pair = draw(Synthesis(), labels.shape), draw(Synthesis(), labels.shape, channels=2)
    with pytest.raises(UsageError, match=r"N changes, but got \(1, 8, 8, 8\) and 2"):
        synthesise(labels[None], [change, change])
    with pytest.raises(UsageError, match=r"\(N, I, J, K\)"):
        synthesise(labels, [change] * 8)
    with pytest.raises(UsageError, match=r"equally many channels, but got \[1, 2\]"):
        synthesise(torch.stack([labels] * 2), [change, pair])
    with pytest.raises(UsageError, match="at most 3, for which the change was drawn, but got 4"):
        synthesise(labels[None] + 1, [change])


def test_parameters_are_plain_and_small():
    change = draw(Synthesis(head=1), (128, 128, 128), number=32)
    assert isinstance(change, SyntheticChange)
    assert isinstance(change.looks[0], Look)
    arrays = [change.head.wobble, change.head.flesh, change.head.mixture, *(change.looks[0].__dict__.values())]
    assert sum(np.asarray(array).nbytes for array in arrays) < 64 * 1024
