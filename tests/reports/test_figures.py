import math
import re

import numpy as np
import pytest

from medseg_se.reports.forest import Effect, forest_plot, signed
from medseg_se.reports.page import json_script, number, page, script_text, verdict_paragraph
from medseg_se.reports.pareto import Candidate, pareto_front, pareto_plot
from medseg_se.reports.plots import Distribution, distribution_plot
from medseg_se.reports.tables import Cell, Column, Scale, sortable_table


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.013, 0.021), (3, 1234), (-7e-5, -2e-5), (0, 0), (5, 5)])
def test_a_scale_holds_its_values_between_round_ends(low, high):
    scale = Scale.around([low, high, math.nan, math.inf])
    assert scale.low <= low <= high <= scale.high
    assert (scale.at(scale.low), scale.at(scale.high)) == (0, 100)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8
    assert [value for value, _ in ticks] == sorted(value for value, _ in ticks)
    for value, words in ticks:
        assert float(words.replace("−", "-")) == pytest.approx(value, abs=1e-12)


def test_the_distribution_shows_quartiles_median_mean_and_every_case():
    values = {f"case {place}": value for place, value in enumerate(np.linspace(0.2, 0.6, 21))}
    row = Distribution("spleen & co", (1.0, 0.0, 0.0), {**values, "absent": math.nan}, 0.4, 0.35, 0.45)
    drawn = distribution_plot([row], "Dice", (0.0, 1.0))
    assert drawn.count("<circle") == 21
    assert '<rect class="box" fill="#ff0000" stroke="#ff0000" x="30.0%" width="20.000%"' in drawn
    assert '<line class="median" x1="40.0%" x2="40.0%"' in drawn
    assert '<line class="interval" x1="35.0%" x2="45.0%"' in drawn
    assert "0.400 [0.350, 0.450], n 21" in drawn
    assert "spleen &amp; co" in drawn
    assert "<title>case 20: 0.600</title>" in drawn


def test_infinite_distances_are_counted_and_not_drawn():
    row = Distribution("spleen", None, {"a": 2.0, "b": math.inf, "c": 4.0}, math.inf, math.nan, math.nan)
    drawn = distribution_plot([row], "HD95 in mm", None, 2)
    assert "median 4.00, 1 of 3 infinite" in drawn
    assert drawn.count("<circle") == 2
    assert 'class="mean"' not in drawn


def test_of_very_many_cases_only_those_outside_the_whiskers_are_drawn():
    values = {f"c{place}": 0.9 + 0.01 * math.sin(place) for place in range(5000)}
    row = Distribution("spleen", None, {**values, "far": 0.1}, 0.9, 0.89, 0.91)
    drawn = distribution_plot([row], "Dice", (0.0, 1.0))
    assert drawn.count("<circle") == 1
    assert "far: 0.100" in drawn


def test_a_forest_has_no_difference_in_its_middle():
    effects = [Effect("liver", 0.02, 0.01, 0.03, "p 0.01"), Effect("tumour", -0.01, math.nan, math.nan, "one subject")]
    drawn = forest_plot([*effects, Effect("cyst", math.nan, math.nan, math.nan)], "Dice", ("none better", "scse better"))
    zeros = set(re.findall(r'class="zero" x1="([\d.]+)%"', drawn))
    assert zeros == {"50.0"}
    (low, high), (middle, *_) = (
        re.findall(r'class="interval" x1="([\d.]+)%" x2="([\d.]+)%"', drawn)[0],
        re.findall(r'<svg x="([\d.]+)%" y="13"', drawn),
    )
    assert (float(low) + float(high)) / 2 == pytest.approx(float(middle))
    assert float(low) > 50
    assert "+0.020 [+0.010, +0.030] p 0.01" in drawn
    assert "−0.010 one subject" in drawn
    assert "not counted" in drawn
    assert "scse better" in drawn


def test_signs_are_shown_but_nothing_has_none():
    assert [signed(value) for value in (0.0123, -0.0123, 0.0, -0.0001)] == ["+0.012", "−0.012", "0.000", "0.000"]


def test_the_front_is_what_nothing_dominates():
    rng = np.random.default_rng(0)
    candidates = [
        Candidate(f"n{place}", float(cost), float(score)) for place, (cost, score) in enumerate(rng.integers(1, 9, (40, 2)))
    ]

    def dominated(one):
        return any(
            other.cost <= one.cost and other.score >= one.score and (other.cost, other.score) != (one.cost, one.score)
            for other in candidates
        )

    expected = {one.name for one in candidates if not dominated(one)}
    assert {one.name for one in pareto_front(candidates)} == expected
    costs = [one.cost for one in pareto_front(candidates)]
    assert costs == sorted(costs)


def test_a_pareto_plot_places_points_and_names_those_without_a_cost():
    drawn = pareto_plot(
        [Candidate("cheap", 1.0, 0.5), Candidate("dear", 1000.0, 0.9, 0.8, 1.0), Candidate("lost", math.nan, 0.7)],
        "time",
        "Dice",
    )
    assert "logarithmic" in drawn
    assert "Not drawn, for cost or score is not known: lost." in drawn
    places = dict(zip(("cheap", "dear"), re.findall(r'<svg class="best" x="([\d.]+)%" y="([\d.]+)%"', drawn), strict=True))
    assert float(places["cheap"][0]) < float(places["dear"][0])
    assert float(places["cheap"][1]) > float(places["dear"][1])  # the better, the higher up
    assert pareto_plot([], "time", "Dice") == ""


def test_a_table_says_what_it_is_sorted_by():
    columns = [Column("name", "text"), Column("Dice", note="mean")]
    drawn = sortable_table(
        columns, [[Cell.text("a<b"), Cell.of(0.5, more="[0.4, 0.6]")], [Cell.text("c"), Cell.of(math.nan)]], "All"
    )
    assert (
        '<td class="text" data-v="a&lt;b">a&lt;b</td><td class="number" data-v="0.5">0.500 <small>[0.4, 0.6]</small></td>'
        in drawn
    )
    assert '<td class="number">–</td>' in drawn
    assert 'title="mean"' in drawn


def test_numbers_have_dashes_and_true_minus_signs():
    assert [number(value, 2) for value in (-1.5, -0.001, math.nan, math.inf)] == ["−1.50", "0.00", "–", "∞"]


def test_nothing_in_a_script_ends_it():
    assert script_text('a("</ScRipt>", 1 </b/.x)') == 'a("<\\/ScRipt>", 1 </b/.x)'
    held = json_script("x", {"name": "</script><!--<script>"})
    assert held.count("</script>") == 1
    assert "<!--" not in held


def test_a_verdict_is_text_and_a_page_holds_its_parts_in_order():
    text = page("a & b", verdict_paragraph("p < 0.05"), ["x {}"], ["one()", "two()"])
    parts = ["<title>a &amp; b</title>", "x {}", '<p class="verdict">p &lt; 0.05</p>', "one()", "two()", "</html>"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
