"""Time as the engine sees it: the real one, or a virtual one that only moves when told (simulation)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds from an arbitrary zero. `sleep` returns no earlier than asked."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...
    def wait(self, until_s: float, woken: Callable[[], bool]) -> None:
        """Let time pass until `until_s`, or on a real clock until `woken`, asked about every millisecond."""
        ...


class RealClock:
    """`time.perf_counter`, so that durations are precise; wall-clock dates are the server's business."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def wait(self, until_s: float, woken: Callable[[], bool]) -> None:
        while not woken() and (left := until_s - self.now()) > 0:
            time.sleep(min(left, 1e-3))


class VirtualClock:
    """Stands still until somebody sleeps or advances it."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.advance(max(0.0, seconds))

    def wait(self, until_s: float, woken: Callable[[], bool]) -> None:
        self.advance_to(until_s)

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time cannot run backwards ({seconds} s)")
        self._now += seconds

    def advance_to(self, time_s: float) -> None:
        """Be no earlier than `time_s`."""
        self._now = max(self._now, time_s)
