"""`hasten tune`: the best configuration for a workload and its objectives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli import bench_replay, bench_show, options

if TYPE_CHECKING:
    from hasten.engine.config import EngineConfig
    from hasten.engine.request import SLO
    from hasten.lab.planning.tune import Candidate, Tuned

app = typer.Typer(add_completion=False)


@app.command()
def tune(
    workload: bench_replay.WorkloadSpec,
    slo: Annotated[str, typer.Option(metavar="LIMITS", help="Objectives in seconds, as ttft=0.5,tpot=0.05,e2e=10.")],
    model: options.Model = None,
    requests: bench_replay.Requests = 100,
    rate: bench_replay.Rate = None,
    budget: Annotated[float, typer.Option(min=0.1, help="Minutes to search by simulation.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="Real runs of each of the best, alternating.")] = 2,
    out: Annotated[Path, typer.Option(help="Write the configuration here, for --config.")] = Path("hasten.toml"),
    report: bench_replay.Report = None,
    to: bench_replay.Json = None,
    with_: options.With = None,
    set_: options.Set = None,
    config_file: options.Config = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
) -> None:
    """Search the options that exist by simulation, confirm the best by real runs, say why, and write a configuration file.

    Simulation rests on this machine's calibration, which is made first where there is none. What --with, --set and --config say
    is where the search begins, and what the result is compared with."""
    objectives = bench_replay.objectives_of(slo)
    assert objectives is not None
    if not out.absolute().parent.is_dir():  # said before minutes are spent
        raise typer.BadParameter(f"there is no folder {out.absolute().parent}", param_hint="--out")
    asked = options.asked(model, with_, set_, device, dtype, None, max_length, threads, config_file)
    base = asked.config()
    from hasten.engine.build import build
    from hasten.lab.bench.drive import replay
    from hasten.lab.planning import calibrate
    from hasten.lab.planning import tune as planning
    from hasten.lab.workloads.transform import fit_context, scale_load

    work = bench_replay.workload_of(workload, requests)
    with bench_show.progress() as step:
        engines: dict[str, Any] = {}

        def engine_of(config: EngineConfig) -> Any:
            key = config.model_dump_json()
            if key not in engines:
                engines[key] = build(config).engine
            return engines[key]

        def device_of(config: EngineConfig) -> Any:
            try:
                return calibrate.here(config.model.path, config).device()
            except planning.ConfigError:
                return None

        show = step("loading")
        if device_of(base) is None:
            show = step("calibrating this machine")
            found = calibrate.measure(build(base), progress=lambda what, share: show(round(share * 100), 100))
            found.save(calibrate.default_path(found.model, found.runs_on))
        work = fit_context(work, engine_of(base).max_length)
        if rate is not None:
            work = scale_load(work, rate)

        def progress(what: str, share: float) -> None:
            step(what)(round(share * 100), 100)

        tuned = planning.tune(
            work,
            objectives,
            base,
            device_of,
            lambda config, name, number: replay(engine_of(config), work, name=name, seed=number, limit=planning.limit_of(work)),
            budget_s=60 * budget,
            rounds=rounds,
            progress=progress,
        )
    notes = _why(tuned, objectives)
    _show(tuned, notes)
    about = [f"hasten tune --workload {workload} --slo {slo}", *notes]
    out.write_text(planning.toml(tuned, base, about), encoding="utf-8")
    typer.secho(f"wrote {out}: hasten serve --config {out}", err=True, dim=True)
    bench_show.write_report(report, list(tuned.runs.values()), slo=objectives, title="Tuning", notes=notes)
    bench_show.write(to, {"notes": notes, "candidates": [_facts(one) for one in tuned.tried], "refused": tuned.refused})


def _facts(candidate: Candidate) -> dict[str, Any]:
    names = {path: str(option) for path, option in candidate.options.items()}
    return {"name": candidate.name, "options": names, "simulated": candidate.simulated, "real": candidate.real}


def _why(tuned: Tuned, slo: SLO) -> list[str]:
    """The result in sentences."""
    from hasten.lab.bench.slo import describe

    began, winner = tuned.began, tuned.winner
    counts = f"{len(tuned.tried)} configurations were simulated, {len(tuned.confirmed)} ran for real"
    out = [f"Objectives: {describe(slo)}. {counts}."]
    if winner is began:
        out.append(f"The configuration given is the best that was found: {began.goodput:.1%} of requests keep the objectives.")
        return out
    gain = winner.goodput - began.goodput
    verdict = f"{gain * 100:+.1f} points" if abs(gain) >= 0.0005 else "no gain within the objectives, but more room below them"
    out.append(
        f"{winner.name}: {winner.goodput:.1%} of requests keep the objectives, {began.goodput:.1%} as given "
        f"({verdict}; medians of {len(winner.real)} real runs each)."
    )
    for option, goodput in tuned.effects.items():
        out.append(f"{option}: without it {goodput:.1%} would, by simulation, instead of {winner.simulated['goodput']:.1%}.")
    return out


def _show(tuned: Tuned, notes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("configuration", overflow="fold")
    for column in ("goodput", "simulated", "TTFT p50", "p99", "TPOT p50", "p99"):
        table.add_column(column, justify="right")

    def middle(real: list[dict[str, float]], key: str) -> str:
        from statistics import median

        from hasten.lab.bench.figures import show

        return show(median(one[key] for one in real), "s")

    for one in tuned.confirmed:
        style = "bold green" if one is tuned.winner else ""
        keys = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")
        cells = [f"{one.goodput:.1%}", f"{one.simulated['goodput']:.1%}", *(middle(one.real, key) for key in keys)]
        table.add_row(one.name, *cells, style=style)
    console.print(table)
    for note in notes:
        console.print(note, style="dim", markup=False)
