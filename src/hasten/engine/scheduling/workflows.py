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

_Key = tuple[str, str, str]


@dataclass(slots=True)
class Workflow:
    """`arrival_s`: of its first call (engine seconds). `live`: unfinished sequences by number. Of those that are over, as sums
    since a name may be used for ever: `ended`, how many; `ended_service`, tokens computed for them; `prompt_tokens` and
    `output_tokens` of those that ended well."""

    application: str
    id: str
    arrival_s: float
    live: dict[int, Sequence] = field(default_factory=dict)
    ended: int = 0
    ended_service: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def service(self) -> int:
        """Tokens computed for it so far, recomputation included."""
        return self.ended_service + sum(seq.service for seq in self.live.values())


class Workflows:
    """Follows `KINDS` of the engine's events."""

    KINDS = frozenset({Kind.ARRIVED, Kind.FORKED, Kind.FINISHED, Kind.FAILED})

    def __init__(self) -> None:
        self._live: dict[_Key, Workflow] = {}
        """Those with live calls."""
        self._idle: OrderedDict[_Key, Workflow] = OrderedDict()
        """Those without, the longest idle first."""

    def __len__(self) -> int:
        return len(self._live) + len(self._idle)

    def of(self, sequence: Sequence) -> Workflow:
        key = _key(sequence)
        return self._live[key] if key in self._live else self._idle[key]

    def came(self, sequence: Sequence) -> None:
        key = _key(sequence)
        workflow = self._live.get(key)
        if workflow is None:
            known = key in self._idle
            workflow = self._idle.pop(key) if known else Workflow(key[1], key[2], sequence.arrival_s)
            self._live[key] = workflow
        workflow.live[sequence.id] = sequence

    def went(self, sequence: Sequence, ok: bool) -> None:
        key = _key(sequence)
        workflow = self._live[key]
        del workflow.live[sequence.id]
        workflow.ended += 1
        workflow.ended_service += sequence.service
        if ok:
            workflow.prompt_tokens += sequence.prompt_length
            workflow.output_tokens += sequence.output_length
        if workflow.live:
            return
        del self._live[key]
        if sequence.request.app.workflow:
            self._idle[key] = workflow
        while len(self._idle) > KEPT:
            self._idle.popitem(last=False)


def _key(sequence: Sequence) -> _Key:
    request = sequence.request
    app = request.app
    # A name of its own, which no workflow can have: those are not told apart by a control character.
    return request.tenant, app.application, app.workflow or f"\0{request.id}"
