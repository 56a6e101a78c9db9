"""Several proposers in a row: the first that has a guess for a sequence makes it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from hasten.engine.decoding.base import Proposer, Reader
from hasten.engine.events import ENDS, Event
from hasten.engine.scheduling.base import Learner
from hasten.engine.sequence import Draft, Sequence

if TYPE_CHECKING:
    from hasten.engine.executors.base import StepResult
    from hasten.engine.scheduling.base import View

_log = logging.getLogger(__name__)


class Chain:
    """A proposer itself. Those that want to see events happen (`Learner`), or to read the model (`Reader`), do."""

    def __init__(self, proposers: Seq[Proposer]) -> None:
        self._proposers = list(proposers)
        self._learners = [proposer for proposer in proposers if isinstance(proposer, Learner)]
        self.learns_from = ENDS.union(*(learner.learns_from for learner in self._learners))
        self._readers = [proposer for proposer in proposers if isinstance(proposer, Reader)]
        self._whose: dict[int, int] = {}
        """By sequence, which proposer had a guess in the step being planned."""

    def lookahead(self, sequence: Sequence) -> int:
        for number, proposer in enumerate(self._proposers):
            count = proposer.lookahead(sequence)
            if count > 0:
                self._whose[sequence.id] = number
                return count
        self._whose.pop(sequence.id, None)
        return 0

    def asked(self, sequence: Sequence) -> Proposer:
        """Whose guess for the sequence it would be in the step being planned."""
        return self._proposers[self._whose[sequence.id]]

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        drafts: list[Draft | None] = [None] * len(sequences)
        for number, proposer in enumerate(self._proposers):
            own = [i for i, sequence in enumerate(sequences) if self._whose.get(sequence.id) == number]
            if own:
                guessed = proposer.propose([sequences[i] for i in own], [budgets[i] for i in own], last)
                for i, draft in zip(own, guessed, strict=True):
                    drafts[i] = draft
        return drafts

    @property
    def taps(self) -> frozenset[int]:
        return frozenset[int]().union(*(reader.taps for reader in self._readers))

    def committed(self, sequence: Sequence, row: int, result: StepResult) -> None:
        for reader in self._readers:
            reader.committed(sequence, row, result)

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind in ENDS:
            self._whose.pop(event.sequence, None)
        for learner in self._learners:
            if event.kind in learner.learns_from:
                try:
                    learner.learn(event, sequence, view)
                except Exception:
                    _log.exception("%s could not learn from %s", type(learner).__name__, event)
        return ()


def chained(proposers: Seq[Proposer]) -> Proposer | None:
    """One proposer for all of them; None for none."""
    if len(proposers) <= 1:
        return proposers[0] if proposers else None
    return Chain(proposers)
