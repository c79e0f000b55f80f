"""Grad-CAM: which places of a scan speak for an answer of a network that answers for the whole of it.

Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medseg_se.analysis.feature_grid import STRIDED, FeatureGrid, GridTrace
from medseg_se.errors import DataError, UsageError


@dataclass(frozen=True)
class GradCam:
    """What the last maps of a network say for some of its answers.

    Attributes:
        answers: All answers of the network, (N, num_classes).
        evidence: Σ αᵏ Aᵏ before the ReLU, (N, K, *coarse): above 0 where the scan raises answer k, below where it lowers it.
        grid: Where its voxels lie in the network's input.
    """

    answers: Tensor
    evidence: Tensor
    grid: FeatureGrid

    @property
    def maps(self) -> Tensor:
        """Grad-CAM itself, (N, K, *coarse): the ReLU of the evidence (equation 2)."""
        return self.evidence.relu()


def grad_cam(network: nn.Module, scans: Tensor, wanted: Tensor) -> GradCam:
    """Return Grad-CAM at the last maps of a network for whole scans.

    αᵏ is the mean over all voxels of ∂y / ∂Aᵏ (equation 1), where y is an answer before the softmax, or a number to regress,
    and Aᵏ channel k of the last maps: of our classifiers, what their mean over all voxels is taken of.

    Args:
        network: A classifier of `medseg_se.networks`, in eval mode; nothing about it is changed.
        scans: Its input, (N, C, *spatial).
        wanted: Numbers of the answers that are explained, (N, K).

    Raises:
        UsageError: The network has no maps, is in training mode, or has no such answer.
        DataError: An answer is not finite.
    """
    if network.training:
        raise UsageError("Expected the network in eval mode, where dropout is off and normalisation does not mix scans.")
    held: dict[str, Tensor] = {}

    def hold(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        held["maps"] = output.detach().requires_grad_()
        return held["maps"].clone()  # what follows may work in place

    trace = GridTrace()
    handles = [last_maps(network).register_forward_hook(hold)]
    handles += [layer.register_forward_hook(trace.note) for layer in network.modules() if isinstance(layer, STRIDED)]
    # Without gradients of the weights nothing is kept for them: a pass costs no more memory than a prediction.
    state = {name: value.detach() for name, value in (*network.named_parameters(), *network.named_buffers())}
    try:
        with torch.enable_grad():
            answers: Tensor = functional_call(network, state, (scans,)).float()
            _check(answers, wanted)
            maps = held["maps"]
            evidence = [_evidence(answers.gather(1, one[:, None]).sum(), maps) for one in wanted.unbind(1)]
    finally:
        for handle in handles:
            handle.remove()
    grid = trace.grid(maps.shape[2:], scans.shape[2:])
    return GradCam(answers.detach(), torch.stack(evidence, dim=1), grid)


def last_maps(network: nn.Module) -> nn.Module:
    """Return the module of a network that puts out its last maps.

    Raises:
        UsageError: It has none.
    """
    found: Callable[[], nn.Module] | None = getattr(network, "last_maps", None)
    if found is None:
        raise UsageError(
            f"Expected a network that answers for whole scans from maps, but the {type(network).__name__} does not."
        )
    return found()


def _check(answers: Tensor, wanted: Tensor) -> None:
    count, answered = answers.shape
    if wanted.ndim != 2 or len(wanted) != count or wanted.min() < 0 or wanted.max() >= answered:
        raise UsageError(f"Expected `wanted` to be numbers of {answered} answers for each of {count} scans, but got {wanted}.")
    if not torch.isfinite(answers).all():
        raise DataError("An answer of the network is not finite; the scan's intensities or the checkpoint are out of order.")


def _evidence(score: Tensor, maps: Tensor) -> Tensor:
    """Return Σ αᵏ Aᵏ of maps (N, C, *coarse), for a sum of answers of which each depends on its own scan alone."""
    (gradient,) = torch.autograd.grad(score, maps, retain_graph=True)
    axes = tuple(range(2, maps.ndim))
    weights = gradient.mean(dim=axes, keepdim=True)
    return (weights * maps.detach()).sum(dim=1).float()
