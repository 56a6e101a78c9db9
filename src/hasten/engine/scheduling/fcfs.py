"""First come, first served: the default order."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Kind
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique


class FCFS:
    """By arrival time. A preempted sequence keeps its place."""

    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        return np.array([seq.arrival_s for seq in stale], dtype=np.float64)

    def steady(self, plan: StepPlan, view: View) -> float:
        """Arrival times never change."""
        return math.inf


TECHNIQUE = Technique(
    name="fcfs",
    seam="scheduling",
    summary="first come, first served",
    exact=True,
    default=True,
    sets={"scheduling.order": "fcfs"},
    make=lambda context, options: FCFS(),
)
