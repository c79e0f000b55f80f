"""How often 95 % intervals hold, and how long one takes: `python benchmarks/intervals.py [--repeats N]`.

Samples of 5 to 40 values are drawn from shapes that Dice values have; an interval holds if the true mean (median) lies in it.
Beside the package's intervals: SciPy's percentile and BCa bootstrap, and Student's t. Then the same for differences of recipes
that were trained with several seeds. Writes tables to the terminal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg_se.evaluation.statistics import bootstrap, seeds

Array = npt.NDArray[np.float64]
RESAMPLES = 1000


def normal(generator: np.random.Generator, size: tuple[int, int]) -> Array:
    """Return values without skew, as differences of two runs are."""
    return generator.normal(0.9, 0.05, size)


def dice(generator: np.random.Generator, size: tuple[int, int]) -> Array:
    """Return values of a structure that is segmented well: mean 0.9, skewness −1.1."""
    return generator.beta(18, 2, size)


def hard(generator: np.random.Generator, size: tuple[int, int]) -> Array:
    """Return values of a structure that sometimes goes wrong: mean 0.91, skewness −1.8."""
    return generator.beta(6, 0.6, size)


def missed(generator: np.random.Generator, size: tuple[int, int]) -> Array:
    """Return values of a structure that is missed, Dice 0, in 8 of 100 cases."""
    return np.where(generator.random(size) < 0.08, 0.0, generator.beta(18, 2, size))


def of_scipy(values: Array, method: str, statistic: Callable[..., object]) -> tuple[Array, Array]:
    """Return SciPy's interval of each row."""
    found = stats.bootstrap(
        (values,), statistic, axis=1, n_resamples=RESAMPLES, method=method, batch=50, rng=np.random.default_rng(0)
    ).confidence_interval
    return found.low, found.high


def of_student(values: Array) -> tuple[Array, Array]:
    """Return Student's interval of each row."""
    found = stats.ttest_1samp(values, 0, axis=1).confidence_interval()
    return found.low, found.high


def of_package(values: Array, interval: Callable[..., bootstrap.Interval]) -> tuple[Array, Array]:
    """Return the package's interval of each row."""
    found = [interval(row, resamples=RESAMPLES) for row in values]
    return np.array([one.low for one in found]), np.array([one.high for one in found])


def held(found: tuple[Array, Array], truth: float) -> str:
    """Return how many per cent of the intervals hold."""
    return f"{100 * np.mean((found[0] <= truth) & (truth <= found[1])):.1f}"


def show_coverage(repeats: int) -> None:
    """Print both tables."""
    print("\n| values | n | mean: t | percentile | BCa | **studentised** | width / t | median: percentile | **expanded** |")
    print("|---|---|---|---|---|---|---|---|---|")
    for draw in (normal, dice, hard, missed):
        many = draw(np.random.default_rng(1), (1, 4_000_000))
        mean, median = float(many.mean()), float(np.median(many))
        for n in (5, 8, 12, 20, 40):
            values = draw(np.random.default_rng(n), (repeats, n))
            student, studentised = of_student(values), of_package(values, bootstrap.mean_interval)
            width = np.median(studentised[1] - studentised[0]) / np.median(student[1] - student[0])
            row = [draw.__name__, str(n), held(student, mean)]
            row += [held(of_scipy(values, method, np.mean), mean) for method in ("percentile", "BCa")]
            row += [held(studentised, mean), f"{width:.2f}"]
            row += [held(of_scipy(values[: repeats // 2], "percentile", np.median), median)]
            row += [held(of_package(values[: repeats // 2], bootstrap.median_interval), median)]
            print(f"| {' | '.join(row)} |", flush=True)


def show_time() -> None:
    """Print how long an interval from 10,000 resamples of 100 subjects takes, drawn anew and with draws that are kept."""
    values = dice(np.random.default_rng(0), (1, 100))[0]
    for interval in (bootstrap.mean_interval, bootstrap.median_interval):
        times: dict[bool, list[float]] = {True: [], False: []}
        for round_number in range(40):
            first = round_number % 2 == 0
            if first:
                bootstrap._draw.cache_clear()
            start = time.perf_counter()
            interval(values)
            times[first].append(1000 * (time.perf_counter() - start))
        anew, kept = np.median(times[True]), np.median(times[False])
        print(f"{interval.__name__}: {anew:.1f} ms, and {kept:.1f} ms for the next of as many subjects")


def show_seeds(repeats: int) -> None:
    """Print how often intervals hold the difference of two recipes where the seed matters, in both ways of the package."""
    print("\n| seeds | subjects | SD of seeds / subjects | averaged | random effects |")
    print("|---|---|---|---|---|")
    for count in (2, 3, 5):
        for subjects in (10, 40):
            for of_seed in (0.0, 0.2, 0.5):
                generator, both = np.random.default_rng(count), np.zeros(2)
                for _ in range(repeats):
                    table = generator.normal(0, of_seed, (count, 1)) + generator.normal(0, 1, (count, subjects))
                    table += generator.normal(0, 1, subjects)
                    low, high = stats.ttest_1samp(seeds.average_over_seeds(table).values, 0).confidence_interval()
                    found = seeds.random_effect(table)
                    both += [low <= 0 <= high, found.low <= 0 <= found.high]
                averaged, modelled = 100 * both / repeats
                print(f"| {count} | {subjects} | {of_seed} | {averaged:.1f} | {modelled:.1f} |", flush=True)


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=2000, help="samples of each size and shape")
    arguments = parser.parse_args()
    show_time()
    show_seeds(arguments.repeats)
    show_coverage(arguments.repeats)


if __name__ == "__main__":
    sys.exit(main())
