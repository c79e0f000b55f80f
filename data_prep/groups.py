"""What belongs together because of what it shares, in sets that grow as more is seen (union-find)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


class Sets:
    """The numbers 0 … `count` - 1, each in a set of its own until joined."""

    def __init__(self, count: int) -> None:
        self._leader = list(range(count))

    def lead(self, member: int) -> int:
        """Return the lowest member of a member's set."""
        leader = self._leader
        while leader[member] != member:
            leader[member] = leader[leader[member]]
            member = leader[member]
        return member

    def join(self, members: Sequence[int]) -> None:
        """Make one set of the sets of all `members`."""
        leads = {self.lead(member) for member in members}
        for lead in leads:
            self._leader[lead] = min(leads)

    def members(self) -> list[list[int]]:
        """Return all sets, also those of one member, in order of their first."""
        found: Mapping[int, list[int]] = defaultdict(list)
        for member in range(len(self._leader)):
            found[self.lead(member)].append(member)
        return [found[first] for first in sorted(found)]


def connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the sets of 0 … `count` - 1 that `pairs` connect, also those of one member, in order of their first."""
    sets = Sets(count)
    for pair in pairs:
        sets.join(pair)
    return sets.members()


@dataclass(frozen=True)
class Identity:
    """What a scan says of whose it is; empty where it says nothing.

    Attributes:
        number: The patient's number.
        name: The patient's name.
        born: The patient's date of birth.
        study: The study that it belongs to, all of whose scans are of one patient.
    """

    number: str = ""
    name: str = ""
    born: str = ""
    study: str = ""


# What tells whose a scan is, each with the attributes that tell it more surely: where scans disagree in these, as those of
# people who are all called "Anonymous", nothing is joined. A key with an empty part tells nothing.
_KEYS: tuple[tuple[Callable[[Identity], tuple[str, ...]], tuple[str, ...]], ...] = (
    (lambda one: (one.number,), ()),
    (lambda one: (one.name, one.study), ("number",)),
    (lambda one: (one.name, one.born or "unknown"), ("number",)),
    (lambda one: (one.study,), ("number", "name")),
)


def by_patient(identities: Sequence[Identity]) -> list[list[int]]:
    """Return the places of the scans of each patient: by number; those without one by name, those without that by study.

    A scan without a number is of the patient with one whose name or study it shares, if there is only one such.
    """
    sets = Sets(len(identities))
    for key_of, surer in _KEYS:
        told = [{sets.lead(place) for place, one in enumerate(identities) if getattr(one, what)} for what in surer]
        places: Mapping[tuple[str, ...], list[int]] = defaultdict(list)
        for place, one in enumerate(identities):
            if all(key := key_of(one)):
                places[key].append(place)
        for members in places.values():
            leads = {sets.lead(member) for member in members}
            disagree = any(len(leads & sure) > 1 for sure in told)
            joined = leads.difference(*told) if disagree else leads
            if joined:
                sets.join(sorted(joined))
                for sure in told:
                    sure |= {sets.lead(lead) for lead in joined & sure}
    return sets.members()
