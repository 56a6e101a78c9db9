"""How many tokens may be drafted for a sequence in the step being planned."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hasten.engine.decoding.base import Governor, Offer, Proposer
from hasten.engine.decoding.chain import Chain
from hasten.engine.sequence import Sequence, State

if TYPE_CHECKING:
    from hasten.engine.scheduling.base import View

_log = logging.getLogger(__name__)


class DraftBudget:
    """What the proposer would draft, within what the request allows and the sequence has room for; and of that what the
    governor grants, which is asked once a step, for all sequences that decode. Whatever fails costs drafts only."""

    def __init__(self, proposer: Proposer | None, governor: Governor | None) -> None:
        self._proposer = proposer
        self._governor = governor
        self._granted: dict[int, int] | None = None

    def begin(self) -> None:
        """A step is to be planned."""
        self._granted = None

    def lookahead(self, sequence: Sequence, view: View) -> int:
        if self._proposer is None:
            return 0
        if self._governor is None:
            return self._most(sequence, view)
        if self._granted is None:
            self._granted = self._grant(self._governor, view)
        return self._granted.get(sequence.id, 0)

    def _most(self, sequence: Sequence, view: View) -> int:
        # The step commits one token beyond the accepted drafts.
        most = view.room(sequence) - 1
        asked = sequence.request.sampling.speculate
        if asked is not None:
            most = min(most, asked)
        if self._proposer is None or most <= 0:
            return 0
        try:
            return max(0, min(self._proposer.lookahead(sequence), most))
        except Exception:
            _log.exception("the proposer failed; nothing is drafted")
            return 0

    def _grant(self, governor: Governor, view: View) -> dict[int, int]:
        try:
            if not governor.wants(view):
                return {}
            offers = []
            for sequence in view.in_state(State.RUNNING):
                if sequence.decoding and (most := self._most(sequence, view)):
                    offers.append(Offer(sequence, most, self._who(sequence)))
            if not offers:
                return {}
            counts = governor.grant(offers, view)
            return {offer.sequence.id: min(count, offer.most) for offer, count in zip(offers, counts, strict=True) if count > 0}
        except Exception:
            _log.exception("the governor failed; nothing is drafted")
            return {}

    def _who(self, sequence: Sequence) -> Proposer:
        assert self._proposer is not None
        return self._proposer.asked(sequence) if isinstance(self._proposer, Chain) else self._proposer
