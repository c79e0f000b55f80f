"""ResNets written a second time, plainly, from the names and tensors of a state; for two test files."""

import torch
import torch.nn.functional as F
from torch import nn

from medseg_se.attention import ATTENTION


class Oracle:
    """Runs the tensors of a state, in evaluation; `gates` maps a place to what is done there."""

    def __init__(self, state, dims, gates):
        self.state, self.gates = state, gates
        self.conv_function = (F.conv2d, F.conv3d)[dims - 2]
        self.pool = (F.max_pool2d, F.max_pool3d)[dims - 2]

    def gate(self, place, x):
        return self.gates.get(place, lambda y: y)(x)

    def conv(self, name, x, stride=1):
        weight = self.state[f"{name}.weight"]
        return self.conv_function(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(self, name, x):
        if f"{name}.weight" not in self.state:
            return x
        mean, spread, weight, bias = (
            self.state[f"{name}.{end}"].reshape(-1, *[1] * (x.ndim - 2))
            for end in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (spread + 1e-5).sqrt() * weight + bias

    def has(self, prefix):
        return any(name.startswith(f"{prefix}.") for name in self.state)

    def count(self, prefix):
        return next(number for number in range(99) if not self.has(f"{prefix}.{number}"))

    def run(self, x, block, strides, pooled):
        """Return the answer of a network whose every block is `block`."""
        x = self.norm("stem.unit.norm", self.conv("stem.unit.conv", x, 2 if pooled else 1)).relu()
        if pooled:
            x = self.pool(x, 3, 2, 1)
        for level, stride in enumerate(strides):
            for index in range(self.count(f"encoder.{level}.blocks")):
                x = block(f"encoder.{level}.blocks.{index}", x, stride if index == 0 else 1)
            x = self.gate("encoder", x)
        if block == self.pre_activation:
            x = self.norm("head.before.norm", x).relu()
        return F.linear(x.flatten(2).mean(-1), self.state["head.linear.weight"], self.state["head.linear.bias"])

    def steps(self, name, stride):
        """Return the stride of each convolution of a block: that of its first 3×3 is `stride`."""
        last = self.count(f"{name}.units")
        return [stride if number == (1 if last == 3 else 0) else 1 for number in range(last)]

    def post_activation(self, name, x, stride):
        y, steps = x, self.steps(name, stride)
        for number, step in enumerate(steps):
            y = self.norm(f"{name}.units.{number}.norm", self.conv(f"{name}.units.{number}.conv", y, step))
            y = y.relu() if number < len(steps) - 1 else self.gate("residual", y)
        if self.has(f"{name}.shortcut"):
            x = self.norm(f"{name}.shortcut.norm", self.conv(f"{name}.shortcut.conv", x, stride))
        return self.gate("after_sum", self.gate("pre_activation", x + y).relu())

    def pre_activation(self, name, x, stride):
        activated = x
        if name != "encoder.0.blocks.0":  # which follows the stem's activation
            activated = self.gate("pre_activation", self.norm(f"{name}.pre.norm", x)).relu()
        first, *others = self.steps(name, stride)
        y = self.conv(f"{name}.units.0", activated, first)
        for number, step in enumerate(others, start=1):
            y = self.norm(f"{name}.units.{number}.pre.norm", y).relu()
            y = self.conv(f"{name}.units.{number}.conv", y, step)
        if self.has(f"{name}.shortcut"):
            x = self.conv(f"{name}.shortcut", activated, stride)
        return self.gate("after_sum", x + self.gate("residual", y))


class Bend(nn.Module):
    """Stands for attention: multiply by a number below 0, and add one, so that before and after an activation differ."""

    def __init__(self, channels, spatial_dims):
        super().__init__()

    def forward(self, x):
        return bend(x)


def bend(x):
    return 1 - 0.7 * x


def use_bends(monkeypatch):
    """Make "bend" the name of a block."""
    monkeypatch.setitem(ATTENTION, "bend", Bend)


def unsettled(network, seed=0):
    """Give the running statistics and the norms of a network values other than 0 and 1; return it for evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                for tensor in (module.running_var, module.weight):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                for tensor in (module.running_mean, module.bias):
                    tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return network.eval()
