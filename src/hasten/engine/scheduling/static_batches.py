"""Static and window batches: request-level batching, as serving systems did before iteration-level scheduling.

Requests are taken together when nothing runs, and nobody joins until all of them have finished: every answer waits for the
longest of its batch, and every arrival for the batch before. `window_s` > 0 is window (dynamic) batching: an idle engine waits
for more requests, at most that long after the first one came, or until `rows` are there. Both are baselines of Flover (Yao et
al., 2023), which runs them with FasterTransformer. A batch is as large as fits with the longest outputs its requests allow, as
engines of that kind reserve them; inside it prompts run whole, then all decode together. Exact. O(sequences) a step. Unlike
those engines this one neither pads prompts to one length nor computes rows that have finished, so the baseline is faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from hasten.engine.scheduling.base import StepPlan, View, WorkKind
from hasten.engine.scheduling.whole_prompts import WholePrompts
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    rows: int = 32
    """Most requests of a batch."""
    window_s: float = 0.0
    """How long an idle engine waits for more requests after the first one came; 0: it takes what is there."""


class StaticBatches:
    def __init__(self, options: Options) -> None:
        if options.rows < 1:
            raise ValueError(f"static-batches: rows must be at least 1, got {options.rows}")
        if not 0 <= options.window_s < math.inf:
            raise ValueError(f"static-batches: window_s must be a number of seconds from 0 on, got {options.window_s}")
        self._options = options
        self._inside = WholePrompts()
        self._batch: set[str] = set()
        """Ids of the requests that run together."""

    def compose(self, ranked: Seq[Sequence], view: View) -> StepPlan:
        live = view.sequences
        self._batch &= {seq.request.id for seq in live}
        # Whatever holds KV has been started: a batch is never closed around it.
        self._batch |= {seq.request.id for seq in live if seq.state is not State.WAITING}
        if not self._batch:
            opens_s = min((seq.arrival_s for seq in ranked), default=0.0) + self._options.window_s
            if len(ranked) < self._options.rows and view.now < opens_s:
                return StepPlan(replan_at=opens_s)
            self._batch = self._take(ranked, view)
        return self._inside.compose([seq for seq in ranked if seq.request.id in self._batch], view)

    def steady(self, plan: StepPlan, view: View) -> float:
        """How many further steps have the same plan if nothing arrives, ends or is preempted: nobody joins a batch."""
        return math.inf if plan.work and all(work.kind is WorkKind.DECODE for work in plan.work) else 0.0

    def _take(self, ranked: Seq[Sequence], view: View) -> set[str]:
        taken: set[str] = set()
        free = view.free_blocks
        for seq in ranked[: min(self._options.rows, view.limits.rows)]:
            before = view.free_blocks
            remaining = view.open(seq)
            free -= before - view.free_blocks  # reused blocks nobody read until now are no longer evictable
            free -= view.blocks_needed(seq, remaining + seq.request.sampling.n * view.room(seq))
            if free < 0 and taken:
                break
            taken.add(seq.request.id)
        return taken


TECHNIQUE = Technique(
    name="static-batches",
    seam="scheduling",
    summary="requests run in batches that nobody joins, as before continuous batching",
    exact=True,
    sets={"scheduling.batching": "static-batches"},
    options=Options,
    make=lambda context, options: StaticBatches(options),
    paper="the baseline of Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference, 2023",
)
