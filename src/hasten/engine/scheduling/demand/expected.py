"""The expected list of an application's stages: how often a run visits each unit, and what one call of it asks for, in the
mean.

The simplest use of a demand graph: no branches and no conditions, as schedulers have it that only split a deadline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.engine.scheduling.demand.graph import DemandGraph


@dataclass(frozen=True, slots=True)
class Stage:
    """`visits` a run; `prompt` and `output` tokens of a call."""

    visits: float
    prompt: float
    output: float

    def seconds(self, step_s: float, step_tokens: int) -> float:
        return call_seconds(self.prompt, self.output, step_s, step_tokens)


def call_seconds(prompt: float, output: float, step_s: float, step_tokens: int) -> float:
    """What a call takes on a busy engine, whose every step takes `step_s`: its prompt as chunks of `step_tokens`, then a step a
    token."""
    return (prompt / step_tokens + output) * step_s


def expected(graph: DemandGraph) -> dict[str, Stage]:
    """By unit; tools have none."""
    visits: dict[str, int] = {}
    calls: dict[str, list[tuple[int, int]]] = {}
    for run in graph.runs:
        for visit in run:
            if visit.calls:
                visits[visit.unit] = visits.get(visit.unit, 0) + 1
                calls.setdefault(visit.unit, []).extend(visit.calls)
    out = {}
    for unit, count in visits.items():
        prompt, output = np.mean(calls[unit], axis=0).tolist()
        out[unit] = Stage(count / len(graph.runs), prompt, output)
    return out
