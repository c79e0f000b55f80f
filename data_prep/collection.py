"""What a converter finds in a source: cases that can be read one at a time, and what their channels and labels mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg_se.structures import Structures
from medseg_se.volumes import Volume


@dataclass(frozen=True)
class Scan:
    """What one case holds.

    Attributes:
        image: The channels, (C, I, J, K), with C as many as the collection has channels; None for a label map alone.
        labels: The label map, integers (1, I, J, K) on the grid of the image, with values that the collection's structures
            declare; None if the case has none.
        notes: What a person should know of this case although it can be used, for example that masks overlapped.
    """

    image: Volume | None
    labels: Volume | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One case of a source.

    Attributes:
        id: Unique name, which becomes the name of its files; "/" puts them into a folder.
        files: Every file that it is made from; one that is missing leaves the case out.
        read: Reads it; raises `DataError` if it cannot be used, which leaves the case out. None for a picture, which is
            `files[0]` and is copied as it is.
        group: What must never be parted by a split, usually the patient; the id if empty.
        fold: The fold in which it is validated, where the source says so.
        test: Whether it is held out.
        attributes: Anything else that the source says of it (age, class, scanner).
    """

    id: str
    files: tuple[Path, ...]
    read: Callable[[], Scan] | None
    group: str = ""
    fold: int | None = None
    test: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """What a converter found.

    Attributes:
        name: Name of the dataset.
        channels: Channel names in order.
        structures: What the label values mean; None if there are no label maps.
        items: The cases.
        left_out: What cannot become a case → why. It is reported, and the exit code says so.
        notes: What a person should know of the whole; it is reported.
        tables: Name → text of files that are written beside dataset.json.
        private: Whether names of source files may tell who a person is, so that none may be written.
    """

    name: str
    channels: tuple[str, ...]
    structures: Structures | None
    items: Sequence[Item]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    private: bool = False
