"""The three classes of request that JITServe serves side by side, made of two traces."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hasten.engine.request import SLO
    from hasten.lab.workloads.base import Workload

CHAT, REPORT, AGENT = "chat", "report", "agent"
"""Streams, whole responses by a deadline, workflows by a deadline."""
MINUTE_S = 60.0
CHATS, REPORTS = 40, 20
"""Of each for every workflow: then each class takes about a third of the engine's time (8B on an H100)."""


def objectives(ttft_s: float, tpot_s: float, report_s: float, agent_s: float) -> Mapping[str, SLO]:
    from hasten.engine.request import SLO

    return {
        CHAT: SLO(ttft_s=ttft_s, tpot_s=tpot_s),
        REPORT: SLO(deadline_s=report_s),
        AGENT: SLO(deadline_s=agent_s),
    }


def mixed(workflows: int, slos: Mapping[str, SLO], seed: int, *, long_reports: bool = True) -> Workload:
    """`workflows` text-to-SQL workflows, and for each of them `CHATS` chats, of a stretch of the Azure conversation trace that
    the seed chooses, and `REPORTS` reports, answers of a model that reasons first: some 600 tokens to prompts of 300,
    log-normal. Not `long_reports`: `CHATS` reports with the lengths of another stretch of that trace. Each class is spread
    over the same minute; scale the load as needed."""
    import numpy as np

    from hasten.lab.workloads import load
    from hasten.lab.workloads.base import Workload
    from hasten.lab.workloads.generate import poisson
    from hasten.lab.workloads.transform import cut, mix

    rng = np.random.default_rng([seed, 7])
    trace = load("azure-llm-2023-conv")
    half = len(trace) // 2

    def stretch(name: str, begin: int, count: int) -> Workload:
        start = begin + int(rng.integers(half - count))
        part = cut(trace, start, start + count)
        factor = MINUTE_S / part.duration_s
        requests = [replace(request, arrival_s=request.arrival_s * factor, slo_class=name) for request in part]
        return Workload(name=name, requests=requests, slos={name: slos[name]}, source=part.source)

    chats = stretch(CHAT, 0, CHATS * workflows)
    if long_reports:
        count = REPORTS * workflows
        made = poisson(
            rate=count / MINUTE_S,
            requests=count,
            prompt=300,
            prompt_sigma=0.8,
            output=600,
            output_sigma=0.7,
            longest=3000,
            seed=seed,
        )
        requests = [replace(request, slo_class=REPORT) for request in made]
        reports = Workload(name=REPORT, requests=requests, slos={REPORT: slos[REPORT]}, source=made.source)
    else:
        reports = stretch(REPORT, half, CHATS * workflows)
    return mix(chats, reports, _agents(workflows, slos, rng))


def _agents(workflows: int, slos: Mapping[str, SLO], rng: Any) -> Workload:
    """Workflows drawn from both text-to-SQL traces, as Poisson arrivals."""
    from hasten.lab.workloads import load
    from hasten.lab.workloads.base import TimedRequest, Workload
    from hasten.lab.workloads.generate import arrivals

    known: list[list[TimedRequest]] = []
    for name in ("text2sql-workflow-trace1", "text2sql-workflow-financial"):
        calls: dict[str, list[TimedRequest]] = {}
        for request in load(name):
            calls.setdefault(request.workflow, []).append(request)
        known += calls.values()
    requests: list[TimedRequest] = []
    chosen = rng.permutation(len(known))[:workflows].tolist()
    for number, at_s in zip(chosen, arrivals(rng, len(chosen), len(chosen) / MINUTE_S).tolist(), strict=True):
        for call in known[number]:
            requests.append(
                replace(
                    call,
                    id=f"{number}/{call.id}",
                    workflow=str(number),
                    arrival_s=0.0 if call.parents else at_s,
                    parents=tuple(f"{number}/{parent}" for parent in call.parents),
                    slo_class=AGENT,
                )
            )
    return Workload(name=AGENT, requests=requests, slos={AGENT: slos[AGENT]}, source="workflows of both text-to-SQL traces")
