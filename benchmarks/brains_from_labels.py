"""A network that learnt from brain label maps alone, judged: `python benchmarks/brains_from_labels.py LABEL_MAPS OUTPUT`.

Makes two datasets, and prints the commands that train and judge on them:
- OUTPUT/training: all label maps but the last two by name, without scans;
- OUTPUT/test: scans made from the last two with seeds that training never uses (it draws from (seed, 2, number) with small
  seeds): T1-like and of random contrast, skull-stripped and with a head around, each with its label map.

With --cross, as `medseg-se compare experiments/brain_labels_2d_attention` needs them: OUTPUT/training keeps all label maps, and
OUTPUT/test has T1-like, skull-stripped scans of each of them, whose group is the map: folds are judged on maps they left out.

LABEL_MAPS is a folder of label maps with a labels.json that names the structures. Values that it does not name are background.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from medseg_se.data_prep.main import main as prepare

from medseg_se.data.datalist import Case, read_datalist, read_json
from medseg_se.data.synthesis import Synthesis, SyntheticContrast, draw_synthesis
from medseg_se.data.synthetic_scan import synthesise
from medseg_se.data.tissues import tissues_of
from medseg_se.files import write_json
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_labels, reorient, resample, resample_labels, resampled_shape, write_volume

SEED = 987654321
HELD_OUT = 2
LOOKS: tuple[tuple[SyntheticContrast, float], ...] = (("t1", 0.0), ("t1", 1.0), ("random", 0.0), ("random", 1.0))


def main() -> None:
    """Make the datasets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scans", type=int, default=2, help="test scans of every held-out map and look")
    parser.add_argument("--spacing", type=float, help="of the test scans in mm; that of the label maps if not given")
    parser.add_argument("--cross", action="store_true", help="scans of every map, for folds")
    arguments = parser.parse_args()
    training, test = arguments.output / "training", arguments.output / "test"
    code = prepare(["label-maps", str(arguments.label_maps), str(training), "--unnamed", "background"])
    if code:
        raise SystemExit(code)
    datalist = read_datalist(training)
    ordered = sorted(datalist.training, key=lambda case: case.id)
    held_out = ordered if arguments.cross else ordered[-HELD_OUT:]
    names = set() if arguments.cross else {case.id for case in held_out}
    description = read_json(training / "dataset.json")
    kept = [entry for entry in description["training"] if Path(entry["label"]).name.split(".")[0] not in names]
    write_json(training / "dataset.json", {**description, "training": kept, "numTraining": len(kept)})
    cases = []
    for place, case in enumerate(held_out):
        for look, (contrast, head) in enumerate(LOOKS[:1] if arguments.cross else LOOKS):
            for number in range(arguments.scans):
                seed = (SEED, place, look, number)
                cases.append(write_scan(case, datalist.structures, test, contrast, head, seed, f"{number}", arguments.spacing))
    write_json(
        test / "dataset.json", {**description, "channel_names": {"0": "MR"}, "training": cases, "numTraining": len(cases)}
    )
    if arguments.cross:
        print("medseg-se compare experiments/brain_labels_2d_attention --output brain_labels_2d_attention")
        return
    print(f"medseg-se fit --config brain_unet3d_synthetic --data.source {training} --data.fold null")
    print(f"medseg-se predict CHECKPOINT {test} --output PREDICTIONS && medseg-se evaluate PREDICTIONS {test}")


def write_scan(
    case: Case,
    structures: Structures,
    folder: Path,
    contrast: SyntheticContrast,
    head: float,
    seed: tuple[int, ...],
    number: str,
    spacing: float | None,
) -> dict[str, str]:
    """Write a scan and its label map; returns its entry in dataset.json."""
    if case.label is None:
        raise SystemExit(f"{case.id} has no label map")
    truth = reorient(read_labels(case.label), "RAS")
    indices = structures.encode(truth.array[0], str(case.label))
    rng = np.random.default_rng(seed)
    ranges = Synthesis(contrast=contrast, head=head)
    change = draw_synthesis(ranges, rng, tissues_of(structures), indices.shape, truth.spacing)
    scan = synthesise(torch.from_numpy(indices)[None].int(), [change])[0]
    name = f"{case.id}_{contrast}_{'head' if head else 'stripped'}_{number}"
    image, label = folder / "imagesTr" / f"{name}.nii.gz", folder / "labelsTr" / f"{name}.nii.gz"
    shape = truth.shape if spacing is None else resampled_shape(truth, (spacing,) * 3)
    scanned = resample(Volume(scan.numpy() * 255, truth.affine), shape)
    write_volume(replace(scanned, array=scanned.array.round().astype(np.uint8)), image)
    write_volume(resample_labels(Volume(structures.decode(indices)[None], truth.affine), shape), label)
    return {"image": f"./imagesTr/{image.name}", "label": f"./labelsTr/{label.name}", "group": case.id}


if __name__ == "__main__":
    main()
