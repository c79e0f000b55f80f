"""A model as a MONAI bundle, https://docs.monai.io/en/stable/mb_specification.html: TorchScript and MONAI's own transforms.

It runs with MONAI alone. MONAI places tiles and resamples in its own way, so that label maps can differ in single voxels from
those of `medseg-se predict`; its README says so.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

from medseg_se.data.intensity import TAIL, Scaling
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import UsageError
from medseg_se.inference.description import label_values, network_tile
from medseg_se.inference.model import Model
from medseg_se.inference.torchscript import torchscript

_SIDES = [["L", "R"], ["P", "A"], ["I", "S"]]


def bundle_files(model: Model, description: dict[str, Any], name: str) -> dict[str, bytes]:
    """Return the content of every file of the bundle called `name`.

    Raises:
        UsageError: MONAI has nothing that does what the model does to scans or label maps.
    """
    metadata = _json(_metadata(model, description, name))
    return {
        "configs/metadata.json": metadata.encode(),
        "configs/inference.json": _json(_inference(model, description)).encode(),
        "docs/README.md": _readme(model, description, name).encode(),
        "models/model.ts": torchscript(model, {"metadata.json": metadata}),  # where MONAI's load_net_with_metadata looks
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=4, ensure_ascii=False) + "\n"


def _metadata(model: Model, description: dict[str, Any], name: str) -> dict[str, Any]:
    channels = {str(number): channel for number, channel in enumerate(model.channels)}
    maps = {str(number): meaning for number, meaning in enumerate(description["output"]["maps"])}
    needed = {"nibabel": importlib.metadata.version("nibabel")}
    if model.postprocessing:
        needed["scikit-image"] = "0.22.0"  # by MONAI, for connected components
    shape = network_tile(model)
    shared = {"dtype": "float32", "is_patch_data": True, "spatial_shape": shape}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by {description['program']}"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": importlib.metadata.version("torch"),
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": needed,
        "name": name,
        "task": f"segmentation of {', '.join(model.structures.names)}",
        "description": f"A network trained with {description['program']}, for {' + '.join(model.channels)}.",
        "authors": "",
        "copyright": "",
        "intended_use": "Research; not for diagnosis.",
        "network_data_format": {
            "inputs": {
                "image": {
                    **shared,
                    "type": "image",
                    "format": "magnitude",
                    "modality": ", ".join(model.channels),
                    "num_channels": len(channels),
                    "value_range": [],
                    "channel_def": channels,
                }
            },
            "outputs": {
                "pred": {
                    **shared,
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(maps),
                    "value_range": [],
                    "channel_def": maps,
                }
            },
        },
        "medseg_se": description,
    }


def _inference(model: Model, description: dict[str, Any]) -> dict[str, Any]:
    window = {"sw_batch_size": 1, "overlap": description["overlap"], "mode": "gaussian", "sigma_scale": 0.125}
    inferer: dict[str, Any] = {"_target_": "SlidingWindowInferer", "roi_size": network_tile(model), **window}
    if model.flat_axis is not None:
        inferer = {**inferer, "_target_": "SliceInferer", "spatial_dim": model.flat_axis}
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(model)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(model, description)},
        "initialize": ["$torch.set_grad_enabled(False)"],
        "run": [
            "$[@postprocessing({**case, 'pred': @inferer(case['image'][None].to(@device), @network)[0].cpu()})['pred'] "
            "for case in @dataset]"
        ],
    }


def _preprocessing(model: Model) -> list[dict[str, Any]]:
    chosen: Preprocessing = model.preprocessing
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": chosen.orientation, "labels": _SIDES},
    ]
    if chosen.crop == "nonzero":
        steps.append(
            {
                "_target_": "CropForegroundd",
                "keys": "image",
                "source_key": "image",
                "select_fn": "$lambda x: x != 0",
                "allow_smaller": True,
            }
        )
    if chosen.spacing is not None:
        if chosen.interpolation == "anisotropic":
            raise UsageError(
                "MONAI has no transform for the interpolation 'anisotropic', so that this model cannot be a MONAI bundle. "
                "Export it in another format."
            )
        cubic = chosen.interpolation == "cubic"
        steps.append(
            {
                "_target_": "Spacingd",
                "keys": "image",
                "pixdim": list(chosen.spacing),
                "scale_extent": True,  # the outer faces stay where they are
                "align_corners": True,
                "mode": 3 if cubic else "bilinear",
                "padding_mode": "mirror" if cubic else "border",
            }
        )
    scalings = chosen.for_channels(len(model.channels))
    if len(set(scalings)) == 1:
        steps += _scaling("image", scalings[0])
    else:
        keys = [f"image_{number}" for number in range(len(scalings))]
        steps.append({"_target_": "SplitDimd", "keys": "image", "output_postfixes": list(range(len(scalings))), "dim": 0})
        for key, scaling in zip(keys, scalings, strict=True):
            steps += _scaling(key, scaling)
        steps.append({"_target_": "ConcatItemsd", "keys": keys, "name": "image", "dim": 0})
    # The sliding window itself would continue a small scan with 0, which need not be its background.
    steps.append({"_target_": "SpatialPadd", "keys": "image", "spatial_size": list(model.tile), "mode": "minimum"})
    return steps


def _scaling(key: str, scaling: Scaling) -> list[dict[str, Any]]:
    """Return what does to each channel under `key` as the scheme does."""
    normalise = {"_target_": "NormalizeIntensityd", "keys": key, "channel_wise": True}
    low, high = scaling.window
    clip = {"_target_": "ScaleIntensityRanged", "keys": key, "a_min": low, "a_max": high, "clip": True}
    percentile = {
        "_target_": "ClipIntensityPercentilesd",
        "keys": key,
        "lower": 100 * TAIL,
        "upper": 100 * (1 - TAIL),
        "channel_wise": True,
    }
    centred = {"b_min": (low - scaling.mean) / scaling.deviation, "b_max": (high - scaling.mean) / scaling.deviation}
    schemes: dict[str, list[dict[str, Any]]] = {
        "none": [],
        "zscore": [normalise],
        "zscore_nonzero": [{**normalise, "nonzero": True}],
        "percentile": [percentile, normalise],
        "minmax": [{"_target_": "ScaleIntensityd", "keys": key, "minv": 0.0, "maxv": 1.0, "channel_wise": True}],
        "window": [{**clip, "b_min": -1.0, "b_max": 1.0}],
        "dataset": [{**clip, **centred}],
    }
    return schemes[scaling.scheme]


def _postprocessing(model: Model, description: dict[str, Any]) -> list[dict[str, Any]]:
    values = label_values(model)
    if model.regions is None:
        order, decide = list(range(len(values))), "$lambda x: x.argmax(0, keepdim=True)"
    else:  # the region that is written last wins
        written = model.regions.written
        order = [0, *(index for _, index in written)]
        places, shape = [place for place, _ in written], "(-1, 1, 1, 1)"
        ranks = f"torch.arange(1, {len(written) + 1}).reshape{shape}"
        decide = f"$lambda x: ((x[{places}] > 0) * {ranks}).amax(0, keepdim=True)"
    written_values = [values[index] for index in order]
    steps: list[dict[str, Any]] = [
        {
            "_target_": "Invertd",  # of logits, which are interpolated before anything is decided
            "keys": "pred",
            "orig_keys": "image",
            "transform": "@preprocessing",
            "nearest_interp": False,
        },
        {"_target_": "Lambdad", "keys": "pred", "func": decide},
    ]
    groups = [[model.structures.index(name) for name in names] for names in model.postprocessing.largest_component]
    for group in groups:
        places = [order.index(index) for index in group]
        keep = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": places, "connectivity": 3}
        steps.append({**keep, "independent": False, "is_onehot": False})
    mapped = {"orig_labels": list(range(len(written_values))), "target_labels": written_values}
    steps += [
        {"_target_": "MapLabelValued", "keys": "pred", "dtype": "$torch.int64", **mapped},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "separate_folder": False,
            "resample": False,
            "output_dtype": description["label_type"],
        },
    ]
    return steps


def _readme(model: Model, description: dict[str, Any], name: str) -> str:
    values = label_values(model)
    rows = "\n".join(
        f"| {value} | {what} |" for value, what in zip(values, ["background", *model.structures.names], strict=True)
    )
    return f"""# {name}

Exported by {description["program"]}; weights with SHA-256 {description["weights_sha256"]}.

Input: {" + ".join(model.channels)}, in one NIfTI file a case, in the folder `images`. Output: a label map a case in `eval`.

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir images --output_dir eval

| value | structure |
|---|---|
{rows}

`configs/medseg_se.json` describes the whole model. MONAI places tiles and resamples in its own way, so that single voxels can
differ from what `medseg-se predict` writes.
"""
