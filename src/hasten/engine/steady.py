"""Shortcuts of simulation: what the loop does step by step and token by token, done at once where the outcome is the same.

In a simulation most steps are alike: the same sequences get one token each until one of them ends, something arrives or a block
runs out. Such a stretch is computed at once, with the events, times and books that single steps would have given. Each policy
says for how long its answers hold (`scheduling.base.Steady`); one that does not is asked every step. In the steps between,
plain decodes need no arrays and no sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hasten.engine.clock import VirtualClock
from hasten.engine.events import Kind
from hasten.engine.executors.simulated import SimulatedExecutor, token_of
from hasten.engine.outputs import TokenDelta
from hasten.engine.scheduling import base as scheduling
from hasten.engine.scheduling.base import StepPlan, WorkKind
from hasten.engine.scheduling.planner import Planner
from hasten.engine.sequence import Finish, Sequence, Span

if TYPE_CHECKING:
    from hasten.engine.loop import Engine

Floats = npt.NDArray[np.float64]

_NONE = np.empty(0, dtype=np.int32)
_ONE_ROW = [0]


class Steady:
    def __init__(self, engine: Engine, policies: tuple[object, ...]) -> None:
        self._engine = engine
        self._policies = [p for p in policies if isinstance(p, scheduling.Steady)]
        decoding = engine.decoding
        self._plain = (
            isinstance(engine.executor, SimulatedExecutor)
            and decoding.constraint is None
            and decoding.proposer is None
            and decoding.controller is None
        )
        self._able = self._plain and len(self._policies) == len(policies)

    def run(self, plan: StepPlan, planner: Planner, until_s: float) -> bool:
        """Run `plan` as many times as it holds, beginning each step before `until_s`. False, with nothing done, when that is
        less than twice."""
        if not (self._able and plan.work and planner.untouched) or self._engine.ledger.moving:
            return False
        stretch = self._stretch(plan)
        if stretch is None:
            return False
        steps = min(stretch.longest, *(policy.steady(plan, planner) for policy in self._policies))
        steps = self._that_fit(stretch, int(steps))
        if steps < 2:
            return False
        times = self._times(stretch, steps)
        steps = min(steps, int(np.searchsorted(times[:-1], min(until_s, planner.holds_until_s), side="left")))
        if steps < 2:
            return False
        self._advance(stretch, times[: steps + 1])
        return True

    def _stretch(self, plan: StepPlan) -> _Stretch | None:
        """What `plan` runs, if all of it are plain decodes."""
        engine, pool = self._engine, self._engine.ledger.books.pool
        sequences, room, cached, longest = [], [], 0, 1 << 20
        for work in plan.work:
            seq = work.sequence
            last = seq.view.last_run()
            # A shared tail is copied first: a single step does that.
            if work.kind is not WorkKind.DECODE or not _plain(seq) or last is None or pool.refs[last[0]] > 1:
                return None
            sequences.append(seq)
            room.append(pool.block_size - last[1] - last[2])
            cached += seq.view.length + 1
            longest = min(longest, engine.committer.room(seq) - seq.output_length)
        return _Stretch(sequences, np.array(room), cached, longest)

    def spans(self, plan: StepPlan) -> list[Span]:
        """Bare spans of the plain decodes at the head of `plan`, with their KV accounted for; they are taken off the plan."""
        spans = []
        pool, books = self._engine.ledger.books.pool, self._engine.ledger.books
        for work in plan.work if self._plain else ():
            seq = work.sequence
            last = seq.view.last_run()
            if work.kind is not WorkKind.DECODE or not _plain(seq) or last is None or pool.refs[last[0]] > 1:
                break
            books.extend(seq.view, 1)
            spans.append(Span(seq, 1, _NONE, _NONE, _NONE, _NONE, logits=_ONE_ROW))
        plan.work = plan.work[len(spans) :]
        return spans

    def commit(self, spans: list[Span]) -> list[Span]:
        """Commit the bare spans at the head of `spans`; the others are returned."""
        engine = self._engine
        now = engine.clock.now()
        bare = next((i for i, span in enumerate(spans) if span.tokens is not _NONE), len(spans))
        unwritten: list[int] = []  # an event each; those before one that ends are written at once
        for span in spans[:bare]:
            seq = span.sequence
            seq.run_on(token_of(seq, engine.executor.vocabulary), 1)
            unwritten.append(seq.id)
            if seq.output_length >= engine.committer.room(seq):
                engine.events.add_each(now, Kind.TOKENS, unwritten, 1)
                unwritten = []
            self._deliver(seq, 1)
        engine.events.add_each(now, Kind.TOKENS, unwritten, 1)
        return spans[bare:]

    def _that_fit(self, stretch: _Stretch, steps: int) -> int:
        """The most steps, at most `steps`, whose new blocks can be had."""
        pool = self._engine.ledger.books.pool

        def blocks(count: int) -> int:
            return int((-(-np.maximum(count - stretch.room, 0) // pool.block_size)).sum())

        low = 0
        while low < steps and blocks(steps) > pool.available:
            middle = (low + steps) // 2
            low, steps = (middle, steps - 1) if blocks(middle) <= pool.available else (low, middle - 1)
        return steps

    def _times(self, stretch: _Stretch, steps: int) -> Floats:
        """When each step begins, and the last one ends: float64 [steps + 1], summed as the clock would."""
        executor = self._engine.executor
        assert isinstance(executor, SimulatedExecutor)
        seconds = executor.decode_run(len(stretch.sequences), stretch.cached, steps)
        return np.cumsum(np.concatenate([[self._engine.clock.now()], seconds]))

    def _advance(self, stretch: _Stretch, times: Floats) -> None:
        engine, books = self._engine, self._engine.ledger.books
        steps, rows = len(times) - 1, len(stretch.sequences)
        available = books.available
        taken = np.zeros((steps, rows), dtype=bool)
        for row, room in enumerate(stretch.room.tolist()):
            taken[room :: books.pool.block_size, row] = True
        done = [0] * rows
        for step, row in np.argwhere(taken).tolist():  # blocks are given in the order in which single steps ask for them
            books.extend(stretch.sequences[row].view, step + 1 - done[row])
            done[row] = step + 1
        for seq, so_far in zip(stretch.sequences, done, strict=True):
            if so_far < steps:
                books.extend(seq.view, steps - so_far)
            seq.run_on(token_of(seq, engine.executor.vocabulary), steps)
        free = available - np.cumsum(taken.sum(axis=1))
        assert free[-1] == books.available, "the books took other blocks than single steps would"
        ids = [seq.id for seq in stretch.sequences]
        ending = steps == stretch.longest
        engine.events.extend(_columns(np.array(ids), times[:-1] if ending else times, free, stretch.cached))
        assert isinstance(engine.clock, VirtualClock)
        engine.clock.advance_to(float(times[-2]))
        engine.ledger.settle()  # what was over when the last step began is over for those that end with it
        engine.clock.advance_to(float(times[-1]))
        if not ending:
            for seq in stretch.sequences:
                self._deliver(seq, steps)
            return
        # Whoever ends does so between the others' last events.
        began, now = times[-2:].tolist()
        engine.events.add_each(began, Kind.SCHEDULED, ids, 1)
        for seq in stretch.sequences:
            engine.events.add(now, Kind.TOKENS, seq.id, 1)
            self._deliver(seq, steps)
        read = stretch.cached + rows * (steps - 1)
        engine.events.add(now, Kind.STEP, -1, rows, now - began)
        engine.events.add(now, Kind.MEMORY, -1, books.available, rows)
        engine.events.add(now, Kind.READ, -1, read, read)

    def _deliver(self, seq: Sequence, count: int) -> None:
        """Hand out the last `count` tokens, and close the sequence if they complete it."""
        engine = self._engine
        tokens = [token_of(seq, engine.executor.vocabulary)] * count
        engine.outbox.put(TokenDelta(seq.request.id, seq.index, tokens, [None] * count))
        if seq.output_length >= engine.committer.room(seq):
            engine.ledger.close(seq, Finish.LENGTH)


@dataclass(slots=True)
class _Stretch:
    """Sequences that decode together. `room` int64 [n]: free slots of each one's last block. `cached`: tokens that the first
    step reads. `longest`: steps until one of them ends."""

    sequences: list[Sequence]
    room: npt.NDArray[np.int64]
    cached: int
    longest: int


def _plain(seq: Sequence) -> bool:
    return seq.decoding and seq.output_length > 0 and not seq.request.sampling.stop_token_ids


def _columns(ids: npt.NDArray[np.int64], times: Floats, free: npt.NDArray[np.int64], cached: int) -> dict[str, Any]:
    """Events of the steps that begin at times[:-1], as `EventLog.extend` takes them."""
    steps, rows = len(times) - 1, len(ids)
    width = 2 * rows + 3
    kind = np.empty((steps, width), dtype=np.int8)
    kind[:, :rows], kind[:, rows : 2 * rows] = Kind.SCHEDULED, Kind.TOKENS
    kind[:, 2 * rows :] = Kind.STEP, Kind.MEMORY, Kind.READ
    when = np.empty((steps, width))
    when[:, :rows], when[:, rows:] = times[:-1, None], times[1:, None]
    sequence = np.full((steps, width), -1, dtype=np.int64)
    sequence[:, :rows] = sequence[:, rows : 2 * rows] = ids
    a, b = np.ones((steps, width)), np.zeros((steps, width))
    read = cached + rows * np.arange(steps)
    a[:, -3], a[:, -2], a[:, -1] = rows, free[:steps], read
    b[:, -3], b[:, -2], b[:, -1] = np.diff(times), rows, read
    parts: dict[str, npt.NDArray[Any]] = {"time_s": when, "kind": kind, "sequence": sequence, "a": a, "b": b}
    return {name: part.ravel() for name, part in parts.items()}
