"""Order by the priority a request carries: lower numbers first, first come first served among equals."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Kind
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique


class Priority:
    """Strict: an urgent request overtakes all others, also in keeping its KV when memory is short."""

    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        return np.array([seq.request.priority for seq in stale], dtype=np.float64)

    def steady(self, plan: StepPlan, view: View) -> float:
        """Priorities never change."""
        return math.inf


TECHNIQUE = Technique(
    name="priority",
    seam="scheduling",
    summary="the request's priority first (lower is more urgent), then arrival",
    exact=True,
    sets={"scheduling.order": "priority"},
    make=lambda context, options: Priority(),
)
