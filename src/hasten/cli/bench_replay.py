"""`hasten bench serve` and `hasten bench compare`: a workload replayed open loop, against one engine or server or two."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli import bench_show, options
from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    from hasten.engine.request import SLO
    from hasten.lab.bench.ideal import Ideal
    from hasten.lab.bench.run import Run
    from hasten.lab.bench.saturation import Saturation
    from hasten.lab.bench.targets import Target
    from hasten.lab.workloads.base import Workload

WorkloadSpec = Annotated[
    str,
    typer.Option("--workload", metavar="SPEC", help="A trace by name or path, or a generator, as `poisson:rate=4`."),
]
Requests = Annotated[int, typer.Option(min=1, help="Replay only this many, from the first.")]
Load = Annotated[
    float | None, typer.Option(help="Arrival rate as a share of the saturation throughput, which is measured first.")
]
Rate = Annotated[float | None, typer.Option(help="Arrival rate in requests per second. Neither: as recorded.")]
Slo = Annotated[
    str | None, typer.Option(metavar="LIMITS", help="Objectives in seconds, as ttft=0.5,tpot=0.05,e2e=10: adds goodput.")
]
Seed = Annotated[
    int | None,
    typer.Option(help="Of the prompts' tokens. Left out: drawn for a server, which may have cached earlier prompts; else 0."),
]
Report = Annotated[Path | None, typer.Option(help="Write a report with pictures to this HTML file.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]
Key = Annotated[str | None, typer.Option("--api-key", envvar="HASTEN_API_KEY", help="For a server that asks for one.")]
Context = Annotated[
    int | None, typer.Option(help="Tokens that prompt and output may have together, for a server that does not say.")
]


def serve(
    model: options.Model = None,
    workload: WorkloadSpec = "azure-llm-2023-conv",
    requests: Requests = 200,
    load: Load = None,
    rate: Rate = None,
    url: Annotated[str | None, typer.Option(help="Replay against this OpenAI-compatible server instead.")] = None,
    slo: Slo = None,
    search: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Also find the highest rate at which this share of requests keeps --slo, as 0.9."),
    ] = None,
    ideal: Annotated[
        bool,
        typer.Option("--ideal", help="Also measure requests alone, and how much longer those of the replay took."),
    ] = False,
    with_: options.With = None,
    set_: options.Set = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
    config_file: options.Config = None,
    seed: Seed = None,
    api_key: Key = None,
    context: Context = None,
    report: Report = None,
    to: Json = None,
) -> None:
    """Replay a workload open loop (arrivals never wait for completions) and show what its users would have seen."""
    objectives = objectives_of(slo)
    if search is not None and objectives is None:
        raise typer.BadParameter("a search needs --slo to search for", param_hint="--search")
    if search is not None and not 0 < search <= 1:
        raise typer.BadParameter("must be above 0 and at most 1", param_hint="--search")
    _one_rate(load, rate)
    from hasten.lab.bench.metrics import summary
    from hasten.lab.bench.targets import EngineTarget, ServerTarget, warm_up

    asked = options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config_file)
    base = _seed(seed, url is not None)
    work = workload_of(workload, requests)
    with bench_show.progress() as step:
        target: Target
        if url is not None:
            step("asking the server")
            target = ServerTarget(url, api_key)
        else:
            config = asked.config()
            step("loading")
            target = EngineTarget(config, ", ".join(config.techniques) or "plain")
        work = _fitted(work, [target], context)
        step("warming up")
        warm_up(target, work, base + _WARM_UP)
        alone = _alone(target, context, step) if ideal else None
        offered, full = _offered(work, target, load, rate, base, step)
        run = target.replay(offered, base, step("replaying"))
        figures = summary(run, objectives)
        found = None
        if search is not None:
            found = _search(target, offered, objectives, search, figures["requests_per_s"], base, step)
    notes = bench_show.notes([run], full, load)
    if alone is not None:
        notes.append(_slowdown(run, alone, figures))
    if found is not None and search is not None:
        notes.append(bench_show.saturation_in_words(found, search))
    bench_show.show_run(run, figures, objectives, notes)
    curves = {run.name: found.probes} if found is not None else None
    bench_show.write_report(report, [run], slo=objectives, curves=curves, notes=notes)
    told = {"runs": [bench_show.facts(run, figures)], "notes": notes, "saturation": bench_show.plain(found)}
    bench_show.write(to, told)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="`plain`, techniques as for --with, a .toml file, or a URL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other side, likewise.")],
    workload: WorkloadSpec = "azure-llm-2023-conv",
    requests: Requests = 100,
    load: Load = None,
    rate: Rate = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, alternating.")] = 3,
    slo: Slo = None,
    model: Annotated[str | None, typer.Option(help="For sides in this process; the built-in model if left out.")] = None,
    with_: options.With = None,
    set_: options.Set = None,
    seed: Seed = None,
    api_key: Key = None,
    context: Context = None,
    report: Report = None,
    to: Json = None,
) -> None:
    """Replay the same workload against two sides, alternately, and show them side by side with ratio and spread."""
    objectives = objectives_of(slo)
    _one_rate(load, rate)
    from hasten.lab.bench.compare import alternate
    from hasten.lab.bench.compare import compare as compared_of
    from hasten.lab.bench.metrics import summary
    from hasten.lab.bench.targets import EngineTarget, ServerTarget, alike, config_of, is_server, warm_up

    configs = [None if is_server(side) else config_of(side, model, with_ or [], set_ or []) for side in (a, b)]
    base = _seed(seed, is_server(a) or is_server(b))
    work = workload_of(workload, requests)
    with bench_show.progress() as step:
        targets: list[Target] = []
        for side, config in zip((a, b), configs, strict=True):
            step(f"loading {side}" if config is not None else f"asking {side}")
            targets.append(ServerTarget(side, api_key) if config is None else EngineTarget(config, side))
        targets = list(alike(targets[0], targets[1], api_key))
        if a == b:  # A against itself tells the noise
            targets[0].name, targets[1].name = f"{a} (first)", f"{b} (second)"
        work = _fitted(work, targets, context)
        for target in targets:
            step(f"warming up {target.name}")
            warm_up(target, work, base + _WARM_UP)
        offered, full = _offered(work, targets[0], load, rate, base, step)

        def side_of(target: Target) -> Callable[[int], Run]:
            return lambda number: target.replay(offered, base + number, step(f"round {number + 1} of {rounds}: {target.name}"))

        pairs = alternate(side_of(targets[0]), side_of(targets[1]), rounds)
    summaries = [tuple(summary(run, objectives) for run in pair) for pair in pairs]
    if not is_server(a) and not is_server(b):
        for figures in (one for pair in summaries for one in pair):
            figures.pop("peak_memory_bytes", None)  # both sides live in this process
    compared = compared_of([(one, other) for one, other in summaries])
    runs = [run for pair in pairs for run in pair]
    notes = bench_show.notes(runs, full, load)
    if rounds > 1:
        notes.append(f"{rounds} rounds, in the order A B, B A, and so on.")
    names = (targets[0].name, targets[1].name)
    bench_show.show_compared(compared, names, runs, objectives, notes)
    bench_show.write_report(report, pairs[-1], slo=objectives, compared=compared, names=names, notes=notes)
    rows = [
        bench_show.facts(run, figures)
        for pair, both in zip(pairs, summaries, strict=True)
        for run, figures in zip(pair, both, strict=True)
    ]
    bench_show.write(
        to, {"names": names, "compared": [bench_show.plain(one) for one in compared], "runs": rows, "notes": notes}
    )


# -- what to replay -------------------------------------------------------------------------------------------------------


# Seeds of what is not the measured run lie apart from the rounds' seeds, so that no prompt comes twice.
_WARM_UP, _CROWD, _SEARCH = 10_000, 10_001, 20_000


def _seed(seed: int | None, server: bool) -> int:
    return seed if seed is not None else secrets.randbits(32) if server else 0


def objectives_of(text: str | None) -> SLO | None:
    from hasten.lab.bench.slo import parse_slo

    return parse_slo(text) if text is not None else None


def _one_rate(load: float | None, rate: float | None) -> None:
    if load is not None and rate is not None:
        raise typer.BadParameter("give --load or --rate, not both", param_hint="--load")
    for name, value in (("--load", load), ("--rate", rate)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise typer.BadParameter(f"must be above 0, got {value:g}", param_hint=name)


def workload_of(spec: str, requests: int) -> Workload:
    from hasten.lab import workloads
    from hasten.lab.workloads.base import WorkloadError
    from hasten.lab.workloads.transform import cut

    try:
        work = workloads.load(spec)
    except WorkloadError as error:
        raise ConfigError(str(error)) from None
    return cut(work, 0, requests) if len(work) > requests else work


def _fitted(work: Workload, targets: list[Target], context: int | None) -> Workload:
    """Lengths scaled down to the least context of the targets; `context` stands for those that do not say."""
    from hasten.lab.workloads.base import WorkloadError
    from hasten.lab.workloads.transform import fit_context

    known = [length for target in targets if (length := target.context or context) is not None]
    if not known:
        return work
    try:
        return fit_context(work, min(known))
    except WorkloadError as error:
        raise ConfigError(str(error)) from None


def _alone(target: Target, context: int | None, step: Callable[[str], Any]) -> Ideal:
    from hasten.lab.bench.ideal import measure

    step("measuring single requests")
    return measure(lambda work, seed: target.replay(work, seed), target.context or context or 2048)


def _slowdown(run: Run, alone: Ideal, figures: dict[str, float]) -> str:
    """Adds the times over the idealised runtime to the figures; in words."""
    import numpy as np

    from hasten.lab.bench.ideal import slowdown
    from hasten.lab.bench.metrics import requests

    over = slowdown(requests(run), alone)
    for quantile in (50, 95, 99):
        figures[f"slowdown_p{quantile}"] = float(np.nanpercentile(over, quantile)) if np.isfinite(over).any() else float("nan")
    times = ", ".join(f"{figures[f'slowdown_p{quantile}']:.2f} (p{quantile})" for quantile in (50, 95, 99))
    return (
        f"Idealised runtime, alone on this machine: {1e3 * alone.token_s:.3g} ms a token after the prompt; requests took so "
        f"many times theirs: {times}."
    )


def _offered(
    work: Workload, target: Target, load: float | None, rate: float | None, base: int, step: Callable[[str], Any]
) -> tuple[Workload, float | None]:
    """The workload at the rate asked for, and the target's saturation throughput where that was measured."""
    from hasten.lab.bench.saturation import throughput
    from hasten.lab.workloads.base import WorkloadError
    from hasten.lab.workloads.transform import scale_load

    full = None
    if load is not None:
        full = throughput(lambda crowd: target.replay(crowd, base + _CROWD, step("measuring saturation")), work)
        rate = load * full
    if rate is None:
        return work, None
    try:
        return scale_load(work, rate), full
    except WorkloadError as error:
        raise ConfigError(str(error)) from None


def _search(
    target: Target, work: Workload, slo: SLO | None, attainment: float, start: float, base: int, step: Callable[[str], Any]
) -> Saturation:
    from hasten.lab.bench.metrics import summary
    from hasten.lab.bench.saturation import Probe, search
    from hasten.lab.workloads.transform import scale_load

    probed = 0

    def measure(rate: float) -> Probe:
        nonlocal probed
        probed += 1
        run = target.replay(scale_load(work, rate), base + _SEARCH + probed, step(f"searching: {rate:.3g} requests/s"))
        figures = summary(run, slo)
        return Probe(rate, figures["goodput"], figures)

    return search(measure, start, attainment=attainment)
