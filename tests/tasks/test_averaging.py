"""The running average of the weights: also of the statistics that batch normalisation keeps."""

from __future__ import annotations

import torch
from torch import nn

from medseg_se.tasks.averaging import AveragedNetwork


def test_weights_and_statistics_approach_the_network_by_the_same_share():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = AveragedNetwork(network, 0.9)
    optimizer = torch.optim.SGD(network.parameters(), 1e-4)
    expected: dict[str, torch.Tensor] = {}
    for step in range(30):
        optimizer.zero_grad()
        network(torch.randn(8, 3) + step).square().sum().backward()
        optimizer.step()
        average.update_parameters(network)
        share = 1 - min(0.9, (1 + step) / (10 + step)) if step else 1.0
        for name, value in network.state_dict().items():
            before = expected.get(name, value)
            counter = not value.is_floating_point()
            expected[name] = value.clone() if counter else (before + share * (value - before)).detach()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not torch.allclose(average.module[1].running_mean, network[1].running_mean)
