"""The LightningDataModules of classification and regression: whole scans with the class or the numbers true of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg_se.data.datalist import Case
from medseg_se.data.whole_scan_data import WholeScanData, has_value, quoted
from medseg_se.errors import DataError, UsageError


class ClassificationData(WholeScanData):
    """Whole scans with the class of each; arguments as `WholeScanData`.

    Attributes:
        classes: Names of the classes in the order of their numbers, which is that of the alphabet.
    """

    task = "classification"

    def read_targets(self) -> None:
        """Find the classes of the training cases.

        Raises:
            UsageError: Several attributes are to be learnt.
            DataError: A case has no class, or there are fewer than two.
        """
        if len(self.targets) != 1:
            raise UsageError(f"Expected `target` to be one attribute that holds a class, but got {self.targets}.")
        found = {self._class_of(case) for case in self.datalist.training}
        self.classes = tuple(sorted(found))
        self.num_classes = len(self.classes)
        if self.num_classes < 2:
            raise DataError(
                f"Expected at least two classes in {self.datalist.source}, but got {', '.join(self.classes)} alone."
            )

    def _class_of(self, case: Case) -> str:
        return class_name(_attribute(case, self.targets[0], self.datalist.source))

    def stratum(self, case: Case) -> str:
        """Return the class of a case."""
        return self._class_of(case)

    def encode(self, cases: Sequence[Case]) -> Tensor:
        """Return class numbers (N,).

        Raises:
            DataError: A class that no training case has.
        """
        numbers = []
        for case in cases:
            name = self._class_of(case)
            if name not in self.classes:
                raise DataError(f"Case {case.id} of {self.datalist.source} has the class {name!r}, which no training case has.")
            numbers.append(self.classes.index(name))
        return torch.tensor(numbers)

    def check_training(self, cases: Sequence[Case]) -> None:
        """Refuse a fold that leaves a class without training cases."""
        missing = set(self.classes) - {self._class_of(case) for case in cases}
        if missing:
            raise DataError(
                f"Fold {self.fold} of {self.datalist.source} leaves no case of the class {sorted(missing)[0]!r} to train on. "
                "Take another `split_seed`, or more folds."
            )

    def describe_targets(self) -> dict[str, Any]:
        """Return the attribute and the names of its classes."""
        return {"target": self.targets[0], "classes": list(self.classes)}


def class_name(value: Any) -> str:
    """Return the name of a class as an attribute gives it; JSON may hold 1, 1.0 and "1" for the same one."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


class RegressionData(WholeScanData):
    """Whole scans with one number of each, such as the age, or several; arguments as `WholeScanData`."""

    task = "regression"

    def read_targets(self) -> None:
        """Check that every training case has its numbers.

        Raises:
            DataError: A case lacks a number.
        """
        self.num_classes = len(self.targets)
        self.encode(self.datalist.training)

    def encode(self, cases: Sequence[Case]) -> Tensor:
        """Return the numbers (N, V), float32."""
        return torch.tensor([[self._number(case, name) for name in self.targets] for case in cases])

    def _number(self, case: Case, name: str) -> float:
        value = _attribute(case, name, self.datalist.source)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"Expected {name!r} of case {case.id} in {self.datalist.source} to be a number, but got {value!r}.")
        return number

    def check_training(self, cases: Sequence[Case]) -> None:
        """Refuse numbers that are the same in every training case."""
        numbers = self.encode(cases)
        for name, low, high in zip(self.targets, numbers.amin(0).tolist(), numbers.amax(0).tolist(), strict=True):
            if low == high:
                raise DataError(
                    f"Every training case of {self.datalist.source} has {name!r} {low:g}: there is nothing to learn."
                )

    def describe_targets(self) -> dict[str, Any]:
        """Return the names of the numbers."""
        return {"values": list(self.targets)}


def _attribute(case: Case, name: str, source: Path) -> Any:
    if name not in case.attributes:
        raise DataError(
            f"Case {case.id} of {source} has no attribute {name!r}; it has {quoted(case.attributes) or 'none'}. "
            "`target` says which one is learnt."
        )
    if not has_value(case, name):
        raise DataError(
            f"Case {case.id} of {source} has no value of {name!r}, but {case.attributes[name]!r}. Give it one, or leave it out."
        )
    return case.attributes[name]
