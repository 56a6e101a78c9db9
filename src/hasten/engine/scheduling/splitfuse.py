"""Dynamic SplitFuse: every pass computes about as many tokens ("DeepSpeed-FastGen: High-throughput Text Generation for LLMs via
MII and DeepSpeed-Inference", Holmes et al., 2024).

Tokens per second against tokens per pass rise steeply and then level off; the pass size B is taken at that knee, and every pass
is filled to it exactly: first the sequences that decode, then prompts in order, several short ones together, the last of them
split. The remainder of a split prompt stands at the front of the queue. Exact. O(sequences) a step.

Composing is that of `stall-free` with two changes. B holds whether or not anything decodes. And memory is the rule's own
affair, as in the paper's engine, which has no preemption: a prompt piece goes in only if its whole remaining prompt has blocks,
a decode that lacks its block is left out, nothing is kept free for growth. When nothing fits although work waits (a deadlock:
all memory is held by sequences that each want one block more) the first sequence is planned all the same. The residency must
then free memory: `reset-on-deadlock`, which this preset sets, makes all others start over from prompt and output so far, as the
paper's engine does; any other residency (`--set scheduling.residency=newest-yields`) preempts its own way.

Where this differs from the paper and what was reconstructed: the paper finds the knee on a plot; here it is the smallest pass
whose predicted throughput is `knee` of the best one's (unconfirmed in the paper; 0.8, 0.9, 0.95 and 0.98 were simulated for an
8B model on an H100: effective throughput rises with it by a tenth, and measured curves are not smooth enough for 0.98). In the
authors' code a reset takes everybody's KV; here the first sequence keeps its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from hasten.engine.events import Event
from hasten.engine.executors.cost import StepShape, span_pairs
from hasten.engine.scheduling.base import StepPlan, View, Work, WorkKind
from hasten.engine.scheduling.composing import Budget, compose
from hasten.engine.scheduling.displacing import Tenure, preempts
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    tokens: int | None = None
    """B, the tokens of a pass; None: the knee."""
    knee: float = field(default=0.95, metadata={"search": (0.8, 0.9, 0.98)})
    """Share of the best predicted throughput at which the curve counts as level."""
    tile: int = 16
    """B is a multiple of it: the rows that the kernels take together."""
    preempt: bool = False
    """Rows and memory go by rank: a waiting sequence takes the place of a running one of worse rank."""
    hold: int = 32
    """With `preempt`: tokens that a sequence which lost its KV produces, once it is back, before it may lose it again."""


class SplitFuse:
    def __init__(self, options: Options) -> None:
        if options.tokens is not None and options.tokens < 1:
            raise ValueError(f"splitfuse: tokens must be at least 1, got {options.tokens}")
        if not 0 < options.knee <= 1:
            raise ValueError(f"splitfuse: knee must be a share above 0 and at most 1, got {options.knee}")
        if options.tile < 1:
            raise ValueError(f"splitfuse: tile must be at least 1, got {options.tile}")
        self._options = options
        self._tenure = Tenure(options.hold)
        self.learns_from = Tenure.learns_from
        self._tokens = options.tokens

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        return self._tenure.learn(event, sequence, view)

    def compose(self, ranked: Seq[Sequence], view: View) -> StepPlan:
        if self._tokens is None:
            self._tokens = knee(view, self._options.knee, self._options.tile)
        budget = Budget(self._tokens, self._tokens, fits=True)
        plan = compose(ranked, view, budget, self._tenure if self._options.preempt else None)
        return plan if plan.work else self._first(ranked)

    def steady(self, plan: StepPlan, view: View) -> float:
        """Whoever waits, or decodes and is left out, lacks rows or memory, and decoding frees neither; but a tenure may end."""
        return self._tenure.steady(plan) if self._options.preempt else math.inf

    def _first(self, ranked: Seq[Sequence]) -> StepPlan:
        """Deadlock: the first of those that hold memory is planned, for the residency to find it some more."""
        for seq in ranked:
            if seq.state is State.RUNNING:
                assert self._tokens is not None
                kind = WorkKind.DECODE if seq.decoding else WorkKind.PREFILL
                return StepPlan([Work(seq, min(seq.remaining, self._tokens), kind)])
        return StepPlan()


def knee(view: View, share: float, tile: int) -> int:
    """B: the smallest pass, in whole tiles, at which prompts run at `share` of the best predicted tokens per second."""
    sizes: list[int] = [*range(tile, view.limits.tokens + 1, tile)] or [view.limits.tokens]
    rates = [size / view.price(StepShape(size, 1, 1, size, span_pairs(size, 0))) for size in sizes]
    enough = share * max(rates)
    return next(size for size, rate in zip(sizes, rates, strict=True) if rate >= enough)


TECHNIQUE = Technique(
    name="splitfuse",
    seam="scheduling",
    summary="passes of one size, at the knee of throughput, filled exactly",
    exact=True,
    sets={"scheduling.batching": "splitfuse", "scheduling.residency": "reset-on-deadlock"},
    options=Options,
    make=lambda context, options: SplitFuse(preempts(context, options)),
    paper="DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and DeepSpeed-Inference, 2024",
)
