"""In which of the forms that a peer offers each next chunk is fetched: the controller, fed by transfers as they happen.

All that was asked for and is not over counts as what remains, whoever asked: one link serves all. Calls come from the engine's
thread (`ask`, `seconds`) and from those that transfer and decode.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite

from hasten.engine.kv.base import Dearer
from hasten.engine.kv.bitstream.controller import Controller, Option
from hasten.engine.kv.jobs import STALE_S

TEXT = ""
"""The option of computing instead; no codec is called so."""
_DECODED = 1e8
"""Bytes of planes that are decoded a second, before any were."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A chunk that was asked for. offers[codec]: (loss, bytes); `plain_bytes` of its planes; `compute_s`: of computing it;
    `codec`: that it comes in."""

    name: bytes
    parent: bytes
    offers: Mapping[str, tuple[int, int]]
    plain_bytes: int
    compute_s: float
    asked_s: float
    codec: str = ""


class Chooser:
    """`bandwidth`: bytes a second that are expected where no transfer tells; `first_token_s`: after a chunk was asked for, by
    when it and all asked for with it should be there."""

    def __init__(self, bandwidth: float, first_token_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected = self._bandwidth = bandwidth
        self._measured_s = -inf
        self._deadline_s = first_token_s
        self._clock = clock
        self._lock = threading.Condition()
        self._tickets: list[Ticket] = []
        self._line: deque[Ticket] = deque()
        """Those not transferred yet, in the order in which they were asked for."""
        self._computed: set[bytes] = set()
        """Chunks that are not fetched: nor are those behind them."""
        self._decode_s: dict[str, float] = {}
        """Seconds for a byte of planes, by codec."""

    def ask(
        self, name: bytes, parent: bytes, offers: Mapping[str, tuple[int, int]], plain_bytes: int, compute_s: float
    ) -> Ticket:
        ticket = Ticket(name, parent, offers, plain_bytes, compute_s, self._clock())
        with self._lock:
            if not self._tickets:
                self._computed.clear()
            self._computed.discard(name)
            self._tickets.append(ticket)
            self._line.append(ticket)
        return ticket

    @contextmanager
    def turn(self, ticket: Ticket) -> Iterator[None]:
        """Around the choice and transfer of a chunk: one at a time, in the order asked for. Whoever waits here must have been
        given to threads in that order too."""
        with self._lock:
            self._lock.wait_for(lambda: self._line[0] is ticket)
        try:
            yield
        finally:
            with self._lock:
                self._line.remove(ticket)
                self._lock.notify_all()

    def choose(self, ticket: Ticket) -> str:
        """The codec to fetch the chunk in, whose turn it is. Raises Dearer when it should be computed."""
        with self._lock:
            if ticket.parent in self._computed:
                self._computed.add(ticket.name)
                raise Dearer("a chunk before it is computed, so it is too")
            rest = list(self._line)
            busy = sum(self._seconds_of(other.codec, other) for other in self._tickets if other.codec)
            options = [self._option(codec, loss, rest) for codec, (loss, _) in ticket.offers.items()]
            compute_s = tuple(one.compute_s for one in rest)
            if all(map(isfinite, compute_s)):
                options.append(Option(TEXT, 0, (0,) * len(rest), compute_s))
            controller = Controller(options, ticket.asked_s + self._deadline_s, self._rate())
            now = self._clock()
            chosen = controller.choose(0, now, now + busy).name
            if chosen == TEXT:
                self._computed.add(ticket.name)
                raise Dearer("computing it takes less time")
            ticket.codec = chosen
            return chosen

    def _option(self, codec: str, loss: int, rest: list[Ticket]) -> Option:
        """All of `rest` in this codec; what is not offered in it comes in its smallest form."""
        sizes = [one.offers[codec][1] if codec in one.offers else min(size for _, size in one.offers.values()) for one in rest]
        return Option(codec, loss, tuple(sizes), tuple(self._seconds_of(codec, one) for one in rest))

    def _seconds_of(self, codec: str, ticket: Ticket) -> float:
        return ticket.plain_bytes * self._decode_s.get(codec, 1 / _DECODED)

    def transferred(self, ticket: Ticket, nbytes: int, seconds: float) -> None:
        if nbytes and seconds > 0:
            with self._lock:
                self._bandwidth, self._measured_s = nbytes / seconds, self._clock()

    def _rate(self) -> float:
        """Bytes a second: those of the last transfer, or if that was long ago what was expected, if that is more: a link that
        was slow once must not be left for good."""
        stale = self._clock() - self._measured_s > STALE_S
        return max(self._bandwidth, self._expected) if stale else self._bandwidth

    @contextmanager
    def decoding(self, ticket: Ticket) -> Iterator[None]:
        """Around the decoding of a chunk, which it times."""
        began = self._clock()
        yield
        took = (self._clock() - began) / ticket.plain_bytes
        with self._lock:
            known = self._decode_s.get(ticket.codec, took)
            self._decode_s[ticket.codec] = known + 0.3 * (took - known)

    def over(self, ticket: Ticket) -> None:
        with self._lock:
            self._tickets.remove(ticket)
            if ticket in self._line:  # it was never transferred
                self._line.remove(ticket)
                self._lock.notify_all()

    def seconds(self, nbytes: int) -> float:
        """Predicted, until `nbytes` more would be here: behind all that was asked for, in its smallest form."""
        with self._lock:
            queued = sum(min(size for _, size in one.offers.values()) for one in self._tickets)
            return (queued + nbytes) / self._rate()
