"""Stall-free chunks: the default batching.

Every sequence that is decoding gets its token in every step; the token budget left over goes to prompts, a chunk at a time,
so that a long prompt never freezes the others (the batching rule of Sarathi-Serve, Agrawal et al., 2024; that technique also
chooses the budget by profiling). Exact. O(sequences) a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from hasten.engine.events import Event
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.scheduling.composing import Budget, compose
from hasten.engine.scheduling.displacing import Tenure, preempts
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    chunk: int = field(default=512, metadata={"search": (64, 128, 256, 1024, 2048)})
    """Tokens of a step while anything decodes; without decodes a step takes all that `limits.tokens` allows."""
    watermark: float = 0.01
    """Share of the blocks kept free when admitting, for the running ones to grow into."""
    preempt: bool = False
    """Rows and memory go by rank: a waiting sequence takes the place of a running one of worse rank."""
    hold: int = 32
    """With `preempt`: tokens that a sequence which lost its KV produces, once it is back, before it may lose it again."""


class StallFree:
    def __init__(self, options: Options) -> None:
        if options.chunk < 1:
            raise ValueError(f"stall-free: chunk must be at least 1, got {options.chunk}")
        if not 0 <= options.watermark < 1:
            raise ValueError(f"stall-free: watermark must be a share from 0 to below 1, got {options.watermark}")
        self._options = options
        self._tenure = Tenure(options.hold)
        self.learns_from = Tenure.learns_from

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        return self._tenure.learn(event, sequence, view)

    def compose(self, ranked: Seq[Sequence], view: View) -> StepPlan:
        budget = Budget(self._options.chunk, view.limits.tokens, self._options.watermark)
        return compose(ranked, view, budget, self._tenure if self._options.preempt else None)

    def steady(self, plan: StepPlan, view: View) -> float:
        """Whoever waits lacks rows or memory, and decoding frees neither; but a tenure may end."""
        return self._tenure.steady(plan) if self._options.preempt else math.inf


TECHNIQUE = Technique(
    name="stall-free",
    seam="scheduling",
    summary="decodes always run; prompts fill the rest of a fixed token budget",
    exact=True,
    default=True,
    sets={"scheduling.batching": "stall-free"},
    options=Options,
    make=lambda context, options: StallFree(preempts(context, options)),
)
