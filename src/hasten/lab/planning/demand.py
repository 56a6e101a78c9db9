"""Demand graphs from what the lab has: workloads with stages, and replays of them. And demand that says nothing, for
comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from hasten.engine.scheduling.demand.graph import DemandGraph, graphs_of
from hasten.engine.scheduling.demand.runs import LoggedCall, Visit, chain
from hasten.engine.scheduling.demand.runs import Run as Visits
from hasten.engine.scheduling.demand.store import Demand
from hasten.lab.bench import metrics
from hasten.lab.bench.run import Run
from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError


def learn(workload: Workload, run: Run | None = None, *, warm_s: dict[str, float] | None = None) -> Demand:
    """The graph of each application of a workload, with the times of a replay of it, if there is one. A request without a
    workflow is a run of its own. Raises WorkloadError where nothing says what application it belongs to."""
    logged: dict[tuple[str, str, str], list[LoggedCall]] = {}
    table = metrics.requests(run) if run is not None else None
    for number, request in enumerate(workload):
        if not request.application or request.failed or (table is not None and not table.ok[number]):
            continue
        key = request.tenant, request.application, request.workflow or f"\0{request.id}"
        due_s, end_s = (math.nan, math.nan) if table is None else (float(table.due_s[number]), float(table.end_s[number]))
        logged.setdefault(key, []).append(_logged(request, due_s, end_s))
    if not logged:
        raise WorkloadError(f"{workload.name}: no request names its application, so there is nothing to learn a graph of")
    try:
        graphs = graphs_of((application, chain(calls)) for (_, application, _), calls in logged.items())
        return Demand(graphs, dict(warm_s or {}))
    except ValueError as error:
        raise WorkloadError(f"{workload.name}: {error}") from None


def _logged(request: TimedRequest, due_s: float, end_s: float) -> LoggedCall:
    return LoggedCall(
        id=request.id,
        stage=request.stage,
        parents=request.parents,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        delay_s=request.delay_s,
        tool=request.tool,
        arrival_s=due_s if due_s == due_s or request.parents else request.arrival_s,
        end_s=end_s,
    )


def shuffled(demand: Demand, seed: int = 0) -> Demand:
    """Demand that says nothing: the same units and names, but what each visit asked for is dealt out at random among all visits
    of all applications, and applications trade their graphs."""
    rng = np.random.default_rng(seed)
    names = list(demand.graphs)
    visits = [visit for graph in demand.graphs.values() for run in graph.runs for visit in run if visit.calls]
    dealt = iter(rng.permutation(len(visits)).tolist())

    def another(visit: Visit) -> Visit:
        if not visit.calls:
            return visit
        found = visits[next(dealt)]
        return replace(visit, calls=found.calls, duration_s=found.duration_s)

    traded = {name: demand.graphs[names[i]] for name, i in zip(names, rng.permutation(len(names)).tolist(), strict=True)}
    graphs = {}
    for name, graph in traded.items():
        runs: Iterable[Visits] = (tuple(another(visit) for visit in run) for run in graph.runs)
        graphs[name] = DemandGraph(name, tuple(runs))
    return Demand(graphs, dict(demand.warm_s))


def halves(workload: Workload) -> tuple[Workload, Workload]:
    """The workflows at even places and those at odd ones: a part to learn from and a part to test on. Arrivals keep their
    times, so each half comes at half the rate."""
    number: dict[str, int] = {}
    for request in workload:
        number.setdefault(request.workflow or request.id, len(number))

    def part(which: int) -> Workload:
        kept: Sequence[TimedRequest] = [r for r in workload if number[r.workflow or r.id] % 2 == which]
        first_s = next(r.arrival_s for r in kept if not r.parents)
        moved = [r if r.parents else replace(r, arrival_s=r.arrival_s - first_s) for r in kept]
        return replace(
            workload, requests=moved, source=f"{workload.source or workload.name}; {('even', 'odd')[which]} workflows"
        )

    return part(0), part(1)
