"""Shortest remaining processing time against first come, first served: with true lengths, with learned ones, with none."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.sides import Side, equal_tokens, share
from hasten.lab.claims.srpt_services import BURSTS, LONGEST, heavy, services

if TYPE_CHECKING:
    from hasten.engine.loop import Engine
    from hasten.lab.bench.run import Run
    from hasten.lab.planning.devices import Device
    from hasten.lab.workloads.base import Workload

LOADS = (0.85, 0.95)
TRACE, TRACE_LOAD = "azure-llm-2023-conv", 0.95
CHUNKS, ROWS = (256, 512), (64, 128, 256)
FCFS, ORACLE, LEARNED, NOTHING = "fcfs", "oracle", "learned", "nothing"
WORDS = {ORACLE: "true lengths", LEARNED: "learned lengths", NOTHING: "nothing known"}
REAL_LIMIT = 512
REAL_COMMON = (
    "executor.threads=1", "model.max_length=1024", "kv.reuse=none", "scheduling.max_rows=16",
)  # fmt: skip


def sides(predictor: str, chunk: int) -> list[Side]:
    batching = f"stall-free:chunk={chunk}"
    lengths = {ORACLE: "length-oracle", LEARNED: predictor, NOTHING: "length-limit"}
    return [
        Side(FCFS, (batching,)),
        *(Side(name, ("srpt", one, f"{batching}:preempt=true")) for name, one in lengths.items()),
    ]


_MANY_SERVERS = (
    "an engine that decodes a hundred sequences at once is a system of many servers: most of a long answer's latency is its "
    "own decoding, which no order shortens, and the mean is made of long answers; short ones gain most (the picture)"
)


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.metrics import summary
    from hasten.lab.workloads import load as named
    from hasten.lab.workloads.transform import scale_load

    count, rounds = (300, 2) if setting.quick else (2200, 3)
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    figures: list[dict[str, Any]] = []

    def compare(bench: _Bench, load: float, label: str, work: list[Workload], begin: float, end: float) -> dict[str, Run]:
        runs: dict[str, Run] = {}
        for runs in bench.virtual.rounds(lambda n: scale_load(work[n], load * bench.rate), rounds, _part(setting, begin, end)):
            of = {name: summary(run) for name, run in runs.items()}
            for name in WORDS:
                samples[f"{label}-{name}"].append(of[FCFS]["e2e_mean_s"] / of[name]["e2e_mean_s"])
            samples[f"{label}-p99"].append(of[LEARNED]["e2e_p99_s"] / of[FCFS]["e2e_p99_s"])
            kept = ("e2e_mean_s", "e2e_p50_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "preemptions")
            figures.append({"workload": label, **{name: {k: one[k] for k in kept} for name, one in of.items()}})
        return runs

    seed = setting.seed
    lesson, probe = services(count // 3, 10.0, seed + 100), services(count // 3, 10.0, seed + 101)
    bench = _Bench("length-histogram", lesson, probe, _device("l4"), _part(setting, 0.0, 0.15))
    work = [services(count, 10.0, seed + number) for number in range(rounds)]
    compare(bench, LOADS[0], f"{LOADS[0]:g}", work, 0.15, 0.4)
    drawn = compare(bench, LOADS[1], f"{LOADS[1]:g}", work, 0.4, 0.65)
    size = count // 3
    parts = [named(f"{TRACE}[{number * size}:{(number + 1) * size}]") for number in range(rounds + 2)]
    trace = _Bench("length-similarity", parts[0], parts[1], _device("h100"), _part(setting, 0.65, 0.7))
    compare(trace, TRACE_LOAD, "trace", parts[2:], 0.7, 0.8)
    point, guard = _real(setting, samples, _part(setting, 0.8, 1.0))
    return Outcome(
        samples=samples,
        guards=[guard],
        shortfall={
            f"{LOADS[1]:g}-oracle": _MANY_SERVERS,
            f"{LOADS[1]:g}-learned": _MANY_SERVERS,
            "real-error": "the mean latency near saturation magnifies every error of the steps' times",
        },
        notes=[
            f"FCFS has the best of {len(CHUNKS) * len(ROWS)} settings (chunks of {', '.join(map(str, CHUNKS))} tokens, "
            f"{' or '.join(map(str, ROWS))} rows) by mean latency at load {LOADS[-1]:g}: {bench.best} on the services, "
            f"{trace.best} on the trace; all sides run with it",
            f"saturation, measured while requests wait: {bench.rate:.2f} requests/s of the services, {trace.rate:.1f} of "
            "the trace",
            "services: labels (half of the requests, outputs of median 8), chat (130) and reasoning (600, a tenth); all "
            "have the "
            f"limit {LONGEST}, so that none tells its length; learned: length-histogram by application, taught other requests",
            f"arrivals of the services come in bursts (coefficient of variation {BURSTS:g}): with Poisson arrivals below "
            "saturation an "
            "engine that decodes some seventy sequences at once is a system of many servers, in which hardly anybody waits",
            "the services run on an L4, whose memory beside the weights holds some 54,000 tokens of KV: requests wait for it",
            f"on {TRACE} (learned: length-similarity) prompts are the bottleneck: the engine has room for all that decode, so "
            "little waits, and the order changes little",
            f"for real: built-in model, {point['rate']:.1f} requests/s, 16 rows, outputs of median 20 tokens with a heavy "
            "tail; "
            f"the prediction of the mean latency is {100 * point['error']:.1f}% off",
        ],
        details={"rounds": figures, "real": point, "settings": {"services": bench.tried, "trace": trace.tried}},
        pictures=_picture(drawn),
    )


def _part(setting: Setting, begin: float, end: float) -> Any:
    return share(setting.progress, begin, end)


def _device(hardware: str) -> Device:
    from hasten.lab.planning.devices import on_hardware
    from hasten.lab.planning.hardware import profile
    from hasten.lab.planning.shapes import shape

    return on_hardware(shape("llama-3-8b"), profile(hardware))


class _Bench:
    """The sides on `device`, with what is best for FCFS on `probe`; predictors are taught `lesson` before each run. `rate`:
    requests per second at saturation."""

    def __init__(self, predictor: str, lesson: Workload, probe: Workload, device: Device, progress: Any) -> None:
        from hasten.lab.bench.lengths import examples
        from hasten.lab.bench.metrics import summary
        from hasten.lab.claims.virtual import Virtual
        from hasten.lab.workloads.transform import scale_load

        self._known = examples(lesson, limit=LONGEST)
        found = [(chunk, rows) for chunk in CHUNKS for rows in ROWS]
        plain = {
            one: Virtual([Side(FCFS, (f"stall-free:chunk={one[0]}",))], device=device, common=_common(one[1]), limit=LONGEST)
            for one in found
        }
        rates = {}
        for number, one in enumerate(found):
            progress(f"saturation: {one}", number / len(found) / 2)
            rates[one] = plain[one].sustained(FCFS, probe)
        rate = max(rates.values())
        self.tried = {}
        for number, one in enumerate(found):
            progress(f"latency: {one}", 0.5 + number / len(found) / 2)
            run = plain[one].replay(FCFS, scale_load(probe, LOADS[-1] * rate))
            self.tried[f"chunk {one[0]}, {one[1]} rows"] = summary(run)["e2e_mean_s"]
        self.best = min(self.tried, key=lambda name: self.tried[name])
        chunk, rows = found[list(self.tried).index(self.best)]
        self.rate = rates[chunk, rows]
        self.virtual = Virtual(sides(predictor, chunk), device=device, common=_common(rows), attend=self._teach, limit=LONGEST)

    def _teach(self, name: str, engine: Engine) -> None:
        from hasten.engine.scheduling.lengths.saved import Learning

        if isinstance(engine.lengths, Learning):
            for example in self._known:
                engine.lengths.observe(example.request, example.output, ended=True)


def _common(rows: int) -> tuple[str, ...]:
    return ("kv.reuse=none", f"scheduling.max_rows={rows}")


def _real(setting: Setting, samples: dict[str, list[float]], progress: Any) -> tuple[dict[str, Any], Guard]:
    from hasten.lab.claims.virtual import real_point

    pair = [Side(FCFS), Side(ORACLE, ("srpt", "length-oracle", "stall-free:preempt=true"))]
    count = 60 if setting.quick else 300
    figure = "e2e_mean_s"
    point = real_point(
        pair,
        lambda number: heavy(count, REAL_LIMIT, setting.seed + number),
        [figure],
        progress,
        load=0.95,
        rounds=2 if setting.quick else 3,
        common=REAL_COMMON,
        limit=REAL_LIMIT,
        calibration_s=1.0 if setting.quick else 5.0,
    )
    samples["real"] += point.ratios(FCFS, ORACLE, figure)
    samples["real-error"].append(100 * point.error_of_ratio(FCFS, ORACLE, figure))
    few = heavy(24, 128, setting.seed)
    guard = equal_tokens(pair, dataclasses.replace(few, name="few"), common=REAL_COMMON)
    out = {"rate": point.rate, "error": point.error(figure), "measured": point.measured, "predicted": point.predicted}
    return out, guard


def _picture(runs: dict[str, Run]) -> dict[str, bytes]:
    from hasten.lab.bench.metrics import requests
    from hasten.lab.claims.picture import axes, png

    figure, (latency, by_length) = axes(2)
    for name, run in runs.items():
        table = requests(run)
        values = np.sort(table.e2e_s)
        latency.step(values, np.arange(1, len(values) + 1) / len(values) * 100, where="post", label=name, linewidth=1)
        groups = np.array_split(np.argsort(table.output_tokens), 10)
        tokens = [table.output_tokens[group].mean() for group in groups]
        by_length.plot(tokens, [table.e2e_s[group].mean() for group in groups], marker=".", label=name, linewidth=1)
    latency.set(xlabel="end-to-end latency, s", ylabel=f"requests, %, load {LOADS[-1]:g}", xscale="log", ylim=(0, 104))
    by_length.set(xlabel="output tokens (tenths of the requests)", ylabel="mean latency, s", xscale="log", yscale="log")
    latency.legend(frameon=False, fontsize=8)
    return {"srpt": png(figure)}


def _requirements() -> tuple[Requirement, ...]:
    least = {f"{LOADS[1]:g}": {ORACLE: 1.5, LEARNED: 1.3}}
    places = {f"{load:g}": f"the services at load {load:g}" for load in LOADS}
    out = []
    for label, place in {**places, "trace": f"the trace at load {TRACE_LOAD:g}"}.items():
        for name, known in WORDS.items():
            what = f"mean latency, FCFS over srpt with {known}, {place}"
            at_least = least.get(label, {}).get(name)
            out.append(Requirement(name=f"{label}-{name}", what=what, unit="x", at_least=at_least))
        what = f"99th percentile of latency, srpt with learned lengths over FCFS, {place}"
        out.append(Requirement(name=f"{label}-p99", what=what, unit="x"))
    out.append(Requirement(name="real", what="mean latency for real at load 0.95, FCFS over srpt with true lengths", unit="x"))
    out.append(Requirement(name="real-error", what="error of that ratio's prediction", unit="%", at_most=15.0))
    return tuple(out)


CLAIM = Claim(
    name="srpt",
    title="Shortest remaining processing time against first come, first served",
    paper="A Proof of the Optimality of the Shortest Remaining Processing Time Discipline (Schrage, 1968)",
    workload="Llama-3 8B simulated: on an L4 three services whose outputs differ in length, arrivals in bursts, at "
    f"{' and '.join(f'{load:g}' for load in LOADS)} of saturation; on an H100 {TRACE} at {TRACE_LOAD:g}; one point for "
    "real: the "
    "built-in model, outputs with a heavy tail",
    baseline="fcfs with stall-free chunks; their size and the rows of a step tuned",
    technique="srpt, preemptive, with the same chunks and rows; lengths: length-oracle, length-histogram (on the trace "
    "length-similarity), length-limit",
    requirements=_requirements(),
    run=run,
    simulated=True,
)
