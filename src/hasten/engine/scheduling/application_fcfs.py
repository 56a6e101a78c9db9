"""First come, first served by application: the calls of a workflow go by when its first call came.

Under plain first-come order every later stage of a workflow queues up again behind all that came meanwhile; here a workflow
keeps its place until it is done, as in Parrot (Lin et al., 2024) and Autellix (Luo et al., 2025), whose schedulers treat a
program's calls as one job. Exact. O(1) a call, asked once. A request without a workflow is one of its own, so without
workflows this is plain first come, first served. The engine takes a workflow's name from the client: who invents one workflow
for everything is served first, so it is for clients that are trusted with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Kind
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique


class ApplicationFCFS:
    """By the arrival of the workflow's first call, then by the call's own."""

    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        return np.array([view.workflow(seq).arrival_s for seq in stale], dtype=np.float64)

    def steady(self, plan: StepPlan, view: View) -> float:
        """Arrival times never change."""
        return math.inf


TECHNIQUE = Technique(
    name="application-fcfs",
    seam="scheduling",
    summary="the calls of a workflow go by when its first call came",
    exact=True,
    sets={"scheduling.order": "application-fcfs"},
    make=lambda context, options: ApplicationFCFS(),
    paper="the application-level baseline of Hermes (2025); as in Parrot (2024)",
)
