"""The end of a step: tokens are drawn, drafts verified, what was accepted is written to the sequences and handed out."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np

from hasten.engine import speculate
from hasten.engine.clock import Clock
from hasten.engine.decoding.base import Drawn, Policies, Reader, Row, TokenLogprobs
from hasten.engine.events import EventLog, Kind
from hasten.engine.executors.base import Executor, StepResult
from hasten.engine.ledger import Ledger
from hasten.engine.outbox import Outbox
from hasten.engine.outputs import TokenDelta
from hasten.engine.rng import mix
from hasten.engine.sequence import Finish, Sequence, Span

_log = logging.getLogger(__name__)


class Committer:
    """`longest`: the most tokens a sequence can come to, and those it saves more. `eos`: tokens that end a text."""

    def __init__(
        self,
        ledger: Ledger,
        outbox: Outbox,
        executor: Executor,
        decoding: Policies,
        clock: Clock,
        events: EventLog,
        longest: int,
        eos: frozenset[int],
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._executor = executor
        self._decoding = decoding
        self._clock = clock
        self._events = events
        self._longest = longest
        self._eos = eos
        self.acceptance = speculate.Acceptance()
        self._reader: Reader | None = None
        """Of the step being committed."""

    def commit(self, spans: list[Span], result: StepResult) -> list[tuple[Sequence, int]]:
        """Draw what `spans` wanted drawn; the sequences that got tokens, and how many each. Under the memory's lock."""
        rows: list[Row] = []
        firsts: list[int] = []
        drawn_spans: list[Span] = []
        at = 0
        for span in spans:
            seq = span.sequence
            self._score_prompt(span, result, at)
            seq.computed(span.count - span.drafts)
            if span.samples:
                last = at + len(span.logits) - 1 - span.drafts
                for member in self._split(seq):
                    own = span if member is seq else Span(member, 0, span.tokens, span.positions, span.segments, span.slots)
                    firsts.append(len(rows))
                    drawn_spans.append(own)
                    rows += speculate.rows(own, last)
            at += len(span.logits)
        if not rows:
            return []
        drawn = self._draw(result, rows, [*firsts, len(rows)])
        self._reader = self._decoding.reader
        return [(span.sequence, self._keep(span, rows, drawn, i, result)) for span, i in zip(drawn_spans, firsts, strict=True)]

    def _draw(self, result: StepResult, rows: list[Row], bounds: list[int]) -> Drawn:
        """Draw all rows; if that fails, each span's alone, and -1 for those at fault. `bounds`: each span's rows."""
        try:
            return self._decoding.sampler.draw(result, rows)
        except Exception:
            _log.exception("drawing failed; each sequence is drawn from alone")
        drawn = Drawn([], [])
        for first, stop in pairwise(bounds):
            try:
                part = self._decoding.sampler.draw(result, rows[first:stop])
            except Exception:
                part = Drawn([-1] * (stop - first), [None] * (stop - first))
            drawn.tokens += part.tokens
            drawn.logprobs += part.logprobs
        return drawn

    def _split(self, seq: Sequence) -> list[Sequence]:
        """The sequences that draw from this row: the request's n, once their common prompt is computed."""
        group = self._ledger.groups[seq.request.id]
        if group.split:
            return [seq]
        group.split = True
        base = seq.seed
        members = [seq] + [self._ledger.fork(seq, mix(base, i)) for i in range(1, seq.request.sampling.n)]
        for member in members:
            if member.index in group.unwanted:
                self._ledger.close(member, Finish.CANCELLED)
        return [member for member in members if member.index not in group.unwanted]

    def _score_prompt(self, span: Span, result: StepResult, at: int) -> None:
        group = self._ledger.groups[span.sequence.request.id]
        if group.prompt_scores is None or len(span.logits) < span.count:
            return
        seq = span.sequence
        start = seq.todo[0][0]
        count = min(start + span.count, seq.prompt_length - 1) - start
        if count > 0:
            top = seq.request.sampling.prompt_logprobs or 0
            targets = seq.tokens[start + 1 : start + 1 + count]
            scores = self._decoding.sampler.score(result, range(at, at + count), targets, top)
            group.prompt_scores[start + 1 : start + 1 + count] = scores

    def _keep(self, span: Span, rows: list[Row], drawn: Drawn, first: int, result: StepResult) -> int:
        """Commit what was drawn of `result` for a span, at `rows[first]` and after; how many tokens it got."""
        seq = span.sequence
        if drawn.tokens[first] < 0:
            self._undrawable(seq)
            return 0
        accepted, draws = speculate.accept(span, drawn, first)
        tokens: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        finish: Finish | None = None
        for offset in draws:
            token = drawn.tokens[first + offset]
            if token < 0:
                break
            tokens.append(token)
            logprobs.append(drawn.logprobs[first + offset])
            finish = self._finish(seq, token, seq.output_length + len(tokens))
            if finish is not None:
                break
        if span.draft is not None:
            self._keep_kv(span, accepted[: len(tokens) - 1])
        began = seq.output_length == 0
        if seq.constraint is not None:
            # The row that gave the last token already stands after those before it.
            seq.constraint = rows[first + draws[len(tokens) - 1]].constraint
            try:
                if finish is not Finish.STOP:
                    seq.constraint.advance(tokens[-1])
            except Exception as failure:
                self._ledger.close(seq, Finish.ERROR, f"constraint: {failure}")
                return 0
        seq.commit(tokens)
        now = self._clock.now()
        if began:
            self._events.add(now, Kind.FIRST_TOKEN, seq.id)
            self._ledger.cache(seq)  # in the order of the spans, as whoever ends in this step is cached
            self._executor.attention.after_prefill(seq)
        self._events.add(now, Kind.TOKENS, seq.id, len(tokens))
        delta = TokenDelta(seq.request.id, seq.index, tokens, logprobs)
        if span.draft is not None:
            delta.drafted, delta.accepted = span.drafts, min(len(accepted), len(tokens))
            self._events.add(now, Kind.DRAFTED, seq.id, delta.drafted, delta.accepted)
            self.acceptance.add(speculate.depths(span.draft), delta.accepted)
        group = self._ledger.groups[seq.request.id]
        if began:
            delta.reused = group.reused
            delta.prompt_logprobs = group.prompt_scores if seq.index == 0 else None
        self._outbox.put(delta)
        if finish is not None:
            self._ledger.close(seq, finish)
        elif self._reader is not None:
            self._show(self._reader, seq, rows[first + draws[len(tokens) - 1]].logits_row, result)
        return len(tokens)

    @staticmethod
    def _show(reader: Reader, seq: Sequence, row: int, result: StepResult) -> None:
        """Let a proposer that reads the model see what the sequence's last token was drawn from."""
        try:
            reader.committed(seq, row, result)
        except Exception:  # a guess is never needed
            _log.exception("%s could not read the model", type(reader).__name__)

    def _undrawable(self, seq: Sequence) -> None:
        """No token could be drawn: end the sequence, and say why."""
        why = "the logits are not finite"
        if seq.constraint is not None:
            mask = np.zeros((self._executor.vocabulary + 31) // 32, dtype=np.int32)
            try:
                seq.constraint.fill(mask)
                if not mask.any() and seq.constraint.ended:  # and the model has no token that ends a text
                    self._ledger.close(seq, Finish.STOP)
                    return
                if not mask.any():
                    why = f"its constraint allows no token of this vocabulary after {seq.output_length} tokens of output"
            except Exception as failure:
                why = f"constraint: {failure}"
        self._ledger.close(seq, Finish.ERROR, f"its next token cannot be drawn: {why}")

    def _keep_kv(self, span: Span, accepted: list[int]) -> None:
        """Leave in the view the KV of the known tokens and the accepted drafts, moved together if they form a tree's path."""
        seq, books = span.sequence, self._ledger.books
        base = seq.view.length - span.drafts
        keep = len(accepted)
        if span.parents is None or accepted == list(range(keep)):
            self._ledger.truncate(seq, base + keep)
            return
        source = span.slots[[span.count - span.drafts + i for i in accepted]].tolist()
        self._ledger.truncate(seq, base)
        last = span.positions[span.count - span.drafts - 1]
        target = books.append(seq.view, np.arange(last + 1, last + 1 + keep, dtype=np.int32)).tolist()
        self._ledger.wait_for_readers()
        self._executor.move_slots(source, target)

    def _finish(self, seq: Sequence, token: int, produced: int) -> Finish | None:
        sampling = seq.request.sampling
        if token in sampling.stop_token_ids or (token in self._eos and not sampling.ignore_eos):
            return Finish.STOP
        return Finish.LENGTH if produced >= self.room(seq) else None

    def room(self, seq: Sequence) -> int:
        """Tokens of output at which a sequence ends by length."""
        most = self._longest + seq.saved - seq.prompt_length
        request = seq.request
        return min(most, request.sampling.max_tokens or most, request.ends_after or most)
