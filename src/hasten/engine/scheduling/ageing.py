"""Ageing: whoever was not served for longer than patience allows goes ahead of everybody who was, under any order.

One mechanism of the planner, not one a policy. A sequence that became overdue stays ahead until it ends: if it fell back
after a chunk, whoever overtook it before would overtake it again, and take the KV it had just got. So the overdue are served
first come, first served, they yield last, and the wait is bounded: patience, then what is ahead among the overdue, then what
already runs. Exact. O(sequences served) a step.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from hasten.engine.sequence import Sequence


class Ageing:
    """`patience_s`: seconds without a token computed, after which a sequence is overdue."""

    def __init__(self, patience_s: float) -> None:
        if not patience_s > 0:
            raise ValueError(f"patience_s must be seconds above 0, got {patience_s}")
        self._patience_s = patience_s
        self._due_s: OrderedDict[int, float] = OrderedDict()
        """When each sequence becomes overdue; ascending, as each goes to the end when it is served."""
        self._overdue: set[int] = set()
        self.serving: list[int] = []
        """Who is in the plan that runs now, or several times in a row: they are served until the next one is made."""

    def __contains__(self, id: int) -> bool:
        return id in self._overdue

    @property
    def next_s(self) -> float:
        """When the next sequence becomes overdue if it is not served before; infinity for never."""
        return next(iter(self._due_s.values()), math.inf)

    def came(self, id: int, now: float) -> None:
        self._due_s[id] = now + self._patience_s

    def went(self, id: int) -> None:
        self._due_s.pop(id, None)
        self._overdue.discard(id)

    def rank(self, ranked: list[Sequence], now: float) -> list[Sequence]:
        """`ranked` with the overdue in front, in order of arrival."""
        due_s = now + self._patience_s
        for id in self.serving:
            if id in self._due_s:
                self._due_s[id] = due_s
                self._due_s.move_to_end(id)
        while self._due_s and self.next_s <= now:
            self._overdue.add(self._due_s.popitem(last=False)[0])
        if not self._overdue:
            return ranked
        first = [seq for seq in ranked if seq.id in self._overdue]
        first.sort(key=lambda seq: (seq.arrival_s, seq.id))
        return first + [seq for seq in ranked if seq.id not in self._overdue]
