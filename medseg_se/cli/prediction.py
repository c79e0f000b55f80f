"""`medseg-se predict`: what is asked for on the command line becomes a model, settings and cases."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medseg_se.errors import UsageError


def predict(
    checkpoint: str,
    inputs: list[str],
    *,
    output: str,
    weights: str | None = None,
    cases: Literal["all", "validation", "unseen"] = "all",
    device: str = "auto",
    engine: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto",
    calibrate: str | None = None,
    least_dice: float = 0.99,
    quality: Literal["fast", "balanced", "best"] = "balanced",
    overlap: float | None = None,
    mirror: str | None = None,
    skip: Literal["none", "constant", "air"] | None = None,
    tiles: Literal["trained", "fitted"] | None = None,
    probabilities: bool = False,
    uncertainty: bool = False,
    no_volumes: bool = False,
    dicom_seg: bool = False,
    strict: bool = False,
    raw: bool = False,
    overwrite: bool = False,
    shard: str | None = None,
    workers: int = 1,
    readers: int = 1,
    dry_run: bool = False,
) -> int:
    """Segment scans with a checkpoint, or answer for whole scans with one of a classification or regression.

    A label map lies on its scan's own grid with the dataset's label values. Classes, with calibrated probabilities, and numbers
    are written to `predictions.csv`, with a mark for scans that are unlike those of the training.

    Several checkpoints answer together, by the weighted mean of their probabilities: `predict a.ckpt b.ckpt SCANS`, or
    `predict FOLDER SCANS` with all in a folder, such as that of `medseg-se cv`. Finished cases are skipped on a rerun, also
    after a run that was killed; a broken case is reported and the rest go on. Exit code 1 if any failed.

    In the output folder, `status.csv` says what became of each case, with times, memory and warnings, and `volumes.csv` what
    each structure measures.

    Of all folds of a cross-validation together, no case is a validation case: some were trained on it. What each fold says of
    its own validation cases, `medseg-se cv` has written to its predictions.

    Args:
        checkpoint: A checkpoint written by `medseg-se fit`, or a folder of checkpoints.
        inputs: Scans, pictures, folders of them, DICOM folders or datasets; before them, files ending in .ckpt are further
            checkpoints.
        output: Folder for the label maps, or the table of answers.
        weights: Weight of each checkpoint where there are several, such as 0.4,0.4,0.2; equal if not given.
        cases: Of what the inputs name: all, those that chose the checkpoint in validation, or those that played no part in it.
        device: auto, cpu, cuda, cuda:1 or mps.
        engine: What computes: auto, torch, compiled, openvino or onnx; or ray://HOST:PORT or local, to spread the cases over a
            Ray cluster with as many actors as `workers`.
        precision: auto takes bf16 or fp16 where the hardware has it and the first tiles are decided as in fp32; int8 needs
            `calibrate`.
        calibrate: Scans, or a folder of them, that int8 is calibrated with.
        least_dice: The lowest Dice between int8 and fp32 that is accepted for any structure.
        quality: fast, balanced, or best, which asks mirror images too; what follows changes parts of it.
        overlap: Share of a tile that its neighbour covers too.
        mirror: Mirror images that are asked too: none, trained (those of the training), or left-right, anterior-posterior,
            inferior-superior separated by commas.
        skip: What is not computed: none, tiles that are constant, or all air around the body.
        tiles: As large as in training, or fitted to the scan where that spares time.
        probabilities: Also write the probability of every class.
        uncertainty: Also write how uncertain each structure is, beside its volume.
        no_volumes: Write no table of volumes.
        dicom_seg: Of DICOM series, also write the result as a DICOM segmentation.
        strict: Refuse a scan that is unlike those the model was trained on, instead of warning.
        raw: Leave out the post-processing that `medseg-se cv` has chosen for the model.
        overwrite: Replace what another model or other options left in the output folder.
        shard: The part of the cases to segment here, such as 2/5; runs of all parts may write to one folder at a time.
        workers: Processes, each with its own model and its share of the processors.
        readers: Scans that are read and prepared ahead at the same time.
        dry_run: Only print which files would be read and written.
    """
    from rich.console import Console

    from medseg_se.checkpoints import task_of
    from medseg_se.cli.scan_prediction import answer_for_whole_scans, refuse_for_whole_scans
    from medseg_se.hardware import keep_freed_memory
    from medseg_se.inference.ensemble import find_checkpoints
    from medseg_se.inference.inputs import find_cases
    from medseg_se.inference.predict import Shard, choose_cases, predict_cases, render
    from medseg_se.inference.settings import Settings
    from medseg_se.inference.source import ModelSource

    keep_freed_memory()
    console = Console()
    further = [word for word in inputs if Path(word).suffix == ".ckpt"]
    scans = [word for word in inputs if word not in further]
    if not scans:
        raise UsageError("Expected scans, folders of scans or datasets after the checkpoints, but got none.")
    cluster = engine if engine == "local" or engine.startswith("ray://") else None
    part = Shard.parse(shard) if shard else None
    if task_of(find_checkpoints(checkpoint)[0]) != "segmentation":
        refuse_for_whole_scans(
            overlap=overlap,
            skip=skip,
            tiles=tiles,
            probabilities=probabilities,
            uncertainty=uncertainty,
            no_volumes=no_volumes,
            dicom_seg=dicom_seg,
            raw=raw,
            workers=workers > 1,
            least_dice=least_dice != 0.99,
            engine=cluster,
        )
        return answer_for_whole_scans(
            (checkpoint, *further),
            scans,
            Path(output),
            weights=_weights(weights),
            cases=cases,
            device=device,
            engine=engine,
            precision=precision,
            calibrate=calibrate,
            quality=quality,
            mirror=mirror,
            strict=strict,
            overwrite=overwrite,
            shard=part,
            readers=readers,
            dry_run=dry_run,
        )
    source = ModelSource(
        (checkpoint, *further),
        _weights(weights),
        device,
        precision,
        "auto" if cluster else engine,
        raw,
        tuple(path for case in find_cases([calibrate], 1) for path in case.images) if calibrate else (),
        least_dice,
    )
    model = source.load()
    chosen = choose_cases(find_cases(scans, len(model.channels)), model, cases)
    if dry_run:
        for case in chosen:
            line = f"{', '.join(map(str, case.images))} → {Path(output) / case.id}.nii.gz"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return 0
    statuses = predict_cases(
        model,
        chosen,
        Path(output),
        Settings.of_quality(quality, model.mirror, overlap=overlap, mirror=mirror, skip=skip, tiles=tiles),
        probabilities=probabilities,
        uncertainty=uncertainty,
        report=not no_volumes,
        dicom_seg=dicom_seg,
        strict=strict,
        overwrite=overwrite,
        shard=part,
        workers=workers,
        readers=readers,
        cluster=cluster,
        source=source,
    )
    render(statuses, console)
    return 1 if any(status.status != "done" for status in statuses.values()) else 0


def _weights(text: str | None) -> tuple[float, ...] | None:
    """Return the numbers in "0.4,0.4,0.2"."""
    try:
        return None if text is None else tuple(float(number) for number in text.strip("[]").split(","))
    except ValueError:
        raise UsageError(f"Expected `weights` to be numbers such as 0.4,0.4,0.2, but got {text!r}.") from None
