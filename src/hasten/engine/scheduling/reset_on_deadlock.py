"""Reset on deadlock: nobody yields until nothing can run, then all but the first start over (DeepSpeed-FastGen, Holmes et al.,
2024, whose preset `splitfuse` uses it).

While part of a step has memory that part runs and the rest of it waits, so no KV is lost. When none of it has, every running
sequence but the best ranked of the step gives up its KV and will compute prompt and output so far again. Exact; O(sequences) a
step that is short of memory. Unlike the authors' engine it spares the first, whose KV need not go: with what the others held it
can run.

What the engine does anyway is told apart here: dropping KV with the tokens kept, admitting who was dropped again in order, and
leaving work without memory out of a step are the core's; who is dropped, and when, is this policy's. `newest-yields` solves the
same shortage one sequence at a time, before anybody has to wait.
"""

from __future__ import annotations

import math

from hasten.engine.scheduling.base import Direction, StepPlan, Transfer, View
from hasten.engine.scheduling.displacing import holders
from hasten.engine.technique import Technique


class ResetOnDeadlock:
    def plan(self, view: View, plan: StepPlan, short: int) -> list[Transfer]:
        free = view.free_blocks
        if short <= 0 or any(view.blocks_needed(work.sequence, work.count) <= free for work in plan.work):
            return []
        planned = {work.sequence.id for work in plan.work}
        held = holders(view)
        spared = next((seq for seq in held if seq.id in planned), held[0] if held else None)
        return [Transfer(seq, Direction.DROP if seq.recomputable else Direction.OUT) for seq in held[::-1] if seq is not spared]

    def steady(self, plan: StepPlan, view: View) -> float:
        """It does nothing while anything runs."""
        return math.inf


TECHNIQUE = Technique(
    name="reset-on-deadlock",
    seam="scheduling",
    summary="nobody gives up its KV until nothing can run; then all but the first do",
    exact=True,
    sets={"scheduling.residency": "reset-on-deadlock"},
    make=lambda context, options: ResetOnDeadlock(),
    paper="DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and DeepSpeed-Inference, 2024",
)
