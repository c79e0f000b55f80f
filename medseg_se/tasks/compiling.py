"""Compiling a network for training: worth it where it succeeds, never a reason to fail."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Compiled:
    """A network compiled in place for patches of one shape; the names of its weights stay as they are.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self._tried = network, False
        network.compile(dynamic=False)

    def try_once(self, loss: Callable[[], Tensor]) -> None:
        """Compile by computing a loss and its gradients, the first time this is called; the network stays as it was.

        Where that fails, the network is run as it is from then on, and one line says why.
        """
        if self._tried:
            return
        self._tried = True
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        devices = [learning[0].device] if learning and learning[0].is_cuda else []
        try:
            with torch.random.fork_rng(devices):
                # Not `backward`, which several devices would answer together.
                torch.autograd.grad(loss(), learning, allow_unused=True)
        except Exception as error:  # a compiler may fail in any way
            self.network._compiled_call_impl = None
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log.warning("The network is not compiled: %s.", reason.rstrip(".")[:200])
        finally:
            self.network.load_state_dict(before)
