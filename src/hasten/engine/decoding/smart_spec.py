"""SmartSpec: in every step as many drafted tokens as give most tokens a second, and none where drafting does not pay.

SmartSpec (Liu et al., "Optimizing Speculative Decoding for Serving Large Language Models Using Goodput", 2024). Verifying a
token costs next to nothing while a step waits for memory and as much as decoding one when many sequences decode. So before each
step, for every sequence, the tokens that drafts would add are predicted from how such guesses turned out, what the step would
take from how long such steps took, drafting included, and the lengths are chosen for which tokens over seconds are most.

Exact: it decides how much is drafted, never what is kept. O(n log n) a step for n tokens that could be drafted.

Where it differs: acceptance is kept for each depth, so that a copy that goes on for long is not taken for luck, and apart for
each kind of evidence (`Evidenced`; prompt lookup: the length of the match), mixed with the request's own; trees are judged by
their proposer's odds, corrected by what came true (`Treelike`). Step times need no fitting beforehand: the cost model's are
corrected by measured steps of about that size. Length 0 is left again by probing: a few tokens now and then. What probing and
misjudged drafts have lost against plain steps is booked, and beyond a small share of the time spent nothing is drafted until
that share has grown again; so the loss is bounded whatever the guesses are like.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hasten.engine.decoding.base import Evidenced, Offer, Priced, Proposer, Treelike
from hasten.engine.decoding.goodput.acceptance import Acceptance
from hasten.engine.decoding.goodput.choice import choose
from hasten.engine.decoding.goodput.times import LEARNING, OUTLIER, StepTimes
from hasten.engine.events import ENDS, Event, Kind
from hasten.engine.executors.cost import StepShape, span_pairs
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.scheduling.base import View

PROBE = 2
"""Tokens drafted for a sequence to see how good guesses have become."""
PROBED = 4
"""Sequences probed in one step."""
LONGEST_REST = 64
"""Most steps that nothing is looked up after drafting was found not to pay."""
PLAIN_EVERY = 128
"""Steps after which one without drafts is run, so that what plain steps take is known."""
CREDIT_S = 0.1
"""What may be lost in addition, so that there is a beginning."""
LOOKUP_S = 1e-5
"""What a guess takes of a proposer that does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    loss: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the decoding time that may be lost to drafts that did not pay."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was granted to a sequence, to be compared with what becomes of it."""

    kind: Hashable
    odds: Seq[float] | None


@dataclass(frozen=True, slots=True)
class _Drafting:
    """Of one proposer in one step: who and for about how many, and predicted seconds; None: it has to prepare itself."""

    key: tuple[type, int]
    seconds: float | None


class SmartSpec:
    """A governor."""

    learns_from = frozenset({Kind.DRAFTED, *ENDS})

    def __init__(self, options: Options) -> None:
        self._loss = options.loss
        self.acceptance = Acceptance()
        self.times = StepTimes()
        self._drafting: dict[tuple[type, int], float] = {}
        """What drafting took over what was predicted, by proposer and how many sequences it drafts for (doublings)."""
        self._asked: dict[int, _Asked] = {}
        self._drafted: list[_Drafting] = []
        """Of the step under way."""
        self._decoding = 0
        """Sequences that decode in the step under way."""
        self._accepted = 0
        self._plain_s = 0.0
        """What that step would take without drafts."""
        self._spent_s = 0.0
        self._balance_s = 0.0
        """Seconds gained by drafts, or lost if negative."""
        self._resting = 0
        self._rest = 1

    # -- before a step --------------------------------------------------------------------------------------------------

    def wants(self, view: View) -> bool:
        self._drafted.clear()
        self._accepted = 0
        if self._resting > 0:
            self._resting -= 1
            return False
        return True

    def grant(self, offers: Seq[Offer], view: View) -> list[int]:
        step = _Step(offers, view)
        price = view.price
        self._plain_s = self.times.predict(step.shape([0] * len(offers)), price)
        self._decoding = step.decoding
        kinds = [_kind(offer) for offer in offers]
        odds = [_odds(offer) for offer in offers]
        gains = [
            self.acceptance.gains(offer.sequence.id, kind, offer.most, chances)
            for offer, kind, chances in zip(offers, kinds, odds, strict=True)
        ]

        def seconds(counts: list[int]) -> float:
            return self.times.predict(step.shape(counts), price) + self._to_draft(offers, counts)

        counts, _, _ = choose(gains, step.decoding, seconds)
        if not step.beside and self._measure_plain(step.decoding):
            counts = [0] * len(offers)
        elif self._balance_s < -self._allowed_s or not any(counts):
            counts = self._probe(offers, kinds) if self._balance_s >= -self._allowed_s else [0] * len(offers)
            self._resting, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
        else:
            self._rest = 1
        self._drafted = self._who_drafts(offers, counts)
        for offer, kind, chances, count in zip(offers, kinds, odds, counts, strict=True):
            if count:
                self._asked[offer.sequence.id] = _Asked(kind, chances)
        return counts

    @property
    def _allowed_s(self) -> float:
        """What may have been lost by now, and the most of what was gained that may be lost again."""
        return CREDIT_S + self._loss * self._spent_s

    def _measure_plain(self, decoding: int) -> bool:
        age = self.times.age(decoding)
        return age is None or age > PLAIN_EVERY

    def _probe(self, offers: Seq[Offer], kinds: list[Hashable]) -> list[int]:
        """A few tokens for a few sequences, of kinds not known yet before others."""
        order = sorted(range(len(offers)), key=lambda i: self.acceptance.known(kinds[i]))
        probed = set(order[:PROBED])
        return [min(PROBE, offer.most) if i in probed else 0 for i, offer in enumerate(offers)]

    # -- drafting -------------------------------------------------------------------------------------------------------

    def _who_drafts(self, offers: Seq[Offer], counts: list[int]) -> list[_Drafting]:
        of: dict[int, tuple[Proposer, list[Sequence], int]] = {}
        for offer, count in zip(offers, counts, strict=True):
            if count:
                who, sequences, longest = of.get(id(offer.proposer), (offer.proposer, [], 0))
                sequences.append(offer.sequence)
                of[id(offer.proposer)] = (who, sequences, max(longest, count))
        found = []
        for who, sequences, longest in of.values():
            price = who.price(sequences, longest) if isinstance(who, Priced) else LOOKUP_S * len(sequences)
            key = type(who), len(sequences).bit_length()
            found.append(_Drafting(key, price * self._factor(key) if price is not None else None))
        return found

    def _factor(self, key: tuple[type, int]) -> float:
        """What to multiply a proposer's price by; where it never drafted for about so many, as for others lately."""
        known = self._drafting.get(key)
        if known is not None:
            return known
        near = [factor for (kind, _), factor in self._drafting.items() if kind is key[0]]
        return near[-1] if near else 1.0

    def _to_draft(self, offers: Seq[Offer], counts: list[int]) -> float:
        return sum(drafting.seconds or 0.0 for drafting in self._who_drafts(offers, counts))

    def _learn_drafting(self, drafting_s: float) -> None:
        """What drafting took is laid on the proposers in the proportions in which it was predicted."""
        if any(drafting.seconds is None for drafting in self._drafted):
            return
        predicted = sum(drafting.seconds or 0.0 for drafting in self._drafted)
        if predicted <= 0:
            return
        off = drafting_s / predicted
        for drafting in self._drafted:
            factor = self._factor(drafting.key)
            weight, most = (LEARNING, OUTLIER) if drafting.key in self._drafting else (1.0, off)
            self._drafting[drafting.key] = factor * (1 + weight * (min(off, most) - 1))

    # -- after a step ---------------------------------------------------------------------------------------------------

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind is Kind.DRAFTED:
            asked = self._asked.pop(event.sequence, None)
            if asked is not None:
                self._accepted += int(event.b)
                self.acceptance.learn(event.sequence, asked.kind, int(event.a), int(event.b), asked.odds)
        else:
            self._asked.pop(event.sequence, None)
            self.acceptance.forget(event.sequence)
        return ()

    def measured(self, shape: StepShape, seconds: float, drafting_s: float) -> None:
        self.times.learn(shape, seconds)
        self._spent_s += seconds + drafting_s
        if not self._drafted:
            return
        self._learn_drafting(drafting_s)
        if shape.rows == self._decoding:  # beside prompts other things are gained and lost
            worth = self._plain_s * (1 + self._accepted / self._decoding)
            self._balance_s = min(self._allowed_s, self._balance_s + worth - seconds - drafting_s)
        self._drafted.clear()


class _Step:
    """The step being planned, for so many drafted tokens: who decodes, and the prompts beside them that would fit."""

    def __init__(self, offers: Seq[Offer], view: View) -> None:
        running = view.in_state(State.RUNNING)
        decoding = [seq for seq in running if seq.decoding]
        self.decoding = len(decoding)
        self._offered = [offer.sequence.length for offer in offers]
        self._held = sum(seq.view.length for seq in decoding)
        begun = [seq for seq in running if not seq.decoding]
        prompts = sum(seq.remaining for seq in [*begun, *view.in_state(State.WAITING)])
        self.beside = min(prompts, max(0, view.limits.tokens - self.decoding))

    def shape(self, counts: list[int]) -> StepShape:
        drafts = sum(counts)
        pairs = (
            self._held
            + self.decoding
            + sum(
                span_pairs(1 + count, length) - length - 1 for count, length in zip(counts, self._offered, strict=True) if count
            )
        )
        tokens = self.decoding + drafts
        return StepShape(
            tokens + self.beside,
            self.decoding + (self.beside > 0),
            tokens,
            self._held + tokens + self.beside,
            pairs + span_pairs(self.beside, 0),
        )


def _kind(offer: Offer) -> Hashable:
    proposer = offer.proposer
    return type(proposer), proposer.evidence(offer.sequence) if isinstance(proposer, Evidenced) else None


def _odds(offer: Offer) -> Seq[float] | None:
    return offer.proposer.odds(offer.sequence, offer.most) if isinstance(offer.proposer, Treelike) else None


TECHNIQUE = Technique(
    name="smart-spec",
    seam="decoding",
    summary="drafts as many tokens as give most tokens a second, and none where it does not pay",
    exact=True,
    sets={"decoding.governor": "smart-spec"},
    options=Options,
    make=lambda context, options: SmartSpec(options),
    paper="Optimizing Speculative Decoding for Serving Large Language Models Using Goodput (2024)",
)
