"""SmartSpec: in every step as many drafted tokens as give most tokens a second, and none where drafting does not pay.

SmartSpec (Liu et al., "Optimizing Speculative Decoding for Serving Large Language Models Using Goodput", 2024). Verifying a
token costs next to nothing while a step waits for memory and as much as decoding one when many sequences decode. So before each
step, for every sequence, the tokens that drafts would add are predicted from how such guesses turned out, what the step would
take from how long such steps took, drafting included, and the lengths are chosen for which tokens over seconds are most.

Exact: it decides how much is drafted, never what is kept. O(n log n) a step for n tokens that could be drafted.

Where it differs: acceptance is kept for each depth, so that a copy that goes on for long is not taken for luck, and apart for
each kind of evidence (`Evidenced`; prompt lookup: the length of the match), mixed with the request's own; trees are judged by
their proposer's odds, corrected by what came true (`Treelike`). Step times need no fitting beforehand: the cost model's are
corrected by measured steps of about that size. Prompts beside are taken as given (`_Step.seconds`). Length 0 is left again by
probing: a few tokens now and then. What probing and misjudged drafts have lost against plain steps is booked, and beyond a
small share of the time spent nothing is drafted until that share has grown again; so the loss is bounded whatever the guesses
are like.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field

from hasten.engine.decoding.base import PREPARING, Evidenced, Offer, Priced, Proposer, Treelike
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
        self._drafted: dict[tuple[type, int], float] = {}
        """Of the step under way: predicted seconds of drafting, by the same."""
        self._prepares = False
        """A proposer prepares itself in that step: what it takes then says nothing of drafting."""
        self._decoding = 0
        """Sequences that decode in the step under way."""
        self._accepted = 0
        self._plain_s = 0.0
        """What that step would take without drafts."""
        self._spent_s = 0.0
        self._balance_s = 0.0
        """Seconds gained by drafts, or lost if negative."""
        self._resting = 0
        """Steps in which nothing is looked up."""
        self._rest = 1
        self._probe_at = 0
        """The step from which on guesses that do not pay are tried again. That tries turn out well does not hasten it."""

    # -- before a step --------------------------------------------------------------------------------------------------

    def wants(self, view: View) -> bool:
        self._drafted.clear()
        self._accepted = 0
        if self._resting > 0:
            self._resting -= 1
            return False
        return True

    def grant(self, offers: Seq[Offer], view: View) -> list[int]:
        kinds = [_kind(offer) for offer in offers]
        odds = [_odds(offer) for offer in offers]
        preparing = [kind[1] is PREPARING for kind in kinds]
        gains = [
            self.acceptance.gains(offer.sequence.id, kind, offer.most, chances) if not prepares else []
            for offer, kind, chances, prepares in zip(offers, kinds, odds, preparing, strict=True)
        ]
        base = _Base.of(view)
        self._decoding = base.decoding
        self._plain_s = self.times.predict(base.shape(), view.price)
        affordable = self._balance_s >= -self._allowed_s
        counts = choose(gains, base.soon, lambda: _Step(self, base, offers, view.price))
        if not base.beside and self._measure_plain(base.decoding):
            counts = [0] * len(offers)
        elif not affordable or not (any(counts) or any(preparing)):
            due = self.times.steps >= self._probe_at
            counts = self._probe(offers, kinds) if affordable and due else [0] * len(offers)
            if due:
                self._probe_at, self._rest = self.times.steps + self._rest + 1, min(2 * self._rest, LONGEST_REST)
            self._resting = self._probe_at - self.times.steps - 1
        else:
            counts = [1 if prepares else count for prepares, count in zip(preparing, counts, strict=True)]
            self._rest = 1
        self._remember(_Step(self, base, offers, view.price), offers, kinds, odds, counts)
        return counts

    def _remember(
        self,
        step: _Step,
        offers: Seq[Offer],
        kinds: list[tuple[type, Hashable]],
        odds: list[Seq[float] | None],
        counts: list[int],
    ) -> None:
        """What was granted, to learn from what becomes of it. `step`: without drafts yet."""
        for number, (offer, kind, chances, count) in enumerate(zip(offers, kinds, odds, counts, strict=True)):
            for _ in range(count):
                step.add(number)
            if count:
                self._asked[offer.sequence.id] = _Asked(kind, chances)
        self._drafted = step.drafting()
        self._prepares = any(count and kind[1] is PREPARING for kind, count in zip(kinds, counts, strict=True))

    @property
    def _allowed_s(self) -> float:
        """What may have been lost by now, and the most of what was gained that may be lost again."""
        return CREDIT_S + self._loss * self._spent_s

    def _measure_plain(self, decoding: int) -> bool:
        age = self.times.age(decoding)
        return age is None or age > PLAIN_EVERY

    def _probe(self, offers: Seq[Offer], kinds: Seq[Hashable]) -> list[int]:
        """A few tokens for a few sequences, of kinds not known yet before others."""
        order = sorted(range(len(offers)), key=lambda i: self.acceptance.known(kinds[i]))
        probed = set(order[:PROBED])
        return [min(PROBE, offer.most) if i in probed else 0 for i, offer in enumerate(offers)]

    def factor(self, key: tuple[type, int]) -> float:
        """What drafting takes over what its price says; where a proposer never drafted for about so many, as for others."""
        known = self._drafting.get(key)
        if known is not None:
            return known
        near = [factor for (kind, _), factor in self._drafting.items() if kind is key[0]]
        return near[-1] if near else 1.0

    def _learn_drafting(self, drafting_s: float) -> None:
        """What drafting took is laid on the proposers in the proportions in which it was predicted."""
        predicted = sum(self._drafted.values())
        if self._prepares or predicted <= 0:
            return
        off = drafting_s / predicted
        for key in self._drafted:
            weight, most = (LEARNING, OUTLIER) if key in self._drafting else (1.0, off)
            self._drafting[key] = self.factor(key) * (1 + weight * (min(off, most) - 1))

    # -- after a step ---------------------------------------------------------------------------------------------------

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind is Kind.DRAFTED:
            asked = self._asked.pop(event.sequence, None)
            if asked is not None:
                self._accepted += int(event.b)
                if event.a == event.b:  # where all is right it may pay again
                    self._resting = 0
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


@dataclass(frozen=True, slots=True)
class _Base:
    """The step being planned without drafts: `decoding` sequences with `held` tokens, and `beside` tokens of prompts. Once
    these prompts and those that wait are done, `soon` sequences decode, as far as steps have rows, with `to_hold` tokens."""

    decoding: int
    held: int
    beside: int
    soon: int
    to_hold: int

    @classmethod
    def of(cls, view: View) -> _Base:
        running, waiting = view.in_state(State.RUNNING), view.in_state(State.WAITING)
        decoding = [seq for seq in running if seq.decoding]
        held = sum(seq.view.length for seq in decoding)
        room = max(0, view.limits.tokens - len(decoding))
        coming = [seq for seq in running if not seq.decoding]
        coming += waiting[: max(0, view.limits.rows - len(running))]
        beside, seen = 0, 0
        while seen < len(coming) and beside < room:
            beside += coming[seen].remaining
            seen += 1
        # Thousands may wait: those not looked at are taken to be like the others.
        to_hold = sum(seq.length for seq in coming[:seen]) * len(coming) // max(seen, 1)
        return cls(len(decoding), held, min(beside, room), len(decoding) + len(coming), held + to_hold)

    def shape(self, drafts: int = 0, more_pairs: int = 0) -> StepShape:
        """With so many drafted tokens, which attend to so many."""
        heads = self.decoding + drafts
        tokens = heads + self.beside
        pairs = self.held + self.decoding + span_pairs(self.beside, 0)
        return StepShape(tokens, self.decoding + (self.beside > 0), heads, self.held + tokens, pairs + more_pairs)

    @property
    def then(self) -> StepShape:
        """A step in which all that are in sight decode, and nothing is drafted."""
        return StepShape(self.soon, self.soon, self.soon, self.to_hold + self.soon, self.to_hold + self.soon)


class _Step:
    """The same with drafts, one after the other."""

    def __init__(self, spec: SmartSpec, base: _Base, offers: Seq[Offer], price: Callable[[StepShape], float]) -> None:
        self._spec, self._base, self._offers, self._price = spec, base, offers, price
        self._counts = [0] * len(offers)
        self._drafts = self._pairs = 0
        self._by: dict[Proposer, list[int]] = {}
        """By proposer: sequences, their tokens, the longest draft."""

    def add(self, offer: int) -> None:
        made = self._offers[offer]
        length, count = made.sequence.length, self._counts[offer]
        by = self._by.setdefault(made.proposer, [0, 0, 0])
        if not count:
            by[0] += 1
            by[1] += length
        self._counts[offer] = count + 1
        by[2] = max(by[2], count + 1)
        self._drafts += 1
        self._pairs += length + count + 1

    def drafting(self) -> dict[tuple[type, int], float]:
        """Predicted seconds by proposer and about how many sequences it drafts for."""
        found: dict[tuple[type, int], float] = {}
        for proposer, (sequences, tokens, longest) in self._by.items():
            key = type(proposer), sequences.bit_length()
            if _can(key[0], Priced):
                price = cast(Priced, proposer).price(sequences, tokens, longest)
            else:
                price = LOOKUP_S * sequences
            found[key] = found.get(key, 0.0) + price * self._spec.factor(key)
        return found

    def seconds(self) -> float:
        """What decoding takes of the step. Prompts beside it have to be computed whatever is drafted: if their time were shared
        by the tokens of decodes, one more of those would always seem to pay. A token that is not drafted now is decoded later,
        beside the sequences that these prompts become: what that step takes, and what drafts add to this one."""
        times, price, base = self._spec.times, self._price, self._base
        drafting = sum(self.drafting().values())
        drafted = base.shape(self._drafts, self._pairs)
        if not base.beside:
            return times.predict(drafted, price) + drafting
        plain = base.shape()
        added = times.predict(plain, price) * (price(drafted) / max(price(plain), 1e-12) - 1)
        return times.predict(base.then, price) + added + drafting


def _kind(offer: Offer) -> tuple[type, Hashable]:
    kind = type(offer.proposer)
    return kind, cast(Evidenced, offer.proposer).evidence(offer.sequence) if _can(kind, Evidenced) else None


def _odds(offer: Offer) -> Seq[float] | None:
    if not _can(type(offer.proposer), Treelike):
        return None
    return cast(Treelike, offer.proposer).odds(offer.sequence, offer.most)


@cache
def _can(kind: type, ability: type) -> bool:
    """Whether a proposer offers what it may. Asked for every guess of every step: looking at a protocol anew is too slow."""
    return issubclass(kind, ability)


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
