import copy
import importlib.util
import inspect
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from monai.networks import nets
from torch import nn

from medseg_se.attention import ATTENTION
from medseg_se.errors import UsageError
from medseg_se.networks import build_network, find_network, kind_of
from medseg_se.networks.monai_networks import MONAI_NETWORKS

CLASSES = 3
LAYERS = (
    {"name": "conv_0", "n_features": 4, "kernel_size": 3},
    {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 2},
    {"name": "res_2", "n_features": 8, "kernels": (3, 3), "repeat": 1},
    {"name": "conv_1", "n_features": 8, "kernel_size": 1},
    {"name": "conv_2", "kernel_size": 1},
)
SMALL = {
    "UNet": {"channels": (4, 6, 8), "strides": (2, 2), "num_res_units": 2},
    "AttentionUnet": {"channels": (4, 6, 8), "strides": (2, 2)},
    "BasicUNet": {"features": (4, 4, 6, 8, 8, 4)},
    "BasicUNetPlusPlus": {"features": (4, 4, 6, 8, 8, 4)},
    "DynUNet": {"filters": (4, 6, 8), "strides": (1, 2, 2)},
    "SegResNet": {"init_filters": 8, "blocks_down": (1, 2, 1), "blocks_up": (1, 1), "act": "prelu"},
    "SegResNetDS": {"init_filters": 4, "blocks_down": (1, 1, 1)},
    "VNet": {},
    "HighResNet": {"layer_params": LAYERS},
    "FlexibleUNet": {"decoder_channels": (16, 8, 8, 4, 4)},
    "MedNeXt": {"init_filters": 4, "kernel_size": 3, "blocks_down": (1, 1), "blocks_up": (1, 1)},
    "UNETR": {"img_size": 32, "feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2},
    "SwinUNETR": {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4), "norm_name": "batch"},
    "DenseNet": {"init_features": 4, "growth_rate": 4, "block_config": (2, 1)},
    "ResNet": {"layers": (1, 1, 1, 1), "block_inplanes": (4, 4, 6, 8)},
    "SENet": {"layers": (1, 1, 1, 1)},
    "EfficientNetBN": {},
    "ViT": {"img_size": 32, "hidden_size": 16, "mlp_dim": 16, "num_heads": 2, "num_layers": 2},
}
"""Options that make each network small."""

ARGUMENTS = {
    "DynUNet": {"kernel_size": (3, 3, 3), "upsample_kernel_size": (2, 2)},
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
    "ResNet": {"block": "basic"},
    "SENet": {
        "block": "se_resnet_bottleneck",
        "groups": 1,
        "reduction": 16,
        "dropout_prob": None,
        "inplanes": 64,
        "downsample_kernel_size": 1,
        "input_3x3": False,
    },
    "EfficientNetBN": {"model_name": "efficientnet-b0", "pretrained": False},
    "ViT": {"patch_size": 16, "classification": True, "post_activation": ""},
}
"""What MONAI's classes need besides."""

STEPS = {
    4: ("UNet", "AttentionUnet", "DynUNet", "SegResNet", "SegResNetDS", "MedNeXt"),
    1: ("HighResNet", "ResNet", "SENet", "DenseNet"),
}
STEPS |= {16: ("BasicUNet", "BasicUNetPlusPlus", "VNet"), 32: ("FlexibleUNet", "UNETR", "SwinUNETR", "EfficientNetBN", "ViT")}
"""What must divide a size of up to 32 voxels."""

STRIDES = {
    "UNet": (2, 4, 4),
    "HighResNet": (1, 1, 1),
    "DenseNet": (4, 8),
    "ResNet": (2, 4, 8, 16),
    "SENet": (4, 8, 16, 32),
    "EfficientNetBN": (2, 4, 8, 16, 16, 32, 32),
}
"""Stride of the map at each level, where it is not 1, 2, 4 …"""

needs_einops = pytest.mark.skipif(importlib.util.find_spec("einops") is None, reason="needs the extra monai")
each_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_einops) if name in ("UNETR", "SwinUNETR", "ViT") else name for name in SMALL]
)
with_maps = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_einops) if name in ("UNETR", "SwinUNETR") else name for name in SMALL if name != "ViT"],
)
every_dims = pytest.mark.parametrize("dims", [2, 3])


def build(name, dims=2, seed=0, **options):
    torch.manual_seed(seed)
    return build_network(f"monai:{name}", 2, CLASSES, dims, **{**SMALL.get(name, {}), **options})


def build_monais(name, dims=2, seed=0, **options):
    torch.manual_seed(seed)
    cls = getattr(nets, name)
    known = inspect.signature(cls).parameters
    channels = "n_input_channels" if "n_input_channels" in known else "in_channels"
    classes = "out_channels" if "out_channels" in known else "num_classes"
    return cls(**{"spatial_dims": dims, channels: 2, classes: CLASSES, **SMALL[name], **ARGUMENTS.get(name, {}), **options})


def scan(dims, size=(32, 32, 32), seed=0, batch=2):
    return torch.randn(batch, 2, *size[:dims], generator=torch.Generator().manual_seed(seed))


def last(output):
    """MONAI's logits, out of whatever they come with."""
    if isinstance(output, tuple):
        return output[0]
    return output[-1] if isinstance(output, list) else output


class Twice(nn.Module):
    """Multiply by a weight that is 2, and remember the map."""

    def __init__(self, channels, spatial_dims):
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels, *[1] * spatial_dims), 2.0))

    def forward(self, x):
        self.seen = x.shape
        return x * self.factor


@pytest.fixture
def twice(monkeypatch):
    monkeypatch.setitem(ATTENTION, "twice", Twice)


# -------------------------------------------------------------------------------------------------------- as MONAI makes them


@every_dims
@each_network
def test_answers_are_monais(name, dims):
    ours, theirs = build(name, dims).eval(), build_monais(name, dims).eval()
    with torch.no_grad():
        expected = last(theirs(scan(dims, batch=1)))
        assert torch.equal(ours(scan(dims, batch=1)), expected)
    known = theirs.state_dict()
    assert all(torch.equal(value, known[key]) for key, value in ours.network.state_dict().items())
    assert ours.kind == kind_of(find_network(f"monai:{name}")) == ("segmentation" if expected.ndim > 2 else "classification")


@pytest.mark.parametrize(("step", "name"), [(step, name) for step, names in STEPS.items() for name in names])
def test_other_sizes_are_lengthened_with_their_last_voxels_and_cut_back(name, step):
    if name in ("UNETR", "SwinUNETR", "ViT"):
        pytest.importorskip("einops")
    ours, theirs, size = build(name).eval(), build_monais(name).eval(), (21, 18)
    missing = [amount for length in reversed(size) for amount in (0, -length % step)]
    with torch.no_grad():
        expected = last(theirs(F.pad(scan(2, size), missing, mode="replicate")))
        if expected.ndim > 2:
            expected = expected[..., : size[0], : size[1]]
        assert torch.equal(ours(scan(2, size)), expected)


SAME = (
    "DenseNet121",
    "DenseNet169",
    "MedNeXtS",
    "MedNeXtB",
    "MedNeXtM",
    "MedNeXtL",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
)
SAME += ("SENet154", "SEResNet50", "SEResNet101", "SEResNext50", "SEResNext101")


@pytest.mark.parametrize("name", SAME)
def test_presets_are_monais_of_that_name(name):
    with torch.device("meta"):
        ours = find_network(f"monai:{name}")(2, CLASSES, 2).network
        channels = {"n_input_channels" if name.startswith("resnet") else "in_channels": 2}
        classes = {"num_classes" if name.startswith(("resnet", "SE")) else "out_channels": CLASSES}
        theirs = getattr(nets, name)(spatial_dims=2, **channels, **classes)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert list(map(str, ours.children())) == list(map(str, theirs.children()))  # the layers that have no weights too


@every_dims
def test_deep_outputs_of_dynunet_are_monais_before_enlarging(dims):
    options = {"filters": (4, 4, 6, 8), "strides": (1, 2, 2, 2), "deep_supervision": True, "deep_supr_num": 2}
    ours = build("DynUNet", dims, **options)
    theirs = build_monais("DynUNet", dims, **options, kernel_size=(3,) * 4, upsample_kernel_size=(2,) * 3)
    outputs, expected = ours(scan(dims)), theirs(scan(dims)).unbind(1)
    assert [output.shape[-1] for output in outputs] == [32, 16, 8]
    for output, enlarged in zip(outputs, expected, strict=True):
        torch.testing.assert_close(F.interpolate(output, enlarged.shape[2:]), enlarged)
    assert isinstance(ours.eval()(scan(dims)), torch.Tensor)


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("DynUNet", {"filters": (4, 4, 8), "deep_supervision": True}, [(13, 9), (7, 5)]),
        ("SegResNetDS", {"dsdepth": 2}, [(13, 9), (7, 5)]),
        ("MedNeXt", {"deep_supervision": True}, [(13, 9), (7, 5), (4, 3)]),
        ("BasicUNetPlusPlus", {"deep_supervision": True, "norm": "batch"}, [(13, 9)] * 4),
    ],
)
def test_deep_outputs_come_from_the_finest_down_and_the_first_is_that_of_evaluation(name, options, sizes):
    norm = {"SegResNetDS": {"norm": ("instance", {})}}.get(name, {})
    network = build(name, **options, **norm)
    outputs = network(scan(2, (13, 9)))
    assert [tuple(output.shape[2:]) for output in outputs] == sizes
    if name != "BasicUNetPlusPlus":  # whose statistics differ in training
        torch.testing.assert_close(network.eval()(scan(2, (13, 9))), outputs[0])


# ------------------------------------------------------------------------------------------------------------------ attention


@with_maps
def test_attention_sits_on_maps_of_its_level(name, twice):
    network = build(name, attention="twice").eval()
    size = (32, 32) if name == "UNETR" else (64, 32)
    with torch.no_grad():
        network(scan(2, size, batch=1))
    found = {tuple(path.split(".")): block.seen for path, block in network.named_modules() if isinstance(block, Twice)}
    strides = STRIDES.get(name, (1, 2, 4, 8, 16, 32))
    assert {place for place, _, _ in found} == set(network.places)
    for (place, level, leaf), shape in found.items():
        assert leaf == "attention"
        assert shape[2:] == torch.Size(length // strides[int(level)] for length in size), (place, level)
    bottlenecks = [int(level) for place, level, _ in found if place == "bottleneck"]
    assert bottlenecks in ([], [max(int(level) for _, level, _ in found)])


@pytest.mark.parametrize(
    ("name", "place", "level", "module"),
    [
        ("UNet", "encoder", 1, lambda net: net.model[1].submodule[0]),
        ("UNet", "bottleneck", 2, lambda net: net.model[1].submodule[1].submodule),
        ("UNet", "decoder", 0, lambda net: net.model[1].submodule[2]),
        ("AttentionUnet", "decoder", 0, lambda net: net.model[1]),
        ("DynUNet", "decoder", 0, lambda net: net.upsamples[1]),
        ("SegResNet", "decoder", 1, lambda net: net.up_layers[0]),
        ("BasicUNetPlusPlus", "decoder", 1, lambda net: net.upcat_1_3),
        ("HighResNet", "encoder", 1, lambda net: net.blocks[2]),
        ("FlexibleUNet", "encoder", 1, lambda net: net.encoder._blocks[0]),
        pytest.param("SwinUNETR", "encoder", 4, lambda net: net.swinViT.layers3[0], marks=needs_einops),
        ("DenseNet", "encoder", 0, lambda net: net.features.denseblock1),
    ],
)
def test_attention_replaces_the_output_of_its_module(name, place, level, module, twice):
    levels = 1 + max(stage.level for stage in build(name).stages())
    names = ["twice" if here == level else "none" for here in range(levels)]
    network, plain = build(name, attention=names, attention_at=(place,)).eval(), build(name).eval()
    assert list(network.state_dict())[len(plain.state_dict()) :] == [f"{place}.{level}.attention.factor"]
    x = scan(2)
    before = plain(x)
    module(plain.network).register_forward_hook(lambda module, inputs, output: 2 * output)
    assert torch.equal(network(x), plain(x))
    assert not torch.allclose(plain(x), before)


@each_network
def test_every_parameter_is_registered_once_and_trains(name):
    network = build(name, attention="none" if name == "ViT" else "cse").train()
    named = list(network.named_parameters(remove_duplicate=False))
    assert len({id(parameter) for _, parameter in named}) == len(named)
    network(scan(2, (31, 30))).square().sum().backward()
    assert [path for path, parameter in named if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["UNet", "DynUNet", "DenseNet"])
def test_copies_are_whole_and_independent(name):
    network = build(name, attention="cse").train()
    network(scan(2)).sum().backward()  # leaves nothing behind that cannot be copied
    network.eval()
    expected = network(scan(2)).detach()
    twins = [copy.deepcopy(network), pickle.loads(pickle.dumps(network)), build(name, seed=9, attention="cse").eval()]
    twins[2].load_state_dict(network.state_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        assert all(torch.equal(twin(scan(2)), expected) for twin in twins)
    for twin in twins:
        twin(scan(2)).square().sum().backward()
        assert all(parameter.grad is not None for path, parameter in twin.named_parameters() if "attention" in path)


@pytest.mark.parametrize("name", ["DynUNet", "ResNet"])
def test_networks_with_attention_export(name):
    network = build(name, attention="cse").eval()
    with torch.no_grad():
        program = torch.export.export(network, (scan(2, (21, 18)),), strict=False)
        x = scan(2, (21, 18), seed=1)
        torch.testing.assert_close(program.module()(x), network(x))


def test_dropout_in_2d_takes_channels_rather_than_scans():
    network = build("VNet").train()
    dropouts = [module for module in network.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    assert len(dropouts) == 2 + 4 + 2  # the last two ways down, the skips, and the first two ways up
    for dropout in dropouts:
        kept = dropout(torch.ones(1, 64, 3, 3)).flatten(2)
        assert set(kept.unique().tolist()) == {0.0, 2.0}
        assert (kept == kept[..., :1]).all()


# --------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "SwinUnetr",
            {},
            "Unknown network 'monai:SwinUnetr'. Did you mean 'monai:SwinUNETR'? Valid names: monai:AttentionUnet,",
        ),
        ("UNet", {"chanels": (4, 8)}, "Unknown option of network 'monai:UNet' 'chanels'. Did you mean 'channels'?"),
        ("EfficientNetBN", {"pretrained": True}, "Unknown option of network 'monai:EfficientNetBN' 'pretrained'."),
        ("FlexibleUNet", {"pretrained": True}, "Unknown option of network 'monai:FlexibleUNet' 'pretrained'."),
        ("DenseNet121", {"progress": False}, "Unknown option of network 'monai:DenseNet121' 'progress'."),
        ("resnet50", {"pretrained": False}, "Unknown option of network 'monai:resnet50' 'pretrained'."),
        ("FlexibleUNet", {"backbone": "resnet18"}, "Unknown backbone 'resnet18'. Did you mean 'resnet10'?"),
        ("UNet", {"strides": (2, 2, 2)}, "Expected `strides` to hold 2 entries, but got (2, 2, 2)"),
        ("AttentionUnet", {"strides": 2}, "Expected `strides` to hold 2 entries, but got 2"),
        ("SegResNet", {"blocks_up": (1,)}, "Expected `blocks_up` to hold 2 entries, but got (1,)"),
        ("DynUNet", {"strides": (2, 2, 2)}, "Expected `strides` to begin with 1, for the full resolution"),
        ("DynUNet", {"filters": (4, 8)}, "Expected `filters` to hold 3 entries, but got (4, 8)"),
        ("DynUNet", {"deep_supervision": True, "deep_supr_num": 2}, "should be less than the number of up sample layers."),
        ("BasicUNet", {"features": (4, 8)}, "MONAI's BasicUNet cannot be made with these options: "),
        ("MedNeXt", {"kernel_size": 4}, "MONAI's MedNeXt cannot be made with these options: "),
        ("HighResNet", {"norm_type": "btach"}, "MONAI's HighResNet cannot be made with these options: "),
        (
            "UNet",
            {"attention": "cse", "attention_at": ("skip",)},
            "`attention_at` to hold some of encoder, bottleneck, decoder",
        ),
        ("ResNet", {"attention": "cse", "attention_at": ("decoder",)}, "`attention_at` to hold some of encoder, the places"),
        ("UNet", {"kind": "classification"}, "Expected a network for classification, but 'monai:UNet' is for segmentation"),
        ("ResNet", {"kind": "segmentation"}, "Expected a network for segmentation, but 'monai:ResNet' is for classification"),
        pytest.param("ViT", {"attention": "cse"}, "`attention` to be none for MONAI's ViT, but got 'cse'", marks=needs_einops),
        pytest.param(
            "UNETR", {"img_size": 40}, "Expected `img_size` to be multiples of (16, 16), but got 40", marks=needs_einops
        ),
        pytest.param(
            "SwinUNETR", {"depths": (1, 1)}, "Expected `depths` to hold 4 entries, but got (1, 1)", marks=needs_einops
        ),
    ],
)
def test_refuses_by_name(name, options, message):
    with pytest.raises(UsageError) as error:
        build(name, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["UNETR", "SwinUNETR", "ViT"])
def test_names_the_extra_that_is_missing(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(UsageError, match=r"the package 'einops'.* pip install 'medseg-se\[monai\]'"):
        build(name)


@needs_einops
@pytest.mark.parametrize("name", ["UNETR", "ViT"])
def test_names_the_largest_scan_that_works(name):
    with pytest.raises(UsageError, match=r"to get at most 32 x 32 voxels, but got 33 x 20; .* set `img_size`"):
        build(name)(scan(2, (33, 20)))


@pytest.mark.parametrize(("name", "size"), [("DynUNet", (4, 4)), ("BasicUNet", (9, 16)), ("ResNet", (16, 16))])
def test_refuses_a_patch_that_shrinks_to_one_voxel(name, size):
    network, one = build(name), scan(2, size, batch=1)
    with pytest.raises(UsageError, match=r"cannot take a patch of \d+ x \d+ voxels: Expected more than 1"):
        network(one)
    assert network(scan(2, (size[0], 17), batch=1)).shape[:2] == (1, CLASSES)


def test_signatures_show_monais_options_with_a_default_each():
    for name, factory in MONAI_NETWORKS.items():
        options = inspect.signature(factory).parameters
        assert list(options)[:3] == ["in_channels", "num_classes", "spatial_dims"]
        assert {"attention", "attention_at", "attention_options"} < set(options)
        required = [option for option, parameter in options.items() if parameter.default is parameter.empty]
        assert required == ["in_channels", "num_classes"], name
        assert not {"pretrained", "progress", "norm_layer", "preprocess"} & set(options)


def test_options_stay_as_they_are():
    norm = ("instance", {})
    build("SegResNetDS", norm=norm)
    assert norm == ("instance", {})
