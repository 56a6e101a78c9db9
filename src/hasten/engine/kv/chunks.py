"""Chunks: KV of pieces of text that were computed by themselves, kept in blocks of the pool and found by content.

A chunk is named by a hash over its tokens and everything else that its KV depends on or must not be shared across
(`blockfile.root`). Its entries lie from the first slots of whole blocks on, the last of which may be half used, with keys
rotated for the positions at which it was first computed. The store holds a reference of each block. Numbers only: who links a
chunk where is `engine/linking.py`'s business.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from itertools import count as counter

from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.retention import Facts, Retention


class Chunk:
    """`position` of its first token; `blocks` in its order."""

    __slots__ = ("blocks", "facts", "name", "position", "score")

    def __init__(self, name: bytes, position: int, blocks: list[int], facts: Facts) -> None:
        self.name = name
        self.position = position
        self.blocks = blocks
        self.facts = facts
        self.score = 0.0


class ChunkStore:
    """At most `share` of the pool. `retention` says which chunk goes first; `Facts.seconds` is what computing it again takes,
    `start` is 0. O(log chunks) a chunk that goes."""

    def __init__(self, pool: BlockPool, retention: Retention, share: float = 0.5) -> None:
        self._pool = pool
        self._retention = retention
        self._most = int(share * pool.blocks)
        self._chunks: dict[bytes, Chunk] = {}
        self._heap: list[tuple[float, int, Chunk]] = []
        self._serial = counter()
        self._tick = 0
        self.blocks = 0
        """Held now."""
        self.gone = 0
        """Chunks that had to go so far."""

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._chunks.values())

    def __contains__(self, name: bytes) -> bool:
        return name in self._chunks

    @property
    def exceeds(self) -> bool:
        """It holds more than half of what it may: under pressure it loses first."""
        return 2 * self.blocks > self._most

    def get(self, name: bytes) -> Chunk | None:
        return self._chunks.get(name)

    def used(self, chunk: Chunk) -> None:
        """It was linked."""
        self._tick += 1
        chunk.facts.last_used = self._tick
        chunk.facts.hits += 1
        chunk.score = self._retention.score(chunk.facts)

    def add(self, name: bytes, position: int, blocks: Seq[int], facts: Facts) -> bool:
        """Keep a chunk that lies in `blocks`, which the caller holds; False where there is one of this name or it is too
        large."""
        if name in self._chunks or len(blocks) > self._most:
            return False
        while self.blocks + len(blocks) > self._most:
            self._lose_one()
        self._tick += 1
        facts.last_used = self._tick
        chunk = self._chunks[name] = Chunk(name, position, list(blocks), facts)
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
        assert {chunk.name for _, _, chunk in self._heap} == set(self._chunks), "a chunk could never be given up"
