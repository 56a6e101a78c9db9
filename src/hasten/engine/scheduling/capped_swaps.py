"""Capped swaps: few sequences change tier in a step, and the slow tier keeps some room.

The residency of JITServe (Zhang et al., 2025). When a plan does not fit, running sequences that the batching left out of it
give up their KV first, worst rank first, and for the sake of waiting ones nobody else does. At most `swaps` of them go in a
step, so that copies never crowd out each other or the steps beside them, and to the slower tier only while `watermark` of it
stays free, so that it has room when memory is really short; below that they are recomputed. What the running sequences
themselves lack is found beyond these bounds, by recompute. Swapped sequences come back best rank first, few a step as well,
and ahead of waiting ones of worse rank only. Exact. O(sequences) a step, O(sequences log sequences) when memory is short or
something is swapped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hasten.engine.scheduling.base import Direction, StepPlan, Transfer, View, rank
from hasten.engine.scheduling.displacing import promised
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    swaps: int = 4
    """Most sequences that are moved in a step, each way."""
    watermark: float = 0.1
    """Share of the slower tier that swaps leave free."""
    swap_from: int = 256
    """Sequences of fewer computed tokens are recomputed rather than swapped."""
    reserve: float = 0.02
    """Share of the blocks that must stay free after one has come back."""


class CappedSwaps:
    def __init__(self, options: Options) -> None:
        if options.swaps < 1:
            raise ValueError(f"capped-swaps: swaps must be at least 1, got {options.swaps}")
        if options.swap_from < 0:
            raise ValueError(f"capped-swaps: swap_from must be a number of tokens from 0 on, got {options.swap_from}")
        for name in ("watermark", "reserve"):
            if not 0 <= (value := getattr(options, name)) < 1:
                raise ValueError(f"capped-swaps: {name} must be a share from 0 to below 1, got {value}")
        self._options = options
        self._tier = 0
        """Blocks of the slower tier: the most room it was seen to have."""

    def plan(self, view: View, plan: StepPlan, short: int) -> list[Transfer]:
        self._tier = max(self._tier, view.host_room)
        if short > 0:
            return self._yield(view, plan, short - view.leaving_blocks)
        return self._bring_back(view, plan, -short)

    def _yield(self, view: View, plan: StepPlan, short: int) -> list[Transfer]:
        need = {w.sequence.id: view.blocks_needed(w.sequence, w.count + w.drafts) for w in plan.work}
        running = sum(need[w.sequence.id] for w in plan.work if w.sequence.state is State.RUNNING)
        # What those that have begun lack must be found; what waits can wait.
        must = min(short, running - view.free_blocks - view.leaving_blocks)
        holders = [seq for seq in view.in_state(State.RUNNING) if seq.view.length]
        holders.sort(key=lambda seq: (_standing(seq, need), *rank(seq, view)))
        room = view.host_room - math.ceil(self._options.watermark * self._tier)
        transfers: list[Transfer] = []
        outs = 0
        while short > 0 and len(holders) > 1:
            seq = holders.pop()
            blocks = len(seq.view.blocks)
            if must <= 0 and (len(transfers) >= self._options.swaps or _standing(seq, need) < LEFT_OUT):
                break
            if seq.view.length >= self._options.swap_from and blocks <= room and outs < self._options.swaps:
                transfers.append(Transfer(seq, Direction.OUT))
                outs += 1
                room -= blocks
            else:
                transfers.append(Transfer(seq, Direction.DROP))
            freed = view.blocks_freed(seq) + need.get(seq.id, 0)
            short -= freed
            must -= freed
        return transfers

    def _bring_back(self, view: View, plan: StepPlan, spare: int) -> list[Transfer]:
        swapped = sorted(view.in_state(State.SWAPPED), key=lambda seq: rank(seq, view))
        if not swapped:
            return []
        alone = not plan.work and not view.in_state(State.RUNNING, State.LOADING)
        planned = {work.sequence.id for work in plan.work}
        waits = (view.order_key(seq) for seq in view.in_state(State.WAITING) if seq.id not in planned)
        first = math.inf if alone else min(waits, default=math.inf)
        spare -= promised(plan, view)
        spare -= 0 if alone else int(self._options.reserve * view.total_blocks) + 1
        transfers: list[Transfer] = []
        for seq in swapped[: self._options.swaps]:
            wanted = len(seq.stored) + view.blocks_needed(seq, seq.remaining)
            if wanted > spare or view.order_key(seq) > first:
                break
            spare -= wanted
            transfers.append(Transfer(seq, Direction.IN))
        return transfers

    def steady(self, plan: StepPlan, view: View) -> float:
        """Who is swapped lacks memory or rank to come back, and decoding changes neither."""
        return math.inf


PLANNED, BEGUN, LEFT_OUT = range(3)


def _standing(seq: Sequence, need: dict[int, int]) -> int:
    """Who yields later: what runs in this step, before a prompt without a piece in it, before what could decode and may not. So
    the first that yields is never the last that could have run."""
    if seq.id in need:
        return PLANNED
    return LEFT_OUT if seq.decoding else BEGUN


TECHNIQUE = Technique(
    name="capped-swaps",
    seam="scheduling",
    summary="few sequences change tier in a step, and the slow tier keeps some room",
    exact=True,
    sets={"scheduling.residency": "capped-swaps"},
    options=Options,
    make=lambda context, options: CappedSwaps(options),
    paper="JITServe: SLO-aware LLM Serving with Imprecise Request Information, 2025",
)
