"""Judged answers of the known classifier and regression to made-up scans, right and wrong ones, for tests of pages."""

import numpy as np
from whole_scans import CLASSES, write_ages, write_pictures

from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.statistics.bootstrap import Interval, mean_interval
from medseg_se.evaluation.statistics.calibration import reliability
from medseg_se.evaluation.statistics.proportions import wilson_interval
from medseg_se.evaluation.statistics.roc import one_vs_rest


def judged_classes(folder, each=6):
    """Return answers to `each` pictures of every class, and their files; the first of each class is wrong, the last not known.

    Case "dark/0" is wrong with 0.9, "left/0" with 0.8, "right/0" with 0.7. "right/5" is unlike the training.
    """
    pictures = write_pictures(folder, each)
    ids, truth, rows = [], [], []
    for place, kind in enumerate(CLASSES):
        for number in range(each):
            ids.append(f"{kind}/{number}.png")
            truth.append(place)
            row = np.full(3, (0.2 - 0.01 * number) / 2)
            row[place] = 0.8 + 0.01 * number
            if number == 0:
                row = np.full(3, (0.1 + 0.1 * place) / 2)
                row[(place + 1) % 3] = 0.9 - 0.1 * place
            rows.append(row)
    answers, truth = np.array(rows), np.array(truth)
    answers[each - 1] = np.nan
    unlike = np.array([name == f"right/{each - 1}.png" for name in ids])
    known = np.isfinite(answers[:, 0])
    chosen = np.where(known, np.nan_to_num(answers).argmax(1), -1)
    areas = one_vs_rest(truth[known], answers[known])
    by_name = {
        name: {
            "recall": wilson_interval(int(((chosen == place) & (truth == place)).sum()), int((truth == place).sum())),
            "AUC": areas[place],
        }
        for place, name in enumerate(CLASSES)
    }
    judged = Judged(
        CLASSES,
        tuple(ids),
        tuple(ids),
        truth,
        answers,
        unlike,
        np.where(known, 1.5, np.nan),
        {"accuracy": wilson_interval(int((chosen == truth).sum()), len(ids))},
        by_name,
        reliability(answers[known].max(1), (chosen == truth)[known]),
        failures={ids[each - 1]: "no <answer>"},
        extra=("holiday.png",),
        notes=(("policy", "A case without an answer counts as an error."),),
    )
    return judged, {name: (pictures / name,) for name in ids}


def judged_ages(folder, cases=9):
    """Return answers to scans of heads, and their files; "head0" is 20 years off, "head1" 10, the others at most 2."""
    heads = write_ages(folder, cases, test=0)
    ids = tuple(f"head{number}" for number in range(cases))
    truth = np.array([[40.0 + 10 * (number % 5)] for number in range(cases)])
    errors = np.array([-20.0, 10.0, *(2.0 * (-1) ** number for number in range(cases - 2))])[:, None]
    answers = truth + errors
    answers[-1] = np.nan
    error = np.abs(errors[:-1, 0])
    figures = {"mean absolute error": mean_interval(error), "r": Interval(0.8, np.nan, np.nan, cases, "no interval here")}
    judged = Judged(
        ("age",),
        ids,
        ids,
        truth,
        answers,
        np.arange(cases) == 2,
        np.ones(cases),
        figures,
        {"age": figures},
        failures={ids[-1]: "no prediction"},
    )
    return judged, {name: (heads / "images" / f"{name}.nii.gz",) for name in ids}
