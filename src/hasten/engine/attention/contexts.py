"""Gives steps forests in which contexts are nodes of their own, apart from what else their rows read.

A view begins with its contexts (`ViewIndex.contexts`): they are one node, whose scores and weight the kernels treat as the
forest says, and all else is the leaf. Short spans whose contexts are the same runs, as those of one request, share the node.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hasten.engine.attention.forest import Costs, Longs, cut
from hasten.engine.attention.forest_planner import GROWN, WIDEST, Making, lengths_of, piece_rows
from hasten.kernels.base import HostIndex
from hasten.kernels.forest import REST, Forest, Ints


class ContextPlanner:
    """`heads` query heads read `kv_heads` each, `workers` threads compute; `temperature` and `scale` as `Forest` has them. Not
    for several threads at once."""

    def __init__(self, costs: Costs, heads: int, kv_heads: int, workers: int, temperature: float, scale: float) -> None:
        self._costs, self._workers = costs, workers
        self._group, self._kv_heads = heads // kv_heads, kv_heads
        self._temperature, self._scale = temperature, scale
        self._forest: Forest | None = None
        self._fits: tuple[bytes, ...] = ()
        """What a step must have in common with that for which the forest was made."""
        self._counts = np.empty(0, dtype=np.int64)

    def plan(self, host: HostIndex, contexts: Ints) -> Forest:
        """The forest of a step. `contexts` int32 [S]: how many of each view's first runs are contexts."""
        counts: Longs = np.diff(host.run_offsets)
        held = [
            host.runs[begin : begin + n].tobytes()
            for begin, n in zip(host.run_offsets.tolist(), contexts.tolist(), strict=False)
        ]
        fits = (host.span_offsets.tobytes(), contexts.tobytes(), *held)
        if self._forest is None or fits != self._fits or (np.abs(counts - self._counts) > GROWN).any():
            self._forest = self._lay_out(host, contexts, held)
            self._fits, self._counts = fits, counts
        return self._forest

    def _lay_out(self, host: HostIndex, contexts: Ints, held: list[bytes]) -> Forest:
        tokens: Longs = np.diff(host.span_offsets)
        lengths = lengths_of(host)
        rows_of = np.split(np.arange(host.span_offsets[-1]), host.span_offsets[1:-1])
        begins = host.run_offsets.tolist()
        entries = [int(host.runs[begin : begin + n, 2].sum()) for begin, n in zip(begins, contexts.tolist(), strict=False)]
        making = Making(self._group)
        flags: list[bool] = []

        def add(span: int, rows: Longs, seen: int, *, context: bool) -> None:
            runs, first = int(contexts[span]), entries[span]
            where = (span, 0, runs, 0, first) if context else (span, runs, REST, first, REST)
            making.add(where, rows, seen)
            flags.append(context)

        together: dict[bytes, list[int]] = {}
        for span in np.flatnonzero((contexts > 0) & (tokens <= WIDEST)).tolist():
            together.setdefault(held[span], []).append(span)
        paths: dict[int, list[tuple[int, int]]] = {}
        for members in together.values():
            place = 0
            for span in members:
                paths[span] = [(len(making.nodes), place)]
                place += len(rows_of[span])
            rows = np.concatenate([rows_of[span] for span in members])
            if len(rows):
                add(members[0], rows, entries[members[0]], context=True)
        piece = piece_rows(int(tokens.sum()) * self._group * self._kv_heads, self._workers)
        for span, rows in enumerate(rows_of):
            most = max(1, piece // self._group) if len(rows) > WIDEST else max(1, len(rows))
            for begin in range(0, len(rows), most):
                some = rows[begin : begin + most]
                path = paths.get(span, [])
                if contexts[span] and span not in paths:
                    path = [(len(making.nodes), -begin)]
                    add(span, some, entries[span], context=True)
                making.walk(path, begin, len(some))
                seen = int(lengths[span]) - entries[span] - (len(rows) - begin - len(some))
                add(span, some, max(0, seen), context=False)
        forest = making.forest(cut(making.sizes, self._costs, self._kv_heads, self._workers))
        return dataclasses.replace(
            forest, contexts=np.array(flags, dtype=np.uint8), temperature=self._temperature, scale=self._scale
        )
