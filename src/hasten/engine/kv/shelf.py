"""A shelf: which chunks a tier holds, within a budget of bytes. Names and numbers only; where the bytes lie is the tier's."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

from hasten.engine.kv.blockfile import Head
from hasten.engine.kv.retention import Facts, Retention


class Entry:
    """A chunk of a tier. `pins`: transfers that read or write it, and look-ups that are about to. `ready`: it is whole."""

    __slots__ = ("coded", "facts", "head", "name", "parent", "pins", "ready", "score", "slot")

    def __init__(self, head: Head, facts: Facts) -> None:
        self.head = head
        self.name = head.name
        self.parent = head.parent
        self.facts = facts
        self.slot = -1
        """Where in the tier it lies, if the tier has such places."""
        self.pins = 0
        self.ready = False
        self.coded = False
        """It was in a lossy codec's hands."""
        self.score = 0.0


class Shelf:
    """Chunks by name. O(log chunks) an operation. Chunks that are pinned, or have one behind them here, are not given up."""

    def __init__(self, budget: int, retention: Retention) -> None:
        self.budget = budget
        self.used = 0
        self.entries: dict[bytes, Entry] = {}
        self._retention = retention
        self._behind: Counter[bytes] = Counter()
        """How many chunks here name this one as their parent, whether it is here or not."""
        self._heap: list[tuple[float, int, Entry]] = []
        self._serial = count()
        self._tick = 0

    def __contains__(self, name: bytes) -> bool:
        return name in self.entries

    def get(self, name: bytes) -> Entry | None:
        return self.entries.get(name)

    def tick(self) -> int:
        """Number of this look-up."""
        self._tick += 1
        return self._tick

    def used_again(self, entry: Entry, tick: int, found: bool) -> None:
        """It was used in look-up `tick`; `found`: this tier was what had it."""
        entry.facts.last_used = tick
        entry.facts.hits += found
        entry.score = self._retention.score(entry.facts)

    def add(self, head: Head, facts: Facts) -> tuple[Entry | None, list[Entry]]:
        """Take in a chunk; (its entry, pinned once and not ready, or None where there is no room; what had to go for it)."""
        gone = self.make_room(facts.nbytes, keep=head.parent)
        if self.used + facts.nbytes > self.budget:
            return None, gone
        return self._put(head, facts), gone

    def restore(self, head: Head, facts: Facts) -> None:
        """Take in a chunk that is there already. `make_room` says afterwards which are too many."""
        self.tick()
        entry = self._put(head, facts)
        entry.ready = True
        self.unpin(entry)

    def _put(self, head: Head, facts: Facts) -> Entry:
        entry = Entry(head, facts)
        facts.last_used = self._tick
        entry.score = self._retention.score(facts)
        entry.pins = 1
        self.entries[head.name] = entry
        self.used += facts.nbytes
        self._behind[head.parent] += 1
        return entry

    def resize(self, entry: Entry, nbytes: int) -> None:
        """It turned out to take so many bytes. The caller has it pinned."""
        self.used += nbytes - entry.facts.nbytes
        entry.facts.nbytes = nbytes
        entry.score = self._retention.score(entry.facts)

    def make_room(self, nbytes: int, keep: bytes = b"") -> list[Entry]:
        """Give up chunks, never the one called `keep`, until `nbytes` are free or none is left that may go; those given up."""
        gone: list[Entry] = []
        spared: list[tuple[float, int, Entry]] = []
        while self.used + nbytes > self.budget and self._heap:
            item = heapq.heappop(self._heap)
            score, _, entry = item
            if self.entries.get(entry.name) is not entry or entry.pins or entry.name in self._behind:
                continue  # gone already, or offered again when nothing holds it any more
            if entry.score > score:
                self._offer(entry)
            elif entry.name == keep:
                spared.append(item)
            else:
                self._retention.gave_up(entry.score)
                self.remove(entry)
                gone.append(entry)
        for item in spared:
            heapq.heappush(self._heap, item)
        return gone

    def pin(self, entry: Entry) -> None:
        entry.pins += 1

    def unpin(self, entry: Entry) -> None:
        entry.pins -= 1
        if not entry.pins and self.entries.get(entry.name) is entry:
            self._offer(entry)

    def remove(self, entry: Entry) -> None:
        if self.entries.get(entry.name) is not entry:
            return
        del self.entries[entry.name]
        self.used -= entry.facts.nbytes
        self._behind[entry.parent] -= 1
        if not self._behind[entry.parent]:
            del self._behind[entry.parent]
            parent = self.entries.get(entry.parent)
            if parent is not None and not parent.pins:
                self._offer(parent)

    def _offer(self, entry: Entry) -> None:
        if entry.name in self._behind:
            return
        heapq.heappush(self._heap, (entry.score, next(self._serial), entry))
        if len(self._heap) > 4 * len(self.entries) + 64:  # what was offered again and again
            latest = {item[2].name: item for item in sorted(self._heap, key=lambda item: item[1])}
            self._heap = [item for item in latest.values() if self.entries.get(item[2].name) is item[2]]
            heapq.heapify(self._heap)

    def audit(self) -> None:
        """AssertionError when the counts are wrong, or a chunk that may go would never be offered (tests, debugging)."""
        assert self.used == sum(entry.facts.nbytes for entry in self.entries.values()), "the shelf lost count of its bytes"
        assert self.used <= self.budget, "the shelf holds more than its budget"
        behind = Counter(entry.parent for entry in self.entries.values())
        assert behind == self._behind, "the shelf lost count of its children"
        offered = {entry.name for _, _, entry in self._heap}
        for entry in self.entries.values():
            assert entry.pins >= 0, "a chunk was let go of more often than held"
            assert entry.pins or entry.name in behind or entry.name in offered, "a chunk could never be given up"
