"""The sequences in order of rank, kept sorted while keys change.

A few changed keys cost a search each, many cost a sort; what no event touched costs nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable

from hasten.engine.sequence import Sequence

Rank = tuple[float, float, int]
"""The order's key, then arrival and number."""


class Ranking:
    def __init__(self) -> None:
        self._live: dict[int, Sequence] = {}
        self._of: dict[int, Rank] = {}
        """By sequence, its latest rank, which may be stale."""
        self._stale: set[int] = set()
        self._ranks: list[Rank] = []
        self._sequences: list[Sequence] = []
        """Those that have a rank, sorted, and their ranks beside them."""

    def key(self, id: int) -> float:
        """The order's latest key of a sequence; infinity for one that has none yet."""
        rank = self._of.get(id)
        return rank[0] if rank is not None else math.inf

    def came(self, sequence: Sequence) -> None:
        self._live[sequence.id] = sequence
        self._stale.add(sequence.id)

    def went(self, id: int) -> None:
        self._live.pop(id, None)
        self._stale.discard(id)
        self._take_out(id)

    def touch(self, id: int) -> None:
        """The key of a sequence is stale. One that has ended, or never was, does not matter."""
        if id in self._live:
            self._stale.add(id)

    def touch_all(self) -> None:
        self._stale.update(self._live)

    def stale(self) -> list[Sequence]:
        """Those to be keyed, in order of arrival."""
        return [self._live[id] for id in sorted(self._stale)]

    def put(self, keyed: Iterable[tuple[Sequence, float]]) -> None:
        """The keys of all that were stale."""
        self._stale.clear()
        ranks = ((key, seq.arrival_s, seq.id) for seq, key in keyed)
        changed = [rank for rank in ranks if self._of.get(rank[2]) != rank]
        if 8 * len(changed) > len(self._ranks):
            self._sort(changed)
            return
        for rank in changed:
            self._take_out(rank[2])
            place = bisect_left(self._ranks, rank)
            self._ranks.insert(place, rank)
            self._sequences.insert(place, self._live[rank[2]])
            self._of[rank[2]] = rank

    def sequences(self) -> list[Sequence]:
        """All that have a rank, the best first."""
        return self._sequences[:]

    def _take_out(self, id: int) -> None:
        rank = self._of.pop(id, None)
        if rank is not None:
            place = bisect_left(self._ranks, rank)
            del self._ranks[place], self._sequences[place]

    def _sort(self, changed: Iterable[Rank]) -> None:
        for rank in changed:
            self._of[rank[2]] = rank
        # Most stand where they stood, and what is nearly sorted is sorted in one pass.
        old = [rank[2] for rank in self._ranks]
        known = set(old)
        self._ranks = [self._of[id] for id in old] + [rank for id, rank in self._of.items() if id not in known]
        self._ranks.sort()
        self._sequences = [self._live[id] for _, _, id in self._ranks]
