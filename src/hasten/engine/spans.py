"""From a plan to spans: which tokens, where their KV goes, what is guessed behind them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from hasten.engine import speculate
from hasten.engine.decoding.base import Proposer
from hasten.engine.executors.base import StepResult
from hasten.engine.kv.base import NoBlocks
from hasten.engine.ledger import Ledger
from hasten.engine.scheduling.base import StepPlan, Work
from hasten.engine.sequence import Draft, Sequence, Span

_log = logging.getLogger(__name__)


class SpanMaker:
    def __init__(self, ledger: Ledger, proposer: Proposer | None) -> None:
        self._ledger = ledger
        self._proposer = proposer
        self.drafting_s = 0.0
        """What making the last step's drafts took."""

    def make(self, plan: StepPlan, last: StepResult | None) -> list[Span]:
        """The plan's spans, in its order, with slots taken for their KV; work that finds no block waits for a later step."""
        drafts = self._drafts(plan, last)
        spans = []
        for work in plan.work:
            try:
                alone = self._alone(work) if work.sequence.links is not None else []
                spans += alone if alone else [self._span(work, drafts.get(work.sequence.id))]
            except NoBlocks:  # the estimate was too kind (shared tails)
                continue
        return spans

    def _drafts(self, plan: StepPlan, last: StepResult | None) -> dict[int, Draft]:
        # A prompt about to be split takes none: its n sequences would share the guesses' KV.
        works = [w for w in plan.work if w.drafts and not self._ledger.will_split(w.sequence)]
        self.drafting_s = 0.0
        if not works or self._proposer is None:
            return {}
        began = self._ledger.clock.now()
        found = {}
        try:
            proposed = self._proposer.propose([w.sequence for w in works], [w.drafts for w in works], last)
            for work, draft in zip(works, proposed, strict=True):
                pruned = speculate.prune(draft, work.sequence, work.drafts) if draft is not None else None
                if pruned is not None:
                    found[work.sequence.id] = pruned
        except Exception:  # a guess is never needed
            _log.exception("the proposer failed; this step runs without drafts")
            found = {}
        self.drafting_s = self._ledger.clock.now() - began
        return found

    def _alone(self, work: Work) -> list[Span]:
        """What of the work comes before all else: chunks of the prompt that are computed by themselves, a span each, which sees
        its chunk and what they all see, if that is anything. What is planned beyond waits for the next step, as it writes the
        same slots again."""
        seq, linker = work.sequence, self._ledger.linker
        assert linker is not None
        spans = []
        for start, stop, first, behind in linker.alone(seq, work.count):
            slots = self._ledger.rewrite(seq, np.arange(start, stop, dtype=np.int32))
            spans.append(Span(seq, stop - start, *seq.piece(start, stop), slots, sees=(first, stop), behind=behind))
        return spans

    def _span(self, work: Work, draft: Draft | None) -> Span:
        seq, books = work.sequence, self._ledger.books
        ranges = seq.next_ranges(work.count)
        if len(ranges) == 1:
            tokens, positions, segments = seq.piece(*ranges[0])
        else:
            picked = np.concatenate([np.arange(start, stop) for start, stop in ranges])
            tokens, positions, segments = seq.tokens[picked], seq.positions[picked], seq.segments[picked]
        samples = work.count == seq.remaining
        parents = None
        if draft is not None:
            deep = speculate.depths(draft) + 1
            if draft.parents is not None:
                above = np.where(draft.parents < 0, work.count - 1, work.count + draft.parents)
                parents = np.concatenate([np.arange(-1, work.count - 1), above]).astype(np.int32)
            tokens = np.concatenate([tokens, draft.tokens])
            positions = np.concatenate([positions, positions[-1] + deep])
            segments = np.concatenate([segments, np.full(len(deep), segments[-1], dtype=np.int32)])
        # Entries further on may not be computed yet; no token of this step sees them.
        sees = (0, ranges[-1][1]) if ranges[-1][1] < seq.view.length and seq.contexts is None else None
        slots = self._slots(seq, ranges, positions) if ranges[0][0] < seq.view.length else books.append(seq.view, positions)
        span = Span(
            seq, len(tokens), tokens, positions, segments, slots, samples=samples, parents=parents, draft=draft, sees=sees
        )
        if self._ledger.groups[seq.request.id].prompt_scores is not None and ranges[0][0] < seq.prompt_length:
            span.logits = list(range(len(tokens)))
        elif samples:
            span.logits = list(range(work.count - 1, len(tokens)))
        span.drafts = len(tokens) - work.count
        span.contexts = seq.contexts
        if seq.links is not None:
            linker = self._ledger.linker
            assert linker is not None
            span.measure = linker.measure(seq, ranges)
            span.mending = linker.mending(seq, ranges) if parents is None else None
        return span

    def _slots(self, seq: Sequence, ranges: list[tuple[int, int]], positions: Any) -> Any:
        """Slots of tokens some of which already have one (partial prefill into an assembled view)."""
        picked = np.concatenate([np.arange(start, stop) for start, stop in ranges])
        old = picked[picked < seq.view.length]
        held = self._ledger.rewrite(seq, old)
        if len(old) == len(positions):
            return held
        return np.concatenate([held, self._ledger.books.append(seq.view, positions[len(old) :])])
