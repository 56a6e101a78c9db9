"""The engine: one loop, one step at a time. Intake, plan, draft, execute, commit, settle.

It asks the clock for the time and the executor for the work and knows nothing else of either: the same loop serves a real
model and a simulation. One loop runs one lane; several lanes may share a `Memory`, whose lock guards the books. `add` and
`cancel` may be called from any thread, `step` from one.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np

from hasten.engine import speculate
from hasten.engine.batch import Batch, BatchBuilder
from hasten.engine.clock import Clock
from hasten.engine.decoding.base import Drawn, Policies, Row, TokenLogprobs
from hasten.engine.events import EventLog, Kind
from hasten.engine.executors.base import Executor, StepResult
from hasten.engine.executors.cost import StepShape, shape_of_spans
from hasten.engine.ledger import Ledger
from hasten.engine.outputs import QueueFull, TokenDelta
from hasten.engine.request import BadRequest, Request
from hasten.engine.rng import mix
from hasten.engine.scheduling.base import Batching, Hint, Lengths, Limits, Order, Residency, StepPlan
from hasten.engine.scheduling.planner import Planner
from hasten.engine.sequence import Finish, Sequence, Span, State
from hasten.engine.spans import SpanMaker
from hasten.engine.steady import Steady

_log = logging.getLogger(__name__)


class Engine:
    def __init__(
        self,
        *,
        executor: Executor,
        ledger: Ledger,
        lock: Any,
        clock: Clock,
        events: EventLog,
        order: Order,
        batching: Batching,
        residency: Residency,
        lengths: Lengths,
        decoding: Policies,
        limits: Limits,
        max_length: int,
        eos: frozenset[int] = frozenset(),
        queue_limit: int | None = None,
        build_batch: Callable[[list[Span]], Batch] | None = None,
        steady: bool = False,
    ) -> None:
        """`steady`: advance steps that no policy can change together; for executors on a virtual clock."""
        self.executor = executor
        self.ledger = ledger
        self.clock = clock
        self.events = events
        self.decoding = decoding
        self.max_length = max_length
        self._planner = Planner(ledger, executor, limits, order, batching, residency, lengths, decoding.proposer, max_length)
        self._spans = SpanMaker(ledger, decoding.proposer)
        self._lock = lock
        self._build_batch = build_batch if build_batch is not None else BatchBuilder().build
        self._steady = Steady(self, (order, batching, residency)) if steady else None
        self._eos = eos
        pool = ledger.books.pool
        # The last token's own KV is never needed, so a sequence may be one token longer than the pool.
        self._longest = min(max_length, pool.blocks * pool.block_size + 1)
        self._queue_limit = queue_limit
        self._inbox: deque[Request | tuple[str, int | None, Finish]] = deque()
        self._open: set[str] = set()
        self._compiling: set[str] = set()
        """Accepted requests whose constraints are being compiled; each joins the inbox after."""
        self._out: list[TokenDelta] = []
        self._last: StepResult | None = None
        ledger.on_close = self._closed

    @property
    def last_seconds(self) -> dict[str, float]:
        """Parts of the last step, in seconds, when the executor profiles."""
        return self._last.seconds if self._last is not None else {}

    def on_hint(self, receiver: Callable[[Hint], None]) -> None:
        """Tell `receiver` what the order expects to be needed outside the engine (from within `step`)."""
        self._planner.on_hint = receiver

    # -- intake ---------------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Accept a request, or raise BadRequest or QueueFull; nothing has changed then."""
        self._validate(request)
        compiling = None
        if request.sampling.constraint is not None:
            assert self.decoding.constraint is not None, "it was validated"
            compiling = self.decoding.constraint.prepare(request)
        with self._lock:
            if request.id in self._open:
                raise BadRequest(f"a request with id {request.id!r} is already running", "id")
            if self._queue_limit is not None and len(self._open) >= self._queue_limit:
                raise QueueFull(f"{len(self._open)} requests are unfinished, the limit is {self._queue_limit}")
            self._open.add(request.id)
            if compiling is None:
                self._inbox.append(request)
                return
            self._compiling.add(request.id)
            if request.arrival_s is None:
                request = replace(request, arrival_s=self.clock.now())
        compiling.add_done_callback(lambda _: self._inbox.append(request))

    def cancel(self, request_id: str, index: int | None = None, reason: Finish = Finish.CANCELLED) -> None:
        """End a request, or one of its sequences, as soon as possible; unknown and finished ones are ignored. `reason` STOP:
        it has said all it should (a stop string)."""
        self._inbox.append((request_id, index, reason))

    @property
    def unfinished(self) -> int:
        return len(self._open)

    def stats(self) -> dict[str, float]:
        """Counters since the start, and the state now, for metrics and consoles."""
        counts, sums = self.events.counts, self.events.sums
        states = [seq.state for seq in list(self.ledger.sequences.values())]
        return {
            "running": states.count(State.RUNNING),
            "waiting": states.count(State.WAITING) + sum(isinstance(item, Request) for item in list(self._inbox)),
            "swapped": sum(states.count(s) for s in (State.LEAVING, State.SWAPPED, State.LOADING)),
            "free_blocks": self.ledger.books.available,
            "total_blocks": self.ledger.books.pool.blocks,
            "steps_total": counts[Kind.STEP],
            "tokens_total": sums[Kind.TOKENS],
            "prompt_tokens_total": sums[Kind.ARRIVED],
            "prefix_hit_tokens": sums[Kind.REUSED],
            "preempted_total": counts[Kind.PREEMPTED] + counts[Kind.SWAPPED],
            "drafted_total": sums[Kind.DRAFTED],
            "finished_total": counts[Kind.FINISHED],
            "failed_total": counts[Kind.FAILED],
        }

    def _validate(self, request: Request) -> None:
        sampling, vocabulary = request.sampling, self.executor.vocabulary
        length = len(request.prompt)
        pool = self.ledger.books.pool
        if length >= self.max_length:
            raise BadRequest(
                f"the prompt has {length} tokens and the context holds {self.max_length}, one at least for output", "prompt"
            )
        if -(-(length + 1) // pool.block_size) > pool.blocks:
            raise BadRequest(f"the prompt has {length} tokens, more than the KV memory holds", "prompt")
        if int(request.prompt.max()) >= vocabulary:
            raise BadRequest(f"the prompt holds a token id beyond the vocabulary of {vocabulary}", "prompt")
        for name, tokens in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            if any(token >= vocabulary for token in tokens):
                raise BadRequest(f"{name} names a token id beyond the vocabulary of {vocabulary}", name)
        if request.adapter is not None:
            raise BadRequest(f"no adapter is called {request.adapter!r}", "adapter")
        if sampling.constraint is not None and self.decoding.constraint is None:
            raise BadRequest("this engine runs without a constraint policy", "constraint")
        if sampling.constraint is not None and sampling.ignore_eos:
            raise BadRequest("ignore_eos and a constraint cannot go together: its text ends where it must", "ignore_eos")

    def _intake(self) -> None:
        early: list[tuple[str, int | None, Finish]] = []
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, tuple):
                if item[0] in self._compiling:
                    early.append(item)
                else:
                    self.ledger.cancel(*item)
                continue
            self._compiling.discard(item.id)
            seed = item.sampling.seed
            seq = self.ledger.admit(item, secrets.randbits(64) if seed is None else seed)
            if self.decoding.constraint is not None and item.sampling.constraint is not None:
                try:
                    seq.constraint = self.decoding.constraint.start(item)
                except Exception as failure:  # a bad grammar ends its own request only
                    self.ledger.close(seq, Finish.ERROR, f"constraint: {failure}")
        self._inbox.extend(early)

    # -- the step -------------------------------------------------------------------------------------------------------

    def step(self, until_s: float = inf) -> list[TokenDelta]:
        """Run one step; what became of the requests. Empty when there was nothing to do. Before `until_s`, engine time, the
        caller has nothing new to hand over: an engine on a virtual clock may run several steps that begin before it."""
        began, waited_s = self.clock.now(), self.ledger.waited_s
        with self._lock:
            self._intake()
            self.ledger.settle()
            plan = self._planner.plan()
            together = self._steady is not None and self._steady.run(plan, self._planner, until_s)
            spans = self._steady.spans(plan) if self._steady is not None and not together else []
            spans += self._spans.make(plan, self._last) if not together else []
        if spans:
            shape = shape_of_spans(spans)
            runs = self._execute(spans)
            with self._lock:
                for done, result in runs:
                    self._commit(done, result)
                self.ledger.settle()
                self._measured(shape, began, self.ledger.waited_s - waited_s)
        elif not together:
            self._nothing_planned(plan, began, until_s)
        out, self._out = self._out, []
        return out

    def run(self) -> list[TokenDelta]:
        """Step until every request is finished."""
        out = []
        while self._open:
            out += self.step()
        return out

    def _nothing_planned(self, plan: StepPlan, began: float, until_s: float) -> None:
        with self._lock:
            if self.ledger.settle(wait=True) or self._out or self._planner.moved:
                return
            if not self.ledger.sequences:
                if self._compiling:
                    self.clock.wait(began + 1e-3, lambda: any(isinstance(item, Request) for item in list(self._inbox)))
                return
            # Held against when planning began: since then a real clock may have passed it.
            waits = plan.replan_at is not None and plan.replan_at > began
            if not waits:
                stuck = next(iter(self.ledger.sequences.values()))
                self.ledger.close(stuck, Finish.ERROR, "it needs more KV memory than the engine can free")
        if waits:  # the policy holds its sequences back on purpose
            assert plan.replan_at is not None
            self.clock.wait(min(plan.replan_at, until_s), lambda: bool(self._inbox))

    def _execute(self, spans: list[Span]) -> list[tuple[list[Span], StepResult]]:
        """Run the spans as one batch. If that fails, run each alone, so that only those at fault end."""
        self.ledger.wait_for_readers()
        now = self.clock.now()
        decodes = next((i for i, span in enumerate(spans) if span.count > 1), len(spans))
        self.events.add_each(now, Kind.SCHEDULED, [span.sequence.id for span in spans[:decodes]], 1)
        for span in spans[decodes:]:
            self.events.add(now, Kind.SCHEDULED, span.sequence.id, span.count - span.drafts, span.drafts)
        controller = self.decoding.controller
        taps = controller.taps if controller is not None else frozenset()
        self.executor.copy_blocks(self.ledger.books.take_copies())
        try:
            return [(spans, self.executor.submit(self._build_batch(spans), taps).wait())]
        except Exception:
            return [run for span in spans for run in self._execute_alone(span, taps)]

    def _execute_alone(self, span: Span, taps: frozenset[int]) -> list[tuple[list[Span], StepResult]]:
        try:
            return [([span], self.executor.submit(self._build_batch([span]), taps).wait())]
        except Exception as failure:
            with self._lock:
                self.ledger.close(span.sequence, Finish.ERROR, f"{type(failure).__name__}: {failure}")
            return []

    # -- commit ---------------------------------------------------------------------------------------------------------

    def _commit(self, spans: list[Span], result: StepResult) -> None:
        if self._steady is not None:
            spans = self._steady.commit(spans)
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
        self._last = result
        if not rows:
            return
        drawn = self._draw(result, rows, [*firsts, len(rows)])
        committed = []
        for span, first in zip(drawn_spans, firsts, strict=True):
            committed.append((span.sequence, self._keep(span, rows, drawn, first)))
        if self.decoding.controller is not None:
            self.decoding.controller.on_commit(committed, result, self)

    def _draw(self, result: StepResult, rows: list[Row], bounds: list[int]) -> Drawn:
        """Draw all rows; if that fails, each span's alone, and -1 for those at fault. `bounds`: each span's rows."""
        try:
            return self.decoding.sampler.draw(result, rows)
        except Exception:
            _log.exception("drawing failed; each sequence is drawn from alone")
        drawn = Drawn([], [])
        for first, stop in pairwise(bounds):
            try:
                part = self.decoding.sampler.draw(result, rows[first:stop])
            except Exception:
                part = Drawn([-1] * (stop - first), [None] * (stop - first))
            drawn.tokens += part.tokens
            drawn.logprobs += part.logprobs
        return drawn

    def _split(self, seq: Sequence) -> list[Sequence]:
        """The sequences that draw from this row: the request's n, once their common prompt is computed."""
        group = self.ledger.groups[seq.request.id]
        if group.split:
            return [seq]
        group.split = True
        self.ledger.cache(seq)
        base = seq.seed
        members = [seq] + [self.ledger.fork(seq, mix(base, i)) for i in range(1, seq.request.sampling.n)]
        for member in members:
            if member.index in group.unwanted:
                self.ledger.close(member, Finish.CANCELLED)
        return [member for member in members if member.index not in group.unwanted]

    def _score_prompt(self, span: Span, result: StepResult, at: int) -> None:
        group = self.ledger.groups[span.sequence.request.id]
        if group.prompt_scores is None or len(span.logits) < span.count:
            return
        seq = span.sequence
        start = seq.todo[0][0]
        count = min(start + span.count, seq.prompt_length - 1) - start
        if count > 0:
            top = seq.request.sampling.prompt_logprobs or 0
            targets = seq.tokens[start + 1 : start + 1 + count]
            scores = self.decoding.sampler.score(result, range(at, at + count), targets, top)
            group.prompt_scores[start + 1 : start + 1 + count] = scores

    def _keep(self, span: Span, rows: list[Row], drawn: Drawn, first: int) -> int:
        """Commit what was drawn for a span, at `rows[first]` and after; how many tokens it got."""
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
                self.ledger.close(seq, Finish.ERROR, f"constraint: {failure}")
                return 0
        seq.commit(tokens)
        now = self.clock.now()
        if began:
            self.events.add(now, Kind.FIRST_TOKEN, seq.id)
            self.executor.attention.after_prefill(seq)
        self.events.add(now, Kind.TOKENS, seq.id, len(tokens))
        if span.draft is not None:
            self.events.add(now, Kind.DRAFTED, seq.id, span.drafts, len(accepted))
        delta = TokenDelta(seq.request.id, seq.index, tokens, logprobs)
        group = self.ledger.groups[seq.request.id]
        if began:
            delta.reused = group.reused
            delta.prompt_logprobs = group.prompt_scores if seq.index == 0 else None
        self._out.append(delta)
        if finish is not None:
            self.ledger.close(seq, finish)
        return len(tokens)

    def _undrawable(self, seq: Sequence) -> None:
        """No token could be drawn: end the sequence, and say why."""
        why = "the logits are not finite"
        if seq.constraint is not None:
            mask = np.zeros((self.executor.vocabulary + 31) // 32, dtype=np.int32)
            try:
                seq.constraint.fill(mask)
                if not mask.any() and seq.constraint.ended:  # and the model has no token that ends a text
                    self.ledger.close(seq, Finish.STOP)
                    return
                if not mask.any():
                    why = f"its constraint allows no token of this vocabulary after {seq.output_length} tokens of output"
            except Exception as failure:
                why = f"constraint: {failure}"
        self.ledger.close(seq, Finish.ERROR, f"its next token cannot be drawn: {why}")

    def _keep_kv(self, span: Span, accepted: list[int]) -> None:
        """Leave in the view the KV of the known tokens and the accepted drafts, moved together if they form a tree's path."""
        seq, books = span.sequence, self.ledger.books
        base = seq.view.length - span.drafts
        keep = len(accepted)
        if span.parents is None or accepted == list(range(keep)):
            self.ledger.truncate(seq, base + keep)
            return
        source = span.slots[[span.count - span.drafts + i for i in accepted]].tolist()
        self.ledger.truncate(seq, base)
        last = span.positions[span.count - span.drafts - 1]
        target = books.append(seq.view, np.arange(last + 1, last + 1 + keep, dtype=np.int32)).tolist()
        self.ledger.wait_for_readers()
        self.executor.move_slots(source, target)

    # -- what a controller may do (decoding.base.Actions) -----------------------------------------------------------------

    def fork(self, sequence: Sequence, count: int) -> list[Sequence]:
        if sequence.state is not State.RUNNING:
            raise ValueError(f"{sequence} cannot be forked: it is not running")
        first = len(self.ledger.groups[sequence.request.id].sequences)
        return [self.ledger.fork(sequence, mix(sequence.seed, first + i)) for i in range(count)]

    def inject(self, sequence: Sequence, tokens: Seq[int]) -> None:
        if sequence.state is not State.RUNNING:
            raise ValueError(f"{sequence} takes no tokens: it is not running")
        for token in tokens:
            if sequence.constraint is not None:
                sequence.constraint.advance(token)
            sequence.append(token)
        self._out.append(TokenDelta(sequence.request.id, sequence.index, list(tokens), [None] * len(tokens)))
        if sequence.length >= self.max_length:
            self.ledger.close(sequence, Finish.LENGTH)

    def join(self, sequences: Seq[Sequence], tokens: Seq[int]) -> Sequence:
        first = sequences[0]
        if first.constraint is not None:
            raise ValueError(f"{first} cannot be joined: a grammar follows one text")
        group = self.ledger.groups.get(first.request.id)
        child = self.ledger.join(sequences, tokens, mix(first.seed, len(group.sequences) if group is not None else 0))
        self._out.append(TokenDelta(child.request.id, child.index, list(tokens), [None] * len(tokens)))
        return child

    def finish(self, sequence: Sequence, reason: Finish = Finish.STOP) -> None:
        self.ledger.close(sequence, reason)

    def _finish(self, seq: Sequence, token: int, produced: int) -> Finish | None:
        sampling = seq.request.sampling
        if token in sampling.stop_token_ids or (token in self._eos and not sampling.ignore_eos):
            return Finish.STOP
        return Finish.LENGTH if produced >= self.room(seq) else None

    def room(self, seq: Sequence) -> int:
        """Tokens of output at which a sequence ends by length."""
        most = self._longest - seq.prompt_length
        asked = seq.request.sampling.max_tokens
        return most if asked is None else min(asked, most)

    def deliver(self, delta: TokenDelta) -> None:
        """Hand out a delta with this step's others."""
        self._out.append(delta)

    def _closed(self, seq: Sequence, error: str | None) -> None:
        assert seq.finish is not None
        group = self.ledger.groups[seq.request.id]
        n = seq.request.sampling.n
        indices = [seq.index] if group.split or n == 1 else list(range(n))
        for index in indices:
            last = self._out[-1] if self._out else None
            if last is not None and last.request_id == seq.request.id and last.index == index and last.finish is None:
                last.finish, last.error = seq.finish.name.lower(), error
            else:
                self._out.append(TokenDelta(seq.request.id, index, [], finish=seq.finish.name.lower(), error=error))
        if all(s.finish is not None for s in group.sequences):
            self._open.discard(seq.request.id)
            self._out[-1].last = True

    def _measured(self, shape: StepShape, began: float, waited_s: float) -> None:
        now = self.clock.now()
        self.events.add(now, Kind.STEP, -1, shape.tokens, now - began)
        self.events.add(now, Kind.MEMORY, -1, self.ledger.books.available, shape.rows)
        self.events.add(now, Kind.READ, -1, shape.cached, shape.pairs)
        self.executor.measured(shape, now - began - waited_s)  # what waiting for transfers took says nothing of the shape
        self.executor.attention.after_step()
