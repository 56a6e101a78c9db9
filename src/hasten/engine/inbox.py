"""The inbox of one lane: what callers hand over between steps, from any thread, and who waits for a grammar to be compiled."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import replace
from typing import Any

from hasten.engine.clock import Clock
from hasten.engine.decoding.base import Constraint
from hasten.engine.ledger import Ledger
from hasten.engine.outputs import QueueFull
from hasten.engine.request import BadRequest, Request
from hasten.engine.sequence import Finish


class Inbox:
    """`lock`: the memory's. `limit`: the most unfinished requests, None for any number."""

    def __init__(self, lock: Any, clock: Clock, constraint: Constraint | None, limit: int | None) -> None:
        self._lock = lock
        self._clock = clock
        self._constraint = constraint
        self._limit = limit
        self._items: deque[Request | tuple[str, int | None, Finish]] = deque()
        self._open: set[str] = set()
        self._compiling: set[str] = set()
        """Accepted requests whose constraints are being compiled; each joins the items after."""

    def __len__(self) -> int:
        return len(self._items)

    @property
    def unfinished(self) -> int:
        """Requests that were accepted and are not done."""
        return len(self._open)

    @property
    def requests(self) -> int:
        """Requests that can be let in at the next step."""
        return sum(isinstance(item, Request) for item in list(self._items))

    @property
    def compiling(self) -> int:
        """Requests that wait for their grammars."""
        return len(self._compiling)

    def put(self, request: Request) -> None:
        """Accept a checked request; BadRequest or QueueFull otherwise, and nothing has changed then."""
        compiling = None
        if request.sampling.constraint is not None:
            assert self._constraint is not None, "it was checked"
            compiling = self._constraint.prepare(request)
        with self._lock:
            if request.id in self._open:
                raise BadRequest(f"a request with id {request.id!r} is already running", "id")
            if self._limit is not None and len(self._open) >= self._limit:
                raise QueueFull(f"{len(self._open)} requests are unfinished, the limit is {self._limit}")
            self._open.add(request.id)
            if compiling is None:
                self._items.append(request)
                return
            self._compiling.add(request.id)
            if request.arrival_s is None:
                request = replace(request, arrival_s=self._clock.now())
        compiling.add_done_callback(lambda _: self._items.append(request))

    def cancel(self, request_id: str, index: int | None, reason: Finish) -> None:
        self._items.append((request_id, index, reason))

    def done(self, request_id: str) -> None:
        """All of a request's sequences are finished."""
        self._open.discard(request_id)

    def empty_into(self, ledger: Ledger) -> None:
        """Let in whoever is ready, and end what was cancelled. Under the lock."""
        early: list[tuple[str, int | None, Finish]] = []
        while self._items:
            item = self._items.popleft()
            if isinstance(item, tuple):
                if item[0] in self._compiling:
                    early.append(item)
                else:
                    ledger.cancel(*item)
                continue
            self._compiling.discard(item.id)
            seed = item.sampling.seed
            seq = ledger.admit(item, secrets.randbits(64) if seed is None else seed)
            if self._constraint is not None and item.sampling.constraint is not None:
                try:
                    seq.constraint = self._constraint.start(item)
                except Exception as failure:  # a bad grammar ends its own request only
                    ledger.close(seq, Finish.ERROR, f"constraint: {failure}")
        self._items.extend(early)
