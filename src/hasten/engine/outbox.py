"""The outbox of one lane: what became of its requests in the step that is running."""

from __future__ import annotations

from hasten.engine.inbox import Inbox
from hasten.engine.ledger import Ledger
from hasten.engine.outputs import TokenDelta
from hasten.engine.sequence import Sequence


class Outbox:
    def __init__(self, ledger: Ledger, inbox: Inbox) -> None:
        self._ledger = ledger
        self._inbox = inbox
        self._deltas: list[TokenDelta] = []
        ledger.on_close = self._closed

    def __len__(self) -> int:
        return len(self._deltas)

    def put(self, delta: TokenDelta) -> None:
        self._deltas.append(delta)

    def take(self) -> list[TokenDelta]:
        """All that was put in since the last call."""
        out, self._deltas = self._deltas, []
        return out

    def _closed(self, seq: Sequence, error: str | None) -> None:
        assert seq.finish is not None
        group = self._ledger.groups[seq.request.id]
        n = seq.request.sampling.n
        indices = [seq.index] if group.split or n == 1 else list(range(n))
        for index in indices:
            last = self._deltas[-1] if self._deltas else None
            if last is not None and last.request_id == seq.request.id and last.index == index and last.finish is None:
                last.finish, last.error = seq.finish.name.lower(), error
            else:
                self.put(TokenDelta(seq.request.id, index, [], finish=seq.finish.name.lower(), error=error))
        if all(s.finish is not None for s in group.sequences):
            self._inbox.done(seq.request.id)
            self._deltas[-1].last = True
