"""Shortest remaining processing time against first come, first served: with true lengths, with learned ones, with none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from hasten.engine.loop import Engine
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import Workload

TRACE = "azure-llm-2023-conv"
LOADS = (0.85, 0.95)
LIMIT = 2048
CHUNKS = (512, 1024, 2048)
COMMON = ("kv.reuse=none",)
FCFS, ORACLE, LEARNED, HISTOGRAM, NOTHING = "fcfs", "oracle", "learned", "histogram", "nothing"
PREDICTOR = {LEARNED: "length-similarity", HISTOGRAM: "length-histogram"}
REAL_LIMIT = 512
REAL_COMMON = (
    "executor.threads=1", "model.max_length=1024", "kv.reuse=none", "scheduling.max_rows=16",
)  # fmt: skip


def sides(chunk: int) -> list[Side]:
    batching = f"stall-free:chunk={chunk}"
    lengths = {ORACLE: "length-oracle", **PREDICTOR, NOTHING: "length-limit"}
    ordered = [Side(name, ("srpt", one, f"{batching}:preempt=true")) for name, one in lengths.items()]
    return [Side(FCFS, (batching,)), *ordered]


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.metrics import summary
    from hasten.lab.claims.virtual import Virtual
    from hasten.lab.workloads.transform import scale_load

    requests, rounds = (700, 2) if setting.quick else (2500, 3)
    tell = share(setting.progress, 0.0, 0.15)
    taught = _Taught(_part(0, requests))
    chunk, rate = _tuned(_part(1, requests // 2), tell)
    virtual = Virtual(sides(chunk), common=COMMON, attend=taught, limit=LIMIT)
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    figures: list[dict[str, Any]] = []
    first: dict[str, Run] = {}
    for place, load in enumerate(LOADS):
        begin = 0.15 + 0.55 * place / len(LOADS)
        progress = share(setting.progress, begin, begin + 0.55 / len(LOADS))
        part = [scale_load(_part(1 + number, requests), load * rate) for number in range(rounds)]
        for runs in virtual.rounds(lambda number, part=part: part[number], rounds, progress):  # type: ignore[misc]
            of = {name: summary(run) for name, run in runs.items()}
            mean = {name: of[name]["e2e_mean_s"] for name in runs}
            for name in (ORACLE, LEARNED, HISTOGRAM, NOTHING):
                samples[f"{name}-{load:g}"].append(mean[FCFS] / mean[name])
            gain = mean[FCFS] - mean[ORACLE]
            samples[f"share-{load:g}"].append(100 * (mean[FCFS] - mean[LEARNED]) / gain if gain > 0 else 0.0)
            samples[f"p99-{load:g}"].append(of[LEARNED]["e2e_p99_s"] / of[FCFS]["e2e_p99_s"])
            kept = ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "preemptions")
            figures.append({"load": load, **{name: {k: one[k] for k in kept} for name, one in of.items()}})
            first = runs
    point, guard = _real(setting, samples, share(setting.progress, 0.7, 1.0))
    return Outcome(
        samples=samples,
        guards=[guard],
        shortfall={
            f"{name}-{load:g}": "at this load FCFS queues for a small part of the latency only, and that part is all an "
            "order can "
            "change"
            for name in (ORACLE, LEARNED)
            for load in LOADS
        },
        notes=[
            f"FCFS with stall-free chunks of {chunk} tokens, the best of {', '.join(map(str, CHUNKS))} by mean latency at load "
            f"{LOADS[-1]:g}; saturation: {rate:.1f} requests/s of it, with everything waiting",
            f"all requests have the limit {LIMIT}, so that none tells its length; outputs of another part of the trace "
            "were learned "
            "beforehand, and learning goes on",
            "srpt may preempt (preempt=true); the mean latency is end to end, over all requests",
            f"for real: built-in model, {point['rate']:.1f} requests/s, 16 rows, outputs of median 20 tokens with a heavy "
            "tail; "
            f"prediction error of the mean latency {100 * point['error']:.1f}%, of the ratio {100 * point['ratio_error']:.1f}%",
        ],
        details={"rate": rate, "chunk": chunk, "rounds": figures, "real": point},
        pictures=_picture(first),
    )


def _part(number: int, requests: int) -> Workload:
    from hasten.lab.workloads import load

    return load(f"{TRACE}[{number * requests}:{(number + 1) * requests}]")


class _Taught:
    """Teaches each engine's predictor the outputs of `work`."""

    def __init__(self, work: Workload, limit: int = LIMIT) -> None:
        from hasten.lab.bench.lengths import examples

        self._known = examples(work, limit=limit)

    def __call__(self, name: str, engine: Engine) -> None:
        from hasten.engine.scheduling.lengths.saved import Learning

        if isinstance(engine.lengths, Learning):
            for example in self._known:
                engine.lengths.observe(example.request, example.output, ended=True)


def _tuned(work: Workload, progress: Any) -> tuple[int, float]:
    """(chunk, requests per second at saturation) of the best FCFS."""
    from hasten.lab.bench.metrics import summary
    from hasten.lab.claims.virtual import Virtual
    from hasten.lab.workloads.transform import scale_load

    plain = Virtual([Side(str(chunk), (f"stall-free:chunk={chunk}",)) for chunk in CHUNKS], common=COMMON, limit=LIMIT)
    rates = {}
    for number, chunk in enumerate(CHUNKS):
        progress(f"saturation with chunks of {chunk}", number / len(CHUNKS) / 2)
        rates[chunk] = plain.saturation(str(chunk), work)
    rate = max(rates.values())
    mean_s = {}
    for number, chunk in enumerate(CHUNKS):
        progress(f"latency with chunks of {chunk}", 0.5 + number / len(CHUNKS) / 2)
        mean_s[chunk] = summary(plain.replay(str(chunk), scale_load(work, LOADS[-1] * rate)))["e2e_mean_s"]
    best = min(mean_s, key=lambda chunk: mean_s[chunk])
    return best, rates[best]


def _real(setting: Setting, samples: dict[str, list[float]], progress: Any) -> tuple[dict[str, Any], Guard]:
    from hasten.lab.claims.virtual import real_point
    from hasten.lab.workloads.generate import poisson

    def work(number: int) -> Workload:
        count = 120 if setting.quick else 300
        return poisson(
            rate=20.0, requests=count, prompt=32, prompt_sigma=0.6, output=20, output_sigma=1.5, longest=REAL_LIMIT,
            seed=setting.seed + number,
        )  # fmt: skip

    pair = [Side(FCFS), Side(ORACLE, ("srpt", "length-oracle", "stall-free:preempt=true"))]
    point = real_point(
        pair, work, ["e2e_mean_s"], progress, load=0.95, rounds=2 if setting.quick else 3, common=REAL_COMMON, limit=REAL_LIMIT,
        calibration_s=2.0 if setting.quick else 6.0,
    )  # fmt: skip
    samples["real"] += point.ratios(FCFS, ORACLE, "e2e_mean_s")
    samples["real-error"].append(100 * point.error_of_ratio(FCFS, ORACLE, "e2e_mean_s"))
    guard = equal_tokens(pair, work(100).__class__(name="equal", requests=work(100).requests[:24]), common=REAL_COMMON)
    figures = {"rate": point.rate, "error": point.error("e2e_mean_s")}
    figures["ratio_error"] = point.error_of_ratio(FCFS, ORACLE, "e2e_mean_s")
    return {**figures, "measured": point.measured, "predicted": point.predicted}, guard


def _picture(runs: dict[str, Run]) -> dict[str, bytes]:
    from hasten.lab.bench.metrics import requests
    from hasten.lab.claims.picture import axes, png

    figure, (latency, by_length) = axes(2)
    for name, run in runs.items():
        table = requests(run)
        values = np.sort(table.e2e_s)
        latency.step(values, np.arange(1, len(values) + 1) / len(values) * 100, where="post", label=name, linewidth=1)
        order = np.argsort(table.output_tokens)
        groups = np.array_split(order, 8)
        tokens = [table.output_tokens[group].mean() for group in groups]
        by_length.plot(tokens, [table.e2e_s[group].mean() for group in groups], marker=".", label=name, linewidth=1)
    latency.set(xlabel="end-to-end latency, s", ylabel=f"requests, %, load {LOADS[-1]:g}", xscale="log", ylim=(0, 104))
    by_length.set(xlabel="output tokens (eighths of the requests)", ylabel="mean latency, s", xscale="log", yscale="log")
    latency.legend(frameon=False, fontsize=8)
    return {"srpt": png(figure)}


def _requirements() -> tuple[Requirement, ...]:
    words = {
        ORACLE: "true lengths", LEARNED: "lengths learned from similar prompts", HISTOGRAM: "one histogram of lengths",
        NOTHING: "nothing known",
    }  # fmt: skip
    out = []
    for load in LOADS:
        for name, known in words.items():
            at_least = {ORACLE: 1.2, LEARNED: 1.1}.get(name) if load == LOADS[-1] else None
            what = f"mean latency at load {load:g}, FCFS over srpt, {known}"
            out.append(Requirement(name=f"{name}-{load:g}", what=what, unit="x", at_least=at_least))
        what = f"of the gain with true lengths at load {load:g}, kept with learned ones"
        out.append(Requirement(name=f"share-{load:g}", what=what, unit="%", at_least=60.0 if load == LOADS[-1] else None))
        what = f"99th percentile at load {load:g}, srpt with learned lengths over FCFS"
        out.append(Requirement(name=f"p99-{load:g}", what=what, unit="x"))
    out.append(Requirement(name="real", what="mean latency for real at load 0.95, FCFS over srpt with true lengths", unit="x"))
    out.append(Requirement(name="real-error", what="error of that ratio's prediction", unit="%", at_most=15.0))
    return tuple(out)


CLAIM = Claim(
    name="srpt",
    title="Shortest remaining processing time against first come, first served",
    paper="A Proof of the Optimality of the Shortest Remaining Processing Time Discipline (Schrage, 1968)",
    workload=f"Llama-3 8B on a simulated H100; {TRACE} at loads {', '.join(f'{load:g}' for load in LOADS)} of saturation; "
    "one point "
    "for real: the built-in model, Poisson arrivals, outputs with a heavy tail",
    baseline="fcfs with stall-free chunks, their size tuned",
    technique="srpt:by=time, preemptive, the same chunks; lengths: length-oracle, length-similarity, length-histogram, "
    "length-limit",
    requirements=_requirements(),
    run=run,
    simulated=True,
)
