import io
import json
import math
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from known_network import NearestLevel, write_checkpoint
from rich.console import Console
from scipy import stats
from torch import nn

from medseg_se.analysis.gate_statistics import GateSummary
from medseg_se.analysis.inspection import inspect_scan
from medseg_se.analysis.selectivity import draw_patches, selectivity
from medseg_se.analysis.watched import WatchedModel
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import CheckpointError, DataError, UsageError
from medseg_se.inference.model import Model
from medseg_se.networks import NETWORKS
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image, write_volume

UNET = {"channels": [4, 6, 8], "attention": "scse"}
TWO = Structures({"dark": (1,), "bright": (2,)})


class Shown(nn.Module):
    """A block whose gates are what it is made to show: its input, the mean of it, or always the same."""

    label = "shown"

    def __init__(self, show):
        super().__init__()
        self.show = show
        self.inner = nn.Identity()
        self.inner.look = lambda x: {"channel": x}  # a part of the block: nothing that is looked at by itself

    def look(self, x):
        axes = tuple(range(2, x.ndim))
        profiles = [x.mean([other for other in axes if other != axis], keepdim=True) for axis in axes]
        shown = {
            "spatial": x[:, :1],
            "voxel": torch.cat([x, 3 * x], dim=1),
            "channel": torch.cat([x.mean(axes, keepdim=True)] * 2, dim=1) if self.show != "constant" else None,
            "constant": torch.full_like(x.mean(axes, keepdim=True), 0.3),
            **{f"axis {number}": profile for number, profile in enumerate(profiles)},
        }
        if self.show == "constant":
            return {"channel": shown["constant"]}
        return {name: gate for name, gate in shown.items() if name.split()[0] == self.show}

    def forward(self, x):
        return self.inner(x)


class Weighing(nn.Identity):
    def choice(self):
        return {"cse": 0.25, "sse": 0.75}


class Level(nn.Module):
    def __init__(self, show):
        super().__init__()
        self.attention = Weighing() if show == "choice" else Shown(show)

    def forward(self, x):
        return self.attention(x)


class Showing(NearestLevel):
    """The network whose answer is known, with a block that sees its input on a grid coarser by `stride`."""

    def __init__(self, in_channels, num_classes, spatial_dims, show="spatial", stride=1):
        super().__init__(in_channels, num_classes, spatial_dims, tuple(map(float, range(num_classes))))
        pool = nn.AvgPool2d if spatial_dims == 2 else nn.AvgPool3d
        self.pool = pool(stride, ceil_mode=True)
        self.encoder = nn.ModuleList([Level(show)])

    def forward(self, x):
        self.encoder[0](self.pool(x))
        return super().forward(x)


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch):
    monkeypatch.setitem(NETWORKS, "showing", Showing)
    monkeypatch.setitem(NETWORKS, "nearest_level", NearestLevel)


@pytest.fixture
def load(tmp_path):
    """Return a function that writes a checkpoint with the given choices and loads it to be watched."""

    def make(**choices):
        return WatchedModel.load(write_checkpoint(tmp_path / "model.ckpt", **choices), "cpu")

    return make


def ramp(shape, affine):
    """A scan whose intensity is a linear function of the place in the world, between 0 and 1."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T
    values = places @ np.array([0.013, 0.007, 0.003])
    return Volume((values - values.min())[None].astype(np.float32), affine)


def noise(*shape, seed=0):
    return Volume(np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32), np.eye(4))


# ----------------------------------------------------------------------------------------------------------- insertion points


def test_every_block_is_found_along_the_data_flow_and_named_in_words(load):
    places = ["encoder", "bottleneck", "decoder", "skip", "residual"]
    model = load(network="unet", options={**UNET, "residual": True, "norm": "batch", "attention_at": places})
    points = model.watch(noise(9, 9, 9))[1].points
    assert [point.name for point in points] == [
        *("encoder 0 residual", "encoder 0", "skip 0", "encoder 1 residual", "encoder 1", "skip 1"),
        *("bottleneck 2 residual", "bottleneck 2"),
        *("decoder 1 residual", "decoder 1", "decoder 0 residual", "decoder 0"),
    ]
    assert [point.place for point in points[:3]] == ["residual", "encoder", "skip"]
    assert [point.depth for point in points] == [0, 0, 0, 1, 1, 1, 2, 2, 1, 1, 0, 0]
    assert [point.channels for point in points] == [4, 4, 4, 6, 6, 6, 8, 8, 6, 6, 4, 4]
    assert points[1].path == "encoder.0.block.attention"
    assert points[1].block == "scSE"
    assert {point.depth: point.stride for point in points} == {0: (1, 1, 1), 1: (2, 2, 2), 2: (4, 4, 4)}


def test_strides_multiply_though_the_coarsest_maps_reach_beyond_the_tile(load):
    options = {"channels": [4] * 5, "strides": [2, 2, [1, 2, 2], 2], "attention": "scse"}
    points = load(network="unet", options=options, tile=(10, 9, 20)).watch(noise(10, 9, 20))[1].points
    assert {point.depth: point.stride for point in points}[4] == (8, 16, 16)


def test_the_stride_across_the_slices_of_a_2d_network_is_1(load):
    model = load(network="showing", options={"stride": 2}, tile=(8, 8, 1), flat_axis=2)
    assert model.watch(noise(8, 8, 4))[1].stride == (2, 2, 1)


def test_levels_without_a_block_count_in_the_depth(load):
    model = load(network="unet", options={**UNET, "attention": ["none", "none", "cse"]})
    assert [point.name for point in model.watch(noise(8, 8, 8))[1].points] == ["bottleneck 2"]


@pytest.mark.parametrize(
    ("attention", "options", "block", "gates"),
    [
        ("eca+scse", {}, "ECA+scSE", ["ECA channel", "scSE channel", "scSE spatial"]),
        ("max(cse,sse+cse)", {}, "cSE+sSE+cSE", ["cSE channel", "sSE+cSE sSE spatial", "sSE+cSE cSE channel"]),
        ("sse+sse", {}, "sSE+sSE", ["sSE 0 spatial", "sSE 1 spatial"]),
        ("adaptive", {"blocks": ["none", "coordinate"]}, "adaptive attention", [f"coordinate axis {n}" for n in range(3)]),
    ],
)
def test_the_gates_of_blocks_made_of_blocks_are_named_after_the_parts(load, attention, options, block, gates):
    options = {**UNET, "attention": attention, "attention_at": ["encoder"], "attention_options": options}
    recording = load(network="unet", options=options).watch(noise(8, 8, 8))[1]
    assert recording.points[0].block == block
    assert list(recording.statistics["encoder 0"]) == gates
    maps = [kind for name, kind in recording.maps if name == "encoder 0"]
    assert maps == list(dict.fromkeys(re.sub(r"axis \d", "axes", gate) for gate in gates if "channel" not in gate))
    assert list(recording.points[0].choice.values()) == ([0.5, 0.5] if attention == "adaptive" else [])


def test_a_network_without_attention_is_refused_and_damaged_files_too(load, tmp_path):
    with pytest.raises(UsageError, match=r"Expected a network with attention, but that of .*model.ckpt has none"):
        load(network="unet", options={"channels": [4, 8]})
    (tmp_path / "bad.ckpt").write_text("nothing")
    with pytest.raises(CheckpointError):
        WatchedModel.load(tmp_path / "bad.ckpt", "cpu")


# ----------------------------------------------------------------------------------------------------------------- statistics


def test_the_prediction_is_that_of_the_model_unwatched(load, tmp_path):
    watched = load(network="unet", options=UNET, preprocessing=Preprocessing("LPS", (1.3, 0.9, 1.0)))
    image = noise(14, 12, 13)
    prediction, _ = watched.watch(image)
    expected = Model.load(tmp_path / "model.ckpt", "cpu").predict(image)
    assert len(np.unique(prediction.labels.array)) > 1
    assert np.array_equal(prediction.labels.array, expected.labels.array)


def test_statistics_are_those_of_the_gates_that_the_blocks_use(load):
    model = load(network="unet", options=UNET)
    image = noise(8, 8, 14)  # two tiles: from 0 and from 3, and one more in between
    recording = model.watch(image)[1]
    block, inputs = model.network.encoder[1].block.attention, []
    handle = block.register_forward_pre_hook(lambda _, x: inputs.extend(x))
    with torch.no_grad():
        for start in (0, 3, 6):
            model.network(torch.from_numpy(image.array[None, ..., start : start + 8]))
        looks = [block.look(x) for x in inputs]
    handle.remove()
    found = {kind: torch.cat([look[kind] for look in looks]) for kind in ("channel", "spatial")}
    for kind, gates in found.items():
        gate, known = gates.double().numpy(), recording.statistics["encoder 1"][kind]
        assert known.n == gate.size
        assert (known.minimum, known.maximum) == (gate.min(), gate.max())
        assert (known.mean, known.sd) == (pytest.approx(gate.mean(), abs=1e-6), pytest.approx(gate.std(), abs=1e-6))
        assert known.median == pytest.approx(np.percentile(gate, 50, method="inverted_cdf"), abs=5e-4)
    assert known.channel_means is None
    channels = found["channel"].mean((0, 2, 3, 4)).tolist()
    assert recording.statistics["encoder 1"]["channel"].channel_means == pytest.approx(channels, abs=1e-6)


@pytest.mark.parametrize(("tile", "flat_axis"), [((12, 9, 8), None), ((12, 9, 1), 2), ((12, 1, 8), 1)])
def test_what_was_added_around_a_small_scan_does_not_count(load, tile, flat_axis):
    model = load(network="showing", preprocessing=Preprocessing(intensity="none"), tile=tile, flat_axis=flat_axis)
    image = ramp((7, 8, 8), np.eye(4))
    gates = model.watch(image)[1].statistics["encoder 0"]["spatial"]
    assert gates.n == image.array.size
    assert gates.mean == pytest.approx(image.array.mean(), abs=1e-6)


@pytest.mark.parametrize("parts", [1, 7])
def test_summaries_agree_with_numpy_however_the_gates_arrive(parts):
    gates = torch.randn(14, 3, 50, generator=torch.Generator().manual_seed(0))
    summary = GateSummary()
    for part in gates.chunk(parts):
        summary.add(part)
    found, values = summary.result(), gates.double().numpy()
    assert found.n == values.size
    assert (found.mean, found.sd) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    expected = np.percentile(values, [5, 25, 50, 75, 95], method="inverted_cdf")
    assert (found.p5, found.p25, found.median, found.p75, found.p95) == pytest.approx(expected.tolist(), rel=1e-3)
    assert (found.closed, found.open) == ((values < 0.05).mean(), (values > 0.95).mean())
    assert found.channel_means == pytest.approx(values.mean((0, 2)).tolist())


# ----------------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAL", "IRP", "PSL"])
def test_a_map_lies_where_its_gates_were_however_the_scan_lies(load, make_affine, tmp_path, orientation):
    affine = make_affine(orientation, (0.8, 1.1, 3.0), degrees=(10, -5, 20))
    write_volume(ramp((11, 9, 14), affine), tmp_path / "scan.nii.gz")
    image = read_image(tmp_path / "scan.nii.gz")
    model = load(network="showing", preprocessing=Preprocessing("ASR", intensity="none"), tile=(8, 6, 7))
    inspect_scan(model, image).write_maps(tmp_path / "maps")
    written = nib.load(tmp_path / "maps" / "encoder-0-spatial.nii.gz")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_allclose(written.get_fdata(), image.array[0], atol=1e-5)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_map_of_a_2d_network_lies_there_too(load, make_affine, axis):
    image = ramp((11, 9, 14), make_affine("PIR", (0.8, 1.1, 3.0)))
    tile = [5, 6, 7]
    tile[axis] = 1
    model = load(network="showing", preprocessing=Preprocessing("RAS", intensity="none"), tile=tile, flat_axis=axis)
    np.testing.assert_allclose(inspect_scan(model, image).map_on_scan("encoder 0", "spatial").array, image.array, atol=1e-5)


@pytest.mark.parametrize(("length", "stride"), [(12, 2), (13, 3), (13, 4), (15, 4)])
def test_a_coarse_map_is_enlarged_about_the_voxels_that_it_stands_for(load, length, stride):
    image = ramp((length,) * 3, np.eye(4))
    options = {"stride": stride}
    model = load(network="showing", options=options, preprocessing=Preprocessing(intensity="none"), tile=(length,) * 3)
    found = inspect_scan(model, image).map_on_scan("encoder 1", "spatial").array
    # Between the centres of the first and the last whole block, where a linear function stays what it is.
    inner = slice(stride // 2, length // stride * stride - stride // 2)
    np.testing.assert_allclose(found[:, inner, inner, inner], image.array[:, inner, inner, inner], atol=1e-5)


def test_a_map_comes_back_from_another_spacing_and_is_0_where_the_scan_was_cropped(load, make_affine):
    image = ramp((20, 18, 16), make_affine("LAS", (1, 1, 1.5), degrees=(5, 5, 5)))
    image.array[:] += 1
    image.array[:, :3] = image.array[..., 12:] = 0
    model = load(
        network="showing",
        preprocessing=Preprocessing("RAS", (1.5, 0.8, 1.2), crop="nonzero", intensity="none"),
        tile=(9, 9, 9),
    )
    found = inspect_scan(model, image).map_on_scan("encoder 0", "spatial").array
    assert (found[image.array == 0] == 0).all()
    inner = (slice(None), slice(5, -2), slice(2, -2), slice(2, 10))
    np.testing.assert_allclose(found[inner], image.array[inner], atol=1e-4)
    assert (found[image.array > 0] > 0.9).all()


def test_gates_per_voxel_are_averaged_and_gates_per_axis_multiplied(load):
    image = ramp((8, 8, 8), np.eye(4))
    choices = {"network": "showing", "preprocessing": Preprocessing(intensity="none")}
    voxel = inspect_scan(load(**choices, options={"show": "voxel"}), image)
    np.testing.assert_allclose(voxel.map_on_scan("encoder 0", "voxel").array, 2 * image.array, atol=1e-5)
    axes = inspect_scan(load(**choices, options={"show": "axis"}), image)
    a = image.array[0]
    expected = a.mean((1, 2))[:, None, None] * a.mean((0, 2))[:, None] * a.mean((0, 1))
    np.testing.assert_allclose(axes.map_on_scan("encoder 0", "axes").array[0], expected, atol=1e-5)
    assert list(axes.recording.statistics["encoder 0"]) == ["axis 0", "axis 1", "axis 2"]
    assert list(axes.map_files().values()) == ["encoder-0-axes.nii.gz"]


def test_a_map_never_replaces_the_scan(load, tmp_path):
    write_volume(ramp((8, 8, 8), np.eye(4)), tmp_path / "encoder-0-spatial.nii.gz")
    result = inspect_scan(load(network="showing"), read_image(tmp_path / "encoder-0-spatial.nii.gz"))
    with pytest.raises(UsageError, match="A map would overwrite"):
        result.write_maps(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- selectivity


def test_gates_that_separate_the_structures_are_wholly_selective():
    groups = np.repeat([3, 5, 9], 4)
    found = selectivity(np.stack([groups / 10, -groups], axis=1), groups)
    assert (found.eta2, found.epsilon2, found.p_value) == (pytest.approx(1), pytest.approx(1), 1 / 1000)
    assert found.channels == pytest.approx((1, 1))
    assert found.means == pytest.approx(np.array([[0.3, -3], [0.5, -5], [0.9, -9]]))
    assert found.chance == pytest.approx(2 / 11)


def test_constant_gates_have_no_selectivity():
    groups = np.repeat([1, 2], 8)
    rounding = 0.7 + np.random.default_rng(0).normal(size=(16, 1)).astype(np.float32) * 1e-8
    for gates in (np.full((16, 3), 0.4, dtype=np.float32), rounding.astype(np.float32)):
        found = selectivity(gates, groups)
        assert all(map(math.isnan, (found.eta2, found.chance, found.epsilon2, found.p_value, *found.channels)))
        assert found.sd == 0
    mixed = selectivity(np.stack([np.full(16, 0.4), groups], axis=1), groups)
    assert math.isnan(mixed.channels[0])
    assert (mixed.eta2, mixed.channels[1]) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("groups", [np.ones(6), np.arange(6)])
def test_one_structure_or_one_patch_each_says_nothing(groups):
    found = selectivity(np.random.default_rng(0).random((6, 2)), groups)
    assert math.isnan(found.eta2)
    assert math.isnan(found.p_value)


def test_selectivity_by_chance_is_what_it_says():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(5), [2, 3, 4, 5, 6])
    found = [selectivity(rng.random((20, 3)), groups, permutations=19, seed=run) for run in range(400)]
    assert found[0].chance == pytest.approx(4 / 19)
    assert np.mean([one.eta2 for one in found]) == pytest.approx(4 / 19, abs=0.01)
    assert np.mean([one.epsilon2 for one in found]) == pytest.approx(0, abs=0.012)
    assert np.mean([one.p_value <= 0.05 for one in found]) == pytest.approx(0.05, abs=0.03)


def test_selectivity_agrees_with_the_analysis_of_variance():
    rng, groups = np.random.default_rng(1), np.array([2, 0, 1, 0, 2, 1, 1, 0, 2, 2, 0])
    gates = rng.random((11, 4)) + groups[:, None] * np.array([0, 0.1, 0.5, 2])
    found = selectivity(gates, groups)
    for channel, eta2 in enumerate(found.channels):
        f = stats.f_oneway(*(gates[groups == group, channel] for group in range(3))).statistic
        assert eta2 == pytest.approx(f * 2 / (f * 2 + 8))
    assert found.eta2 == pytest.approx(np.average(found.channels, weights=gates.var(axis=0)))
    assert found.epsilon2 == pytest.approx((found.eta2 - 2 / 10) / (1 - 2 / 10))
    assert found.sd == pytest.approx(math.sqrt(gates.var(axis=0).mean()))


def test_patches_are_centred_on_their_structure_and_stay_in_the_scan():
    labels = np.zeros((40, 40, 30), dtype=np.int16)
    labels[18:22, 18:22, 13:17], labels[0, 0, 0], labels[39, 38:40, 29] = 1, 2, 4
    drawn = draw_patches(labels, (16, 16, 40), (4, 4, 4), patches=5)
    assert drawn.size == (16, 16, 16)  # along the last axis half of the scan, rounded up to the stride
    assert drawn.structures.tolist() == [1] * 5 + [2] + [4] * 2
    assert (drawn.starts >= 0).all()
    assert (drawn.starts + drawn.size <= labels.shape).all()
    centres = drawn.starts[:5] + 8
    assert (labels[tuple(centres.T)] == 1).all()
    assert len(np.unique(centres, axis=0)) == 5
    assert drawn.starts[5].tolist() == [0, 0, 0]
    again = draw_patches(np.where(labels == 2, 0, labels), (16, 16, 40), (4, 4, 4), patches=5)
    assert np.array_equal(again.starts[:5], drawn.starts[:5])
    assert not np.array_equal(draw_patches(labels, (16, 16, 40), (4, 4, 4), 5, seed=1).starts, drawn.starts)


def test_patches_of_a_single_structure_are_contrasted_with_background():
    labels = np.zeros((9, 9, 9), dtype=np.int16)
    labels[4, 4, 4] = 3
    assert sorted(draw_patches(labels, (4, 4, 4), (1, 1, 1), patches=2).structures) == [0, 0, 3]
    assert len(draw_patches(0 * labels, (4, 4, 4), (1, 1, 1)).structures) == 0


def halves(shape=(24, 16, 16)):
    """A scan that is dark (1) on one side and bright (2) on the other, and the structures that these are."""
    labels = np.ones((1, *shape), dtype=np.int16)
    labels[:, shape[0] // 2 :] = 2
    return Volume(labels.astype(np.float32), np.eye(4)), Volume(labels, np.eye(4))


def watched_halves(load, show="channel", **choices):
    return load(
        network="showing",
        options={"show": show},
        structures=TWO,
        preprocessing=Preprocessing(intensity="none"),
        tile=(4, 4, 4),
        **choices,
    )


def test_gates_that_follow_the_structures_are_selective_and_others_are_not(load):
    image, labels = halves()
    told = inspect_scan(watched_halves(load), image, labels)
    assert told.source == "label"
    assert told.groups == {"dark": 16, "bright": 16}
    assert told.patch == (4, 4, 4)
    follows = told.selectivity["encoder 0", "channel"]
    assert follows.eta2 > 0.9
    assert follows.means[:, 0] == pytest.approx([1, 2], abs=0.1)
    shuffled = Volume(np.random.default_rng(0).integers(1, 3, labels.array.shape).astype(np.int16), np.eye(4))
    random = inspect_scan(watched_halves(load), image, shuffled).selectivity["encoder 0", "channel"]
    assert abs(random.epsilon2) < 0.12
    assert random.p_value > 0.05


def test_without_a_label_the_prediction_says_where_the_structures_are(load):
    image, labels = halves()
    own, told = (inspect_scan(watched_halves(load), image, truth) for truth in (None, labels))
    assert own.source == "prediction"
    assert np.array_equal(own.labels.array, labels.array)
    assert own.selectivity["encoder 0", "channel"].eta2 == told.selectivity["encoder 0", "channel"].eta2


def test_patches_reach_the_network_as_the_axes_of_the_prepared_scan_lie(load, make_affine):
    image, labels = halves()
    affine = make_affine("IRP", degrees=(10, 0, 0))
    model = load(
        network="showing",
        options={"show": "channel"},
        structures=TWO,
        preprocessing=Preprocessing("ALS", intensity="none"),
        tile=(1, 6, 6),
        flat_axis=0,
    )
    found = inspect_scan(model, Volume(image.array, affine), Volume(labels.array, affine))
    assert found.selectivity["encoder 0", "channel"].means[:, 0] == pytest.approx([1, 2], abs=0.2)


# --------------------------------------------------------------------------------------------------------------- the outcome


def test_json_holds_everything_and_null_where_nothing_is_defined(load, tmp_path):
    image, labels = halves()
    result = inspect_scan(watched_halves(load, "constant"), image, labels)
    result.write_json(tmp_path / "inspect.json")
    content = json.loads((tmp_path / "inspect.json").read_text())
    (point,) = content["insertion_points"]
    assert (point["name"], point["block"], point["place"], point["depth"]) == ("encoder 0", "shown", "encoder", 0)
    assert point["gates"]["channel"]["median"] == pytest.approx(0.3, abs=1e-3)
    assert point["selectivity"]["channel"]["eta2"] is None
    assert point["selectivity"]["channel"]["channels"] == [None]
    assert point["selectivity"]["channel"]["mean_gate"] == {"dark": [pytest.approx(0.3)], "bright": [pytest.approx(0.3)]}
    assert content["early_and_late"]["first"]["insertion_point"] == "encoder 0"
    assert content["structures_from"] == "label"
    assert content["patches"]["by_structure"] == {"dark": 16, "bright": 16}


def test_first_deepest_and_last_are_told_apart(load, tmp_path):
    result = inspect_scan(load(network="unet", options=UNET), noise(12, 12, 12), patches=3)
    turning = {word: name for word, (name, _) in result.turning_points().items()}
    assert turning == {"first": "encoder 0", "deepest": "bottleneck 2", "last": "decoder 0"}
    result.write_maps(tmp_path)
    result.write_json(tmp_path / "inspect.json")
    content = json.loads((tmp_path / "inspect.json").read_text())
    maps = [point["maps"]["spatial"] for point in content["insertion_points"]]
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == sorted(maps)
    assert len(maps) == 5


def printed(result):
    console = Console(width=80, record=True, file=io.StringIO())
    result.render(console)
    return console.export_text()


def test_the_tables_fit_a_narrow_terminal(load):
    text = printed(inspect_scan(load(network="unet", options=UNET), noise(12, 12, 12), patches=3))
    assert "bottleneck 2 channel" in text
    assert "deepest" in text
    assert "the model's own" in text
    assert "…" not in text


def test_learnt_weights_are_reported_even_without_gates(load):
    result = inspect_scan(watched_halves(load, "choice"), *halves())
    assert result.recording.points[0].choice == {"cse": 0.25, "sse": 0.75}
    assert result.to_dict()["insertion_points"][0]["choice"] == {"cse": 0.25, "sse": 0.75}
    assert re.search(r"encoder 0 +│ sse 0.75, cse 0.25", printed(result))


# -------------------------------------------------------------------------------------------------------------- what it refuses


def test_what_makes_no_sense_is_refused_in_a_line(load):
    image, labels = halves()
    model = watched_halves(load)
    with pytest.raises(DataError, match="Expected the label on the grid of the scan, but got another one: shape"):
        inspect_scan(model, image, Volume(labels.array[:, 1:], np.eye(4)))
    with pytest.raises(DataError, match="Expected 1 channels"):
        inspect_scan(model, Volume(np.concatenate([image.array] * 2), np.eye(4)))
    with pytest.raises(UsageError, match="Expected `patches` to be at least 1, but got 0"):
        inspect_scan(model, image, labels, patches=0)
    with pytest.raises(UsageError, match=r"Expected attention with gates, but the network's \(shown\) has none"):
        inspect_scan(watched_halves(load, "nothing"), image, labels)


def test_a_scan_too_large_for_the_memory_is_refused(load, monkeypatch):
    model = watched_halves(load)
    monkeypatch.setattr("medseg_se.analysis.watched.free_memory", lambda: 1e3)
    with pytest.raises(DataError, match="for the gates of 1 attention blocks"):
        model.watch(halves()[0])


def test_the_network_is_left_as_it_was(load):
    model = watched_halves(load)
    network = model.network
    model.watch(halves()[0])
    assert model.network is network
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    monitored = Volume(np.full((1, 8, 8, 8), np.inf, dtype=np.float32), np.eye(4))
    with pytest.raises(DataError):
        model.watch(monitored)
    assert model.network is network
