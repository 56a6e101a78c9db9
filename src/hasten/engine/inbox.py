"""The inbox of one lane: what callers hand over between steps, from any thread, and who waits for a grammar to be compiled."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from hasten.engine.clock import Clock
from hasten.engine.decoding.base import Constraint
from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.ledger import Ledger
from hasten.engine.outputs import GRAMMAR_REFUSED, QueueFull
from hasten.engine.request import BadRequest, Request
from hasten.engine.sequence import Finish


@dataclass(frozen=True, slots=True, eq=False)
class _Compiled:
    """The grammar of this request is ready, or cannot be compiled for this reason."""

    request: Request
    failure: BaseException | None


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str
    index: int | None
    reason: Finish


class Inbox:
    """`lock`: the memory's. `limit`: the most unfinished requests, None for any number."""

    def __init__(self, lock: Any, clock: Clock, constraint: Constraint | None, limit: int | None) -> None:
        self._lock = lock
        self._clock = clock
        self._constraint = constraint
        self._limit = limit
        self._items: deque[Request | _Compiled | _Cancel] = deque()
        self._open: set[str] = set()
        self._compiling: dict[str, Request] = {}
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
        return sum(not isinstance(item, _Cancel) for item in list(self._items))

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
            if request.arrival_s is None:
                request = replace(request, arrival_s=self._clock.now())
            self._compiling[request.id] = request
        compiling.add_done_callback(lambda done: self._items.append(_Compiled(request, done.exception())))

    def cancel(self, request_id: str, index: int | None, reason: Finish) -> None:
        self._items.append(_Cancel(request_id, index, reason))

    def done(self, request_id: str) -> None:
        """All of a request's sequences are finished."""
        self._open.discard(request_id)

    def empty_into(self, ledger: Ledger) -> None:
        """Let in whoever is ready, and end what was cancelled. Under the lock."""
        early: list[_Cancel] = []
        while self._items:
            item = self._items.popleft()
            if isinstance(item, _Cancel):
                early += self._cancel(ledger, item)
            elif isinstance(item, Request):
                self._admit(ledger, item)
            elif self._compiling.get(item.request.id) is item.request:  # it was not cancelled meanwhile
                del self._compiling[item.request.id]
                self._admit(ledger, item.request, item.failure)
        self._items.extend(early)

    def _cancel(self, ledger: Ledger, item: _Cancel) -> list[_Cancel]:
        """What of it must wait for a grammar."""
        request = self._compiling.get(item.request_id)
        if request is None:
            ledger.cancel(item.request_id, item.index, item.reason)
        elif item.index is None or request.sampling.n == 1:
            del self._compiling[request.id]
            # It arrives and ends at once, for whoever reads the events.
            ledger.close(ledger.admit(request, 0), item.reason)
        else:
            return [item]
        return []

    def _admit(self, ledger: Ledger, request: Request, failure: BaseException | None = None) -> None:
        seed = request.sampling.seed
        seq = ledger.admit(request, secrets.randbits(64) if seed is None else seed)
        if self._constraint is not None and request.sampling.constraint is not None and failure is None:
            try:
                seq.constraint = self._constraint.start(request)
            except Exception as raised:
                failure = raised
        if failure is not None:  # a bad grammar ends its own request only
            begin = GRAMMAR_REFUSED if isinstance(failure, GrammarError) else "constraint: "
            ledger.close(seq, Finish.ERROR, f"{begin}{failure}")
