"""RawBatch: a batch of samples as they were read, on its way from the process that read them to the network's device.

All voxels of a batch lie in two tensors, however many samples it has. A process is sent each tensor by a file descriptor of its
own, of which most systems grant it 1024 at a time; and one large copy to a GPU takes less time than many small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg_se.data.sampling import RawSample, Sample, one_thread


@dataclass(frozen=True)
class RawBatch:
    """Samples of which the voxels lie apart.

    Attributes:
        outlines: The samples; their boxes lie on the device "meta", where a tensor has a shape, but no content.
        images: The voxels of all boxes one after another, float32.
        labels: Their structure indices, int16.
    """

    outlines: tuple[RawSample, ...]
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, samples: Sequence[RawSample]) -> RawBatch:
        """Put samples together."""
        return cls(
            tuple(_with_box(sample, sample.patch.image.to("meta"), sample.patch.labels.to("meta")) for sample in samples),
            torch.cat([sample.patch.image.reshape(-1) for sample in samples]),
            torch.cat([sample.patch.labels.reshape(-1) for sample in samples]),
        )

    def to(self, device: torch.device) -> RawBatch:
        """Return the same on another device."""
        images, labels = (tensor.to(device, non_blocking=tensor.is_pinned()) for tensor in (self.images, self.labels))
        return replace(self, images=images, labels=labels)

    def pin_memory(self) -> RawBatch:
        """Return the same in memory from which a GPU reads faster."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def samples(self) -> list[RawSample]:
        """Return the samples with their voxels, which are not copied."""
        images = torch.split(self.images, [sample.patch.image.numel() for sample in self.outlines])
        labels = torch.split(self.labels, [sample.patch.labels.numel() for sample in self.outlines])
        return [
            _with_box(sample, image.view(sample.patch.image.shape), truth.view(sample.patch.labels.shape))
            for sample, image, truth in zip(self.outlines, images, labels, strict=True)
        ]

    def finished(self) -> Sample:
        """Return "image" float32 (N, C, *size) and "labels" int64 (N, *size), made on the device where the batch lies.

        On a CPU this runs on one thread, as in the processes that cut patches, so that the samples are the same.
        """
        with one_thread() if self.images.device.type == "cpu" else nullcontext():
            done = [sample.finished() for sample in self.samples()]
            return {name: torch.stack([sample[name] for sample in done]) for name in done[0]}


def _with_box(sample: RawSample, image: Tensor, labels: Tensor) -> RawSample:
    return replace(sample, patch=replace(sample.patch, image=image, labels=labels))
