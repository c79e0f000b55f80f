"""The running average of a network's weights: what is judged, kept and used while the network itself goes on learning.

Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046; as an exponential average in Tarvainen & Valpola, 2017,
https://arxiv.org/abs/1703.01780.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


class AveragedNetwork(AveragedModel):
    """An exponential moving average of the weights of a network, which is called like the network itself.

    After step n it is ``decay · average + (1 - decay) · weights`` with the smaller of `decay` and ``(1 + n) / (10 + n)``, so
    that a young average is not held back by weights that were drawn at random. Statistics of batch normalisation are averaged
    alike, for those of the network's last step fit other weights.

    Args:
        network: The network; the average has a copy of it.
        decay: Above 0 and below 1; about the last ``1 / (1 - decay)`` steps count.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        super().__init__(network, multi_avg_fn=self._approach, use_buffers=True)
        for parameter in self.parameters():
            parameter.requires_grad = False

    def _approach(self, averages: Tensors, weights: Tensors, steps: Tensor | int) -> None:
        done = int(steps)
        share = 1 - min(self.decay, (1 + done) / (10 + done))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, share)
            else:
                average.copy_(weight)
