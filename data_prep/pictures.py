"""Pictures in one folder a class (JPEG, PNG): copied, with copies of one picture kept together and out of the test set.

Collections put together from the web hold the same slice many times, saved again or cropped anew, and their training and test
folders share patients. Pictures that show the same become one group, which no split parts.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_se.data.datalist import Case
from medseg_se.data.pictures import PARTS, is_picture, read_class_folders
from medseg_se.data.whole_scan_split import held_out_groups
from medseg_se.errors import DataError, UsageError

from .collection import Collection, Item
from .copies import ALIKE, Link, find_links, print_all
from .folders import folders_in
from .groups import connected

TABLE = "copies.csv"
SHOWN = 20  # pictures in different classes that are named
TEST_PARTS = tuple(part for part in PARTS if part.startswith("test"))


@dataclass(frozen=True)
class Picture:
    """One picture of the source.

    Attributes:
        path: Its file.
        id: Its place in the source without the suffix.
        kind: Its class.
        part: The folder of the split that it lies in, if there are such.
        patient: The sub-folder of the class that it lies in, if any.
    """

    path: Path
    id: str
    kind: str
    part: str
    patient: str

    @property
    def test(self) -> bool:
        """Whether the source holds it out."""
        return self.part.lower() in TEST_PARTS


def find(source: Path, *, alike: float = ALIKE, keep_leaks: bool = False, test: float = 0.0) -> Collection:
    """Convert a folder of one folder a class, or of the parts of a split (Training, Testing) with such folders in each.

    Pictures are copied as they are. Those that show the same, byte for byte or nearly, and those of one sub-folder (a patient)
    share a group. A test picture whose group is also trained on is left out. All copies are listed in copies.csv.

    Args:
        source: The folder.
        alike: Correlation of thumbnails from which two pictures are one, up to 1. Raise it where different patients look alike.
        keep_leaks: Keep test pictures that show the same as a training picture, or a patient of the training.
        test: Share of the pictures of every class that is held out, by whole groups in the order of a hash of their names,
            where the source holds out none.
    """
    root, pictures = _pictures(source)
    _check_share(test, pictures, source)
    prints, broken = print_all([picture.path for picture in pictures])
    readable = [picture for picture in pictures if picture.path in prints]
    links = find_links([prints[picture.path] for picture in readable], alike)
    copies = [members for members in connected(len(readable), [link.pair for link in links]) if len(members) > 1]
    groups = connected(len(readable), [*(link.pair for link in links), *_same_patient(readable)])
    leaks = {} if keep_leaks else _leaks(readable, groups, copies)
    left_out = {_shown(picture, root): broken[picture.path] for picture in pictures if picture.path in broken}
    left_out.update({_shown(readable[place], root): why for place, why in leaks.items()})
    group_of = {place: _group_name([readable[member] for member in members]) for members in groups for place in members}
    held_out = _drawn(readable, groups, group_of, test)
    items = [
        _item(picture, group_of[place], held_out=group_of[place] in held_out)
        for place, picture in enumerate(readable)
        if place not in leaks
    ]
    return Collection(
        root.resolve().name,
        ("image",),
        None,
        items,
        left_out,
        _notes(readable, links, copies, groups, leaks),
        {TABLE: _table(readable, links, copies, root)},
    )


# ------------------------------------------------------------------------------------------------------------------- listing


def _pictures(source: Path) -> tuple[Path, list[Picture]]:
    """Return the folder that holds the classes or parts, and all pictures."""
    root = source
    while (inner := _folders(root)) and len(inner) == 1 and _folders(inner[0]) and not any(map(is_picture, root.iterdir())):
        root = inner[0]  # what an archive wraps around its content
    if not inner:
        raise DataError(
            f"Expected {source} to hold a folder of pictures for each class, or folders Training and Testing of such."
        )
    are_parts = _are_parts(root, inner)
    cases = (
        [(folder.name, case) for folder in inner for case in _cases(folder)] if are_parts else [("", c) for c in _cases(root)]
    )
    stems = Counter(_stem(part, case).lower() for part, case in cases)
    return root, [_picture(part, case, stems[_stem(part, case).lower()] > 1) for part, case in cases]


def _are_parts(root: Path, inner: Sequence[Path]) -> bool:
    """Tell the parts of a split from classes; both beside each other would make classes of what is held out."""
    parts = [folder.name for folder in inner if folder.name.lower() in PARTS]
    others = [folder.name for folder in inner if folder.name.lower() not in PARTS]
    if parts and others:
        raise DataError(
            f"{root} holds parts of a split ({', '.join(parts)}) beside other folders ({', '.join(others)}). "
            "Move the others away, or name one part as the source."
        )
    return bool(parts)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in folders_in(folder) if not entry.name.startswith("_")]


def _cases(folder: Path) -> tuple[Case, ...]:
    return read_class_folders(folder).training


def _stem(part: str, case: Case) -> str:
    name = case.id.removesuffix(case.images[0].suffix)
    return f"{part}/{name}" if part else name


def _picture(part: str, case: Case, shares_stem: bool) -> Picture:
    """Describe a picture; 1.jpg and 1.png side by side keep their suffix in their names."""
    path = case.images[0]
    name = f"{_stem(part, case)}_{path.suffix[1:].lower()}" if shares_stem else _stem(part, case)
    return Picture(path, name, str(case.attributes["class"]), part, case.group if case.group != case.id else "")


def _shown(picture: Picture, root: Path) -> str:
    return picture.path.relative_to(root).as_posix()


# ------------------------------------------------------------------------------------------------------------------ grouping


def _same_patient(pictures: Sequence[Picture]) -> list[tuple[int, int]]:
    first_of: dict[str, int] = {}
    return [(first_of.setdefault(picture.patient, place), place) for place, picture in enumerate(pictures) if picture.patient]


def _group_name(pictures: Sequence[Picture]) -> str:
    """Return the first patient's name, or that of the first picture."""
    patients = sorted(picture.patient for picture in pictures if picture.patient)
    return patients[0] if patients else min(picture.id for picture in pictures)


def _leaks(pictures: Sequence[Picture], groups: Sequence[Sequence[int]], copies: Sequence[Sequence[int]]) -> dict[int, str]:
    """Return the test pictures whose group is trained on, with the reason."""
    twins = {place: members for members in copies for place in members}
    leaks = {}
    for members in groups:
        trained = [place for place in members if not pictures[place].test]
        for place in members:
            if not trained or not pictures[place].test:
                continue
            same = [twin for twin in twins.get(place, ()) if not pictures[twin].test]
            if same:
                what = f"It shows the same as {pictures[same[0]].id}"
            else:
                what = f"It is of one patient, or of copies of one picture, with {pictures[trained[0]].id}"
            leaks[place] = f"{what}, which is trained on: a test on it would flatter. `--keep_leaks` keeps it."
    return leaks


def _check_share(share: float, pictures: Sequence[Picture], source: Path) -> None:
    if not 0 <= share < 1:
        raise UsageError(f"Expected `test` to be at least 0 and below 1, but got {share}.")
    if share and any(picture.test for picture in pictures):
        raise UsageError(f"{source} holds out a test part of its own. Leave out `test`, or name the other part as the source.")


def _drawn(pictures: Sequence[Picture], groups: Sequence[Sequence[int]], group_of: Mapping[int, str], share: float) -> set[str]:
    """Return the names of the groups that are held out, see `held_out_groups`."""
    counts = {group_of[members[0]]: Counter(pictures[place].kind for place in members) for members in groups}
    return held_out_groups(counts, share, "test") if share else set()


def _item(picture: Picture, group: str, held_out: bool) -> Item:
    attributes = {"class": picture.kind, **({"split": picture.part} if picture.part else {})}
    return Item(picture.id, (picture.path,), None, group, test=picture.test or held_out, attributes=attributes)


# ----------------------------------------------------------------------------------------------------------------- reporting


def _notes(
    pictures: Sequence[Picture],
    links: Sequence[Link],
    copies: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    leaks: Mapping[int, str],
) -> list[str]:
    if not copies:
        return [f"No two of the {len(pictures)} pictures show the same."]
    kinds = Counter(_kinds(links).values())
    listed = ", ".join(f"{kinds[kind]} {words}" for kind, words in _WORDS.items() if kinds[kind])
    surplus, most = sum(len(members) - 1 for members in copies), max(map(len, copies))
    notes = [
        f"{sum(map(len, copies))} of the {len(pictures)} pictures show the same as another ({listed}); without the copies "
        f"there would be {len(pictures) - surplus}. The most copies of one are {most}. "
        f"They are kept together in {len(groups)} groups and listed in {TABLE}."
    ]
    torn = [members for members in copies if len({pictures[place].kind for place in members}) > 1]
    for members in torn[:SHOWN]:
        named = " = ".join(pictures[place].id for place in members)
        notes.append(f"The same picture in different classes; decide which is right: {named}")
    if len(torn) > SHOWN:
        notes.append(f"{len(torn) - SHOWN} more pictures are in different classes, see {TABLE}.")
    if leaks:
        notes.append(f"{len(leaks)} test pictures are left out, for what they show is trained on.")
    return notes


_WORDS = {"identical": "byte for byte", "similar": "nearly", "mirrored": "mirrored"}


def _kinds(links: Sequence[Link]) -> dict[int, str]:
    """Return picture → the closest kind of copy that it is."""
    found: dict[int, str] = {}
    for kind in reversed(_WORDS):
        found.update({place: kind for link in links if link.kind == kind for place in link.pair})
    return found


def _table(pictures: Sequence[Picture], links: Sequence[Link], copies: Sequence[Sequence[int]], root: Path) -> str:
    """Return the CSV: one line a picture that has copies, with how it is linked to them."""
    kinds, stream = _kinds(links), io.StringIO()
    best: dict[int, float] = {}
    for link in links:
        for place in link.pair:
            best[place] = max(best.get(place, 0.0), link.correlation)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("set", "picture", "class", "part", "copy", "correlation"))
    for number, members in enumerate(copies, start=1):
        for place in members:
            picture = pictures[place]
            shown = picture.path.relative_to(root).as_posix()
            writer.writerow((number, shown, picture.kind, picture.part, kinds[place], f"{best[place]:.4f}"))
    return stream.getvalue()
