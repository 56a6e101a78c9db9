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
PER_WORKFLOW = 32
"""Chats, and reports, for each workflow: then each class takes about a third of a large machine's time."""


def objectives(ttft_s: float, tpot_s: float, report_s: float, agent_s: float) -> Mapping[str, SLO]:
    from hasten.engine.request import SLO

    return {
        CHAT: SLO(ttft_s=ttft_s, tpot_s=tpot_s),
        REPORT: SLO(deadline_s=report_s),
        AGENT: SLO(deadline_s=agent_s),
    }


def mixed(workflows: int, slos: Mapping[str, SLO], seed: int) -> Workload:
    """`workflows` text-to-SQL workflows and `PER_WORKFLOW` times as many chats, and as many reports, from stretches of the
    Azure conversation trace that the seed chooses, each class spread over the same minute; scale the load as needed."""
    import numpy as np

    from hasten.lab.workloads import load
    from hasten.lab.workloads.base import Workload
    from hasten.lab.workloads.transform import cut, mix

    rng = np.random.default_rng([seed, 7])
    trace = load("azure-llm-2023-conv")
    count, half = PER_WORKFLOW * workflows, len(trace) // 2
    parts = []
    for name, start in ((CHAT, rng.integers(half - count)), (REPORT, half + rng.integers(half - count))):
        part = cut(trace, int(start), int(start) + count)
        factor = MINUTE_S / part.duration_s
        requests = [replace(request, arrival_s=request.arrival_s * factor, slo_class=name) for request in part]
        parts.append(Workload(name=name, requests=requests, slos={name: slos[name]}, source=part.source))
    return mix(*parts, _agents(workflows, slos, rng))


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
