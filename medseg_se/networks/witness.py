"""A network that shows what it sees on its way to an answer: its answer with the features of its levels beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Witness(nn.Module):
    """Maps scans (N, C, *spatial) to answers and features side by side, (N, num_classes + features).

    The features are mean and standard deviation over space of what each level of the encoder returns, and what enters the last
    linear layer. Several threads may ask at a time, and it can be recorded for other engines.

    Args:
        network: One that answers for whole scans. It is shared, and answers as before.
        num_classes: Numbers that it answers with.

    Attributes:
        points: Names of the modules that are watched; that of the last linear layer is the last.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self._seen = threading.local()
        encoder = getattr(network, "encoder", None)
        levels = list(encoder.named_children()) if isinstance(encoder, (nn.ModuleList, nn.Sequential)) else []
        linear = [
            (name, module)
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == num_classes
        ]
        self._hooks: list[Any] = [module.register_forward_hook(self._note_map) for _, module in levels]
        self._hooks += [module.register_forward_pre_hook(self._note_entry) for _, module in linear[-1:]]
        self.points = (*(f"encoder.{name}" for name, _ in levels), *(name for name, _ in linear[-1:]))

    def forward(self, x: Tensor) -> Tensor:
        """Return answers and features."""
        self._seen.found = found = list[Tensor]()
        try:
            answers = self.network(x)
        finally:
            self._seen.found = None
        return torch.cat([answers, *(features.to(answers.dtype) for features in found)], dim=1)

    def sizes(self, x: Tensor) -> list[int]:
        """Return how many features each point gives of scans like `x` (N, C, *spatial)."""
        self._seen.found = found = list[Tensor]()
        try:
            with torch.inference_mode():
                self.network(x)
        finally:
            self._seen.found = None
        return [features.shape[1] for features in found]

    def remove(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def _note_map(self, module: nn.Module, given: Any, returned: Tensor) -> None:
        self._note(lambda: pooled(returned))

    def _note_entry(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._note(lambda: given[0].flatten(1))

    def _note(self, features: Callable[[], Tensor]) -> None:
        found = getattr(self._seen, "found", None)
        if found is not None:  # the network may be asked by others, too
            found.append(features())


def pooled(maps: Tensor) -> Tensor:
    """Return mean and standard deviation over space of maps (N, C, *spatial): (N, 2 C)."""
    axes = tuple(range(2, maps.ndim))
    means = maps.mean(dim=axes, keepdim=True)
    deviations = (maps - means).square().mean(dim=axes).add(1e-12).sqrt()
    return torch.cat([means.flatten(1), deviations], dim=1)
