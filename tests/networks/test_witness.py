from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from medseg_se.networks import build_network
from medseg_se.networks.witness import Witness, pooled


@pytest.mark.parametrize(("name", "dims", "options"), [("resnet18v2", 2, {"channels": [4, 8, 8, 8]}), ("sqet", 3, {})])
def test_answers_stay_and_features_stand_beside_them(name, dims, options):
    torch.manual_seed(0)
    network = build_network(name, 1, 3, dims, **options).eval()
    x = torch.randn(2, 1, *[32] * dims)
    with torch.inference_mode():
        answers = network(x)
        maps = []
        hooks = [level.register_forward_hook(lambda module, given, made: maps.append(made)) for level in network.encoder]
        network(x)
        for hook in hooks:
            hook.remove()
        witness = Witness(network, 3)
        found = witness(x)
        torch.testing.assert_close(network(x), answers)
    sizes = witness.sizes(x)
    assert found.shape == (2, 3 + sum(sizes))
    assert len(witness.points) == len(sizes) == len(network.encoder) + 1
    torch.testing.assert_close(found[:, :3], answers)
    expected = torch.cat([pooled(one) for one in maps], dim=1)
    torch.testing.assert_close(found[:, 3 : 3 + expected.shape[1]], expected)
    linear = network.get_submodule(witness.points[-1])
    with torch.inference_mode():
        torch.testing.assert_close(linear(found[:, -sizes[-1] :]), answers)


def test_pooling_is_mean_and_standard_deviation():
    x = torch.randn(3, 4, 5, 6, 7)
    found = pooled(x)
    torch.testing.assert_close(found[:, :4], x.mean(dim=(2, 3, 4)))
    torch.testing.assert_close(found[:, 4:], x.std(dim=(2, 3, 4), correction=0))
    assert pooled(torch.ones(1, 2, 3, 3))[0, 2:].abs().max() < 1e-5


def test_threads_do_not_mix_their_features():
    witness = Witness(build_network("resnet18v2", 1, 3, 2, channels=[4, 8, 8, 8]).eval(), 3)
    scans = torch.randn(24, 1, 1, 32, 32)

    def ask(x):
        with torch.inference_mode():
            return witness(x)

    alone = [ask(scan) for scan in scans]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, scans))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)


def test_it_stops_watching():
    network = build_network("resnet18v2", 1, 3, 2, channels=[4, 8, 8, 8]).eval()
    witness = Witness(network, 3)
    witness.remove()
    assert witness.sizes(torch.zeros(1, 1, 32, 32)) == []
