"""Which lengths of drafts give most tokens a second."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol


class Step(Protocol):
    """A step in the making."""

    def add(self, offer: int) -> None:
        """One more token is drafted for this offer."""
        ...

    def seconds(self) -> float:
        """What the step takes, drafting included."""
        ...


def choose(gains: Seq[Seq[float]], rows: int, begin: Callable[[], Step]) -> list[int]:
    """Tokens to draft for each offer, so that expected tokens over seconds are most.

    `gains`: for each offer what its first, second, ... drafted token adds in expectation, not rising; `rows`: sequences that
    decode, of which each gets a token anyway; `begin` gives a step in which nothing is drafted. One token after the other goes
    to the offer that gains most by it. Time rises in steps and stretches (a draft model's pass costs the same for one sequence
    as for all), so there may be several peaks: that is done for several limits of the depth, and looked at after every token
    up to eight, then ever more rarely. O(n log n) for n tokens that could be drafted, O(log n) looks a limit."""
    order = sorted((-gain, number, depth) for number, own in enumerate(gains) for depth, gain in enumerate(own))
    deepest = max((len(own) for own in gains), default=0)
    step = begin()
    best, best_expected, best_took = [0] * len(gains), float(rows), step.seconds()
    for limit in _limits(deepest) if len(gains) > 1 else [deepest]:
        counts, expected, step, look = [0] * len(gains), float(rows), begin(), 1
        within = [(gain, number) for gain, number, depth in order if depth < limit]
        for given, (gain, number) in enumerate(within, start=1):
            counts[number] += 1
            expected -= gain
            step.add(number)
            if given < look and given < len(within):
                continue
            look = given + 1 if given < 8 else given + given // 4
            took = step.seconds()
            if expected * best_took > best_expected * took:
                best, best_expected, best_took = list(counts), expected, took
    return best


def _limits(deepest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and the deepest."""
    return [limit for limit in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if limit < deepest] + [deepest] * (deepest > 0)
