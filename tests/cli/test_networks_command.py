import json

import pytest

from medseg_se.cli.main import main
from medseg_se.networks import NETWORKS, build_network


def test_lists_every_network_with_its_source(capsys):
    assert main(["networks", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(NETWORKS) <= set(listed)
    for entry in listed.values():
        assert "https://" in entry["paper"]
        assert "attention" in entry["options"]
        assert set(entry["parameters"]) == {str(dims) for dims in entry["dims"]}
    assert main(["networks"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NETWORKS)
    assert printed.index("For segmentation") < printed.index("unet_roy2018") < printed.index("For classification")


@pytest.mark.parametrize("dims", [2, 3])
def test_counts_the_parameters_of_the_network_it_describes(dims, capsys):
    assert main(["networks", "unet_roy2018", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    network = build_network("unet_roy2018", 1, 2, dims)
    assert entry["parameters"][str(dims)] == sum(parameter.numel() for parameter in network.parameters())
    assert entry["options"]["kernel_size"] == 5
    assert "2018" in entry["paper"]


def test_explains_the_options_of_one(capsys):
    assert main(["networks", "unet"]) == 0
    printed = capsys.readouterr().out
    for word in ("channels", "deep_supervision", "leaky_relu", "for: segmentation", "attention at: encoder", "Ronneberger"):
        assert word in printed


def test_a_network_of_ones_own_is_listed(monkeypatch, capsys):
    def mine(in_channels, num_classes, spatial_dims, size=3):
        raise AssertionError

    monkeypatch.setitem(NETWORKS, "mine", mine)
    assert main(["networks", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["options"] == {"size": 3}


def test_an_unknown_name_is_refused_in_a_line(capsys):
    assert main(["networks", "unett"]) == 2
    assert "Did you mean 'unet'" in capsys.readouterr().err
