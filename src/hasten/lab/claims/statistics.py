"""The median of a few rounds and how far it can be trusted.

The interval is the one of order statistics: the k-th least and k-th greatest of n samples hold the median of whatever they are
drawn from with probability 1 - 2 P(Binomial(n, 1/2) < k), for any distribution (David and Nagaraja, Order Statistics, 2003). A
bootstrap of 3 to 15 samples only looks finer: it cannot reach beyond the least and the greatest either, and says that it is
surer than it can be. With fewer than six rounds no pair of samples is sure to 95 %: then all of them make the interval, and its
confidence says how sure it is (75 % for three).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` to `high` holds the true median with probability `confidence` (0 for a single sample)."""

    median: float
    low: float
    high: float
    confidence: float


def interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The narrowest pair of order statistics, equally far from both ends, that is sure to `confidence`; else all of them.

    Raises ValueError for no samples, or one that is not a finite number."""
    if not samples:
        raise ValueError("there are no samples")
    if not all(math.isfinite(sample) for sample in samples):
        raise ValueError(f"a sample is not a finite number: {list(samples)}")
    ordered = sorted(float(sample) for sample in samples)
    count = len(ordered)
    rank = 1
    while 2 * (rank + 1) <= count and _coverage(count, rank + 1) >= confidence:
        rank += 1
    return Interval(median(ordered), ordered[rank - 1], ordered[-rank], _coverage(count, rank))


def _coverage(count: int, rank: int) -> float:
    return max(0.0, 1 - 2 * sum(math.comb(count, i) for i in range(rank)) / 2**count)
