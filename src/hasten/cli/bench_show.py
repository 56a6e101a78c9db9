"""What `hasten bench` says of replayed workloads: progress, tables, notes and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.engine.request import SLO
    from hasten.lab.bench.run import Run
    from hasten.lab.bench.saturation import Saturation


@contextmanager
def progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """`step(what)` begins a step; what it returns takes (requests ended, requests in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def step(what: str) -> Callable[[int, int], None]:
            bars.reset(task, description=what, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield step


def notes(runs: list[Run], full: float | None, load: float | None) -> list[str]:
    out = []
    if full is not None and load is not None:
        out.append(f"Offered {load:.0%} of the saturation throughput, {full:.3g} requests/s with all requests at once.")
    for run in runs:
        if not run.valid:
            out.append(f"{run.name}: INVALID, the replay fell behind its schedule by {run.lag_p99_s * 1e3:.0f} ms at p99.")
        if early := run.info.get("answers that ended early"):
            out.append(f"{run.name}: {early} answers ended before the length asked for; compare output tokens.")
        if run.errors:
            number, error = next(iter(run.errors.items()))
            out.append(f"{run.name}: {len(run.errors)} requests failed; number {number}: {error}")
        if run.info.get("prompts") == "words":
            out.append("Prompts went as words, of about as many tokens as asked for: a server here takes no token ids.")
    return list(dict.fromkeys(out))


def saturation_in_words(found: Saturation, share: float) -> str:
    if not found.rate:
        return f"No rate was found at which {share:.0%} keep the objectives: {found.fails_at:.3g} requests/s do not."
    if math.isinf(found.fails_at):
        return f"{share:.0%} keep the objectives at every rate tried, up to {found.rate:.3g} requests/s."
    return (
        f"{share:.0%} keep the objectives up to {found.rate:.3g} requests/s, and not at {found.fails_at:.3g} "
        f"({len(found.probes)} rates measured)."
    )


def show_run(run: Run, figures: dict[str, float], slo: SLO | None, notes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from hasten.lab.bench.figures import HEADLINE, LATENCIES, PARTS, present, show

    console = Console(highlight=False)
    console.print(f"[bold]{run.name}[/] on {run.workload.name}, {len(run.workload)} requests{' (SIMULATED)' * run.simulated}")
    latencies = Table(box=None, header_style="bold", padding=(0, 3, 0, 0))
    latencies.add_column("")
    for part in PARTS:
        latencies.add_column(part, justify="right")
    for key, label in LATENCIES.items():
        if f"{key}_p50_s" in figures:
            latencies.add_row(label, *(show(figures[f"{key}_{part}_s"], "s") for part in PARTS))
    console.print(latencies)
    rest = [one for one in present([figures], HEADLINE) if one.key.partition("_")[0] not in LATENCIES]
    for one in rest:
        console.print(f"{one.label}: [bold]{show(figures[one.key], one.unit)}[/]")
    _say(console, run, slo, notes)


def show_compared(compared: list[Any], names: tuple[str, str], runs: list[Run], slo: SLO | None, notes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from hasten.lab.bench.figures import HEADLINE, show

    console = Console(highlight=False)
    table = Table("", box=None, header_style="bold", padding=(0, 3, 0, 0))
    for name in (*names, "ratio"):
        table.add_column(name, justify="right", overflow="fold")

    def cell(spread: Any, unit: str, ahead: bool) -> str:
        middle = show(spread.middle, unit)
        around = "" if spread.low == spread.high else f" [dim]{show(spread.low, unit)} … {show(spread.high, unit)}[/]"
        return (f"[bold green]{middle}[/]" if ahead else middle) + around

    valid = all(run.valid for run in runs)
    for one in compared:
        if one.figure.key not in (*HEADLINE, "output_tokens"):
            continue
        ratio = "–"
        if one.ratio is not None:
            ratio = f"{one.ratio.middle:.2f}x"
            if one.ratio.low != one.ratio.high:
                ratio += f" [dim]{one.ratio.low:.2f} … {one.ratio.high:.2f}[/]"
        unit = one.figure.unit
        sides = (cell(one.a, unit, valid and one.better == "a"), cell(one.b, unit, valid and one.better == "b"))
        table.add_row(one.figure.label, *sides, ratio)
    console.print(table)
    console.print(
        "medians, with lowest and highest; green: ahead in every round; ratio: the second over the first", style="dim"
    )
    _say(console, runs[0], slo, notes)


def _say(console: Any, run: Run, slo: SLO | None, notes: list[str]) -> None:
    from hasten.lab.bench.metrics import goodput_definition

    for text in filter(None, [goodput_definition(run, slo), *notes]):
        console.print(text, style="yellow" if "INVALID" in text or "failed" in text else "dim", markup=False)


def facts(run: Run, figures: dict[str, float]) -> dict[str, Any]:
    return {
        "name": run.name,
        "workload": run.workload.name,
        "source": run.workload.source,
        "simulated": run.simulated,
        "valid": run.valid,
        "figures": figures,
        "errors": {str(number): error for number, error in run.errors.items()},
        "info": dict(run.info),
    }


def plain(value: Any) -> Any:
    """A dataclass as JSON takes it; None stays None."""
    return asdict(value) if value is not None else None


def write_report(path: Path | None, runs: Sequence[Run], **shown: Any) -> None:
    """The report, if one is wanted (see `report.write`); it takes seconds."""
    if path is None:
        return
    from rich.console import Console

    with Console(stderr=True).status("writing the report"):
        from hasten.lab.bench import report

        report.write(path, runs, **shown)


def write(to: Path | None, figures: dict[str, Any]) -> None:
    if to is not None:
        to.write_text(json.dumps(_finite(figures), indent=1, default=str, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null stands for both."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
