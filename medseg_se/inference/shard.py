"""A part of a cohort, so that any scheduler can spread it over machines: `--shard 2/5` is the second of five parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medseg_se.data.datalist import Case
from medseg_se.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """One of several parts that together are the whole.

    Attributes:
        number: Which part, from 1.
        of: How many parts there are.

    Raises:
        UsageError: There is no such part.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(
                f"Expected `shard` to be a part of a whole, from 1/5 to 5/5 for instance, but got {self.number}/{self.of}."
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read a shard as it is written on the command line."""
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
        if match is None:
            raise UsageError(f"Expected `shard` to be a number and a whole, such as 2/5, but got {text!r}.")
        return cls(int(match[1]), int(match[2]))

    def of_cases(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases of this part: every n-th in the order of names, whatever order they are given in."""
        mine = {case.id for case in sorted(cases, key=lambda case: case.id)[self.number - 1 :: self.of]}
        return [case for case in cases if case.id in mine]
