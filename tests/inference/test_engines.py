import functools
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from medseg_se.errors import UsageError
from medseg_se.execution import lay_out_weights
from medseg_se.hardware import has_bfloat16
from medseg_se.inference.engines import base as engines_base
from medseg_se.inference.engines import checked as checked_module
from medseg_se.inference.engines import make_engine
from medseg_se.inference.engines.agreement import Agreement, compare, decide
from medseg_se.inference.engines.base import ConversionError, best_engine, best_precision
from medseg_se.inference.engines.cache import Cache
from medseg_se.inference.engines.checked import CheckedEngine
from medseg_se.inference.engines.conversion import source_digest
from medseg_se.networks import build_network

pytestmark = pytest.mark.engines

CPU = torch.device("cpu")
SHAPE, BATCH = (1, 8, 8, 8), 2
CONVERTED = ("openvino", "onnx")


@pytest.fixture(autouse=True, scope="module")
def _installed():
    for package in ("openvino", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)


@pytest.fixture
def bfloat16(monkeypatch):
    """Let this machine say that it has bfloat16, which torch emulates where it has not, and OpenVINO leaves out."""
    monkeypatch.setattr(engines_base, "has_bfloat16", lambda device: device.type == "cpu")


class Affine(nn.Module):
    """Three maps: the intensity, its opposite, and a constant; quick to convert, and sure of itself at large intensities."""

    def __init__(self, threshold=0.5):
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1.0, 0.0]).reshape(3, 1, 1, 1, 1))
            self.conv.bias.copy_(torch.tensor([0.0, 0.0, threshold]))

    def forward(self, x):
        return self.conv(x)


class Coarse(nn.Module):
    """Decides by what bfloat16 rounds away: in it, both maps are the same everywhere."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1e-3, -1e-3]).reshape(2, 1, 1, 1, 1))
            self.conv.bias.fill_(64.0)

    def forward(self, x):
        return self.conv(x)


def tiles(count=BATCH, shape=SHAPE, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def make(name, network=None, precision="fp32", batch=BATCH, cache=None, digest="weights", shape=SHAPE):
    return make_engine((network or Affine()).eval(), name, precision, shape, batch, CPU, cache, digest)


def checked(network=None, engine="auto", precision="auto", **options):
    given = {"shape": SHAPE, "batch": BATCH, "device": CPU, "digest": "weights", **options}
    return CheckedEngine((network or Affine()).eval(), engine, precision, **given)


# ------------------------------------------------------------------------------------------------------------------ the engines


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("attention", ["none", "scse", "simam", "coordinate", "eca"])
def test_engines_answer_as_torch_does(dims, attention, monkeypatch):
    module = sys.modules["medseg_se.inference.engines.conversion"]
    monkeypatch.setattr(module, "onnx_bytes", functools.cache(module.onnx_bytes))  # one export for both
    torch.manual_seed(0)
    network = build_network("unet", 2, 3, dims, channels=(4, 6), attention=attention).eval()
    lay_out_weights(network)
    shape = (2, 12, 10, 8)[: dims + 1]
    x = tiles(shape=shape)
    with torch.no_grad():
        expected = network(x)
    for name in ("torch", *CONVERTED):
        engine = make_engine(network, name, "fp32", shape, BATCH, CPU, None, "weights")
        assert (engine.name, engine.precision, engine.batch) == (name, "fp32", BATCH)
        with torch.inference_mode():  # as where tiles come from
            torch.testing.assert_close(engine(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", *CONVERTED])
def test_fewer_tiles_than_a_batch_are_answered_for_themselves(name):
    engine = make(name, batch=4)
    for count in (1, 3, 4):
        torch.testing.assert_close(engine(tiles(count)), Affine()(tiles(count)))


@pytest.mark.parametrize("name", CONVERTED)
def test_more_tiles_than_a_batch_are_a_mistake_of_the_caller(name):
    with pytest.raises(ValueError, match="at most 2 tiles"):
        make(name)(tiles(3))


@pytest.mark.parametrize("name", ["torch", *CONVERTED])
def test_several_threads_get_each_their_own_answer(name):
    torch.manual_seed(0)
    network = build_network("unet", 1, 3, 3, channels=(4, 6)).eval()
    engine = make(name, network)
    given = [tiles(1 + seed % 2, seed=seed) for seed in range(24)]
    with torch.no_grad():
        expected = [network(x) for x in given]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine, given))
    for answer, wanted in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONVERTED)
def test_an_answer_outlives_the_next_one(name):
    engine = make(name)
    first = engine(tiles(seed=1))
    kept = first.clone()
    engine(tiles(seed=2))
    assert torch.equal(first, kept)


def test_less_than_float32_rounds_but_no_more(bfloat16):
    for name in ("torch", "openvino"):
        engine = make(name, precision="bf16")
        assert engine.precision == "bf16"
        answer = engine(tiles()).float()
        torch.testing.assert_close(answer, Affine()(tiles()), rtol=0.02, atol=0.02)
    if has_bfloat16(CPU):
        assert not torch.equal(make("openvino", precision="bf16")(tiles()), make("openvino")(tiles()))


def test_float32_is_float32_whatever_the_processor_likes():
    torch.testing.assert_close(make("openvino")(tiles()), Affine()(tiles()), rtol=1e-6, atol=1e-6)


def test_compiled_shares_the_weights(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: torch._dynamo.optimize("eager", dynamic=False)(network))
    network = Affine().eval()
    engine = make("compiled", network, batch=4)
    torch.testing.assert_close(engine(tiles(3)), Affine()(tiles(3)))
    with torch.no_grad():
        network.conv.weight.mul_(2)
        torch.testing.assert_close(engine(tiles(4)), network(tiles(4)))


# --------------------------------------------------------------------------------------------------------- names and packages


def test_an_unknown_engine_is_answered_with_the_nearest_name():
    for ask in (make, lambda name: checked(engine=name)):
        with pytest.raises(UsageError, match=r"Unknown engine 'openvin'\. Did you mean 'openvino'\?"):
            ask("openvin")


def test_an_unknown_precision_is_answered_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"Unknown precision 'bf61'\. Did you mean 'bf16'\?"):
        checked(precision="bf61")


@pytest.mark.parametrize(
    ("engine", "precision", "package", "extra"),
    [
        ("openvino", "fp32", "openvino", "cpu"),
        ("onnx", "fp32", "onnxruntime", "onnx"),
        ("onnx", "fp32", "onnxscript", "onnx"),
        ("openvino", "int8", "nncf", "int8"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, engine, precision, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"'{package}', which is not installed.*medseg-se\[{extra}\]"):
        checked(engine=engine, precision=precision)


def test_auto_takes_openvino_on_a_cpu_where_it_is_installed(monkeypatch):
    assert best_engine(CPU) == "openvino"
    assert best_engine(torch.device("cuda")) == best_engine(torch.device("mps")) == "torch"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert best_engine(CPU) == "torch"


def test_auto_takes_what_the_hardware_multiplies_in(monkeypatch):
    for has, device, precision in (
        (True, "cpu", "bf16"),
        (False, "cpu", "fp32"),
        (False, "cuda", "fp16"),
        (False, "mps", "fp32"),
    ):
        monkeypatch.setattr(engines_base, "has_bfloat16", lambda device, has=has: has)
        assert best_precision("torch", torch.device(device)) == precision
    monkeypatch.setattr(engines_base, "has_bfloat16", lambda device: True)
    assert best_precision("onnx", CPU) == "fp32"
    assert best_precision("openvino", CPU) == "bf16"


@pytest.mark.parametrize(
    ("engine", "precision", "device", "message"),
    [
        ("onnx", "bf16", "cpu", "'onnx' to be one of fp32, but got 'bf16', which torch, compiled, openvino has"),
        ("openvino", "fp32", "cuda", "Add --device cpu"),
        ("onnx", "fp32", "mps", "computes on cpu"),
        ("torch", "fp16", "cpu", "does not compute in float16"),
        ("torch", "int8", "cpu", "which openvino has"),
    ],
)
def test_what_cannot_be_is_refused_before_any_scan_is_read(engine, precision, device, message):
    with pytest.raises(UsageError, match=message):
        checked(engine=engine, precision=precision, device=torch.device(device))


def test_bfloat16_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(engines_base, "has_bfloat16", lambda device: False)
    with pytest.raises(UsageError, match="does not compute in bfloat16"):
        checked(engine="torch", precision="bf16")


# ------------------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def conversions(monkeypatch):
    """Count how often a network is exported."""
    counted = []
    module = sys.modules["medseg_se.inference.engines.conversion"]
    original = module.onnx_bytes
    monkeypatch.setattr(module, "onnx_bytes", lambda *given: counted.append(given) or original(*given))
    return counted


@pytest.mark.parametrize("name", CONVERTED)
def test_a_network_is_converted_once(name, tmp_path, conversions):
    for _ in range(2):
        torch.testing.assert_close(make(name, cache=tmp_path / "cache")(tiles()), Affine()(tiles()))
    assert len(conversions) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("change", [{"digest": "others"}, {"batch": 1}, {"shape": (1, 8, 8, 4)}])
def test_what_was_converted_of_another_model_is_not_used(change, tmp_path, conversions):
    make("onnx", cache=tmp_path)
    make("onnx", cache=tmp_path, **change)
    assert len(conversions) == 2


def test_what_was_converted_of_other_code_is_not_used(tmp_path, monkeypatch):
    import importlib.util

    digests = []
    for number in (1, 2):
        (tmp_path / "mine.py").write_text(f"import torch\nclass Mine(torch.nn.Identity):\n    number = {number}\n")
        specification = importlib.util.spec_from_file_location(f"mine{number}", tmp_path / "mine.py")
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, f"mine{number}", module)
        specification.loader.exec_module(module)
        sys.modules["medseg_se.inference.engines.conversion"]._file_digest.cache_clear()
        digests.append(source_digest(module.Mine()))
    assert digests[0] != digests[1]


@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_a_damaged_entry_is_made_anew(name, damage, tmp_path, conversions):
    make(name, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    entry.write_bytes({"empty": b"", "cut": whole[:-9], "flipped": bytes(flipped)}[damage])
    torch.testing.assert_close(make(name, cache=tmp_path)(tiles()), Affine()(tiles()))
    assert len(conversions) == 2
    assert entry.read_bytes()[-50:] == whole[-50:]


def test_an_entry_that_is_whole_but_no_model_is_made_anew(tmp_path, conversions):
    make("openvino", cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    Cache(tmp_path).write(entry.name, b"nonsense" * 9)
    torch.testing.assert_close(make("openvino", cache=tmp_path)(tiles()), Affine()(tiles()))
    assert len(conversions) == 2


@pytest.mark.parametrize("name", CONVERTED)
def test_where_nothing_can_be_kept_it_goes_on_and_says_so(name, tmp_path):
    (tmp_path / "file").write_text("no folder")
    engine = checked(engine=name, precision="fp32", cache=tmp_path / "file" / "cache")
    torch.testing.assert_close(engine(tiles()), Affine()(tiles()))
    assert "could not be kept and is made anew at every start. Cannot write" in engine.notes[-1]
    assert len(engine.notes) == 2


# ------------------------------------------------------------------------------------------------------------------- the check


def compared(ours, theirs, count=1, regions=False):
    """Return how far two engines agree that answer every one of `count` tiles alike."""
    one, other = (decide(lambda x, answer=answer: answer, torch.zeros(count, 1), regions) for answer in (ours, theirs))
    return compare(one, other)


def test_agreement_counts_voxels_and_the_worst_class():
    ours = torch.zeros(1, 3, 1, 1, 4)
    theirs = torch.zeros(1, 3, 1, 1, 4)
    for place, (one, other) in enumerate([(0, 0), (1, 1), (1, 1), (1, 0)]):
        ours[0, one, 0, 0, place] = theirs[0, other, 0, 0, place] = 1
    assert compared(ours, theirs) == Agreement(0.75, pytest.approx(2 / 3), 2)
    assert compared(ours, ours, count=2) == Agreement(1.0, 1.0, 2)


def test_a_class_of_a_few_voxels_does_not_decide():
    ours, theirs = (torch.zeros(1, 2, 30, 30, 30) for _ in range(2))
    ours[0, 1, 0, 0, 0] = theirs[0, 1, 0, 0, 1] = 1  # one voxel each, and not the same
    assert compared(ours, theirs) == Agreement(1 - 2 / 27_000, pytest.approx(1, abs=1e-4), 2)
    ours[0, 1, :3, 1, 0] = theirs[0, 1, :3, 1, 1] = 1
    assert compared(ours, theirs).dice == 0


def test_agreement_of_regions_is_about_signs():
    ours = torch.tensor([[3.0, -1, 2, -5], [1.0, 1, -1, -1]]).reshape(1, 2, 1, 1, 4)
    theirs = torch.tensor([[0.1, -9, 1, -1], [1.0, -1, -1, -1]]).reshape(1, 2, 1, 1, 4)
    assert compared(ours, theirs, regions=True) == Agreement(0.75, pytest.approx(2 / 3), 2)


def test_what_is_not_finite_agrees_with_nothing():
    bad = torch.full((1, 2, 1, 1, 4), torch.nan)
    assert compared(bad, -torch.ones_like(bad), regions=True).voxels == 0


def test_a_share_just_short_of_a_limit_does_not_look_as_if_it_met_it():
    assert str(Agreement(0.9989999, 0.98999, 2)) == "99.899 % of the voxels, lowest Dice 0.9899"


def test_auto_is_openvino_in_bfloat16_if_that_agrees(bfloat16, tmp_path):
    engine = checked(cache=tmp_path)
    assert (engine.name, engine.precision, engine.notes) == ("openvino", "bf16", ())
    x = 100 * tiles()
    torch.testing.assert_close(engine(x), Affine()(x), rtol=0.02, atol=0.02)
    assert engine.notes == ("openvino in bf16 decides as torch in fp32 does: 100.000 % of the voxels, lowest Dice 1.0000.",)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_a_precision_that_disagrees_is_replaced_by_float32(bfloat16, name, tmp_path, conversions):
    if name == "openvino" and not has_bfloat16(CPU):
        pytest.skip("OpenVINO computes in float32 here, whatever it is asked for")
    x = tiles()
    for _ in range(2):  # the second time from the cache
        engine = checked(Coarse(), name, "bf16", cache=tmp_path)
        torch.testing.assert_close(engine(x), Coarse()(x), rtol=1e-6, atol=1e-6)
        assert (engine.name, engine.precision) == (name, "fp32")
        assert f"{name} in bf16 is not used" in engine.notes[0]
        assert "but at least 99.9% of the voxels and a Dice of 0.95 are asked for" in engine.notes[0]
        assert len(conversions) == (name == "openvino")


def test_the_verdict_is_reached_once(bfloat16, tmp_path, monkeypatch):
    checked(Coarse(), "torch", cache=tmp_path)(tiles())
    monkeypatch.setattr(checked_module, "compare", lambda *_: pytest.fail("compared again"))
    for network in (Coarse(), Coarse()):
        engine = checked(network, "torch", cache=tmp_path)
        engine(tiles())
        assert (engine.name, engine.precision, len(engine.notes)) == ("torch", "fp32", 1)


def test_a_verdict_about_tiles_that_hold_one_class_is_not_kept(tmp_path, bfloat16):
    x = tiles().sign()
    checked(Affine(threshold=100.0), cache=tmp_path, digest="others")(x)
    assert not list(tmp_path.glob("*.verdict"))
    checked(Affine(), cache=tmp_path)(x)
    (verdict,) = tmp_path.glob("*.verdict")
    assert json.loads(verdict.read_bytes()[16:])["found"] == 2


def test_an_engine_that_is_wrong_in_float32_is_replaced_by_torch(monkeypatch):
    monkeypatch.setattr(
        "medseg_se.inference.engines.onnx_engine.ONNXEngine.__call__", lambda self, tiles: -Affine()(tiles).detach()
    )
    engine = checked(engine="onnx")
    torch.testing.assert_close(engine(tiles()), Affine()(tiles()))
    assert (engine.name, engine.precision) == ("torch", "fp32")
    assert "onnx in fp32 is not used" in engine.notes[0]


def test_the_first_two_tiles_are_enough(monkeypatch):
    seen = []
    monkeypatch.setattr(checked_module, "compare", lambda ours, theirs: seen.append(len(theirs.tiles)) or Agreement(1, 1, 2))
    engine = checked(engine="onnx", batch=4)
    assert len(engine(tiles(4))) == 4
    assert seen == [2]


@pytest.mark.skipif(not has_bfloat16(CPU), reason="OpenVINO computes in float32 here, whatever it is asked for")
def test_the_network_answers_once_for_all_candidates(monkeypatch):
    asked = []
    monkeypatch.setattr(
        checked_module, "decide", lambda engine, *rest: asked.append((engine.name, engine.precision)) or decide(engine, *rest)
    )
    checked(Coarse(), "openvino", "bf16")(tiles())
    assert asked == [("openvino", "bf16"), ("torch", "fp32"), ("openvino", "fp32")]


def test_threads_that_come_at_once_make_one_engine(tmp_path, conversions):
    engine = checked(engine="onnx", cache=tmp_path)
    barrier = threading.Barrier(4)

    def ask(seed):
        barrier.wait()
        return engine(tiles(seed=seed))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    for seed, answer in enumerate(answers):
        torch.testing.assert_close(answer, Affine()(tiles(seed=seed)))
    assert len(conversions) == 1
    assert len(engine.notes) == 1


# ---------------------------------------------------------------------------------------------------- what cannot be converted


class Winding(Affine):
    """Asks about its values, which no recording can follow."""

    def forward(self, x):
        return self.conv(x) if float(x.sum()) > -1e9 else x


@pytest.mark.parametrize("name", CONVERTED)
def test_a_network_that_cannot_be_converted_says_so(name):
    with pytest.raises(ConversionError, match=r"cannot be converted to ONNX: .* Choose the engine torch\."):
        make(name, Winding())
    with pytest.raises(UsageError, match="cannot be converted"):
        checked(Winding(), name)(tiles())


def test_auto_answers_with_torch_what_cannot_be_converted(bfloat16):
    engine = checked(Winding())
    torch.testing.assert_close(engine(tiles()), Affine()(tiles()))
    assert engine.name == "torch"
    assert len(engine.notes) == 1
    assert engine.notes[0].startswith("torch answers in place of openvino. This network cannot be converted to ONNX")


def test_what_cannot_be_compiled_is_answered_by_torch(monkeypatch):
    def fail(network, **_):
        raise RuntimeError("no working C++ compiler. Install one")

    monkeypatch.setattr(torch, "compile", fail)
    engine = checked(engine="compiled", precision="fp32")
    torch.testing.assert_close(engine(tiles()), Affine()(tiles()))
    assert engine.name == "torch"
    assert "cannot be compiled here: no working C++ compiler" in engine.notes[0]


# ------------------------------------------------------------------------------------------------------------------------ int8


def test_int8_is_calibrated_once_and_agrees(tmp_path):
    pytest.importorskip("nncf")
    x = torch.from_numpy(np.random.default_rng(0).choice([-3.0, 3.0], (BATCH, *SHAPE)).astype(np.float32))
    for time, calibration in enumerate(([x], None, [0 * x])):
        engine = checked(precision="int8", cache=tmp_path, calibration=calibration)
        assert engine.prepare(x).precision == "int8"
        assert (engine.name, engine.precision) == ("openvino", "int8")
        assert torch.equal(engine(x).argmax(1), Affine()(x).argmax(1))
        *before, figures = engine.notes
        assert figures == "openvino in int8 decides as torch in fp32 does: 100.000 % of the voxels, lowest Dice 1.0000."
        assert len(before) == (time == 2)
    assert "was calibrated before, and that is used. Remove" in before[0]


def test_int8_that_disagrees_is_refused_with_the_figures(tmp_path):
    pytest.importorskip("nncf")
    with pytest.raises(UsageError, match=r"int8 does not decide as fp32 does: .* % of the voxels, .* a Dice of 0.99 are asked"):
        checked(Coarse(), precision="int8", cache=tmp_path, calibration=[tiles()])(tiles())
    assert not list(tmp_path.glob("*.int8"))  # so that other scans get a chance


def test_int8_needs_scans():
    pytest.importorskip("nncf")
    with pytest.raises(UsageError, match="scans to calibrate int8 with, but got none"):
        checked(precision="int8")(tiles())
    with pytest.raises(UsageError, match="lowest Dice of int8"):
        checked(precision="int8", least_dice=1.5)
