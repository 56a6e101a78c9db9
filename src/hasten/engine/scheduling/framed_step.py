"""A step within a frame: plain chunked prefill in which members of the frame have the first right to rows and memory."""

from __future__ import annotations

from collections.abc import Container, Iterator
from collections.abc import Sequence as Seq
from itertools import chain

from hasten.engine.scheduling.base import StepPlan, View, Work, WorkKind
from hasten.engine.sequence import Sequence, State


class FramedStep:
    """`members`: numbers of the frame's sequences, `rows` its m, `chunk` and `watermark` as the knobs."""

    def __init__(self, members: Container[int], rows: int, chunk: int, watermark: float, view: View) -> None:
        self._chunk = chunk
        self._watermark = watermark
        self._members = members
        self._rows = rows
        self._view = view
        self._decodes: list[Work] = []
        self._prompts: list[Work] = []
        self._free = 0

    def compose(self, ranked: Seq[Sequence]) -> StepPlan:
        view = self._view
        running = [seq for seq in ranked if seq.state is State.RUNNING]
        tokens = self._decode([seq for seq in running if seq.decoding])
        if len(self._decodes) == len(ranked) or not tokens:
            return StepPlan(self._decodes)
        used = sum(work.count + work.drafts for work in self._decodes)
        if self._decodes:
            tokens = min(tokens, max(1, self._chunk - used))
        self._free = view.free_blocks - sum(view.blocks_needed(w.sequence, w.count + w.drafts) for w in self._decodes)
        begun = [seq for seq in running if not seq.decoding]
        self._free -= sum(view.blocks_needed(seq, seq.remaining) for seq in begun)
        back_first = min((view.order_key(s) for s in view.sequences if s.state is State.SWAPPED), default=None)
        waiting = (seq for seq in ranked if seq.state is State.WAITING)
        members_only = False
        for seq in chain(begun, waiting):
            if tokens <= 0:
                break
            member = seq.id in self._members
            if members_only and not member:
                continue
            if seq.state is State.WAITING and back_first is not None and back_first <= view.order_key(seq):
                break  # what is already started and ranks before comes back first
            if not (self._row_for(seq) and (seq.state is State.RUNNING or self._admit(seq))):
                if member:
                    break  # nobody behind overtakes: small prompts would starve a large one
                members_only = True
                continue
            count = min(seq.remaining, tokens)
            self._prompts.append(Work(seq, count, WorkKind.PREFILL))
            tokens -= count
        return StepPlan(self._decodes + self._prompts)

    def _decode(self, decoding: list[Sequence]) -> int:
        """Plan the decodes, members first; the tokens that the limits leave."""
        view, members = self._view, self._members
        tokens = view.limits.tokens
        if len(decoding) > self._rows:
            decoding.sort(key=lambda seq: seq.id not in members)
        for seq in decoding[: self._rows]:
            if tokens <= 0:
                break
            drafts = min(view.lookahead(seq), tokens - 1)
            self._decodes.append(Work(seq, 1, WorkKind.VERIFY if drafts else WorkKind.DECODE, drafts))
            tokens -= 1 + drafts
        return tokens

    def _row_for(self, seq: Sequence) -> bool:
        """Whether there is a row for it; a member takes that of the worst one outside the frame."""
        if len(self._decodes) + len(self._prompts) < self._rows:
            return True
        worst = next(self._outside(seq), None) if seq.id in self._members else None
        if worst is not None:
            self._pause(worst)
        return worst is not None

    def _outside(self, claimant: Sequence) -> Iterator[Work]:
        """The decodes outside the frame that rank behind `claimant`, worst first."""
        key = self._view.order_key(claimant)
        for work in reversed(self._decodes):
            if work.sequence.id not in self._members:
                if self._view.order_key(work.sequence) <= key:
                    return
                yield work

    def _pause(self, work: Work) -> None:
        self._decodes.remove(work)
        self._free += self._view.blocks_needed(work.sequence, work.count + work.drafts)

    def _admit(self, seq: Sequence) -> bool:
        view = self._view
        before = view.free_blocks
        remaining = view.open(seq)
        self._free -= before - view.free_blocks  # reused blocks nobody read until now are no longer evictable
        need = view.blocks_needed(seq, remaining)
        reserve = int(self._watermark * view.total_blocks) if self._decodes or self._prompts else 0
        if need + reserve > self._free and not self._take_for(seq, need + reserve - self._free):
            return False
        self._free -= need
        return True

    def _take_for(self, seq: Sequence, short: int) -> bool:
        """Memory of those outside is a member's to take: they pause, and the residency moves first who is left out."""
        view = self._view
        # Where there is no slower tier for it, what was computed is worth more than a better rank.
        if seq.id not in self._members or not view.host_room or view.leaving_blocks >= short:
            return False
        victims, freed = [], 0
        for work in self._outside(seq):
            victims.append(work)
            freed += view.blocks_freed(work.sequence) + view.blocks_needed(work.sequence, work.count + work.drafts)
            if freed >= short:
                break
        else:
            return False
        for work in victims:
            self._free += view.blocks_freed(work.sequence)
            self._pause(work)
        return True
