"""WholeScanData: what the LightningDataModules with one truth a scan have in common, from the source to batches."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medseg_se.data.augmentation import Augmentation
from medseg_se.data.datalist import Case, Datalist, describes_dataset, read_datalist
from medseg_se.data.intensity import Intensity
from medseg_se.data.loading import (
    SliceAxis,
    axis_across,
    by_channel,
    checked_spacing,
    epoch_sampler,
    leave_signals_to_training,
    once_sampler,
    prepares_for_others,
    speaks,
    worker_count,
)
from medseg_se.data.parallel import attempt_every_case
from medseg_se.data.pictures import NO_STRUCTURES, ORIENTATION, Colour, check_colour, is_picture, read_class_folders
from medseg_se.data.preprocessing import Crop, ImageInterpolation, Preprocessing
from medseg_se.data.sampling import Sample
from medseg_se.data.whole_scan import TrainingScans, WholeScan, WholeScanDataset
from medseg_se.data.whole_scan_split import hold_out, join_groups, refuse_parted
from medseg_se.errors import DataError, UsageError
from medseg_se.files import digest_of

log = logging.getLogger(__name__)
T = TypeVar("T")
SHOWN = 20  # unusable scans that are named


class WholeScanData(pl.LightningDataModule, ABC):
    """Whole scans of one size for training, validation and test.

    Args:
        source: A folder with one folder of pictures (JPEG, PNG and the like) for each class, in which every sub-folder is a
            group, see `read_class_folders`; or a dataset folder, a `dataset.json` or a CSV, see `read_datalist`, of NIfTI
            scans or of pictures.
        target: The attribute of the cases that is learnt; for numbers also several. "class" if not given. Null, NaN and an
            empty text are no values.
        fold: Which fold is validated; null trains on every case and validates on the same ones, which judges nothing.
        folds: Number of folds.
        split_seed: Seed of the split into folds. Cases of one `group` stay together, and so do groups that share a file, the
            same to the last byte. Copies that were encoded anew are not found: give them a common `group`, or let
            `medseg-prep pictures` do so.
        test_share: Share of the groups that is held out for `medseg-se test`, of every class, where the source holds out none.
        grouped: False deals out single cases and parts patients and copies of one picture. The result is then too good; it is
            there to measure by how much.
        unusable_share: Largest share of the scans that may be unreadable. They are named and left out; more refuse the run.
        size: Voxels of a scan as the network sees it along the axes of `orientation`: three, or two for slices and pictures
            (height and width).
        slice_axis: For a 2D network on NIfTI scans: the axis across the slices, of which the middle one is taken.
        colour: How pictures are read: "grey" for one channel, "rgb" for three. NIfTI scans have no colours.
        batch_size: Scans a batch.
        batches_per_epoch: Batches after which validation runs and a checkpoint is written; null takes as many as the training
            scans fill.
        store: Folder in which prepared scans are kept for the next run.
        num_workers: Processes that make batches beside the training; null takes none on a CPU and up to 8 with a GPU.
        seed: Seed of order and augmentation.
        orientation: See `Preprocessing`, as the next seven; null takes RAS for scans, and pictures as they lie.
        spacing: In mm; scans are then cut or continued to `size` about their middle. Null shrinks or enlarges each, its
            proportions kept, until it just fits. Pictures have none.
        crop: Whether the zero border is cut off.
        intensity: How intensities are scaled; one name, or one for each channel.
        window: For the intensities "window" and "dataset"; one pair, or one for each channel.
        mean: For the intensity "dataset", which needs it; one number, or one for each channel.
        deviation: For the intensity "dataset", which needs it; one number, or one for each channel.
        interpolation: How scans are resampled to `spacing`.
        rotation: See `Augmentation`, as the following.
        scaling: Largest relative change of size.
        shift: Largest shift along each axis, as a share of `size`.
        spatial_probability: Share of the scans that are rotated, scaled and shifted.
        mirror: Axes along which half of the scans are mirrored; the width of pictures counts as "left-right", their height as
            "anterior-posterior".
        noise: Largest standard deviation of the noise.
        blur: Largest blur in voxels.
        brightness: Largest relative change.
        contrast: Largest relative change.
        gamma: Largest relative change of the exponent.
        low_resolution: Largest coarsening factor.
        intensity_probability: Share of the scans to which each intensity change is applied; null takes nnU-Net's shares.
        progress: Whether preparing shows a progress bar.
    """

    task: ClassVar[str]
    num_classes: int

    def __init__(
        self,
        source: str,
        target: str | list[str] | None = None,
        fold: int | None = 0,
        folds: int = 5,
        split_seed: int = 0,
        test_share: float = 0.0,
        grouped: bool = True,
        unusable_share: float = 0.05,
        size: list[int] = [224, 224],  # noqa: B006 - never changed; a list is what YAML gives
        slice_axis: SliceAxis | None = None,
        colour: Colour = "grey",
        batch_size: int = 16,
        batches_per_epoch: int | None = None,
        store: str = "prepared",
        num_workers: int | None = None,
        seed: int = 0,
        orientation: str | None = None,
        spacing: list[float] | None = None,
        crop: Crop = "none",
        intensity: Intensity | list[Intensity] = "zscore",
        window: list[float] | list[list[float]] = [-1000.0, 1000.0],  # noqa: B006
        mean: float | list[float] | None = None,
        deviation: float | list[float] | None = None,
        interpolation: ImageInterpolation = "linear",
        rotation: float = 15.0,
        scaling: float = 0.1,
        shift: float = 0.05,
        spatial_probability: float = 0.5,
        mirror: list[str] = [],  # noqa: B006
        noise: float = 0.1,
        blur: float = 1.0,
        brightness: float = 0.25,
        contrast: float = 0.25,
        gamma: float = 0.3,
        low_resolution: float = 2.0,
        intensity_probability: float | None = 0.15,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("batches_per_epoch", 1 if batches_per_epoch is None else batches_per_epoch, 1),
            ("num_workers", num_workers or 0, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UsageError(f"Expected `{name}` to be at least {least}, but got {value}.")
        for name, share in (("shift", shift), ("test_share", test_share), ("unusable_share", unusable_share)):
            if not 0 <= share < 1:
                raise UsageError(f"Expected `{name}` to be at least 0 and below 1, but got {share}.")
        check_colour(colour)
        self.targets = ["class"] if target is None else [target] if isinstance(target, str) else list(target)
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UsageError(f"Expected `target` to be one attribute, or several that differ, but got {self.targets}.")
        self.datalist = read_whole_scans(Path(source))
        if not self.datalist.training:
            raise DataError(f"{self.datalist.source} lists no case to train on.")
        if test_share and self.datalist.test:
            raise UsageError(f"{self.datalist.source} holds out test cases of its own. Leave out `test_share`.")
        pictures = _are_pictures(self.datalist)
        if pictures:
            _refuse_for_pictures(orientation=orientation, spacing=spacing, slice_axis=slice_axis)
        elif colour != "grey":
            raise UsageError(f"Scans have no colours as pictures have: leave out `colour`, but got {colour!r}.")
        oriented = ORIENTATION if pictures else (orientation or "RAS").upper()
        preprocessing = Preprocessing(
            oriented,
            checked_spacing(spacing),
            crop,
            by_channel(intensity),
            by_channel(window),
            interpolation,
            by_channel(mean),
            by_channel(deviation),
        )
        self.slice_axis = "axial" if pictures else slice_axis
        flat_axis = axis_across(self.slice_axis, oriented)
        self.spatial_dims = 3 if flat_axis is None else 2
        if len(size) != self.spatial_dims or min(size) < 1:
            what = "three positive numbers" if flat_axis is None else "two positive numbers for slices or pictures"
            raise UsageError(f"Expected `size` to be {what}, but got {list(size)}.")
        self.in_channels = (3 if colour == "rgb" else 1) if pictures else len(self.datalist.channels)
        preprocessing.for_channels(self.in_channels)
        self.scan = WholeScan(preprocessing, tuple(size), self.in_channels, flat_axis, colour if pictures else None)
        self.augmentation = Augmentation(
            rotation=rotation,
            scaling=scaling,
            spatial_probability=spatial_probability,
            mirror=tuple(mirror),
            noise=noise,
            blur=blur,
            brightness=brightness,
            contrast=contrast,
            gamma=gamma,
            low_resolution=low_resolution,
            intensity_probability=intensity_probability,
        )
        self.shift, self.fold, self.folds, self.split_seed = shift, fold, folds, split_seed
        self.test_share, self.grouped, self.unusable_share = test_share, grouped, unusable_share
        self.batch_size, self.batches_per_epoch, self.num_workers = batch_size, batches_per_epoch, num_workers
        self.store, self.seed, self.progress = Path(store), seed, progress
        self.training: list[Case] = []
        self.validation: list[Case] = []
        self.test: list[Case] = []
        # By their files, for a training case and a test case may have the same id.
        self._digests: dict[tuple[Path, ...], str] = {}
        self._files: dict[tuple[Path, ...], Path] = {}
        self._unusable: dict[tuple[Path, ...], str] = {}
        self._said: set[tuple[Path, ...]] = set()
        self._dealt: Datalist | None = None
        self.read_targets()

    @abstractmethod
    def read_targets(self) -> None:
        """Find out what there is to learn, and set `num_classes`."""

    @abstractmethod
    def encode(self, cases: Sequence[Case]) -> Tensor:
        """Return what is true of each case, as the network learns it."""

    @abstractmethod
    def describe_targets(self) -> dict[str, Any]:
        """Return what the network's outputs mean, as plain data for the checkpoint."""

    def split(self) -> tuple[Sequence[Case], Sequence[Case]]:
        """Return the (training, validation) cases of this fold.

        Raises:
            UsageError: The fold does not exist, or there are fewer groups than folds.
            DataError: Too many files cannot be read, or the dataset's own folds part a group or files that are the same.
        """
        if self.fold is None:
            cases = self._without_broken(self.dealt().training if self.test_share else self.datalist.training)
            return cases, cases
        training, validation = self.dealt().fold(self.fold, self.folds, self.split_seed)
        return self._without_broken(training), self._without_broken(validation)

    def dealt(self) -> Datalist:
        """Return the cases with a common group for those that are never parted, and with what is held out for the test.

        Those that cannot be read are dealt out with the others, so that no other changes sides when one of them is damaged.

        Raises:
            UsageError: Single cases are to be dealt out of a dataset with folds of its own.
            DataError: As `split`.
        """
        if self._dealt is None:
            cases = self.datalist.training
            self._digest(cases)
            self._check_unusable(cases)
            twins = self._twins(self._without_broken(cases))
            prescribed = any(case.fold is not None for case in cases)
            if prescribed:
                refuse_parted(twins, self.datalist.source)
            if self.grouped:
                cases = join_groups(cases, twins)
            else:
                cases = self._ungrouped(cases, prescribed)
            self._dealt = replace(self.datalist, training=cases)
            if self.test_share:
                self._dealt = hold_out(self._dealt, self.test_share, f"test:{self.split_seed}", self.stratum)
        return self._dealt

    def stratum(self, case: Case) -> str:
        """Return of which kind a case is, of each of which the same share is held out."""
        return ""

    def _twins(self, cases: Iterable[Case]) -> list[list[Case]]:
        """Return the cases that share a file, the same to the last byte."""
        same = defaultdict(list)
        for case in cases:
            same[self._digests[case.images]].append(case)
        twins = [alike for alike in same.values() if len(alike) > 1]
        torn = [alike for alike in twins if (truths := self.encode(alike)).ne(truths[0]).any()]
        for alike in torn[:3]:
            log.warning("the same file has several truths: %s", ", ".join(case.id for case in alike))
        return twins

    def _ungrouped(self, cases: Sequence[Case], prescribed: bool) -> tuple[Case, ...]:
        if prescribed:
            raise UsageError(f"{self.datalist.source} prescribes folds, which cannot be dealt anew: leave out `grouped`.")
        if speaks(self.trainer):
            log.warning(
                "GROUPED IS FALSE: patients and copies of one picture are parted, so that the network is judged on what it has "
                "seen. The result says nothing about new scans; it shows how far a careless split flatters"
            )
        return tuple(replace(case, group=case.id) for case in cases)

    def _digest(self, cases: Iterable[Case]) -> None:
        self._attempt(cases, self._digests, lambda case: _digest_with_content(case.images))

    def _attempt(self, cases: Iterable[Case], found: dict[tuple[Path, ...], T], make: Callable[[Case], T]) -> None:
        """Add to `found` what `make` makes of each case that is not known yet, and remember why some cannot be used."""
        missing = {case.images: case for case in cases if case.images not in found and case.images not in self._unusable}
        tried = list(missing.values())
        ready, broken = attempt_every_case(tried, make, self.progress and speaks(self.trainer))
        found.update((tried[place].images, ready[place]) for place in sorted(ready))
        self._unusable.update((tried[place].images, broken[place]) for place in sorted(broken))

    def _without_broken(self, cases: Iterable[Case]) -> tuple[Case, ...]:
        return tuple(case for case in cases if case.images not in self._unusable)

    def _check_unusable(self, cases: Sequence[Case]) -> None:
        """Name what cannot be used and is left out.

        Raises:
            DataError: It is more than `unusable_share` of the cases.
        """
        broken = [case for case in cases if case.images in self._unusable]
        words = f"{len(broken)} of {len(cases)} cases cannot be used"
        if len(broken) > self.unusable_share * len(cases):
            raise DataError(
                f"{words}, the first being {self._unusable[broken[0].images]} "
                f"Up to {self.unusable_share:.0%} would be left out, see `unusable_share`."
            )
        news = [case for case in broken if case.images not in self._said]
        if news and speaks(self.trainer):
            self._said.update(case.images for case in news)
            reasons = [self._unusable[case.images] for case in news[:SHOWN]]
            more = [f"and {len(news) - SHOWN} more"] if len(news) > SHOWN else []
            log.warning("%s and are left out:\n  %s", words, "\n  ".join([*reasons, *more]))

    def prepare_data(self) -> None:
        """Prepare the scans in one process of a machine while the others wait, and then find them in the store."""
        if prepares_for_others(self.trainer):
            self.setup(self.trainer.state.fn)

    def setup(self, stage: str) -> None:
        """Prepare the cases of this fold, or the test cases, as far as the store does not hold them yet.

        Raises:
            DataError: A case cannot be used.
        """
        if stage == "test":
            if not self.test:
                self._setup_test()
            return
        if self.training and self.validation:
            return
        training, validation = self.split()
        if self.fold is None and speaks(self.trainer):
            log.warning("fold is null: validation uses the training cases, and its result says nothing about new scans")
        self._prepare([*training, *validation], self.datalist.training)
        training, validation = self._without_broken(training), self._without_broken(validation)
        self.check_training(training)
        self._refuse_none(validation, "to validate on")
        self.training, self.validation = list(training), list(validation)

    def _setup_test(self) -> None:
        listed = self.dealt().test if self.test_share else self.datalist.test
        known = [case for case in listed if all(has_value(case, name) for name in self.targets)]
        if not known:
            raise DataError(
                f"{self.datalist.source} lists no test case with {quoted(self.targets)}. "
                "`medseg-se validate` judges the validation cases."
            )
        self._prepare(known, known)
        readable = self._without_broken(known)
        self._refuse_none(readable, "to test on")
        self._mention_seen(readable)
        self.test = list(readable)

    def _refuse_none(self, cases: Sequence[Case], purpose: str) -> None:
        if not cases:
            raise DataError(f"No case of {self.datalist.source} that can be used is left {purpose}. Mend those named above.")

    def _mention_seen(self, cases: Sequence[Case]) -> None:
        """Warn of test cases that are training or validation cases too; only files that are there count."""
        trained = self.dealt().training if self.test_share else self.datalist.training
        there = [case for case in trained if all(path.is_file() for path in case.images)]
        self._digest(there)
        digests = {self._digests[case.images] for case in there if case.images in self._digests}
        seen = [case.id for case in cases if self._digests[case.images] in digests]
        if seen:
            log.warning(
                "%d of the %d test scans are also training or validation scans: %s. Their result says nothing about new ones",
                len(seen),
                len(cases),
                ", ".join([*seen[:3], *(["…"] if len(seen) > 3 else [])]),
            )

    def check_training(self, cases: Sequence[Case]) -> None:
        """Refuse training cases from which nothing can be learnt."""

    def _prepare(self, cases: Sequence[Case], of: Sequence[Case]) -> None:
        """Prepare cases as far as the store does not hold them yet.

        Raises:
            DataError: More than `unusable_share` of those that they are taken from cannot be used.
        """
        self._digest(cases)
        readable = self._without_broken(cases)
        self._attempt(readable, self._files, lambda case: self.scan.store(case, self._digests[case.images], self.store))
        self._check_unusable(of)

    def training_targets(self) -> Tensor:
        """Return what is true of each training case: class numbers (N,), or numbers (N, V)."""
        return self.encode(self.training)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return changed training scans, `batches_per_epoch` batches an epoch."""
        files = [self._files[case.images] for case in self.training]
        dataset = TrainingScans(files, self.training_targets(), self.augmentation, self.shift, self.scan, self.seed)
        devices = self.trainer.world_size if self.trainer is not None else 1
        batches = self.batches_per_epoch or math.ceil(len(files) / (self.batch_size * devices))
        workers = worker_count(self.num_workers)
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=epoch_sampler(self.trainer, self.batch_size, batches),
            num_workers=workers,
            worker_init_fn=leave_signals_to_training,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the validation scans as they are."""
        return self._plain(self.validation)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return the test scans of which the truth is known, as they are."""
        return self._plain(self.test)

    def _plain(self, cases: Sequence[Case]) -> DataLoader[Sample]:
        dataset = self.as_they_are(cases)
        return DataLoader(dataset, self.batch_size, sampler=once_sampler(self.trainer, len(dataset)), num_workers=0)

    def as_they_are(self, cases: Sequence[Case]) -> WholeScanDataset:
        """Return cases that `setup` has prepared, without any change at random."""
        return WholeScanDataset([self._files[case.images] for case in cases], self.encode(cases))

    def describe(self) -> dict[str, Any]:
        """Return what inference must know, as plain data for the checkpoint."""
        return {
            "dataset": self.datalist.name,
            "channels": list(self.datalist.channels),
            **self.describe_targets(),
            "preprocessing": self.scan.preprocessing.to_dict(),
            "size": list(self.scan.size),
            "slice_axis": self.slice_axis,
            "flat_axis": self.scan.flat_axis,
            "colour": self.scan.colour,
            "mirror": list(self.augmentation.mirror),
            "training": [self._digests[case.images] for case in self.training],
            "validation": [self._digests[case.images] for case in self.validation] if self.fold is not None else [],
        }


def read_whole_scans(source: Path) -> Datalist:
    """Read a datalist, or a folder with one folder of pictures for each class."""
    if source.is_dir() and not describes_dataset(source) and any(entry.is_dir() for entry in source.iterdir()):
        return read_class_folders(source)
    return read_datalist(source, NO_STRUCTURES)


def quoted(names: Iterable[str]) -> str:
    """Return names as a list in words."""
    return ", ".join(map(repr, names))


def has_value(case: Case, name: str) -> bool:
    """Tell whether a case has a value of this attribute; null, NaN and an empty text are none."""
    value = case.attributes.get(name)
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value == value


def _digest_with_content(paths: Sequence[Path]) -> str:
    """Return the digest of files; empty ones are no copies of one another, but faults."""
    empty = next((path for path in paths if path.is_file() and not path.stat().st_size), None)
    if empty is not None:
        raise DataError(f"Cannot read {empty}: it is empty, of 0 bytes. Restore it or leave it out.")
    return digest_of(paths)


def _are_pictures(datalist: Datalist) -> bool:
    cases = (*datalist.training, *datalist.test)
    bare = next((case for case in cases if not case.images), None)
    if bare is not None:
        raise DataError(f"Case {bare.id} of {datalist.source} has no scan, but a label map alone. Leave it out.")
    pictures = [case for case in cases if is_picture(case.images[0])]
    if pictures and len(pictures) < len(cases):
        other = next(case for case in cases if not is_picture(case.images[0]))
        raise DataError(f"{datalist.source} mixes pictures ({pictures[0].id}) and scans ({other.id}). Keep them apart.")
    several = next((case for case in pictures if len(case.images) > 1), None)
    if several is not None:
        raise DataError(f"Case {several.id} of {datalist.source} has {len(several.images)} pictures; only one can be read.")
    return bool(pictures)


def _refuse_for_pictures(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"Pictures have no place in the body: leave out `{name}`, but got {value!r}.")
