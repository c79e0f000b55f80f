"""LightningModules: what is trained and how."""

from medseg_se.tasks.segmentation import SegmentationTask

__all__ = ["SegmentationTask"]
