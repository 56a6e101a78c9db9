"""The planner: asks the three scheduling policies and makes their answers safe to run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.executors.cost import StepShape, shape_of_plan
from hasten.engine.scheduling.ageing import Ageing
from hasten.engine.scheduling.base import (
    Ahead,
    Batching,
    Direction,
    Hint,
    Learner,
    Lengths,
    Limits,
    Order,
    Prewarms,
    Residency,
    StepPlan,
    Transfer,
    Work,
    WorkKind,
    check,
    rank,
)
from hasten.engine.scheduling.draft_budget import DraftBudget
from hasten.engine.scheduling.ranking import Ranking
from hasten.engine.scheduling.workflows import Workflow, Workflows
from hasten.engine.sequence import Finish, Sequence, State

if TYPE_CHECKING:
    from hasten.engine.decoding.base import Governor, Proposer
    from hasten.engine.executors.base import Executor
    from hasten.engine.ledger import Ledger

_log = logging.getLogger(__name__)

_ROUNDS = 4
"""How often the residency is asked again in one step while its transfers do not free enough."""


class Planner:
    """Implements `scheduling.base.View` for the policies and gives the loop a plan that fits."""

    def __init__(
        self,
        ledger: Ledger,
        executor: Executor,
        limits: Limits,
        order: Order,
        batching: Batching,
        residency: Residency,
        lengths: Lengths,
        proposer: Proposer | None,
        governor: Governor | None,
        max_length: int,
        patience_s: float | None = None,
    ) -> None:
        """`patience_s`: see `Ageing`; None: whoever the order puts last may wait for ever."""
        self._ledger = ledger
        self._executor = executor
        self._limits = limits
        self._order = order
        self._batching = batching
        self._residency = residency
        self._lengths = lengths
        self._drafts = DraftBudget(proposer, governor)
        self._max_length = max_length
        self._ageing = Ageing(patience_s) if patience_s is not None else None
        self._workflows = Workflows()
        self.on_hint: Callable[[Hint], None] = lambda hint: None
        """Gets what the order says will be needed outside the engine."""
        self._ranking = Ranking()
        self._keyed_at = -np.inf
        self._fault: str | None = None
        self.seconds = 0.0
        """Time that planning and its policies' learning have taken, by the processor's clock."""
        self.untouched = True
        """The last plan is what the batching composed: nobody was moved, rejected or left out after it had answered."""
        self.moved = False
        """The last plan moved some sequence's KV, began to fetch it, or dropped it."""
        ledger.rank = self._rank
        ledger.events.subscribe(self._follow, Workflows.KINDS)
        ledger.events.subscribe(lambda event: self._ranking.touch(event.sequence), order.stale_on)
        for policy in dict.fromkeys((lengths, order, batching, residency, proposer, governor)):
            if isinstance(policy, Learner):
                ledger.events.subscribe(partial(self._teach, policy), policy.learns_from)

    def _follow(self, event: Event) -> None:
        seq = self._ledger.sequences[event.sequence]
        if event.kind in (Kind.ARRIVED, Kind.FORKED):
            self._workflows.came(seq)
            self._ranking.came(seq)
            if self._ageing is not None:
                self._ageing.came(seq.id, self.now)
        else:
            self._workflows.went(seq, event.kind is Kind.FINISHED)
            self._ranking.went(seq.id)
            if self._ageing is not None:
                self._ageing.went(seq.id)

    def _teach(self, policy: Learner, event: Event) -> None:
        began = perf_counter()
        try:
            for id in policy.learn(event, self._ledger.sequences.get(event.sequence), self):
                self._ranking.touch(id)
        except Exception:
            _log.exception("%s could not learn from %s", type(policy).__name__, event)
        self.seconds += perf_counter() - began

    # -- the view -------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self._ledger.clock.now()

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def sequences(self) -> Seq[Sequence]:
        return list(self._ledger.sequences.values())

    def in_state(self, *states: State) -> Seq[Sequence]:
        return self._ledger.in_state(*states)

    @property
    def free_blocks(self) -> int:
        return self._ledger.books.available

    @property
    def total_blocks(self) -> int:
        return self._ledger.books.pool.blocks

    @property
    def block_size(self) -> int:
        return self._ledger.books.pool.block_size

    @property
    def host_room(self) -> int:
        transfers = self._ledger.transfers
        return transfers.room(self._ledger.sequences.values()) if transfers is not None else 0

    def blocks_needed(self, sequence: Sequence, tokens: int) -> int:
        # Its view names blocks of the other tier, all to be its own when it is back.
        if sequence.state in (State.SWAPPED, State.LEAVING):
            if sequence.links is not None:
                tokens = sequence.links.beyond(sequence, tokens)
            last = sequence.view.last_run()
            room = self.block_size - last[1] - last[2] if last is not None else 0
            return -(-max(0, tokens - room) // self.block_size)
        return self._ledger.blocks_needed(sequence, tokens)

    def blocks_for(self, works: Iterable[Work]) -> int:
        needed = self._ledger.blocks_needed
        return sum([needed(work.sequence, work.count + work.drafts) for work in works])

    def blocks_freed(self, sequence: Sequence) -> int:
        pool = self._ledger.books.pool
        return sum(pool.refs[b] == 1 + pool.is_cached(b) for b in sequence.view.blocks)

    @property
    def leaving_blocks(self) -> int:
        return self._ledger.books.pool.leaving

    @property
    def moving_blocks(self) -> int:
        return self._ledger.transfers.blocks if self._ledger.transfers is not None else 0

    def unsent_blocks(self, sequence: Sequence) -> int:
        return self._ledger.transfers.unsent(sequence) if self._ledger.transfers is not None else 0

    def order_key(self, sequence: Sequence) -> float:
        if self._ageing is not None and sequence.id in self._ageing:
            return -np.inf
        return self._ranking.key(sequence.id)

    def _rank(self, sequence: Sequence) -> tuple[float, float, int]:
        return rank(sequence, self)

    def open(self, sequence: Sequence) -> int:
        return self._ledger.open(sequence)

    def sequence(self, id: int) -> Sequence | None:
        return self._ledger.sequences.get(id)

    def room(self, sequence: Sequence) -> int:
        limit = sequence.request.sampling.max_tokens or self._max_length
        return max(1, min(limit - sequence.output_length, self._max_length + sequence.saved - sequence.length))

    def remaining_output(self, sequence: Sequence) -> npt.NDArray[np.float64]:
        room = self.room(sequence)
        try:
            return np.clip(self._lengths.remaining(sequence, self), 1, room)
        except Exception:
            _log.exception("lengths could not be predicted; the limit stands in")
            return np.array([float(room)])

    def workflow(self, sequence: Sequence) -> Workflow:
        return self._workflows.of(sequence)

    def lookahead(self, sequence: Sequence) -> int:
        return self._drafts.lookahead(sequence, self)

    def cost(self, plan: StepPlan) -> float:
        return self.price(shape_of_plan(plan))

    def price(self, shape: StepShape) -> float:
        return self._executor.price(shape)

    # -- planning -------------------------------------------------------------------------------------------------------

    def plan(self) -> StepPlan:
        """The step to run: checked, and with its memory found. Sequences may have been moved or rejected on the way."""
        began, before = perf_counter(), self.seconds
        self._drafts.begin()
        everyone = self._ranked()
        self._pass_hints()
        early = self._move_ahead(everyone)
        # Who was waited for may have ended, if its copy failed.
        away = early or bool(self.in_state(State.SWAPPED, State.LEAVING, State.LOADING))
        ranked = [seq for seq in everyone if seq.state in (State.WAITING, State.RUNNING)] if away else everyone
        try:
            plan = self._batching.compose(ranked, self)
            fault = check(plan, self)
        except Exception:
            _log.exception("the batching failed")
            fault = "it raised an exception"
        if fault is not None:
            if fault != self._fault:
                _log.error("a plan was refused (%s); first come, first served instead", fault)
            self._fault = fault
            self._ledger.events.add(self.now, Kind.PLAN_REFUSED)
            plan = self._first_come(ranked)
        composed = len(plan.work)
        for sequence, reason in plan.reject:
            self._ledger.close(sequence, Finish.REJECTED, reason)
        # What was looked up in vain must not keep its blocks from those that run.
        self._ledger.close_unplanned({work.sequence.id for work in plan.work})
        loading = {work.sequence.id for work in plan.work if self._ledger.load(work.sequence)}
        if loading:  # they take part when what was found for them is here
            plan.work = [work for work in plan.work if work.sequence.id not in loading]
        self.moved = self._make_room(plan) or early or bool(loading)
        self.untouched = fault is None and not self.moved and not plan.reject and len(plan.work) == composed
        for work in plan.work:
            self._ledger.start(work.sequence)
        if self._ageing is not None:
            self._ageing.serving = [work.sequence.id for work in plan.work]
        self._ledger.close_unplanned()
        self.seconds = before + perf_counter() - began  # learning on the way is part of it
        return plan

    def _ranked(self) -> list[Sequence]:
        if self.now - self._keyed_at > self._order.lifetime_s:
            self._ranking.touch_all()
            self._keyed_at = self.now
        stale = self._ranking.stale()
        if stale:
            self._ranking.put(zip(stale, self._keys_of(stale), strict=True))
        ranked = self._ranking.sequences()
        return self._ageing.rank(ranked, self.now) if self._ageing is not None else ranked

    @property
    def holds_until_s(self) -> float:
        """When somebody becomes overdue, so that a plan does not hold longer whatever the policies say."""
        return self._ageing.next_s if self._ageing is not None else np.inf

    def _keys_of(self, stale: Seq[Sequence]) -> list[float]:
        try:
            keys = self._order.keys(stale, self).tolist()
            if len(keys) == len(stale):
                return [float(key) if key == key else np.inf for key in keys]  # no number at all sorts nowhere
            _log.error("the order gave %d keys for %d sequences; they go by arrival", len(keys), len(stale))
        except Exception:
            _log.exception("the order failed; its sequences go by arrival")
        return [seq.arrival_s for seq in stale]

    def _pass_hints(self) -> None:
        if not isinstance(self._order, Prewarms):
            return
        try:
            for hint in self._order.hints(self):
                self.on_hint(hint)
        except Exception:
            _log.exception("the order's hints failed")

    def _move_ahead(self, everyone: Seq[Sequence]) -> bool:
        """Carry out what the residency wants moved whatever the plan; whether anything was."""
        if not isinstance(self._residency, Ahead):
            return False
        try:
            transfers = self._residency.ahead(self, everyone)
        except Exception:
            _log.exception("the residency failed; nothing is moved")
            return False
        moved = [self._carry_out(transfer) for transfer in transfers]
        return any(moved)

    def _transfers(self, plan: StepPlan, short: int) -> list[Transfer]:
        try:
            return self._residency.plan(self, plan, short)
        except Exception:
            _log.exception("the residency failed; nothing is moved")
            return []

    def _first_come(self, ranked: Seq[Sequence]) -> StepPlan:
        """The plan that always works: running sequences, then waiting ones, as many tokens as the limits allow."""
        plan = StepPlan()
        budget = self._limits.tokens
        for seq in sorted(ranked, key=lambda seq: (seq.state is State.WAITING, seq.arrival_s, seq.id)):
            if budget == 0 or len(plan.work) == self._limits.rows:
                break
            if seq.state is State.WAITING:
                self.open(seq)
                if plan.work and self.blocks_needed(seq, seq.remaining) > self.free_blocks:
                    break  # it would take from those that run
            count = min(seq.remaining, budget)
            plan.work.append(Work(seq, count, WorkKind.DECODE if seq.decoding else WorkKind.PREFILL))
            budget -= count
        return plan

    def short(self, plan: StepPlan) -> int:
        return self.blocks_for(plan.work) - self.free_blocks

    def _shrink_drafts(self, plan: StepPlan, short: int) -> int:
        """Give up drafted tokens, the last sequence's first, as far as that frees blocks: nobody is to lose memory for a guess.
        How many blocks are short still."""
        for work in reversed(plan.work):
            if short <= 0:
                break
            if not work.drafts:
                continue
            need, least = self.blocks_for([work]), self.blocks_for([Work(work.sequence, work.count, work.kind)])
            while short > 0 and need > least:
                work.drafts -= 1
                fewer = self.blocks_for([work])
                short, need = short - (need - fewer), fewer
        return short

    def _make_room(self, plan: StepPlan) -> bool:
        """Carry out the residency's transfers until the plan fits, and leave out what does not; whether anything was moved."""
        any_moved = False
        for _ in range(_ROUNDS):
            short = self._shrink_drafts(plan, self.short(plan))
            if short > 0:
                self._ledger.events.add(self.now, Kind.MEMORY_LOW, -1, short)
            transfers = self._transfers(plan, short)
            moved = {t.sequence.id for t in transfers if self._carry_out(t)}
            plan.work = [w for w in plan.work if w.sequence.id not in moved] if moved else plan.work
            any_moved |= bool(moved)
            if short <= 0 or not moved:
                break
        if short > 0 or any_moved:
            self._trim(plan)
        return any_moved

    def _carry_out(self, transfer: Transfer) -> bool:
        seq, ledger = transfer.sequence, self._ledger
        if transfer.direction is Direction.IN:
            moved = seq.state is State.SWAPPED and ledger.swap_in(seq)
        elif seq.state is not State.RUNNING:
            return False
        elif transfer.direction is Direction.DROP or not ledger.swap_out(seq):
            return ledger.drop(seq)  # also when there is no room to swap to: the blocks are needed
        else:
            moved = True
        if moved and not transfer.may_run_late:
            ledger.finish_move(seq)
        return moved

    def _trim(self, plan: StepPlan) -> None:
        """Keep the work that fits, in the plan's order; the rest waits for a later step. If nothing does, blocks that copies
        still read are used: the step waits for those copies."""
        plan.work = self._fitting(plan, self.free_blocks) or self._fitting(plan, self.free_blocks + self.leaving_blocks)

    def _fitting(self, plan: StepPlan, free: int) -> list[Work]:
        kept: list[Work] = []
        for work in plan.work:
            need = self.blocks_needed(work.sequence, work.count + work.drafts)
            if need > free and work.drafts:
                work.drafts = 0
                need = self.blocks_needed(work.sequence, work.count)
            if need <= free:
                kept.append(work)
                free -= need
        return kept
