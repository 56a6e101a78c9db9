"""Random eviction: the most recent keys, and of the older ones a random subset that fills the budget.

H2O (Zhang et al., 2023) keeps recent keys and those that drew most attention; here chance chooses in place of attention. A
control: a task that does not suffer under it does not need the keys that are gone, and a policy that chooses keys by what they
say must do better. Each key has a random number that depends on its position and `seed`; whenever the cache is over its
budget, the key with the largest number among those that are no longer recent goes for good. Not exact. O(n log n) once for a
context of n tokens; a query reads its budget. The same keys go in every layer, head and sequence: with numbers by position
alone a request gives the same tokens however it is cut, preempted or batched, and cached prefixes stay valid, except with
`prefill=exact` (see `Budget`). Under a fixed budget every older key has the same chance; under one that grows with the context
the first hundred or so have less, since the recent ones took most of it while it was small.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.engine.attention.budgeted import Budget, BudgetedAttention, Positions
from hasten.engine.rng import mix
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Budget):
    recent: int = 8
    """Most recent keys, the query's own among them, that always stay, counted in the budget."""
    seed: int = 0
    """Another seed draws another subset."""


def gone(sizes: Positions, recent: int, seed: int) -> Positions:
    """For every key the first query that no longer sees it (`budgeted.Rule`)."""
    length = len(sizes)
    first = np.full(length, length, dtype=np.int64)
    older: list[tuple[int, int]] = []  # a heap, the largest number on top
    for query, size in enumerate(sizes.tolist()):
        if query >= recent:
            heapq.heappush(older, (-mix(seed, query - recent), query - recent))
        while len(older) + min(recent, query + 1) > size:
            first[heapq.heappop(older)[1]] = query
    return first


def make(context: Any, options: Options) -> BudgetedAttention:
    if options.recent < 1:
        raise ValueError(f"random-eviction: recent must be at least 1, the query's own key, got {options.recent}")
    least = options.recent
    options.check("random-eviction", least)
    length = context.model.max_length
    return BudgetedAttention(options, least, lambda sizes: gone(sizes, options.recent, options.seed), length)


TECHNIQUE = Technique(
    name="random-eviction",
    seam="attention",
    summary="the most recent keys and a random subset of the older: a control of quality, not for speed",
    exact=False,
    sets={"attention.policy": "random-eviction"},
    options=Options,
    make=make,
    paper="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, 2023 (chance for its score)",
)
