"""Transfers of KV between the pool and the slower tier: what is under way, and what stays behind.

The books' side of swapping: blocks, places, handles. Which state a sequence is in is the ledger's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from hasten.engine.kv.base import Handle, NoBlocks, Tier
from hasten.engine.kv.books import Books
from hasten.engine.kv.copies import Copy
from hasten.engine.sequence import Sequence


@dataclass(slots=True)
class Move:
    """A transfer under way: `sent` blocks, of which it reads those of the pool in `read` (none on the way back)."""

    sequence: Sequence
    handle: Handle
    sent: int
    read: Seq[int]


class Transfers:
    """`keep_copies`: what came back stays in the slower tier as well, and is not sent again until it is written."""

    def __init__(self, books: Books, tier: Tier, keep_copies: bool) -> None:
        self._books = books
        self._tier = tier
        self._keep = keep_copies
        self.moves: dict[int, Move] = {}
        """By sequence."""
        self.contaminated = 0
        """Blocks of copies whose places were needed by others, so far."""

    @property
    def blocks(self) -> int:
        """Blocks that are under way."""
        return sum(move.sent for move in self.moves.values())

    def room(self, sequences: Iterable[Sequence]) -> int:
        """Blocks that the tier would take if `sequences`, all there are, gave up the copies they left there."""
        if not self._keep:
            return self._tier.room
        return self._tier.room + sum(len(seq.copy.of) for seq in sequences if seq.copy is not None)

    def unsent(self, seq: Sequence) -> int:
        """Blocks that must be copied if `seq` leaves now."""
        good = len(seq.copy.good(seq.view)) if seq.copy is not None else 0
        return len(seq.view.blocks) - good

    def send(
        self, seq: Sequence, others: Iterable[Sequence], worth: Callable[[Sequence], Any], told: Callable[[int, int], None]
    ) -> bool:
        """Start copying what the tier lacks of a sequence's KV. Its view then names places of the tier, and its blocks are free
        as far as the copy does not read them. False, with nothing changed, when there is no room even if `others` lose the
        copies they left, those of highest `worth` first. `told(sent, kept)` is called before the view changes."""
        view, tier, pool = seq.view, self._tier, self._books.pool
        copy = seq.copy
        good = copy.good(view) if copy is not None else set()
        blocks = list(view.blocks)
        sent = [block for block in blocks if block not in good]
        where = {block: place for block, place in copy.of.items() if block in view.blocks} if copy is not None else {}
        fresh = [block for block in sent if block not in where]
        if not self._make_room(len(fresh), seq, others, worth):
            return False
        near = next(reversed(where.values()), -1)
        where.update(zip(fresh, tier.take(len(fresh), near), strict=True))
        if copy is not None:
            tier.forget(copy.prune(view))
            seq.copy = None
        told(len(sent), len(good))
        if sent:
            handle = tier.put(sent, [where[block] for block in sent])
            self.moves[seq.id] = Move(seq, handle, len(sent), sent)
            pool.read(sent, handle)
        seq.stored = [where[block] for block in blocks]
        pool.drop(blocks)
        view.remap(where)
        return True

    def _make_room(self, count: int, seq: Sequence, others: Iterable[Sequence], worth: Callable[[Sequence], Any]) -> bool:
        short = count - self._tier.room
        if short <= 0:
            return True
        losers = [other for other in others if other.copy is not None and other is not seq]
        if sum(len(other.copy.of) for other in losers if other.copy is not None) < short:
            return False
        for other in sorted(losers, key=worth, reverse=True):
            assert other.copy is not None
            lost = other.copy.lose(short)
            self._tier.forget(lost)
            self.contaminated += len(lost)
            short -= len(lost)
            if short <= 0:
                break
        return True

    def fetch(self, seq: Sequence) -> bool:
        """Start copying it back; False, with nothing changed, when the pool has no room."""
        try:
            mapping = self._books.adopt(seq.view, seq.stored)
        except NoBlocks:
            return False
        handle = self._tier.get(seq.stored, [mapping[place] for place in seq.stored])
        self.moves[seq.id] = Move(seq, handle, len(seq.stored), ())
        return True

    def end(self, move: Move) -> str | None:
        """Wait for a transfer; why it failed, if it did."""
        del self.moves[move.sequence.id]
        error = None
        try:
            move.handle.wait()
        except Exception as failure:  # the copy failed: this sequence starts over, the others go on
            error = str(failure) or type(failure).__name__
        self._books.pool.read_over(move.read, move.handle)
        return error

    def arrived(self, seq: Sequence) -> None:
        """It is back in the pool: what lies in the tier is a copy, kept or not."""
        if self._keep:
            seq.copy = Copy(dict(zip(seq.view.blocks, seq.stored, strict=True)), seq.view.length)
        else:
            self._tier.forget(seq.stored)
        seq.stored = []

    def forget(self, seq: Sequence) -> None:
        """Nothing of it is wanted in the tier any more."""
        self._tier.forget(seq.stored)
        seq.stored = []
        self.forget_copy(seq)

    def forget_copy(self, seq: Sequence) -> None:
        if seq.copy is not None:
            self._tier.forget(list(seq.copy.of.values()))
            seq.copy = None

    def cut(self, seq: Sequence, length: int) -> None:
        """Entries of a running sequence from `length` on are written again, or gone."""
        if seq.copy is not None:
            seq.copy.cut(length)
            self._tier.forget(seq.copy.prune(seq.view))

    def audit(self, sequences: Iterable[Sequence]) -> None:
        places: list[int] = []
        for seq in sequences:
            places += seq.stored
            places += seq.copy.of.values() if seq.copy is not None else ()
        self._tier.audit(places)
