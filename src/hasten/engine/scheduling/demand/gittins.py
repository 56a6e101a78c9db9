"""The Gittins index of a job with attained service a over equally likely totals X (Gittins, 1979; Aalto, Ayesta and Righter,
2009).

    G(a) = max over D of P(X - a <= D | X > a) / E[min(X - a, D) | X > a]

Here its inverse, the rank, in seconds: the cheapest expected service per completion. It equals what remains where that is
known, and the mean of what remains where no early end is likely. With n samples only D at a sample can be best, so prefix
sums give every candidate at once: O(n) after sorting.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def rank(rest: Floats) -> float:
    """1 / G of what remains, float64 [n] ascending and positive, n >= 1: lower is served first."""
    n = len(rest)
    ended = np.arange(1, n + 1)
    return float(((np.cumsum(rest) + (n - ended) * rest) / ended).min())


def after(total: Floats, attained: float) -> Floats:
    """What remains of those totals (ascending) that are above `attained`. Beyond all of them: as much again as was attained."""
    first = int(np.searchsorted(total, attained, side="right"))
    return total[first:] - attained if first < len(total) else np.array([max(attained, np.finfo(np.float64).tiny)])


def edges(total: Floats, buckets: int) -> Floats:
    """Where the buckets of attained service begin: float64, ascending from 0, `buckets` of them (fewer where
    totals are equal) with as many of the totals in each, one beyond all, infinity at the end. An index is computed once a
    bucket, at its beginning."""
    inner = total[(len(total) * np.arange(1, buckets)) // buckets]
    return np.concatenate([np.unique(np.concatenate([[0.0], inner, total[-1:]])), [np.inf]])
