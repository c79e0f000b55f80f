"""What is said of answers that are classes: shares of cases, areas under ROC curves and calibration, with 95 % intervals.

Where no two cases share a group, shares have Wilson intervals; where some do, groups are resampled whole. Areas have DeLong's
intervals, which take cases for independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medseg_se.evaluation.statistics.bootstrap import Interval, mean_interval
from medseg_se.evaluation.statistics.calibration import brier, chosen_class, reliability
from medseg_se.evaluation.statistics.proportions import wilson_interval
from medseg_se.evaluation.statistics.roc import hand_till, one_vs_rest

Classes = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def figures_of_classes(truth: Classes, answers: Array, groups: Sequence[str], unlike: Flags) -> dict[str, Interval]:
    """Return accuracy, balanced accuracy, AUC (Hand and Till), ECE and Brier score.

    Args:
        truth: True class of every case, (n,).
        answers: Probabilities, (n, C); NaN without an answer.
        groups: Whose scan each is.
        unlike: Whether a case is unlike those of the training, (n,).
    """
    answered: Flags = np.asarray(np.isfinite(answers).all(axis=1))
    right = chosen(answers) == truth
    figures = {"accuracy": share(right, groups)}
    if unlike.any():
        figures["accuracy, unlike left out"] = _among(right, ~unlike, groups)
    figures["balanced accuracy"] = _balanced(truth, right, groups, answers.shape[1])
    figures["AUC"] = _auc(truth, answers)
    if answered.any():
        said, true = answers[answered], truth[answered]
        found = reliability(*chosen_class(said, true))
        figures["calibration error (ECE)"] = Interval(
            found.expected_error,
            np.nan,
            np.nan,
            int(answered.sum()),
            "it is biased upwards in few cases, and no interval holds",
        )
        figures["Brier score"] = brier(said, true, [group for group, there in zip(groups, answered, strict=True) if there])
    return figures


def figures_by_class(truth: Classes, answers: Array, groups: Sequence[str]) -> list[dict[str, Interval]]:
    """Return recall, precision, F1 and AUC (against the rest) of every class; n is 0 of a class that is nowhere."""
    said = chosen(answers)
    areas = one_vs_rest(truth, ranking_scores(truth, answers))
    figures = []
    for label in range(answers.shape[1]):
        true, taken = truth == label, said == label
        overlap = _among(true & taken, true | taken, groups)
        figures.append(
            {
                "recall": _among(taken, true, groups),
                "precision": _among(true, taken, groups),
                # F1 rises with the share of the cases concerned that are right, J: it is 2J / (1 + J).
                "F1": _mapped(overlap, lambda j: 2 * j / (1 + j)),
                "AUC": areas[label] if true.any() and not true.all() else _nothing("the class, or the rest, is nowhere"),
            }
        )
    return figures


def figures_of_pairs(truth: Classes, answers: Array) -> dict[tuple[int, int], Interval]:
    """Return the area of every two classes by Hand and Till, (A(i|j) + A(j|i)) / 2; cases of other classes are left out."""
    ranked, count = ranking_scores(truth, answers), answers.shape[1]
    pairs = {}
    for i in range(count):
        for j in range(i + 1, count):
            two = (truth == i) | (truth == j)
            both = (truth == i).any() and (truth == j).any()
            pairs[i, j] = (
                hand_till((truth[two] == j).astype(np.int64), ranked[np.ix_(two, [i, j])])
                if both
                else _nothing("one of the classes is nowhere")
            )
    return pairs


def chosen(answers: Array) -> Classes:
    """Return the most probable class of every case, (n,); -1 without an answer."""
    return np.where(np.isfinite(answers).all(axis=1), np.nan_to_num(answers).argmax(axis=1), -1)


def share(flags: Flags, groups: Sequence[str]) -> Interval:
    """Return the share of the cases that are flagged.

    Where all are, or none, every resample says the same, and an interval without width would claim to be certain: Wilson's is
    given then, of groups that count once each.
    """
    count = len(set(groups))
    if count == len(groups):
        return wilson_interval(int(flags.sum()), len(flags))
    if flags.all() or not flags.any():
        return replace(wilson_interval(count if flags.all() else 0, count), n=len(flags))
    return mean_interval(flags.astype(np.float64), groups, limits=(0.0, 1.0))


def _among(flags: Flags, counted: Flags, groups: Sequence[str]) -> Interval:
    return share(flags[counted], [group for group, kept in zip(groups, counted, strict=True) if kept])


def _balanced(truth: Classes, right: Flags, groups: Sequence[str], count: int) -> Interval:
    """Return the mean recall of the classes that are there.

    Its interval is that of the mean of ``B + n / (K nₖ) (right − recallₖ)``, the first terms of its expansion, whose mean is B.
    """
    present = [label for label in range(count) if (truth == label).any()]
    if not present:
        return _nothing("no case was counted")
    recall = {label: float(right[truth == label].mean()) for label in present}
    balanced = float(np.mean(list(recall.values())))
    terms = np.full(len(truth), balanced)
    for label in present:
        members = truth == label
        terms[members] += len(truth) / (len(present) * members.sum()) * (right[members] - recall[label])
    if np.ptp(terms) == 0:
        why = "every class is right, or wrong, in all of its cases, so that resamples say nothing"
        return Interval(balanced, np.nan, np.nan, len(truth), why)
    return mean_interval(terms, groups, limits=(0.0, 1.0))


def _auc(truth: Classes, answers: Array) -> Interval:
    present = np.unique(truth)
    if len(present) < 2:
        return _nothing("one class alone is there")
    numbers = np.searchsorted(present, truth)
    return hand_till(numbers, ranking_scores(truth, answers)[:, present])


def ranking_scores(truth: Classes, answers: Array) -> Array:
    """Return the probabilities; without an answer the worst there are, below all for the own class, above all for others."""
    ranked = answers.copy()
    missing = ~np.isfinite(answers).all(axis=1)
    ranked[missing] = 2.0
    ranked[np.flatnonzero(missing), truth[missing]] = -1.0
    return ranked


def _mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    """Return the interval of a number that rises with another."""
    estimate, low, high = (function(value) for value in (interval.estimate, interval.low, interval.high))
    return Interval(estimate, low, high, interval.n, interval.reason, interval.method)


def _nothing(reason: str) -> Interval:
    return Interval(np.nan, np.nan, np.nan, 0, reason)
