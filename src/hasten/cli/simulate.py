"""`hasten simulate`: replay a workload on a virtual clock."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten.cli import bench_replay, bench_show, options

app = typer.Typer(add_completion=False)


@app.command()
def simulate(
    workload: bench_replay.WorkloadSpec = "azure-llm-2023-conv",
    model: Annotated[
        str, typer.Option(help="A known shape as llama-3-8b, a folder with a config.json, a hub id, or builtin.")
    ] = "builtin",
    hardware: Annotated[
        str,
        typer.Option(
            help="a100, h100, h200 or l4 by their published figures, a profile of your own (.json, .toml), `here` for this "
            "machine as `hasten calibrate` found it, or a file that it wrote."
        ),
    ] = "here",
    requests: Annotated[int | None, typer.Option(min=1, help="Replay only this many, from the first.")] = None,
    rate: bench_replay.Rate = None,
    slo: bench_replay.Slo = None,
    engines: Annotated[int, typer.Option(min=1, help="Engines of the same kind behind one dispatcher.")] = 1,
    speeds: Annotated[
        str | None, typer.Option(metavar="FACTORS", help="Instead: one engine for each of these speeds, as 1,1,0.5.")
    ] = None,
    dispatch: Annotated[
        str, typer.Option(help="least-outstanding, round-robin, or hexgen:alpha=0.5:graphs=FILE.")
    ] = "least-outstanding",
    with_: options.With = None,
    set_: options.Set = None,
    config_file: options.Config = None,
    seed: Annotated[int, typer.Option(help="Of the prompts' tokens.")] = 0,
    report: bench_replay.Report = None,
    to: bench_replay.Json = None,
) -> None:
    """Replay a workload through the engine's own loop and policies with a cost model in place of the machine.

    Figures are simulated, and say so: `--hardware here` rests on measured steps, a profile on published peaks and on
    assumptions about what share of them a step reaches. Requests that do not fit the model's context are refused, as a server
    would; `@context=TOKENS` behind the workload scales lengths instead."""
    objectives = bench_replay.objectives_of(slo)
    factors = _speeds(speeds, engines)
    from hasten.engine.config import EngineConfig
    from hasten.lab.bench.metrics import summary
    from hasten.lab.planning import simulate as planning
    from hasten.lab.workloads.transform import scale_load

    config = EngineConfig.build(with_=with_ or [], set_=set_ or [], file=config_file)
    device = planning.device(model, hardware, config)
    if len(factors) > 1:
        planning.dispatcher(dispatch)
    work = bench_replay.workload_of(workload, requests or 10**9)
    if rate is not None:
        work = scale_load(work, rate)
    name = f"{model} on {hardware}" + (f" × {len(factors)}, {dispatch}" if len(factors) > 1 else "")
    with bench_show.progress() as step:
        run = planning.simulate(
            work, device, config, speeds=factors, dispatch=dispatch, name=name, seed=seed, progress=step("simulating")
        )
        step("computing the figures")
        figures = summary(run, objectives)
    virtual_s = figures.get("duration_s", 0.0)
    pace = f"{virtual_s:,.0f} s in {run.wall_s:.1f} s, {virtual_s / run.wall_s:,.0f} times as fast"
    notes = [
        f"SIMULATED, from {device.source}: {pace}.",
        *bench_show.notes([run], None, None),
    ]
    bench_show.show_run(run, figures, objectives, notes)
    if report is not None:
        bench_show.write_report(report, [run], slo=objectives, notes=notes)
    bench_show.write(to, {"runs": [bench_show.facts(run, figures)], "notes": notes})


def _speeds(text: str | None, engines: int) -> list[float]:
    if text is None:
        return [1.0] * engines
    if engines > 1:
        raise typer.BadParameter("give --engines or --speeds, not both", param_hint="--speeds")
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers as 1,1,0.5, got {text!r}", param_hint="--speeds") from None
