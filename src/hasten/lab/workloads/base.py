"""A workload: timed requests, as a trace or a generator gives them, before any engine is chosen.

A request says when it comes and how long it is, not necessarily what it says: `prompts.py` makes tokens of it. Requests with
`parents` are stages of a workflow: each arrives `delay_s` after the last of its parents has ended, whenever that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hasten.engine.request import SLO


class WorkloadError(ValueError):
    """A trace that cannot be used: which row or field is at fault, what was found and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRequest:
    """One request of a workload.

    `arrival_s`: seconds after the workload's start (0 for those with parents, which arrive `delay_s` after the last parent's
    end). `prompt_tokens`, `output_tokens`: lengths, at least 1 each; exactly `output_tokens` are generated. `blocks`: what the
    prompt's leading blocks of `Workload.block_tokens` tokens hold, as numbers: equal numbers become equal tokens; what they do
    not cover is unique to the request. The last block may be cut short by `prompt_tokens`. `text`: the prompt itself, where a
    workload has one; its tokens then replace `blocks` and `prompt_tokens`. `tool`: what works during `delay_s`, if anything
    does (a sandbox, a search service); empty where a person thinks, or nothing is known of it. `failed`: whoever recorded the
    trace got no answer; such requests are in a workload only when asked for."""

    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    text: str | None = None
    application: str = ""
    workflow: str = ""
    stage: str = ""
    parents: tuple[str, ...] = ()
    delay_s: float = 0.0
    tool: str = ""
    slo_class: str = ""
    adapter: str | None = None
    tenant: str = ""
    priority: int = 0
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests in order of arrival; those with parents come somewhere after all of them.

    `slos`: what each `slo_class` asks for. `source`: where it comes from and what was done to it since, for reports.
    Raises WorkloadError for what no engine could replay."""

    name: str
    requests: list[TimedRequest]
    block_tokens: int = 512
    slos: Mapping[str, SLO] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if not self.requests:
            raise WorkloadError(f"{self.name}: there are no requests in it")
        if self.block_tokens < 1:
            raise WorkloadError(f"{self.name}: block_tokens must be at least 1, got {self.block_tokens}")
        seen: set[str] = set()
        last = 0.0
        for number, request in enumerate(self.requests):
            fault = _fault(request, seen, self.slos)
            if not request.parents and fault is None:
                if request.arrival_s < last:
                    fault = f"it arrives at {request.arrival_s:g} s, before the one ahead of it at {last:g} s"
                last = request.arrival_s
            if fault is not None:
                raise WorkloadError(f"{self.name}: request {number} ({request.id!r}): {fault}")
            seen.add(request.id)

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[TimedRequest]:
        return iter(self.requests)

    @property
    def duration_s(self) -> float:
        """From the start to the last arrival that is known beforehand."""
        return max((r.arrival_s for r in self.requests if not r.parents), default=0.0)

    @property
    def has_stages(self) -> bool:
        return any(request.parents for request in self.requests)


def _fault(request: TimedRequest, seen: set[str], slos: Mapping[str, SLO]) -> str | None:
    for name in ("arrival_s", "delay_s"):
        value = getattr(request, name)
        if not math.isfinite(value) or value < 0:
            return f"{name} must be a number of seconds from 0 on, got {value!r}"
    for name in ("prompt_tokens", "output_tokens"):
        value = getattr(request, name)
        if value < 1:
            return f"{name} must be at least 1, got {value!r}"
    if request.id in seen:
        return "another request has the same id"
    missing = [parent for parent in request.parents if parent not in seen]
    if missing:
        return f"its parent {missing[0]!r} does not come before it"
    if request.slo_class and request.slo_class not in slos:
        return f"its SLO class {request.slo_class!r} is not described; known: {', '.join(slos) or 'none'}"
    return None
