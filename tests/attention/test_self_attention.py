import copy
import itertools

import numpy as np
import pytest
import torch
from block_checks import assert_compiles, assert_follows, assert_robust, random_map, seeded, sigmoid
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from medseg_se.attention.self_attention import GatedSelfAttention, WindowAttention
from medseg_se.errors import UsageError

VARIANTS = [
    (GatedSelfAttention, {}),
    (GatedSelfAttention, {"gate": "head", "heads": 2}),
    (WindowAttention, {}),
    (WindowAttention, {"shift": True, "window": 3, "heads": 2}),
    (WindowAttention, {"shift": True, "window": 2, "bias": False, "gate": "channel"}),
]
every_dims = pytest.mark.parametrize("dims", [2, 3])
every_variant = pytest.mark.parametrize(("block", "options"), VARIANTS)


def lively(block, *arguments, **options):
    """A block whose last layer is not 0 and whose biases matter."""
    built = seeded(block, *arguments, **options)
    for name, parameter in built.named_parameters():
        if name.startswith(("project", "bias", "norm")):
            torch.nn.init.normal_(parameter, mean=0.2)
    return built


def window_of(place, size, window, shift):
    return tuple(
        0 if length <= w else (p - (w // 2 if shift else 0)) // w for p, length, w in zip(place, size, window, strict=True)
    )


def numpy_form(block):
    """The formula in NumPy, voxel by voxel: each looks at all others and skips those of other windows."""
    windows = getattr(block, "window", None)
    heads = block.heads

    def form(x, parameters):
        n, c, *size = x.shape
        places = list(itertools.product(*map(range, size)))
        y = x.copy()
        for sample in range(n):
            tokens = np.stack([x[sample, :, *place] for place in places])
            if c > 1:
                centred = tokens - tokens.mean(1, keepdims=True)
                tokens = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
                tokens = tokens * parameters["norm.weight"] + parameters["norm.bias"]
            projected = tokens @ parameters["queries_keys_values.weight"].T + parameters["queries_keys_values.bias"]
            q, k, v = np.moveaxis(projected.reshape(len(places), 3, heads, c // heads), 1, 0)
            for i, place in enumerate(places):
                near = list(range(len(places)))
                if windows is not None:
                    own = window_of(place, size, windows, block.shift)
                    near = [j for j in near if window_of(places[j], size, windows, block.shift) == own]
                gathered = np.zeros((heads, c // heads))
                for head in range(heads):
                    logits = np.array([q[i, head] @ k[j, head] for j in near]) / np.sqrt(c // heads)
                    if "bias" in parameters:
                        offsets = [np.subtract(place, places[j]) + np.array(windows) - 1 for j in near]
                        logits += [parameters["bias"][head, *offset] for offset in offsets]
                    weights = np.exp(logits - logits.max())
                    gathered[head] = weights @ v[near, head] / weights.sum()
                if "gate.weight" in parameters:
                    gate = sigmoid(parameters["gate.weight"] @ tokens[i] + parameters["gate.bias"])
                    gathered *= gate.reshape(heads, -1)
                y[sample, :, *place] += parameters["project.weight"] @ gathered.ravel() + parameters["project.bias"]
        return y

    return form


@every_dims
@every_variant
def test_they_follow_the_formula_however_few_the_channels_and_voxels(dims, block, options):
    for channels in (1, 2, 3, 6):
        for sizes in ((3, 5, 7) if dims == 2 else (2, 3, 7), (1, 1, 1), (4, 1, 6)):
            attention = lively(block, channels, dims, **options)
            assert_follows(numpy_form(attention), attention, 2 * random_map(channels, dims, sizes=sizes))


def test_windows_may_differ_between_axes():
    for shift in (False, True):
        attention = lively(WindowAttention, 4, 3, window=(1, 4, 2), shift=shift)
        assert_follows(numpy_form(attention), attention, random_map(4, 3, sizes=(3, 6, 5)))


@pytest.mark.parametrize("shift", [False, True])
def test_a_voxel_reaches_its_window_and_nothing_else(shift):
    block = lively(WindowAttention, 4, 2, window=4, shift=shift)
    x = random_map(4, 2, sizes=(9, 6))
    changed = x.clone()
    changed[:, 0, 5, 5] += 1
    reached = (block(changed) != block(x)).any(1)[0]
    rows, columns = (slice(2, 6), slice(2, 6)) if shift else (slice(4, 8), slice(4, 6))
    expected = torch.zeros(9, 6, dtype=torch.bool)
    expected[rows, columns] = True
    assert torch.equal(reached, expected)


def test_more_windows_than_a_kernel_takes_are_attended_in_turn(monkeypatch):
    attention, x = lively(WindowAttention, 4, 2), random_map(4, 2, sizes=(16, 20))
    expected = attention(x)
    monkeypatch.setattr("medseg_se.attention.self_attention._WINDOWS_AT_ONCE", 7)
    torch.testing.assert_close(attention(x), expected)


@every_dims
@every_variant
def test_gradients_are_those_of_finite_differences(dims, block, options):
    """The second ones with plain operations: the fused kernels have none."""
    attention = lively(block, 2, dims, **options).double()
    names, values = zip(*attention.named_parameters(), strict=True)
    x = random_map(2, dims, seed=1, batch=1, sizes=(2, 3, 2)).double().requires_grad_()

    def run(x, *values):
        return functional_call(attention, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *values))
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(run, (x, *values))


@every_dims
@every_variant
def test_awkward_maps_and_low_precision_train(dims, block, options):
    assert_robust(lambda channels: lively(block, channels, dims, **options), dims)


@every_variant
def test_low_precision_only_rounds(block, options):
    for kind in (torch.float16, torch.bfloat16):
        attention = lively(block, 16, 3, **options)
        with torch.no_grad():
            attention.project.weight.mul_(0.25)  # what is gathered is then of the size of the map, and so is its rounding
        for offset in (0.0, 100.0):
            x = (random_map(16, 3) + offset).to(kind)
            expected = copy.deepcopy(attention).double()(x.double())
            with torch.autocast("cpu", kind):
                y = attention(x)
            assert y.dtype == kind
            assert ((y - expected).abs() <= 4 * torch.finfo(kind).eps * (expected.abs() + 1)).all()


@pytest.mark.parametrize("block", [GatedSelfAttention, WindowAttention])
def test_compiling_changes_nothing(block):
    assert_compiles(lively(block, 4, 3), 3)


@every_variant
def test_autocast_leaves_float32_maps_in_float32(block, options):
    attention, x = lively(block, 8, 2, **options), random_map(8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(x)
    torch.testing.assert_close(y, attention(x), rtol=0, atol=0)


@every_dims
@every_variant
def test_they_begin_as_the_identity_and_learn(dims, block, options):
    attention, x = seeded(block, 4, dims, **options), random_map(4, dims)
    torch.testing.assert_close(attention(x), x, rtol=0, atol=0)
    optimizer = torch.optim.SGD(attention.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (attention(x) * random_map(4, dims, seed=1)).sum().backward()
        moved = {name for name, parameter in attention.named_parameters() if parameter.grad.abs().max() > 0}
        assert {"project.weight", "project.bias"} <= moved
        if step:
            assert moved == {name for name, _ in attention.named_parameters()}
        optimizer.step()


@every_dims
def test_the_gate_is_what_is_looked_at(dims):
    x = random_map(6, dims)
    for gate, different in (("channel", 6), ("head", 2)):
        attention = lively(GatedSelfAttention, 6, dims, heads=2, gate=gate)
        looked = attention.look(x)["voxel"]
        assert looked.shape == x.shape
        assert 0 < looked.min() < looked.max() < 1
        assert len(looked[0, :, *[1] * dims].unique()) == different
        with torch.no_grad():
            attention.project.weight.copy_(torch.eye(6))
            attention.project.bias.zero_()
            closed = copy.deepcopy(attention)
            closed.gate.weight.zero_()
            closed.gate.bias.fill_(50.0)  # all gates at 1
        torch.testing.assert_close(attention(x) - x, (closed(x) - x) * looked, rtol=1e-4, atol=1e-5)
    assert WindowAttention(6, dims).look(x) == {}
    assert WindowAttention(6, dims, gate="head").look(x)["voxel"].shape == x.shape


@every_variant
def test_a_volume_of_one_slice_gives_what_the_slice_gives(block, options):
    """Of the biases only those between voxels of one slice are used."""
    flat, deep = (lively(block, 4, dims, **options) for dims in (2, 3))
    state = flat.state_dict()
    if "bias" in state:
        state["bias"] = deep.bias.detach().clone()
        state["bias"][:, deep.window[0] - 1] = flat.bias.detach()
    deep.load_state_dict(state)
    x = random_map(4, 2)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x), rtol=1e-5, atol=1e-6)


@every_dims
def test_attention_over_the_whole_map_does_not_care_where_voxels_are(dims):
    attention, x = lively(GatedSelfAttention, 4, dims), random_map(4, dims)
    torch.testing.assert_close(attention(x.flip(2, 3)), attention(x).flip(2, 3), rtol=1e-5, atol=1e-5)


@every_variant
def test_they_run_without_memory_on_the_meta_device(block, options):
    x = random_map(4, 3, sizes=(8, 9, 10)).to("meta")
    assert lively(block, 4, 3, **options).to("meta")(x).shape == x.shape


@pytest.mark.parametrize(("channels", "heads", "expected"), [(6, 4, 3), (8, 4, 4), (7, 4, 1), (1, 4, 1), (2, 16, 2)])
def test_heads_are_reduced_to_a_number_that_divides_the_channels(channels, heads, expected):
    assert GatedSelfAttention(channels, 2, heads=heads).heads == expected


def test_too_many_voxels_are_refused_with_a_way_out():
    attention = GatedSelfAttention(2, 3, max_voxels=60)
    with pytest.raises(UsageError) as error:
        attention(torch.zeros(1, 2, 3, 4, 6))
    message = str(error.value)
    assert "at most 60 voxels (`max_voxels`), but got 3 × 4 × 6 = 72" in message
    assert "window attention" in message
    with pytest.raises(UsageError):
        attention.look(torch.zeros(1, 2, 3, 4, 6))
    assert attention(torch.zeros(1, 2, 3, 4, 5)).shape == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (GatedSelfAttention, {"heads": 0}, "`heads` to be at least 1, but got 0"),
        (GatedSelfAttention, {"gate": "none"}, "Unknown gate 'none'. Valid names: channel, head."),
        (GatedSelfAttention, {"max_voxels": 0}, "`max_voxels` to be at least 1, but got 0"),
        (WindowAttention, {"gate": "chanel"}, "Unknown gate 'chanel'. Did you mean 'channel'?"),
        (WindowAttention, {"window": 0}, "`window` to be a positive whole number or 2 of them, but got 0"),
        (WindowAttention, {"window": (2, 2, 2)}, "`window` to be a positive whole number or 2 of them, but got (2, 2, 2)"),
    ],
)
def test_a_wrong_argument_is_refused(block, options, message):
    with pytest.raises(UsageError) as error:
        block(8, 2, **options)
    assert message in str(error.value)


@every_variant
def test_a_wrong_map_is_refused(block, options):
    for shape in ((1, 5, 3, 3), (1, 4, 3), (1, 4, 0, 3)):
        with pytest.raises(UsageError) as error:
            block(4, 2, **options)(torch.zeros(shape))
        assert str(shape) in str(error.value)
