"""Fair shares: tenants that ask for more than there is get equal service, and one that floods hurts nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.fair_share_tenants import (
    FLOOD,
    GREEDY,
    OUTPUT_PRICE,
    PROMPT_PRICE,
    TRACE,
    VICTIM,
    curve,
    flood,
    greedy,
    jain,
    services,
    stream,
    widest,
    window,
    workload,
)
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import Workload

Floats = npt.NDArray[np.float64]

CHUNK = 1024
COMMON = ("kv.reuse=none",)
FCFS, FAIR, WEIGHTED = "fcfs", "fair-share", "weighted"
BATCHING = f"stall-free:chunk={CHUNK}"
SIDES = (
    Side(FCFS, (BATCHING,)),
    Side(FAIR, ("fair-share", BATCHING)),
    Side(WEIGHTED, ("fair-share:weights=c=2", BATCHING)),
)
REAL_COMMON = (
    "executor.threads=1", "model.max_length=1024", "kv.reuse=none", "scheduling.max_rows=16",
)  # fmt: skip


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.metrics import requests
    from hasten.lab.claims.virtual import Virtual

    count, rounds = (500, 2) if setting.quick else (1500, 3)
    virtual = Virtual(SIDES, common=COMMON)
    setting.progress("saturation", 0.0)
    rate = virtual.sustained(FCFS, stream("", 1.0, count // 2, 1.0, 100))
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    first: dict[str, Run] = {}
    figures: list[dict[str, Any]] = []
    bound: list[float] = []
    for number, runs in enumerate(
        virtual.rounds(lambda n: greedy(count, rate, setting.seed + n), rounds, share(setting.progress, 0.05, 0.4))
    ):
        found = {name: services(run) for name, run in runs.items()}
        for name in (FCFS, FAIR):
            samples[f"jain-{name}"].append(jain(list(found[name].values())))
        others = (found[WEIGHTED]["a"] + found[WEIGHTED]["b"]) / 2
        samples["weights"].append(found[WEIGHTED]["c"] / others)
        bound.append(widest(runs[FAIR], "a", "b"))
        figures.append({"round": number, "service": found})
        first = first or runs
    limit = _limit(virtual, first[FAIR])
    pair = Virtual(SIDES[:2], common=COMMON)
    for number in range(rounds):
        setting.progress(f"flood, round {number + 1} of {rounds}", 0.4 + 0.3 * number / rounds)
        work = flood(count, rate, setting.seed + number)
        own = [request for request in work if request.tenant == "victim"]
        alone = requests(pair.replay(FCFS, workload(own)))
        took: dict[str, Floats] = {}
        for name in (FCFS, FAIR):
            table = requests(pair.replay(name, work))
            mine = np.array([request.tenant == "victim" for request in work])
            took[name] = table.ttft_s[mine]
            samples[f"victim-{name}"].append(float(table.e2e_s[mine].mean() / alone.e2e_s.mean()))
        samples["victim-ttft"].append(float(np.percentile(took[FCFS], 99) / np.percentile(took[FAIR], 99)))
        figures.append({"round": number, "victim_ttft_p99_s": {k: float(np.percentile(v, 99)) for k, v in took.items()}})
    point, guard = _real(setting, samples, share(setting.progress, 0.7, 1.0))
    within = Guard(
        "service of two tenants that always wait stays within the bound",
        max(bound) <= limit,
        f"widest difference {max(bound):,.0f} of service (prompt tokens and twice the output tokens), bound {limit:,.0f}",
    )
    return Outcome(
        samples=samples,
        guards=[guard, within],
        notes=[
            f"saturation: {rate:.1f} requests/s with everything waiting; stall-free chunks of {CHUNK} tokens on all sides",
            "Jain's index of the service (prompt tokens and twice the output tokens) that the tenants get from a quarter "
            "to three "
            "quarters of the arrivals, while each asks for more than its share "
            f"({', '.join(f'{load:g}' for load in GREEDY.values())} of saturation); 1 is equal",
            f"flood: a tenant at {VICTIM:g} of saturation beside one at {FLOOD:g}, and alone. Beside a flood every step "
            "is full, so "
            "each of the victim's tokens takes longer than alone under any order; what an order decides is the wait for "
            "the first",
            f"for real: built-in model, 16 rows, {point['rate']:.1f} requests/s of both together; the prediction of that "
            "ratio is "
            f"{100 * point['ratio_error']:.1f}% off",
        ],
        details={"rate": rate, "rounds": figures, "real": point},
        pictures=_picture(first),
    )


def _limit(virtual: Any, run: Run) -> float:
    """The paper's bound 2 max(w_p L, w_q M), and what counting every few steps adds."""
    from hasten.engine.scheduling.fair_share import DRIFT, EVERY

    config = virtual.configs[FAIR]
    tokens = virtual.device.blocks(config) * config.kv.block_size
    longest = max(request.prompt_tokens for request in run.workload)
    late = EVERY * config.scheduling.max_rows * OUTPUT_PRICE + DRIFT
    return 2 * max(PROMPT_PRICE * longest, OUTPUT_PRICE * tokens) + late


def _real(setting: Setting, samples: dict[str, list[float]], progress: Any) -> tuple[dict[str, Any], Guard]:
    import dataclasses

    from hasten.lab.claims.virtual import real_point
    from hasten.lab.workloads.generate import poisson

    def work(number: int) -> Workload:
        count = 120 if setting.quick else 300
        made = poisson(
            rate=20.0, requests=count, prompt=48, output=24, output_sigma=0.9, longest=256, seed=setting.seed + number
        )
        rng = np.random.default_rng(number)
        victims = rng.random(count) < VICTIM / (VICTIM + FLOOD)
        return workload(
            dataclasses.replace(request, tenant="victim" if mine else "flood")
            for request, mine in zip(made, victims.tolist(), strict=True)
        )

    pair = SIDES[0], SIDES[1]
    point = real_point(
        [Side(FCFS), Side(FAIR, ("fair-share",))], work, ["e2e_mean_s"], progress, load=VICTIM + FLOOD,
        rounds=2 if setting.quick else 3,
        common=REAL_COMMON, calibration_s=2.0 if setting.quick else 6.0, summarise=_victim,
    )  # fmt: skip
    samples["real"] += point.ratios(FCFS, FAIR, "e2e_mean_s")
    samples["real-error"].append(100 * point.error_of_ratio(FCFS, FAIR, "e2e_mean_s"))
    guard = equal_tokens(pair, workload(list(work(100))[:24]), common=REAL_COMMON)
    figures = {"rate": point.rate, "ratio_error": point.error_of_ratio(FCFS, FAIR, "e2e_mean_s")}
    return {**figures, "measured": point.measured, "predicted": point.predicted}, guard


def _victim(run: Run) -> dict[str, float]:
    from hasten.lab.bench.metrics import requests

    mine = np.array([request.tenant == "victim" for request in run.workload])
    return {"e2e_mean_s": float(requests(run).e2e_s[mine].mean())}


def _picture(runs: dict[str, Run]) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, plots = axes(len(runs), height=3.0)
    for plot, (name, run) in zip(plots, runs.items(), strict=True):
        for tenant in GREEDY:
            time_s, service = curve(run, tenant)
            plot.plot(time_s, service / 1e3, label=f"{tenant}, asks for {GREEDY[tenant]:g}", linewidth=1)
        for at in window(run):
            plot.axvline(at, color="0.7", linewidth=0.8, linestyle=":")
        plot.set(title=name, xlabel="seconds", ylabel="service so far, thousands", xlim=(0, None), ylim=(0, None))
    plots[0].legend(frameon=False, fontsize=8)
    return {"fair-share": png(figure)}


CLAIM = Claim(
    name="fair-share",
    title="Equal service for tenants that ask for more than there is, and none hurt by a flood",
    paper="Fairness in Serving Large Language Models (Sheng et al., 2024)",
    workload=f"Llama-3 8B on a simulated H100; lengths of {TRACE}, Poisson arrivals of several tenants, together beyond "
    "saturation; "
    "one point for real: the built-in model",
    baseline=f"fcfs, stall-free chunks of {CHUNK}",
    technique="fair-share (weights: equal, or c=2), the same chunks",
    requirements=(
        Requirement(name="jain-fair-share", what="Jain index of service, fair-share", at_least=0.98),
        Requirement(name="jain-fcfs", what="the same, FCFS", paper="FCFS gives each what it asks for"),
        Requirement(
            name="weights", what="service of a tenant of weight 2 over that of weight 1", unit="x", at_least=1.8, at_most=2.2
        ),
        Requirement(name="victim-ttft", what="victim's 99th percentile of TTFT, FCFS over fair-share", unit="x", at_least=5.0),
        Requirement(name="victim-fair-share", what="victim's mean latency beside a flood over alone, fair-share", unit="x"),
        Requirement(name="victim-fcfs", what="the same, FCFS", unit="x"),
        Requirement(name="real", what="victim's mean latency for real, FCFS over fair-share", unit="x"),
        Requirement(name="real-error", what="error of that ratio's prediction", unit="%", at_most=15.0),
    ),
    run=run,
    simulated=True,
)
