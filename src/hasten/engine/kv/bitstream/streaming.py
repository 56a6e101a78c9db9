"""A stored prefix on its way in, chunk by chunk: while chunk i is decoded, chunk i + 1 is transferred."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hasten.engine.kv.bitstream.controller import Controller, Option


class GivenUp(Exception):
    """The transfer was broken off because it no longer pays."""


class Link(Protocol):
    """Where chunks come from, one after the other."""

    def get(self, chunk: int, option: str, more: Callable[[int], bool]) -> bytes:
        """The chunk in this form. `more(bytes so far)` is asked now and then; raises GivenUp when it says no. Raises OSError
        when the other side is gone."""
        ...


@dataclass(slots=True)
class Streamed:
    """What became of the chunks, in order: `options` by name, `nbytes` transferred in all, those given up included. `failed`:
    why the link broke, if it did; from that chunk on everything was computed."""

    options: list[str] = field(default_factory=list)
    nbytes: int = 0
    given_up: int = 0
    failed: str = ""


def stream(
    controller: Controller,
    link: Link,
    decode: Callable[[int, str, bytes], None],
    compute: Callable[[int], None],
    *,
    text: str = "text",
    clock: Callable[[], float] = time.perf_counter,
) -> Streamed:
    """Bring all chunks in. `decode(chunk, option, payload)` and `compute(chunk)` (for the option called `text`) are called by
    this thread, in the order of the chunks; transfers take place in another. Returns when all chunks are ready. Raises what
    `decode` and `compute` raise."""
    state = _Transfers(controller, link, text, clock)
    worker = threading.Thread(target=state.run, name="hasten-stream", daemon=True)
    worker.start()
    try:
        for chunk in range(controller.chunks):
            option, payload = state.take()
            if payload is None:
                compute(chunk)
            else:
                decode(chunk, option.name, payload)
            state.worked(option.seconds[chunk])
    finally:
        state.stop = True
        worker.join()
    return state.result


class _Transfers:
    def __init__(self, controller: Controller, link: Link, text: str, clock: Callable[[], float]) -> None:
        self.result = Streamed()
        self.stop = False
        self._controller = controller
        self._link = link
        self._text = text
        self._clock = clock
        self._arrived: queue.SimpleQueue[tuple[Option, bytes | None] | Exception] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._queued_s = 0.0
        """Predicted work of what has arrived and is not done."""

    def take(self) -> tuple[Option, bytes | None]:
        got = self._arrived.get()
        if isinstance(got, Exception):
            raise got
        return got

    def worked(self, predicted_s: float) -> None:
        with self._lock:
            self._queued_s -= predicted_s

    def _busy_until(self) -> float:
        with self._lock:
            return self._clock() + self._queued_s

    def run(self) -> None:
        text = next((option for option in self._controller.options if option.name == self._text), None)
        chunk = 0
        patient = False
        while chunk < self._controller.chunks and not self.stop:
            if self.result.failed and text is not None:
                option = text
            else:
                option = self._controller.choose(chunk, self._clock(), self._busy_until())
            payload: bytes | None = None
            if option.name != self._text:
                try:
                    payload = self._get(chunk, option, patient)
                except GivenUp:  # once for a chunk: a link that keeps changing would never bring anything
                    self.result.given_up += 1
                    patient = True
                    continue
                except Exception as error:
                    self.result.failed = str(error) or type(error).__name__
                    if text is None:  # nothing to fall back on
                        self._arrived.put(error)
                        return
                    continue
            self.result.options.append(option.name)
            with self._lock:
                self._queued_s += option.seconds[chunk]
            self._arrived.put((option, payload))
            chunk += 1
            patient = False

    def _get(self, chunk: int, option: Option, patient: bool) -> bytes:
        began = self._clock()
        received = 0

        def more(so_far: int) -> bool:
            nonlocal received
            received = so_far
            if self.stop or patient:
                return not self.stop
            now = self._clock()
            return not self._controller.gives_up(option, chunk, so_far, now - began, now, self._busy_until())

        try:
            payload = self._link.get(chunk, option.name, more)
            received = len(payload)
            return payload
        except GivenUp:
            received = max(received, 1)  # nothing in all that time is a measurement as well
            raise
        finally:
            self.result.nbytes += received
            self._controller.measured(received, self._clock() - began)
