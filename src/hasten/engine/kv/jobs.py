"""Work in threads, and how fast a link turns out to be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf

STALE_S = 60.0
"""What a link gave longer ago no longer speaks against it: it would never be used again, and so never measured again."""


class Job:
    """Work in a thread (`kv.base.Handle`), which gives the seconds it took."""

    ends_s = inf

    def __init__(self, future: Future[float]) -> None:
        self._future = future

    @property
    def seconds(self) -> float:
        return self._future.result() if self._future.done() and self._future.exception() is None else 0.0

    def done(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        self._future.result()


class Rate:
    """Bytes per second of a link as its transfers turn out, and how many bytes wait for it. From any thread."""

    def __init__(self, expected: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected = self._byte_s = 1 / expected
        self._measured_s = -inf
        self._queued = 0
        self._clock = clock
        self._lock = threading.Lock()

    def seconds(self, nbytes: int) -> float:
        stale = self._clock() - self._measured_s > STALE_S
        return (self._queued + nbytes) * (min(self._byte_s, self._expected) if stale else self._byte_s)

    def asked(self, nbytes: int) -> None:
        with self._lock:
            self._queued += nbytes

    def over(self, nbytes: int, took_s: float | None) -> None:
        """`took_s` None: it failed, which says nothing."""
        with self._lock:
            self._queued -= nbytes
            if took_s is not None and nbytes:
                self._measured_s = self._clock()
                byte_s = took_s / nbytes
                self._byte_s += 0.2 * (min(byte_s, 10 * self._byte_s) - self._byte_s)


def submit(pool: ThreadPoolExecutor, rate: Rate | None, nbytes: int, work: Callable[[], None]) -> Job:
    """Have `work` done in a thread, and the link's rate learn from it."""

    def timed() -> float:
        began = time.perf_counter()
        took = None
        try:
            work()
            took = time.perf_counter() - began
            return took
        finally:
            if rate is not None:
                rate.over(nbytes, took)

    if rate is not None:
        rate.asked(nbytes)
    return Job(pool.submit(timed))
