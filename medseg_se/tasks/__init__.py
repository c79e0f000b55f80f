"""LightningModules: what is trained and how."""

from medseg_se.tasks.classification import ClassificationTask
from medseg_se.tasks.regression import RegressionTask
from medseg_se.tasks.segmentation import SegmentationTask

__all__ = ["ClassificationTask", "RegressionTask", "SegmentationTask"]
