"""Sarathi-Serve: stall-free batching whose token budget keeps a target between tokens ("Taming Throughput-Latency Tradeoff in
LLM Inference with Sarathi-Serve", Agrawal et al., 2024).

Every sequence that decodes gets its token in every step; what is left of a budget of τ tokens goes to pieces of prompts. τ is
the largest whose predicted step time stays under the target for the time between two tokens: small τ keeps the target, large τ
wastes less, since each piece reads all the keys and values of the pieces before it again (about P²/2τ of them for a prompt of
P tokens). Composing is that of `stall-free`, whose budget is fixed. Exact. O(sequences) a step, and O(log τ) predictions when
the batch has changed.

Where this differs from the paper and what was reconstructed: the paper profiles τ once, for an expected decode context; here
the cost model is the profile and what runs is expected to go on: τ is chosen anew when rows, decode context, prompt or the
machine's pace have changed by a tenth. The price of a step counts what its piece reads again, at the *end* of the longest
prompt in hand, where it is dearest, so that the last piece keeps the target too. The target is the knob `tbt_s`, or the
tightest `tpot_s` among those that run, or `slack` times a step that only decodes (the paper's objectives are 5 and 25 times
that). τ is rounded down to whole tiles of the kernels as in the paper, but not below what decodes and `least` tokens of a
prompt need: where the target cannot be kept prompts still advance. Preemption, also half-way through a prompt, is the
residency's: `newest-yields` drops the newest and recomputes it, as the paper does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from hasten.engine.events import Event
from hasten.engine.executors.cost import StepShape, span_pairs
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.scheduling.composing import Budget, compose
from hasten.engine.scheduling.displacing import Tenure, preempts
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique

_STEP = 1.1
"""Batches whose numbers lie within one such factor of each other count as alike."""
_KEPT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    tbt_s: float | None = None
    """Most seconds between two tokens; None: the tightest `tpot_s` among the objectives of those that run."""
    slack: float = field(default=5.0, metadata={"search": (2.0, 10.0, 25.0)})
    """Where nobody sets a target: this many times a step that only decodes."""
    context: int | None = None
    """Tokens of context of a decoding sequence to expect; None: what those that decode have now."""
    tile: int = 16
    """τ is a multiple of it: the rows that the kernels take together."""
    least: int = 16
    """Tokens of prompts a step computes at least."""
    watermark: float = 0.01
    """Share of the blocks kept free when admitting, for the running ones to grow into."""
    preempt: bool = False
    """Rows and memory go by rank: a waiting sequence takes the place of a running one of worse rank."""
    hold: int = 32
    """With `preempt`: tokens that a sequence which lost its KV produces, once it is back, before it may lose it again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What τ is chosen for: `rows` that decode with `context` tokens each, beside a prompt of `prompt` tokens."""

    rows: int
    context: int
    prompt: int

    def step(self, tokens: int) -> StepShape:
        """A step of so many tokens (more than `rows`): every row's, and the last piece of the prompt."""
        piece = tokens - self.rows
        before = max(0, self.prompt - piece)
        read = self.rows * (self.context + 1)
        return StepShape(tokens, self.rows + 1, self.rows + 1, read + before + piece, read + span_pairs(piece, before))

    def decodes(self) -> StepShape:
        """The step without the prompt."""
        read = self.rows * (self.context + 1)
        return StepShape(self.rows, self.rows, self.rows, read, read)


class SarathiServe:
    def __init__(self, options: Options) -> None:
        if options.tbt_s is not None and not 0 < options.tbt_s < math.inf:
            raise ValueError(f"sarathi-serve: tbt_s must be a number of seconds above 0, got {options.tbt_s}")
        if not 1 < options.slack < math.inf:
            raise ValueError(f"sarathi-serve: slack must be above 1, got {options.slack}")
        for name in ("tile", "least"):
            if getattr(options, name) < 1:
                raise ValueError(f"sarathi-serve: {name} must be at least 1, got {getattr(options, name)}")
        if options.context is not None and options.context < 0:
            raise ValueError(f"sarathi-serve: context must be a number of tokens from 0 on, got {options.context}")
        if not 0 <= options.watermark < 1:
            raise ValueError(f"sarathi-serve: watermark must be a share from 0 to below 1, got {options.watermark}")
        self._options = options
        self._tenure = Tenure(options.hold)
        self.learns_from = Tenure.learns_from
        self._chosen: dict[tuple[Batch, float | None, int], int] = {}

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        return self._tenure.learn(event, sequence, view)

    def compose(self, ranked: Seq[Sequence], view: View) -> StepPlan:
        limit = view.limits.tokens
        budget = Budget(self._tokens(ranked, view), limit, self._options.watermark)
        return compose(ranked, view, budget, self._tenure if self._options.preempt else None)

    def steady(self, plan: StepPlan, view: View) -> float:
        """Whoever waits lacks rows or memory, and decoding frees neither; but a tenure may end. τ is a function of the batch
        as it is, so nothing is missed when no prompt can run."""
        return self._tenure.steady(plan) if self._options.preempt else math.inf

    def _tokens(self, ranked: Seq[Sequence], view: View) -> int:
        """τ for the batch as it is, the same for all that are like it."""
        rows = cached = prompt = 0
        waits = False
        tightest = math.inf
        for seq in ranked:
            if seq.state is State.WAITING:
                if not waits:  # the next to be admitted
                    prompt, waits = max(prompt, seq.length), True
            elif seq.decoding:
                rows += 1
                cached += seq.view.length
                tightest = min(tightest, seq.request.slo.tpot_s or math.inf)
            else:
                prompt = max(prompt, seq.length)
        if not rows or not prompt:
            return view.limits.tokens
        context = self._options.context if self._options.context is not None else cached // rows
        batch = Batch(_alike(rows), _alike(context), _alike(prompt))
        target_s = self._options.tbt_s or (tightest if tightest < math.inf else None)
        # The model of a real machine learns its pace while it runs.
        pace = round(math.log(max(1e-9, view.price(StepShape(1, 1, 1, 1, 1)))) / math.log(_STEP))
        key = (batch, target_s, pace)
        tokens = self._chosen.get(key)
        if tokens is None:
            if len(self._chosen) >= _KEPT:
                self._chosen.clear()
            tokens = self._chosen[key] = choose(batch, target_s, view, self._options)
        return max(tokens, rows + self._options.least)


def choose(batch: Batch, target_s: float | None, view: View, options: Options) -> int:
    """τ: the most tokens, in whole tiles, whose step is predicted to take at most `target_s` (None: `slack` times a step that
    only decodes), at most what a step may hold; at least the rows that decode, which run whatever it takes."""
    if target_s is None:
        target_s = options.slack * view.price(batch.decodes())
    low, high = batch.rows, view.limits.tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if view.price(batch.step(middle)) <= target_s else (low, middle - 1)
    if low >= view.limits.tokens:
        return view.limits.tokens
    return low // options.tile * options.tile or low


def _alike(count: int) -> int:
    """The largest number that counts as like this one."""
    return math.floor(_STEP ** math.ceil(math.log(count) / math.log(_STEP) - 1e-9) + 1e-9) if count > 1 else count


TECHNIQUE = Technique(
    name="sarathi-serve",
    seam="scheduling",
    summary="decodes always run; prompts fill a token budget that keeps a target between tokens",
    exact=True,
    sets={"scheduling.batching": "sarathi-serve"},
    options=Options,
    make=lambda context, options: SarathiServe(preempts(context, options)),
    paper="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, 2024",
)
