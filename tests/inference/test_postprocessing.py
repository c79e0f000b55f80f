import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from known_network import STRUCTURES, NearestLevel, checkpoint_content, write_checkpoint

from medseg_se.checkpoints import read_checkpoint
from medseg_se.cli.main import main
from medseg_se.errors import CheckpointError
from medseg_se.evaluation.evaluate import evaluate
from medseg_se.inference.choice import Judged, choose
from medseg_se.inference.ensemble import load_model
from medseg_se.inference.lean import write_lean
from medseg_se.inference.model import Model
from medseg_se.inference.postprocessing import PostProcessing, keep_largest
from medseg_se.networks import NETWORKS
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_labels

STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
NEAR_AND_FAR = (("near", "far"), ("near",))


@pytest.fixture(autouse=True, scope="module")
def _plugged_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "nearest_level", NearestLevel)
        yield


def components(mask):
    """The connected components of a mask, each a list of its voxels, in the order in which they are met."""
    left, found = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}, []
    for voxel in map(tuple, np.argwhere(mask).tolist()):
        if voxel not in left:
            continue
        left.discard(voxel)
        one = [voxel]
        for place in one:
            for step in STEPS:
                neighbour = tuple(a + b for a, b in zip(place, step, strict=True))
                if neighbour in left:
                    left.discard(neighbour)
                    one.append(neighbour)
        found.append(one)
    return found


def by_brute_force(indices, groups):
    result = indices.copy()
    for group in groups:
        found = components(np.isin(indices, group))
        if found:
            largest = max(found, key=len)  # of equal ones the first
            for voxel in itertools.chain(*(one for one in found if one is not largest)):
                result[voxel] = 0
    return result


# -------------------------------------------------------------------------------------------------------- largest component


@pytest.mark.parametrize("density", [0.03, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(9, 8, 7), (12, 1, 12), (1, 1, 1), (3, 20, 5)])
def test_it_is_what_brute_force_finds(density, shape):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        indices = (rng.integers(1, 5, shape) * (rng.random(shape) < density)).astype(np.int16)
        before = indices.copy()
        for groups in ([[1]], [[1], [2], [3], [4]], [[1, 2, 3, 4]], [[2, 4], [3]], [[7]]):
            assert np.array_equal(keep_largest(indices, groups), by_brute_force(indices, groups))
        assert np.array_equal(indices, before)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(arrays.arrays(np.int16, arrays.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(0, 3)))
def test_what_holds_for_any_map(indices):
    kept = keep_largest(indices, [[1], [2, 3]])
    assert np.array_equal(keep_largest(kept, [[1], [2, 3]]), kept)
    assert ((kept == indices) | (kept == 0)).all()
    for group in ([1], [2, 3]):
        assert len(components(np.isin(kept, group))) == min(1, len(components(np.isin(indices, group))))
    assert np.array_equal(keep_largest(indices, [[1]]) == 2, indices == 2)  # what is not asked for stays


def test_corners_connect_and_the_first_of_equal_components_stays():
    indices = np.zeros((9, 3, 3), dtype=np.int16)
    indices[0, 0, 0] = indices[1, 1, 1] = 1  # two voxels that share a corner
    indices[4, 0, :2] = indices[7, 2, 1:] = 1  # as many each
    assert np.argwhere(keep_largest(indices, [[1]])).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert np.argwhere(keep_largest(indices[::-1].copy(), [[1]])).tolist() == [[1, 2, 1], [1, 2, 2]]


# ------------------------------------------------------------------------------------------------------------- with a model


def described(path, groups=NEAR_AND_FAR, **choices):
    """Write a checkpoint of the known network whose description has a post-processing."""
    content = checkpoint_content(**choices)
    if groups is not None:
        content["medseg_se"]["postprocessing"] = {"largest_component": groups}
    torch.save(content, path)
    return path


def listed(groups):
    return [list(group) for group in groups]


@pytest.fixture
def scan():
    """A scan whose intensities are its classes, with islands, on an oblique grid."""
    rng = np.random.default_rng(3)
    array = (rng.integers(1, 3, (12, 11, 10)) * (rng.random((12, 11, 10)) < 0.08)).astype(np.float32)
    return Volume(array[None], np.array([[0, 0, 2.0, 5], [-1.0, 0, 0, 3], [0, 1.5, 0, 1], [0, 0, 0, 1]]))


def expected(scan, groups):
    indices = scan.array[0].astype(np.int16)
    for group in groups:
        indices = by_brute_force(indices, [[STRUCTURES.index(name) for name in group]])
    return STRUCTURES.decode(indices, "int16")


def test_a_model_applies_what_is_stored_with_it_on_the_scans_own_grid(tmp_path, scan):
    model = Model.load(described(tmp_path / "m.ckpt", listed(NEAR_AND_FAR)), "cpu")
    plain = Model.load(write_checkpoint(tmp_path / "plain.ckpt"), "cpu")
    answer, before = model.predict(scan, probabilities=True), plain.predict(scan, probabilities=True)
    assert answer.labels.array.dtype == np.int16
    assert np.array_equal(answer.labels.array[0], expected(scan, NEAR_AND_FAR))
    assert np.array_equal(before.labels.array[0], expected(scan, ()))
    assert not np.array_equal(answer.labels.array, before.labels.array)
    assert np.array_equal(answer.labels.affine, scan.affine)
    assert np.array_equal(answer.probabilities.array, before.probabilities.array)


def test_the_order_of_the_groups_counts():
    structures = Structures({"a": (1,), "b": (2,)})
    line = np.array([1, 0, 2, 2, 1, 0, 1, 1], dtype=np.uint8).reshape(1, -1, 1, 1)
    image = Volume(line, np.eye(4))
    first = PostProcessing((("a", "b"), ("a",)))(image, structures)
    second = PostProcessing((("a",), ("a", "b")))(image, structures)
    assert first.array.ravel().tolist() == [0, 0, 2, 2, 1, 0, 0, 0]
    assert second.array.ravel().tolist() == [0, 0, 2, 2, 0, 0, 0, 0]


def test_many_groups_are_what_one_after_another_are():
    structures = Structures({name: (value,) for value, name in enumerate("abcd", start=1)})
    rng = np.random.default_rng(1)
    indices = (rng.integers(1, 5, (9, 9, 9)) * (rng.random((9, 9, 9)) < 0.2)).astype(np.int16)
    groups = (("a", "b", "c", "d"), ("a",), ("c", "d"), ("d",), ("b",), ("a", "b"))
    expected = indices
    for group in groups:
        expected = by_brute_force(expected, [[structures.index(name) for name in group]])
    assert np.array_equal(PostProcessing(groups).on_indices(indices, structures), expected)


def test_removed_voxels_get_the_value_of_the_background():
    structures = Structures({"a": (7, 8)}, background=(3, 0))
    image = Volume(np.array([7, 7, 0, 7], dtype=np.int16).reshape(1, 4, 1, 1), np.eye(4))
    found = PostProcessing((("a",),))(image, structures)
    assert (found.array.ravel().tolist(), found.array.dtype) == ([7, 7, 3, 3], np.int16)


def test_folds_that_agree_post_process_together_and_others_are_refused(tmp_path, scan):
    paths = [
        described(tmp_path / f"{name}.ckpt", listed(NEAR_AND_FAR), options={"levels": levels})
        for name, levels in (("a", [0.0, 1.0, 2.0]), ("b", [0.1, 1.0, 2.1]))
    ]
    together = load_model(paths, device="cpu")
    assert np.array_equal(together.predict(scan).labels.array[0], expected(scan, NEAR_AND_FAR))
    raw = load_model(paths, device="cpu", raw=True)
    assert np.array_equal(raw.predict(scan).labels.array[0], expected(scan, ()))
    assert raw.digest != together.digest
    other = described(tmp_path / "c.ckpt", [["far"]])
    with pytest.raises(CheckpointError, match=r"same post-processing.*--raw"):
        load_model([*paths, other], device="cpu")
    assert load_model([*paths, other], device="cpu", raw=True).predict(scan)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"largest_component": [["nearr"]]}, "Unknown structure 'nearr'"),
        ({"largest_component": ["near"]}, "its post-processing is"),
        ({"largest_component": [[]]}, "its post-processing is"),
        ({"fill_holes": True}, "its post-processing is"),
        ({"largest_component": [["near"]], "fill_holes": True}, "its post-processing is"),
        (["near"], "its post-processing is"),
    ],
)
def test_a_post_processing_that_is_none_is_refused(tmp_path, content, message):
    checkpoint = checkpoint_content()
    checkpoint["medseg_se"]["postprocessing"] = content
    torch.save(checkpoint, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match=message):
        Model.load(tmp_path / "m.ckpt", "cpu")


# ------------------------------------------------------------------------------------------------------- lean checkpoints


def test_a_lean_checkpoint_holds_what_is_judged_and_nothing_of_the_training(tmp_path, scan):
    content = checkpoint_content(training=["a"], validation=["b"])
    average = {name.replace("network.", "average.module."): value + 1 for name, value in content["state_dict"].items()}
    content["state_dict"] |= average
    torch.save({**content, "optimizer_states": [torch.zeros(100_000)], "epoch": 3}, tmp_path / "full.ckpt")
    chosen = PostProcessing((("far",),))
    write_lean(tmp_path / "full.ckpt", tmp_path / "model" / "fold_0.ckpt", chosen, "int32")
    lean, full = (read_checkpoint(path) for path in (tmp_path / "model" / "fold_0.ckpt", tmp_path / "full.ckpt"))
    assert lean[0] == {**full[0], "data": {**full[0]["data"], "label_dtype": "int32"}, "postprocessing": chosen.to_dict()}
    assert lean[1].keys() == full[1].keys()
    assert torch.equal(lean[1]["levels"], content["state_dict"]["average.module.levels"])
    assert set(torch.load(tmp_path / "model" / "fold_0.ckpt", weights_only=True)) == {"state_dict", "medseg_se"}
    model = Model.load(tmp_path / "model" / "fold_0.ckpt", "cpu")
    assert (model.postprocessing, model.training, model.validation) == (chosen, {"a"}, {"b"})
    assert model.predict(scan).labels.array.dtype == np.int32
    raw = Model.load(tmp_path / "full.ckpt", "cpu").predict(scan).labels
    assert np.array_equal(model.predict(scan).labels.array, chosen(raw, STRUCTURES).array)


# ----------------------------------------------------------------------------------------------------------------- predict


@pytest.fixture
def predict(tmp_path, scan, write_scan, capsys):
    path = write_scan(tmp_path / "scan.nii.gz", scan.array[0], scan.affine)

    def run(*arguments):
        code = main(["predict", *map(str, arguments[:1]), str(path), "--output", str(tmp_path / "out"), *arguments[1:]])
        return code, capsys.readouterr().err

    return run


def test_predict_takes_a_folder_of_checkpoints_with_their_post_processing(tmp_path, scan, predict):
    for fold, levels in enumerate(([0.0, 1.0, 2.0], [0.1, 1.0, 2.1])):
        (tmp_path / "cv" / "model").mkdir(parents=True, exist_ok=True)
        described(tmp_path / "cv" / "model" / f"fold_{fold}.ckpt", listed(NEAR_AND_FAR), options={"levels": levels})
    answers = []
    for folder in (tmp_path / "cv", tmp_path / "cv" / "model"):
        assert predict(folder, "--device", "cpu", "--overwrite")[0] == 0
        answers.append(read_labels(tmp_path / "out" / "scan.nii.gz").array)
        assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["model"].split(" + ")) == 2
    assert np.array_equal(answers[0][0], expected(scan, NEAR_AND_FAR))
    assert np.array_equal(answers[1], answers[0])
    code, messages = predict(tmp_path / "cv", "--device", "cpu", "--raw")  # another answer in the same folder
    assert code == 2
    assert "of another model or with other options" in messages
    assert predict(tmp_path / "cv", "--device", "cpu", "--raw", "--overwrite")[0] == 0
    assert np.array_equal(read_labels(tmp_path / "out" / "scan.nii.gz").array[0], expected(scan, ()))
    assert "2 positive numbers" in predict(tmp_path / "cv", "--weights", "1,2,3")[1]


def test_the_checkpoints_of_one_training_are_no_ensemble(tmp_path, predict):
    (tmp_path / "checkpoints").mkdir()
    for name in ("best", "last"):
        write_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt")
    code, messages = predict(tmp_path / "checkpoints")
    assert code == 2
    assert "holds those of one training; name one of them" in messages
    (tmp_path / "empty").mkdir()
    assert "is a folder" in predict(tmp_path / "empty")[1]


# ---------------------------------------------------------------------------------------------------------------- the choice


A_AND_B = Structures({"a": (1,), "b": (2,)})


def line(*values):
    return np.array(values, dtype=np.uint8).reshape(-1, 1, 1)


@pytest.fixture
def judged(tmp_path, write_scan):
    """Return a function that writes pairs of truth and prediction (None: it failed) and returns the cases."""

    def make(*pairs):
        cases = []
        for number, (truth, prediction) in enumerate(pairs):
            written = write_scan(tmp_path / "truth" / f"{number}.nii.gz", truth)
            path = None if prediction is None else write_scan(tmp_path / "pred" / f"{number}.nii.gz", prediction)
            cases.append(Judged(written, path))
        return cases

    return make


def test_only_what_raises_the_mean_over_all_cases_is_chosen(judged):
    """`a` is one piece with a stray voxel each time; `b` is two pieces in one truth, and a stray voxel in the other case."""
    first = line(1, 1, 1, 0, 2, 2, 2, 2, 0, 2, 2, 2), line(1, 1, 1, 0, 2, 2, 2, 2, 0, 2, 2, 2)
    second = line(1, 1, 1, 0, 2, 2, 2, 2, 0, 0, 0, 0), line(1, 1, 1, 0, 2, 2, 2, 2, 0, 2, 0, 1)
    chosen, candidates = choose(judged(first, second), A_AND_B)
    assert chosen == PostProcessing((("a",),))
    union, a, b = candidates
    assert [candidate.structures for candidate in candidates] == [("a", "b"), ("a",), ("b",)]
    assert [candidate.accepted for candidate in candidates] == [False, True, False]
    assert union.before == pytest.approx({"a": (1 + 6 / 7) / 2, "b": (1 + 8 / 9) / 2})
    assert union.after == pytest.approx({"a": 0, "b": (8 / 11 + 1) / 2})
    assert (a.before, a.after) == (pytest.approx({"a": (1 + 6 / 7) / 2}), pytest.approx({"a": 1}))
    assert (b.before, b.after) == (pytest.approx({"b": (1 + 8 / 9) / 2}), pytest.approx({"b": (8 / 11 + 1) / 2}))


def test_the_union_comes_first_and_each_structure_is_judged_after_it(judged):
    """A small island of both goes with the union; a second piece of `a`, held by `b`, only by itself."""
    truth = line(1, 1, 1, 2, 2, 0, 0, 0, 0)
    chosen, candidates = choose(judged((truth, line(1, 1, 1, 2, 2, 1, 0, 1, 2))), A_AND_B)
    assert chosen == PostProcessing((("a", "b"), ("a",)))
    assert candidates[1].before == pytest.approx({"a": 6 / 7})
    assert candidates[2].before == candidates[2].after == {"b": 1.0}


def test_a_structure_that_would_suffer_vetoes_the_union(judged):
    truth = line(1, 1, 1, 1, 0, 2, 2, 0, 0)
    chosen, candidates = choose(judged((truth, line(1, 1, 1, 1, 0, 2, 2, 0, 1)), (truth, truth)), A_AND_B)
    assert not candidates[0].accepted
    assert candidates[0].after["b"] == 0
    assert chosen == PostProcessing((("a",),))


def test_nothing_is_chosen_where_nothing_rises(judged):
    perfect = line(1, 1, 2, 2, 0)
    assert choose(judged((perfect, perfect)), A_AND_B)[0] == PostProcessing()
    both_wrong = line(0, 0, 0, 0, 0, 1), line(1, 0, 1, 0, 0, 0)  # as wrong with one island as with two
    assert choose(judged(both_wrong), A_AND_B)[0] == PostProcessing()
    assert choose([], A_AND_B) == (PostProcessing(), [])


def test_one_structure_has_one_candidate(judged):
    chosen, candidates = choose(judged((line(1, 1, 0, 0), line(1, 1, 0, 1))), Structures({"a": (1,)}))
    assert chosen == PostProcessing((("a",),))
    assert len(candidates) == 1


def test_failed_and_absent_count_as_in_an_evaluation(judged):
    """The failed case counts 0 for `a`; `b`, in neither truth nor prediction of it, is not counted there."""
    whole, stray = line(1, 1, 1, 2, 2, 2), line(1, 1, 1, 2, 2, 2)
    _, candidates = choose(judged((whole, stray), (line(1, 1, 0, 0, 0, 0), None)), A_AND_B)
    assert candidates[0].before == candidates[0].after == {"a": 0.5, "b": 1.0}


def test_the_figures_are_those_of_an_evaluation_of_the_changed_maps(tmp_path, judged, write_scan):
    rng, structures = np.random.default_rng(0), Structures({name: (value,) for value, name in enumerate("abc", start=1)})
    pairs = []
    for _ in range(4):
        truth = np.zeros((12, 12, 12), dtype=np.uint8)
        for value, start in zip((1, 2, 3), (0, 4, 8), strict=True):
            truth[start : start + 4, 2:9, 2:9] = value
        noise = rng.integers(1, 4, truth.shape) * (rng.random(truth.shape) < 0.03)
        pairs.append((truth, np.where((truth == 0) | (rng.random(truth.shape) < 0.05), noise, truth).astype(np.uint8)))
    cases = judged(*pairs)
    chosen, candidates = choose(cases, structures)
    assert chosen.largest_component[0] == ("a", "b", "c")
    for case in cases:
        before = read_labels(case.prediction)
        write_scan(tmp_path / "after" / case.prediction.name, chosen(before, structures).array[0])
    for folder, scores in (
        ("pred", candidates[0].before),
        ("after", {k: v for c in candidates[1:] for k, v in c.after.items()}),
    ):
        summary = evaluate(tmp_path / folder, tmp_path / "truth", structures, progress=False).summary()
        for name, score in scores.items():
            if folder == "pred" or (name,) in chosen.largest_component:
                assert summary[name].mean == pytest.approx(score, abs=1e-12)
    assert candidates[0].means[1] > candidates[0].means[0]
