"""The plan: from what a dataset is like, and what this machine can do in the time, to a config with a reason in every line."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_se.data.datalist import Datalist
from medseg_se.errors import DataError, UsageError
from medseg_se.planning.budget import (
    Costs,
    Timetable,
    preferred,
    smallest_budget,
    spoken_memory,
    spoken_time,
    timetable,
    written_time,
)
from medseg_se.planning.candidates import Candidate, ladder, reach
from medseg_se.planning.facts import CaseFacts, Fingerprint
from medseg_se.planning.machine import Machine
from medseg_se.planning.measurements import Measurements
from medseg_se.planning.network_rules import (
    by,
    machine_settings,
    network_settings,
    patch_settings,
    seen_share,
    time_settings,
    whole_patch,
)
from medseg_se.planning.recipe import arguments_of, changed, check_recipe, network_options, sliced
from medseg_se.planning.rules import Decision, augment, choose_grid, judging_memory, prepare, sample, split
from medseg_se.planning.trial import Measurement, tiles
from medseg_se.processors import at_once

ENOUGH_STEPS = 6000
"""A network grows only as long as it gets so many steps: below, a smaller one that takes more steps learns more."""
FEWEST_STEPS = 250
"""Below, a training is not worth beginning."""
_PARSING = 2.0  # seconds in which `fit` reads its configs, which a trial does not
_MOST_TRIALS, _LONGEST_TRIALS = 4, 40.0
_ROOM = 1.1  # between the peak of a trial and the memory there is
_LARGE = 5e6  # voxels
_COPIES = 4  # of a scan as float32 are held while it is prepared, with its labels; as many again on another grid
_PREPARING = 10**8  # bytes that the first scan takes besides: libraries that are loaded for it


@dataclass(frozen=True)
class Wishes:
    """What a person asks of a plan.

    Attributes:
        budget: Seconds that `medseg-se fit` may take, from the command to its last line.
        memory: Bytes that it may take; what the machine has if None.
        folds: Number of folds; chosen by the plan if None.
        fold: Which fold is validated; the first if None.
    """

    budget: float
    memory: int | None = None
    folds: int | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Option:
    """A candidate that was tried.

    Attributes:
        candidate: The candidate.
        decisions: All that is decided before the timetable is.
        measurement: What the trial found.
        costs: What the parts of the training take.
        table: How the budget is spent.
        memory: Bytes that the run takes at most: to train, to judge its largest scan, or to prepare its largest scans.
    """

    candidate: Candidate
    decisions: tuple[Decision, ...]
    measurement: Measurement
    costs: Costs
    table: Timetable
    memory: float


@dataclass(frozen=True)
class Plan:
    """A config and why it is as it is.

    Attributes:
        config: What `medseg-se fit --config` reads.
        decisions: What was decided.
        warnings: What a person should know of the data.
        chosen: The candidate that was chosen.
    """

    config: dict[str, Any]
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...]
    chosen: Option


class Planner:
    """Chooses among candidates by what their trials find.

    Args:
        datalist: The cases.
        fingerprint: What they are like.
        recipe: The config to begin with; it says which network and attention, and all that no rule decides.
        machine: What the training runs on.
        wishes: What a person asks for.
        folder: Where the training is to keep its run and its prepared scans.
        measurements: What trials found.

    Raises:
        UsageError: The recipe makes no sense, there are fewer groups than folds, or the fold is none of them.
        DataError: No case that would validate can be used.
    """

    def __init__(
        self,
        datalist: Datalist,
        fingerprint: Fingerprint,
        recipe: Mapping[str, Any],
        machine: Machine,
        wishes: Wishes,
        folder: Path,
        measurements: Measurements,
    ) -> None:
        check_recipe(recipe)
        self.datalist, self.fingerprint, self.recipe = datalist, fingerprint, recipe
        self.machine, self.wishes, self.folder, self.measurements = machine, wishes, folder, measurements
        self.memory = min(wishes.memory or machine.memory, machine.memory)
        self.options = network_options(recipe)
        self.grid = sliced(choose_grid(fingerprint, reach(machine.kind), self.memory), recipe)
        self.split = split(fingerprint, wishes.folds, wishes.fold)
        self.prepare = prepare(fingerprint, self.grid)
        self.tried = _tried_cases(fingerprint)
        self.judged = self._shapes(_validated(datalist, fingerprint, self.split))
        channels, classes = len(fingerprint.channels), len(fingerprint.structures) + 1
        self.judging = judging_memory(max(map(math.prod, self._shapes(fingerprint.cases))), channels, classes)
        self.busy = False

    def plan(self) -> Plan:
        """Return the largest candidate that gets enough steps in the time and fits the memory.

        Raises:
            UsageError: The budget or the memory is too small for any; says what suffices.
            DataError: The scans are too small for a network, or cannot be prepared.
        """
        candidates = ladder(self.fingerprint, self.grid, self.machine.kind)
        if "channels" not in self.options:  # they would differ in nothing
            candidates = list({(each.patch, each.batch): each for each in candidates}.values())
        chosen = self._choose(candidates)
        size = f"size {candidates.index(chosen.candidate) + 1} of {len(candidates)}"
        decisions = (*chosen.decisions, *time_settings(chosen.costs, chosen.table, self.wishes.budget, size))
        broken = [
            f"{name} cannot be used; `fit` refuses the dataset until it is repaired or left out: {why}"
            for name, why in self.fingerprint.unusable.items()
        ]
        warnings = (*broken, *self.fingerprint.warnings, *self._doubts(chosen))
        return Plan(changed(self.recipe, decisions), decisions, warnings, chosen)

    def _doubts(self, chosen: Option) -> list[str]:
        """Return what a person should know of how this was planned."""
        doubts = []
        if self.busy:
            doubts.append(
                "the machine was busy with other work when networks were tried, so the times found may be too long; "
                "plan again when it is idle"
            )
        if self.wishes.memory and self.wishes.memory > self.memory:
            doubts.append(
                f"`memory` of {spoken_memory(self.wishes.memory)} is more than this machine can give; planned for "
                f"{spoken_memory(self.memory)}"
            )
        if chosen.memory > self.memory:  # nothing else may: it was refused
            doubts.append(
                f"preparing {at_once()} of the largest scans at once may take {spoken_memory(round(chosen.memory))}, "
                f"more than {spoken_memory(self.memory)}"
            )
        return doubts

    # ---------------------------------------------------------------------------------------------------------- choosing

    def _choose(self, candidates: Sequence[Candidate]) -> Option:
        """Search for the largest candidate that will do: try the largest that should, by what was found of the last one."""
        best, seconds = self._try(candidates[0])
        best = self._smallest_that_works(best, candidates[0])
        known, low, high = [best], 0, len(candidates)
        for _ in range(_MOST_TRIALS - 1):
            promising = [place for place in range(low + 1, high) if self._promises(known, candidates[place])]
            if not promising or seconds > _LONGEST_TRIALS:
                break
            option, took = self._try(candidates[promising[-1]])
            seconds += took
            if option is not None:
                known.append(option)
            if option is not None and option.table.steps >= ENOUGH_STEPS and self._fits(option.measurement.peak):
                low, best = promising[-1], option
            else:
                high = promising[-1]
        return best

    def _promises(self, known: Sequence[Option], candidate: Candidate) -> bool:
        """Tell whether a candidate should do, judging by those that were tried: the last one, and how much more it took."""
        last, before = known[-1], known[0]
        power = 1.0
        if last is not before:
            more = math.log(last.costs.step / before.costs.step)
            power = min(1.2, max(0.5, more / math.log(last.candidate.work / before.candidate.work)))
        step = last.costs.step * (candidate.work / last.candidate.work) ** power
        found = last.measurement
        peak = found.prepared + (found.peak - found.prepared) * candidate.maps / last.candidate.maps
        return last.table.training / step >= ENOUGH_STEPS and self._fits(peak)

    def _fits(self, peak: float) -> bool:
        return _ROOM * peak <= self.memory

    def _try(self, candidate: Candidate) -> tuple[Option | None, float]:
        """Return what came of a trial, and how many seconds it took beside preparing its cases.

        Every trial prepares them anew: its time and its memory do not depend on which trials were before.
        """
        decisions = self._decisions(candidate)
        names = [case.id for case in self.tried]
        with tempfile.TemporaryDirectory(prefix="medseg-plan-") as store:
            tried = self.measurements.of(changed(self.recipe, decisions), names, Path(store))
        self.busy = self.busy or tried.busy
        found = tried.measurement
        if found is None:
            return None, tried.seconds
        costs = self._costs(found, candidate)
        table = timetable(self.wishes.budget, costs)
        memory = max(found.peak, found.base + self.judging, found.base + self._preparing_memory())
        return Option(candidate, tuple(decisions), found, costs, table, memory), tried.seconds - found.preparing

    def _smallest_that_works(self, option: Option | None, candidate: Candidate) -> Option:
        """Refuse a machine, a memory or a budget that is too small for the smallest candidate."""
        what = f"the smallest network ({candidate.channels[0]} channels, {by(candidate.patch)} voxels)"
        if option is None:
            raise UsageError(
                f"Not even {what} could be tried on {self.machine.device}: its memory did not suffice, or two minutes did not. "
                "Take a machine with more memory, or a recipe with a smaller network."
            )
        needed = _ROOM * max(option.measurement.peak, option.measurement.base + self.judging)
        if needed > self.memory:
            raise UsageError(
                f"Expected `memory` of at least {math.ceil(needed / 1e8) / 10:.1f}GB, which {what} takes, "
                f"but got {spoken_memory(self.memory)}."
            )
        if option.table.steps < FEWEST_STEPS:
            costs = option.costs
            raise UsageError(
                f"Expected `budget` of at least {written_time(smallest_budget(costs, FEWEST_STEPS))}, but got "
                f"{spoken_time(self.wishes.budget)}: starting takes {spoken_time(costs.startup)}, preparing the scans "
                f"{spoken_time(costs.preparing)}, judging {spoken_time(costs.judging + costs.validation)}, and {FEWEST_STEPS} "
                f"steps of {what} {spoken_time(FEWEST_STEPS * costs.step)}."
            )
        return option

    # ------------------------------------------------------------------------------------------------------------- costs

    def _costs(self, found: Measurement, candidate: Candidate) -> Costs:
        """Return what a training of all cases takes, from a trial of some; in preferred numbers."""
        every, some = (sum(math.prod(case.shape) for case in cases) for cases in (self.fingerprint.cases, self.tried))
        patch = whole_patch(candidate.patch, self.grid.flat_axis)
        return Costs(
            startup=preferred(found.startup + _PARSING),
            preparing=preferred(found.preparing * every / some),
            step=preferred(found.step),
            validation=preferred(found.validation * len(self.judged)),
            judging=preferred(found.tile * sum(tiles(shape, patch) for shape in self.judged)),
        )

    def _preparing_memory(self) -> float:
        """Return the bytes that preparing the largest scans takes, as many at a time as a training does; a card takes none."""
        if self.machine.kind == "cuda":
            return 0.0
        channels, cases = len(self.fingerprint.channels), self.fingerprint.cases
        copied = [
            math.prod(case.shape) + (math.prod(shape) if shape not in (case.shape, case.cropped) else 0)
            for case, shape in zip(cases, self._shapes(cases), strict=True)
        ]
        return _PREPARING + 4 * _COPIES * max(1, channels) * sum(sorted(copied)[-at_once() :])

    def _shapes(self, cases: Sequence[CaseFacts]) -> list[tuple[int, ...]]:
        """Return the voxels of cases once they are prepared."""
        cropped = any((decision.key, decision.value) == ("data.crop", "nonzero") for decision in self.prepare)
        shapes = [case.cropped if cropped else case.shape for case in cases]
        return [
            tuple(max(1, round(n * old / new)) for n, old, new in zip(shape, case.spacing, self.grid.spacing, strict=True))
            for shape, case in zip(shapes, cases, strict=True)
        ]

    # --------------------------------------------------------------------------------------------------------- decisions

    def _decisions(self, candidate: Candidate) -> list[Decision]:
        """Return all that is decided before the timetable is."""
        fingerprint, grid = self.fingerprint, self.grid
        patch = whole_patch(candidate.patch, grid.flat_axis)
        own = arguments_of(self.recipe, "model").get("network_options") or {}
        cases = f"{len(fingerprint.cases)} cases, {fingerprint.groups} groups"
        return [
            *machine_settings(self.machine),
            Decision("trainer.default_root_dir", str(self.folder / "run"), "beside this plan"),
            *network_settings(candidate, self.options, own),
            Decision("data.source", str(self.datalist.source.resolve()), cases),
            Decision("data.store", str(self.folder / "prepared"), "scans are prepared once, for every run of this plan"),
            *self.split,
            *self.prepare,
            *patch_settings(candidate, fingerprint, grid, self.machine),
            *sample(fingerprint, seen_share(patch, fingerprint.median_shape(grid.spacing))),
            *augment(fingerprint, grid, patch),
        ]


def _validated(datalist: Datalist, fingerprint: Fingerprint, chosen: Sequence[Decision]) -> list[CaseFacts]:
    """Return the usable cases that validate."""
    values = {decision.key: decision.value for decision in chosen}
    fold = values["data.fold"]
    cases = datalist.training if fold is None else datalist.fold(fold, values["data.folds"])[1]
    names = {case.id for case in cases}
    found = [case for case in fingerprint.cases if case.id in names]
    if not found:
        raise DataError(f"None of the cases that would validate can be used, the first being {cases[0].id}.")
    return found


def _tried_cases(fingerprint: Fingerprint) -> list[CaseFacts]:
    """Return some cases of typical size, the most typical one last; enough to prepare as many at a time as a training does."""
    ordered = sorted(fingerprint.cases, key=lambda case: (math.prod(case.shape), case.id))
    middle = len(ordered) // 2
    workers = at_once()
    number = workers if math.prod(ordered[middle].shape) > _LARGE else 4 * workers
    first = max(0, min(middle - number // 2, len(ordered) - number))
    typical = ordered[middle]
    return [*(case for case in ordered[first : first + number] if case is not typical), typical]
