"""`hasten bench planning`: what scheduling itself costs, against the length of the queue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli import bench_show, options


def planning(
    policies: Annotated[
        list[str] | None,
        typer.Argument(help="Configurations to compare, each as --with takes techniques; the plain engine if left out."),
    ] = None,
    waiting: Annotated[list[int] | None, typer.Option(help="Lengths of the queue. Repeatable; six from 0 to 2,000.")] = None,
    set_: options.Set = None,
    config_file: options.Config = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the times to this PNG.")] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Time how long the scheduling policies take to plan a step with 256 sequences running and up to 2,000 waiting."""
    configs = {
        name or "plain": options.Asked(None, [name] if name else None, set_, file=config_file).config()
        for name in policies or [""]
    }
    from rich.console import Console
    from rich.table import Table

    from hasten.lab.bench import planning as measure

    queue = waiting or list(measure.WAITING)
    found: dict[str, Sequence[measure.Planning]] = {}
    with Console(stderr=True).status("planning") as status:
        for name, config in configs.items():
            found[name] = measure.sweep(config, queue, advance=partial(_tell, status, name))
    table = Table("ms a step, median (99th percentile)", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for count in queue:
        table.add_column(f"{count} waiting", justify="right")
    for name, points in found.items():
        table.add_row(name, *(f"{1e3 * point.median_s:.2f} ({1e3 * point.p99_s:.2f})" for point in points))
    Console().print(table)
    if plot is not None:
        plot.write_bytes(measure.picture(found))
    figures: dict[str, Any] = {
        name: [{"waiting": p.waiting, "running": p.running, "median_s": p.median_s, "p99_s": p.p99_s} for p in points]
        for name, points in found.items()
    }
    bench_show.write(to, figures)


def _tell(status: Any, name: str, label: str) -> None:
    status.update(f"{name}: {label}")
