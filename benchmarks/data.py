"""How fast patches come: `python benchmarks/data.py [patches] [store] [generator] --hippocampus FOLDER --brains FOLDER`.

- patches: augmented training patches a second on one thread, of small scans (hippocampus) and of 256³ heads, beside MONAI's
  dictionary pipeline (CacheDataset, RandCropByPosNegLabeld and the same list of changes with the same probabilities) and, where
  nnunetv2 is installed, beside nnU-Net's own loader with its default transforms.
- store: one random 96³ patch of a stored 256×256×192 float32 case, and what a process holds after drawing from many cases.
- generator: a 128³ pair made from a label map with 32 structures, on one thread.

Variants take turns; a figure is the median over the rounds. `--hippocampus` is the Decathlon's Task04_Hippocampus, `--brains` a
folder of label maps; both are only read. Writes a table to the terminal, and with `--output FILE` everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from medseg_se.data.augmentation import Augmentation
from medseg_se.data.datalist import Case, read_datalist
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.sampling import PatchDataset, PatchSettings
from medseg_se.data.store import StoredCase, prepare_cases
from medseg_se.data.synthesis import Synthesis
from medseg_se.data.synthesiser import Synthesiser
from medseg_se.data.tissues import tissues_of
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, is_scan, read_labels, reorient, write_volume

# nnU-Net's list, see `Augmentation`; rotation in degrees.
STRENGTH: dict[str, Any] = {"rotation": 30.0, "scaling": 0.4, "elastic": 0.0, "spatial_probability": 0.2}
MIRROR = ("left-right", "anterior-posterior", "inferior-superior")
ROUNDS = 5
STRUCTURES = 32


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["patches", "store", "generator"], help="patches, store, generator")
    parser.add_argument("--hippocampus", type=Path)
    parser.add_argument("--brains", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "patches" in arguments.parts:
            if arguments.hippocampus:
                found["hippocampus"] = patches(
                    hippocampus(arguments.hippocampus, folder), (40, 56, 40), 100, folder / "peer small"
                )
            if arguments.brains:
                found["brains"] = patches(brains(arguments.brains, folder), (96, 96, 96), 12, folder / "peer large")
        if "store" in arguments.parts:
            found["store"] = store(folder)
        if "generator" in arguments.parts and arguments.brains:
            found["generator"] = generator(arguments.brains, folder)
    print(json.dumps(found, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1))


# ------------------------------------------------------------------------------------------------------------------- patches


def hippocampus(source: Path, folder: Path) -> tuple[list[StoredCase], Structures]:
    """Return 40 prepared cases."""
    datalist = read_datalist(source)
    cases = list(datalist.training[:40])
    prepared = prepare_cases(cases, Preprocessing(), datalist.structures, folder / "small", 1, progress=False)
    return prepared, datalist.structures


def brains(source: Path, folder: Path, wanted: int = 4) -> tuple[list[StoredCase], Structures]:
    """Return prepared 256³ heads: label maps with an intensity for each label, and noise."""
    rng = np.random.default_rng(0)
    cases, names = [], set()
    for path in sorted(path for path in source.iterdir() if is_scan(path))[:wanted]:
        labels = reorient(read_labels(path), "RAS")
        whole = np.zeros((256, 256, 256), np.int16)
        part = labels.array[0][:256, :256, :256]
        start = [(256 - size) // 2 for size in part.shape]
        whole[tuple(slice(s, s + n) for s, n in zip(start, part.shape, strict=True))] = part
        names.update(np.unique(whole).tolist())
        levels = rng.uniform(0, 200, whole.max() + 1)
        image = (levels[whole] + rng.normal(0, 10, whole.shape)).astype(np.float32)
        file, truth = folder / f"{path.name.split('.')[0]}.nii.gz", folder / f"{path.name.split('.')[0]}_labels.nii.gz"
        write_volume(Volume(image[None], np.eye(4)), file)
        write_volume(Volume(whole[None], np.eye(4)), truth)
        cases.append(Case(path.name.split(".")[0], (file,), truth))
    structures = Structures({f"label {value}": (value,) for value in sorted(names - {0})})
    return prepare_cases(cases, Preprocessing(), structures, folder / "large", 1, progress=False), structures


def patches(
    prepared: tuple[list[StoredCase], Structures], size: tuple[int, int, int], number: int, folder: Path
) -> dict[str, Any]:
    """Return patches a second of each pipeline, and how many times MONAI's ours is."""
    cases, structures = prepared
    ours = PatchDataset(
        cases,
        PatchSettings(size, "RAS", 0.5, None, 0),
        Augmentation(**STRENGTH, mirror=MIRROR, intensity_probability=None),
        structures,
    )
    pipelines: dict[str, Callable[[int], Any]] = {"ours": ours.__getitem__, "monai": monai_pipeline(cases, size)}
    peer = nnunet_loader(cases, size, folder)
    if peer is not None:
        pipelines["nnunet"] = peer
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for turn in range(ROUNDS + 1):
        for name, draw in pipelines.items():
            began = time.perf_counter()
            for place in range(number):
                draw(turn * number + place)
            if turn:
                rates[name].append(number / (time.perf_counter() - began))
    result: dict[str, Any] = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    for name in list(rates)[1:]:
        ratios = [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]
        result[f"times {name}"] = round(statistics.median(ratios), 2)
    return result


def monai_pipeline(cases: Sequence[StoredCase], size: tuple[int, int, int]) -> Callable[[int], Any]:
    """Return MONAI's dictionary pipeline with the same changes, from scans that it keeps in memory."""
    from monai import transforms
    from monai.data import CacheDataset
    from monai.utils.misc import set_determinism

    both, image = ["image", "labels"], ["image"]
    angle, scale = np.radians(STRENGTH["rotation"]), STRENGTH["scaling"]
    turned = STRENGTH["spatial_probability"]
    steps = [
        transforms.RandCropByPosNegLabeld(
            both, "labels", size, pos=1, neg=1, allow_smaller=True, fg_indices_key="labels_fg", bg_indices_key="labels_bg"
        ),
        transforms.SpatialPadd(both, size),
        transforms.RandAffined(
            both,
            prob=turned,
            rotate_range=[angle] * 3,
            scale_range=[scale] * 3,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ),
        *[transforms.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)],
        transforms.RandGaussianNoised(image, prob=0.1, std=0.1),
        transforms.RandGaussianSmoothd(image, (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
        transforms.RandScaleIntensityd(image, 0.25, prob=0.15),
        transforms.RandScaleIntensityFixedMeand(image, factors=0.25, preserve_range=True, prob=0.15),
        transforms.RandSimulateLowResolutiond(image, prob=0.25, zoom_range=(0.5, 1.0)),
        transforms.RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        transforms.RandAdjustContrastd(image, prob=0.1, gamma=(0.7, 1.5), retain_stats=True, invert_image=True),
    ]
    set_determinism(0)
    items = [{"image": np.array(case.image()), "labels": np.array(case.labels())[None]} for case in cases]
    kept = [transforms.EnsureTyped(both), transforms.FgBgToIndicesd("labels", "_fg", "_bg", "image", image_threshold=-1e9)]
    dataset = CacheDataset(items, transforms.Compose([*kept, *steps]), progress=False)
    set_determinism(None)
    return lambda number: dataset[number % len(items)]


def nnunet_loader(cases: Sequence[StoredCase], size: tuple[int, int, int], folder: Path) -> Callable[[int], Any] | None:
    """Return nnU-Net's loader with its default transforms where it is installed, reading blosc2 files as in training."""
    try:
        from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
        from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.utilities.label_handling.label_handling import LabelManager
    except ImportError:
        return None
    folder.mkdir()
    values: set[int] = set()
    for case in cases:
        image, labels = np.array(case.image()), np.array(case.labels())[None]
        present = [int(value) for value in np.unique(labels) if value > 0]
        values.update(present)
        places = {value: np.argwhere(labels == value)[:: max(1, int((labels == value).sum()) // 10000)] for value in present}
        blocks, chunks = comp_blosc2_params(image.shape, size)
        facts = {"class_locations": places, "spacing": [1.0] * 3}
        nnUNetDatasetBlosc2.save_case(image, labels, facts, str(folder / case.id), chunks, blocks)
    manager = LabelManager({"background": 0, **{str(value): value for value in range(1, max(values) + 1)}}, None)
    transform = nnUNetTrainer.get_training_transforms(
        size, (-np.pi / 6, np.pi / 6), None, (0, 1, 2), do_dummy_2d_data_aug=False, use_mask_for_norm=[False]
    )
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)), 1, size, size, manager, oversample_foreground_percent=0.5, transforms=transform
    )
    return lambda number: next(loader)


# --------------------------------------------------------------------------------------------------------------------- store


def store(folder: Path, copies: int = 40) -> dict[str, Any]:
    """Return milliseconds a patch for each kind of storage, and the resident megabytes that many cases add."""
    rng = np.random.default_rng(0)
    shape = (256, 256, 192)
    smooth = rng.normal(0, 1, (32, 32, 24)).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    labels = (smooth > 1).astype(np.uint8)[None]
    image = (100 * smooth + rng.normal(0, 5, shape)).astype(np.float32)[None]
    write_volume(Volume(image, np.eye(4)), folder / "one.nii")
    write_volume(Volume(labels, np.eye(4)), folder / "one_labels.nii")
    structures = Structures({"blob": (1,)})
    result: dict[str, Any] = {}
    for kind in ("npy", "blosc2"):
        case = Case("one", (folder / "one.nii",), folder / "one_labels.nii")
        (stored,) = prepare_cases([case], Preprocessing(), structures, folder / kind, 1, progress=False, storage=kind)
        size = sum(file.stat().st_size for file in (folder / kind).rglob("*") if file.is_file())
        times = []
        for _ in range(60):
            start = [int(rng.integers(0, length - 96)) for length in shape]
            began = time.perf_counter()
            stored.read([slice(s, s + 96) for s in start])
            times.append(time.perf_counter() - began)
        result[f"{kind}, ms a 96³ patch"] = round(1e3 * statistics.median(times[10:]), 2)
        result[f"{kind}, MB on disk"] = round(size / 1e6, 1)
    small = [Volume(image[:, :64, :64, :64], np.eye(4)), Volume(labels[:, :64, :64, :64], np.eye(4))]
    cases = []
    for number in range(copies):
        files = folder / f"s{number}.nii", folder / f"s{number}_labels.nii"
        write_volume(Volume(small[0].array + number, np.eye(4)), files[0])
        write_volume(small[1], files[1])
        cases.append(Case(f"s{number}", (files[0],), files[1]))
    stored_cases = prepare_cases(cases, Preprocessing(), structures, folder / "many", 1, progress=False)
    for count in (4, copies):
        before = _private_bytes()
        dataset = PatchDataset(stored_cases[:count], PatchSettings((32, 32, 32), "RAS", 0.5, None, 0), None, structures)
        for number in range(4 * count):
            dataset[number]
        result[f"MB kept after {4 * count} patches of {count} cases"] = round((_private_bytes() - before) / 1e6, 1)
        del dataset
    return result


def _private_bytes() -> int:
    """Return what this process holds that is no cached file."""
    fields = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in fields if line.startswith("RssAnon"))


# ----------------------------------------------------------------------------------------------------------------- generator


def generator(source: Path, folder: Path, number: int = 20) -> dict[str, Any]:
    """Return seconds a 128³ pair, from the label map in the store to the scaled scan."""
    labels = reorient(read_labels(next(path for path in sorted(source.iterdir()) if is_scan(path))), "RAS")
    values, counts = np.unique(labels.array[labels.array > 0], return_counts=True)
    kept = np.sort(values[np.argsort(counts)[::-1][:STRUCTURES]])
    plain = np.where(np.isin(labels.array, kept), labels.array, 0).astype(np.int16)
    write_volume(Volume(plain, np.eye(4)), folder / "map.nii")
    structures = Structures({f"label {value}": (int(value),) for value in kept})
    case = Case("map", (), folder / "map.nii")
    cases = prepare_cases([case], Preprocessing(), structures, folder / "maps", 1, progress=False)
    settings = PatchSettings((128, 128, 128), "RAS", 0.5, None, 0)
    result: dict[str, Any] = {"structures": len(structures.names)}
    for name, share in (("skull-stripped", 0.0), ("whole head", 1.0), ("half of each", 0.5)):
        maker = Synthesiser(Synthesis(head=share), tissues_of(structures), Preprocessing().for_channels(1), 1.0)
        dataset = PatchDataset(cases, settings, Augmentation(mirror=("left-right",)), structures, maker)
        times = []
        for place in range(number):
            began = time.perf_counter()
            dataset[place]
            times.append(time.perf_counter() - began)
        result[f"{name}, s a pair"] = round(statistics.median(times[2:]), 3)
    return result


if __name__ == "__main__":
    sys.exit(main())
