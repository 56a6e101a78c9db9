"""Which lengths of drafts give most tokens a second."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq


def choose(gains: Seq[Seq[float]], rows: int, seconds: Callable[[list[int]], float]) -> tuple[list[int], float, float]:
    """(tokens to draft for each offer, expected tokens of the step, its seconds) where expected tokens over seconds are most.

    `gains`: for each offer what its first, second, ... drafted token adds in expectation, not rising; `rows`: sequences that
    decode, of which each gets a token anyway; `seconds` of a step with so many drafted for each offer. One token after the
    other is given to the offer that gains most by it. Time rises in steps and stretches, so tokens over seconds may have
    several peaks: all numbers up to 8 are tried, then ever sparser ones. O(n log n) for n tokens that could be drafted, and
    O(log n) calls of `seconds`."""
    order = sorted((-gain, number, depth) for number, own in enumerate(gains) for depth, gain in enumerate(own))
    counts = [0] * len(gains)
    expected = float(rows)
    took = seconds(counts)
    best, best_expected, best_took = list(counts), expected, took
    look = 1
    for given, (gain, number, _) in enumerate(order, start=1):
        counts[number] += 1
        expected -= gain
        if given < look and given < len(order):
            continue
        look = given + 1 if given < 8 else given + given // 4
        took = seconds(counts)
        if expected * best_took > best_expected * took:
            best, best_expected, best_took = list(counts), expected, took
    return best, best_expected, best_took
