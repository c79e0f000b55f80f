import pytest
import torch
from torch import nn

from medseg_se.analysis.memory import peak_memory
from medseg_se.errors import UsageError

CPU = torch.device("cpu")
MILLION = 1_000_000


def test_peak_is_the_most_that_is_held_at_once():
    def step():
        first, second = torch.empty(MILLION), torch.empty(MILLION // 2)
        del first
        third = torch.empty(MILLION // 4)
        return second, third

    assert peak_memory(step, CPU) == 4 * (MILLION + MILLION // 2)


def test_what_is_kept_for_the_backward_pass_counts():
    x = torch.ones(MILLION, requires_grad=True)

    def light():
        (x * 2 + 1).sum().backward()

    def heavy():
        x.exp().exp().exp().sum().backward()  # each keeps its result, and the first gradient is the fourth map

    for step, maps in ((light, 2), (heavy, 4)):
        x.grad = None
        assert peak_memory(step, CPU) == pytest.approx(4 * MILLION * maps, abs=1000)


def test_what_was_there_before_does_not_count():
    kept = [torch.zeros(MILLION)]
    layer = nn.Linear(1000, 1000)
    assert peak_memory(lambda: kept[0].add_(1), CPU) < 100
    with torch.no_grad():
        assert peak_memory(lambda: layer(torch.empty(10, 1000)), CPU) < 4 * MILLION


def test_is_the_same_every_time():
    layer, x = nn.Conv2d(8, 8, 3), torch.ones(1, 8, 32, 32)

    def step():
        layer(x).sum().backward()

    peaks = set()
    for _ in range(3):
        layer.zero_grad()
        peaks.add(peak_memory(step, CPU))
    assert len(peaks) == 1
    assert peaks.pop() >= 4 * 8 * 30 * 30


def test_an_error_in_the_step_goes_through_and_the_next_step_is_measured():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 // 0, CPU)
    assert peak_memory(lambda: torch.empty(MILLION), CPU) == 4 * MILLION


def test_a_device_that_does_not_tell_is_refused():
    with pytest.raises(UsageError, match="CPU or CUDA"):
        peak_memory(lambda: None, torch.device("mps"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_caching_allocator_tells():
    device = torch.device("cuda")
    kept = torch.zeros(MILLION, device=device)

    def step():
        return kept + 1, kept + 2

    assert peak_memory(step, device) == pytest.approx(8 * MILLION, abs=2**21)
