"""The LightningDataModule of segmentation: from a datalist to training patches, validation patches and whole scans."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from medseg_se.data.arrays import Storage, check_storage
from medseg_se.data.augmentation import Augmentation
from medseg_se.data.datalist import Case, read_datalist, read_structures
from medseg_se.data.frequencies import class_frequencies
from medseg_se.data.intensity import Intensity
from medseg_se.data.loading import (
    SliceAxis,
    WholeScans,
    axis_across,
    by_channel,
    checked_spacing,
    epoch_sampler,
    leave_signals_to_training,
    once_sampler,
    patch_shape,
    prepares_for_others,
    speaks,
    structure_weights,
    worker_count,
)
from medseg_se.data.preprocessing import Crop, ImageInterpolation, Preprocessing
from medseg_se.data.raw_batch import RawBatch
from medseg_se.data.regions import Targets, find_regions
from medseg_se.data.sampling import PatchDataset, PatchSettings, RawPatches, Sample
from medseg_se.data.seen import summarise
from medseg_se.data.store import StoredCase, prepare_cases
from medseg_se.data.synthesiser import Synthesiser, read_ranges
from medseg_se.data.tissues import tissues_of
from medseg_se.errors import DataError, UsageError
from medseg_se.volumes import read_labels

log = logging.getLogger(__name__)
Place = Literal["workers", "device"]


class SegmentationData(pl.LightningDataModule):
    """Patches for training, patches or whole scans for validation, all from one datalist.

    Args:
        source: A dataset folder, a `dataset.json` or a CSV; see `read_datalist`.
        structures: A JSON file with the label values, where the source has none or others are wanted.
        targets: What the network finds: "structures", of which each voxel has one; or "regions", those that the dataset
            declares, nested or side by side, for the loss dice_bce_regions; or a list of regions and structures that serve as
            such. See `Regions`.
        fold: Which fold is validated; null trains on every case and validates on the same ones, which judges nothing.
        folds: Number of folds.
        split_seed: Seed of the split into folds.
        patch_size: Voxels of a training patch along the axes of `orientation`: three, or two for a 2D network.
        slice_axis: For a 2D network: the axis across the slices.
        batch_size: Patches a batch.
        batches_per_epoch: Batches after which validation runs and a checkpoint is written.
        foreground: Share of the patches drawn around a voxel of a structure.
        sampling_weights: Structure → how often patches are drawn around it, relative to the other structures of the case: 1
            for those not named, so that all are equally likely where none is; 0 for never.
        store: Folder in which prepared cases are kept for the next run.
        storage: How they are kept there: "npy", "blosc2" (compressed) or, by their size, "auto"; see `arrays.file_name`.
        num_workers: Processes that cut patches beside the training; null takes none on a CPU, where they would take from the
            network what they save it, and up to 8 with a GPU.
        augment_on: What changes the patches: "workers", the processes that cut them; or "device", the network's own device, to
            which they only pass what each patch touches and what was drawn for it. The same is drawn; on a GPU, noise comes
            from the GPU's own generator.
        seed: Seed of sampling and augmentation.
        orientation: See `Preprocessing`, as the next seven.
        spacing: In mm; null keeps each scan's own.
        crop: Whether the zero border is cut off.
        intensity: How intensities are scaled; one name, or one for each channel.
        window: For the intensities "window" and "dataset"; one pair, or one for each channel.
        mean: For the intensity "dataset", which needs it; one number, or one for each channel.
        deviation: For the intensity "dataset", which needs it; one number, or one for each channel.
        interpolation: How scans are resampled.
        rotation: See `Augmentation`, as the following.
        scaling: Largest relative change of size.
        elastic: Standard deviation of a smooth displacement in mm.
        spatial_probability: Share of the patches that are rotated, scaled and warped.
        mirror: Axes along which patches are mirrored; left and right labels change places.
        noise: Largest standard deviation of the noise.
        blur: Largest blur in voxels.
        brightness: Largest relative change.
        contrast: Largest relative change.
        gamma: Largest relative change of the exponent.
        low_resolution: Largest coarsening factor.
        intensity_probability: Share of the patches to which each intensity change is applied; null takes nnU-Net's shares.
        synthetic: Share of the training patches whose intensities are made from their labels instead of taken from the scan;
            1 trains on synthetic scans alone. Those of cases of a label map alone are always made, in validation too.
        synthesis: Ranges from which they are drawn, some of the fields of `Synthesis`, such as `contrast: t1`. These alone
            change a synthetic patch; of the changes above, `rotation` to `intensity_probability`, only `mirror` acts on it.
        progress: Whether preparing shows a progress bar.
    """

    task = "segmentation"

    def __init__(
        self,
        source: str,
        structures: str | None = None,
        targets: Targets = "structures",
        fold: int | None = 0,
        folds: int = 5,
        split_seed: int = 0,
        patch_size: list[int] = [64, 64, 64],  # noqa: B006 - never changed; a list is what YAML gives
        slice_axis: SliceAxis | None = None,
        batch_size: int = 2,
        batches_per_epoch: int = 100,
        foreground: float = 0.5,
        sampling_weights: dict[str, float] | None = None,
        store: str = "prepared",
        storage: Storage = "auto",
        num_workers: int | None = None,
        augment_on: Place = "workers",
        seed: int = 0,
        orientation: str = "RAS",
        spacing: list[float] | None = None,
        crop: Crop = "none",
        intensity: Intensity | list[Intensity] = "zscore",
        window: list[float] | list[list[float]] = [-1000.0, 1000.0],  # noqa: B006
        mean: float | list[float] | None = None,
        deviation: float | list[float] | None = None,
        interpolation: ImageInterpolation = "linear",
        rotation: float = 15.0,
        scaling: float = 0.2,
        elastic: float = 0.0,
        spatial_probability: float = 0.5,
        mirror: list[str] = [],  # noqa: B006
        noise: float = 0.1,
        blur: float = 1.0,
        brightness: float = 0.25,
        contrast: float = 0.25,
        gamma: float = 0.3,
        low_resolution: float = 2.0,
        intensity_probability: float | None = None,
        synthetic: float = 0.0,
        synthesis: dict[str, float | str | list[float]] | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.datalist = read_datalist(source, read_structures(structures) if structures else None)
        self.structures = self.datalist.structures
        self.regions = find_regions(targets, self.structures)
        self.num_classes = self.structures.num_classes if self.regions is None else len(self.regions.names)
        self.in_channels = len(self.datalist.channels)
        self.preprocessing = Preprocessing(
            orientation.upper(),
            checked_spacing(spacing),
            crop,
            by_channel(intensity),
            by_channel(window),
            interpolation,
            by_channel(mean),
            by_channel(deviation),
        )
        scalings = self.preprocessing.for_channels(self.in_channels)
        self.synthesiser = Synthesiser(read_ranges(synthesis), tissues_of(self.structures), scalings, synthetic)
        check_storage(storage)
        strengths = {item.name: self.hparams[item.name] for item in fields(Augmentation)}
        self.augmentation = Augmentation(**{**strengths, "mirror": tuple(mirror)})
        for name, share in (("foreground", foreground), ("synthetic", synthetic)):
            if not 0 <= share <= 1:
                raise UsageError(f"Expected `{name}` between 0 and 1, but got {share}.")
        if augment_on not in get_args(Place):
            raise UsageError(f"Expected `augment_on` to be workers or device, but got {augment_on!r}.")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("batches_per_epoch", batches_per_epoch, 1),
            ("num_workers", num_workers or 0, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UsageError(f"Expected `{name}` to be at least {least}, but got {value}.")
        self.slice_axis, self.flat_axis = slice_axis, axis_across(slice_axis, self.preprocessing.orientation)
        self.spatial_dims = 3 if slice_axis is None else 2
        self.patch_size = tuple(patch_size)
        self.settings = PatchSettings(
            patch_shape(patch_size, self.flat_axis),
            self.preprocessing.orientation,
            foreground,
            self.flat_axis,
            seed,
            structure_weights(sampling_weights, self.structures),
        )
        if "left-right" in mirror and not self.structures.pairs():
            log.info("patches are mirrored left to right, and no structure has a left and a right: labels stay as they are")
        self.fold, self.folds, self.split_seed = fold, folds, split_seed
        self.batch_size, self.batches_per_epoch, self.num_workers = batch_size, batches_per_epoch, num_workers
        self.store, self.storage, self.augment_on = Path(store), storage, augment_on
        self.seed, self.progress = seed, progress
        self.training: list[StoredCase] = []
        self.validation: list[StoredCase] = []
        self.test: list[StoredCase] = []
        self.label_dtype = ""

    def split(self) -> tuple[Sequence[Case], Sequence[Case]]:
        """Return the (training, validation) cases of this fold."""
        labelled = self.datalist.training
        if not labelled:
            raise DataError(f"{self.datalist.source} has no case with a label map to train on.")
        if self.fold is None:
            return labelled, labelled
        return self.datalist.fold(self.fold, self.folds, self.split_seed)

    def prepare_data(self) -> None:
        """Prepare the cases in one process of a machine while the others wait, and then find them in the store."""
        if prepares_for_others(self.trainer):
            self.setup(self.trainer.state.fn)

    def setup(self, stage: str) -> None:
        """Prepare the cases of this fold, or the test cases, as far as the store does not hold them yet.

        Raises:
            DataError: A case cannot be used.
        """
        if stage == "test" and not self.test:
            labelled = [case for case in self.datalist.test if case.label is not None]
            if not labelled:
                raise DataError(
                    f"{self.datalist.source} lists no test case with a label map. "
                    "`medseg-se validate` judges the validation cases."
                )
            self.test = self._prepare(labelled)
        if self.training and self.validation:
            return
        training, validation = self.split()
        if self.fold is None and speaks(self.trainer):
            log.warning("fold is null: validation uses the training cases, and its Dice says nothing about new scans")
        distinct = list({case.id: case for case in (*training, *validation)}.values())
        stored = self._prepare(distinct)
        by_id = {case.id: case for case in stored}
        self.training = [by_id[case.id] for case in training]
        self.validation = [by_id[case.id] for case in validation]
        first = training[0].label
        self.label_dtype = str(read_labels(first).array.dtype) if first else ""

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return augmented patches, `batches_per_epoch` batches an epoch."""
        patches = PatchDataset(self.training, self.settings, self.augmentation, self.structures, self.synthesiser)
        on_device = self.augment_on == "device"
        workers = worker_count(self.num_workers)
        dataset: Dataset[Any] = RawPatches(patches) if on_device else patches
        return DataLoader(
            dataset,
            self.batch_size,
            collate_fn=RawBatch.of if on_device else None,
            sampler=epoch_sampler(self.trainer, self.batch_size, self.batches_per_epoch),
            num_workers=workers,
            worker_init_fn=leave_signals_to_training,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change the patches of a training batch, now that they lie on the network's device, if that was left to it."""
        return batch.finished() if isinstance(batch, RawBatch) else batch

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return one plain patch a validation case while fitting, whole scans for `validate`."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            settings = replace(self.settings, foreground=1.0, weights=())
            only_bare = replace(self.synthesiser, share=0.0)
            dataset = PatchDataset(self.validation, settings, None, self.structures, only_bare)
            return DataLoader(dataset, self.batch_size, sampler=once_sampler(self.trainer, len(dataset)), num_workers=0)
        return self.whole_scans()

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return the labelled test cases of the datalist as whole prepared scans, one a batch, (1, C, I, J, K)."""
        return self._whole(self.test)

    def whole_scans(self) -> DataLoader[Sample]:
        """Return the validation cases as whole prepared scans, one a batch, (1, C, I, J, K)."""
        return self._whole(self.validation)

    def _whole(self, cases: Sequence[StoredCase]) -> DataLoader[Sample]:
        return DataLoader(WholeScans(cases, self.synthesiser), batch_size=1, sampler=once_sampler(self.trainer, len(cases)))

    def class_frequencies(self) -> list[float]:
        """Return the share of each class, background first, of the voxels of the training cases that show it."""
        frequencies: list[float] = class_frequencies(self.training, self.structures.num_classes).tolist()
        return frequencies

    def _prepare(self, cases: Sequence[Case]) -> list[StoredCase]:
        return prepare_cases(
            cases,
            self.preprocessing,
            self.structures,
            self.store,
            self.in_channels,
            progress=self.progress and speaks(self.trainer),
            storage=self.storage,
        )

    def describe(self) -> dict[str, Any]:
        """Return what inference must know, as plain data for the checkpoint."""
        return {
            "dataset": self.datalist.name,
            "channels": list(self.datalist.channels),
            "structures": self.structures.to_dict(),
            "targets": list(self.regions.names) if self.regions else None,
            "label_dtype": self.label_dtype,
            "preprocessing": self.preprocessing.to_dict(),
            "patch_size": list(self.patch_size),
            "slice_axis": self.slice_axis,
            "flat_axis": self.flat_axis,
            "tile": list(self.settings.size),
            "training": [case.digest for case in self.training],
            "validation": [case.digest for case in self.validation] if self.fold is not None else [],
            "mirror": list(self.augmentation.mirror),
            "seen": summarise(
                [case.raw for case in self.training],
                self.datalist.channels,
                self.preprocessing,
                synthetic=self.synthesiser.share == 1,
            ),
        }
