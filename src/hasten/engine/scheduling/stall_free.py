"""Stall-free chunks: the default batching.

Every sequence that is decoding gets its token in every step; the token budget left over goes to prompts, a chunk at a time,
so that a long prompt never freezes the others (the batching rule of Sarathi-Serve, Agrawal et al., 2024; that technique also
chooses the budget by profiling). Exact. O(sequences) a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from hasten.engine.scheduling.base import StepPlan, View, Work, WorkKind, rank
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    chunk: int = field(default=512, metadata={"search": (64, 128, 256, 1024, 2048)})
    """Tokens of a step while anything decodes; without decodes a step takes all that `limits.tokens` allows."""
    watermark: float = 0.01
    """Share of the blocks kept free when admitting, for the running ones to grow into."""


class StallFree:
    def __init__(self, options: Options) -> None:
        if options.chunk < 1:
            raise ValueError(f"stall-free: chunk must be at least 1, got {options.chunk}")
        self._options = options

    def compose(self, ranked: Seq[Sequence], view: View) -> StepPlan:
        plan = StepPlan()
        rows = view.limits.rows
        budget = view.limits.tokens
        for seq in ranked:
            if seq.state is State.RUNNING and seq.decoding and rows and budget:
                drafts = min(view.lookahead(seq), budget - 1)
                plan.work.append(Work(seq, 1, WorkKind.VERIFY if drafts else WorkKind.DECODE, drafts))
                budget -= 1 + drafts
                rows -= 1
        if plan.work:
            budget = min(budget, max(1, self._options.chunk - plan.tokens))
        if len(plan.work) == len(ranked):
            return plan  # nobody waits
        free = view.free_blocks - sum(view.blocks_needed(w.sequence, w.count + w.drafts) for w in plan.work)
        for seq in ranked:
            if seq.state is State.RUNNING and not seq.decoding and rows and budget:
                count = min(seq.remaining, budget)
                plan.work.append(Work(seq, count, WorkKind.PREFILL))
                free -= view.blocks_needed(seq, seq.remaining)
                budget -= count
                rows -= 1
        reserve = int(self._options.watermark * view.total_blocks) if plan.work else 0
        away = min((rank(seq, view) for seq in view.sequences if seq.state is State.SWAPPED), default=None)
        for seq in ranked:
            if not rows or not budget:
                break
            if seq.state is not State.WAITING:
                continue
            if away is not None and away < rank(seq, view):
                break  # what is already started comes back first; an empty plan leaves it all the memory
            before = view.free_blocks
            remaining = view.open(seq)
            free -= before - view.free_blocks  # reused blocks nobody read until now are no longer evictable
            need = view.blocks_needed(seq, remaining)
            if need + reserve > free:
                break  # nobody behind overtakes: small prompts would starve a large one
            count = min(remaining, budget)
            plan.work.append(Work(seq, count, WorkKind.PREFILL))
            free -= need
            budget -= count
            rows -= 1
        return plan

    def steady(self, plan: StepPlan, view: View) -> float:
        """Whoever waits lacks rows or memory, and decoding frees neither."""
        return math.inf


TECHNIQUE = Technique(
    name="stall-free",
    seam="scheduling",
    summary="decodes always run; prompts fill the rest of a fixed token budget",
    exact=True,
    default=True,
    sets={"scheduling.batching": "stall-free"},
    options=Options,
    make=lambda context, options: StallFree(options),
)
