"""Chunks: KV of pieces of text, kept in blocks of the pool and found by content.

A chunk is named by a hash over its tokens and everything else that its KV depends on or must not be shared across
(`blockfile.root`), but for what stood before it: chunks are computed by themselves, or one name has several variants, each
with notes of the context that it was computed in (`kv/variants.py`). A chunk's entries lie from the first slots of whole
blocks on, the last of which may be half used, with keys rotated for the positions at which it was first computed. The store
holds a reference of each block. Numbers only: who links a chunk where is `engine/linking.py`'s business.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from itertools import chain
from itertools import count as counter
from typing import TYPE_CHECKING

from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.retention import Facts, Retention

if TYPE_CHECKING:
    from hasten.engine.kv.variants import Notes


class Chunk:
    """`position` of its first token; `blocks` in its order; `notes` None: it was computed by itself."""

    __slots__ = ("blocks", "facts", "name", "notes", "position", "score")

    def __init__(self, name: bytes, position: int, blocks: list[int], facts: Facts, notes: Notes | None = None) -> None:
        self.name = name
        self.position = position
        self.blocks = blocks
        self.facts = facts
        self.notes = notes
        self.score = 0.0


class ChunkStore:
    """At most `share` of the pool, and `variants` of a name. `retention` says which chunk goes first; `Facts.seconds` is what
    computing it again takes, `start` is 0. O(log chunks) a chunk that goes, O(chunks) one that makes way for another of its
    name or whose score falls."""

    def __init__(self, pool: BlockPool, retention: Retention, share: float = 0.5, variants: int = 1) -> None:
        self._pool = pool
        self._retention = retention
        self._most = int(share * pool.blocks)
        self._variants = variants
        self._chunks: dict[bytes, list[Chunk]] = {}
        self._heap: list[tuple[float, int, Chunk]] = []
        self._serial = counter()
        self._tick = 0
        self.blocks = 0
        """Held now."""
        self.gone = 0
        """Chunks that had to go so far."""

    def __iter__(self) -> Iterator[Chunk]:
        return chain.from_iterable(self._chunks.values())

    def __contains__(self, name: bytes) -> bool:
        return name in self._chunks

    @property
    def exceeds(self) -> bool:
        """It holds more than half of what it may: under pressure it loses first."""
        return 2 * self.blocks > self._most

    def get(self, name: bytes) -> Chunk | None:
        """The only variant, or one of several."""
        return next(iter(self._chunks.get(name, ())), None)

    def variants(self, name: bytes) -> list[Chunk]:
        """All that are kept, in the order in which they came."""
        return list(self._chunks.get(name, ()))

    def used(self, chunk: Chunk) -> None:
        """It was linked."""
        self._tick += 1
        chunk.facts.last_used = self._tick
        chunk.facts.hits += 1
        before, chunk.score = chunk.score, self._retention.score(chunk.facts)
        if chunk.score < before and chunk in self._chunks.get(chunk.name, ()):  # on the heap it stands too far behind
            self._withdraw(chunk)
            self._offer(chunk)

    def add(self, name: bytes, position: int, blocks: Seq[int], facts: Facts, notes: Notes | None = None) -> bool:
        """Keep a chunk that lies in `blocks`, which the caller holds; False where there is one of this name, from the same
        context, or it is too large. Of `variants` others the one of least score makes way."""
        others = self._chunks.get(name, [])
        if len(blocks) > self._most or any(_front(other.notes) == _front(notes) for other in others):
            return False
        if len(others) == self._variants:
            least = min(others, key=lambda other: other.score)
            self._withdraw(least)
            self._remove(least)
        while self.blocks + len(blocks) > self._most:
            self._lose_one()
        self._tick += 1
        facts.last_used = self._tick
        chunk = Chunk(name, position, list(blocks), facts, notes)
        self._chunks.setdefault(name, []).append(chunk)
        chunk.score = self._retention.score(facts)
        self._pool.cache(chunk.blocks)
        self.blocks += len(blocks)
        self._offer(chunk)
        return True

    def evict(self, count: int) -> int:
        """Lose chunks until `count` blocks are free or no chunk is left that frees any; the number freed. A chunk of which some
        blocks are read goes too: its readers keep those."""
        given = 0
        spared: list[Chunk] = []
        while given < count and (chunk := self._first()) is not None:
            if all(self._pool.refs[block] > 1 for block in chunk.blocks):
                spared.append(chunk)
            else:
                given += self._lose(chunk)
        for chunk in spared:
            self._offer(chunk)
        return given

    def _offer(self, chunk: Chunk) -> None:
        heapq.heappush(self._heap, (chunk.score, next(self._serial), chunk))

    def _withdraw(self, chunk: Chunk) -> None:
        self._heap = [entry for entry in self._heap if entry[2] is not chunk]
        heapq.heapify(self._heap)

    def _first(self) -> Chunk | None:
        """Off the heap: the chunk that is to go first."""
        while self._heap:
            score, _, chunk = heapq.heappop(self._heap)
            if chunk.score <= score:
                return chunk
            self._offer(chunk)
        return None

    def _lose_one(self) -> None:
        chunk = self._first()
        assert chunk is not None, "a chunk is held that could never be given up"
        self._lose(chunk)

    def _lose(self, chunk: Chunk) -> int:
        self._retention.gave_up(chunk.score)
        return self._remove(chunk)

    def _remove(self, chunk: Chunk) -> int:
        """Off the heap already."""
        others = self._chunks[chunk.name]
        others.remove(chunk)
        if not others:
            del self._chunks[chunk.name]
        self.blocks -= len(chunk.blocks)
        self.gone += 1
        return self._pool.disown(chunk.blocks)

    def clear(self) -> None:
        """Forget everything."""
        while self._chunks:
            self._lose_one()

    def audit(self) -> None:
        """AssertionError when its books are wrong (tests, debugging)."""
        held = [block for chunk in self for block in chunk.blocks]
        assert len(held) == len(set(held)) == self.blocks <= self._most, "the chunks lost count of their blocks"
        assert all(self._pool.is_cached(block) for block in held), "a chunk's block is not the cache's"
        assert all(0 < len(those) <= self._variants for those in self._chunks.values()), "there are too many of one name"
        offered = sorted(id(chunk) for _, _, chunk in self._heap)
        assert offered == sorted(id(chunk) for chunk in self), "a chunk could never be given up"


def _front(notes: Notes | None) -> tuple[bytes, ...] | None:
    """What tells contexts apart: the chunks that stood before; None: nothing was seen."""
    return None if notes is None else notes.front
