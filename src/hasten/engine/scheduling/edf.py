"""Earliest deadline first: by when a request's next objective is due.

The classic order of real-time systems (Liu and Layland, Scheduling Algorithms for Multiprogramming in a Hard-Real-Time
Environment, 1973): optimal while everything can be in time, and known to collapse beyond, when it serves the most hopeless
first. A stream is due when its first token is, a whole response at its deadline, a call of a workflow at the workflow's. A
request that asks for nothing is taken to be due `patience_s` after its arrival, so it waits no longer than what came later by
as much. Exact. O(1) a sequence, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Kind
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.scheduling.objectives import NEVER_S, deadline_s, first_token_s
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    patience_s: float = 60.0
    """Seconds after its arrival at which a request without objectives is due."""


class EDF:
    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf

    def __init__(self, options: Options) -> None:
        if not 0 < options.patience_s < math.inf:
            raise ValueError(f"edf: patience_s must be a number of seconds above 0, got {options.patience_s}")
        self._patience_s = options.patience_s

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        return np.array([self._due_s(seq, view) for seq in stale], dtype=np.float64)

    def _due_s(self, seq: Sequence, view: View) -> float:
        due_s = min(first_token_s(seq), deadline_s(seq, view))
        return due_s if due_s < NEVER_S else seq.arrival_s + self._patience_s

    def steady(self, plan: StepPlan, view: View) -> float:
        """Deadlines never change."""
        return math.inf


TECHNIQUE = Technique(
    name="edf",
    seam="scheduling",
    summary="earliest deadline first, by what the request's SLO asks",
    exact=True,
    sets={"scheduling.order": "edf"},
    options=Options,
    make=lambda context, options: EDF(options),
    paper="Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment, 1973",
)
