"""Rank yields: memory goes by the order's rank, also among sequences that have lost theirs.

As newest-yields, the running sequence of worst rank gives up its KV first, by recompute when short and by a swap to the host
tier when long. What was swapped comes back in rank order rather than by arrival, only ahead of waiting sequences of worse rank,
and only into memory that no begun prompt was promised. With `preempt` it also displaces running sequences of worse rank, as the
batching rules' knob of that name does for waiting ones. Exact. O(sequences) a step, O(sequences log sequences) when memory is
short or something is swapped.

Shortest-remaining-time orders, Hermes (application Gittins) and JITServe (goodput density) need it: under them the latest
arrival is often the most urgent, and a residency that goes by arrival undoes what the order decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hasten.engine.events import Event
from hasten.engine.scheduling import newest_yields
from hasten.engine.scheduling.base import Direction, StepPlan, Transfer, View, rank
from hasten.engine.scheduling.displacing import Tenure, holders, preempts, promised, victims
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(newest_yields.Options):
    preempt: bool = False
    """A swapped sequence displaces running ones of worse rank; otherwise it waits until there is room."""
    hold: int = 32
    """With `preempt`: tokens that a sequence which lost its KV produces, once it is back, before it may be displaced again."""


class RankYields(newest_yields.NewestYields):
    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._preempt = options.preempt
        self._tenure = Tenure(options.hold)
        self.learns_from = Tenure.learns_from

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        return self._tenure.learn(event, sequence, view)

    def plan(self, view: View, plan: StepPlan, short: int) -> list[Transfer]:
        if short > 0:
            return super().plan(view, plan, short)
        swapped = sorted(view.in_state(State.SWAPPED), key=lambda seq: rank(seq, view))
        if not swapped:
            return []
        alone = not plan.work and not view.in_state(State.RUNNING, State.LOADING)
        if not alone:  # else the first one comes back whoever waits: something must run
            swapped = self._ahead_of_waiting(swapped, plan, view)
        reserve = 0 if alone else int(self._options.watermark * view.total_blocks) + 1
        spare = -short - reserve - promised(plan, view)
        transfers: list[Transfer] = []
        for seq in swapped:
            wanted = len(seq.stored) + view.blocks_needed(seq, seq.remaining)
            if wanted > spare:
                if self._preempt:
                    transfers += self._displace(seq, wanted - spare, view)
                break
            spare -= wanted
            transfers.append(Transfer(seq, Direction.IN))
        return transfers

    def _ahead_of_waiting(self, swapped: list[Sequence], plan: StepPlan, view: View) -> list[Sequence]:
        """Those of better rank than every sequence that waits and is not planned."""
        planned = {work.sequence.id for work in plan.work}
        waits = (rank(seq, view) for seq in view.in_state(State.WAITING) if seq.id not in planned)
        first = min(waits, default=None)
        return [seq for seq in swapped if first is None or rank(seq, view) < first]

    def _displace(self, seq: Sequence, short: int, view: View) -> list[Transfer]:
        """Free the memory for `seq`, which comes back in a later step."""
        if short <= view.leaving_blocks:
            return []
        return self._moves(victims(holders(view), short, seq, view, self._tenure), view)

    def steady(self, plan: StepPlan, view: View) -> float:
        """Who is swapped lacks memory to come back, and decoding frees none; but a tenure may end."""
        return self._tenure.steady(plan) if self._preempt else math.inf


TECHNIQUE = Technique(
    name="rank-yields",
    seam="scheduling",
    summary="the worst rank gives up its KV and the best comes back first",
    exact=True,
    sets={"scheduling.residency": "rank-yields"},
    options=Options,
    make=lambda context, options: RankYields(preempts(context, options)),
)
