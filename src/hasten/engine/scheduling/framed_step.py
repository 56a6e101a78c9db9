"""A step within a frame: plain chunked prefill in which members of the frame have the first right to rows and memory."""

from __future__ import annotations

from collections.abc import Container, Iterator
from collections.abc import Sequence as Seq
from itertools import chain

from hasten.engine.scheduling.base import StepPlan, View, Work, WorkKind
from hasten.engine.scheduling.composing import decode, for_drafts
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
        self._paused: list[Sequence] = []
        """Who could decode and is left out, worst last, and still has its memory."""
        self._gave: Work | None = None
        """Who has just lost its row to a member."""
        self._free = 0

    def compose(self, ranked: Seq[Sequence]) -> StepPlan:
        view = self._view
        decoding: list[Sequence] = []
        begun: list[Sequence] = []
        for seq in ranked:
            if seq.state is State.RUNNING:
                (decoding if seq.decoding else begun).append(seq)
        tokens = self._decode(decoding, prompts=len(decoding) < len(ranked))
        if len(self._decodes) == len(ranked) or not tokens:
            return StepPlan(self._decodes)
        used = sum(work.count + work.drafts for work in self._decodes)
        if self._decodes:
            tokens = min(tokens, max(1, self._chunk - used))
        self._free = view.free_blocks - view.blocks_for(self._decodes)
        self._free -= sum(view.blocks_needed(seq, seq.remaining) for seq in begun)
        back_first = min((view.order_key(seq) for seq in view.in_state(State.SWAPPED)), default=None)
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
                self._return_row()
                if member:
                    break  # nobody behind overtakes: small prompts would starve a large one
                members_only = True
                continue
            count = min(seq.remaining, tokens)
            self._prompts.append(Work(seq, count, WorkKind.PREFILL))
            tokens -= count
        return StepPlan(self._decodes + self._prompts)

    def _decode(self, decoding: list[Sequence], prompts: bool) -> int:
        """Plan the decodes, members first; the tokens that the limits leave."""
        view, members = self._view, self._members
        if len(decoding) > self._rows:
            decoding.sort(key=lambda seq: seq.id not in members)
        served = decoding[: min(self._rows, view.limits.tokens)]
        spare = for_drafts(len(served), prompts, self._chunk, view)
        tokens = view.limits.tokens
        for seq in served:
            work = decode(seq, view, spare)
            self._decodes.append(work)
            spare -= work.drafts
            tokens -= 1 + work.drafts
        self._paused = [seq for seq in decoding[len(self._decodes) :] if seq.id not in members]
        return tokens

    def _row_for(self, seq: Sequence) -> bool:
        """Whether there is a row for it; a member takes that of the worst one outside the frame."""
        self._gave = None
        if len(self._decodes) + len(self._prompts) < self._rows:
            return True
        worst = next(self._outside(seq), None) if seq.id in self._members else None
        if worst is not None:
            self._pause(worst)
            self._gave = worst
        return worst is not None

    def _return_row(self) -> None:
        """Whoever made way for a row goes on after all: there was no memory for the one who was to have it."""
        if self._gave is not None:
            self._paused.remove(self._gave.sequence)
            self._decodes.append(self._gave)
            self._free -= self._view.blocks_for([self._gave])

    def _outside(self, claimant: Sequence) -> Iterator[Work]:
        """The decodes outside the frame that rank behind `claimant`, worst first."""
        for work in reversed(self._decodes):
            if work.sequence.id not in self._members:
                if self._view.order_key(work.sequence) <= self._view.order_key(claimant):
                    return
                yield work

    def _pause(self, work: Work) -> None:
        self._decodes.remove(work)
        self._free += self._view.blocks_needed(work.sequence, work.count + work.drafts)
        self._paused.insert(0, work.sequence)

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
        key = view.order_key(seq)
        paused = [other for other in reversed(self._paused) if view.order_key(other) > key]
        works = list(self._outside(seq))
        count, freed = 0, 0
        for other in chain(paused, (work.sequence for work in works)):
            count += 1
            freed += view.blocks_freed(other)
            if freed >= short:
                break
        if freed < short:
            return False
        for work in works[: max(0, count - len(paused))]:
            self._pause(work)
        gone = [*paused, *(work.sequence for work in works)][:count]
        self._paused = [other for other in self._paused if other not in gone]
        self._free += freed
        return True
