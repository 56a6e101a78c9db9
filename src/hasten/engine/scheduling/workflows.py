"""Workflows: the requests of one application run that the engine has seen, and what they have been given.

A request names its application, workflow and stage (`AppContext`); one without a workflow is a workflow of its own. The engine
learns of a stage when its first call arrives and is never told that a workflow is over: what has had no live call for long is
forgotten when there are many.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from hasten.engine.events import Kind
from hasten.engine.sequence import Sequence

KEPT = 4096
"""Workflows without a live call that are remembered."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that has ended: what it was, how long its prompt and output were, and when it came and went (engine seconds).
    `ok`: it ended well."""

    request: str
    stage: str
    parents: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int
    arrival_s: float
    end_s: float
    ok: bool


@dataclass(slots=True)
class Workflow:
    """`arrival_s`: of its first call. `live`: unfinished sequences by number. `ended`: calls that are over, in order of their
    ends, one for each sequence."""

    application: str
    id: str
    arrival_s: float
    live: dict[int, Sequence] = field(default_factory=dict)
    ended: list[Call] = field(default_factory=list)
    ended_service: int = 0

    @property
    def service(self) -> int:
        """Tokens computed for it so far, recomputation included."""
        return self.ended_service + sum(seq.service for seq in self.live.values())


class Workflows:
    """Follows `KINDS` of the engine's events."""

    KINDS = frozenset({Kind.ARRIVED, Kind.FORKED, Kind.FINISHED, Kind.FAILED})

    def __init__(self) -> None:
        self._all: OrderedDict[tuple[str, str, str], Workflow] = OrderedDict()
        """Those that were touched last stand last."""
        self._idle = 0

    def __len__(self) -> int:
        return len(self._all)

    def of(self, sequence: Sequence) -> Workflow:
        return self._all[_key(sequence)]

    def came(self, sequence: Sequence) -> None:
        key = _key(sequence)
        workflow = self._all.get(key)
        if workflow is None:
            workflow = self._all[key] = Workflow(key[1], key[2], sequence.arrival_s)
        elif not workflow.live:
            self._idle -= 1
        workflow.live[sequence.id] = sequence

    def went(self, sequence: Sequence, now: float, ok: bool) -> None:
        key = _key(sequence)
        workflow = self._all[key]
        request = sequence.request
        del workflow.live[sequence.id]
        workflow.ended_service += sequence.service
        workflow.ended.append(
            Call(
                request.id,
                request.app.stage,
                request.app.parents,
                sequence.prompt_length,
                sequence.output_length,
                sequence.arrival_s,
                now,
                ok,
            )
        )
        if workflow.live:
            return
        if not request.app.workflow:
            del self._all[key]
            return
        self._all.move_to_end(key)
        self._idle += 1
        while self._idle > KEPT:
            oldest = next(k for k, w in self._all.items() if not w.live)
            del self._all[oldest]
            self._idle -= 1


def _key(sequence: Sequence) -> tuple[str, str, str]:
    request = sequence.request
    app = request.app
    # A name of its own, which no workflow can have: those are not told apart by a control character.
    return request.tenant, app.application, app.workflow or f"\0{request.id}"
