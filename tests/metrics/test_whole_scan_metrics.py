import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_auroc

from medseg_se.metrics.whole_scan import aurocs, class_confusion, pearson, recalls

TRUTH = torch.tensor([0, 0, 0, 0, 1, 1, 3])
PREDICTED = torch.tensor([0, 0, 2, 0, 1, 3, 3])


def test_the_confusion_has_the_truth_in_its_rows():
    expected = [[3, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert class_confusion(PREDICTED, TRUTH, 4).tolist() == expected


def test_the_recall_of_a_class_that_was_not_there_is_not_counted():
    found = recalls(class_confusion(PREDICTED, TRUTH, 4))
    assert found.tolist()[:2] == [0.75, 0.5]
    assert math.isnan(found[2])
    assert float(found.nanmean()) == pytest.approx((0.75 + 0.5 + 1) / 3)


def test_the_area_is_the_chance_that_a_member_comes_before_another():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (40,), generator=generator)
    probabilities = (torch.rand(40, 4, generator=generator) * 8).round().softmax(dim=1)  # with ties
    found = aurocs(probabilities, truth)
    for index in range(3):
        members, others = probabilities[truth == index, index], probabilities[truth != index, index]
        won = [(m > o) + 0.5 * (m == o) for m in members for o in others]
        assert float(found[index]) == pytest.approx(float(sum(won)) / len(won), abs=1e-6)
    assert math.isnan(found[3])
    three = probabilities[:, :3] / probabilities[:, :3].sum(dim=1, keepdim=True)
    assert float(aurocs(three, truth).mean()) == pytest.approx(float(multiclass_auroc(three, truth, 3)), abs=1e-6)


def test_without_a_rest_there_is_no_area():
    assert torch.isnan(aurocs(torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.long))).all()


def test_correlation_is_that_of_every_column():
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 10, (30, 2))
    predicted = truth * [0.5, -3] + rng.normal(0, 4, (30, 2))
    expected = [np.corrcoef(predicted[:, column], truth[:, column])[0, 1] for column in range(2)]
    assert pearson(torch.from_numpy(predicted), torch.from_numpy(truth)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("constant", ["predicted", "truth"])
def test_a_constant_correlates_with_nothing(constant):
    values = {"predicted": torch.tensor([[0.1], [0.3], [0.2]]), "truth": torch.tensor([[1.0], [2.0], [3.0]])}
    values[constant] = torch.full((3, 1), 0.1)
    assert math.isnan(pearson(**values))
    assert math.isnan(pearson(torch.ones(1, 1), torch.ones(1, 1)))
