import json
from pathlib import Path

import numpy as np
import pytest
from known_network import STRUCTURES, NearestLevel, write_checkpoint

from medseg_se.cli.main import main
from medseg_se.data.datalist import read_datalist
from medseg_se.data.phantom import write_phantoms
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import CheckpointError, DataError, UsageError
from medseg_se.files import digest_of
from medseg_se.inference.ensemble import Ensemble, load_model
from medseg_se.inference.inputs import find_cases
from medseg_se.inference.model import Model
from medseg_se.inference.predict import choose_cases, predict_cases
from medseg_se.networks import NETWORKS
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image, read_labels

VALUES = np.array([0, 7, 300])
VIEWS = {"coronal": (8, 1, 5), "axial": (4, 8, 1), "sagittal": (1, 6, 8)}
ROUNDING = 5e-6  # of logits up to 80 in float32
MERGED = Structures({"both": (300, 7)})


@pytest.fixture(autouse=True, scope="module")
def _plugged_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "nearest_level", NearestLevel)
        yield


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a checkpoint of the known network with these levels and returns its path."""

    def make(name, levels=(0.0, 1.0, 2.0), **choices):
        return write_checkpoint(tmp_path / f"{name}.ckpt", options={"levels": list(levels)}, **choices)

    return make


@pytest.fixture
def views(write):
    """Checkpoints of a coronal, an axial and a sagittal network that do not agree everywhere."""
    levels = {"coronal": (0.0, 1.0, 2.0), "axial": (0.3, 0.9, 1.7), "sagittal": (1.1, 0.2, 2.2)}
    orientations = {"coronal": "RAS", "axial": "RAS", "sagittal": "LAI"}
    return [
        write(
            name,
            levels[name],
            tile=tile,
            flat_axis=tile.index(1),
            preprocessing=Preprocessing(orientations[name], intensity="none"),
        )
        for name, tile in VIEWS.items()
    ]


def softmax(intensities, levels):
    """What the known network answers, in float64."""
    logits = np.stack([20 * (2 * intensities.astype(float) * level - level**2) for level in levels])
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def intensities(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 2, (1, *shape)).astype(np.float32)


def scan(affine=None):
    return Volume(intensities(7, 9, 11), np.eye(4) if affine is None else affine)


def ensemble(paths, weights=None):
    return load_model(paths, weights, "cpu")


# -------------------------------------------------------------------------------------------------------------------- the mean


def test_three_views_answer_with_the_weighted_mean_of_their_probabilities(views, make_affine):
    image = scan(make_affine("PIR", (0.8, 1.1, 3.0), degrees=(5, 0, 9)))
    answer = ensemble(views, (0.4, 0.4, 0.2)).predict(image, probabilities=True)
    parts = [softmax(image.array[0], levels) for levels in ((0.0, 1.0, 2.0), (0.3, 0.9, 1.7), (1.1, 0.2, 2.2))]
    expected = 0.4 * parts[0] + 0.4 * parts[1] + 0.2 * parts[2]
    assert answer.probabilities.array.dtype == np.float32
    np.testing.assert_allclose(answer.probabilities.array, expected, atol=ROUNDING)
    assert np.array_equal(answer.labels.array[0], VALUES[expected.argmax(0)])
    assert answer.labels.array.dtype == np.int16
    for volume in answer.labels, answer.probabilities:
        assert np.array_equal(volume.affine, image.affine)
    for part in parts:  # no network alone would have said the same
        assert (part.argmax(0) != expected.argmax(0)).any()


def test_without_weights_every_checkpoint_counts_alike(views):
    answer = ensemble(views[:2]).predict(scan(), probabilities=True).probabilities.array
    expected = (softmax(scan().array[0], (0.0, 1.0, 2.0)) + softmax(scan().array[0], (0.3, 0.9, 1.7))) / 2
    np.testing.assert_allclose(answer, expected, atol=ROUNDING)


def test_members_may_work_on_grids_and_boxes_of_their_own(write, make_affine):
    image = np.zeros((1, 12, 10, 11), dtype=np.float32)
    image[:, 2:9, 3:8, 1:7] = intensities(7, 5, 6) + 0.1
    # An intensity of 0 means the first structure to both, but the second cuts it off, and there it is background.
    levels = (1.0, 0.0, 2.0)
    fine = Preprocessing("RAS", spacing=(0.5, 0.5, 0.5), intensity="none")
    paths = [
        write("fine", levels, preprocessing=fine),
        write("cut", levels, preprocessing=Preprocessing("SPL", crop="nonzero", intensity="none")),
    ]
    volume = Volume(image, make_affine("LIA"))
    answer = ensemble(paths, (1, 3)).predict(volume, probabilities=True)
    apart = [Model.load(path, "cpu").predict(volume, probabilities=True).probabilities.array for path in paths]
    np.testing.assert_allclose(answer.probabilities.array, 0.25 * apart[0] + 0.75 * apart[1], atol=ROUNDING)
    corner = answer.probabilities.array[:, 0, 0, 0]
    np.testing.assert_allclose(corner, [0.75, 0.25, 0], atol=ROUNDING)
    assert answer.labels.array[0, 0, 0, 0] == 0


def test_the_order_of_the_checkpoints_changes_nothing(views):
    weights = [0.4, 0.5, 0.1]
    one, other = ensemble(views, weights), ensemble(views[::-1], weights[::-1])
    assert one.digest == other.digest
    first, second = (model.predict(scan(), probabilities=True) for model in (one, other))
    assert np.array_equal(first.labels.array, second.labels.array)
    assert np.array_equal(first.probabilities.array, second.probabilities.array)


def test_only_the_ratios_of_the_weights_count(views):
    models = [
        ensemble(views, weights) for weights in ((6, 3, 1), (0.6, 0.3, 0.1), (1.2e308, 6e307, 2e307), (6e-200, 3e-200, 1e-200))
    ]
    for model in models:
        assert model.digest == models[0].digest
        assert model.weights == pytest.approx(models[0].weights)
        assert sum(model.weights) == pytest.approx(1)


def test_where_all_members_agree_the_label_is_theirs(views, write, make_affine):
    paths = [*views, write("fine", (0.2, 1.2, 1.6), preprocessing=Preprocessing("SRA", (1.3, 0.7, 2.1), intensity="none"))]
    image = scan(make_affine("LAS", degrees=(10, 0, 0)))
    labels = ensemble(paths).predict(image).labels.array
    apart = np.stack([Model.load(path, "cpu").predict(image).labels.array for path in paths])
    agreed = (apart == apart[0]).all(0)
    assert len(np.unique(labels[agreed])) > 1
    assert not agreed.all()
    assert np.array_equal(labels[agreed], apart[0][agreed])


def test_a_tie_goes_to_the_first_structure(write):
    paths = [write("one", (0.0, 1.0, 5.0)), write("other", (0.0, 5.0, 1.0))]
    image = Volume(np.ones((1, 8, 8, 8), dtype=np.float32), np.eye(4))
    answer = ensemble(paths).predict(image, probabilities=True)
    assert np.array_equal(answer.probabilities.array[1], answer.probabilities.array[2])
    assert (answer.probabilities.array[1] > answer.probabilities.array[0]).all()
    assert (answer.labels.array == 7).all()


def test_one_checkpoint_is_a_model_as_ever(write):
    path = write("alone")
    model = ensemble([path], [3.0])
    assert isinstance(model, Model)
    assert model.digest == Model.load(path, "cpu").digest


# ------------------------------------------------------------------------------------------------------------ merged structures


@pytest.mark.parametrize("place", [0, 2], ids=["merged first", "merged last"])
def test_a_merged_structure_gives_its_probability_to_each_of_its_parts(write, place):
    paths = [write("coronal"), write("axial", (0.3, 0.9, 1.7))]
    paths.insert(place, write("sagittal", (0.4, 1.5), structures=MERGED, tile=(1, 8, 8), flat_axis=0))
    weights = [0.4, 0.4]
    weights.insert(place, 0.2)
    model = ensemble(paths, weights)
    assert model.structures == STRUCTURES
    answer = model.predict(scan(), probabilities=True)
    voxels = scan().array[0]
    merged = softmax(voxels, (0.4, 1.5))[[0, 1, 1]]
    total = 0.4 * softmax(voxels, (0.0, 1.0, 2.0)) + 0.4 * softmax(voxels, (0.3, 0.9, 1.7)) + 0.2 * merged
    np.testing.assert_allclose(answer.probabilities.array, total / total.sum(0), atol=ROUNDING)
    assert np.array_equal(answer.labels.array[0], VALUES[total.argmax(0)])


def test_structures_are_matched_by_value_in_whatever_order_they_stand(write):
    first = Structures({"left a": (1,), "right a": (2,), "b": (5, 6)}, background=(9, 0))
    second = Structures({"b": (6, 5), "a": (2, 1)}, background=(0, 9))
    model = ensemble([write("two", (0.3, 0.6, 1.9), structures=second), write("one", (0.0, 1.0, 2.0, 3.0), structures=first)])
    answer = model.predict(scan(), probabilities=True)
    voxels = scan().array[0]
    total = softmax(voxels, (0.0, 1.0, 2.0, 3.0)) + softmax(voxels, (0.3, 0.6, 1.9))[[0, 2, 2, 1]]
    np.testing.assert_allclose(answer.probabilities.array, total / total.sum(0), atol=ROUNDING)
    assert np.array_equal(answer.labels.array[0], np.array([9, 1, 2, 5])[total.argmax(0)])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Structures({"near": (7,), "away": (300,)}), "away, far"),
        (Structures({"near": (7,), "far": (301,)}), "far"),
        (Structures({"near": (300,), "far": (7,)}), "near, far"),
        (Structures({"near": (7,)}), "far"),
        (Structures({"near": (7,), "far": (300, 4)}), "far"),
        (Structures({"both": (7, 300, 4)}), "both, near, far"),
        (Structures({"near": (7,), "far": (300,)}, background=(0, 5)), "background"),
        (Structures({"near": (7,), "far": (300,), "third": (5,)}), "third"),
    ],
    ids=["name", "value", "swapped", "missing", "more values", "too much merged", "background", "one more"],
)
def test_other_structures_are_refused_by_name(write, other, named):
    paths = [write("first"), write("second", range(other.num_classes), structures=other)]
    for order in (paths, paths[::-1]):
        with pytest.raises(CheckpointError, match="Expected checkpoints with the same structures") as caught:
            ensemble(order)
        found = str(caught.value).partition(" differ in ")[2].partition(".")[0]
        assert set(found.split(", ")) == set(named.split(", "))
        assert all(str(path) in str(caught.value) for path in paths)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ({"left a": (1,), "right a": (2,), "b": (3, 4)}, {"a": (1, 2), "left b": (3,), "right b": (4,)}, "b, left b, right b"),
        ({"a": (1, 2), "left b": (3,), "right b": (4,)}, {"left a": (1,), "right a": (2,), "b": (3, 4)}, "a, left a, right a"),
        ({"a": (1, 2), "b": (3,)}, {"a": (1,), "b": (2, 3)}, "a, b"),
    ],
)
def test_structures_that_cut_across_each_other_are_refused(write, one, other, named):
    paths = [write("one", range(len(one) + 1), structures=Structures(one))]
    paths.append(write("other", range(len(other) + 1), structures=Structures(other)))
    with pytest.raises(CheckpointError, match=" differ in ") as caught:
        ensemble(paths)
    assert sorted(str(caught.value).partition(" differ in ")[2].partition(".")[0].split(", ")) == named.split(", ")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"channels": ("T2",)}, r"the same channels, but .* have \('T2',\) and \('T1',\)"),
        ({"label_dtype": "int32"}, r"the same type of label values, but .* have int32 and int16"),
    ],
)
def test_other_channels_or_types_are_refused(write, choices, message):
    with pytest.raises(CheckpointError, match=message):
        ensemble([write("first"), write("second", **choices)])


def test_the_order_of_the_channels_matters(write):
    with pytest.raises(CheckpointError, match="the same channels"):
        ensemble([write("first", channels=("T1", "T2")), write("second", channels=("T2", "T1"))])


def test_members_of_two_precisions_are_refused(write, monkeypatch):
    monkeypatch.setattr("medseg_se.inference.engines.base.has_bfloat16", lambda device: True)
    path = write("model")
    with pytest.raises(CheckpointError, match=r"the same precision, but .* have bf16 and fp32"):
        Ensemble([Model.load(path, "cpu"), Model.load(path, "cpu", "bf16")])


@pytest.mark.parametrize("weights", [(1,), (1, 1, 1, 1), (1, 1, 0), (1, -1, 1), (1, 1, float("nan")), (1, 1, float("inf")), ()])
def test_weights_that_are_not_one_positive_number_a_checkpoint_are_refused(views, weights):
    with pytest.raises(UsageError, match="`weights` to be 3 positive numbers, one a checkpoint, but got"):
        ensemble(views, weights)


def test_no_checkpoint_is_no_ensemble():
    with pytest.raises(UsageError, match="at least one checkpoint"):
        Ensemble([])


# ----------------------------------------------------------------------------------------------------------------- of a cohort


@pytest.fixture
def scans(tmp_path, write_scan):
    for number, name in enumerate("abcd"):
        write_scan(tmp_path / "scans" / f"{name}.nii.gz", intensities(7, 9, 11, seed=number)[0])
    return tmp_path / "scans"


def run(model, scans, output, **options):
    return predict_cases(model, find_cases([scans], 1), output, progress=False, **options)


def test_a_scan_is_known_if_any_member_knows_it(write, scans, tmp_path):
    a, b, c = (digest_of([scans / f"{name}.nii.gz"]) for name in "abc")
    # As in a cross-validation, what chose one checkpoint trained another: b. Its Dice says nothing.
    model = ensemble([write("one", training=[a], validation=[b, c]), write("other", training=[b], validation=[a])])
    assert {name: status.known for name, status in run(model, scans, tmp_path / "p").items()} == {
        "a": "training",
        "b": "training",
        "c": "validation",
        "d": "",
    }
    cases = find_cases([scans], 1)
    chosen = {which: [case.id for case in choose_cases(cases, model, which)] for which in ("validation", "unseen")}
    assert chosen == {"validation": ["c"], "unseen": ["d"]}


def test_a_rerun_skips_what_the_same_checkpoints_and_weights_have_done(views, scans, tmp_path, write):
    output = tmp_path / "p"
    run(ensemble(views, (0.4, 0.4, 0.2)), scans, output, probabilities=True)
    assert read_labels(output / "a.nii.gz").same_grid(read_image(scans / "a.nii.gz")) is None
    assert read_image(output / "a_probabilities.nii.gz").array.shape == (3, 7, 9, 11)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}
    run(ensemble([views[2], views[0], views[1]], (1, 2, 2)), scans, output, probabilities=True)
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")} == before
    others = [
        ensemble(views, (0.4, 0.2, 0.4)),
        ensemble(views[:2]),
        ensemble(views[:1]),
        ensemble([*views[:2], write("new", tile=(1, 6, 8), flat_axis=0)], (0.4, 0.4, 0.2)),
    ]
    for other in others:
        with pytest.raises(UsageError, match="holds predictions of another model"):
            run(other, scans, output, probabilities=True)


def test_the_record_names_every_checkpoint_and_its_share(views, scans, tmp_path):
    run(ensemble(views, (2, 2, 1)), scans, tmp_path / "p")
    recorded = json.loads((tmp_path / "p" / "predictions.json").read_text())["model"]
    digests = [Model.load(path, "cpu").digest for path in views]
    terms = [f"{share} * {digest}" for share, digest in zip((0.4, 0.4, 0.2), digests, strict=True)]
    assert sorted(recorded.split(" + ")) == sorted(terms)


def test_a_scan_whose_probabilities_exceed_the_free_memory_is_one_failed_case(views, scans, tmp_path, write_scan, monkeypatch):
    write_scan(scans / "b.nii.gz", np.zeros((40, 40, 40), dtype=np.float32))
    monkeypatch.setattr("medseg_se.inference.passage.free_memory", lambda: 3e5)
    statuses = run(ensemble(views), scans, tmp_path / "p")
    assert {name: status.status for name, status in statuses.items()} == {"a": "done", "b": "failed", "c": "done", "d": "done"}
    assert "free memory for the 3 classes of" in statuses["b"].error
    assert "b.nii.gz on (40, 40, 40) voxels" in statuses["b"].error


def test_what_one_member_cannot_segment_the_ensemble_cannot(write):
    model = ensemble([write("good"), write("bad", (0.0, float("nan"), 2.0))])
    with pytest.raises(DataError, match="answer to the scan is not finite"):
        model.predict(scan())


# --------------------------------------------------------------------------------------------------------------- from training


@pytest.mark.usefixtures("put_back")
def test_views_are_trained_and_predict_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_phantoms(Path("data"), "brain", training=3, test=1, resolution=8.0)
    datalist = read_datalist("data")
    structures, test = datalist.structures, datalist.test[0]
    table = {}
    for name, values in structures.values.items():
        table.setdefault(name.removeprefix("Left-").removeprefix("Right-"), []).extend(values)
    Path("merged.json").write_text(json.dumps({"labels": table}))
    places = [0, *(list(table).index(name.removeprefix("Left-").removeprefix("Right-")) + 1 for name in structures.names)]

    flags = "--data.folds=3 --data.patch_size=[16,16] --data.batches_per_epoch=1 --data.num_workers=0 --data.spacing=[8,8,8] "
    flags += "--data.source=data --model.channels=[4,8] --trainer.max_epochs=1 --trainer.accelerator=cpu"
    for view, more in {"coronal": [], "axial": [], "sagittal": ["--data.structures=merged.json"]}.items():
        given = [*flags.split(), *more, f"--data.slice_axis={view}", f"--trainer.default_root_dir={view}"]
        assert main(["fit", "--config=hippocampus_unet2d_scse", *given]) == 0
    paths = [f"{view}/checkpoints/best.ckpt" for view in VIEWS]
    command = ["predict", *paths, "data", "--weights", "0.4,0.4,0.2", "--output", "p", "--device", "cpu"]
    assert main([*command, "--probabilities", "--cases", "unseen"]) == 0

    image, labels = read_image(test.images[0]), read_labels(f"p/{test.id}.nii.gz")
    probabilities = read_image(f"p/{test.id}_probabilities.nii.gz")
    assert labels.same_grid(image) is None
    parts = [Model.load(path, "cpu").predict(image, probabilities=True).probabilities.array for path in paths]
    assert [len(part) for part in parts] == [23, 23, 13]
    total = 0.4 * parts[0] + 0.4 * parts[1] + 0.2 * parts[2][places]
    np.testing.assert_allclose(probabilities.array, total / total.sum(0), atol=ROUNDING)
    chosen = np.take_along_axis(total, structures.encode(labels.array).astype(np.int64), 0)
    np.testing.assert_allclose(chosen[0], total.max(0), atol=ROUNDING)
