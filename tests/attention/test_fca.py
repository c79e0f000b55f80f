import copy
import itertools
import math

import numpy as np
import pytest
import torch
from block_checks import (
    assert_close_in_low_precision,
    assert_compiles,
    assert_differentiable_twice,
    assert_follows,
    assert_robust,
    assert_tiles_change_nothing,
    random_map,
    seeded,
    sigmoid,
)
from golden import assert_same_as_golden, load_parameters, read_golden
from torch import nn

from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.fca import FrequencyAttention, FrequencySearch
from medseg_se.errors import UsageError

NAMES = {"fc.0.weight": "squeeze.weight", "fc.2.weight": "excite.weight"}
every_dims = pytest.mark.parametrize("dims", [2, 3])
GOLDENS = {
    "fca2d_low16_7x7": {"selection": "low", "frequencies": 16},
    "fca2d_top16_7x7": {"selection": "top", "frequencies": 16},
    "fca2d_top16_dct7_in10x12": {"selection": "top", "frequencies": 16},
    "fca2d_low1_7x7_vs_gapse": {"selection": "low", "frequencies": 1},
}
every_golden = pytest.mark.parametrize("golden", GOLDENS)


def from_golden(golden):
    tensors = read_golden(golden)
    basis = tensors.pop("param.dct_layer.weight")
    block = FrequencyAttention(32, 2, reduction=4, **GOLDENS[golden])
    load_parameters(block, tensors, NAMES.get)
    return block, tensors, basis


def cosine(waves, grid):
    """One row of the DCT-II, place by place."""
    scale = math.sqrt((2 if waves else 1) / grid)
    return [scale * math.cos(math.pi * waves * (place + 0.5) / grid) for place in range(grid)]


def region_means(channel, grid):
    """Adaptive average pooling, region by region."""
    pooled = np.empty([grid] * channel.ndim)
    for region in np.ndindex(pooled.shape):
        cut = (slice(at * size // grid, -(-(at + 1) * size // grid)) for at, size in zip(region, channel.shape, strict=True))
        pooled[region] = channel[tuple(cut)].mean()
    return pooled


def coefficient(pooled, frequency):
    total = 0.0
    for place in np.ndindex(pooled.shape):
        weights = [cosine(waves, len(pooled))[at] for waves, at in zip(frequency, place, strict=True)]
        total += pooled[place] * math.prod(weights)
    return total


def numpy_form(frequencies, grid=7, weights=None):
    """`frequencies`: one for each channel; or candidates, with the weights of them for each channel."""

    def form(x, parameters):
        y = np.empty_like(x)
        for n, sample in enumerate(x):
            squeezed = []
            for number, channel in enumerate(sample):
                pooled = region_means(channel, grid)
                if weights is None:
                    squeezed.append(coefficient(pooled, frequencies[number]))
                else:
                    pairs = zip(weights[number], frequencies, strict=True)
                    squeezed.append(sum(weight * coefficient(pooled, frequency) for weight, frequency in pairs))
            hidden = np.maximum(parameters["squeeze.weight"] @ squeezed, 0)
            gate = sigmoid(parameters["excite.weight"] @ hidden)
            y[n] = sample * gate.reshape(-1, *[1] * (x.ndim - 2))
        return y

    return form


@every_golden
def test_it_gives_the_outputs_and_gradients_of_the_authors_code(golden):
    block, tensors, _ = from_golden(golden)
    assert_same_as_golden(block, tensors, NAMES.get)


@every_golden
def test_the_cosines_are_the_authors(golden):
    block, tensors, basis = from_golden(golden)
    frequencies = list(zip(tensors["freq_u"].tolist(), tensors["freq_v"].tolist(), strict=True))
    assert block.candidates == frequencies
    size = 32 // len(frequencies)
    torch.testing.assert_close(block.maps().repeat_interleave(size, dim=0), basis.flatten(1), rtol=0, atol=1e-6)


@every_dims
@pytest.mark.parametrize("frequencies", [1, 4, 16])
def test_it_follows_the_formula_however_few_the_channels(dims, frequencies):
    for channels in (1, 2, 3, 7, 16) if dims == 2 else (1, 5):
        block = seeded(FrequencyAttention, channels, dims, frequencies=frequencies, reduction=1)
        size, more = divmod(channels, frequencies)
        owner = [part for part in range(frequencies) for _ in range(size + (part < more))]
        of_channel = [block.candidates[part] for part in owner]
        x = 2 * random_map(channels, dims, batch=1, sizes=(3, 8, 7)[:dims])
        assert_follows(numpy_form(of_channel), block, x)


def test_channels_that_do_not_divide_are_dealt_to_neighbours_the_first_parts_getting_more():
    """Found by giving each channel alone a wave that only one frequency sees."""
    block = FrequencyAttention(7, 2, frequencies=3)
    assert block.candidates == [(0, 0), (0, 1), (1, 0)]
    seen = []
    for channel in range(7):
        answers = []
        for u, v in block.candidates:
            x = torch.zeros(1, 7, 7, 7)
            x[0, channel] = torch.tensor(cosine(u, 7))[:, None] * torch.tensor(cosine(v, 7))
            with torch.no_grad():
                block.squeeze.weight.fill_(1.0)
                block.excite.weight.fill_(1.0)
            answers.append(block.look(x)["channel"][0, 0].item() > 0.6)
        seen.append(answers.index(True))
        assert sum(answers) == 1
    assert seen == [0, 0, 0, 1, 1, 2, 2]


@every_dims
@pytest.mark.parametrize("grid", [8, 14])
def test_a_larger_grid_multiplies_the_frequencies(dims, grid):
    block = seeded(FrequencyAttention, 4, dims, frequencies=4, reduction=1, grid=grid)
    of_channel = [tuple(waves * (grid // 7) for waves in frequency) for frequency in block.candidates]
    assert_follows(numpy_form(of_channel, grid), block, random_map(4, dims, batch=1, sizes=(9, 15, 3)))


@every_dims
def test_the_lowest_frequency_is_se_with_a_scaled_first_layer(dims):
    fca = seeded(FrequencyAttention, 9, dims, frequencies=1, reduction=2)
    se = ChannelSE(9, dims, reduction=2, bias=False)
    se.load_state_dict(fca.state_dict())
    with torch.no_grad():
        se.squeeze.weight *= math.sqrt(7**dims)
    x = random_map(9, dims, sizes=(7, 7, 7))  # where the grid's regions are of one size
    torch.testing.assert_close(fca(x), se(x), rtol=1e-5, atol=1e-6)
    even = random_map(9, dims, sizes=(14, 14, 14))
    torch.testing.assert_close(fca(even), se(even), rtol=1e-5, atol=1e-6)


def test_a_volume_of_one_slice_scales_the_coefficients_by_the_root_of_the_grid():
    """The slice is repeated along the grid's depth, and 1/√7 of seven times as much is √7."""
    flat, deep = (seeded(FrequencyAttention, 6, dims, frequencies=1, reduction=1).double() for dims in (2, 3))
    x = random_map(6, 2).double()
    assert (deep(x[:, :, None])[:, :, 0] - flat(x)).abs().max() > 1e-3
    with torch.no_grad():
        deep.squeeze.weight /= math.sqrt(7)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x))


def test_in_3d_the_frequencies_come_in_the_order_of_their_sums():
    frequencies = FrequencyAttention(64, 3, frequencies=32).candidates
    assert frequencies[:6] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 2), (0, 1, 1)]
    assert [sum(waves) for waves in frequencies] == [0] + [1] * 3 + [2] * 6 + [3] * 10 + [4] * 12
    assert len(set(frequencies)) == 32


def test_the_rankings_are_three_selections_of_different_frequencies():
    rankings = [FrequencyAttention(32, 2, selection, 32).candidates for selection in ("low", "top", "bottom")]
    for ranking in rankings:
        assert len(set(ranking)) == 32
        assert all(0 <= waves <= 6 for frequency in ranking for waves in frequency)
    low, top, bottom = rankings
    assert low[0] == top[0] == (0, 0)
    assert not set(top[:16]) & set(bottom[:16])  # 32 of 49 each: they meet beyond the first 16
    assert bottom[:3] == [(6, 6), (1, 4), (3, 4)]
    assert sum(map(sum, low)) < min(sum(map(sum, top)), sum(map(sum, bottom)))


@every_dims
def test_the_cosines_are_small_and_no_part_of_the_state(dims):
    block = FrequencyAttention(256, dims)
    assert list(block.state_dict()) == ["squeeze.weight", "excite.weight"]
    assert block.basis.shape == (16, 7**dims)
    assert [tuple(value.shape) for value in block.parameters()] == [(16, 256), (256, 16)]


@every_dims
def test_the_cosines_are_never_rounded(dims):
    block = FrequencyAttention(8, dims)
    exact = copy.deepcopy(block).double().basis
    torch.testing.assert_close(exact @ exact.T, torch.eye(8).double(), rtol=0, atol=1e-14)
    for changed in (block.half(), block.to(torch.bfloat16), nn.Sequential(block).half()[0]):
        assert changed.basis.dtype == torch.float32
        torch.testing.assert_close(changed.basis.double(), exact, rtol=0, atol=1e-7)
    x = random_map(8, dims).half()
    assert block(x).dtype == torch.float16


@every_dims
@pytest.mark.parametrize("make", [FrequencyAttention, FrequencySearch])
def test_a_block_that_was_made_without_memory_works_once_it_has_some(dims, make):
    with torch.device("meta"):
        block = make(8, dims, reduction=2)
    other = seeded(make, 8, dims, reduction=2)
    assert block(random_map(8, dims).to("meta")).is_meta
    block.to_empty(device="cpu").load_state_dict(other.state_dict())
    x = random_map(8, dims)
    torch.testing.assert_close(block(x), other(x), rtol=0, atol=0)


@every_dims
def test_gradients_are_those_of_finite_differences(dims):
    assert_differentiable_twice(seeded(FrequencyAttention, 3, dims, seed=3, frequencies=2, reduction=1), dims, sizes=(3, 2, 1))


@every_dims
@pytest.mark.parametrize("make", [FrequencyAttention, FrequencySearch])
def test_tiles_change_nothing(dims, make):
    assert_tiles_change_nothing(seeded(make, 5, dims, reduction=1), dims)


@every_dims
@pytest.mark.parametrize("make", [FrequencyAttention, FrequencySearch])
def test_awkward_maps_and_low_precision_train(dims, make):
    assert_robust(lambda channels: make(channels, dims, reduction=2), dims)
    assert_close_in_low_precision(lambda channels: make(channels, dims, reduction=2), dims)


@every_dims
@pytest.mark.parametrize("make", [FrequencyAttention, FrequencySearch])
def test_it_compiles(dims, make):
    assert_compiles(seeded(make, 6, dims, reduction=1), dims)


@pytest.mark.parametrize(
    ("make", "arguments", "options", "message"),
    [
        (FrequencyAttention, (8, 2), {"selection": "lowest"}, "Unknown selection 'lowest'. Did you mean 'low'?"),
        (FrequencyAttention, (8, 3), {"selection": "top"}, "`selection` to be 'low' in 3D, where no ranking"),
        (FrequencyAttention, (8, 3), {"selection": "bottom"}, "but got 'bottom'"),
        (FrequencyAttention, (8, 2), {"frequencies": 0}, "`frequencies` to be from 1 to 32, but got 0"),
        (FrequencyAttention, (64, 3), {"frequencies": 33}, "`frequencies` to be from 1 to 32, but got 33"),
        (FrequencyAttention, (8, 2), {"grid": 6}, "`grid` to be at least 7, which its highest frequency needs, but got 6"),
        (FrequencyAttention, (8, 2), {"reduction": 0}, "`reduction` to be at least 1, but got 0"),
        (FrequencyAttention, (0, 2), {}, "`channels` to be at least 1, but got 0"),
        (FrequencyAttention, (8, 4), {}, "`spatial_dims` to be 2 or 3, but got 4"),
        (FrequencySearch, (8, 2), {"parts": 0}, "`parts` to be at least 1, but got 0"),
        (FrequencySearch, (8, 4), {}, "`spatial_dims` to be 2 or 3, but got 4"),
    ],
)
def test_a_wrong_argument_is_refused(make, arguments, options, message):
    with pytest.raises(UsageError) as error:
        make(*arguments, **options)
    assert message in str(error.value)


# --------------------------------------------------------------------------------------------------------------------- search


def searching(dims, channels=5, parts=3, seed=0):
    block = seeded(FrequencySearch, channels, dims, parts, reduction=1, seed=seed)
    nn.init.normal_(block.alpha, generator=torch.Generator().manual_seed(seed + 1))
    return block


@every_dims
def test_the_search_weights_all_frequencies(dims):
    block = searching(dims, channels=5 if dims == 2 else 2, parts=2)
    frequencies = list(itertools.product(range(7), repeat=dims))
    weights = np.exp(block.alpha.detach().double().numpy())
    weights /= weights.sum(axis=1, keepdims=True)
    owner = [0, 0, 0, 1, 1] if dims == 2 else [0, 1]
    form = numpy_form(frequencies, weights=weights[owner])
    if dims == 2:
        assert_follows(form, block, random_map(5, dims, batch=1))
        return
    block = block.double()  # the formula place by place takes long in 3D: here by way of the transform's matrix
    matrix = np.array([cosine(waves, 7) for waves in range(7)])
    x = random_map(2, 3).double()
    parameters = {name: value.detach().numpy() for name, value in block.named_parameters()}
    for sample, y in zip(x.numpy(), block(x).detach().numpy(), strict=True):
        coefficients = [np.einsum("abc,ua,vb,wc->uvw", region_means(channel, 7), matrix, matrix, matrix) for channel in sample]
        squeezed = [weights[part] @ values.ravel() for part, values in enumerate(coefficients)]
        gate = sigmoid(parameters["excite.weight"] @ np.maximum(parameters["squeeze.weight"] @ squeezed, 0))
        np.testing.assert_allclose(y, sample * gate[:, None, None, None], rtol=1e-11)


def test_the_search_can_be_differentiated_twice():
    assert_differentiable_twice(searching(2, channels=2, parts=2, seed=4), 2, sizes=(2, 2))


def test_the_search_finds_the_wave_that_tells_maps_apart():
    """The maps differ by the sign of a wave of (2, 1) in noise, and the gates are to tell which one a map has."""
    generator = torch.Generator().manual_seed(0)
    wave = torch.tensor(cosine(2, 7))[:, None] * torch.tensor(cosine(1, 7))
    target = torch.arange(32).remainder(2).float()
    block = seeded(FrequencySearch, 4, 2, parts=2, reduction=1)
    optimiser = torch.optim.Adam(block.parameters(), lr=0.1)
    for _ in range(50):
        x = torch.randn(32, 4, 7, 7, generator=generator) + 5 * wave * (2 * target - 1)[:, None, None, None]
        optimiser.zero_grad()
        gate = block.look(x)["channel"].flatten(1)
        nn.functional.binary_cross_entropy(gate, target[:, None].expand(32, 4)).backward()
        optimiser.step()
    assert block.chosen_frequencies() == [(2, 1), (2, 1)]


@every_dims
def test_the_end_of_the_search_leaves_each_part_its_likeliest_frequency(dims):
    block = searching(dims)
    assert (block.chosen == -1).all()
    likeliest = block.alpha.argmax(1)
    block.discretise()
    assert [name for name, _ in block.named_parameters()] == ["squeeze.weight", "excite.weight"]
    assert block.chosen.tolist() == likeliest.tolist()
    frequencies = list(itertools.product(range(7), repeat=dims))
    assert block.chosen_frequencies() == [frequencies[number] for number in likeliest]
    of_channel = [block.chosen_frequencies()[part] for part in (0, 0, 1, 1, 2)]
    assert_follows(numpy_form(of_channel), copy.deepcopy(block), random_map(5, dims, batch=1))
    block.discretise()  # once more changes nothing
    assert block.chosen.tolist() == likeliest.tolist()


@every_dims
def test_a_sure_search_gives_what_its_end_gives(dims):
    block, x = searching(dims), random_map(5, dims)
    with torch.no_grad():
        block.alpha[range(3), [5, 11, 3]] = 60.0
    before = block(x)
    assert block.chosen_frequencies()[0] == (0, 5) if dims == 2 else (0, 0, 5)
    block.discretise()
    torch.testing.assert_close(block(x), before, rtol=1e-5, atol=1e-6)


@every_dims
def test_an_optimiser_may_go_on_after_the_end_of_the_search(dims):
    block, x = searching(dims), random_map(5, dims)
    optimiser = torch.optim.Adam(block.parameters(), lr=0.1)
    block(x).square().sum().backward()
    optimiser.step()
    block.discretise()
    optimiser.zero_grad()
    before = block.excite.weight.detach().clone()
    block(x).square().sum().backward()
    optimiser.step()
    assert (block.excite.weight != before).any()


@every_dims
@pytest.mark.parametrize("ended", [True, False])
def test_a_saved_state_loads_into_a_block_that_searches_or_does_not(dims, ended, tmp_path):
    block, x = nn.Sequential(searching(dims)), random_map(5, dims)
    if ended:
        block[0].discretise()
    torch.save(block.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert ("0.alpha" in state) != ended
    for discretised in (False, True):
        other = nn.Sequential(searching(dims, seed=7))
        if discretised:
            other[0].discretise()
        other.load_state_dict(state)
        torch.testing.assert_close(other(x), block(x), rtol=0, atol=0)
        assert other[0].chosen_frequencies() == block[0].chosen_frequencies()
        assert ("0.alpha" in dict(other.named_parameters())) != ended


def test_there_are_no_more_parts_than_channels():
    block = FrequencySearch(3, 2)
    assert tuple(block.alpha.shape) == (3, 49)
    assert tuple(FrequencySearch(64, 3).alpha.shape) == (16, 343)
