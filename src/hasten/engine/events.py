"""Every state change as one typed event, stored in columns.

Metrics, traces, plots and the console are functions of this log and read nothing else. An event is a row of five numbers
(time, kind, sequence, two values whose meaning the kind gives), so a token costs an append to five arrays, not an object.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

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
    """its KV started to leave for a slower tier [a: blocks]"""
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
    """a copy between tiers ended [a: blocks]"""
    STEP = 14
    """a step was measured [sequence: -1, a: tokens computed, b: seconds]"""
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


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the log, as policies that learn from events receive it."""

    time_s: float
    kind: Kind
    sequence: int
    a: float = 0.0
    b: float = 0.0


class EventLog:
    """Columns of events. At most `keep` rows are held: the older half is dropped when the log is full."""

    def __init__(self, keep: int = 4_000_000) -> None:
        self._keep = keep
        self._time = array("d")
        self._kind = array("b")
        self._sequence = array("q")
        self._a = array("d")
        self._b = array("d")
        self._observers: list[Callable[[Event], None]] = []
        self.counts = [0] * len(Kind)
        """Events of each kind so far, dropped ones included."""
        self.sums = [0.0] * len(Kind)
        """Sum of `a` over them."""

    def __len__(self) -> int:
        return len(self._time)

    def subscribe(self, observer: Callable[[Event], None]) -> None:
        """Call `observer` with each later event (costs an object an event, so only learners subscribe)."""
        self._observers.append(observer)

    def add(self, time_s: float, kind: Kind, sequence: int = -1, a: float = 0.0, b: float = 0.0) -> None:
        self._time.append(time_s)
        self._kind.append(kind)
        self._sequence.append(sequence)
        self._a.append(a)
        self._b.append(b)
        self.counts[kind] += 1
        self.sums[kind] += a
        if len(self._time) > self._keep:
            self._drop_older_half()
        for observer in self._observers:
            observer(Event(time_s, kind, sequence, a, b))

    def _drop_older_half(self) -> None:
        half = len(self._time) // 2
        for column in (self._time, self._kind, self._sequence, self._a, self._b):
            del column[:half]

    def columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """Copies of the columns `time_s`, `kind`, `sequence`, `a`, `b`, each [n]."""
        return {
            "time_s": np.array(self._time, dtype=np.float64),
            "kind": np.array(self._kind, dtype=np.float64),
            "sequence": np.array(self._sequence, dtype=np.float64),
            "a": np.array(self._a, dtype=np.float64),
            "b": np.array(self._b, dtype=np.float64),
        }
