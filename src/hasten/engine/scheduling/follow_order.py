"""Residency that follows the order: whoever ranks best holds KV in fast memory, whatever state it is in.

The residency of FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving (Shen et
al., 2024), for orders whose keys change while sequences run. Before each step it walks all sequences from the best rank on:
one that is swapped, or waits, gets the memory of running ones of worse rank, the worst first, which leave for the host tier;
copies run beside steps, which go on without the sequences under way. Exact. O(sequences) a step; the walk itself stops at the
first that cannot be given memory.

An adaptive rule decides whether a step waits for those that come back. The paper says that it weighs the running batch, what is
moved and recent swaps, not how; here it is the smaller sum of delays. A copy takes as long as the blocks in front of and in it
at the rate of recent copies. If the step waits, each running sequence is late by that; if not, each that comes back is late
until the step that is under way when its copy ends has ended, since it joins the one after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

from hasten.engine.events import Event, Kind
from hasten.engine.executors.cost import StepShape
from hasten.engine.scheduling import newest_yields
from hasten.engine.scheduling.base import Direction, StepPlan, Transfer, View, rank
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique

_LEARNING = 0.25
"""Weight of the newest copy in the rate of recent ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    transfers: Literal["adaptive", "async", "sync"] = "adaptive"
    """Whether steps wait for copies: as the rule says for those back in, never, or always (as engines without overlap do)."""
    swap_from: int = 32
    """Sequences of at least this many computed tokens are swapped rather than dropped, if the host tier has room."""
    watermark: float = 0.02
    """Share of the blocks that stay free beside running sequences, for those to grow into."""


class FollowOrder:
    learns_from = frozenset({Kind.TRANSFER_DONE})

    def __init__(self, options: Options) -> None:
        if options.swap_from < 0:
            raise ValueError(f"follow-order: swap_from must be a number of tokens from 0 on, got {options.swap_from}")
        if not 0 <= options.watermark < 1:
            raise ValueError(f"follow-order: watermark must lie in [0, 1), got {options.watermark}")
        self._options = options
        self._late = options.transfers != "sync"
        self._yields = newest_yields.NewestYields(newest_yields.Options(swap_from=options.swap_from))
        self._block_s: float | None = None
        """Seconds a block takes, of recent copies."""

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.a > 0 and event.b > 0:
            newest = event.b / event.a
            self._block_s = newest if self._block_s is None else self._block_s + _LEARNING * (newest - self._block_s)
        return ()

    # -- who holds memory -------------------------------------------------------------------------------------------------

    def ahead(self, view: View, ranked: Seq[Sequence]) -> list[Transfer]:
        held: list[Sequence] = []
        wanted: list[Sequence] = []
        rows = 0
        for seq in ranked:
            state = seq.state
            if state is State.WAITING or state is State.SWAPPED:
                wanted.append(seq)
            elif state is State.RUNNING and seq.view.length:
                held.append(seq)
            elif state is State.LOADING:
                rows += 1
        if not wanted:
            return []
        rows += len(held)
        spare = view.free_blocks + view.leaving_blocks - sum(_promised(seq, view) for seq in held)
        # Nobody leaves for prompts that no step has time for yet.
        prompts = view.limits.tokens - sum(seq.remaining for seq in held if seq.remaining > 1)
        reserve = int(self._options.watermark * view.total_blocks) + 1
        leave: list[Sequence] = []
        back: list[Sequence] = []
        for seq in wanted:
            swapped = seq.state is State.SWAPPED
            if not swapped and prompts <= 0:
                continue
            need = len(seq.stored) + view.blocks_needed(seq, seq.remaining)
            short = need + (reserve if rows else 0) - spare
            found = self._displaced(held, seq, short, rows + 1 - view.limits.rows, view)
            if found is None:
                break
            count, freed = found
            if count:
                leave += held[-count:]
                del held[-count:]
            spare += freed - need
            rows += 1 - count
            if swapped:
                back.append(seq)
            else:
                prompts -= seq.remaining
        late = self._late
        if back and self._options.transfers == "adaptive":
            late = not self._worth_waiting(leave, back, held, view)
        return self._moves(leave, view) + [Transfer(seq, Direction.IN, late) for seq in back]

    @staticmethod
    def _displaced(held: Seq[Sequence], claimant: Sequence, short: int, rows: int, view: View) -> tuple[int, int] | None:
        """How many of `held`, from the last on, must leave for `claimant` to get `short` more blocks and `rows` more rows, and
        the blocks that they free or no longer wait for; None when those of worse rank are not enough."""
        count = freed = 0
        if short <= 0 and rows <= 0:
            return count, freed
        own = rank(claimant, view)
        for victim in reversed(held):
            if rank(victim, view) < own:
                return None
            count += 1
            freed += view.blocks_freed(victim) + _promised(victim, view)
            if short <= freed and rows <= count:
                return count, freed
        return None

    def _moves(self, leave: Seq[Sequence], view: View) -> list[Transfer]:
        room = view.host_room if leave else 0
        transfers = []
        for seq in leave:
            swaps = seq.view.length >= self._options.swap_from and len(seq.view.blocks) <= room
            room -= len(seq.view.blocks) if swaps else 0
            transfers.append(Transfer(seq, Direction.OUT if swaps else Direction.DROP, self._late))
        return transfers

    # -- whether to wait --------------------------------------------------------------------------------------------------

    def _worth_waiting(self, leave: Seq[Sequence], back: Seq[Sequence], running: Seq[Sequence], view: View) -> bool:
        if self._block_s is None:
            return False
        blocks = view.moving_blocks + sum(view.unsent_blocks(seq) for seq in leave) + sum(len(seq.stored) for seq in back)
        copy_s = blocks * self._block_s
        rows = len(running)
        if not rows:
            return True  # there is nothing to go on with meanwhile
        cached = sum(seq.view.length + 1 for seq in running)
        step_s = view.price(StepShape(tokens=rows, rows=rows, heads=rows, cached=cached, pairs=cached))
        late_s = math.ceil(copy_s / step_s) * step_s - copy_s
        return rows * copy_s <= len(back) * late_s

    # -- a plan that does not fit -----------------------------------------------------------------------------------------

    def plan(self, view: View, plan: StepPlan, short: int) -> list[Transfer]:
        if short <= 0:
            return []
        transfers = self._yields.plan(view, plan, short)
        for transfer in transfers:
            transfer.may_run_late = self._late
        return transfers

    def steady(self, plan: StepPlan, view: View) -> float:
        """Nothing changes while the best of those without memory ranks behind all that have it: decoding frees none."""
        away = min((rank(seq, view) for seq in view.in_state(State.SWAPPED, State.WAITING)), default=None)
        if away is None:
            return math.inf
        worst = max((rank(seq, view) for seq in view.in_state(State.RUNNING) if seq.view.length), default=away)
        return math.inf if worst <= away else 0.0


def _promised(seq: Sequence, view: View) -> int:
    """What a prompt that is begun has yet to get is its own."""
    return view.blocks_needed(seq, seq.remaining) if seq.remaining > 1 else 0


TECHNIQUE = Technique(
    name="follow-order",
    seam="scheduling",
    summary="whoever ranks best holds KV; others are swapped, beside running steps",
    exact=True,
    sets={"scheduling.residency": "follow-order"},
    options=Options,
    make=lambda context, options: FollowOrder(options),
    paper="the residency of FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware LLM Serving, 2024",
)
