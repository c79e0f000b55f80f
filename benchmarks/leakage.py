"""How far copies flatter a classifier: `python benchmarks/leakage.py PICTURES OUTPUT --minutes 30`.

PICTURES is a folder with one folder of pictures a class. The same recipe is trained for the same time on two splits of them:
- grouped: pictures that show the same are never parted, as `medseg-prep pictures --test` holds them out;
- careless: single pictures are held out at random, as many of every class, so that copies of test pictures are trained on.

Both are judged by `medseg-se predict` and `medseg-se evaluate`. Two answers follow: what the careless split gains over the
grouped one, whose test pictures differ; and within the careless one, how much better test pictures are answered that have a
copy in the training than those that have none. Copies are those that `medseg-prep pictures` finds. Other slices of one patient
are not, where folders do not tell patients: the leak is then at least what is found.

What follows `--` goes to both `medseg-se fit`, such as `-- --data.size [64,64]`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from medseg_se.data_prep.main import main as prepare

from medseg_se.data.datalist import read_json
from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.statistics.bootstrap import Interval
from medseg_se.evaluation.statistics.proportions import ProportionDifference, two_proportion_z, wilson_interval
from medseg_se.files import write_json

Entry = dict[str, Any]
SPLITS = ("grouped", "careless")


def main() -> None:
    """Make the splits, train and judge on both, and say how they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("output", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--config", default="tumour_resnet18v2_se", help="recipe of both trainings")
    parser.add_argument("--minutes", type=float, default=30, help="of each training")
    parser.add_argument("--test", type=float, default=0.15, help="share of every class that is held out")
    parser.add_argument("--seed", type=int, default=0, help="of the careless split")
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    arguments, further = parser.parse_args(words[:own]), words[own + 1 :]
    output: Path = arguments.output
    if output.exists():
        parser.error(f"{output} exists: name a new folder, so that nothing of another run is judged")
    if arguments.minutes <= 0:
        parser.error(f"expected minutes above 0, but got {arguments.minutes}")
    data = output / "pictures"
    if code := prepare(["pictures", str(arguments.pictures), str(data), "--test", str(arguments.test)]):
        raise SystemExit(code)
    description = read_json(data / "dataset.json")
    group_of = {entry["id"]: entry["group"] for entry in [*description["training"], *description["test"]]}
    parts = {"grouped": (description["training"], description["test"]), "careless": careless(description, arguments.seed)}
    judged = {}
    for split in SPLITS:
        source = write_split(description, *parts[split], data, split)
        judged[split] = train_and_judge(source, output / split, arguments.config, arguments.minutes, further)
    trained = {group_of[entry["id"]] for entry in parts["careless"][0]}
    seen = np.array([group_of[case] in trained for case in judged["careless"].ids], dtype=np.bool_)
    found = compared(judged, seen)
    write_json(output / "leakage.json", {**found, "command": sys.argv, "minutes": arguments.minutes})
    print(f"Written to {output / 'leakage.json'}")


def careless(description: Entry, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Return (training, test) with as many test pictures of every class as the grouped split, drawn one by one."""
    wanted = Counter(entry["class"] for entry in description["test"])
    entries = [{**entry, "group": entry["id"]} for entry in [*description["training"], *description["test"]]]
    training, test = [], []
    for entry in sorted(entries, key=lambda entry: sha256(f"{seed}:{entry['id']}".encode()).hexdigest()):
        held_out = wanted[entry["class"]] > 0
        wanted[entry["class"]] -= held_out
        (test if held_out else training).append(entry)
    return training, test


def write_split(description: Entry, training: list[Entry], test: list[Entry], folder: Path, name: str) -> Path:
    """Write a split beside the pictures, and its test part alone, which is what is predicted; returns the former."""
    numbers = {"numTraining": len(training), "numTest": len(test)}
    write_json(folder / f"{name}.json", {**description, **numbers, "training": training, "test": test})
    write_json(folder / f"{name}_test.json", {**description, **numbers, "numTraining": 0, "training": [], "test": test})
    return folder / f"{name}.json"


def train_and_judge(source: Path, output: Path, config: str, minutes: float, further: list[str]) -> Judged:
    """Train on a split by the command line, answer for its test pictures, and judge the answers."""
    seconds = round(60 * minutes)
    limit = f"{seconds // 86400:02d}:{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    test = source.with_name(f"{source.stem}_test.json")
    run, answers = output / "run", output / "predictions"
    where = ["--trainer.default_root_dir", str(run), "--data.store", str(output.parent / "prepared")]
    call("fit", "--config", config, "--data.source", str(source), "--trainer.max_time", limit, *where, *further)
    checkpoint = run / "checkpoints" / "best.ckpt"
    call("predict", str(checkpoint), str(test), "--output", str(answers))
    call("evaluate", str(answers), str(test))
    return Judged.read_json(answers / "evaluation.json")


def call(*words: str) -> None:
    """Run a command of medseg-se in a process of its own; what fails there ends this."""
    code = subprocess.run([sys.executable, "-m", "medseg_se", *words], check=False).returncode
    if code:
        raise SystemExit(f"medseg-se {' '.join(words)} ended with code {code}")


def compared(judged: dict[str, Judged], seen: np.ndarray[Any, np.dtype[np.bool_]]) -> Entry:
    """Print and return what the splits say, and what those test pictures say that have been seen."""
    print(f"\n{'':<40}{'n':>6}  accuracy [95 %]           AUC")
    for split in SPLITS:
        figures = judged[split].figures
        print(f"{split:<40}{len(judged[split].ids):>6}  {shown(figures['accuracy']):<24}  {figures['AUC'].estimate:.4f}")
    one = judged["careless"]
    right = one.chosen == one.truth
    copies = {"with a copy in the training": seen, "without": ~seen}
    parts = {name: wilson_interval(int(right[chosen].sum()), int(chosen.sum())) for name, chosen in copies.items()}
    for name, share in parts.items():
        print(f"{f'careless, {name}':<40}{share.n:>6}  {shown(share)}")
    grouped = judged["grouped"]
    right_grouped = int((grouped.chosen == grouped.truth).sum())
    gain = two_proportion_z((right_grouped, int(right.sum())), (len(grouped.ids), len(one.ids)))
    of_copies = two_proportion_z((int(right[~seen].sum()), int(right[seen].sum())), (int((~seen).sum()), int(seen.sum())))
    print(f"careless − grouped: {difference(gain)}\nwith a copy − without, both careless: {difference(of_copies)}")
    print("Both take pictures for independent, which copies among the test pictures are not: p and intervals are too sure.")
    splits = {split: {name: vars(value) for name, value in judged[split].figures.items()} for split in SPLITS}
    return {
        "splits": splits,
        "careless": {name: vars(share) for name, share in parts.items()},
        "careless - grouped": vars(gain),
        "with a copy - without": vars(of_copies),
    }


def shown(share: Interval) -> str:
    """Return a share with its interval in words."""
    if share.n == 0:
        return "no such picture"
    return f"{share.estimate:.4f} [{share.low:.4f}, {share.high:.4f}]"


def difference(found: ProportionDifference) -> str:
    """Return a difference of accuracies in words."""
    if np.isnan(found.difference):
        return "nothing to compare"
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}, p = {found.p:.2g}"


if __name__ == "__main__":
    main()
