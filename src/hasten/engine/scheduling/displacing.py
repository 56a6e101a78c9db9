"""Displacement: a sequence of better rank takes the memory of running ones of worse rank.

The batching does so for waiting sequences and the residency for those in the slower tier, by the same rules: the worst rank
goes first; keys must differ strictly; and whoever has lost its KV once may keep it, when it has it again, until it has produced
`hold` more tokens (its tenure). So two sequences whose keys cross again and again cost a recomputation each `hold` tokens at
most. The residency, which yields the worst rank first as well, then carries out what the batching counted on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from hasten.engine.events import Event, Kind
from hasten.engine.scheduling.base import StepPlan, View, rank
from hasten.engine.sequence import Sequence, State


class Tenure:
    """Who may keep its KV. Follows events, as `base.Learner` does. Raises ValueError when `hold` is negative."""

    learns_from = frozenset({Kind.PREEMPTED, Kind.SWAPPED, Kind.FINISHED, Kind.FAILED})

    def __init__(self, hold: int) -> None:
        if hold < 0:
            raise ValueError(f"hold must be a number of tokens from 0 on, got {hold}")
        self._hold = hold
        self._until: dict[int, int] = {}
        """By sequence that lost its KV: the output length from which on it may lose it again."""

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind in (Kind.PREEMPTED, Kind.SWAPPED) and sequence is not None:
            self._until[sequence.id] = sequence.output_length + self._hold
        else:
            self._until.pop(event.sequence, None)
        return ()

    def left(self, sequence: Sequence) -> int:
        """Tokens it may still produce undisturbed; 0: it may be displaced."""
        until = self._until.get(sequence.id)
        return max(0, until - sequence.output_length) if until is not None else 0

    def steady(self, plan: StepPlan) -> float:
        """For how many steps, in which each sequence of `plan` decodes one token, nobody's tenure ends."""
        if not self._until:
            return math.inf
        return min((left for work in plan.work if (left := self.left(work.sequence))), default=math.inf)


def preempts(context: Any, options: Any) -> Any:
    """The knobs with `preempt` also where the engine's configuration has it (`scheduling.preempt`, which presets set). Raises
    ValueError beside a residency that would not carry out what the batching counts on."""
    if context is None:
        return options
    scheduling = context.config.scheduling
    options = replace(options, preempt=options.preempt or scheduling.preempt)
    if options.preempt and scheduling.residency == "reset-on-deadlock":
        raise ValueError(
            "preempt and reset-on-deadlock cannot work together: the one takes the memory of whoever ranks worse, the other "
            "takes it from nobody while anything runs, so both sides would wait; set scheduling.residency=rank-yields"
        )
    return options


def holders(view: View) -> list[Sequence]:
    """The running sequences that hold KV, best rank first."""
    held = [seq for seq in view.in_state(State.RUNNING) if seq.view.length]
    held.sort(key=lambda seq: rank(seq, view))
    return held


def promised(plan: StepPlan, view: View) -> int:
    """Blocks that prompts which are begun will need after this step."""
    planned = {work.sequence.id for work in plan.work}
    begun = [seq for seq in view.in_state(State.RUNNING) if seq.id not in planned and not seq.decoding]
    blocks = sum(view.blocks_needed(seq, seq.remaining) for seq in begun)
    for work in plan.work:
        seq = work.sequence
        blocks += view.blocks_needed(seq, seq.remaining) - view.blocks_needed(seq, work.count)
    return blocks


def victims(
    ranked: Seq[Sequence], short: int, claimant: Sequence, view: View, tenure: Tenure, spared: Collection[int] = ()
) -> list[Sequence]:
    """Who must give up its KV so that `claimant` gets `short` more blocks: the last of `ranked` (running ones, best rank
    first), worst first. Empty when those that may be displaced hold too little. `spared`: numbers of those gone already."""
    key = view.order_key(claimant)
    displaceable = []
    for seq in reversed(ranked):
        # Nobody is skipped: the residency takes the worst rank, whoever that is.
        if view.order_key(seq) <= key or tenure.left(seq) or not seq.recomputable:
            break
        if seq.id not in spared and seq.view.length:
            displaceable.append(seq)
    if sum(len(seq.view.blocks) for seq in displaceable) < short:
        return []
    chosen: list[Sequence] = []
    for seq in displaceable:
        chosen.append(seq)
        short -= view.blocks_freed(seq)  # blocks that others read too do not come free
        if short <= 0:
            return chosen
    return []
