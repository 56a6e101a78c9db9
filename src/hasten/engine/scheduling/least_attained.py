"""Least attained service: who has been given least goes first, a workflow's calls counted together.

The order of those who know no lengths (least-attained-service scheduling; for workflows of model calls the rule of Autellix,
Luo et al., 2025): short work overtakes long work because long work betrays itself by what it has already had. Service is
tokens computed, prompts included, in classes of `quantum` tokens, so that sequences of nearly equal service do not take turns
at every step; within a class the earlier arrival goes first. Exact. O(1) a sequence whose class has changed.

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
        return np.array([view.workflow(seq).service // self._quantum for seq in stale], dtype=np.float64)

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        """Everybody whose workflow has come into another class."""
        if event.time_s < view.now:
            return ()  # one of several steps taken together: the last one's event speaks for all
        running = view.in_state(State.RUNNING)
        risen = (seq for seq in running if view.workflow(seq).service // self._quantum != view.order_key(seq))
        return [id for seq in risen for id in view.workflow(seq).live]

    def steady(self, plan: StepPlan, view: View) -> float:
        """Until the first of the sequences that decode reaches the next class."""
        live: dict[int, int] = {}
        left: dict[int, int] = {}
        for work in plan.work:
            workflow = view.workflow(work.sequence)
            live[id(workflow)] = live.get(id(workflow), 0) + 1
            left[id(workflow)] = self._quantum - workflow.service % self._quantum
        return min((tokens // live[which] for which, tokens in left.items()), default=math.inf)


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
