"""What every network of the table promises, whatever it is: one row in TINY, and all of this is asked of it."""

import copy
import io

import pytest
import torch

from medseg_se.attention import ATTENTION
from medseg_se.errors import UsageError
from medseg_se.networks import NETWORKS, build_network, find_network, kind_of
from medseg_se.networks.base import Network
from medseg_se.networks.placement import PLACES

IN_CHANNELS, CLASSES = 2, 3
ODD = (21, 18, 19)

TINY = {
    "denisnet": {"layers": (2, 1), "growth": 6, "stem_stride": 2, "attention": "none"},
    "denisnet_split": {"layers": (2, 1), "stem_stride": 2, "attention": "none"},
    "sqet": {"channels": (4, 6, 8), "depth": 2, "heads": 2, "convs": 1, "reduction": 4},
    "densenet": {"channels": (4, 6, 8)},
    "densenet_roy2018": {"channels": (4, 4, 4), "kernel_size": 3},
    "quicknat": {"channels": (4, 4, 4), "kernel_size": 3},
    "densenet121": {"blocks": (2, 1), "growth": 4, "stem_channels": 8},
    "densenet169": {"blocks": (2, 1), "growth": 4, "stem_channels": 8},
    "densenet201": {"blocks": (2, 1), "growth": 4, "stem_channels": 8},
    "inception": {"modules": (((4, 2, 4, 2, 4, 4),), ((4, 2, 4, 2, 4, 4), (4, 2, 4, 2, 4, 4))), "stem_channels": (4, 4, 8)},
    "mobilenetv2": {
        "channels": (8, 12, 12),
        "blocks": (1, 2, 1),
        "strides": (1, 2, 2),
        "expansion": (1, 2, 2),
        "stem_channels": 8,
        "head_channels": 16,
    },
    "mobilenext": {"channels": (8, 12, 16), "blocks": (1, 2, 1), "strides": (1, 2, 2), "reduction": 2, "stem_channels": 8},
    "resnet18": {"channels": (4, 6), "blocks": (1, 2), "strides": (1, 2)},
    "resnet18v2": {"channels": (4, 6), "blocks": (2, 1), "strides": (1, 2), "stem": "small"},
    "resnet34": {"channels": (4, 6), "blocks": (1, 2), "strides": (1, 2)},
    "resnet34v2": {"channels": (4, 6), "blocks": (2, 1), "strides": (1, 2)},
    "resnet50": {"channels": (4, 6), "blocks": (1, 2), "strides": (1, 2)},
    "resnet50v2": {"channels": (4, 6), "blocks": (2, 1), "strides": (1, 2)},
    "resnet101": {"channels": (4, 6), "blocks": (1, 2), "strides": (1, 2)},
    "resnet101v2": {"channels": (4, 6), "blocks": (2, 1), "strides": (1, 2)},
    "resnet152": {"channels": (4, 6), "blocks": (1, 2), "strides": (1, 2)},
    "resnet152v2": {"channels": (4, 6), "blocks": (2, 1), "strides": (1, 2)},
    "sdnet": {"channels": (4, 6, 8)},
    "sdnet_roy2018": {"channels": (4, 4, 4), "kernel_size": 3},
    "fc_densenet": {"layers": (2, 2), "bottleneck_layers": 2, "growth": 4, "stem_channels": 8},
    "fc_densenet56": {"layers": (1, 1), "bottleneck_layers": 1, "growth": 4, "stem_channels": 4},
    "fc_densenet67": {"layers": (1, 1), "bottleneck_layers": 1, "growth": 4, "stem_channels": 4},
    "fc_densenet103": {"layers": (1, 1), "bottleneck_layers": 1, "growth": 4, "stem_channels": 4},
    "fpn": {"channels": (4, 6, 8), "pyramid_channels": 4},
    "segresnet": {"channels": (8, 8, 16), "blocks": (1, 2, 1)},
    "unet": {"channels": (4, 6, 8)},
    "unet_resenc": {"channels": (4, 6, 8), "blocks": (1, 2, 1)},
    "unet_roy2018": {"channels": (4, 4, 4), "kernel_size": 3},
}
"""Options that make each network small: as few levels and channels as it can have."""

VARIANTS = {
    "unet-residual": ("unet", {"channels": (4, 6, 8), "residual": True, "norm": "batch"}),
    "unet-anisotropic": ("unet", {"channels": (4, 6, 8), "strides": ((2, 1, 2), 2), "kernel_size": ((1, 3, 3), 3, 3)}),
    "fc_densenet-anisotropic": (
        "fc_densenet",
        {"layers": (2, 1), "growth": 4, "stem_channels": 4, "strides": ((3, 1, 2), 2), "kernel_size": ((1, 3, 3), 3, 3)},
    ),
    "fpn-deep": ("fpn", {"channels": (4, 6, 8), "pyramid_channels": 4, "merge": "concat", "deep_supervision": True}),
    "fpn-residual": ("fpn", {"channels": (4, 6, 8), "pyramid_channels": 4, "residual": True, "stem_stride": 2}),
    "segresnet-anisotropic": ("segresnet", {"channels": (8, 8), "blocks": 1, "strides": ((2, 1, 3),), "norm": "none"}),
    "monai-dynunet": (
        "monai:DynUNet",
        {"filters": (4, 4, 6, 8), "strides": (1, 2, 2, 2), "deep_supervision": True, "deep_supr_num": 2},
    ),
    "monai-segresnet": ("monai:SegResNet", {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}),
    "unet-deep": ("unet", {"channels": (4, 4, 6, 8), "deep_supervision": True}),
}
"""Further options worth asking about, of the networks that have them."""

ROWS = {**{name: (name, options) for name, options in TINY.items()}, **VARIANTS}


def class_of(name):
    return getattr(find_network(name), "func", find_network(name))


def cases(rows):
    return [
        pytest.param(row, dims, id=f"{row}-{dims}d") for row in rows for dims in (2, 3) if dims in class_of(ROWS[row][0]).dims
    ]


FIRST_OF_CLASS = {class_of(name): name for name in reversed(TINY)}
"""One name for each class: what its presets differ in, these options have made small and alike."""

CLASSES_OF_NETWORKS = cases([*FIRST_OF_CLASS.values(), *VARIANTS])

each_network = pytest.mark.parametrize(("row", "dims"), cases(ROWS))
each_class = pytest.mark.parametrize(("row", "dims"), CLASSES_OF_NETWORKS)


def with_every_block():
    """Every class of networks with every block; two of three pairs, in turns, only where slow tests run as well."""
    for place, case in enumerate(CLASSES_OF_NETWORKS):
        for number, block in enumerate(sorted(ATTENTION)):
            marks = () if (place + number) % 3 == 0 else pytest.mark.slow
            yield pytest.param(*case.values, block, id=f"{block}-{case.id}", marks=marks)


def build(row, dims, seed=0, **options):
    name, tiny = ROWS[row]
    own = {key: flat(value) if dims == 2 else value for key, value in tiny.items()}
    torch.manual_seed(seed)
    return build_network(name, IN_CHANNELS, CLASSES, dims, **{**own, **options})


def flat(value):
    """Cut triples, which stand for the axes of a volume, down to two."""
    if isinstance(value, tuple) and any(isinstance(entry, tuple) for entry in value):
        return tuple(entry[-2:] if isinstance(entry, tuple) else entry for entry in value)
    return value


def scan(dims, size=ODD, seed=0, batch=2):
    return torch.randn(batch, IN_CHANNELS, *size[:dims], generator=torch.Generator().manual_seed(seed))


def as_tuple(outputs):
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs


def loss(outputs):
    """A sum in which every number of every output counts differently."""
    generator = torch.Generator().manual_seed(5)
    return sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in as_tuple(outputs))


def expected_shape(network, x):
    spatial = x.shape[2:] if network.kind == "segmentation" else ()
    return (len(x), CLASSES, *spatial)


def places_of(row, dims):
    """The places that the network has with these options, asked one by one."""
    return [place for place in PLACES if has_place(row, dims, place)]


def has_place(row, dims, place):
    try:
        build(row, dims, attention="cse", attention_at=(place,))
    except UsageError:
        return False
    return True


def wake(network):
    """Lift the hidden units of gates off the floor of their ReLU, where some rest by chance."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("squeeze.bias"):
                parameter.fill_(1.0)


def test_every_network_has_a_row():
    assert set(TINY) == set(NETWORKS)


@each_network
def test_says_what_it_is(row, dims):
    network = build(row, dims)
    assert isinstance(network, Network)
    assert network.kind == kind_of(find_network(ROWS[row][0]))
    assert "https://" in network.paper
    assert network.places
    assert set(network.places) <= set(PLACES)
    assert places_of(row, dims)
    assert set(places_of(row, dims)) <= set(network.places)


@each_network
def test_keeps_its_promise_of_shapes_at_odd_sizes(row, dims):
    network = build(row, dims).eval()
    with torch.no_grad():
        for size in (ODD, (32, 16, 24)):
            y = network(scan(dims, size))
            assert isinstance(y, torch.Tensor)
            assert y.shape == expected_shape(network, scan(dims, size))
            assert torch.isfinite(y).all()
        alone = network(scan(dims)[:1])
        torch.testing.assert_close(alone, network(scan(dims))[:1], rtol=1e-4, atol=1e-5)


@each_network
def test_every_parameter_is_named_once_and_gets_a_gradient(row, dims):
    network = build(row, dims, attention="scse", attention_at=places_of(row, dims)).train()
    wake(network)
    named = list(network.named_parameters(remove_duplicate=False))
    assert len({id(parameter) for _, parameter in named}) == len(named)
    outputs = as_tuple(network(scan(dims)))
    assert outputs[0].shape == expected_shape(network, scan(dims))
    loss(outputs).backward()
    assert [name for name, parameter in named if parameter.grad is None] == []
    assert all(torch.isfinite(parameter.grad).all() for _, parameter in named)


@pytest.mark.parametrize(("row", "dims"), cases(row for row, (_, options) in ROWS.items() if "deep_supervision" in options))
def test_every_level_of_deep_supervision_reaches_the_weights(row, dims):
    network = build(row, dims).train()
    first = next(network.parameters())
    outputs = network(scan(dims))
    assert len(outputs) > 1
    for y in outputs:
        (gradient,) = torch.autograd.grad(loss(y), first, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("row", "dims", "block"), with_every_block())
def test_takes_every_block(row, dims, block):
    network = build(row, dims, attention=block).train()
    wake(network)
    outputs = as_tuple(network(scan(dims)))
    assert outputs[0].shape == expected_shape(network, scan(dims))
    loss(outputs).backward()
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert missing == []
    if block != "none":
        known = {name: type(module) for name, module in build(row, dims).named_modules()}
        assert any(known.get(name) is not type(module) for name, module in network.named_modules())


@each_network
def test_attention_sits_where_it_is_asked_for_and_level_by_level(row, dims):
    for place in places_of(row, dims):
        network = build(row, dims, attention="scse", attention_at=(place,))
        assert len(list(network.parameters())) > len(list(build(row, dims).parameters())), place
    with pytest.raises(UsageError, match=r"`attention` to be one name or (\d+) of them") as caught:
        build(row, dims, attention=["none"] * 99)
    levels = int(str(caught.value).split(" of them")[0].split()[-1])
    plain = build(row, dims, attention=["none"] * levels)
    assert list(plain.state_dict()) == list(build(row, dims).state_dict())
    at = places_of(row, dims)
    every = build(row, dims, attention="cse", attention_at=at).state_dict().keys()
    one_by_one = [["cse" if level == chosen else "none" for level in range(levels)] for chosen in range(levels)]
    one_by_one = [build(row, dims, attention=names, attention_at=at).state_dict().keys() for names in one_by_one]
    added = [set(keys) - set(plain.state_dict()) for keys in one_by_one]
    assert set().union(*added) == set(every) - set(plain.state_dict())
    assert sum(map(len, added)) == len(set().union(*added))  # no level has another's


@each_network
def test_is_deterministic(row, dims):
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            network = build(row, dims, seed=3, attention="scse").train()
            torch.manual_seed(4)
            outputs = as_tuple(network(scan(dims)))
            loss(outputs).backward()
            results.append([*outputs, *(parameter.grad for parameter in network.parameters())])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@each_network
def test_saved_loaded_and_copied_it_answers_the_same(row, dims):
    network = build(row, dims, attention="coordinate").train()
    network(scan(dims, seed=1))  # moves running statistics
    network.eval()
    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    content.seek(0)
    other = build(row, dims, seed=9, attention="coordinate").eval()
    other.load_state_dict(torch.load(content, weights_only=True))
    with torch.no_grad():
        assert torch.equal(network(scan(dims)), other(scan(dims)))
        twin = copy.deepcopy(network)
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(twin(scan(dims)), other(scan(dims)))


@each_network
def test_runs_in_bfloat16_and_channels_last(row, dims):
    network = build(row, dims, attention="scse").eval()
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    x = scan(dims, (32, 32, 32))
    plain = network(x)  # with a graph, hence in the ordinary layout
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain.detach(), rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x).float()
    assert torch.nn.functional.cosine_similarity(rough.flatten(), plain.detach().flatten(), dim=0) > 0.99
    network = network.to(memory_format=layout)
    torch.testing.assert_close(network(x.to(memory_format=layout)), plain, rtol=1e-3, atol=1e-4)
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = as_tuple(network(x))
    loss([y.float() for y in outputs]).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@each_class
def test_exports(row, dims):
    network = build(row, dims, attention="scse").eval()
    with torch.no_grad():
        program = torch.export.export(network, (scan(dims, (32, 16, 19), batch=1),), strict=False)
        x = scan(dims, (32, 16, 19), seed=1, batch=1)
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-4)


@each_class
def test_onnx_runtime_agrees(row, dims, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = build(row, dims, attention="scse").eval()
    x = scan(dims, (32, 16, 19), seed=1, batch=1)
    with torch.no_grad():
        expected = network(x)
        program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    program.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), expected, rtol=1e-4, atol=1e-4)


@each_network
def test_refuses_another_scan_by_name(row, dims):
    network = build(row, dims)
    for shape in ((1, IN_CHANNELS + 1, *ODD[:dims]), (1, IN_CHANNELS, *(ODD + ODD)[: dims + 1])):
        with pytest.raises(UsageError, match=r"Expected the .* to get"):
            network(torch.zeros(shape))
