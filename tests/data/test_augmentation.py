import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medseg_se.data.augmentation import (
    MIRRORS,
    NO_AUGMENTATION,
    PROBABILITIES,
    Augmentation,
    IntensityChange,
    draw_intensity,
    draw_spatial,
)
from medseg_se.data.intensity_changes import apply_intensity
from medseg_se.errors import UsageError

BENT = {False: "gamma", True: "inverted_gamma"}
ALWAYS = replace(NO_AUGMENTATION, spatial_probability=1.0, intensity_probability=1.0)


def noise(shape=(2, 9, 10, 11), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0.3, 1.5, size=shape).astype(np.float32))


def rng(seed=0):
    return np.random.default_rng(seed)


def apply(patch, **change):
    """Apply a change with the same numbers for all channels."""
    numbers = {name: value if isinstance(value, tuple) else (value,) * len(patch) for name, value in change.items()}
    return apply_intensity(patch, IntensityChange(**numbers))


# ---------------------------------------------------------------------------------------------------- intensity, by formula


def test_nothing_drawn_changes_nothing():
    patch = noise()
    assert torch.equal(apply(patch), patch)


def test_brightness_multiplies():
    patch = noise()
    torch.testing.assert_close(apply(patch, brightness=1.3), patch * 1.3)


def test_contrast_stretches_about_the_mean_of_each_channel():
    patch = noise() + torch.tensor([5.0, -3.0]).reshape(2, 1, 1, 1)
    changed = apply(patch, contrast=0.6)
    for before, after in zip(patch.double(), changed.double(), strict=True):
        torch.testing.assert_close(after, before.mean() + 0.6 * (before - before.mean()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.4])
def test_gamma_bends_and_keeps_mean_and_deviation(exponent, inverted):
    patch = noise() * torch.tensor([1.0, 40.0]).reshape(2, 1, 1, 1) + 7
    changed = apply(patch, **{BENT[inverted]: exponent})
    for before, after in zip(patch.double(), changed.double(), strict=True):
        unit = (before - before.min()) / (before.max() - before.min())
        bent = 1 - (1 - unit) ** exponent if inverted else unit**exponent
        expected = (bent - bent.mean()) / bent.std() * before.std() + before.mean()
        torch.testing.assert_close(after, expected, atol=1e-4 * float(before.std()), rtol=1e-5)
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-4)
        assert float(after.std()) == pytest.approx(float(before.std()), rel=1e-4)
        assert torch.equal(after.flatten().argsort(), before.flatten().argsort())  # the order of intensities stays


def test_gamma_of_one_leaves_the_patch():
    torch.testing.assert_close(apply(noise(), gamma=1.0), noise(), atol=1e-5, rtol=0)


def test_inverting_bends_the_other_end():
    patch = torch.linspace(0, 1, 1000).reshape(1, 10, 10, 10)
    dark, bright = (apply(patch, **{BENT[inverted]: 1.5}) for inverted in (False, True))
    torch.testing.assert_close(bright.flatten(), 1 - dark.flatten().flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("deviation", [0.3, 0.8, 1.5])
def test_blur_is_a_gaussian(deviation):
    radius = max(1, int(np.ceil(3 * deviation)))
    changed = apply(noise(), blur=deviation)
    for before, after in zip(noise().numpy(), changed.numpy(), strict=True):
        expected = gaussian_filter(before.astype(np.float64), deviation, mode="nearest", radius=radius)
        np.testing.assert_allclose(after, expected, atol=1e-5)


def test_noise_is_normal_with_the_drawn_deviation_and_seed():
    patch = torch.zeros(2, 30, 30, 30)
    changed = apply(patch, noise=(0.4, 11))
    assert float(changed.mean()) == pytest.approx(0, abs=0.01)
    assert float(changed.std()) == pytest.approx(0.4, rel=0.02)
    assert float(((changed / 0.4).abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)
    assert torch.equal(changed, apply(patch, noise=(0.4, 11)))
    assert not torch.equal(changed, apply(patch, noise=(0.4, 12)))
    assert not torch.equal(changed[0], changed[1])
    torch.testing.assert_close(apply(patch + 5, noise=(0.4, 11)) - 5, changed, atol=1e-5, rtol=0)


def coarsened(array, factor):
    """Take the voxel nearest to each centre of a coarser grid, then interpolate linearly between those centres."""
    for axis in range(3):
        length = array.shape[axis]
        coarse = max(1, round(length / factor))
        nearest = np.floor((np.arange(coarse) + 0.5) * length / coarse).astype(int)
        places = (np.arange(length) + 0.5) * coarse / length - 0.5
        values = np.moveaxis(array, axis, 0)[nearest]
        low = np.clip(np.floor(places).astype(int), 0, coarse - 1)
        high = np.clip(low + 1, 0, coarse - 1)
        share = np.clip(places - low, 0, 1).reshape(-1, 1, 1)
        array = np.moveaxis(values[low] * (1 - share) + values[high] * share, 0, axis)
    return array


@pytest.mark.parametrize("factor", [1.0, 1.4, 2.0])
def test_low_resolution_coarsens_and_brings_back(factor):
    changed = apply(noise(), low_resolution=factor)
    for before, after in zip(noise().numpy(), changed.numpy(), strict=True):
        np.testing.assert_allclose(after, coarsened(before.astype(np.float64), factor), atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"blur": 1.0}, {"low_resolution": 2.0}, {"contrast": 0.5}, {"inverted_gamma": 1.4}], ids=str
)
def test_a_constant_patch_stays_constant(change):
    patch = torch.full((1, 8, 9, 7), 2.5)
    torch.testing.assert_close(apply(patch, **change), patch, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{"blur": 1.2}, {"low_resolution": 2.0}], ids=str)
@pytest.mark.parametrize("flat", [0, 1, 2])
def test_a_slice_is_changed_in_its_plane_only(change, flat):
    patch = noise((2, 12, 13))
    alone = apply(patch.unsqueeze(flat + 1), **change)
    stacked = apply(patch.unsqueeze(flat + 1).repeat_interleave(9, flat + 1), **change).narrow(flat + 1, 4, 1)
    torch.testing.assert_close(alone, stacked, atol=1e-5, rtol=0)


def test_changes_together_are_applied_one_after_the_other():
    change = {"brightness": 1.2, "contrast": 0.8, "gamma": 1.3}
    step = noise()
    for name, value in change.items():
        step = apply(step, **{name: value})
    torch.testing.assert_close(apply(noise(), **change), step)


def test_the_patch_itself_is_not_written_to():
    patch = noise()
    apply(patch, noise=(1.0, 1), blur=1.0, brightness=2.0, contrast=2.0, inverted_gamma=2.0, low_resolution=2.0)
    assert torch.equal(patch, noise())


# ----------------------------------------------------------------------------------------------------------------- drawing


def test_the_same_source_draws_the_same_changes():
    augmentation = Augmentation(elastic=2.0, mirror=("left-right",), spatial_probability=1, intensity_probability=1)
    assert draw_intensity(augmentation, rng(3), 1) == draw_intensity(augmentation, rng(3), 1)
    assert draw_intensity(augmentation, rng(3), 1) != draw_intensity(augmentation, rng(4), 1)
    first, second = (draw_spatial(augmentation, rng(3), "RAS", None) for _ in range(2))
    np.testing.assert_array_equal(first.matrix, second.matrix)
    np.testing.assert_array_equal(first.warp, second.warp)
    assert first.mirrored == second.mirrored


@pytest.mark.parametrize(
    "augmentation", [NO_AUGMENTATION, replace(Augmentation(), spatial_probability=0, intensity_probability=0)]
)
def test_strength_zero_or_probability_zero_draws_nothing(augmentation):
    source = rng()
    for _ in range(20):
        assert draw_intensity(augmentation, source, 1) == IntensityChange()
        change = draw_spatial(augmentation, source, "RAS", None)
        assert change.matrix is None
        assert change.warp is None
        assert change.mirrored == ()


def test_spatial_strengths_of_zero_turn_and_scale_nothing():
    change = draw_spatial(ALWAYS, rng(), "RAS", None)
    np.testing.assert_allclose(change.matrix, np.eye(3), atol=1e-12)
    assert change.warp is None


@pytest.mark.parametrize("name", ["noise", "blur", "brightness", "contrast", "gamma", "low_resolution"])
def test_each_intensity_strength_switches_on_its_own_change_alone(name):
    drawn = draw_intensity(replace(ALWAYS, **{name: 1.5}), rng(), 1)
    assert getattr(drawn, name) is not None
    assert replace(drawn, **{name: None}) == IntensityChange()


@pytest.mark.parametrize(
    ("name", "strength", "low", "high"),
    [
        ("noise", 0.2, 0, 0.2),
        ("blur", 1.5, 0.3, 1.5),
        ("blur", 0.2, 0.2, 0.2),
        ("brightness", 0.25, 1 / 1.25, 1.25),
        ("contrast", 0.5, 1 / 1.5, 1.5),
        ("gamma", 0.3, 1 / 1.3, 1.3),
        ("low_resolution", 2.0, 1, 2),
    ],
)
def test_strengths_are_the_limits_of_what_is_drawn(name, strength, low, high):
    source = rng()
    changes = [draw_intensity(replace(ALWAYS, **{name: strength}), source, 1) for _ in range(400)]
    drawn = np.array([value[0] for change in changes if (value := getattr(change, name)) is not None])
    assert len(drawn) > 250  # a quarter of the gammas are inverted
    assert low <= drawn.min()
    assert drawn.max() <= high
    if low < high:
        assert drawn.min() < low + 0.05 * (high - low)
        assert drawn.max() > high - 0.05 * (high - low)
    if name in ("brightness", "contrast", "gamma"):  # as often stronger as weaker
        assert (drawn > 1).mean() == pytest.approx(0.5, abs=0.08)


def test_each_intensity_change_comes_as_often_as_asked():
    source, augmentation = rng(), Augmentation(intensity_probability=0.3)
    drawn = [draw_intensity(augmentation, source, 1) for _ in range(2000)]
    for name in ("noise", "blur", "brightness", "contrast", "low_resolution"):
        assert np.mean([getattr(change, name) is not None for change in drawn]) == pytest.approx(0.3, abs=0.04)
    bent = [change.inverted_gamma is not None for change in drawn if change.gamma or change.inverted_gamma]
    assert len(bent) / len(drawn) == pytest.approx(0.3, abs=0.04)
    assert np.mean(bent) == pytest.approx(0.25, abs=0.06)
    assert not any(change.gamma and change.inverted_gamma for change in drawn)


def test_without_a_probability_each_change_comes_as_often_as_in_nnunet():
    source, augmentation = rng(), Augmentation(intensity_probability=None)
    drawn = [draw_intensity(augmentation, source, 1) for _ in range(4000)]
    shares = {name: np.mean([getattr(change, name) is not None for change in drawn]) for name in PROBABILITIES}
    assert shares == pytest.approx(
        {
            "noise": 0.1,
            "blur": 0.2,
            "brightness": 0.15,
            "contrast": 0.15,
            "low_resolution": 0.25,
            "inverted_gamma": 0.1,
            "gamma": 0.3,
        },
        abs=0.025,
    )
    both = np.mean([change.gamma is not None and change.inverted_gamma is not None for change in drawn])
    assert both == pytest.approx(0.03, abs=0.01)  # they are drawn apart


@pytest.mark.parametrize(("name", "unchanged"), [("blur", 0.0), ("low_resolution", 1.0)])
def test_nnunet_blurs_and_coarsens_each_channel_or_leaves_it(name, unchanged):
    source, augmentation = rng(), Augmentation(intensity_probability=None)
    drawn = [value for _ in range(2000) if (value := getattr(draw_intensity(augmentation, source, 2), name)) is not None]
    left = np.array(drawn) == unchanged
    assert left.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.08)
    assert left.all(axis=1).mean() == pytest.approx(0.25, abs=0.08)
    always = [getattr(draw_intensity(replace(ALWAYS, **{name: 1.5}), source, 2), name) for _ in range(50)]
    assert not (np.array(always) == unchanged).any()


@pytest.mark.parametrize("name", ["blur", "brightness", "contrast", "low_resolution", "gamma", "inverted_gamma"])
def test_each_channel_has_its_own_numbers(name):
    strength = "gamma" if name == "inverted_gamma" else name
    source = rng()
    drawn = [getattr(draw_intensity(replace(ALWAYS, **{strength: 1.5}), source, 3), name) for _ in range(20)]
    numbers = next(value for value in drawn if value is not None)
    assert len(set(numbers)) == 3
    patch = noise((3, 9, 10, 11))
    changed = apply(patch, **{name: numbers})
    for number, channel in enumerate(patch):
        torch.testing.assert_close(changed[number], apply(channel[None], **{name: numbers[number]})[0])


def test_channels_that_are_left_stay_as_they_are():
    patch = noise()
    changed = apply(patch, blur=(0.0, 1.0), low_resolution=(1.0, 2.0))
    assert torch.equal(changed[0], patch[0])
    assert not torch.equal(changed[1], patch[1])


def test_a_large_patch_is_blurred_piece_by_piece_as_in_one_go(monkeypatch):
    whole = apply(noise((1, 13, 10, 11)), blur=1.2)
    monkeypatch.setattr("medseg_se.data.cutting.SLAB", 300)  # two rows at a time, a last one alone
    assert torch.equal(apply(noise((1, 13, 10, 11)), blur=1.2), whole)


def test_a_patch_without_channels_stays_empty():
    assert apply_intensity(torch.empty(0, 4, 5, 6), IntensityChange(noise=(0.1, 3), gamma=())).shape == (0, 4, 5, 6)


def test_rotations_are_rotations_within_the_limit_times_one_scale():
    source, augmentation = rng(), replace(ALWAYS, rotation=20, scaling=0.3)
    matrices = np.array([draw_spatial(augmentation, source, "RAS", None).matrix for _ in range(500)])
    scales = np.cbrt(np.linalg.det(matrices))
    assert 1 / 1.3 <= scales.min() < 1 / 1.25
    assert 1.25 < scales.max() <= 1.3
    turns = matrices / scales[:, None, None]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    angles = np.degrees(np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert 20 < angles.max() < 20 * np.sqrt(3) + 1e-6  # each of the three axes turns by up to 20 degrees


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_a_slice_is_turned_and_warped_in_its_plane_only(flat):
    source, augmentation = rng(), replace(ALWAYS, rotation=30, scaling=0.3, elastic=2.0, mirror=tuple(MIRRORS))
    angles = set()
    for _ in range(50):
        change = draw_spatial(augmentation, source, "RAS", flat)
        unit = np.eye(3)[flat]
        np.testing.assert_array_equal(change.matrix[flat], unit)
        np.testing.assert_array_equal(change.matrix[:, flat], unit)
        np.testing.assert_array_equal(change.warp[flat], 0)
        assert np.abs(np.delete(change.warp, flat, axis=0)).min() > 0
        assert flat not in change.mirrored
        angles.add(round(float(np.delete(np.delete(change.matrix, flat, 0), flat, 1)[0, 1]), 6))
    assert len(angles) == 50


def test_displacements_are_drawn_in_mm_with_the_asked_deviation():
    change = draw_spatial(replace(ALWAYS, elastic=3.0), rng(), "RAS", None)
    assert change.warp.shape == (3, 4, 4, 4)
    assert change.warp.std() == pytest.approx(3.0, rel=0.15)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "ASL", "SRA"])
@pytest.mark.parametrize("name", MIRRORS)
def test_mirroring_takes_the_axis_that_the_name_means(orientation, name):
    expected = next(axis for axis, letter in enumerate(orientation) if letter in MIRRORS[name])
    source = rng()
    drawn = [draw_spatial(replace(ALWAYS, mirror=(name,)), source, orientation, None).mirrored for _ in range(400)]
    assert set(drawn) == {(), (expected,)}
    assert np.mean([bool(mirrored) for mirrored in drawn]) == pytest.approx(0.5, abs=0.08)


# -------------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rotation": -1}, "Expected `rotation` between 0 and 180, but got -1"),
        ({"noise": -0.1}, "Expected `noise` between 0 and 100, but got -0.1"),
        ({"gamma": -0.3}, "Expected `gamma` between 0 and 100"),
        ({"blur": 1e6}, "Expected `blur` between 0 and 10, but got 1000000.0"),
        ({"brightness": 1e308}, "Expected `brightness` between 0 and 100, but got 1e+308"),
        ({"spatial_probability": 1.5}, "Expected `spatial_probability` between 0 and 1, but got 1.5"),
        ({"intensity_probability": -0.1}, "Expected `intensity_probability` between 0 and 1"),
        ({"low_resolution": 0.5}, "Expected `low_resolution` to be 0 or between 1 and 100, but got 0.5"),
        ({"low_resolution": 101.0}, "to be 0 or between 1 and 100, but got 101.0"),
        ({"mirror": ("sideways",)}, "left-right, anterior-posterior, inferior-superior, but got 'sideways'"),
        ({"mirror": ("left-right", "left-right")}, "each axis once, but got 'left-right' 2 times"),
    ],
    ids=str,
)
def test_bad_values_are_refused_in_words(values, words):
    with pytest.raises(UsageError) as caught:
        Augmentation(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [item.name for item in fields(Augmentation) if item.name != "mirror"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e9])
def test_no_strength_may_be_nan_negative_or_absurd(name, value):
    with pytest.raises(UsageError, match=f"Expected `{name}` .*between"):
        Augmentation(**{name: value})


def test_the_strongest_changes_leave_finite_intensities():
    change = draw_intensity(
        Augmentation(noise=100, blur=10, brightness=100, contrast=100, gamma=100, low_resolution=100, intensity_probability=1),
        rng(),
        2,
    )
    assert apply_intensity(torch.randn(2, 9, 8, 7, generator=torch.Generator().manual_seed(0)), change).isfinite().all()
