"""Tenants of the claim `fair-share`: what they ask for, and what of it each was served."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import TimedRequest, Workload

Floats = npt.NDArray[np.float64]

TRACE = "azure-llm-2023-conv"
GREEDY = {"a": 0.5, "b": 1.0, "c": 2.0}
"""Tenants that each ask for more than a third of what there is: their load, as a share of saturation."""
VICTIM, FLOOD = 0.25, 2.0
PROMPT_PRICE, OUTPUT_PRICE = 1.0, 2.0


def stream(tenant: str, rate: float, count: int, load: float, seed: int) -> Workload:
    """`count` requests with lengths of the trace, Poisson at `load` x `rate`."""
    from hasten.lab.workloads import load as named
    from hasten.lab.workloads.generate import arrivals

    rng = np.random.default_rng(seed)
    trace = named(TRACE).requests
    at_s = arrivals(rng, count, load * rate)
    picked = rng.integers(0, len(trace), count)
    requests = [
        dataclasses.replace(trace[i], id=f"{tenant}{n}", arrival_s=float(at), tenant=tenant)
        for n, (i, at) in enumerate(zip(picked.tolist(), at_s.tolist(), strict=True))
    ]
    return workload(requests)


def workload(requests: Iterable[TimedRequest]) -> Workload:
    from hasten.lab.workloads.base import Workload

    return Workload(name="tenants", requests=sorted(requests, key=lambda request: request.arrival_s))


def greedy(count: int, rate: float, seed: int) -> Workload:
    """Tenants that all ask for more than their share, in one span of time."""
    total = sum(GREEDY.values())
    streams = [
        stream(tenant, rate, round(count * load / total), load, 10 * seed + place)
        for place, (tenant, load) in enumerate(GREEDY.items())
    ]
    return workload([request for stream in streams for request in stream])


def flood(count: int, rate: float, seed: int) -> Workload:
    total = VICTIM + FLOOD
    victim = stream("victim", rate, round(count * VICTIM / total), VICTIM, 10 * seed)
    other = stream("flood", rate, round(count * FLOOD / total), FLOOD, 10 * seed + 1)
    return workload([*victim, *other])


def curve(run: Run, tenant: str) -> tuple[Floats, Floats]:
    """(seconds, service so far) at each event by which a tenant was served: prompts when first computed, tokens when
    committed."""
    from hasten.engine.events import Kind
    from hasten.lab.bench.metrics import requests

    mine = np.array([request.tenant == tenant for request in run.workload])
    table = requests(run)
    prompts = table.scheduled_s[mine], PROMPT_PRICE * table.prompt_tokens[mine]
    tokens = (run.columns["kind"] == Kind.TOKENS) & np.isin(run.columns["sequence"], run.sequence[mine])
    time_s = np.concatenate([prompts[0], run.columns["time_s"][tokens] - run.start_s])
    service = np.concatenate([prompts[1], OUTPUT_PRICE * run.columns["a"][tokens]])
    order = np.argsort(time_s, kind="stable")
    return time_s[order], np.cumsum(service[order])


def window(run: Run) -> tuple[float, float]:
    """From a quarter to three quarters of the arrivals, while all tenants still come."""
    last = min(max(r.arrival_s for r in run.workload if r.tenant == tenant) for tenant in {r.tenant for r in run.workload})
    return 0.25 * last, 0.75 * last


def services(run: Run) -> dict[str, float]:
    """By tenant, in the window."""
    out = {}
    for tenant in sorted({request.tenant for request in run.workload}):
        time_s, service = curve(run, tenant)
        begin, end = (float(np.interp(at, time_s, service)) for at in window(run))
        out[tenant] = end - begin
    return out


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def widest(run: Run, one: str, other: str) -> float:
    """The widest difference of the service of two tenants over any interval in the window."""
    begin_s, end_s = window(run)
    at = np.linspace(begin_s, end_s, 4000)
    ahead = np.interp(at, *curve(run, one)) - np.interp(at, *curve(run, other))
    return float(ahead.max() - ahead.min())
