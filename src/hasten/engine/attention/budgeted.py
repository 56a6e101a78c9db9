"""Attention within a KV budget, for policies that choose the kept keys by position alone.

Keys and values stay in the paged pool; a query reads only those that a cache of its budget would still hold. A rule says for
every key from which query on it is gone, so a key that was evicted never comes back. Each query row becomes a span of its own
whose view is cut to the kept keys, so the kernels read exactly those. Nothing is saved and much is lost by that: these
policies show what a budget costs in quality and are never timed. READ events count the whole view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hasten.engine.attention.base import SUPPORTS, StatelessAttention
from hasten.engine.executors.step import Site, Step
from hasten.engine.sequence import Span
from hasten.kernels import ViewIndex

Positions = npt.NDArray[np.int64]
LEAST = 16
"""A share of a context never means fewer keys than this: the first tokens of a prompt would else see next to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    share: float = 0.25
    """Keys a query may see, as a share of the context: of the tokens up to it, or of the prompt with `prefill=exact`."""
    tokens: int = 0
    """The same in tokens, whatever the context; 0: `share` says."""
    prefill: Literal["budget", "exact"] = "budget"
    """`budget`: every query has its budget, those of the prompt too, as if the cache never held more. Shows whether a task
    needs the keys that are gone. `exact`: the prompt is computed in full and the cache cut after it, as H2O (2023) and SnapKV
    (2024) are evaluated. The question has then read everything, the last prompt token too, which draws the first token of the
    answer: shows how much of an answer is read from the cache after that."""

    def check(self, name: str, least: int) -> None:
        """Raise ValueError for what is no budget of at least `least` keys."""
        if not 0 < self.share <= 1:
            raise ValueError(f"{name}: share must lie in (0, 1], got {self.share}")
        if self.tokens < 0 or 0 < self.tokens < least:
            raise ValueError(f"{name}: tokens must be 0 (share says) or at least {least} here, got {self.tokens}")

    def sizes(self, length: int, least: int, context: int | None = None) -> Positions:
        """Keys that the queries at positions 0 to length - 1 may see, themselves included: int64 [length], not falling and
        rising by at most 1. `context`: the tokens that `share` is of (None: those up to each query)."""
        if self.tokens:
            return np.full(length, self.tokens, dtype=np.int64)
        of = np.arange(1, length + 1) if context is None else np.full(length, context)
        sizes: Positions = np.maximum(np.ceil(self.share * of).astype(np.int64), max(LEAST, least))
        return sizes


Rule = Callable[[Positions], Positions]
"""From `Budget.sizes` int64 [n] to int64 [n]: the position of the first query that no longer sees each key (n: none)."""


class BudgetedAttention(StatelessAttention):
    """`least`: the fewest keys that `rule` works with. `length`: most tokens of a sequence."""

    def __init__(self, budget: Budget, least: int, rule: Rule, length: int) -> None:
        self._exact_prefill = budget.prefill == "exact"
        # By positions alone, equal prefixes have equal KV. Cut after the prompt, an answer's KV depends on the prompt's length.
        self.supports = SUPPORTS - ({"prefix", "link"} if self._exact_prefill else {"link"})

        @lru_cache(maxsize=64)
        def gone(context: int | None) -> Positions:
            return rule(budget.sizes(length, least, context))

        self._gone = gone

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        kernels = step.kernels
        kernels.rope_and_store(q, k, v, site.cos_sin, step.index.positions, step.slots, site.k, site.v)
        index: ViewIndex | None = step.index.cache.get(self)
        if index is None:
            index = step.index.cache[self] = self._kept(step)
        out = q.new_empty(q.shape)
        kernels.attention(q, site.k, site.v, index, site.scale, out, window=site.window, deterministic=step.deterministic)
        return out.view(q.shape[0], -1)

    def _kept(self, step: Step) -> ViewIndex:
        """The step's index with a span for every row that does not see all it could."""
        host, entries, batch = step.index.on_host(), step.index.entries(), step.batch
        runs, run_counts, row_counts = [], [], []
        for i, span in enumerate(batch.spans):
            rows = slice(host.span_offsets[i], host.span_offsets[i + 1])
            view = slice(entries.offsets[i], entries.offsets[i + 1])
            queries, keys = host.positions[rows].astype(np.int64), entries.positions[view]
            visible = keys <= queries[:, None]
            kept = self._held(span, queries, keys)
            if span.parents is None and (kept | ~visible).all():
                whole = slice(host.run_offsets[i], host.run_offsets[i + 1])
                runs.append(host.runs[whole])
                run_counts.append(np.array([whole.stop - whole.start]))
                row_counts.append(np.array([len(queries)]))
                continue
            if span.parents is not None:
                assert batch.ancestors is not None
                own = np.arange(len(queries))
                bits = batch.ancestors[rows][:, own // 64] >> (own % 64)
                visible[:, len(keys) - len(queries) :] = bits & 1
            cut, counts = _runs(visible & kept, entries.blocks[view], entries.slots[view], keys)
            runs.append(cut)
            run_counts.append(counts)
            row_counts.append(np.ones(len(queries), dtype=np.int64))
        return ViewIndex.from_numpy(
            _offsets(row_counts), host.positions, np.concatenate(runs), _offsets(run_counts), device=step.x.device
        )

    def _held(self, span: Span, queries: Positions, keys: Positions) -> npt.NDArray[np.bool_]:
        """Bool [queries, keys]: which keys the cache still holds for each query, be they before it or not."""
        if not self._exact_prefill:
            return queries[:, None] < self._gone(None)[keys]
        prompt = span.sequence.prompt_length
        return (queries[:, None] < prompt) | (queries[:, None] < self._gone(prompt)[keys])


def _runs(
    mask: npt.NDArray[np.bool_], blocks: Positions, slots: Positions, positions: Positions
) -> tuple[Positions, npt.NDArray[np.int64]]:
    """The entries that each row of `mask` [n, entries] keeps, as runs [R, 4] of a `ViewIndex`; how many runs each row has."""
    joined = (np.diff(blocks) == 0) & (np.diff(slots) == 1) & (np.diff(positions) == 1)
    inside = mask[:, 1:] & mask[:, :-1] & joined
    starts, ends = mask.copy(), mask.copy()
    starts[:, 1:] &= ~inside
    ends[:, :-1] &= ~inside
    row, first = np.nonzero(starts)
    last = np.nonzero(ends)[1]
    runs = np.stack([blocks[first], slots[first], last - first + 1, positions[first]], axis=1)
    return runs, np.bincount(row, minlength=len(mask))


def _offsets(counts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], *counts]).cumsum()
