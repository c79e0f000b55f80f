"""What a person should look at before training on a dataset, each doubt with the cases or structures by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medseg_se.data.check import odd_rows
from medseg_se.planning.facts import Fingerprint, Millimetres
from medseg_se.planning.measuring import called_ct

FOLDS = 5  # of a cross-validation, unless one asks for others or there are fewer groups
ODD_NEEDS = 3  # cases, below which no spacing is odd
SAME = 0.05  # spread of the logarithm of spacings that means nothing
MOST_NAMES = 6  # that a sentence lists

Places = Mapping[str, Mapping[str, float]]  # case → structure → R coordinate of its centre in mm


def find_doubts(fingerprint: Fingerprint, places: Places) -> Iterator[str]:
    """Yield one text for each kind of doubt; the worst come first.

    Args:
        fingerprint: What was measured.
        places: Case → structure with a partner on the other side → R coordinate of its centre in mm.
    """
    yield from _unusable(fingerprint)
    yield from _sides(fingerprint, places)
    yield from _few_groups(fingerprint)
    yield from _rare_structures(fingerprint)
    yield from _empty_labels(fingerprint)
    yield from _odd_spacings(fingerprint)
    yield from _orientations(fingerprint)
    yield from _rescaled(fingerprint)


def _unusable(fingerprint: Fingerprint) -> Iterator[str]:
    if fingerprint.unusable:
        count, cases = len(fingerprint.unusable), len(fingerprint.unusable) + len(fingerprint.cases)
        yield (
            f"{count} of {cases} cases cannot be used: {_listed(fingerprint.unusable)}. `medseg-se check` says why; "
            "mend them or take them out of the list, for training stops at them."
        )


def _sides(fingerprint: Fingerprint, places: Places) -> Iterator[str]:
    """Find left structures that lie to the right of their partners: in most cases, or in most pairs of a case."""
    crossed = {
        case: {(left, right): found[left] > found[right] for left, right in fingerprint.pairs if {left, right} <= set(found)}
        for case, found in places.items()
    }
    seen = {pair: [wrong[pair] for wrong in crossed.values() if pair in wrong] for pair in fingerprint.pairs}
    swapped = [pair for pair, wrong in seen.items() if 2 * sum(wrong) > len(wrong)]
    if swapped:
        counts = [
            f"{pair[0]} lies to the right of {pair[1]} in {sum(seen[pair])} of {len(seen[pair])} cases" for pair in swapped
        ]
        yield (
            f"{_listed(counts, '; ')}. Either the labels of left and right are swapped, or the orientation in the headers is "
            "wrong: correct the labels or the affines before training, or predictions will name the wrong side."
        )
    others = {case: [one for pair, one in wrong.items() if pair not in swapped] for case, wrong in crossed.items()}
    mirrored = [case for case, wrong in others.items() if 2 * sum(wrong) > len(wrong)]
    if mirrored:
        yield (
            f"Left and right seem swapped in {_cases(mirrored)}, unlike in most cases: left structures lie to the right of "
            "their partners. Check the labels and the orientation in the header."
        )


def _few_groups(fingerprint: Fingerprint) -> Iterator[str]:
    groups = fingerprint.groups
    if fingerprint.folds or groups >= FOLDS:
        return
    if groups == 1:
        yield "There is only 1 group (patient), so that nothing is left to validate on. Add cases of other patients."
    else:
        yield (
            f"There are {groups} groups (patients), fewer than the {FOLDS} folds of a usual cross-validation, so that {groups} "
            "are the most there can be. Add cases of other patients if you can."
        )


def _rare_structures(fingerprint: Fingerprint) -> Iterator[str]:
    absent = [one.name for one in fingerprint.structures if one.cases == 0]
    if absent:
        yield f"No usable case holds {_listed(absent)}. Take it out of the dataset's labels, or add cases that show it."
    single = []
    for one in fingerprint.structures:
        cases = [case for case in fingerprint.cases if one.name in case.volumes]
        if len(cases) == 1:
            single.append(f"{one.name} (only in case {cases[0].id})")
        elif len({case.group for case in cases}) == 1:
            single.append(f"{one.name} (only in group {cases[0].group})")
    if single and fingerprint.groups > 1:
        yield (
            f"Seen in one patient: {_listed(single)}. No split can both train on it and validate it. Add cases, join it with "
            "another structure, or leave it out."
        )


def _empty_labels(fingerprint: Fingerprint) -> Iterator[str]:
    empty = [case.id for case in fingerprint.cases if not case.volumes]
    if empty:
        yield f"The label map holds no structure in {_cases(empty)}. Check that the files are the right ones."


def _odd_spacings(fingerprint: Fingerprint) -> Iterator[str]:
    """Find cases whose spacing is far from the others' along any axis."""
    rows = odd_rows(np.log([case.spacing for case in fingerprint.cases]), SAME, ODD_NEEDS)
    if rows:
        odd = [fingerprint.cases[row] for row in rows]
        named = _listed([f"{case.id} ({_millimetres(case.spacing)})" for case in odd])
        yield (
            f"The spacing is far from the median of {_millimetres(fingerprint.median_spacing())} (left-right, back-front, "
            f"down-up) in {len(odd)} of {len(fingerprint.cases)} cases: {named}. Check the headers; if they are right, "
            "these scans are resampled most."
        )


def _orientations(fingerprint: Fingerprint) -> Iterator[str]:
    counts = Counter(case.orientation for case in fingerprint.cases).most_common()
    if len(counts) > 1:
        listed = _listed([f"{name} ({count})" for name, count in counts])
        yield f"The files lie in {len(counts)} orientations: {listed}. Preprocessing turns all of them alike."


def _rescaled(fingerprint: Fingerprint) -> Iterator[str]:
    for one in fingerprint.channels:
        if called_ct(one.name) and not one.looks_like_ct:
            yield (
                f"The channel {one.name!r} is called CT, but most scans hold no values like HU with air near -1000 "
                f"({one.minimum:.4g} to {one.maximum:.4g} inside the structures). Check that they were not rescaled or cropped."
            )


def _cases(names: Sequence[str]) -> str:
    return f"case{'s' if len(names) > 1 else ''} {_listed(names)}"


def _listed(names: Sequence[str] | Mapping[str, str], between: str = ", ") -> str:
    """Return the first names in a row, and how many more there are."""
    listed = list(names)
    more = f"{between}and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else ""
    return between.join(listed[:MOST_NAMES]) + more


def _millimetres(spacing: Millimetres) -> str:
    return " × ".join(f"{length:.3g}" for length in spacing) + " mm"
