import copy

import numpy as np
import onnx.reference
import pytest
import torch
from golden import assert_same_as_golden, load_parameters, read_golden
from torch import nn
from torch.func import functional_call

from medseg_se.attention import ATTENTION, ChannelSE, build_attention
from medseg_se.errors import UsageError
from medseg_se.networks import UNet

BLOCKS = {
    "cse": ("cse", {}),
    "cse, r = 16, no bias": ("cse", {"reduction": 16, "bias": False}),
    "sse": ("sse", {}),
    "sse, no bias": ("sse", {"bias": False}),
    "scse, max": ("scse", {"aggregation": "max"}),
    "scse, add": ("scse", {"aggregation": "add"}),
    "scse, multiply": ("scse", {"aggregation": "multiply"}),
    "scse, concat": ("scse", {"aggregation": "concat"}),
    "simam": ("simam", {}),
}
OTHERS = [name for name in ATTENTION if name not in ("cse", "sse", "scse", "simam")]
BLOCKS_AND_OPTIONS = {
    **BLOCKS,
    **{name: (name, {}) for name in OTHERS},
    "se, residual": ("se", {"residual": True}),
    "window_attention, shifted and gated": ("window_attention", {"shift": True, "gate": "head", "window": 3}),
    "eca+coordinate": ("eca+coordinate", {}),
    "max(eca,scse)": ("max(eca,scse)", {}),
}
every_block = pytest.mark.parametrize("block", BLOCKS)
each_and_all = pytest.mark.parametrize("block", BLOCKS_AND_OPTIONS)
every_dims = pytest.mark.parametrize("dims", [2, 3])
low_precision = pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
NAMES = {"cSE": "channel", "sSE": "spatial", "fc1": "squeeze", "fc2": "excite", "conv": "project"}


def build(block, channels, dims, seed=0):
    torch.manual_seed(seed)
    name, options = BLOCKS_AND_OPTIONS[block]
    return build_attention(name, channels, dims, **options)


def random_map(channels, dims, seed=0, batch=2):
    return torch.randn(batch, channels, *(4, 5, 6)[:dims], generator=torch.Generator().manual_seed(seed))


def parameter_name(reference):
    return ".".join(NAMES.get(part, part) for part in reference.split("."))


@pytest.mark.parametrize(
    ("golden", "name", "options"),
    [
        ("cse2d_r2", "cse", {}),
        ("cse3d_r2", "cse", {}),
        ("sse2d", "sse", {}),
        ("sse3d", "sse", {}),
        ("scse2d_max", "scse", {}),
        ("scse2d_add", "scse", {"aggregation": "add"}),
        ("scse3d_max", "scse", {}),
        ("simam2d", "simam", {}),
        ("derived_simam3d", "simam", {}),
    ],
)
def test_blocks_give_the_outputs_and_gradients_of_the_authors_code(golden, name, options):
    tensors = read_golden(golden)
    block = build_attention(name, tensors["x"].shape[1], tensors["x"].ndim - 2, **options)
    load_parameters(block, tensors, parameter_name)
    assert_same_as_golden(block, tensors, parameter_name)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_form(name, options, x, parameters):
    """The formulas in NumPy, in float64."""
    ones = (1,) * (x.ndim - 2)

    def affine(layer, z):
        weight = parameters[f"{layer}.weight"]
        return z @ weight.reshape(weight.shape[0], -1).T + parameters.get(f"{layer}.bias", 0)

    if name == "cse":
        means = x.reshape(*x.shape[:2], -1).mean(2)
        gate = sigmoid(affine("excite", np.maximum(affine("squeeze", means), 0)))
        return x * gate.reshape(*gate.shape, *ones)
    if name == "sse":
        return x * np.moveaxis(sigmoid(affine("project", np.moveaxis(x, 1, -1))), -1, 1)
    if name == "simam":
        axes = tuple(range(2, x.ndim))
        squares = (x - x.mean(axes, keepdims=True)) ** 2
        variance = squares.sum(axes, keepdims=True) / max(1, x[0, 0].size - 1)
        return x * sigmoid(squares / (4 * (variance + 1e-4)) + 0.5)
    branches = []
    for branch, form in (("channel", "cse"), ("spatial", "sse")):
        own = {key.removeprefix(f"{branch}."): value for key, value in parameters.items() if key.startswith(branch)}
        branches.append(numpy_form(form, {}, x, own))
    if options["aggregation"] == "concat":
        return np.moveaxis(affine("join", np.moveaxis(np.concatenate(branches, 1), 1, -1)), -1, 1)
    return {"max": np.maximum, "add": np.add, "multiply": np.multiply}[options["aggregation"]](*branches)


@every_dims
@every_block
def test_blocks_follow_their_formulas_however_few_the_channels(block, dims):
    for channels in (1, 2, 3, 7, 16):
        attention = build(block, channels, dims).double()
        x = 2 * random_map(channels, dims).double()
        parameters = {key: value.detach().numpy() for key, value in attention.named_parameters()}
        expected = numpy_form(*BLOCKS[block], x.numpy(), parameters)
        np.testing.assert_allclose(attention(x).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "channels", "reduction", "expected"),
    [
        ("simam", 16, None, 0),
        ("cse", 16, 2, 16 * 8 + 8 + 8 * 16 + 16),
        ("cse", 3, 2, 3 + 1 + 3 + 3),
        ("cse", 2, 16, 2 + 1 + 2 + 2),
        ("cse", 1, 2, 1 + 1 + 1 + 1),
        ("scse", 64, 2, 64 * 32 + 32 + 32 * 64 + 64 + 64 + 1),
    ],
)
def test_number_of_parameters(name, channels, reduction, expected):
    for dims in (2, 3):
        block = build_attention(name, channels, dims, **({} if reduction is None else {"reduction": reduction}))
        assert sum(parameter.numel() for parameter in block.parameters()) == expected


@every_block
def test_a_volume_of_one_slice_gives_what_the_slice_gives(block):
    flat, deep = build(block, 6, 2), build(block, 6, 3, seed=1)
    state = {key: value.reshape(deep.state_dict()[key].shape) for key, value in flat.state_dict().items()}
    deep.load_state_dict(state)
    x = random_map(6, 2)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x), rtol=1e-6, atol=1e-7)


@every_dims
@every_block
def test_turning_the_map_turns_the_result(block, dims):
    attention, x = build(block, 5, dims), random_map(5, dims)
    y = attention(x)
    for order in [(3, 2)] if dims == 2 else [(4, 3, 2), (3, 4, 2)]:
        turned = attention(x.permute(0, 1, *order))
        torch.testing.assert_close(turned, y.permute(0, 1, *order), rtol=1e-5, atol=1e-6)


@every_dims
@each_and_all
def test_a_scan_is_not_influenced_by_its_batch(block, dims):
    attention, x = build(block, 5, dims).eval(), random_map(5, dims, batch=3)
    torch.testing.assert_close(attention(x)[1:2], attention(x[1:2]), rtol=1e-6, atol=1e-7)


@every_dims
def test_gates_are_shared_along_the_axes_they_squeeze(dims):
    x = random_map(5, dims)
    ratio = {name: build_attention(name, 5, dims)(x) / x for name in ("cse", "sse")}
    per_channel = ratio["cse"].flatten(2)
    torch.testing.assert_close(per_channel, per_channel[..., :1].expand_as(per_channel))
    torch.testing.assert_close(ratio["sse"], ratio["sse"][:, :1].expand_as(ratio["sse"]))
    assert per_channel.std(1).min() > 1e-3  # the gates differ along the other axes
    assert ratio["sse"].flatten(2).std(2).min() > 1e-3
    for gates in ratio.values():
        assert gates.min() > 0
        assert gates.max() < 1


@every_dims
@every_block
def test_gradients_are_those_of_finite_differences(block, dims):
    attention = build(block, 2, dims).double()
    names, values = zip(*attention.named_parameters(), strict=True) if list(attention.parameters()) else ((), ())
    x = torch.randn(
        2, 2, *(2, 3, 2)[:dims], dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )

    def run(x, *values):
        return functional_call(attention, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *values))


def test_max_takes_the_larger_map_and_not_the_larger_gate():
    block = build_attention("scse", 1, 2)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.spatial.project.bias.fill_(torch.logit(torch.tensor(0.9)))  # gates: 0.5 for the channel, 0.9 for the voxel
    x = torch.tensor([-10.0, 10.0]).reshape(1, 1, 1, 2)
    torch.testing.assert_close(block(x).flatten(), torch.tensor([-5.0, 9.0]))


# ------------------------------------------------------------------------------------------------------------------- numerics


def difficult_maps(channels, dims):
    shape = (2, channels, *(4, 5, 6)[:dims])
    return {
        "zeros": torch.zeros(shape),
        "constant": torch.full(shape, 3.0),
        "large constant": torch.full(shape, -1e4),
        "large": 1e4 * torch.tanh(random_map(channels, dims)),
        "one voxel": torch.full((1, channels, *[1] * dims), 2.5),
        "one large voxel": torch.full((1, channels, *[1] * dims), 1e4),
    }


@low_precision
@every_dims
@each_and_all
def test_low_precision_keeps_its_type_and_makes_no_nan(block, dims, kind):
    squared = block == "scse, multiply" and kind == torch.float16  # has no room for the square of a large value
    for channels, under_autocast in ((1, True), (32, True), (3, False), (32, False)):
        attention = build(block, channels, dims)
        if not under_autocast:
            attention.to(kind)
        for name, x in difficult_maps(channels, dims).items():
            with torch.autocast("cpu", kind, enabled=under_autocast):
                y = attention(x.to(kind))
            assert y.dtype == kind, name
            assert y.shape == x.shape, name
            assert not (y.isnan() if squared else ~y.isfinite()).any(), name


@every_dims
@every_block
def test_low_precision_makes_no_nan_at_the_weights_that_add_up_worst(block, dims):
    attention = build(block, 32, dims)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            parameter.fill_(1.0)
            if "excite" in name:
                parameter[::2] = -1.0
                parameter.view(parameter.shape[0], -1)[:, ::2] *= -1
    y = attention.half()(torch.full((1, 32, *[3] * dims), 6e4, dtype=torch.float16))
    assert not y.isnan().any()


@low_precision
@every_dims
@every_block
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_autocast_drifts_no_further_than_rounding(block, dims, kind, offset):
    limits = torch.finfo(kind)
    for seed in range(2):
        attention = build(block, 16, dims, seed=seed)
        x = (random_map(16, dims, seed=seed) + offset).to(kind)
        expected = copy.deepcopy(attention).double()(x.double())
        with torch.autocast("cpu", kind):
            y = attention(x)
        size = x.double().abs().clamp(min=1)
        rounding = 2.5 * limits.eps * expected.abs() + limits.smallest_normal * limits.eps * size**2
        assert ((y.double() - expected).abs() <= rounding).all()


@every_dims
@each_and_all
def test_autocast_leaves_float32_maps_in_float32(block, dims):
    attention, x = build(block, 4, dims).eval(), random_map(4, dims)
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, attention(x), rtol=0, atol=0)


@low_precision
@each_and_all
def test_low_precision_trains(block, kind):
    attention = build(block, 4, 3)
    x = random_map(4, 3).to(kind).requires_grad_()
    with torch.autocast("cpu", kind):
        attention(x).float().sum().backward()
    assert x.grad.dtype == kind
    for name, parameter in attention.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


@every_dims
@each_and_all
def test_blocks_run_without_memory_on_the_meta_device(block, dims):
    x = random_map(4, dims).to("meta")
    assert build(block, 4, dims).to("meta")(x).shape == x.shape


@each_and_all
def test_maps_need_not_be_contiguous(block):
    attention, x = build(block, 4, 3).eval(), random_map(4, 3)
    other = x.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(attention(other), attention(x), rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------------------- training and exporting


@every_dims
@each_and_all
def test_any_number_of_channels_trains_with_one_scan(block, dims):
    for channels in (1, 2, 3, 17):
        attention = build(block, channels, dims)
        for sizes in ((4, 5, 6), (1, 1, 1), (1, 3, 2)):
            x = torch.randn(1, channels, *sizes[:dims], requires_grad=True)
            attention(x).square().sum().backward()
            assert x.grad.isfinite().all()
        for name, parameter in attention.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def kept_for_backward(attention, x):
    """Return the numbers that are kept for the backward pass, each memory counted once, without parameters."""
    own = {parameter.data_ptr() for parameter in attention.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention(x)
    return sum(kept.values())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "block", [*BLOCKS, "se", "eca", "fca", "coordinate", "spse", "rgse", "project_excite", "max(eca,scse)"]
)
def test_training_keeps_no_map_besides_the_input(block, kind):
    attention = build(block, 16, 3)
    x = torch.randn(1, 16, 24, 24, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        assert kept_for_backward(attention, x.to(kind)) < 1.1 * x.numel()


@pytest.mark.parametrize("block", [name for name in BLOCKS_AND_OPTIONS if name not in ("fca_search", "bam", "gated_attention")])
def test_compiled_blocks_give_the_same_values_and_gradients(block):
    torch._dynamo.reset()
    attention = build(block, 8, 3)
    x = random_map(8, 3).requires_grad_()
    compiled = torch.compile(copy.deepcopy(attention), fullgraph=True, backend="aot_eager", dynamic=False)
    y, expected = compiled(x), attention(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    (gradient,), (wanted,) = (torch.autograd.grad(value.square().sum(), x) for value in (y, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@each_and_all
def test_blocks_can_be_exported(block):
    attention, x = build(block, 8, 3).eval(), random_map(8, 3)
    program = torch.export.export(attention, (x,))
    torch.testing.assert_close(program.module()(x), attention(x), rtol=1e-4, atol=1e-5)


SOON = ("scse, max", "coordinate", "window_attention")


@pytest.mark.parametrize(
    "block", [block if block in SOON else pytest.param(block, marks=pytest.mark.slow) for block in BLOCKS_AND_OPTIONS]
)
def test_blocks_can_be_exported_to_onnx(block):
    attention, x = build(block, 8, 3).eval(), random_map(8, 3)
    with torch.no_grad():
        program = torch.onnx.export(attention, (x,), dynamo=True, verbose=False)
        expected = attention(x).numpy()
    (y,) = onnx.reference.ReferenceEvaluator(program.model_proto).run(
        None, {program.model_proto.graph.input[0].name: x.numpy()}
    )
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", [*BLOCKS, "coordinate"])
def test_a_written_out_gradient_is_that_of_autograd(block):
    attention = build(block, 3, 3).eval().double()
    x, weights = random_map(3, 3).double().requires_grad_(), random_map(3, 3, seed=1).double()
    inputs = [x, *attention.parameters()]
    found = torch.autograd.grad((attention(x) * weights).sum(), inputs)
    expected = torch.autograd.grad((attention(x) * weights).sum(), inputs, create_graph=True)  # goes through autograd alone
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@every_dims
@every_block
def test_gradients_can_be_differentiated_again(block, dims):
    attention = build(block, 2, dims).double()
    names, values = zip(*attention.named_parameters(), strict=True) if list(attention.parameters()) else ((), ())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, *(2, 3, 2)[:dims], dtype=torch.float64, generator=generator, requires_grad=True)

    def run(x, *values):
        return functional_call(attention, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradgradcheck(run, (x, *values))


@each_and_all
def test_an_empty_batch_comes_back_empty(block):
    assert build(block, 4, 3).eval()(torch.zeros(0, 4, 3, 3, 3)).shape == (0, 4, 3, 3, 3)


@each_and_all
def test_looking_leaves_no_trace(block):
    attention, x = build(block, 4, 3), random_map(4, 3)
    parts = list(attention.modules())
    parts[-1].eval()
    modes, state = [part.training for part in parts], copy.deepcopy(attention.state_dict())
    gates = attention.look(x)
    assert [part.training for part in parts] == modes
    for name, value in attention.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, msg=name)
    for name, gate in gates.items():
        assert all(size in (1, full) for size, full in zip(gate.shape, x.shape, strict=True)), name
        assert gate.isfinite().all()
    with pytest.raises(UsageError):
        attention.look(x[:, :3])
    assert [part.training for part in parts] == modes


@pytest.mark.parametrize("block", ["sse", "scse, max", "coordinate", "project_excite", "bam", "max(eca,scse)", "adaptive"])
def test_second_gradients_exist_where_only_the_map_is_trained(block):
    attention = build(block, 2, 2).eval().double().requires_grad_(False)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(attention, (x,))


def test_a_block_that_changes_the_map_in_its_own_way_gets_its_own_gradient():
    class Mine(ChannelSE):
        def apply_gates(self, a, *gates, out=None):
            return torch.add(a, a * gates[0], out=out)

    assert torch.autograd.gradcheck(Mine(2, 2).double(), random_map(2, 2).double().requires_grad_())


# --------------------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        (2, (1, 4, 5, 6, 7), "(N, C, H, W) with C = 4"),
        (3, (1, 4, 5, 6), "(N, C, D, H, W) with C = 4"),
        (3, (4, 5, 6, 7), "(N, C, D, H, W) with C = 4"),
        (2, (1, 5, 6, 7), "(N, C, H, W) with C = 4"),
        (3, (1, 1, 5, 6, 7), "(N, C, D, H, W) with C = 4"),
        (2, (1, 4, 0, 7), "at least one voxel along every axis"),
        (3, (1, 4, 5, 6, 0), "at least one voxel along every axis"),
    ],
)
def test_a_wrong_map_is_refused_with_both_shapes(dims, shape, expected):
    for name in ATTENTION:
        with pytest.raises(UsageError) as error:
            build_attention(name, 4, dims)(torch.zeros(shape))
        assert expected in str(error.value)
        assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("scsee", 4, 2), {}, "Unknown attention 'scsee'. Did you mean 'scse'? Valid names: adaptive, bam, "),
        (("transformer", 4, 2), {}, "Unknown attention 'transformer'. Valid names: "),
        (
            ("cse", 4, 2),
            {"reducton": 2},
            "option of attention 'cse' 'reducton'. Did you mean 'reduction'? Valid names: bias, reduction.",
        ),
        (("sse", 4, 2), {"reduction": 2}, "Unknown option of attention 'sse' 'reduction'. Valid names: bias."),
        (
            ("scse", 4, 2),
            {"aggregation": "multiplied"},
            "Unknown aggregation 'multiplied'. Did you mean 'multiply'? Valid names: add, concat, max, multiply.",
        ),
        (("none", 4, 2), {"reduction": 2}, "'none' takes no options, but got reduction"),
        (("cse", 4, 1), {}, "`spatial_dims` to be 2 or 3, but got 1"),
        (("sse", 4, 4), {}, "`spatial_dims` to be 2 or 3, but got 4"),
        (("scse", 0, 2), {}, "`channels` to be at least 1, but got 0"),
        (("sse", 0, 2), {}, "`channels` to be at least 1, but got 0"),
        (("cse", 4, 2), {"reduction": 0}, "`reduction` to be at least 1, but got 0"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, options, message):
    with pytest.raises(UsageError) as error:
        build_attention(*arguments, **options)
    assert message in str(error.value)


def test_none_changes_nothing():
    x = random_map(3, 2)
    assert build_attention("none", 3, 2)(x) is x


# ------------------------------------------------------------------------------------------------------------------- plug-ins


class Dim(nn.Module):
    """A block of one's own."""

    def __init__(self, channels, spatial_dims, strength=0.5):
        super().__init__()
        self.gate = nn.Parameter(torch.full((1, channels, *[1] * spatial_dims), strength))

    def forward(self, x):
        return x * self.gate


@every_dims
def test_a_block_of_ones_own_works_in_a_network(monkeypatch, dims):
    monkeypatch.setitem(ATTENTION, "mine", Dim)
    net = UNet(1, 2, dims, channels=(4, 6), attention="mine", attention_options={"strength": 0.25})
    assert net.encoder[0].block.attention.gate.shape == (1, 4, *[1] * dims)
    net(random_map(1, dims)).square().sum().backward()
    gates = [parameter for name, parameter in net.named_parameters() if name.endswith("attention.gate")]
    assert len(gates) == 3
    assert all((gate == 0.25).all() and gate.grad.abs().min() > 0 for gate in gates)
    with pytest.raises(UsageError, match="option of attention 'mine' 'strengths'"):
        build_attention("mine", 4, dims, strengths=1)


def test_a_block_of_ones_own_may_take_any_option(monkeypatch):
    monkeypatch.setitem(ATTENTION, "mine", lambda channels, spatial_dims, **options: Dim(channels, spatial_dims, **options))
    assert (build_attention("mine", 2, 2, strength=0.125).gate == 0.125).all()
