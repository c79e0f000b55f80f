import itertools

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

from medseg_se.errors import UsageError
from medseg_se.networks import NETWORKS, UNet, build_network

PLACES = UNet.places
every_dims = pytest.mark.parametrize("dims", [2, 3])
ODD = (11, 13, 9)


def build(dims, seed=0, **options):
    torch.manual_seed(seed)
    return UNet(2, 3, dims, **{"channels": (4, 6, 8), **options})


def scan(dims, size=ODD, seed=0, batch=2):
    return torch.randn(batch, 2, *size[:dims], generator=torch.Generator().manual_seed(seed))


def weighted_sum(outputs):
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    generator = torch.Generator().manual_seed(5)
    return sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs)


def dead_parameters(net, x):
    """Names of the parameters that get no gradient but rounding."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("squeeze.bias"):
                parameter.fill_(1.0)  # no hidden unit of a gate rests below its ReLU by chance
    net.double()
    weighted_sum(net(x.double())).backward()
    largest = {name: 0.0 if p.grad is None else p.grad.abs().max().item() for name, p in net.named_parameters()}
    return {name for name, value in largest.items() if value < 1e-10 * max(largest.values())}


COMBINATIONS = [
    (residual, attention, place)
    for residual, attention, place in itertools.product((False, True), ("cse", "sse", "scse"), PLACES)
    if residual or place not in ("residual", "after_sum")
]


@every_dims
@pytest.mark.parametrize(("residual", "attention", "place"), COMBINATIONS)
def test_every_combination_keeps_the_size_and_trains_every_parameter(dims, residual, attention, place):
    net = build(dims, residual=residual, attention=attention, attention_at=(place,))
    plain = build(dims, residual=residual)
    assert sum(p.numel() for p in net.parameters()) > sum(p.numel() for p in plain.parameters())
    for size in ((8, 12, 16), ODD):
        x = scan(dims, size)
        assert net(x).shape == (2, 3, *size[:dims])
    dead = dead_parameters(net, x)
    # After instance normalisation the channel means of a residual are 0 at first, so their weights have no gradient yet.
    slot = "before_act" if place == "pre_activation" else "before_sum"
    resting = {name for name, _ in net.named_parameters() if slot in name and name.endswith("squeeze.weight")}
    assert dead == resting


@every_dims
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_every_parameter_trains_with_attention_in_many_places(dims, norm):
    options = {"residual": True, "attention": "scse", "deep_supervision": True, "activation": "silu"}
    places = ("encoder", "bottleneck", "decoder", "skip", "residual")
    net = build(dims, norm=norm, channels=(4, 6, 6, 8), attention_at=places, **options)
    assert dead_parameters(net, scan(dims, (20, 17, 18))) == set()


@every_dims
def test_in_evaluation_only_the_deep_heads_rest(dims):
    net = build(dims, deep_supervision=True).eval()
    dead = dead_parameters(net, scan(dims))
    assert dead == {"deep_heads.0.weight", "deep_heads.0.bias"}


@every_dims
def test_the_same_seed_gives_the_same_network_outputs_and_gradients(dims):
    results = []
    for _ in range(2):
        net = build(dims, seed=3, attention="scse", dropout=0.2, residual=True)
        torch.manual_seed(4)
        y = net(scan(dims))
        weighted_sum(y).backward()
        results.append([y, *(parameter.grad for parameter in net.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert not torch.equal(build(dims, seed=4)(scan(dims)), build(dims, seed=3)(scan(dims)))


@every_dims
@pytest.mark.parametrize(
    "off",
    [
        {"attention": "none", "attention_at": PLACES, "attention_options": {"reduction": 2}},
        {"attention": ["none"] * 3},
        {"attention": "scse", "attention_at": ()},
        {"attention": ["none", "none", "scse"], "attention_at": ("encoder", "decoder", "skip")},
    ],
)
def test_attention_that_is_off_is_the_network_without_it(dims, off):
    plain, other = build(dims), build(dims, **off)
    assert list(plain.state_dict()) == list(other.state_dict())
    assert torch.equal(plain(scan(dims)), other(scan(dims)))


@every_dims
@pytest.mark.parametrize("residual", [False, True])
def test_open_gates_change_nothing(dims, residual):
    places = PLACES if residual else [place for place in PLACES if place not in ("residual", "after_sum")]
    net = build(dims, residual=residual, attention="cse", attention_at=places)
    plain = build(dims, residual=residual)
    state = plain.state_dict()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if "excite" in name:
                value.fill_(0.0 if name.endswith("weight") else 50.0)  # gates of 1
            elif "squeeze" not in name:
                value.copy_(state[name])
    torch.testing.assert_close(net(scan(dims)), plain(scan(dims)), rtol=1e-6, atol=1e-6)


# -------------------------------------------------------------------------------------------------- architecture and its size


@every_dims
@pytest.mark.parametrize("anisotropic", [False, True])
def test_plain_network_is_monais_dynunet(dims, anisotropic):
    strides = [1, 2, [1, 2, 2][-dims:]] if anisotropic else [1, 2, 2]
    kernels = [[1, 3, 3][:dims]] * 3 if anisotropic else [3, 3, 3]
    net = build(dims, strides=strides[1:], kernel_size=kernels)
    norm = ("INSTANCE", {"affine": True})
    oracle = DynUNet(
        dims, 2, 3, kernels, strides, strides[1:], filters=[4, 6, 8], norm_name=norm, res_block=False, trans_bias=True
    )
    pairs = [(net.encoder[0].block, oracle.input_block), (net.encoder[1].block, oracle.downsamples[0])]
    pairs += [(net.bottleneck, oracle.bottleneck)]
    pairs += [(ours.block, theirs.conv_block) for ours, theirs in zip(net.decoder, oracle.upsamples, strict=True)]
    with torch.no_grad():
        for ours, theirs in pairs:
            for unit, conv, norm in zip(ours.units, (theirs.conv1, theirs.conv2), (theirs.norm1, theirs.norm2), strict=True):
                conv.conv.weight.copy_(unit.conv.weight)
                unit.norm.weight.uniform_(0.5, 2)
                unit.norm.bias.uniform_(-1, 1)
                norm.load_state_dict(unit.norm.state_dict())
        for ours, theirs in zip(net.decoder, oracle.upsamples, strict=True):
            theirs.transp_conv.conv.load_state_dict(ours.up.state_dict())
            # MONAI joins (up, skip), we join (skip, up).
            skip, up = ours.block.units[0].conv.weight.chunk(2, dim=1)
            theirs.conv_block.conv1.conv.weight.copy_(torch.cat([up, skip], dim=1))
        oracle.output_block.conv.conv.load_state_dict(net.head.state_dict())
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in oracle.parameters())
    x = scan(dims, (16, 12, 8))
    torch.testing.assert_close(net(x), oracle(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dims", "attention", "expected"),
    [
        # encoder (72+8)+(144+8), bottleneck (288+16)+(576+16), up 128+4, decoder (288+8)+(144+8), head 12+3
        (2, "none", 232 + 896 + 132 + 448 + 15),
        # encoder (216+8)+(432+8), bottleneck (864+16)+(1728+16), up 256+4, decoder (864+8)+(432+8), head 12+3
        (3, "none", 664 + 2624 + 260 + 1312 + 15),
        # cSE of 4 channels 8+2+8+4, of 8 channels 32+4+32+8; sSE 4+1 and 8+1; twice at the upper level
        (2, "scse", 232 + 896 + 132 + 448 + 15 + 2 * (22 + 5) + (76 + 9)),
        (3, "scse", 664 + 2624 + 260 + 1312 + 15 + 2 * (22 + 5) + (76 + 9)),
    ],
)
def test_number_of_parameters_counted_by_hand(dims, attention, expected):
    net = UNet(2, 3, dims, channels=(4, 8), attention=attention)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@every_dims
def test_parameters_have_readable_names_and_are_registered_once(dims):
    net = build(dims, residual=True, attention=["scse", "cse", "sse"], attention_at=PLACES, deep_supervision=True)
    names = set(net.state_dict())
    assert {
        "encoder.0.block.attention.channel.squeeze.weight",
        "encoder.0.block.attention.spatial.project.bias",
        "encoder.1.block.attention.excite.bias",
        "encoder.1.block.blocks.0.before_sum.squeeze.weight",
        "encoder.0.skip.channel.excite.weight",
        "encoder.1.block.blocks.0.units.0.conv.weight",
        "encoder.1.block.blocks.0.shortcut.unit.conv.weight",
        "bottleneck.attention.project.weight",
        "bottleneck.blocks.0.units.1.norm.bias",
        "decoder.0.up.weight",
        "decoder.0.block.attention.squeeze.weight",
        "decoder.1.block.attention.channel.squeeze.weight",
        "head.weight",
        "deep_heads.0.bias",
    } <= names
    registered = [parameter for _, parameter in net.named_parameters(remove_duplicate=False)]
    assert len(registered) == len({id(parameter) for parameter in registered}) == len(names)


@every_dims
def test_each_level_has_its_own_attention(dims):
    net = build(dims, attention=["none", "cse", "scse"], attention_at=("encoder", "bottleneck", "decoder", "skip"))
    kinds = {
        "encoder": [type(level.block.attention).__name__ for level in net.encoder],
        "skip": [type(level.skip).__name__ for level in net.encoder],
        "bottleneck": [type(net.bottleneck.attention).__name__],
        "decoder": [type(level.block.attention).__name__ for level in net.decoder],
    }
    assert kinds == {
        "encoder": ["Identity", "ChannelSE"],
        "skip": ["Identity", "ChannelSE"],
        "bottleneck": ["ChannelSpatialSE"],
        "decoder": ["ChannelSE", "Identity"],
    }


@every_dims
def test_attention_on_the_skip_leaves_the_way_down_alone(dims):
    net = build(dims, attention="cse", attention_at=("skip",))
    seen = {}
    net.encoder[0].register_forward_hook(lambda module, inputs, outputs: seen.update(down=outputs[0], skip=outputs[1]))
    net.encoder[1].block.register_forward_hook(lambda module, inputs, outputs: seen.update(entering=inputs[0]))
    net.decoder[1].register_forward_hook(lambda module, inputs, outputs: seen.update(joined=inputs[1]))
    net(scan(dims))
    assert seen["entering"] is seen["down"]
    assert seen["joined"] is seen["skip"]
    torch.testing.assert_close(seen["skip"], net.encoder[0].skip(seen["down"]))
    assert not torch.equal(seen["skip"], seen["down"])


def test_strides_and_kernels_per_axis():
    net = UNet(1, 2, 3, channels=(2, 4, 4), strides=[[1, 2, 2], [2, 2, 3]], kernel_size=[[1, 3, 3], 3, [3, 3, 5]])
    shapes = []
    for module in (*net.encoder, net.bottleneck, *net.decoder):
        module.register_forward_hook(
            lambda module, inputs, outputs: shapes.append((outputs[0] if isinstance(outputs, tuple) else outputs).shape[2:])
        )
    assert net(torch.randn(1, 1, 6, 13, 25)).shape == (1, 2, 6, 13, 25)
    assert shapes == [(6, 13, 25), (6, 7, 13), (3, 4, 5), (6, 7, 13), (6, 13, 25)]
    kernels = [net.encoder[0].block, net.encoder[1].block, net.bottleneck, net.decoder[0].block, net.decoder[1].block]
    assert [tuple(block.units[1].conv.kernel_size) for block in kernels] == [
        (1, 3, 3),
        (3, 3, 3),
        (3, 3, 5),
        (3, 3, 3),
        (1, 3, 3),
    ]


@every_dims
def test_odd_sizes_are_cropped_at_the_far_end_where_the_strides_overshoot(dims):
    net = build(dims)
    seen = {}
    net.decoder[-1].up.register_forward_hook(lambda module, inputs, output: seen.update(enlarged=output))
    net.decoder[-1].block.register_forward_hook(lambda module, inputs, output: seen.update(joined=inputs[0]))
    net(scan(dims))
    enlarged = seen["enlarged"]
    assert enlarged.shape[2:] == tuple(length + 1 for length in ODD[:dims])
    for axis, length in enumerate(ODD[:dims], start=2):
        enlarged = enlarged.narrow(axis, 0, length)
    assert torch.equal(seen["joined"][:, 4:], enlarged)


# ---------------------------------------------------------------------------------------------------------- deep supervision


@every_dims
def test_deep_supervision_returns_every_decoder_level_in_training_only(dims):
    net = build(dims, channels=(4, 4, 6, 6), deep_supervision=True)
    x = scan(dims, (21, 18, 19))
    outputs = net.train()(x)
    sizes = [(21, 18, 19), (11, 9, 10), (6, 5, 5)]
    assert [tuple(output.shape) for output in outputs] == [(2, 3, *size[:dims]) for size in sizes]
    torch.testing.assert_close(net.eval()(x), outputs[0])
    plain = build(dims, channels=(4, 4, 6, 6))
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if not name.startswith("deep_heads")})
    torch.testing.assert_close(plain.train()(x), outputs[0])


def test_two_levels_have_nothing_deep_to_supervise():
    assert build(2, channels=(4, 6), deep_supervision=True)(scan(2)).shape == (2, 3, *ODD[:2])


# --------------------------------------------------------------------------------------------------------- saving, exporting


@every_dims
def test_saved_weights_give_the_same_outputs(tmp_path, dims):
    options = {"residual": True, "attention": "scse", "attention_at": PLACES, "norm": "batch"}
    net, other = build(dims, **options), build(dims, seed=1, **options)
    net(scan(dims))  # moves the statistics of the batch norm
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(net.eval()(scan(dims)), other.eval()(scan(dims)))


def test_exported_program_gives_the_same_outputs():
    net = build(3, attention="scse", deep_supervision=True, residual=True).eval()
    x = scan(3, batch=1)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_network_runs_in_low_precision_as_a_whole_and_under_autocast(kind):
    net = build(3, attention="scse", residual=True, attention_at=PLACES)
    expected = net(scan(3))
    with torch.autocast("cpu", kind):
        mixed = net(scan(3))
    whole = net.to(kind)(scan(3).to(kind))
    assert whole.dtype == kind
    for y in (mixed, whole):
        assert (y.float() - expected).abs().max() < 50 * torch.finfo(kind).eps * expected.abs().max()


@every_dims
def test_prediction_is_channels_last_and_training_is_not(dims):
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    net, seen = build(dims, attention="cse"), []
    net.encoder[0].register_forward_hook(lambda _, __, outputs: seen.append(outputs[0].is_contiguous(memory_format=layout)))
    net(scan(dims))
    with torch.no_grad():
        net(scan(dims))
        net(scan(dims, batch=1))
    assert seen == [False, True, True]


# -------------------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("options", "size", "fits"),
    [
        ({}, (4, 4), False),
        ({}, (3, 4), False),
        ({}, (4, 5), True),
        ({"strides": [[1, 2], [1, 2]]}, (1, 4), False),
        ({"strides": [[1, 2], [1, 2]]}, (2, 4), True),
        ({"norm": "group"}, (4, 4), True),
    ],
)
def test_a_patch_that_shrinks_to_one_voxel_is_refused(options, size, fits):
    net = build(2, **options)
    if fits:
        assert net(scan(2, size)).shape[2:] == size
    else:
        with pytest.raises(UsageError, match=r"more than one voxel .* shrinks to one .*take larger patches, fewer levels"):
            net(scan(2, size))


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        (2, (1, 2, 8, 8, 8), "(N, C, H, W) with C = 2"),
        (3, (1, 2, 8, 8), "(N, C, D, H, W) with C = 2"),
        (3, (2, 8, 8, 8), "(N, C, D, H, W) with C = 2"),
        (2, (1, 3, 8, 8), "(N, C, H, W) with C = 2"),
        (2, (1, 2, 8, 0), "at least one voxel along every axis"),
    ],
)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_wrong_scan_is_refused_with_both_shapes(dims, shape, expected, norm):
    with pytest.raises(UsageError) as error:
        build(dims, norm=norm)(torch.zeros(shape))
    assert expected in str(error.value)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "scsee"}, "Unknown attention 'scsee'. Did you mean 'scse'? Valid names: adaptive, bam, "),
        ({"attention": ["cse", "cse"]}, "`attention` to be one name or 3 of them, one a level, but got 2"),
        (
            {"attention": "cse", "attention_at": ["decoders"]},
            "'decoders'. Did you mean 'decoder'? Valid names: after_sum, bot",
        ),
        ({"attention": "cse", "attention_options": {"reductoin": 2}}, "'reductoin'. Did you mean 'reduction'?"),
        ({"attention": "sse", "attention_options": {"reduction": 2}}, "option of attention 'sse' 'reduction'"),
        (
            {"attention": "cse", "attention_at": ["residual"]},
            "decoder, skip, pre_activation, the places of this network",
        ),
        ({"norm": "instanse"}, "Unknown norm 'instanse'. Did you mean 'instance'? Valid names: batch, group, instance, none."),
        (
            {"activation": "reluu"},
            "Unknown activation 'reluu'. Did you mean 'relu'? Valid names: gelu, leaky_relu, prelu, relu",
        ),
        ({"dropout": 1.0}, "`dropout` to be at least 0 and below 1, but got 1.0"),
        ({"convs": 0}, "`convs` to be at least 1, but got 0"),
        ({"channels": (4,)}, "`channels` to hold at least two positive numbers, but got [4]"),
        ({"channels": (4, 0, 4)}, "`channels` to hold at least two positive numbers, but got [4, 0, 4]"),
        ({"strides": [2, 2, 2]}, "`strides` to be one number or 2 entries, but got 3"),
        ({"strides": [2, [2, 2, 2]]}, "`strides` to be a positive whole number or 2 of them, but got [2, 2, 2]"),
        ({"strides": 0}, "`strides` to be a positive whole number or 2 of them, but got 0"),
        ({"kernel_size": [3, 3]}, "`kernel_size` to be one number or 3 entries, but got 2"),
        ({"kernel_size": 4}, "`kernel_size` to be odd along every axis, but got (4, 4)"),
        ({"kernel_size": [3, 3, 2.5]}, "`kernel_size` to be a positive whole number or 2 of them, but got 2.5"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        build(2, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("unnet", 1, 2, 3), {}, "Unknown network 'unnet'. Did you mean 'unet'? Valid names: "),
        (
            ("unet", 1, 2, 3),
            {"chanels": (2, 4)},
            "option of network 'unet' 'chanels'. Did you mean 'channels'? Valid names: act",
        ),
        (("unet", 1, 2, 3), {"in_channel": 2}, "Unknown option of network 'unet' 'in_channel'."),
        (("unet", 1, 2, 4), {}, "`spatial_dims` to be 2 or 3, but got 4"),
        (("unet", 0, 2, 3), {}, "`in_channels` and `num_classes` to be at least 1, but got 0 and 2"),
        (("unet", 1, 0, 3), {}, "`in_channels` and `num_classes` to be at least 1, but got 1 and 0"),
    ],
)
def test_a_wrong_name_or_argument_of_a_network_is_refused(arguments, options, message):
    with pytest.raises(UsageError) as error:
        build_network(*arguments, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"attention": "cse", "attention_at": ()}, "to have a place for `attention` 'cse' with these options"),
        ("unet", {"attention": ["none"] * 4 + ["cse"], "attention_at": ["encoder"]}, "to have a place for `attention`"),
        ("unet", {"channels": (8, 16.5)}, "Network 'unet' cannot be made with channels (8, 16.5): "),
        ("monai:SwinUNETR", {"attention": "cse", "attention_at": ()}, "to have a place for `attention` 'cse'"),
    ],
)
def test_attention_that_would_sit_nowhere_and_values_of_another_type_are_refused(name, options, message):
    with pytest.raises(UsageError) as error:
        build_network(name, 1, 2, 3, **options)
    assert message in str(error.value)


def test_a_network_of_ones_own_is_built_by_name(monkeypatch):
    class Mine(nn.Conv2d):
        def __init__(self, in_channels, num_classes, spatial_dims, size=1):
            super().__init__(in_channels, num_classes, size)

    monkeypatch.setitem(NETWORKS, "mine", Mine)
    assert build_network("mine", 2, 3, 2, size=3)(torch.zeros(1, 2, 5, 5)).shape == (1, 3, 3, 3)
    with pytest.raises(UsageError, match="option of network 'mine' 'depth'"):
        build_network("mine", 2, 3, 2, depth=3)
