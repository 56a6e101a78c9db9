"""Sink and window: the first tokens and the most recent ones, nothing between (StreamingLLM, Xiao et al., 2023).

The first few tokens draw much attention whatever they say, so a cache that keeps them and a sliding window stays fluent; what
lies between is forgotten. A control here: a task that does not suffer under it needs no long-range recall, so its score says
nothing about policies that choose keys. Not exact. The rule is O(n log n) once for a context of n tokens; a query reads its
budget. Unlike the paper, keys keep their positions (the paper counts positions within the cache, to run beyond the trained
context), and the budget may be a share of the context. The rule goes by positions alone, so cached prefixes stay valid, except
with `prefill=exact` (see `Budget`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.engine.attention.budgeted import Budget, BudgetedAttention, Positions
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Budget):
    sinks: int = 4
    """First tokens that stay, counted in the budget; the rest of it is the window."""


def gone(sizes: Positions, sinks: int) -> Positions:
    """For every key the first query that no longer sees it (`budgeted.Rule`)."""
    length = len(sizes)
    oldest = np.arange(length) - sizes + sinks  # the last position that has left the window, for each query
    first = np.searchsorted(oldest, np.arange(length))
    first[:sinks] = length
    return first


def make(context: Any, options: Options) -> BudgetedAttention:
    if options.sinks < 0:
        raise ValueError(f"sink-window: sinks must be at least 0, got {options.sinks}")
    least = options.sinks + 1
    options.check("sink-window", least)
    return BudgetedAttention(options, least, lambda sizes: gone(sizes, options.sinks), context.model.max_length)


TECHNIQUE = Technique(
    name="sink-window",
    seam="attention",
    summary="the first tokens and the most recent ones only: a control of quality, not for speed",
    exact=False,
    sets={"attention.policy": "sink-window"},
    options=Options,
    make=make,
    paper="Efficient Streaming Language Models with Attention Sinks, 2023",
)
