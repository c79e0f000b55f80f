"""Grad-CAM against closed forms and finite differences, in every classifier of the table."""

from functools import partial

import pytest
import torch
from torch import nn

from medseg_se.analysis.grad_cam import grad_cam
from medseg_se.errors import DataError, UsageError
from medseg_se.networks import NETWORKS, build_network, kind_of
from medseg_se.networks.base import Network

TINY = {
    "denisnet": {"layers": (2, 1), "growth": 6, "stem_stride": 2},
    "densenet121": {"blocks": (2, 1), "growth": 4, "stem_channels": 8},
    "inception": {"modules": (((4, 2, 4, 2, 4, 4),), ((4, 2, 4, 2, 4, 4),)), "stem_channels": (4, 4, 8)},
    "mobilenetv2": {"channels": (8, 12), "blocks": (1, 2), "strides": (1, 2), "expansion": (1, 2), "stem_channels": 8},
    "mobilenext": {"channels": (8, 12), "blocks": (1, 2), "strides": (1, 2), "reduction": 2, "stem_channels": 8},
    "resnet18": {"channels": (4, 6), "blocks": (1, 2), "strides": (1, 2), "attention": "se"},
    "resnet18v2": {"channels": (4, 6), "blocks": (2, 1), "strides": (1, 2), "stem": "small", "attention": "scse"},
    "sqet": {"channels": (4, 6, 8), "depth": 2, "heads": 2, "convs": 1, "reduction": 4},
    "monai:DenseNet": {"init_features": 8, "growth_rate": 4, "block_config": (2, 2)},
    "monai:EfficientNetBN": {},
    "monai:ResNet": {"block_inplanes": (4, 4, 6, 8), "layers": (1, 1, 1, 1), "attention": "cse"},
    "monai:SENet": {"layers": (1, 1, 1, 1), "inplanes": 16},
}
IN_3D = ("resnet18v2", "sqet", "densenet121", "monai:ResNet")


def build(name, dims, seed=0):
    torch.manual_seed(seed)
    network = build_network(name, 2, 3, dims, **TINY[name]).eval()
    for module in network.modules():  # statistics as after a training, not those of the start
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def scans_of(dims, count=2):
    return torch.randn(count, 2, *((33, 40) if dims == 2 else (17, 20, 18)), generator=torch.Generator().manual_seed(1))


def answered(network, scans, change=None):
    """Return the answers and the last maps, which `change` may change."""
    kept = []

    def hook(module, inputs, output):
        output = output if change is None else change(output)
        kept.append(output.clone())
        return output

    handle = network.last_maps().register_forward_hook(hook)
    with torch.no_grad():
        answers = network(scans)
    handle.remove()
    return answers, kept[-1]


def add(maps, shift):
    """Shift the channels; a module that runs several times has other channels before its last call."""
    return maps + shift if maps.shape[1] == shift.shape[1] else maps


def test_the_table_above_holds_every_class_of_network():
    def class_of(name):
        return getattr(NETWORKS[name], "func", NETWORKS[name])

    classifiers = {class_of(name) for name in NETWORKS if kind_of(NETWORKS[name]) == "classification"}
    tested = {class_of(name) for name in TINY if not name.startswith("monai:")}
    assert all(any(issubclass(one, other) for other in tested) for one in classifiers)


@pytest.mark.parametrize(("name", "dims"), [(name, dims) for name in TINY for dims in (2, 3) if dims == 2 or name in IN_3D])
def test_the_equations_hold_by_finite_differences(name, dims):
    network, scans = build(name, dims).double(), scans_of(dims).double()
    wanted = torch.tensor([[0, 2], [1, 0]])
    hooks = [len(module._forward_hooks) for module in network.modules()]
    found = grad_cam(network, scans, wanted)
    assert [len(module._forward_hooks) for module in network.modules()] == hooks
    plain, maps = answered(network, scans)
    torch.testing.assert_close(found.answers.double(), plain, rtol=1e-6, atol=1e-6)
    evidence, flat = found.evidence.flatten(2).double(), maps.flatten(2)
    scale = float(evidence.abs().max())
    # Σ αᵏ Aᵏ at a voxel is how the answer changes where every channel k is raised everywhere by its Aᵏ there.
    for voxel in (0, int(evidence[0, 0].abs().argmax()), flat.shape[2] - 1):
        shift = 1e-5 * flat[:, :, voxel].view(2, -1, *[1] * dims)
        higher, lower = (answered(network, scans, partial(add, shift=sign * shift))[0] for sign in (1, -1))
        slope = (higher - lower).gather(1, wanted) / (2e-5 * flat.shape[2])
        torch.testing.assert_close(evidence[:, :, voxel], slope, rtol=1e-4, atol=1e-5 * scale)
    assert torch.equal(found.maps, found.evidence.clamp(min=0))
    assert scale > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet18v2", "densenet121", "mobilenetv2"])
def test_where_a_mean_and_a_linear_layer_follow_it_is_the_class_activation_map(name):
    network, scans = build(name, 2), scans_of(2)
    found = grad_cam(network, scans, torch.tensor([[0, 1, 2]] * 2))
    answers, maps = answered(network, scans)
    voxels = maps[0, 0].numel()
    linear = network.head.linear
    expected = torch.einsum("kc,nchw->nkhw", linear.weight, maps) / voxels
    torch.testing.assert_close(found.evidence, expected.detach(), rtol=1e-4, atol=1e-6)
    # Its sum, and the bias, is the answer itself.
    torch.testing.assert_close(found.evidence.sum(dim=(2, 3)) + linear.bias.detach(), answers, rtol=1e-4, atol=1e-5)


def test_a_voxel_of_the_map_lies_where_its_field_of_view_is_centred():
    for name, options in {
        "resnet18v2": {"channels": (2, 2), "blocks": 1, "strides": (1, 2), "stem": "small", "norm": "none"},
        "resnet50": {"channels": (1, 1, 1), "blocks": 1, "strides": (1, 2, (2, 1)), "stem": "small", "norm": "none"},
        "mobilenetv2": {**TINY["mobilenetv2"], "norm": "none"},
        "denisnet": {"layers": (1, 1, 1), "growth": 2, "stem_stride": 2, "norm": "none", "attention": "none"},
    }.items():
        network = build_network(name, 1, 2, 2, **options).eval()
        for parameter in network.parameters():  # even kernels: the gradient of a voxel is symmetric about its centre
            nn.init.constant_(parameter, 0.05)
        scan = torch.ones(1, 1, 64, 48, requires_grad=True)
        kept = []
        handle = network.last_maps().register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
        network(scan)
        handle.remove()
        found = grad_cam(network, scan.detach(), torch.tensor([[0]]))
        assert found.grid.shape == kept[0].shape[2:]
        row, column = (length // 2 for length in found.grid.shape)
        (field,) = torch.autograd.grad(kept[0][0, 0, row, column], scan)
        field = field[0, 0]
        for axis, place in enumerate((row, column)):
            line = field.sum(dim=1 - axis)
            centre = float((line * torch.arange(len(line))).sum() / line.sum())
            assert found.grid.start[axis] + place * found.grid.step[axis] == pytest.approx(centre, abs=1e-3), name


def test_only_where_the_bright_half_is_does_a_network_that_looks_for_it_find_evidence():
    class Brightness(Network):
        """Two answers: how bright a scan is, and how dark."""

        def __init__(self):
            super().__init__(1, 2, 2)
            self.pool = nn.AvgPool2d(4)

        def last_maps(self):
            return self.pool

        def forward(self, x):
            bright = self.pool(x).mean(dim=(1, 2, 3))
            return torch.stack([bright, -bright], dim=1)

    scan = torch.cat([torch.full((1, 1, 16, 8), -1.0), torch.full((1, 1, 16, 8), 3.0)], dim=3)
    found = grad_cam(Brightness().eval(), scan, torch.tensor([[0, 1]]))
    bright, dark = found.maps[0] * 16  # Z voxels of the map
    assert torch.equal(bright, torch.tensor([[0.0, 0.0, 3.0, 3.0]] * 4))
    assert torch.equal(dark, torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 4))
    assert (found.grid.start, found.grid.step) == ((1.5, 1.5), (4.0, 4.0))


def test_what_cannot_be_explained_is_refused():
    scans = scans_of(2)
    network = build("resnet18", 2)
    with pytest.raises(UsageError, match="eval mode"):
        grad_cam(build("resnet18", 2).train(), scans, torch.tensor([[0], [0]]))
    for wanted in (torch.tensor([[0], [3]]), torch.tensor([[0]]), torch.tensor([[-1], [0]])):
        with pytest.raises(UsageError, match="numbers of 3 answers for each of 2 scans"):
            grad_cam(network, scans, wanted)
    with pytest.raises(DataError, match="not finite"):
        grad_cam(network, scans * torch.nan, torch.tensor([[0], [0]]))
    with pytest.raises(UsageError, match="UNet does not"):
        grad_cam(build_network("unet", 2, 3, 2, channels=(4, 6)).eval(), scans, torch.tensor([[0], [0]]))
    vit = build_network("monai:ViT", 2, 3, 2, img_size=48, patch_size=16, hidden_size=12, mlp_dim=12, num_layers=1, num_heads=2)
    with pytest.raises(UsageError, match="tokens instead of maps"):
        grad_cam(vit.eval(), scans, torch.tensor([[0], [0]]))
