import pytest
import torch
from test_contract import FIRST_OF_CLASS, ROWS, VARIANTS, as_tuple, cases, flat, scan

from medseg_se.errors import CheckpointError, UsageError
from medseg_se.networks import build_network
from medseg_se.networks.transfer import Ports, transfer

OLD, NEW = Ports(("x", "y"), ("a", "b", "c")), Ports(("y", "z", "x"), ("c", "new", "a", "b"))


def describe(ports, network="unet", dims=2, **options):
    sizes = {"in_channels": len(ports.channels), "num_classes": len(ports.outputs), "spatial_dims": dims}
    return {"name": network, **sizes, "options": options}


def make(described, seed):
    """Build a network of which no two weights are the same, nor the statistics of its normalisations."""
    torch.manual_seed(seed)
    size = (described["in_channels"], described["num_classes"], described["spatial_dims"])
    network = build_network(described["name"], *size, **described["options"]).double().eval()
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point() and seed == 0:
                tensor.copy_(
                    0.5 + 0.2 * torch.rand_like(tensor) if tensor.ndim < 2 else tensor + 0.1 * torch.randn_like(tensor)
                )
    return network


@pytest.mark.parametrize(("row", "dims"), cases([*FIRST_OF_CLASS.values(), *VARIANTS]))
def test_what_is_known_by_name_is_answered_as_before_in_any_order_and_beside_what_is_new(row, dims):
    name, tiny = ROWS[row]
    options = {key: flat(value) if dims == 2 else value for key, value in tiny.items()}
    before, after = (describe(ports, name, dims, **options) for ports in (OLD, NEW))
    old, new = make(before, 0), make(after, 1)
    result = transfer(new, after, NEW, old.state_dict(), before, OLD)
    assert (result.left, result.unused) == ((), ())
    x = scan(dims).double()
    expected = as_tuple(old(x))
    found = as_tuple(new(torch.stack([x[:, 1], torch.randn_like(x[:, 0]), x[:, 0]], 1)))
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours[:, [2, 3, 0]], theirs)


@pytest.mark.parametrize("name", ["densenet", "unet"])
def test_a_scan_that_is_the_same_in_all_channels_has_the_features_that_it_had(name):
    other = Ports(("p", "q", "r"), OLD.outputs)
    before, after = describe(OLD, name, channels=(4, 6)), describe(other, name, channels=(4, 6))
    old, new = make(before, 0), make(after, 1)
    if name == "densenet":  # which normalises the channels first: alike where their statistics are
        for end in ("weight", "bias", "running_mean", "running_var"):
            for place in (0, 1, 2):
                tensor = getattr(old.encoder[0].block.norms[place], end)
                tensor.data[:2] = tensor.data[:2].mean()
    transfer(new, after, other, old.state_dict(), before, OLD)
    x = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(new(x.expand(-1, 3, -1, -1)), old(x.expand(-1, 2, -1, -1)))


def test_outputs_without_names_stay_as_drawn_though_their_number_is_the_same():
    unnamed = Ports(OLD.channels, (None,) * 3)
    described = describe(OLD, channels=(4, 6))
    old, new = make(described, 0), make(described, 1)
    drawn = new.head.weight.clone()
    result = transfer(new, described, unnamed, old.state_dict(), described, OLD)
    assert set(result.left) == set(result.unused) == {"head.weight", "head.bias"}
    assert torch.equal(new.head.weight, drawn)


def test_channels_and_outputs_of_one_name_each_keep_their_own_weights():
    same = Ports(("x", "x"), ("a", "b", "b"))
    described = describe(same, channels=(4, 6))
    old, new = make(described, 0), make(described, 1)
    transfer(new, described, same, old.state_dict(), described, same)
    assert all(torch.equal(tensor, new.state_dict()[name]) for name, tensor in old.state_dict().items())
    more = Ports(("x", "x", "x"), ("b", "b", "b", "a"))
    assert more.rows_of(same) == {"channels": (0, 1, None), "outputs": (1, 2, None, 0)}


@pytest.mark.parametrize("name", ["unet", "fpn"])
def test_as_many_channels_as_features_do_not_hinder_other_outputs(name):
    theirs, ours = Ports(tuple("wxyz"), OLD.outputs), Ports(tuple("wxyz"), NEW.outputs)
    before, after = (describe(ports, name, residual=True, channels=(4, 6)) for ports in (theirs, ours))
    old, new = make(before, 0), make(after, 1)
    result = transfer(new, after, ours, old.state_dict(), before, theirs)
    assert (result.left, result.unused) == ((), ())
    x = torch.randn(2, 4, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(new(x)[:, [2, 3, 0]], old(x))


def test_what_does_not_learn_must_be_filled_whole_and_otherwise_nothing_is_filled():
    before, after = describe(OLD, channels=(4, 6)), describe(NEW, channels=(4, 6))
    old, new = make(before, 0), make(after, 1)
    new.head.requires_grad_(False)
    drawn = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    with pytest.raises(UsageError, match=r"2 tensors of it would stay as drawn, in whole or in part: head\.weight, head\.bias"):
        transfer(new, after, NEW, old.state_dict(), before, OLD)
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in new.state_dict().items())


def test_a_network_that_is_not_known_here_is_named():
    described = describe(OLD, channels=(4, 6))
    with pytest.raises(CheckpointError, match=r"Its network cannot be built here: Unknown network 'elsewhere'"):
        transfer(make(described, 0), described, OLD, {}, {**described, "name": "elsewhere"}, OLD)
