import numpy as np
import pytest
import torch

from medseg_se.metrics.likeness import Likeness, fit_likeness


def drawn(cases, seed, sizes=(6, 4), classes=2):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(sum(sizes), sum(sizes)))
    truth = rng.integers(0, classes, cases)
    features = rng.normal(size=(cases, sum(sizes))) @ mix + 5 * truth[:, None]
    return torch.from_numpy(features), torch.from_numpy(truth)


def test_with_all_directions_it_is_the_mahalanobis_distance_to_the_nearest_class():
    (training, classes), (held_out, _) = drawn(200, 0, (7,)), drawn(50, 1, (7,))
    found = fit_likeness(training, classes, held_out, [7], directions=7)
    x, y = training.numpy(), classes.numpy()
    centres = np.stack([x[y == one].mean(0) for one in range(2)])
    off = x - centres[y]
    # of seven directions six are kept and the last is the rest, which is its own mean; features get a hundredth of slack
    scale = np.sqrt((off**2).sum(0) / 198)
    scale += 0.01 * scale.mean()
    covariance = (off / scale).T @ (off / scale) / 198
    away = (held_out.numpy()[:, None] - centres) / scale
    expected = np.sqrt(np.einsum("nci,ij,ncj->nc", away, np.linalg.inv(covariance), away).min(1) / 7)
    level = found.levels[0]
    np.testing.assert_allclose(level.distance(held_out).numpy() * level.unit, expected, rtol=1e-8)


def test_more_features_than_scans_have_the_covariance_of_probabilistic_components():
    training, classes = drawn(12, 0, (20,))
    level = fit_likeness(training, classes, drawn(9, 1, (20,))[0], [20], directions=3).levels[0]
    x, y = training.numpy(), classes.numpy()
    off = (x - np.stack([x[y == one].mean(0) for one in range(2)])[y]) / level.scale.numpy()
    values, vectors = np.linalg.eigh(off.T @ off / 10)
    rest = values[:-3].mean()
    covariance = (vectors[:, -3:] * (values[-3:] - rest)) @ vectors[:, -3:].T + rest * np.eye(20)
    away = (drawn(4, 2, (20,))[0].numpy()[:, None] - level.centres.numpy()) / level.scale.numpy()
    expected = np.sqrt(np.einsum("nci,ij,ncj->nc", away, np.linalg.inv(covariance), away).min(1) / 20)
    np.testing.assert_allclose(level.distance(drawn(4, 2, (20,))[0]).numpy() * level.unit, expected, rtol=1e-6)


def test_false_alarms_are_as_rare_as_said():
    (training, classes), (held_out, _), (fresh, _) = (drawn(cases, seed) for seed, cases in enumerate((400, 999, 20000)))
    found = fit_likeness(training, classes, held_out, [6, 4], 0.05)
    assert found.false_alarms == pytest.approx(0.05)
    assert float((found.distance(fresh) > 1).double().mean()) == pytest.approx(0.05, abs=0.02)
    assert float((found.distance(held_out) > 1).double().mean()) == pytest.approx(0.05, abs=1e-3)


def test_few_scans_set_the_limit_at_the_farthest_and_say_so():
    (training, classes), (held_out, _) = drawn(40, 0), drawn(9, 1)
    found = fit_likeness(training, classes, held_out, [6, 4])
    assert found.false_alarms == pytest.approx(0.1)
    assert float(found.distance(held_out).max()) == pytest.approx(1)


def test_what_is_far_off_in_one_level_alone_is_unlike_and_so_is_what_is_no_number():
    (training, classes), (held_out, _) = drawn(100, 0), drawn(100, 1)
    found = fit_likeness(training, classes, held_out, [6, 4])
    odd = held_out[:3].clone()
    odd[0, 8] += 100
    odd[1, 0] = float("nan")
    far = found.distance(odd)
    assert far[0] > 3
    assert far[1] == float("inf")
    assert far[2] < 1.5


def test_a_feature_that_never_varied_counts_when_it_does():
    (training, classes), (held_out, _) = drawn(100, 0), drawn(100, 1)
    training[:, 2], held_out[:, 2] = 0.0, 0.0
    found = fit_likeness(training, classes, held_out, [6, 4])
    odd = held_out[:1].clone()
    odd[0, 2] = 10
    assert found.distance(odd) > 3 > 2 * found.distance(held_out[:1])


def test_it_survives_a_file(tmp_path):
    (training, classes), (held_out, _) = drawn(100, 0), drawn(100, 1)
    found = fit_likeness(training, classes, held_out, [6, 4])
    torch.save(found.to_dict(), tmp_path / "it.pt")
    again = Likeness.from_dict(torch.load(tmp_path / "it.pt", weights_only=True))
    torch.testing.assert_close(again.distance(held_out), found.distance(held_out), rtol=1e-5, atol=0)
    assert again.features == 10


@pytest.mark.parametrize("what", ["nan", "few", "none"])
def test_what_nothing_can_be_learnt_from_is_refused(what):
    (training, classes), (held_out, _) = drawn(40, 0), drawn(9, 1)
    if what == "nan":
        training[0, 0] = float("nan")
    training, classes = (training[:2], torch.tensor([0, 1])) if what == "few" else (training, classes)
    with pytest.raises(ValueError, match="not finite" if what == "nan" else "too few"):
        fit_likeness(training, classes, held_out[:0] if what == "none" else held_out, [6, 4])
