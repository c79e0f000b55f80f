"""The commands about attention: what it costs and what it does. Torch is imported inside.

Each returns its exit code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medseg_se.errors import UsageError


def inspect(
    checkpoint: str,
    scan: list[str],
    *,
    output: str,
    label: str | None = None,
    device: str = "auto",
    overlap: float = 0.5,
    patches: int = 16,
    seed: int = 0,
) -> int:
    """See what attention does inside a network on one scan: its gates, where they open, and how selective they are.

    Writes inspect.json, inspect.png and a map of every gate that varies in space, on the scan's own grid. Of a classification
    or regression, it takes any number of scans, and writes inspect.json and inspect.html: each scan with Grad-CAM, and the
    gates by class where there is attention; the options from `label` on are not for these, but for `device`.

    Args:
        checkpoint: A checkpoint written by `medseg-se fit`; of a segmentation, of a network with attention.
        scan: The scan: one file, or one a channel. Of a classification or regression, files and folders.
        output: Folder for what is written.
        label: The scan's label map, which says where the structures are; the model's own prediction if not given.
        device: auto, cpu, cuda, cuda:1 or mps.
        overlap: Share of a tile that its neighbour covers too.
        patches: Patches a structure that show how selective channel gates are.
        seed: Of the choice of the patches.
    """
    from dataclasses import replace

    from rich.console import Console

    from medseg_se.analysis.explaining import task_of
    from medseg_se.analysis.inspection import check_folder, inspect_scan
    from medseg_se.analysis.watched import WatchedModel
    from medseg_se.data.scan import read_truth
    from medseg_se.hardware import keep_freed_memory
    from medseg_se.inference.inputs import find_cases
    from medseg_se.inference.reading import read_scan
    from medseg_se.inference.tiling import check_overlap
    from medseg_se.optional import load_optional
    from medseg_se.reports.gates import gates_page

    keep_freed_memory()
    folder = Path(output)
    check_folder(folder)
    if task_of(Path(checkpoint)) != "segmentation":
        return _inspect_whole_scans(checkpoint, scan, folder, device)
    load_optional("matplotlib")  # missing, it is to be said at once
    check_overlap(overlap)
    model = WatchedModel.load(checkpoint, device)
    found = find_cases(scan, len(model.channels))
    if len(found) != 1:
        raise UsageError(f"Expected one scan, but {', '.join(scan)} names {len(found)}. Inspect them one by one.")
    case = found[0] if label is None else replace(found[0], label=Path(label))
    image = read_scan(case, len(model.channels))
    truth = None if case.label is None else read_truth(case, model.structures, image)
    result = inspect_scan(model, image, truth, overlap, patches, seed, progress=True)
    result.write_maps(folder)
    result.write_json(folder / "inspect.json")
    gates_page(result, folder / "inspect.png", case.id)
    console = Console()
    result.render(console)
    written = f"Written to {folder}: inspect.json, inspect.png and {len(result.recording.maps)} maps"
    console.print(written, highlight=False, soft_wrap=True, markup=False)
    return 0


def _inspect_whole_scans(checkpoint: str, scans: list[str], folder: Path, device: str) -> int:
    from rich.console import Console

    from medseg_se.analysis.explaining import Explainer, find_whole_scans
    from medseg_se.reports.explained_page import write_explained

    explainer = Explainer.load(checkpoint, device)
    cases = find_whole_scans(scans, explainer)
    made = write_explained(explainer, cases, folder)
    Console().print(
        f"Written to {folder}: inspect.json, and inspect.html ({made.size / 1e6:.1f} MB) with {made.pictured} of {len(cases)} "
        "scans in pictures",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return 0


def cost(
    *,
    network: str = "unet",
    attention: str = "scse",
    attention_at: str | None = None,
    spatial_dims: int = 3,
    size: str = "96",
    channels: str | None = None,
    batch: int = 1,
    repeats: int = 10,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    output: str | None = None,
    published: bool = False,
) -> int:
    """Measure what attention costs: parameters, operations, bytes moved, peak memory and time, beside the network without.

    Exit code 1 if an attention failed; the numbers of the others are shown all the same.

    Args:
        network: Name of the network.
        attention: Names of attention blocks with commas between them, such as scse,eca,simam.
        attention_at: Where they sit, with commas between; the network's own places if not given.
        spatial_dims: 2 or 3.
        size: Voxels of the input along every axis: one number, or one per axis with commas between.
        channels: Feature channels per level with commas between, such as 32,64,128,256; the network's own if not given.
        batch: Scans at once.
        repeats: How often each time is measured.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: bf16 is faster where the hardware has it, and rounds.
        output: JSON file to write everything to, too.
        published: Instead, count the networks of the papers and put their claims beside.
    """
    from rich.console import Console

    console = Console()
    if published:
        from medseg_se.analysis.published import published_claims, render_claims, write_claims

        claims = published_claims()
        if output:
            write_claims(claims, output)
        render_claims(claims, console)
        return 0
    from medseg_se.analysis.cost import measure_cost
    from medseg_se.hardware import keep_freed_memory

    keep_freed_memory()
    options = {
        **({"channels": split_numbers(channels, "channels")} if channels else {}),
        **({"attention_at": split_names(attention_at, "attention_at")} if attention_at else {}),
    }
    lengths = split_numbers(size, "size")
    lengths = lengths * spatial_dims if len(lengths) == 1 else lengths
    names = split_names(attention, "attention")
    report = measure_cost(
        network, names, spatial_dims, lengths, batch, device, precision, repeats, options, progress=console.is_terminal
    )
    if output:
        report.write_json(output)
    report.render(console)
    return 1 if report.failures else 0


def split_names(text: str, option: str) -> list[str]:
    """Split at the commas that stand outside brackets, so that max(a,b) stays together."""
    names, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            break
        if sign == "," and depth == 0:
            names.append("")
        else:
            names[-1] += sign
    names = [name.strip() for name in names]
    if depth or not all(names):
        raise UsageError(f"Expected `{option}` to be names with commas between them, but got {text!r}.")
    return names


def split_numbers(text: str, option: str) -> list[int]:
    """Split at the commas."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"Expected `{option}` to be whole numbers with commas between them, but got {text!r}.") from None
