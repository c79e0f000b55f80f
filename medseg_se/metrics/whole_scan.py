"""How good answers to whole scans are: classes and values in, numbers out; what nothing can be said about is NaN."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_confusion_matrix


def class_confusion(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Return how often each class was taken for each, (num_classes, num_classes): rows are the truth.

    Args:
        predicted: Class numbers (N,).
        truth: Class numbers (N,).
        num_classes: Number of classes.
    """
    return multiclass_confusion_matrix(predicted, truth, num_classes)


def recalls(confusion: Tensor) -> Tensor:
    """Return the share of each class that was recognised, (num_classes,); NaN for a class that was not there.

    The mean of those that are not NaN is the balanced accuracy, and does not depend on how frequent the classes are.
    """
    counts = confusion.double()
    return counts.diagonal() / counts.sum(dim=1)


def aurocs(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Return the area under the ROC curve of each class against the rest, (num_classes,).

    NaN for a class that was not there or has no rest.

    Args:
        probabilities: (N, num_classes).
        truth: Class numbers (N,).
    """
    areas = []
    for index in range(probabilities.shape[1]):
        member = truth == index
        known = bool(member.any()) and not bool(member.all())
        areas.append(float(binary_auroc(probabilities[:, index], member.long())) if known else float("nan"))
    return torch.tensor(areas)


def pearson(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return Pearson's correlation of each column of (N, V), (V,); NaN where one of the two does not vary."""
    varying = (predicted.amax(dim=0) > predicted.amin(dim=0)) & (truth.amax(dim=0) > truth.amin(dim=0))
    x, y = (values.double() - values.double().mean(dim=0) for values in (predicted, truth))
    correlation = (x * y).sum(dim=0) / (x.norm(dim=0) * y.norm(dim=0))
    return torch.where(varying, correlation.clamp(-1, 1), torch.nan)
