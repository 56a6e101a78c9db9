"""The engine: one loop, one step at a time. Intake, plan, draft, execute, commit, settle.

It asks the clock for the time and the executor for the work and knows nothing else of either: the same loop serves a real
model and a simulation. One loop runs one lane; several lanes may share a `Memory`, whose lock guards the books. `add` and
`cancel` may be called from any thread, `step` from one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import Any

from hasten.engine.batch import Batch, BatchBuilder
from hasten.engine.checks import check
from hasten.engine.clock import Clock
from hasten.engine.commit import Committer
from hasten.engine.control import Control
from hasten.engine.decoding.base import Governor, Policies
from hasten.engine.events import EventLog, Kind
from hasten.engine.executors.base import Executor, StepResult
from hasten.engine.executors.cost import StepShape, shape_of_spans
from hasten.engine.inbox import Inbox
from hasten.engine.kv.base import Tiered
from hasten.engine.ledger import Ledger
from hasten.engine.outbox import Outbox
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import Request
from hasten.engine.scheduling.base import Batching, Hint, Lengths, Limits, Order, Residency, StepPlan
from hasten.engine.scheduling.planner import Planner
from hasten.engine.sequence import Finish, Span, State
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
        patience_s: float | None = None,
        build_batch: Callable[[list[Span]], Batch] | None = None,
        steady: bool = False,
    ) -> None:
        """`steady`: advance steps that no policy can change together; for executors on a virtual clock."""
        self.executor = executor
        self.ledger = ledger
        self.clock = clock
        self.events = events
        self.decoding = decoding
        self.lengths = lengths
        self.max_length = max_length
        self._planner = Planner(
            ledger,
            executor,
            limits,
            order,
            batching,
            residency,
            lengths,
            decoding.proposer,
            decoding.governor,
            max_length,
            patience_s,
        )
        self._spans = SpanMaker(ledger, decoding.proposer)
        self._lock = lock
        self._build_batch = build_batch if build_batch is not None else BatchBuilder().build
        pool = ledger.books.pool
        # The last token's own KV is never needed, so a sequence may be one token longer than the pool.
        longest = min(max_length, pool.blocks * pool.block_size + 1)
        self._inbox = Inbox(lock, clock, decoding.constraint, queue_limit)
        self.outbox = Outbox(ledger, self._inbox)
        self.committer = Committer(ledger, self.outbox, executor, decoding, clock, events, longest, eos)
        self.control = Control(ledger, self.outbox, max_length)
        self._steady = Steady(self, (order, batching, residency)) if steady else None
        self._last: StepResult | None = None
        self.skipped = 0
        """Layers that rows did not go through because they left their step, summed over the rows, so far."""

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
        linker, constrains = self.ledger.linker, self.decoding.constraint is not None
        saved = linker.saves(request) if linker is not None else 0
        check(request, self.ledger.books.pool, self.max_length, self.executor.vocabulary, constrains, saved)
        self._inbox.put(request)

    def cancel(self, request_id: str, index: int | None = None, reason: Finish = Finish.CANCELLED) -> None:
        """End a request, or one of its sequences, as soon as possible; unknown and finished ones are ignored. `reason` STOP:
        it has said all it should (a stop string)."""
        self._inbox.cancel(request_id, index, reason)

    @property
    def unfinished(self) -> int:
        return self._inbox.unfinished

    def stats(self) -> dict[str, Any]:
        """Counters since the start, and the state now, for metrics and consoles. Lists are of depths of drafts."""
        counts, sums = self.events.counts, self.events.sums
        reuse = self.ledger.books.reuse
        states = [seq.state for seq in list(self.ledger.sequences.values())]
        return {
            "running": states.count(State.RUNNING),
            "waiting": states.count(State.WAITING) + self._inbox.requests + self._inbox.compiling,
            "swapped": sum(states.count(s) for s in (State.LEAVING, State.SWAPPED, State.LOADING)),
            "free_blocks": self.ledger.books.available,
            "total_blocks": self.ledger.books.pool.blocks,
            "steps_total": counts[Kind.STEP],
            "planning_seconds_total": self._planner.seconds,
            "tokens_total": sums[Kind.TOKENS],
            "prompt_tokens_total": sums[Kind.ARRIVED],
            "prefix_hit_tokens": sums[Kind.REUSED],
            "preempted_total": counts[Kind.PREEMPTED] + counts[Kind.SWAPPED],
            "drafted_total": sums[Kind.DRAFTED],
            "drafted_by_depth": self.committer.acceptance.drafted.tolist(),
            "accepted_by_depth": self.committer.acceptance.accepted.tolist(),
            "row_layers_skipped_total": self.skipped,
            "finished_total": counts[Kind.FINISHED],
            "failed_total": counts[Kind.FAILED],
            **(reuse.counts() if isinstance(reuse, Tiered) else {}),
            **(self.ledger.linker.counts() if self.ledger.linker is not None else {}),
        }

    # -- the step -------------------------------------------------------------------------------------------------------

    def step(self, until_s: float = inf) -> list[TokenDelta]:
        """Run one step; what became of the requests. Empty when there was nothing to do. Before `until_s`, engine time, the
        caller has nothing new to hand over: an engine on a virtual clock may run several steps that begin before it."""
        began, waited_s = self.clock.now(), self.ledger.waited_s
        with self._lock:
            self._inbox.empty_into(self.ledger)
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
        return self.outbox.take()

    def run(self) -> list[TokenDelta]:
        """Step until every request is finished."""
        out = []
        while self.unfinished:
            out += self.step()
        return out

    def tend(self) -> bool:
        """Between requests: let transfers that are over be followed by what comes after them, as writing to disk does; whether
        any is still under way."""
        with self._lock:
            self.ledger.settle()
            return self.ledger.moving

    def _nothing_planned(self, plan: StepPlan, began: float, until_s: float) -> None:
        with self._lock:
            loading = bool(self.ledger.loads)
            if (loading and self._planner.moved) or (not loading and self.ledger.settle(wait=True)):
                return
            if self.outbox or self._planner.moved:
                return
            if not loading and not self.ledger.sequences:
                if self._inbox.compiling:
                    self.clock.wait(began + 1e-3, lambda: self._inbox.requests > 0)
                return
            # Held against when planning began: since then a real clock may have passed it.
            held = plan.replan_at is not None and plan.replan_at > began
            if not held and not loading:
                stuck = next(iter(self.ledger.sequences.values()))
                self.ledger.close(stuck, Finish.ERROR, "it needs more KV memory than the engine can free")
                return
        looks_s = [until_s]
        if plan.replan_at is not None and held:  # the policy holds its sequences back on purpose
            looks_s.append(plan.replan_at)
        if loading:  # somebody else may come before it is here
            looks_s.append(self.ledger.ends_s)
        self.clock.wait(min(looks_s), lambda: len(self._inbox) > 0 or (loading and self.ledger.stirs()))

    def _execute(self, spans: list[Span]) -> list[tuple[list[Span], StepResult]]:
        """Run the spans as one batch. If that fails, run each alone, so that only those at fault end."""
        self.ledger.wait_for_readers()
        now = self.clock.now()
        decodes = next((i for i, span in enumerate(spans) if span.count > 1), len(spans))
        self.events.add_each(now, Kind.SCHEDULED, [span.sequence.id for span in spans[:decodes]], 1)
        for span in spans[decodes:]:
            self.events.add(now, Kind.SCHEDULED, span.sequence.id, span.count - span.drafts, span.drafts)
        taps = self.decoding.taps
        if self.ledger.books.shifts:
            with self._lock:
                self.ledger.books.shift(self.executor.shift_blocks)
        self.executor.copy_blocks(self.ledger.books.take_copies())
        try:
            return [(spans, self.executor.submit(self._build_batch(spans), taps).wait())]
        except Exception:
            runs = [run for span in spans for run in self._execute_alone(span, taps)]
            return [run for run in runs if run[0][0].sequence.state is not State.FINISHED]  # a later span of it failed

    def _execute_alone(self, span: Span, taps: frozenset[int]) -> list[tuple[list[Span], StepResult]]:
        if span.sequence.state is State.FINISHED:  # an earlier span of it has failed
            return []
        try:
            return [([span], self.executor.submit(self._build_batch([span]), taps).wait())]
        except Exception as failure:
            with self._lock:
                self.ledger.close(span.sequence, Finish.ERROR, f"{type(failure).__name__}: {failure}")
            return []

    def _commit(self, spans: list[Span], result: StepResult) -> None:
        if self._steady is not None:
            spans = self._steady.commit(spans)
        self._last = result
        self.skipped += result.skipped
        if result.mass is not None and self.ledger.linker is not None:
            self.ledger.linker.measured(spans, result.mass)
        committed = self.committer.commit(spans, result)
        if committed and self.decoding.controller is not None:
            self.decoding.controller.on_commit(committed, result, self.control)

    def _measured(self, shape: StepShape, began: float, waited_s: float) -> None:
        now = self.clock.now()
        self.events.add(now, Kind.STEP, -1, shape.tokens, now - began)
        self.events.add(now, Kind.MEMORY, -1, self.ledger.books.available, shape.rows)
        self.events.add(now, Kind.READ, -1, shape.cached, shape.pairs)
        # What waiting for transfers and drafting took says nothing of the shape.
        seconds = now - began - waited_s - self._spans.drafting_s
        self.executor.measured(shape, seconds)
        if self.decoding.governor is not None:
            self._govern(self.decoding.governor, shape, seconds)
        self.executor.attention.after_step()

    def _govern(self, governor: Governor, shape: StepShape, seconds: float) -> None:
        try:
            governor.measured(shape, seconds, self._spans.drafting_s)
        except Exception:
            _log.exception("the governor could not learn from a step")
