"""Chunks in host memory: a shelf over the second pool, each chunk in consecutive blocks."""

from __future__ import annotations

from hasten.engine.kv.blockfile import Head
from hasten.engine.kv.host import SecondPool
from hasten.engine.kv.retention import Facts, Retention
from hasten.engine.kv.shelf import Entry, Shelf


class HostChunks:
    """`size`: blocks of a chunk. Entries are those of `Shelf`; a chunk that was dropped keeps its place until nothing reads or
    writes it any more."""

    def __init__(self, second: SecondPool, size: int, retention: Retention) -> None:
        self._second = second
        self._size = size
        places = second.blocks // size
        self.shelf = Shelf(places * size * second.block_bytes, retention)
        self._free = list(range(places - 1, -1, -1))
        self._dropped: set[Entry] = set()
        self.gave_up = 0
        """Chunks that had to go for others."""

    def get(self, name: bytes) -> Entry | None:
        return self.shelf.get(name)

    def add(self, head: Head, facts: Facts) -> Entry | None:
        """A place for a chunk, pinned once; None when all are needed."""
        entry, gone = self.shelf.add(head, facts)
        self.gave_up += len(gone)
        self._free.extend(one.slot for one in gone)
        if entry is None:
            return None
        if not self._free:  # those dropped still occupy places
            self.shelf.remove(entry)
            return None
        entry.slot = self._free.pop()
        return entry

    def blocks(self, entry: Entry) -> list[int]:
        """Of the second pool."""
        return list(range(entry.slot * self._size, (entry.slot + 1) * self._size))

    def pin(self, entry: Entry) -> None:
        self.shelf.pin(entry)

    def unpin(self, entry: Entry) -> None:
        self.shelf.unpin(entry)
        if not entry.pins and entry in self._dropped:
            self._dropped.remove(entry)
            self._free.append(entry.slot)

    def drop(self, entry: Entry) -> None:
        """Nobody is to find it again. The caller has it pinned."""
        if self.shelf.get(entry.name) is entry:
            self.shelf.remove(entry)
            self._dropped.add(entry)

    def everything(self) -> list[Entry]:
        """Those dropped, whose places are still in use, included."""
        return [*self.shelf.entries.values(), *self._dropped]

    def audit(self) -> None:
        self.shelf.audit()
        held = [entry.slot for entry in self.everything()]
        assert sorted([*held, *self._free]) == list(range(self._second.blocks // self._size)), (
            "a place is leaked or owned twice"
        )
        assert all(entry.pins for entry in self._dropped), "a place is kept for nobody"
