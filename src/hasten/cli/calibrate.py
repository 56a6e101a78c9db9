"""`hasten calibrate`: measure this machine's steps and fit the cost model to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import options

if TYPE_CHECKING:
    from hasten.lab.planning.calibrate import Calibration

app = typer.Typer(add_completion=False)

_POOR = 0.15
"""Median error of a single step above which a calibration should not be relied on."""


@app.command()
def calibrate(
    model: options.Model = None,
    budget: Annotated[float, typer.Option(min=5, help="Seconds to measure for.")] = 120.0,
    out: Annotated[Path | None, typer.Option(help="Write here instead of into the cache folder.")] = None,
    with_: options.With = None,
    set_: options.Set = None,
    config: options.Config = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
) -> None:
    """Run a grid of steps on the engine of this machine and fit the cost model, which `hasten simulate` and `hasten tune` use.

    Nothing else should keep the machine busy meanwhile."""
    asked = options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config)
    engine_config = asked.config()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("loading", total=1.0)
        from hasten.engine.build import build
        from hasten.lab.planning import calibrate as planning

        built = build(engine_config)
        found = planning.measure(
            built, budget_s=budget, progress=lambda what, share: bars.update(task, description=what, completed=share)
        )
    path = out if out is not None else planning.default_path(found.model, found.runs_on)
    found.save(path)
    _show(found, path)


def _show(found: Calibration, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    costs = found.costs
    how = f"{found.runs_on.get('dtype')}, {found.runs_on.get('kernels')} kernels"
    console.print(f"[bold]{found.model}[/] on {found.machine}, {how}")
    table = Table("tokens of a step", "ms", title="without context", title_style="dim")
    for knot, seconds in zip(costs.knots, costs.knot_s, strict=True):
        table.add_row(f"{knot:,}", f"{seconds * 1e3:.2f}")
    console.print(table)
    parts = {
        "per sequence": (costs.row_s, "us"),
        "per row drawn from": (costs.head_s, "us"),
        "per 1,000 cached tokens read": (costs.cached_s * 1e3, "us"),
        "per 1,000 pairs of query and key": (costs.pair_s * 1e3, "us"),
        "per copy to the host tier": (costs.copy_s, "us"),
        "per token of it": (costs.copy_token_s, "us"),
    }
    grid = Table.grid(padding=(0, 2, 0, 0))
    for what, (seconds, unit) in parts.items():
        if seconds:
            grid.add_row(f"[dim]{what}[/]", f"{seconds * 1e6:.3g} {unit}")
    console.print(grid)
    console.print(
        f"{found.steps:,} steps; the fit is off by {found.median_error:.1%} (median) and {found.p95_error:.1%} "
        "(95th percentile) of a single step"
    )
    if found.median_error > _POOR:
        poor = "That is a poor fit: something else kept this machine busy. Calibrate again when it is quiet."
        console.print(poor, style="yellow")
    console.print(f"saved to {path}", style="dim", soft_wrap=True)
