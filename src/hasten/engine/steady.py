"""Shortcuts of simulation: what the loop does step by step and token by token, done at once where the outcome is the same.

In a simulation most steps are alike: the same sequences get one token each until one of them ends, something arrives or a block
runs out. Such a stretch is computed at once, with the events, times and books that single steps would have given. Each policy
says for how long its answers hold (`scheduling.base.Steady`); one that does not is asked every step. In the steps between,
plain decodes need no arrays and no sampler.
"""

from __future__ import annotations

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
        self._able = (
            len(self._policies) == len(policies)
            and isinstance(engine.executor, SimulatedExecutor)
            and decoding.constraint is None
            and decoding.proposer is None
            and decoding.controller is None
        )

    def run(self, plan: StepPlan, planner: Planner, until_s: float) -> bool:
        """Run `plan` as many times as it holds, beginning each step before `until_s`. False, with nothing done, when that is
        less than twice."""
        if not (self._able and plan.work and planner.untouched) or self._engine.ledger.moving:
            return False
        if not all(work.kind is WorkKind.DECODE and _plain(work.sequence) for work in plan.work):
            return False
        sequences = [work.sequence for work in plan.work]
        steps = min(self._until_one_ends(sequences), min(policy.steady(plan, planner) for policy in self._policies))
        steps = self._that_fit(sequences, int(min(steps, 1 << 20)))
        if steps < 2:
            return False
        times = self._times(sequences, steps)
        steps = min(steps, int(np.searchsorted(times[:-1], until_s, side="left")))
        if steps < 2:
            return False
        self._advance(sequences, times[: steps + 1])
        return True

    def spans(self, plan: StepPlan) -> list[Span]:
        """Bare spans of the plain decodes at the head of `plan`, with their KV accounted for; they are taken off the plan."""
        spans = []
        pool, books = self._engine.ledger.books.pool, self._engine.ledger.books
        for work in plan.work if self._able else ():
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
        for span in spans[:bare]:
            seq = span.sequence
            token = token_of(seq, engine.executor.vocabulary)
            seq.run_on(token, 1)
            engine.events.add(now, Kind.TOKENS, seq.id, 1)
            engine.deliver(TokenDelta(seq.request.id, seq.index, [token], [None]))
            if seq.output_length >= engine.room(seq):
                engine.ledger.close(seq, Finish.LENGTH)
        return spans[bare:]

    def _until_one_ends(self, sequences: list[Sequence]) -> int:
        return min(self._engine.room(seq) - seq.output_length for seq in sequences)

    def _that_fit(self, sequences: list[Sequence], steps: int) -> int:
        """The most steps, at most `steps`, whose new blocks can be had."""
        pool = self._engine.ledger.books.pool
        rooms = []
        for seq in sequences:
            last = seq.view.last_run()
            if last is None or pool.refs[last[0]] > 1:
                return 0  # the tail is shared and will be copied: a single step does that
            rooms.append(pool.block_size - last[1] - last[2])
        room = np.array(rooms)

        def blocks(count: int) -> int:
            return int((-(-np.maximum(count - room, 0) // pool.block_size)).sum())

        if blocks(steps) <= pool.available:
            return steps
        low = 0
        while low < steps:  # the least count that does not fit, less one
            middle = (low + steps + 1) // 2
            low, steps = (middle, steps) if blocks(middle) <= pool.available else (low, middle - 1)
        return low

    def _times(self, sequences: list[Sequence], steps: int) -> Floats:
        """When each step begins, and the last one ends: float64 [steps + 1], summed as the clock would."""
        executor = self._engine.executor
        assert isinstance(executor, SimulatedExecutor)
        cached = sum(seq.view.length + 1 for seq in sequences)
        seconds = executor.decode_run(len(sequences), cached, steps)
        return np.cumsum(np.concatenate([[self._engine.clock.now()], seconds]))

    def _advance(self, sequences: list[Sequence], times: Floats) -> None:
        engine, books = self._engine, self._engine.ledger.books
        steps, rows = len(times) - 1, len(sequences)
        cached = sum(seq.view.length + 1 for seq in sequences)
        available = books.available
        fresh = np.zeros(steps, dtype=np.int64)
        """Blocks taken in each step."""
        for seq in sequences:
            last = seq.view.last_run()
            assert last is not None
            fresh[books.pool.block_size - last[1] - last[2] :: books.pool.block_size] += 1
            books.extend(seq.view, steps)
            seq.run_on(token_of(seq, engine.executor.vocabulary), steps)
        free = available - np.cumsum(fresh)
        assert free[-1] == books.available, "the books took other blocks than single steps would"
        ids = np.array([seq.id for seq in sequences], dtype=np.int64)
        ending = any(seq.output_length >= engine.room(seq) for seq in sequences)
        engine.events.extend(_columns(ids, times[:-1] if ending else times, free, cached))
        assert isinstance(engine.clock, VirtualClock)
        engine.clock.advance_to(float(times[-1]))
        began, now = times[-2:].tolist()
        if ending:
            for seq in sequences:
                engine.events.add(began, Kind.SCHEDULED, seq.id, 1)
        for seq in sequences:
            if ending:
                engine.events.add(now, Kind.TOKENS, seq.id, 1)
            tokens = [token_of(seq, engine.executor.vocabulary)] * steps
            engine.deliver(TokenDelta(seq.request.id, seq.index, tokens, [None] * steps))
            if seq.output_length >= engine.room(seq):
                engine.ledger.close(seq, Finish.LENGTH)
        if ending:
            read = cached + rows * (steps - 1)
            engine.events.add(now, Kind.STEP, -1, rows, now - began)
            engine.events.add(now, Kind.MEMORY, -1, books.available, rows)
            engine.events.add(now, Kind.READ, -1, read, read)


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
