"""Drafting beside the served model: one thread, with a core of its own, that rolls out lines while a step is computed.

From when a `Rollout` is posted until it is over everything of the draft (twins, books, executor) is the thread's, before and
after the engine's. So nothing of it needs a lock.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Container
from collections.abc import Sequence as Seq

from hasten.engine.decoding.drafts.drafter import Drafter, Line
from hasten.kernels.cpu.native import use_threads

LOOKS_S = 0.05
"""How often one who waits looks whether the thread still lives."""


class Rollout:
    """Lines that are given their tokens by the thread. `began_s`, `ended_s`: monotonic."""

    def __init__(self, drafter: Drafter, lines: Seq[Line]) -> None:
        self.lines = list(lines)
        self.failure: BaseException | None = None
        self.began_s = self.ended_s = 0.0
        self._drafter = drafter
        self._wanted: Container[int] | None = None
        self._over = threading.Event()

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def only(self, lines: Seq[Line]) -> None:
        """From the next pass on no other lines go on."""
        self._wanted = {id(line) for line in lines}

    def run(self) -> None:
        self.began_s = time.perf_counter()
        try:
            self._drafter.draft(self.lines, self._going)
        except BaseException as failure:
            self.failure = failure
        self.ended_s = time.perf_counter()
        self._over.set()

    def wait(self, seconds: float) -> bool:
        """Whether it is over by then."""
        return self._over.wait(seconds)

    def _going(self, lines: list[Line]) -> list[Line]:
        wanted = self._wanted
        return lines if wanted is None else [line for line in lines if id(line) in wanted]


class Aside:
    """The thread; it begins with the first rollout, and ends with this object or `close`. Its kernels use one thread."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Rollout | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._asked.put, None)

    @property
    def alive(self) -> bool:
        """Or not yet begun."""
        return self._thread is None or self._thread.is_alive()

    def post(self, rollout: Rollout) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._asked,), name="hasten-mirror", daemon=True)
            self._thread.start()
        self._asked.put(rollout)

    def wait(self, rollout: Rollout) -> None:
        """Until it is over. RuntimeError when the thread has died over it."""
        while not rollout.wait(LOOKS_S):
            if not self.alive and not rollout.over:
                raise RuntimeError("the thread that drafts has died")

    def close(self) -> None:
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join()


def _serve(asked: queue.SimpleQueue[Rollout | None]) -> None:
    use_threads(1)
    while (rollout := asked.get()) is not None:
        rollout.run()
        del rollout  # and with it all that it holds, while the thread waits
