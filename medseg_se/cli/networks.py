"""The command that says which networks there are. Torch is imported inside."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from medseg_se.networks.description import NetworkDescription


def networks(name: str | None = None, *, json: bool = False) -> int:
    """List the networks, or explain one: what it is for, its options with defaults, its parameters and its paper.

    Those of MONAI are listed by name only. Parameters are those for one input channel and two classes, with the defaults.

    Args:
        name: The network to explain, such as unet or monai:SwinUNETR.
        json: Print everything as JSON, for machines.
    """
    from rich.console import Console

    from medseg_se.networks import NETWORKS
    from medseg_se.networks.description import describe_network

    names = [name] if name else list(NETWORKS)
    described = [describe_network(each) for each in names]
    if json:
        print(dumps([each.to_dict() for each in described], indent=1, ensure_ascii=False))
    elif name:
        _explain(described[0], Console())
    else:
        _list(described, Console())
    return 0


def _list(described: list[NetworkDescription], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from medseg_se.networks import MONAI_PREFIX
    from medseg_se.networks.monai_networks import MONAI_NETWORKS

    for kind, title in (("segmentation", "For segmentation"), ("classification", "For classification and regression")):
        table = Table(title=title, title_justify="left")
        for heading in ("name", "2D", "3D"):
            table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
        table.add_column("source", overflow="fold")
        for each in described:
            if each.kind == kind:
                table.add_row(Text(each.name), _size(each, 2), _size(each, 3), Text(each.paper))
        console.print(table)
    theirs = ", ".join(MONAI_PREFIX + each for each in MONAI_NETWORKS)
    console.print(Text("MONAI's networks: " + theirs))
    console.print("`medseg-se networks NAME` shows the options of one. Sizes are parameters.", highlight=False, markup=False)


def _explain(described: NetworkDescription, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(Text(f"{described.name}: {described.summary}", "bold"), soft_wrap=True)
    rows = {
        "for": "segmentation" if described.kind == "segmentation" else "classification and regression",
        "source": described.paper,
        "parameters": ", ".join(f"{number:,} in {dims}D" for dims, number in described.parameters.items()),
        "attention at": ", ".join(described.places),
    }
    for what, text in rows.items():
        if text:
            console.print(Text(f"{what}: {text}"), soft_wrap=True)
    table = Table()
    table.add_column("option", no_wrap=True)
    table.add_column("default", overflow="fold")
    table.add_column("meaning", overflow="fold")
    for option in described.options:
        table.add_row(Text(option.name), Text(_plain(option.default)), Text(option.meaning))
    console.print(table)


def _size(described: NetworkDescription, dims: int) -> str:
    number = described.parameters.get(dims)
    return "" if number is None else f"{number / 1e6:.1f} M"


def _plain(value: object) -> str:
    """Return a default as one would write it in a recipe."""
    if value is None:
        return "not given"
    return dumps(value)
