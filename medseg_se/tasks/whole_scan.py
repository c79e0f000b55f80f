"""WholeScanTask: what the tasks with one answer a scan have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from torchmetrics import CatMetric

from medseg_se.networks.pretrained import load_pretrained
from medseg_se.tasks.base import Stage, Task
from medseg_se.tasks.mixing import Mixing
from medseg_se.tasks.optimisation import Optimisation
from medseg_se.tasks.starting import Start


class WholeScanTask(Task):
    """A task whose batches are scans "image" (N, C, *spatial) with what is true of each, "target".

    All answers to the validation or test scans are collected and judged together.
    """

    kind = "classification"
    advice = "`medseg-se test` judges it on the test scans, where the dataset has some."

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int,
        network: str,
        network_arguments: Mapping[str, Any],
        optimisation: Optimisation,
        start: Start,
        compile_network: bool,
        pretrained: str | None,
        mixing: Mixing = Mixing(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            in_channels, num_classes, spatial_dims, network, network_arguments, optimisation, start, compile_network
        )
        self.pretrained, self.mixing = pretrained, mixing
        self.answers, self.truth = CatMetric(nan_strategy="disable"), CatMetric(nan_strategy="disable")

    @abstractmethod
    def loss_of(self, answers: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the network's answers (N, num_classes) to scans of which "target" is true."""

    @abstractmethod
    def judge(self, answers: Tensor, truth: Tensor, stage: Stage) -> None:
        """Log how good all answers (N, num_classes) of a validation or test were; both lie on the CPU."""

    def load_published(self) -> Collection[str]:
        """Fill the network with published weights where a file of them is named; returns the names of those left as drawn.

        Raises:
            UsageError: A network of which no weights are published.
            CheckpointError: The file is missing or damaged, holds code, or has other weights.
        """
        return super().load_published() if self.pretrained is None else load_pretrained(self.network, self.pretrained).left

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch of scans, mixed in pairs if the task says so."""
        mixed = self.mixing(batch["image"])
        return mixed.loss(self.loss_of, self.network(mixed.images).float(), batch["target"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect the answers to a batch of scans."""
        self._collect(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect the answers to a batch of scans."""
        self._collect(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log how good the answers were."""
        self._judge_all("val")

    def on_test_epoch_end(self) -> None:
        """Log how good the answers were."""
        self._judge_all("test")

    def _collect(self, batch: dict[str, Tensor], stage: Stage) -> None:
        answers, target = self.answer(batch["image"]).float(), batch["target"]
        self.log(
            f"{stage}_loss", self.loss_of(answers, target), batch_size=len(target) * self.trainer.world_size, sync_dist=True
        )
        self.answers.update(answers)
        self.truth.update(target)

    def _judge_all(self, stage: Stage) -> None:
        answers, truth = self.answers.compute().cpu(), self.truth.compute().cpu()  # a few numbers a scan
        self.answers.reset()
        self.truth.reset()
        self.judge(answers, truth, stage)
