"""What the claim `hermes` is put together from: its workloads, its sides, what an engine sustains, and tools that start
cold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.sides import Side
from hasten.lab.claims.virtual import Virtual

if TYPE_CHECKING:
    from hasten.engine.scheduling.base import Order
    from hasten.engine.scheduling.demand.store import Demand
    from hasten.lab.bench.run import Floats, Run
    from hasten.lab.planning.devices import Device
    from hasten.lab.planning.keepalive import Cost
    from hasten.lab.workloads.base import Workload

LOAD = 0.85
PER_CALL, PER_APPLICATION = "FCFS by call", "FCFS by application"
HERMES, MEAN, SHUFFLED = "hermes", "shortest mean", "hermes, useless demand"
SRPT, ORACLE = "SRPT by call (oracle)", "SRPT by application (oracle)"
PROMPTS, OUTPUTS = 30, 12
"""How much shorter the applications of the real point are."""
WARM_S = {"search": 1.0, "browser": 3.0, "sandbox": 4.0, "validator": 0.5}
"""Seconds that the generated applications' tools take to start: our modelling."""
CHUNKS = (256, 512, 1024)
"""Tried for the baseline."""
ROWS, FEW_ROWS = 256, 4
"""Most sequences in a step: as many as there is memory for, and few."""
WORKLOADS = ("templates", "text2sql")
ALL = (PER_APPLICATION, PER_CALL, HERMES, MEAN, SHUFFLED, SRPT, ORACLE)
TRACES = ("text2sql-workflow-trace1", "text2sql-workflow-financial")


@dataclass(slots=True)
class Material:
    """A workload to test on, and demand learned from other runs of the same applications."""

    test: Workload
    demand: Demand


def templates(workflows: int, profile: int, seed: int) -> Material:
    """Generated applications; the profile is drawn from another seed."""
    from hasten.lab.planning.demand import learn
    from hasten.lab.workloads.applications import applications

    learned = learn(applications(workflows=profile, seed=seed + 100_000), warm_s=dict(WARM_S))
    return Material(applications(workflows=workflows, seed=seed), learned)


def text2sql(seed: int, most: int | None = None) -> Material:
    """Both text-to-SQL traces: every other workflow to learn from, the others (at most `most`) to test on, with arrivals and an
    order of their own. Seeds swap the halves."""
    from hasten.lab import workloads
    from hasten.lab.planning.demand import halves, learn
    from hasten.lab.workloads.transform import mix

    both = halves(mix(*(workloads.load(name) for name in TRACES)))
    return Material(_rearranged(both[1 - seed % 2], seed, most), learn(both[seed % 2]))


def _rearranged(workload: Workload, seed: int, most: int | None) -> Workload:
    """The workflows in a random order, with Poisson arrivals of one a second."""
    of: dict[str, list[Any]] = {}
    for request in workload:
        of.setdefault(request.workflow, []).append(request)
    rng = np.random.default_rng(seed)
    names = rng.permutation(list(of)).tolist()[:most]
    arrivals_s = np.cumsum(rng.exponential(1.0, len(names)))
    requests = []
    for name, at_s in zip(names, (arrivals_s - arrivals_s[0]).tolist(), strict=True):
        requests += [replace(request, arrival_s=0.0 if request.parents else at_s) for request in of[name]]
    return replace(workload, requests=requests, source=f"{workload.source}; in random order, Poisson")


def device() -> Device:
    """An H100 with Llama-3.1 8B: prompts of the text-to-SQL traces, up to 12,000 tokens, do not fit the context of Llama-3
    8B."""
    from hasten.lab.planning.devices import on_hardware
    from hasten.lab.planning.hardware import profile
    from hasten.lab.planning.shapes import shape

    return on_hardware(shape("llama-3.1-8b"), profile("h100"))


def sides(material: Material, chunk: int, seed: int, rows: int, names: Sequence[str] = ALL) -> Virtual:
    """Sides of an engine with at most `rows` sequences in a step. The orders that rank by what remains get what the preset has
    (preemption, memory by rank)."""
    from hasten.engine.scheduling.hermes import Hermes, Options
    from hasten.lab.planning.demand import shuffled
    from hasten.lab.planning.oracle import OracleSRPT

    demand = material.demand
    batching = f"stall-free:chunk={chunk}"
    ranked: dict[str, Callable[[Workload], Order]] = {
        HERMES: lambda work: Hermes(Options(), demand),
        MEAN: lambda work: Hermes(Options(rule="mean"), demand),
        SHUFFLED: lambda work: Hermes(Options(), shuffled(demand, seed)),
        SRPT: lambda work: OracleSRPT(work, "request"),
        ORACLE: lambda work: OracleSRPT(work, "application"),
    }
    plain = {PER_APPLICATION: (batching, "application-fcfs"), PER_CALL: (batching,)}
    chosen = [Side(name, plain.get(name, (batching, "hermes"))) for name in names]
    return Virtual(chosen, device=device(), common=(f"scheduling.max_rows={rows}",), orders=ranked)


def at_load(virtual: Virtual, work: Workload, load: float = LOAD) -> Workload:
    """The workload at this share of the rate that application FCFS sustains."""
    from hasten.lab.workloads.transform import scale_load

    return scale_load(work, load * sustained(virtual, work))


def sustained(virtual: Virtual, work: Workload) -> float:
    """Requests per second of application FCFS when everything comes at once, from when a quarter of all tokens has been
    computed until three quarters have: neither filling nor the last long runs, which leave most of the engine idle, count."""
    from hasten.lab.bench.metrics import steps

    crowd = replace(work, requests=[replace(request, arrival_s=0.0, delay_s=0.0) for request in work])
    found = steps(virtual.replay(PER_APPLICATION, crowd))
    done = np.cumsum(found.tokens) / found.tokens.sum()
    first, last = np.searchsorted(done, [0.25, 0.75]).tolist()
    return float((done[last] - done[first]) / (found.end_s[last] - found.end_s[first]) * len(work))


def alone(work: Workload) -> Workload:
    """The workload so slow that its runs do not meet."""
    from hasten.lab.workloads.transform import mean_rate, scale_load

    return scale_load(work, mean_rate(work) / 40)


def completions(run: Run) -> Floats:
    """Seconds from a workflow's first call to its last one's end, [workflows]."""
    from hasten.lab.bench import metrics

    return metrics.workflows(run, metrics.requests(run))


@dataclass(slots=True)
class Cold:
    """Tools that start cold under one way of starting them: what it cost, and the mean completion of applications."""

    cost: Cost
    mean_s: float


def cold_starts(material: Material, work: Workload, chunk: int) -> Mapping[str, Cold]:
    """Hermes on tools that take time to start: started when they are needed, by its hints, and kept after each use for the idle
    seconds that the hints cost a use."""
    alone = _with_owner(material, work, chunk, hints=False, keep_s=0.0)
    hinted = _with_owner(material, work, chunk, hints=True, keep_s=0.0)
    keep_s = hinted.cost.idle_s / max(1, hinted.cost.invocations)
    kept = _with_owner(material, work, chunk, hints=False, keep_s=keep_s)
    return {"when needed": alone, "hints": hinted, "kept": kept}


def _with_owner(material: Material, work: Workload, chunk: int, *, hints: bool, keep_s: float) -> Cold:
    from hasten.engine.config import EngineConfig
    from hasten.engine.scheduling.hermes import Hermes, Options
    from hasten.lab.bench.drive import replay
    from hasten.lab.planning.backends import Owner

    config = EngineConfig.build(with_=[f"stall-free:chunk={chunk}", "hermes"])
    engine = device().engine(config, order=Hermes(Options(), material.demand))
    owner = Owner(work, material.demand.warm_s, keep_s)
    if hints:
        engine.on_hint(owner.listener(engine.clock.now))
    run = replay(engine, work, delay=owner.delay)
    return Cold(owner.finish(engine.clock.now()), float(np.nanmean(completions(run))))


def small(number: int, workflows: int = 24) -> Material:
    """Generated applications as short as the built-in model and its context of 2,048 tokens need them; tools ten times as
    fast."""
    from hasten.lab.planning.demand import learn
    from hasten.lab.workloads.applications import applications

    def made(seed: int, count: int) -> Workload:
        work = applications(workflows=count, seed=seed)
        requests = [
            replace(
                request,
                prompt_tokens=max(1, request.prompt_tokens // PROMPTS),
                output_tokens=max(1, request.output_tokens // OUTPUTS),
                delay_s=request.delay_s / 10,
            )
            for request in work
        ]
        return replace(work, requests=requests, source=f"{work.source}; shorter, tools ten times as fast")

    return Material(made(number, workflows), learn(made(number + 100_000, 300)))
