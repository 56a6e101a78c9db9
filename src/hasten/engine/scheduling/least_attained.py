"""Least attained service: who has been given least goes first, a workflow's calls counted together.

The order of those who know no lengths (least-attained-service scheduling; for workflows of model calls the rule of Autellix,
Luo et al., 2025): short work overtakes long work because long work betrays itself by what it has already had. Service is
tokens computed, prompts included, in classes of `quantum` tokens, so that sequences of nearly equal service do not take turns
at every step; within a class the earlier arrival goes first. Exact. O(live calls of the workflows that run) a step.

Without further measures whoever has had much waits as long as others keep coming: set `scheduling.patience_s` where it
matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.scheduling.workflows import Workflow
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    quantum: int = field(default=400, metadata={"search": (100, 1600)})
    """Tokens of a class: service up to the same multiple of it counts as equal."""


class LeastAttained:
    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf
    learns_from = frozenset({Kind.STEP})

    def __init__(self, options: Options) -> None:
        if options.quantum < 1:
            raise ValueError(f"least-attained: quantum must be at least 1 token, got {options.quantum}")
        self._quantum = options.quantum

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        classes: dict[int, int] = {}
        for one, calls in _by_workflow(stale, view):
            classes |= dict.fromkeys((seq.id for seq in calls), one.service // self._quantum)
        return np.array([classes[seq.id] for seq in stale], dtype=np.float64)

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        """Everybody whose workflow has come into another class."""
        running = _by_workflow(view.in_state(State.RUNNING), view)
        risen = (one for one, calls in running if one.service // self._quantum != view.order_key(calls[0]))
        return [id for one in risen for id in one.live]

    def steady(self, plan: StepPlan, view: View) -> float:
        """Until the first of the workflows that decode reaches the next class."""
        planned = _by_workflow([work.sequence for work in plan.work], view)
        return min(((self._quantum - one.service % self._quantum) // len(calls) for one, calls in planned), default=math.inf)


def _by_workflow(sequences: Seq[Sequence], view: View) -> list[tuple[Workflow, list[Sequence]]]:
    """Each workflow with those of its calls that are among `sequences`: what it was given is summed once for all of them."""
    found: dict[int, tuple[Workflow, list[Sequence]]] = {}
    for seq in sequences:
        workflow = view.workflow(seq)
        found.setdefault(id(workflow), (workflow, []))[1].append(seq)
    return list(found.values())


TECHNIQUE = Technique(
    name="least-attained",
    seam="scheduling",
    summary="who has been given least goes first, workflows as a whole",
    exact=True,
    sets={"scheduling.order": "least-attained"},
    options=Options,
    make=lambda context, options: LeastAttained(options),
    paper="Autellix: An Efficient Serving Engine for LLM Agents as General Programs, 2025",
)
