"""`hasten bench startup`: new processes of `hasten generate`, timed to their first output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from hasten.cli import bench_show, options


def startup(
    model: options.Model = None,
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each kind, taking turns.")] = 3,
    with_: options.With = None,
    set_: options.Set = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
    config_file: options.Config = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Time new processes of `hasten generate` to their first output, beside `import torch` alone, and the memory they take."""
    # A mistake is told here as by any command, before anything is started.
    options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config_file).config()
    arguments = [model] if model is not None else []
    single = {
        "--device": device,
        "--dtype": dtype,
        "--load-format": load_format,
        "--max-length": max_length,
        "--threads": threads,
        "--config": config_file,
    }
    pairs = [(name, value) for name, value in single.items() if value is not None]
    pairs += [("--with", value) for value in with_ or []] + [("--set", value) for value in set_ or []]
    arguments += [f"{name}={value}" for name, value in pairs]
    from rich.console import Console

    from hasten.lab.bench import startup as measure

    with Console(stderr=True).status("starting") as status:
        try:
            figures = measure.run(arguments, rounds, advance=lambda label: status.update(label))
        except measure.StartFailed as failed:
            status.stop()
            sys.stderr.write(failed.said or f"{failed}\n")
            raise typer.Exit(failed.status if failed.status > 0 else 1) from None
    _show(figures)
    bench_show.write(to, figures)


def _show(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from hasten.lab.bench.startup import FIRST, IMPORT, LATER

    starts: dict[str, list[dict[str, Any]]] = figures["starts"]
    floor = [one["first_output_s"] for one in starts[IMPORT]]
    table = Table("seconds", box=None, header_style="bold", padding=(0, 3, 0, 0))
    for name in (FIRST, LATER, IMPORT):
        table.add_column(name, justify="right")

    def row(label: str, of: Callable[[str], str], style: str = "") -> None:
        table.add_row(label, *(of(name) for name in (FIRST, LATER, IMPORT)), style=style)

    def beyond(name: str, of: Callable[[float, float], float]) -> str:
        pairs = zip(starts[name], floor, strict=True)
        return "" if name == IMPORT else _spread([of(one["first_output_s"], least) for one, least in pairs])

    def seconds(key: str) -> Callable[[str], str]:
        return lambda name: _spread([one[key] for one in starts[name]])

    def stage_of(stage: str) -> Callable[[str], str]:
        return lambda name: _spread([one["stages"][stage] for one in starts[name] if one["stages"]])

    def most(key: str) -> Callable[[str], str]:
        return lambda name: options.show_bytes(max(one[key] for one in starts[name]))

    row("first output", seconds("first_output_s"), style="bold")
    for stage in starts[FIRST][0]["stages"]:
        row(f"  {stage}", stage_of(stage), style="dim")
    row("over import torch", lambda name: beyond(name, lambda mine, least: mine - least))
    row("times import torch", lambda name: beyond(name, lambda mine, least: mine / least))
    row("end of process", seconds("ended_s"))
    if all(one["private_bytes"] is not None for each in starts.values() for one in each):
        row("private memory", most("private_bytes"))
        row("resident memory", most("resident_bytes"))
    console = Console(highlight=False)
    console.print(table)
    weights, kv = (options.show_bytes(figures[key]) for key in ("weight_bytes", "kv_bytes"))
    console.print(f"weights {weights}, KV pool {kv} (pages of it that hold nothing yet take no memory)")
    console.print(
        f"medians of {len(floor)}, with lowest and highest; memory: the most at any time; private: what no file backs",
        style="dim",
    )


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    around = f" [dim]{min(values):.2f} … {max(values):.2f}[/]" if len(values) > 1 else ""
    return f"{median(values):.2f}{around}"
