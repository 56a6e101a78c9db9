"""Every state change as one typed event, stored in columns.

Metrics, traces, plots and the console are functions of this log and read nothing else. An event is a row of five numbers
(time, kind, sequence, two values whose meaning the kind gives), so a token costs an append to five arrays, not an object.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class Kind(IntEnum):
    """What happened; `a` and `b` of each kind in brackets (unused ones are 0)."""

    ARRIVED = 0
    """a request came in [a: prompt tokens, b: request number]"""
    QUEUED = 1
    """a sequence waits to be scheduled [a: tokens to compute]"""
    SCHEDULED = 2
    """its tokens are computed in this step [a: tokens already known, b: drafted tokens]"""
    FIRST_TOKEN = 3
    """its first output token was committed"""
    TOKENS = 4
    """output tokens were committed [a: how many]"""
    PREEMPTED = 5
    """its KV was dropped; it will be computed again [a: tokens lost]"""
    SWAPPED = 6
    """its KV started to leave for a slower tier [a: blocks that are copied, b: blocks that lie there already]"""
    RESUMED = 7
    """its KV is back and it can run"""
    MIGRATED = 8
    """it moved to another engine"""
    STAGE_STARTED = 9
    """an application's stage began"""
    STAGE_FINISHED = 10
    """an application's stage ended"""
    REUSED = 11
    """prompt tokens whose KV was found [a: how many]"""
    DRAFTED = 12
    """drafted tokens were verified [a: drafted, b: accepted]"""
    TRANSFER_DONE = 13
    """a copy between tiers ended [a: blocks, b: seconds the copying took]"""
    STEP = 14
    """a step was measured, planning included [sequence: -1, a: tokens computed, b: seconds]"""
    MEMORY = 15
    """after a step [sequence: -1, a: free blocks incl. evictable, b: rows in the step]"""
    MEMORY_LOW = 16
    """a plan did not fit; somebody must yield [a: blocks missing]"""
    PLAN_REFUSED = 17
    """a policy's plan broke a rule and the first-come plan ran instead"""
    FORKED = 18
    """a sequence was split off another [a: parent]"""
    FINISHED = 19
    """it ended well [a: output tokens, b: finish reason's number]"""
    FAILED = 20
    """it ended with an error, or was cancelled or rejected [b: finish reason's number]"""
    READ = 21
    """after a step, what its attention read [sequence: -1, a: cached tokens, b: pairs of query and key]"""
    LOADED = 22
    """KV that was fetched for it from slower tiers is here [a: tokens, b: tokens that did not come]"""


ENDS = frozenset({Kind.FINISHED, Kind.FAILED})
"""The last event of every sequence is one of these."""

COLUMNS = {"time_s": np.float64, "kind": np.int8, "sequence": np.int64, "a": np.float64, "b": np.float64}
"""Names and dtypes of the log's columns."""


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the log, as policies that learn from events receive it."""

    time_s: float
    kind: Kind
    sequence: int
    a: float = 0.0
    b: float = 0.0


class EventLog:
    """Columns of events. At most `keep` rows are held (None: all): the older half is dropped when the log is full."""

    def __init__(self, keep: int | None = 4_000_000) -> None:
        self.keep = keep
        self._time = array("d")
        self._kind = array("b")
        self._sequence = array("q")
        self._a = array("d")
        self._b = array("d")
        self._observers: list[list[Callable[[Event], None]]] = [[] for _ in Kind]
        """Of each kind."""
        self.counts = [0] * len(Kind)
        """Events of each kind so far, dropped ones included."""
        self.sums = [0.0] * len(Kind)
        """Sum of `a` over them."""

    def __len__(self) -> int:
        return len(self._time)

    def subscribe(self, observer: Callable[[Event], None], kinds: Iterable[Kind]) -> None:
        """Call `observer` with each later event of these kinds (costs an object an event, so name only what is needed)."""
        for kind in kinds:
            self._observers[kind].append(observer)

    def add(self, time_s: float, kind: Kind, sequence: int = -1, a: float = 0.0, b: float = 0.0) -> None:
        self._time.append(time_s)
        self._kind.append(kind)
        self._sequence.append(sequence)
        self._a.append(a)
        self._b.append(b)
        self.counts[kind] += 1
        self.sums[kind] += a
        if self.keep is not None and len(self._time) > self.keep:
            self._drop_older_half()
        for observer in self._observers[kind]:
            observer(Event(time_s, kind, sequence, a, b))

    def add_each(self, time_s: float, kind: Kind, sequences: Sequence[int], a: float = 0.0) -> None:
        """The same event of each of `sequences`, in order."""
        if self._observers[kind]:
            for sequence in sequences:
                self.add(time_s, kind, sequence, a)
            return
        count = len(sequences)
        self._time.extend([time_s] * count)
        self._kind.extend([kind] * count)
        self._sequence.extend(sequences)
        self._a.extend([a] * count)
        self._b.extend([0.0] * count)
        self.counts[kind] += count
        self.sums[kind] += a * count
        if self.keep is not None and len(self._time) > self.keep:
            self._drop_older_half()

    def extend(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add many events at once: columns as `columns()` gives them, of these dtypes."""
        kinds = columns["kind"]
        for column, name in zip(self._columns(), COLUMNS, strict=True):
            column.frombytes(columns[name].tobytes())
        sums = np.bincount(kinds, weights=columns["a"], minlength=len(Kind))
        for kind, count in enumerate(np.bincount(kinds, minlength=len(Kind)).tolist()):
            self.counts[kind] += count
            self.sums[kind] += float(sums[kind])
        while self.keep is not None and len(self._time) > self.keep:
            self._drop_older_half()
        observed = np.array([bool(observers) for observers in self._observers])
        if observed[kinds].any():
            rows = np.flatnonzero(observed[kinds])
            for time_s, kind, *rest in zip(*(columns[name][rows].tolist() for name in COLUMNS), strict=True):
                for observer in self._observers[kind]:
                    observer(Event(time_s, Kind(kind), *rest))

    def _columns(self) -> tuple[array[Any], ...]:
        return self._time, self._kind, self._sequence, self._a, self._b

    def _drop_older_half(self) -> None:
        half = max(1, len(self._time) // 2)
        for column in self._columns():
            del column[:half]

    def columns(self, start: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Copies of the columns from row `start` on: `time_s` float64, `kind` int8, `sequence` int64, `a`, `b` float64."""
        parts = zip(COLUMNS, self._columns(), COLUMNS.values(), strict=True)
        return {name: np.array(column[start:], dtype=dtype) for name, column, dtype in parts}
