"""`hasten workloads`: what traces and generators there are, what they are like, and how they differ."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hasten.lab.workloads import Workload

app = typer.Typer(help="List, describe, compare and convert workloads.", no_args_is_help=True, add_completion=False)

Spec = Annotated[
    str,
    typer.Argument(
        metavar="WORKLOAD",
        help="A name (hasten workloads list), a file, or a generator as poisson:rate=4,requests=500; a part of it with "
        r"\[0:200] behind, changed with @load=4,context=2048.",
    ),
]
Plot = Annotated[Path | None, typer.Option(help="Write a picture (PNG) to this file.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@app.command("list")
def list_() -> None:
    """List the data files and generators that have a name."""
    from rich.console import Console
    from rich.table import Table

    from hasten.lab.workloads import data, names
    from hasten.lab.workloads.spec import GENERATORS

    described = {Path(name).stem: file.what for name, file in data.FILES.items()}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("name", "where", "what"):
        table.add_column(column, no_wrap=column != "what")
    for name in names():
        if name in GENERATORS:
            summary = (GENERATORS[name].__doc__ or "").split("\n\n")[0].split(". ")[0].replace("\n", " ")
            table.add_row(f"[bold]{name}[/]", "generator", " ".join(summary.replace("`", "").split()).rstrip("."))
            continue
        file = next((file for file in data.FILES if Path(file).stem == name), None)
        where = "download" if file is not None and data.at_hand(file) is None else "at hand"
        table.add_row(f"[bold]{name}[/]", where, described.get(name, ""))
    console = Console(highlight=False)
    console.print(table)
    console.print("\nA generator takes options, as in [bold]poisson:rate=4,requests=500[/].", style="dim")


@app.command()
def show(spec: Spec, plot: Plot = None, as_json: Json = False) -> None:
    """Describe a workload: rate, burstiness, lengths, sessions, prefix reuse."""
    from hasten.lab.workloads import compare, load

    workload = load(spec)
    figures = compare.statistics(workload)
    if as_json:
        _write_json({"name": workload.name, "source": workload.source, **figures})
    else:
        _show([workload], {workload.name: figures})
    _draw(plot, workload)


@app.command("compare")
def compare_(one: Spec, other: Spec, plot: Plot = None, as_json: Json = False) -> None:
    """Set two workloads side by side, with the distances between them."""
    from hasten.lab.workloads import compare, load

    workloads = [load(one), load(other)]
    figures = {spec: compare.statistics(workload) for spec, workload in zip((one, other), workloads, strict=True)}
    distances = compare.compare(*workloads)
    if as_json:
        _write_json({"workloads": figures, "distances": distances})
    else:
        _show(workloads, figures)
        _show_distances(distances)
    _draw(plot, *workloads)


@app.command()
def export(spec: Spec, file: Annotated[Path, typer.Argument(help="The file to write, JSON Lines.")]) -> None:
    """Write a workload as plain JSON Lines, one request a line; hasten reads it back."""
    from rich.console import Console

    from hasten.lab.workloads import jsonl, load

    workload = load(spec)
    try:
        jsonl.write(workload, file)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {file}: {error.strerror or error}") from error
    Console(stderr=True, highlight=False).print(f"{len(workload):,} requests written to {file}")


def _show(workloads: list[Workload], figures: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for workload in workloads:
        console.print(f"[bold]{workload.name}[/]", end="  ")
        console.print(workload.source, style="dim", markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in figures:
        table.add_column(name.replace("[", r"\["), justify="right", overflow="fold")
    for key in next(iter(figures.values())):
        row = [_figure(key, of[key]) for of in figures.values()]
        if any(row):
            table.add_row(key.replace("_", " "), *row)
    console.print(table)


def _show_distances(distances: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title="distances (0 is alike)", title_justify="left")
    table.add_column("")
    table.add_column("")
    for key, value in distances.items():
        table.add_row(key.replace("_", " "), f"{value:.4f}")
    Console(highlight=False).print(table)


def _figure(key: str, value: float) -> str:
    """A figure as text, empty where it does not apply."""
    if math.isnan(value) or (value == 0 and key in ("workflows", "period_strength")):
        return ""
    if math.isinf(value):
        return "∞"
    if key.endswith("_share"):
        return f"{value:.1%}" if value else ""
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _write_json(figures: object) -> None:
    import sys

    import orjson

    sys.stdout.write(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode() + "\n")


def _draw(file: Path | None, *workloads: Workload) -> None:
    if file is None:
        return
    from rich.console import Console

    from hasten.lab.workloads.picture import picture

    console = Console(stderr=True, highlight=False)
    with console.status("drawing"):
        png = picture(*workloads)
    try:
        file.write_bytes(png)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {file}: {error.strerror or error}") from error
    console.print(f"picture written to {file}")
