"""Whole prompts first: iteration-level batching without chunks (Orca, Yu et al., 2022; vLLM's first scheduler).

While a prompt waits and fits, a step computes whole prompts and nothing else, so every decoding sequence stalls for it; the
best throughput a plain engine gives, and the baseline for the tail latency of the others. A prompt longer than a step's token
limit is cut, since it could never run otherwise. Exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

from hasten.engine.scheduling.base import StepPlan, View, Work, WorkKind, rank
from hasten.engine.scheduling.composing import decodes, returning
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique


class WholePrompts:
    def compose(self, ranked: Seq[Sequence], view: View) -> StepPlan:
        plan = StepPlan()
        rows, budget = view.limits.rows, view.limits.tokens
        started = [seq for seq in ranked if seq.state is State.RUNNING]
        decoding = [seq for seq in started if seq.decoding]
        free = view.free_blocks - sum(view.blocks_needed(seq, seq.remaining) for seq in started)
        ahead = returning(view)
        places = rows - len(started)
        for seq in ranked:
            if seq.decoding or len(plan.work) == rows or budget == 0:
                continue
            if seq.state is State.WAITING:
                if places <= 0 or (ahead is not None and ahead < rank(seq, view)):
                    continue
                before = view.free_blocks
                remaining = view.open(seq)
                free -= before - view.free_blocks
                need = view.blocks_needed(seq, remaining)
                if need > free or (remaining > budget and plan.work):
                    break
                free -= need
                places -= 1
            count = min(seq.remaining, budget)
            plan.work.append(Work(seq, count, WorkKind.PREFILL))
            budget -= count
        if plan.work:
            return plan
        plan.work, _ = decodes(decoding, view, prompts=False, beside=budget)
        return plan

    def steady(self, plan: StepPlan, view: View) -> float:
        """Whoever waits lacks rows or memory, and decoding frees neither."""
        return math.inf


TECHNIQUE = Technique(
    name="whole-prompts",
    seam="scheduling",
    summary="waiting prompts run whole, before any decode",
    exact=True,
    sets={"scheduling.batching": "whole-prompts"},
    make=lambda context, options: WholePrompts(),
)
