"""How fast predictions are judged, and what memory that needs: `python benchmarks/evaluation.py PART …`, see `PART --help`.

- peers: ten structures on 256×256×96 voxels, all measures of both definitions of surfaces, beside MONAI's metrics and distance
  transforms (SciPy's; edt's, where it is installed) in turns; all must find the same.
- whole: `medseg-se evaluate` on a whole-body label map with 117 structures, resampled to 1 mm, against a worse copy of it.
- cohort: the most memory that evaluating few and many cases takes, and what two workers are worth, as threads and as processes.

Each part prints a table; `--output FILE` also writes everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from inference import in_process, target
from scipy import ndimage

from medseg_se.analysis.timing import Timing
from medseg_se.data.datalist import read_structures
from medseg_se.metrics.judging import judge
from medseg_se.metrics.measures import DISTANCES, OVERLAP, names
from medseg_se.metrics.surfaces import surfaces
from medseg_se.volumes import Volume, read_labels, resample_labels, resampled_shape, write_volume

Found = dict[str, Any]
Labels = npt.NDArray[np.int16]
Scores = Mapping[str, npt.NDArray[np.float64]]
SPACING = (0.9, 0.9, 2.5)  # mm
TOLERANCE = 1.0  # mm
STRAY = 1e-6  # share of voxels far from where they belong
MEASURES = names((*OVERLAP, *DISTANCES))


def worse(truth: Labels, seed: int) -> Labels:
    """Return a copy as a network might predict it: borders moved by up to two voxels in places, and stray voxels."""
    rng = np.random.default_rng(seed)
    result = truth.copy()
    coarse = tuple(length // 16 + 2 for length in truth.shape)
    for axis in range(3):
        field = ndimage.zoom(rng.normal(size=coarse), [n / m for n, m in zip(truth.shape, coarse, strict=True)], order=1)
        for step in (1, 2):
            result = np.where(field > 0.6 * step, np.roll(result, 1, axis), result)
    stray = rng.integers(truth.size, size=round(truth.size * STRAY))
    result.ravel()[stray] = rng.choice(np.unique(truth), size=len(stray))
    return result


# --------------------------------------------------------------------------------------------------------------------- peers


def ellipsoids(shape: tuple[int, int, int], count: int) -> Labels:
    """Return `count` ellipsoids that overlap, each over those before it."""
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*(np.arange(length, dtype=np.float32) for length in shape), indexing="ij"))
    labels = np.zeros(shape, dtype=np.int16)
    for index in range(1, count + 1):
        centre, radii = (rng.uniform(low, high, 3) * shape for low, high in ((0.25, 0.75), (0.08, 0.22)))
        labels[(((grid - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(axis=0) < 1] = index
    return labels


def by_monai(prediction: Labels, truth: Labels, count: int) -> Scores:
    """Return the measures that MONAI has, from its functions as its documentation calls them."""
    import torch
    from monai import metrics as m

    one_hot = [
        torch.nn.functional.one_hot(torch.as_tensor(labels).long(), count + 1).movedim(-1, 0)[None].float()
        for labels in (prediction, truth)
    ]
    surface = {"include_background": False, "spacing": list(SPACING)}
    counts = m.get_confusion_matrix(*one_hot, include_background=False)
    found = {
        "dice": m.compute_dice(*one_hot, include_background=False),
        "iou": m.compute_iou(*one_hot, include_background=False),
        "precision": m.compute_confusion_matrix_metric("precision", counts),
        "recall": m.compute_confusion_matrix_metric("sensitivity", counts),
        "hd_mm": m.compute_hausdorff_distance(*one_hot, **surface),
        "hd95_mm": m.compute_hausdorff_distance(*one_hot, percentile=95, **surface),
        "assd_mm": m.compute_average_surface_distance(*one_hot, symmetric=True, **surface),
        "nsd": m.compute_surface_dice(*one_hot, class_thresholds=[TOLERANCE * (1 + 1e-5)] * count, **surface),
    }
    return {name: values[0].double().numpy() for name, values in found.items()}


def by_transform(prediction: Labels, truth: Labels, count: int, transform: Callable[..., Any]) -> Scores:
    """Return HD and ASSD from a distance transform over the bounding box of truth and prediction of each structure."""
    groups = [(index,) for index in range(1, count + 1)]
    sides = [surfaces(labels, groups, SPACING) for labels in (truth, prediction)]
    boxes = ndimage.find_objects(np.where(truth > 0, truth, 0)), ndimage.find_objects(prediction)
    found: dict[str, list[float]] = {"hd_mm": [], "assd_mm": []}
    for one, other, *extents in zip(*sides, *boxes, strict=True):
        box = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*extents, strict=True))
        masks = []
        for surface in (one, other):
            mask = np.zeros(truth.shape, dtype=bool)
            mask.ravel()[surface.places] = True
            masks.append(np.ascontiguousarray(mask[box]))
        apart = np.concatenate([transform(~masks[1])[masks[0]], transform(~masks[0])[masks[1]]])
        found["hd_mm"].append(float(apart.max()))
        found["assd_mm"].append(float(apart.mean()))
    return {name: np.array(values) for name, values in found.items()}


def measure_peers(arguments: argparse.Namespace) -> Found:
    """Measure ours and MONAI's metrics in turns."""
    count = arguments.structures
    truth = ellipsoids(tuple(arguments.shape), count)
    prediction = worse(truth, seed=0)
    groups = [(index,) for index in range(1, count + 1)]

    def ours(family: str) -> Scores:
        return judge(prediction, truth, groups, count + 1, SPACING, MEASURES, family, TOLERANCE)  # type: ignore[arg-type]

    def scipy_transform(mask: npt.NDArray[np.bool_]) -> Any:
        return ndimage.distance_transform_edt(mask, sampling=SPACING)

    variants: dict[str, Callable[[], Scores]] = {
        "ours, all measures": lambda: ours("voxel"),
        "ours, all measures, surfels": lambda: ours("surfel"),
        "MONAI": lambda: by_monai(prediction, truth, count),
        "surfaces and SciPy's transform": lambda: by_transform(prediction, truth, count, scipy_transform),
    }
    try:
        import edt
    except ImportError:
        pass
    else:
        variants["surfaces and edt's transform"] = lambda: by_transform(
            prediction, truth, count, lambda mask: edt.edt(mask, anisotropy=SPACING, parallel=1)
        )
    scores = {name: run() for name, run in variants.items()}  # the first run warms up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    print(f"{'×'.join(map(str, arguments.shape))} voxels of {SPACING} mm, {count} structures")
    reference = scores["ours, all measures"]
    found: Found = {}
    for name, values in seconds.items():
        timing, ratio = Timing(tuple(values)), Timing(tuple(values)).over(Timing(tuple(seconds["ours, all measures"])))
        apart = {
            measure: float(np.abs(theirs - reference[measure]).max())
            for measure, theirs in scores[name].items()
            if "surfel" not in name
        }
        found[name] = {"s": timing.to_dict(), "times_ours": ratio.to_dict(), "largest_difference": apart}
        difference = f", apart by at most {max(apart.values()):.1e}" if apart else ""
        print(f"  {name:<32}{timing.median:8.2f} s {ratio.median:6.1f} × ours{difference}", flush=True)
    monai = found["MONAI"]
    found["targets"] = [
        target("times as fast as MONAI", monai["times_ours"]["median"], 5, at_least=True),
        target("largest difference from MONAI", max(monai["largest_difference"].values()), 1e-4),
    ]
    return found


# ------------------------------------------------------------------------------------------------- the command on whole scans


def evaluate_in_process(words: Sequence[str]) -> Found:
    """Run `medseg-se evaluate` in a process of its own; returns its seconds and the most memory it held."""
    found = in_process({"kind": "command", "words": ["evaluate", *words]}, threads=1)
    if "failed" in found:
        raise SystemExit(f"medseg-se evaluate {' '.join(words)}: {found['failed']}\n{found.get('log', '')}")
    return found


def measure_whole(arguments: argparse.Namespace) -> Found:
    """Measure the command on one whole-body label map."""
    segmentation, table = arguments.data / "segmentation.nii.gz", arguments.data / "labels.json"
    structures = read_structures(table)
    labels = read_labels(segmentation)
    fine = resample_labels(labels, resampled_shape(labels, (arguments.spacing,) * 3))
    present = len(np.unique(fine.array)) - 1
    found: Found = {"shape": fine.shape, "present": present}
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / side for side in ("predictions", "truth")]
        for folder, array in zip(folders, (worse(fine.array[0], seed=0)[None], fine.array), strict=True):
            folder.mkdir()
            write_volume(Volume(array, fine.affine), folder / "case.nii.gz")
        what = f"{'×'.join(map(str, fine.shape))} voxels, {len(structures.names)} structures, {present} of them there"
        print(what, flush=True)
        for options in ([], ["--surface", "surfel"], ["--lesions", "any"]):
            run = evaluate_in_process([*map(str, folders), "--structures", str(table), *options])
            said = " ".join(options) or "all measures"
            print(f"  {said:<32}{run['seconds']:8.1f} s, peak {run['peak'] / 1e9:.2f} GB", flush=True)
            found[said] = run
    plain = found["all measures"]
    found["targets"] = [target("seconds", plain["seconds"], 60), target("peak in GB", plain["peak"] / 1e9, 3)]
    return found


def measure_cohort(arguments: argparse.Namespace) -> Found:
    """Measure memory against the number of cases, and two workers against one."""
    found: Found = {}
    truth = ellipsoids(tuple(arguments.shape), arguments.structures)
    prediction = worse(truth, seed=0)
    table = {f"structure {index}": index for index in range(1, arguments.structures + 1)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "structures.json").write_text(json.dumps(table), encoding="utf-8")
        affine = np.diag([*SPACING, 1.0])
        for side, array in (("predictions", prediction), ("truth", truth)):
            (folder / side).mkdir()
            write_volume(Volume(array[None].astype(np.uint8), affine), folder / f"{side}.nii.gz")

        def words(cases: int, workers: int, part: str = "all") -> list[str]:
            places = [folder / f"{part}_{side}_{cases}" for side in ("predictions", "truth")]
            for place, side in zip(places, ("predictions", "truth"), strict=True):
                place.mkdir(exist_ok=True)
                for number in range(cases):
                    link = place / f"{number:03d}.nii.gz"
                    if not link.exists():
                        link.symlink_to(folder / f"{side}.nii.gz")
            options = ["--structures", str(folder / "structures.json"), "--workers", str(workers)]
            return [*map(str, places), *options]

        print(f"{'×'.join(map(str, arguments.shape))} voxels, {arguments.structures} structures")
        for workers in (1, 2):
            for cases in arguments.cases:
                run = evaluate_in_process(words(cases, workers))
                what = f"{workers} workers, {cases} cases"
                print(f"  {what:<24}{run['seconds']:8.1f} s, peak {run['peak'] / 1e9:.3f} GB", flush=True)
                found[what] = run
        most = max(arguments.cases)
        half = most // 2
        with ThreadPoolExecutor(2) as pool:  # each of which waits for a process
            runs = list(pool.map(lambda part: evaluate_in_process(words(half, 1, part)), ("first", "second")))
        found["two processes"] = {"seconds": max(run["seconds"] for run in runs)}
        print(f"  two processes of {half} cases {found['two processes']['seconds']:8.1f} s", flush=True)
    few, many = (found[f"2 workers, {cases} cases"]["peak"] for cases in (min(arguments.cases), most))
    found["targets"] = [target(f"peak of {most} cases over that of {min(arguments.cases)}", many / few, 1.1)]
    return found


# -------------------------------------------------------------------------------------------------------------- command line


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, measure in (("peers", measure_peers), ("whole", measure_whole), ("cohort", measure_cohort)):
        one = parts.add_parser(name, help=measure.__doc__)
        one.set_defaults(measure=measure)
        one.add_argument("--output", type=Path, help="JSON file to write everything to, too")
        if name == "whole":
            one.add_argument("--data", type=Path, required=True, help="folder with segmentation.nii.gz and labels.json")
            one.add_argument("--spacing", type=float, default=1.0, help="mm that it is resampled to")
        else:
            one.add_argument("--shape", type=int, nargs=3, default=[256, 256, 96])
            one.add_argument("--structures", type=int, default=10)
        if name == "peers":
            one.add_argument("--rounds", type=int, default=3)
        if name == "cohort":
            one.add_argument("--cases", type=int, nargs="+", default=[4, 16], help="numbers of cases to compare")
    arguments = parser.parse_args()
    found = arguments.measure(arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps({arguments.part: found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
