from medseg_se.reports.comparison_figures import pareto_front


def test_the_front_holds_what_nothing_beats():
    points = [(1.0, 0.80), (2.0, 0.85), (3.0, 0.84), (2.0, 0.83), (4.0, 0.90), (1.0, float("nan"))]
    assert pareto_front(points) == [0, 1, 4]
    assert pareto_front([(1.0, 5.0), (2.0, 3.0), (3.0, 4.0)], "lower") == [0, 1]
    assert pareto_front([(1.0, -0.5), (2.0, 0.1), (3.0, -0.2)], "zero") == [0, 1]


def test_equals_do_not_beat_each_other():
    assert pareto_front([(1.0, 0.8), (1.0, 0.8)]) == [0, 1]
