"""`hasten bench`: single steps (`latency`) and offline batches (`throughput`) here, replayed workloads in `bench_replay`,
process starts in `bench_startup`, the scheduler's own time in `bench_planning`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli import bench_planning, bench_replay, bench_startup, options

if TYPE_CHECKING:
    from hasten.engine.build import Built

app = typer.Typer(
    help="Measure steps, offline batches, replayed workloads, process starts and scheduling.",
    no_args_is_help=True,
    add_completion=False,
)
app.command()(bench_replay.serve)
app.command()(bench_replay.compare)
app.command()(bench_startup.startup)
app.command()(bench_planning.planning)

Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]


def _build(asked: options.Asked) -> Built:
    config = asked.config()
    from hasten.engine.build import build
    from hasten.engine.text import load_text

    return build(config, eos=load_text(config.model)[0].eos_ids)


@app.command()
def latency(
    model: options.Model = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences decoding together; default 1 and 32.")] = None,
    prompt: Annotated[
        list[int] | None, typer.Option(help="Prompt lengths to prefill; decode follows the first. Default 128, 512.")
    ] = None,
    output: Annotated[int, typer.Option(help="Tokens decoded per sequence.")] = 48,
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Also where a step's time goes.")] = False,
    with_: options.With = None,
    set_: options.Set = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
    config_file: options.Config = None,
    to: Json = None,
) -> None:
    """Time prefill and decode steps, against what the machine's bandwidth and arithmetic allow at the same minute."""
    asked = options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config_file)
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading") as status:
        built = _build(asked)
        from hasten.lab.bench import latency as measure

        figures = measure.run(
            built, batch or [1, 32], prompt or [128, 512], output, breakdown, advance=lambda label: status.update(label)
        )
    _show_latency(figures, breakdown)
    _write(figures, to)


def _show_latency(figures: dict[str, Any], breakdown: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    info = figures["info"]
    read, matmul = figures["read_bytes_per_s"], figures["matmul_flop_per_s"]
    console.print(f"[bold]{info['model']}[/] {info['dtype']}, {info['kernels']} kernels, {info['threads']} threads")
    console.print(
        f"machine, before and after: reads {read[0] / 1e9:.0f} and {read[1] / 1e9:.0f} GB/s, "
        f"multiplies {matmul[0] / 1e9:.0f} and {matmul[1] / 1e9:.0f} GFLOP/s",
        style="dim",
    )
    table = Table("step", "batch", "prompt", "median ms", "IQR ms", "tokens/s", "of bound")
    if breakdown:
        table.add_column("own ms")
    for point in figures["points"]:
        row = [
            point["what"],
            str(point["batch"]),
            str(point["prompt"]),
            f"{point['seconds'] * 1e3:.2f}",
            f"{point['spread'] * 1e3:.2f}",
            f"{point['tokens_per_s']:.1f}",
            f"{point['share_of_bound']:.0%}",
        ]
        if breakdown:
            row.append(f"{point['own_s'] * 1e3:.2f}")
        table.add_row(*row)
    console.print(table)
    if breakdown:
        _show_parts(console, figures)


def _show_parts(console: Any, figures: dict[str, Any]) -> None:
    from rich.table import Table

    names = list(dict.fromkeys(name for point in figures["points"] for name in point["parts"]))
    table = Table("ms of a step", *names, title="where the time goes (profiled run)")
    for point in figures["points"]:
        cells = [f"{point['parts'].get(name, 0.0) * 1e3:.2f}" for name in names]
        table.add_row(f"{point['what']} {point['batch']}x{point['prompt']}", *cells)
    console.print(table)


@app.command()
def throughput(
    model: options.Model = None,
    requests: Annotated[int, typer.Option(help="Requests, all at once.")] = 64,
    prompt: Annotated[int, typer.Option(help="Mean prompt length.")] = 256,
    output: Annotated[int, typer.Option(help="Mean output length.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the lengths and tokens.")] = 0,
    with_: options.With = None,
    set_: options.Set = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
    config_file: options.Config = None,
    to: Json = None,
) -> None:
    """Run an offline batch of requests of mixed lengths."""
    asked = options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config_file)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("loading", total=requests)
        built = _build(asked)
        from hasten.lab.bench import throughput as measure

        bars.update(task, description="requests")
        figures = measure.run(
            built, requests, prompt, output, seed, advance=lambda done, total: bars.update(task, completed=done)
        )
    console = Console()
    console.print(
        f"{requests} requests in {figures['seconds']:.2f} s: {figures['requests_per_s']:.2f} requests/s, "
        f"[bold]{figures['output_tokens_per_s']:.0f}[/] output tokens/s, {figures['total_tokens_per_s']:.0f} tokens/s in all, "
        f"{figures['preemptions']} preemptions"
    )
    _write(figures, to)


def _write(figures: dict[str, Any], to: Path | None) -> None:
    if to is not None:
        to.write_text(json.dumps(figures, indent=1) + "\n")
