"""How whole scans are dealt out: what is never parted, and what is held out for the test."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg_se.data.datalist import Case, Datalist
from medseg_se.errors import DataError


def join_groups(cases: Sequence[Case], twins: Iterable[Sequence[Case]]) -> tuple[Case, ...]:
    """Return the cases with one group for all groups of which some cases are `twins`."""
    parent = {case.group: case.group for case in cases}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for first, *others in twins:
        for other in others:
            one, two = sorted((root(first.group), root(other.group)))
            parent[two] = one  # the first name of all, so that the order of the cases does not matter
    return tuple(replace(case, group=root(case.group)) for case in cases)


def refuse_parted(twins: Iterable[Sequence[Case]], source: Path) -> None:
    """Refuse prescribed folds that part cases which are the same file.

    Raises:
        DataError: They do.
    """
    for first, *others in twins:
        for other in others:
            if None not in (first.fold, other.fold) and first.fold != other.fold:
                raise DataError(
                    f"{source}: cases {first.id} and {other.id} are the same file but lie in folds {first.fold} and "
                    f"{other.fold} ({first.images[0]}, {other.images[0]}). Put them into one fold, or leave one out."
                )


def hold_out(datalist: Datalist, share: float, salt: str, stratum: Callable[[Case], str]) -> Datalist:
    """Return the datalist with a share of its training cases moved to the test, by whole groups.

    Args:
        datalist: It has no test cases.
        share: Of the cases of every stratum, which is not exceeded.
        salt: See `held_out_groups`.
        stratum: Which kind a case is of, such as its class.

    Raises:
        DataError: Nothing would be held out, as every group is larger than the share.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in datalist.training:
        counts[case.group][stratum(case)] += 1
    chosen = held_out_groups(counts, share, salt)
    if not chosen:
        raise DataError(
            f"Expected `test_share` to hold out some of the {len(counts)} groups of {datalist.source}, but {share:g} of each "
            "class is less than one group. Raise it."
        )
    training = tuple(case for case in datalist.training if case.group not in chosen)
    return replace(datalist, training=training, test=tuple(case for case in datalist.training if case.group in chosen))


def held_out_groups(counts: Mapping[str, Mapping[str, int]], share: float, salt: str) -> set[str]:
    """Return the groups that are held out: the first by a hash of salt and name that still fit into the share of each stratum.

    A group of several strata counts for each of them. What is chosen depends neither on the order of files nor on the machine.

    Args:
        counts: Group → stratum → number of its cases.
        share: Of the cases of every stratum.
        salt: Another one draws others.
    """
    wanted: dict[str, float] = defaultdict(float)
    for strata in counts.values():
        for stratum, count in strata.items():
            wanted[stratum] += share * count
    chosen = set()
    for group in sorted(counts, key=lambda group: hashlib.sha256(f"{salt}:{group}".encode()).hexdigest()):
        strata = counts[group]
        if all(count <= wanted[stratum] + 1e-9 for stratum, count in strata.items()):
            for stratum, count in strata.items():
                wanted[stratum] -= count
            chosen.add(group)
    return chosen
