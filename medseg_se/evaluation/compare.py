"""Runs against a reference, subject by subject: behind `medseg-se compare`.

Here it is settled on which cases and structures runs can be compared at all, and said what the figures leave open;
`contrasts` has the differences and their p-values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from medseg_se.errors import DataError, UsageError, some_of, unknown_name
from medseg_se.evaluation.comparison import Comparison
from medseg_se.evaluation.contrasts import Compared, Correction, Draft, Sheet, corrected
from medseg_se.evaluation.statistics.seeds import AVERAGE, RANDOM
from medseg_se.metrics.measures import DISTANCES, MEASURES, Measure
from medseg_se.metrics.measures import names as names_of

__all__ = ["Compared", "Correction", "Seeds", "compare"]

Seeds = Literal["average", "random"]
_OF_SURFACES = names_of(DISTANCES)
_SHOWN = 5  # names in a note


def compare(
    runs: Sequence[Compared],
    measure: str = "dice",
    correction: Correction = "holm",
    seeds: Seeds = "average",
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare runs with their references on the cases and structures that all of them were judged on.

    Args:
        runs: The runs and their references.
        measure: One of `MEASURES` that has a better and a worse.
        correction: "holm" or "bh" (Benjamini–Hochberg).
        seeds: What is done with several trainings of a run: "average" within each case, and how much another training would
            change is not in the interval; or "random", where seed and subject are both random effects, and interval and p are
            about other seeds too; run and reference need the same trainings for it.
        confidence: Of the intervals.
        seed: Of what is drawn at random.

    Raises:
        UsageError: A name that does not exist, or nothing to compare.
        DataError: The runs have no case or no structure in common, or were judged against different truths.
    """
    meant, names = _measure(measure, runs), [run.name for run in runs]
    if correction not in get_args(Correction):
        raise unknown_name("correction", correction, get_args(Correction))
    if seeds not in get_args(Seeds):
        raise unknown_name("way with seeds", seeds, get_args(Seeds))
    if len(set(names)) != len(names):
        raise UsageError(f"Expected every run to have a name of its own, but got {', '.join(names)}.")
    if all(run.reference is None for run in runs):
        raise UsageError(f"Expected a run besides the reference, to be compared with it, but got {', '.join(names)} alone.")
    for run in runs:
        if run.reference is not None and run.reference not in names:
            raise unknown_name(f"reference of {run.name}", run.reference, names)
    cases, notes = _common_cases(runs)
    structures, regions, more = _common_structures(runs)
    _check_truths(runs, cases)
    sheet = Sheet(meant, structures, regions, cases, _groups(runs, cases), seeds == "random", confidence, seed)
    by_name = {run.name: run for run in runs}
    drafts = [sheet.contrast(run, by_name[run.reference]) for run in runs if run.reference is not None]
    handling, doubts = _say_seeds(drafts, seeds)
    return Comparison(
        meant,
        structures,
        regions,
        tuple(cases),
        len({group or case for case, group in zip(cases, sheet.groups, strict=True)}),
        tuple(sheet.outcome(run) for run in runs),
        tuple(corrected(drafts, structures, correction)),
        correction,
        handling,
        confidence,
        (*notes, *more, *_failures(runs), *doubts, *_caveats(len(drafts), len(structures), correction, seeds)),
    )


# ------------------------------------------------------------------------------------------------------------- what is compared


def _measure(name: str, runs: Sequence[Compared]) -> Measure:
    sound = {key: measure for key, measure in MEASURES.items() if measure.better is not None}
    if name not in sound:
        raise unknown_name("measure to compare", name, sound)
    first = next(iter(runs[0].evaluations.values()))
    for run in runs:
        for evaluation in run.evaluations.values():
            if name not in evaluation.measures:
                raise DataError(f"{run.name} was judged without {name}. Judge it again with that measure.")
            if name in _OF_SURFACES and evaluation.surface != first.surface:
                raise DataError(
                    f"{run.name} was judged by {evaluation.surface} surfaces and {runs[0].name} by {first.surface} ones. Judge "
                    "both alike."
                )
            if name == "nsd" and evaluation.tolerances != first.tolerances:
                raise DataError(
                    f"{run.name} and {runs[0].name} were judged with other tolerances of the NSD. Judge both alike."
                )
    return sound[name]


def _common_cases(runs: Sequence[Compared]) -> tuple[list[str], list[str]]:
    """Return the cases that all runs were judged on, and notes on those that are left out."""
    judged = {run.name: {case.id for one in run.evaluations.values() for case in one.cases} for run in runs}
    common = set.intersection(*judged.values())
    if not common:
        listed = "; ".join(f"{name}: {_some(cases)}" for name, cases in judged.items())
        raise DataError(f"The runs have no case in common, so nothing can be compared ({listed}).")
    notes = []
    for name, cases in judged.items():
        if left_out := cases - common:
            notes.append(f"Left out of {name}, as not all runs have them: {_some(left_out)}; {len(common)} cases are compared.")
    return sorted(common), notes


def _common_structures(runs: Sequence[Compared]) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """Return the structures and regions that all runs were judged on, which are regions, and notes on the others."""
    evaluations = [one for run in runs for one in run.evaluations.values()]
    judged = [tuple(one.structures.judged()) for one in evaluations]
    common = tuple(name for name in judged[0] if all(name in others for others in judged))
    regions = tuple(name for name in common if any(name in one.structures.regions for one in evaluations))
    if not set(common) - set(regions):
        raise DataError("The runs have no structure in common, so nothing can be compared.")
    others = {name for names in judged for name in names} - set(common)
    return common, regions, [f"Structures left out, as not all runs have them: {_some(others)}."] if others else []


def _check_truths(runs: Sequence[Compared], cases: Sequence[str]) -> None:
    """Refuse runs that were judged against different truths, which volumes tell."""
    known: dict[tuple[str, str], tuple[float, str]] = {}
    wanted = set(cases)
    for run in runs:
        for evaluation in run.evaluations.values():
            for case in evaluation.cases:
                for name, volume in case.scores.get("truth_ml", {}).items() if case.id in wanted else ():
                    other, owner = known.setdefault((case.id, name), (volume, run.name))
                    if not np.isclose(volume, other, rtol=1e-6, atol=1e-9, equal_nan=True):
                        raise DataError(
                            f"{run.name} and {owner} were judged against different truths: {name} of {case.id} has "
                            f"{volume:.4g} and {other:.4g} ml. Judge both against the same one."
                        )


def _groups(runs: Sequence[Compared], cases: Sequence[str]) -> list[str | None]:
    """Return the subject of each case; None for one of its own."""
    found: dict[str, str] = {}
    for run in runs:
        for evaluation in run.evaluations.values():
            found |= {case.id: case.group for case in evaluation.cases if case.group is not None}
    return [found.get(case) for case in cases]


# ------------------------------------------------------------------------------------------------------------------------ notes


def _say_seeds(drafts: Sequence[Draft], seeds: Seeds) -> tuple[str, list[str]]:
    """Return what was done with several trainings of a run, and what this leaves open."""
    if max(max(draft.repeats) for draft in drafts) == 1:
        return "one training a run", ["One training of each run: how much another seed would change is not in the intervals."]
    unlike = [draft.name for draft in drafts if not draft.shared]
    single = [draft.name for draft in drafts if min(draft.repeats) == 1]
    notes = [f"Other trainings than the reference's, so all were taken: {_some(unlike)}."] if unlike else []
    if single:
        notes.append(
            f"Compared by one training, so how much another seed would change is not known: {_some(single, len(single))}."
        )
    if seeds == "random":
        return RANDOM, [
            "Intervals and p are about other seeds and other subjects, from a model in place of resampling.",
            *notes,
        ]
    return AVERAGE, [
        "Several trainings of a run were averaged for each subject: the intervals are for these trainings.",
        *notes,
    ]


def _failures(runs: Sequence[Compared]) -> list[str]:
    counts = {run.name: sum(len(one.failures) for one in run.evaluations.values()) for run in runs}
    return [f"{count} predictions of {name} failed and count as empty." for name, count in counts.items() if count]


def _caveats(contrasts: int, structures: int, correction: str, seeds: Seeds) -> list[str]:
    rule = {"holm": "Holm", "bh": "Benjamini–Hochberg"}[correction]
    means = f"the mean over foreground over {contrasts} runs, " if contrasts > 1 else ""
    test = "t tests of the model" if seeds == "random" else "sign-flip permutation tests"
    return [
        f"p from {test}, corrected ({rule}): {means}structures over all "
        f"{structures * contrasts}. Intervals are not corrected. No evidence of a difference is no evidence that there is none;"
        " the interval says what is still possible."
    ]


def _some(names: Iterable[str], most: int = _SHOWN) -> str:
    return some_of(sorted(names), most)
