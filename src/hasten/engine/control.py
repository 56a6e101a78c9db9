"""What a controller may do between steps (`decoding.base.Actions`)."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from hasten.engine.ledger import Ledger
from hasten.engine.outbox import Outbox
from hasten.engine.outputs import TokenDelta
from hasten.engine.rng import mix
from hasten.engine.sequence import Finish, Sequence, State


class Control:
    def __init__(self, ledger: Ledger, outbox: Outbox, max_length: int) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._max_length = max_length

    def fork(self, sequence: Sequence, count: int) -> list[Sequence]:
        if sequence.state is not State.RUNNING:
            raise ValueError(f"{sequence} cannot be forked: it is not running")
        first = len(self._ledger.groups[sequence.request.id].sequences)
        return [self._ledger.fork(sequence, mix(sequence.seed, first + i)) for i in range(count)]

    def inject(self, sequence: Sequence, tokens: Seq[int]) -> None:
        if sequence.state is not State.RUNNING:
            raise ValueError(f"{sequence} takes no tokens: it is not running")
        for token in tokens:
            if sequence.constraint is not None:
                sequence.constraint.advance(token)
            sequence.append(token)
        self._outbox.put(TokenDelta(sequence.request.id, sequence.index, list(tokens), [None] * len(tokens)))
        if sequence.length - sequence.saved >= self._max_length:
            self._ledger.close(sequence, Finish.LENGTH)

    def join(self, sequences: Seq[Sequence], tokens: Seq[int]) -> Sequence:
        first = sequences[0]
        if first.constraint is not None:
            raise ValueError(f"{first} cannot be joined: a grammar follows one text")
        group = self._ledger.groups.get(first.request.id)
        child = self._ledger.join(sequences, tokens, mix(first.seed, len(group.sequences) if group is not None else 0))
        self._outbox.put(TokenDelta(child.request.id, child.index, list(tokens), [None] * len(tokens)))
        return child

    def finish(self, sequence: Sequence, reason: Finish = Finish.STOP) -> None:
        self._ledger.close(sequence, reason)
