"""One whole prediction from file to file, in a process of its own: by ours, nnU-Net 2 or MONAI, with the same weights.

Other benchmarks start it: `python inference_peers.py JOB`, where JOB is JSON. What was measured is written as JSON to
the file that the job names. nnU-Net and MONAI get the weights of one of our checkpoints in a PlainConvUNet, which needs
`dynamic_network_architectures`; nnU-Net itself needs `nnunetv2`.

Nothing large is imported at the top, so that the time from the start of the process is that of a program that only predicts.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Job = dict[str, Any]
Found = dict[str, Any]


class NotInstalledError(Exception):
    """What a variant needs is not here."""


class Stopwatch:
    """Adds up the seconds that a network takes, and counts its calls and the tiles in them."""

    def __init__(self, network: nn.Module) -> None:
        self.seconds, self.tiles, self._began = 0.0, 0, 0.0
        network.register_forward_pre_hook(self._begin)
        network.register_forward_hook(self._end)

    def _begin(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._began = time.perf_counter()

    def _end(self, network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seconds += time.perf_counter() - self._began
        self.tiles += len(inputs[0])

    def found(self) -> Found:
        """Return both."""
        return {"network": self.seconds, "tiles": self.tiles}


# ---------------------------------------------------------------------------------------------------------------------- ours


def ours(job: Job) -> Found:
    """Predict as `medseg-se predict` does, through the Python door; the first of `repeats` predictions counts."""
    import torch

    from medseg_se.hardware import keep_freed_memory
    from medseg_se.inference.engines import checked
    from medseg_se.inference.model import Model
    from medseg_se.inference.settings import Settings
    from medseg_se.volumes import read_image, write_volume

    imported = time.time()
    keep_freed_memory()
    if job.get("unchecked"):  # how fast an engine is, whether or not this short training decides enough for it to pass
        checked.LEAST_AGREEMENT = 0.0
    model = Model.load(job["checkpoint"], "cpu", job["precision"], engine=job["engine"])
    if job.get("converted"):  # and checked: the engine only starts, which is part of loading as that of the peers is
        model.warm_up(torch.zeros(1, len(model.channels), *model.tile))
    loaded = time.time()
    settings = Settings(overlap=job.get("overlap", 0.5), skip=job["skip"])
    runs: list[Found] = []
    for _ in range(job.get("repeats", 1)):
        times = [time.perf_counter()]
        image = read_image(job["scan"])
        times.append(time.perf_counter())
        ready = model.prepare(image)
        del image  # as the command does; what is left knows the grid and the header
        times.append(time.perf_counter())
        prediction = model.answer(ready, settings)
        times.append(time.perf_counter())
        write_volume(prediction.labels, job["output"], like=ready.source)
        times.append(time.perf_counter())
        read, prepare, answer, write = (after - before for before, after in itertools.pairwise(times))
        network = prediction.seconds["network"]
        parts = {"read": read, "prepare": prepare, "network": network, "export": answer - network, "write": write}
        run: Found = {"seconds": times[-1] - times[0], "network": network, "parts": parts, "written": time.time()}
        runs.append({**run, "notes": list(prediction.notes), "peak": peak()})
    return {**runs[0], "imported": imported, "loaded": loaded, "load": loaded - imported, "later": runs[1:]}


# --------------------------------------------------------------------------------------------------------------------- peers


def imported_from(module: str) -> Any:
    """Return a module of a peer."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotInstalledError(f"{module.partition('.')[0]} is not installed: {error}") from error


def plain_conv_unet(checkpoint: Path, reverse_axes: bool) -> nn.Module:
    """Return nnU-Net's network with the weights of a checkpoint of our U-Net that has `conv_bias`.

    Args:
        checkpoint: The checkpoint.
        reverse_axes: Whether it sees scans as (K, J, I), as nnU-Net reads them, so that its kernels are turned likewise.
    """
    import torch

    peer = imported_from("dynamic_network_architectures.architectures.unet")

    from medseg_se.checkpoints import read_checkpoint

    description, state, _ = read_checkpoint(checkpoint)
    channels = description["network"]["options"]["channels"]
    network: nn.Module = peer.PlainConvUNet(**architecture(channels), input_channels=1, num_classes=len(state["head.bias"]))
    levels, depth = len(channels), len(channels) - 1
    to = network.state_dict()
    if reverse_axes:
        state = {name: value.permute(0, 1, 4, 3, 2) if value.ndim == 5 else value for name, value in state.items()}

    def copy(source: str, *targets: str) -> None:
        for name in (name for name in state if name.startswith(f"{source}.")):
            for target in targets:
                to[f"{target}.{name.removeprefix(f'{source}.')}"] = state[name]

    def copy_units(source: str, *targets: str) -> None:
        for unit in range(2):
            for target in targets:  # every layer is there twice, by its name and by its place
                there = f"{target}.convs.{unit}"
                copy(f"{source}.units.{unit}.conv", f"{there}.conv", f"{there}.all_modules.0")
                copy(f"{source}.units.{unit}.norm", f"{there}.norm", f"{there}.all_modules.1")

    for level in range(levels):
        source = "bottleneck" if level == depth else f"encoder.{level}.block"
        copy_units(source, f"encoder.stages.{level}.0", f"decoder.encoder.stages.{level}.0")
    for step in range(depth):
        width = channels[depth - 1 - step]
        first = f"decoder.{step}.block.units.0.conv.weight"
        skip, up = state[first][:, :width], state[first][:, width:]
        state[first] = torch.cat([up, skip], 1)  # the peer joins them the other way round
        copy(f"decoder.{step}.up", f"decoder.transpconvs.{step}")
        copy_units(f"decoder.{step}.block", f"decoder.stages.{step}")
    copy("head", f"decoder.seg_layers.{depth - 1}")
    network.load_state_dict(to)
    return network.eval()


def architecture(channels: list[int], named: bool = False) -> dict[str, Any]:
    """Return the arguments of PlainConvUNet; `named`: as plans have them, classes by their names."""
    import pydoc

    levels = len(channels)
    classes = {"conv_op": "torch.nn.Conv3d", "norm_op": "torch.nn.InstanceNorm3d", "nonlin": "torch.nn.LeakyReLU"}
    return {
        "n_stages": levels,
        "features_per_stage": list(channels),
        "kernel_sizes": [[3, 3, 3]] * levels,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (levels - 1)],
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **(classes if named else {name: pydoc.locate(path) for name, path in classes.items()}),
    }


def facts(checkpoint: Path) -> tuple[dict[str, Any], list[int]]:
    """Return what a checkpoint says of its data, and the channels of its network."""
    from medseg_se.checkpoints import read_checkpoint

    description, _, _ = read_checkpoint(checkpoint)
    return description["data"], list(description["network"]["options"]["channels"])


def nnunet(job: Job) -> Found:
    """Predict with nnU-Net's predictor as its manual shows, without mirroring."""
    os.environ.update({name: tempfile.gettempdir() for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")})
    import torch

    peer = imported_from("nnunetv2.inference.predict_from_raw_data")

    folder = Path(job["output"]).parent / "nnunet_model"
    write_nnunet_model(Path(job["checkpoint"]), folder)
    began = time.perf_counter()
    predictor = peer.nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=True,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,), checkpoint_name="checkpoint_final.pth")
    load, watch = time.perf_counter() - began, Stopwatch(predictor.network)
    began = time.perf_counter()
    predictor.predict_from_files_sequential([[job["scan"]]], [job["output"].removesuffix(".nii.gz")])
    return {"seconds": time.perf_counter() - began, "load": load, **watch.found()}


def write_nnunet_model(checkpoint: Path, folder: Path) -> None:
    """Write the folder of a trained nnU-Net that has our weights and preprocessing."""
    import torch

    data, channels = facts(checkpoint)
    prepared = data["preprocessing"]
    (low, high), spacing = prepared["window"], [float(mm) for mm in reversed(prepared["spacing"])]
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(reversed(data["tile"])),
        "median_image_size_in_voxels": list(reversed(data["tile"])),
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture(channels, named=True),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    intensities = {"mean": prepared["mean"], "std": prepared["deviation"], "percentile_00_5": low, "percentile_99_5": high}
    plans = {
        "dataset_name": "Dataset001_Scan",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": {**intensities, "median": 0.0, "min": low, "max": high}},
        "configurations": {"3d_fullres": configuration},
    }
    names = list(data["structures"]["values"])
    labels = {"background": 0, **{name: place for place, name in enumerate(names, 1)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    content = {
        "network_weights": plain_conv_unet(checkpoint, reverse_axes=True).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")


def monai(job: Job) -> Found:
    """Predict with MONAI's dictionary transforms and its sliding window, as its tutorials do."""
    import torch
    from monai import transforms
    from monai.data import decollate_batch, list_data_collate
    from monai.inferers import sliding_window_inference

    began = time.perf_counter()
    data, _ = facts(Path(job["checkpoint"]))
    network, prepared = plain_conv_unet(Path(job["checkpoint"]), reverse_axes=False), data["preprocessing"]
    (low, high), mean, deviation = prepared["window"], prepared["mean"], prepared["deviation"]
    output = Path(job["output"])
    before = transforms.Compose(
        [
            transforms.LoadImaged("image"),
            transforms.EnsureChannelFirstd("image"),
            transforms.Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            transforms.Spacingd("image", pixdim=prepared["spacing"], mode="bilinear"),
            transforms.ScaleIntensityRanged("image", low, high, (low - mean) / deviation, (high - mean) / deviation, clip=True),
        ]
    )
    after = transforms.Compose(
        [
            transforms.AsDiscreted("labels", argmax=True),
            transforms.Invertd("labels", before, "image", nearest_interp=True, to_tensor=True),
            transforms.SaveImaged(
                "labels",
                output_dir=output.parent,
                output_postfix="",
                output_dtype="uint8",
                separate_folder=False,
                print_log=False,
            ),
        ]
    )
    load, watch = time.perf_counter() - began, Stopwatch(network)
    began = time.perf_counter()
    batch = list_data_collate([before({"image": job["scan"]})])
    with torch.no_grad():
        batch["labels"] = sliding_window_inference(batch["image"], data["tile"], 1, network, overlap=0.5, mode="gaussian")
    for one in decollate_batch(batch):
        after(one)
    seconds = time.perf_counter() - began
    output.with_name(Path(job["scan"]).name).replace(output)
    return {"seconds": seconds, "load": load, **watch.found()}


# --------------------------------------------------------------------------------------------------------------- the process


def peak() -> int:
    """Return the most bytes of memory that this process has held.

    `ru_maxrss` also remembers the process that started this one, so the kernel's own figure is taken where it gives one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def command(job: Job) -> Found:
    """Run `medseg-se` with the job's `words`."""
    from medseg_se.cli.main import main as medseg_se

    began = time.perf_counter()
    code = medseg_se(job["words"])
    return {"seconds": time.perf_counter() - began} if code == 0 else {"failed": f"exit code {code}"}


KINDS: dict[str, Callable[[Job], Found]] = {"ours": ours, "nnunet": nnunet, "monai": monai, "command": command}


def main() -> None:
    """Do the job."""
    job = json.loads(sys.argv[1])
    try:
        found = KINDS[job["kind"]](job)
        found.setdefault("peak", peak())
    except NotInstalledError as error:
        found = {"failed": str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"}
    Path(job["report"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
