"""How likely a drafted token is to be accepted, from what became of earlier ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

FORGET = 0.995
"""What one more draft leaves of the weight of those before: the last two hundred count."""
PRIOR = 0.5
"""Acceptance of a token of which nothing is known."""
PRIOR_WEIGHT = 2.0
DEPTH_WEIGHT = 8.0
"""Tokens tried at a depth after which they count as much as the rate of the depth before. What is not tried any more fades, so
that bad luck at the beginning does not keep drafts short for ever."""
OWN_WEIGHT = 16.0
"""Tokens of a request's own after which they count as much as what is known of guesses like its own."""
KINDS = 4096
"""Kinds of evidence that are remembered; who was not seen for longest is forgotten first."""


@dataclass(slots=True)
class _Kind:
    """Of guesses of one kind. `tried[j]`, `right[j]`: weights of drafts whose token j was reached (all before it were right),
    and of those in which it was right too. For trees: accepted tokens and what their odds promised."""

    tried: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    promised: float = 0.0
    kept: float = 0.0

    def rate(self, depth: int) -> float:
        """Of token `depth`, once it is reached."""
        rate, weight = PRIOR, PRIOR_WEIGHT
        for tried, right in zip(self.tried[: depth + 1], self.right, strict=False):
            rate, weight = (right + weight * rate) / (tried + weight), DEPTH_WEIGHT
        return rate

    def learn(self, drafted: int, accepted: int) -> None:
        while len(self.tried) < drafted:
            self.tried.append(0.0)
            self.right.append(0.0)
        for depth in range(len(self.tried)):
            self.tried[depth] = FORGET * self.tried[depth] + (depth < min(drafted, accepted + 1))
            self.right[depth] = FORGET * self.right[depth] + (depth < accepted)


@dataclass(slots=True)
class _Own:
    tried: float = 0.0
    right: float = 0.0


class Acceptance:
    """Rates are kept for each kind of evidence, and for each sequence over all its guesses."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()
        self._own: dict[int, _Own] = {}

    def gains(self, sequence: int, kind: Hashable, most: int, odds: Seq[float] | None) -> list[float]:
        """Expected tokens that the first, second, ... drafted token adds, each at most what the one before adds.

        A list: token j is accepted if all before it are, so its chance is the product of their rates; each rate mixes that of
        such guesses at this depth with the sequence's own, which weighs more the longer it is known. A tree: its `odds`, times
        how much of what such odds promised came true."""
        known = self._kinds.get(kind)
        gains: list[float] = []
        if odds is not None:
            share = 1.0 if known is None else (known.kept + PRIOR_WEIGHT) / (known.promised + PRIOR_WEIGHT)
            for chance in odds[:most]:
                gains.append(min(1.0, share * chance, gains[-1] if gains else 1.0))
            return gains
        own = self._own.get(sequence)
        tried, right = (own.tried, own.right) if own is not None else (0.0, 0.0)
        known = known or _Kind()
        chance, rate = 1.0, PRIOR
        for depth in range(most):
            if depth < len(known.tried) or not depth:
                rate = known.rate(depth)
            chance *= (OWN_WEIGHT * rate + right) / (OWN_WEIGHT + tried)
            gains.append(chance)
        return gains

    def known(self, kind: Hashable) -> bool:
        return kind in self._kinds

    def learn(self, sequence: int, kind: Hashable, drafted: int, accepted: int, odds: Seq[float] | None) -> None:
        """Of so many drafted tokens so many were accepted."""
        known = self._kinds.setdefault(kind, _Kind())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KINDS:
            self._kinds.popitem(last=False)
        if odds is not None:
            known.promised = FORGET * known.promised + sum(odds[:drafted])
            known.kept = FORGET * known.kept + accepted
            return
        known.learn(drafted, accepted)
        own = self._own.setdefault(sequence, _Own())
        forget = FORGET ** min(drafted, accepted + 1)
        own.tried = forget * own.tried + min(drafted, accepted + 1)
        own.right = forget * own.right + accepted

    def forget(self, sequence: int) -> None:
        self._own.pop(sequence, None)
