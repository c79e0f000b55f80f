"""Each run beside its reference: the paired differences of every structure, and the correction of their p-values.

A difference is taken within each case, so that what makes a case hard for both does not count. The mean over foreground is
the mean, within each case, over the structures that are counted in both runs. p-values are corrected in two families: those of
the mean over foreground over all runs that are compared, and those of structures over all structures and runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from medseg_se.errors import UsageError
from medseg_se.evaluation.case import CaseResult
from medseg_se.evaluation.comparison import Contrast, Outcome
from medseg_se.evaluation.result import Evaluation
from medseg_se.evaluation.statistics.bootstrap import mean_interval
from medseg_se.evaluation.statistics.multiple import benjamini_hochberg, holm
from medseg_se.evaluation.statistics.paired import Paired, compare_paired
from medseg_se.evaluation.statistics.seeds import average_over_seeds, random_effect
from medseg_se.evaluation.verdict import MEAN
from medseg_se.metrics.measures import Measure

Array = npt.NDArray[np.float64]
Correction = Literal["holm", "bh"]
_CORRECTIONS: Mapping[Correction, Callable[[npt.ArrayLike], Array]] = {"holm": holm, "bh": benjamini_hochberg}


@dataclass(frozen=True)
class Compared:
    """A run to be compared.

    Attributes:
        name: Its name.
        evaluations: Which training it was, such as "seed 1" → what its predictions were found to be worth. Trainings of the
            same name are alike in all but what is compared: then only those that both runs have are used.
        reference: The run it is compared with; None if it is a reference.
        cost: Some of `comparison.COSTS` → number.
    """

    name: str
    evaluations: Mapping[str, Evaluation]
    reference: str | None = None
    cost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """A contrast whose p-values are not corrected yet; see `Contrast`."""

    name: str
    reference: str
    paired: Mapping[str, Paired]
    repeats: tuple[int, int]
    shared: bool


@dataclass(frozen=True)
class Sheet:
    """What all pairs of a comparison have in common."""

    measure: Measure
    structures: tuple[str, ...]
    regions: tuple[str, ...]
    cases: Sequence[str]
    groups: Sequence[str | None]
    random: bool
    confidence: float
    seed: int

    def contrast(self, run: Compared, reference: Compared) -> Draft:
        """Compare a run with its reference, on the trainings that both have or, if there is none, on all."""
        keys = [key for key in run.evaluations if key in reference.evaluations]
        shared = bool(keys)
        if self.random and not shared:
            raise UsageError(
                f"Expected {run.name} and {reference.name} to be of the same trainings where seeds are a random effect, but "
                "they have none in common. Give as many folders of each, in the order of their seeds, or average."
            )
        tables = [
            self._tables([one.evaluations[key] for key in (keys if shared else one.evaluations)]) for one in (reference, run)
        ]
        sides = [{name: average_over_seeds(table).values for name, table in side.items()} for side in tables]
        first, second = ({**side, MEAN: mean} for side, mean in zip(sides, self._means(*sides), strict=True))
        paired = {
            name: compare_paired(
                first[name],
                second[name],
                self.groups,
                better=str(self.measure.better),
                confidence=self.confidence,
                seed=self.seed,
            )
            for name in (MEAN, *self.structures)
        }
        if self.random:
            paired = {name: self._with_seeds(one, name, tables) for name, one in paired.items()}
        counts = [len(keys) if shared else len(one.evaluations) for one in (run, reference)]
        return Draft(run.name, reference.name, paired, (counts[0], counts[1]), shared)

    def outcome(self, run: Compared) -> Outcome:
        """Return how good a run is by itself."""
        side = {name: average_over_seeds(table).values for name, table in self._tables(run.evaluations.values()).items()}
        values = {**side, MEAN: self._means(side, side)[0]}
        intervals = {
            name: mean_interval(
                values[name], self.groups, confidence=self.confidence, seed=self.seed, limits=self.measure.limits
            )
            for name in (MEAN, *self.structures)
        }
        return Outcome(run.name, run.reference, tuple(run.evaluations), intervals, run.cost)

    def _tables(self, evaluations: Iterable[Evaluation]) -> dict[str, Array]:
        """Return structure → the value in each training of each case, (trainings, cases); NaN where it is not counted."""
        cases: list[dict[str, CaseResult]] = [{case.id: case for case in one.cases} for one in evaluations]

        def value(judged: Mapping[str, CaseResult], case: str, name: str) -> float:
            return judged[case].scores[self.measure.name][name] if case in judged else np.nan

        return {
            name: np.array([[value(judged, case, name) for case in self.cases] for judged in cases]) for name in self.structures
        }

    def _means(self, first: Mapping[str, Array], second: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the mean over foreground of each case, of what is counted in both."""
        names = [name for name in self.structures if name not in self.regions]
        one, other = (np.array([side[name] for name in names]) for side in (first, second))
        counted = ~(np.isnan(one) | np.isnan(other))
        number = counted.sum(axis=0)
        sums = [np.where(counted, side, 0.0).sum(axis=0) for side in (one, other)]
        means = [np.where(number > 0, total / np.maximum(number, 1), np.nan) for total in sums]
        return means[0], means[1]

    def _with_seeds(self, paired: Paired, name: str, tables: Sequence[Mapping[str, Array]]) -> Paired:
        """Return a paired difference whose interval and p are about other trainings too."""
        first, second = self._means(*tables) if name == MEAN else (side[name] for side in tables)
        subjects = [group or f"case {case}" for case, group in zip(self.cases, self.groups, strict=True)]
        distinct = list(dict.fromkeys(subjects))
        members = [[place for place, subject in enumerate(subjects) if subject == one] for one in distinct]
        differences = np.stack([average_over_seeds((second - first)[:, of].T).values for of in members], axis=1)
        found = random_effect(differences, confidence=self.confidence)
        return replace(
            paired,
            difference=found.estimate,
            low=found.low,
            high=found.high,
            permutation_p=found.p,
            wilcoxon_p=np.nan,
            reason=found.reason,
        )


def corrected(drafts: Sequence[Draft], structures: Sequence[str], correction: Correction) -> Iterable[Contrast]:
    """Yield the contrasts with p-values corrected over the means of all of them, and over all their structures."""
    correct = _CORRECTIONS[correction]

    def table(p: Callable[[Paired], float]) -> list[dict[str, float]]:
        means = correct([p(draft.paired[MEAN]) for draft in drafts])
        parts = correct([p(draft.paired[name]) for draft in drafts for name in structures]).reshape(len(drafts), -1)
        return [
            {MEAN: float(mean), **dict(zip(structures, map(float, part), strict=True))}
            for mean, part in zip(means, parts, strict=True)
        ]

    permutation, wilcoxon = table(lambda paired: paired.permutation_p), table(lambda paired: paired.wilcoxon_p)
    for draft, p, signed in zip(drafts, permutation, wilcoxon, strict=True):
        yield Contrast(draft.name, draft.reference, draft.paired, p, signed, draft.repeats, draft.shared)
