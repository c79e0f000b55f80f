"""Two methods on the same cases: `python benchmarks/paired.py OURS/evaluation.csv THEIRS/evaluation.csv`.

Reads two tables of `medseg-se evaluate`, and prints the difference of the mean Dice over the structures, case by case: its mean
with a 95 % interval (percentiles of 10,000 resamplings of the cases), and how often each was ahead. A missing prediction counts
as `evaluate` counts it; cases that only one table has are refused.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

RESAMPLINGS = 10_000


def main() -> None:
    """Compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    arguments = parser.parse_args()
    ours, theirs = read(arguments.ours), read(arguments.theirs)
    if set(ours) != set(theirs):
        apart = sorted(set(ours) ^ set(theirs))
        raise SystemExit(f"Expected the same cases, but {len(apart)} are in one table only: {', '.join(apart[:5])} …")
    pairs = np.array([(ours[case], theirs[case]) for case in sorted(ours)])
    difference = pairs[:, 0] - pairs[:, 1]
    rng = np.random.default_rng(0)
    drawn = difference[rng.integers(len(difference), size=(RESAMPLINGS, len(difference)))].mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    print(f"{len(pairs)} cases: {pairs[:, 0].mean():.4f} against {pairs[:, 1].mean():.4f}")
    print(f"difference {difference.mean():+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
    print(f"ahead in {(difference > 0).sum()}, behind in {(difference < 0).sum()}")


def read(path: Path) -> dict[str, float]:
    """Return case → mean Dice over its structures."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["case"], []).extend([float(row["dice"])] if row["dice"] else [])
    return {case: float(np.mean(values)) for case, values in dice.items()}


if __name__ == "__main__":
    main()
