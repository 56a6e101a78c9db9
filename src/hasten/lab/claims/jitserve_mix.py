"""The three classes of request that JITServe serves side by side: generated, or made of two traces."""

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
CHATS, REPORTS = 3, 2
"""Of each for every workflow that is generated: then a third of all output tokens are of each class."""
TRACED_CHATS, TRACED_REPORTS = 40, 45
"""The same beside a workflow of the traces, whose prompts are 25 times as long as what it writes: then each class takes about
a third of the time of an 8B model on an H100."""


def objectives(ttft_s: float, tpot_s: float, report_s: float, stage_s: float) -> Mapping[str, SLO]:
    """Of each class; a workflow has `stage_s` for each of its stages, as in the released benchmark."""
    from hasten.engine.request import SLO

    return {
        CHAT: SLO(ttft_s=ttft_s, tpot_s=tpot_s),
        REPORT: SLO(deadline_s=report_s),
        AGENT: SLO(deadline_s=stage_s),
    }


def generated(workflows: int, slos: Mapping[str, SLO], seed: int) -> Workload:
    """Requests whose work is mostly their answers, of lengths that nobody can know: chats (medians of 200 tokens in, 300 out),
    reports (300 in, 400 out) and workflows of about eight calls in five stages (some 100 tokens a call), all log-normal. Each
    class is spread over the same minute; scale the load as needed."""
    from hasten.lab.workloads.agents import agents
    from hasten.lab.workloads.generate import poisson
    from hasten.lab.workloads.transform import mix

    chats, reports = CHATS * workflows, REPORTS * workflows
    return mix(
        _named(
            CHAT,
            slos,
            poisson(
                rate=chats / MINUTE_S, requests=chats, prompt=200, prompt_sigma=1.0, output=300, output_sigma=0.9,
                longest=1200, seed=3 * seed,
            ),
        ),
        _named(
            REPORT,
            slos,
            poisson(
                rate=reports / MINUTE_S, requests=reports, prompt=300, prompt_sigma=0.8, output=400, output_sigma=0.7,
                longest=1200, seed=3 * seed + 1,
            ),
        ),
        _by_stages(
            slos,
            agents(
                rate=workflows / MINUTE_S, workflows=workflows, rounds=3.0, width=2.0, system=64, task=100, written=100,
                tool_s=0.5, longest=4000, seed=3 * seed + 2,
            ),
        ),
    )  # fmt: skip


def traced(workflows: int, slos: Mapping[str, SLO], seed: int) -> Workload:
    """`workflows` text-to-SQL workflows of both traces, chats of a stretch of the Azure conversation trace, and reports of some
    300 tokens to prompts of 300. Each class is spread over the same minute; scale the load as needed."""
    import numpy as np

    from hasten.lab.workloads import load
    from hasten.lab.workloads.generate import poisson
    from hasten.lab.workloads.transform import cut, mix, scale_time

    rng = np.random.default_rng([seed, 7])
    trace = load("azure-llm-2023-conv")
    count = TRACED_CHATS * workflows
    start = int(rng.integers(len(trace) - count))
    chats = cut(trace, start, start + count)
    reports = TRACED_REPORTS * workflows
    return mix(
        _named(CHAT, slos, scale_time(chats, MINUTE_S / chats.duration_s)),
        _named(
            REPORT,
            slos,
            poisson(
                rate=reports / MINUTE_S, requests=reports, prompt=300, prompt_sigma=0.8, output=300, output_sigma=0.7,
                longest=1000, seed=seed,
            ),
        ),
        _by_stages(slos, _questions(workflows, rng)),
    )  # fmt: skip


def _named(name: str, slos: Mapping[str, SLO], workload: Workload) -> Workload:
    requests = [replace(request, slo_class=name, application=name) for request in workload]
    return replace(workload, name=name, requests=requests, slos={name: slos[name]})


def _by_stages(slos: Mapping[str, SLO], workload: Workload) -> Workload:
    """Workflows with a deadline by the number of their stages: a class for each such number."""
    depth: dict[str, int] = {}
    stages: dict[str, int] = {}
    for request in workload:  # parents come first
        depth[request.id] = 1 + max((depth[parent] for parent in request.parents), default=0)
        stages[request.workflow] = max(stages.get(request.workflow, 0), depth[request.id])
    stage_s = slos[AGENT].deadline_s
    assert stage_s is not None
    names = {count: f"{AGENT}, {count} stages" for count in sorted(set(stages.values()))}
    requests = [replace(one, slo_class=names[stages[one.workflow]], application=AGENT) for one in workload]
    by_class = {name: replace(slos[AGENT], deadline_s=count * stage_s) for count, name in names.items()}
    return replace(workload, name=AGENT, requests=requests, slos=by_class)


def _questions(workflows: int, rng: Any) -> Workload:
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
                )
            )
    return Workload(name=AGENT, requests=requests, source="workflows of both text-to-SQL traces")
