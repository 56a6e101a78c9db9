"""Newest yields: the default residency.

When a plan does not fit, the running sequences of lowest rank give up their KV until it does: by recompute when short, by a
swap to the host tier when long and there is room (recomputing n tokens costs a prefill of n, a swap two copies). Swapped
sequences come back, oldest first, as soon as there is room for all their blocks and their next tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hasten.engine.scheduling.base import Direction, StepPlan, Transfer, View
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    swap_from: int = 256
    """Sequences of at least this many computed tokens are swapped rather than dropped, if the host tier has room."""
    watermark: float = 0.02
    """Share of the blocks that must stay free after one has come back."""


class NewestYields:
    def __init__(self, options: Options) -> None:
        if options.swap_from < 0:
            raise ValueError(f"swap_from must be a number of tokens from 0 on, got {options.swap_from}")
        if not 0 <= options.watermark < 1:
            raise ValueError(f"watermark must be a share from 0 to below 1, got {options.watermark}")
        self._options = options

    def plan(self, view: View, plan: StepPlan, short: int) -> list[Transfer]:
        if short <= 0:
            return self._bring_back(view, -short)
        need = {w.sequence.id: view.blocks_needed(w.sequence, w.count + w.drafts) for w in plan.work}
        return self._yield(view, need, short - view.leaving_blocks)

    def _bring_back(self, view: View, spare: int) -> list[Transfer]:
        swapped = view.in_state(State.SWAPPED)
        if not swapped:
            return []
        transfers: list[Transfer] = []
        alone = not view.in_state(State.RUNNING, State.LOADING)
        reserve = 0 if alone else int(self._options.watermark * view.total_blocks) + 1
        for seq in swapped:
            wanted = len(seq.stored) + view.blocks_needed(seq, seq.remaining)
            if wanted + reserve > spare:
                break
            spare -= wanted
            transfers.append(Transfer(seq, Direction.IN))
        return transfers

    def _yield(self, view: View, need: dict[int, int], short: int) -> list[Transfer]:
        holders = [seq for seq in view.in_state(State.RUNNING) if seq.view.length]
        holders.sort(key=lambda seq: (view.order_key(seq), seq.arrival_s))
        leave: list[Sequence] = []
        while short > 0 and len(holders) > 1:
            seq = holders.pop()
            leave.append(seq)
            short -= view.blocks_freed(seq) + need.get(seq.id, 0)
        return self._moves(leave, view)

    def _moves(self, leave: list[Sequence], view: View) -> list[Transfer]:
        """How each of them gives up its KV."""
        room = view.host_room
        transfers: list[Transfer] = []
        for seq in leave:
            blocks = len(seq.view.blocks)
            swaps = seq.view.length >= self._options.swap_from and blocks <= room
            transfers.append(Transfer(seq, Direction.OUT if swaps else Direction.DROP))
            room -= blocks if swaps else 0
        return transfers

    def steady(self, plan: StepPlan, view: View) -> float:
        """Who is swapped lacks memory to come back, and decoding frees none."""
        return math.inf


TECHNIQUE = Technique(
    name="newest-yields",
    seam="scheduling",
    summary="the latest arrival gives up its KV, by recompute or swap",
    exact=True,
    default=True,
    sets={"scheduling.residency": "newest-yields"},
    options=Options,
    make=lambda context, options: NewestYields(options),
)
