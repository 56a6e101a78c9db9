"""The batch: the spans of a step and the flat arrays derived from them, built once a step in buffers that are reused."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.sequence import Span

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Batch:
    """One ragged step of S spans and T tokens. Arrays are views of the builder's buffers, valid until its next `build`.

    `tokens`, `slots` int64 [T]; `positions`, `segments` int32 [T]; `span_offsets` int32 [S+1]; `runs` int32 [R, 4] and
    `run_offsets` int32 [S+1], the KV each span reads (see `View`), its own new entries included; `logits_rows` int64 [L], the
    flat rows whose logits are wanted, in the order of the spans. `contexts` int32 [S]: how many of a span's first runs are
    contexts beside each other; None: nobody has any. `ancestors` int64 [T, W] and `is_tree` uint8 [S] only when a
    span is a tree: bit j of ancestors[t] says that flat token t sees token j of its own span.
    """

    spans: list[Span]
    tokens: Array
    positions: Array
    segments: Array
    slots: Array
    span_offsets: Array
    runs: Array
    run_offsets: Array
    logits_rows: Array
    ancestors: Array | None = None
    is_tree: Array | None = None
    contexts: Array | None = None

    @property
    def size(self) -> int:
        return len(self.tokens)

    def keep(self, rows: Array) -> Batch:
        """What is left when only `rows` int64 [n], ascending, go on, in memory of its own. A span of which nothing goes on is
        no longer there. Raises ValueError where none goes on, where one does not whose logits are wanted, and for part of a
        tree, whose rows its view counts from its end."""
        held = np.diff(self.span_offsets)
        counts = np.bincount(np.repeat(np.arange(len(held)), held)[rows], minlength=len(held))
        spans = np.flatnonzero(counts)
        place = np.full(self.size, -1)
        place[rows] = np.arange(len(rows))
        wanted = place[self.logits_rows]
        if not len(rows) or (wanted < 0).any():
            raise ValueError("no row is left, or one whose logits are wanted would go")
        if self.is_tree is not None and ((counts > 0) & (counts < held) & (self.is_tree > 0)).any():
            raise ValueError("part of a tree would go")
        views = [self.runs[start:stop] for start, stop in pairwise(self.run_offsets.tolist())]
        return Batch(
            [self.spans[i] for i in spans],
            self.tokens[rows],
            self.positions[rows],
            self.segments[rows],
            self.slots[rows],
            _offsets(counts[spans]),
            np.concatenate([views[i] for i in spans]),
            _offsets([len(views[i]) for i in spans]),
            wanted,
            None if self.ancestors is None else self.ancestors[rows],
            None if self.is_tree is None else self.is_tree[spans],
            None if self.contexts is None else self.contexts[spans],
        )


def _offsets(counts: Any) -> Array:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


class BatchBuilder:
    """Fills batches into buffers that only ever grow (doubling), so a steady state allocates nothing."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def _room(self, name: str, rows: int, dtype: Any, columns: int | None = None) -> Array:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < rows:
            shape = (max(64, 2 * rows),) if columns is None else (max(64, 2 * rows), columns)
            buffer = self._buffers[name] = np.zeros(shape, dtype=dtype)
        return buffer

    def build(self, spans: list[Span]) -> Batch:
        total = sum(span.count for span in spans)
        run_total = sum(span.sequence.view.run_count + (span.behind > 0) for span in spans)
        tokens = self._room("tokens", total, np.int64)
        slots = self._room("slots", total, np.int64)
        positions = self._room("positions", total, np.int32)
        segments = self._room("segments", total, np.int32)
        span_offsets = self._room("span_offsets", len(spans) + 1, np.int32)
        run_offsets = self._room("run_offsets", len(spans) + 1, np.int32)
        runs = self._room("runs", run_total, np.int32, 4)
        rows: list[int] = []
        at = run_at = 0
        trees = False
        contexts = [0] * len(spans)
        span_offsets[0] = run_offsets[0] = 0
        for i, span in enumerate(spans):
            stop = at + span.count
            tokens[at:stop] = span.tokens
            slots[at:stop] = span.slots
            positions[at:stop] = span.positions
            segments[at:stop] = span.segments
            seen, contexts[i] = span.reads()
            run_stop = run_at + len(seen)
            runs[run_at:run_stop] = seen
            rows += [at + row for row in span.logits]
            trees = trees or span.parents is not None
            at, run_at = stop, run_stop
            span_offsets[i + 1] = at
            run_offsets[i + 1] = run_at
        count = len(spans)
        batch = Batch(
            spans,
            tokens[:at],
            positions[:at],
            segments[:at],
            slots[:at],
            span_offsets[: count + 1],
            runs[:run_at],
            run_offsets[: count + 1],
            np.array(rows, dtype=np.int64),
        )
        if any(contexts):
            batch.contexts = np.array(contexts, dtype=np.int32)
        if trees:
            batch.ancestors, batch.is_tree = _ancestors(spans)
        return batch


def _ancestors(spans: list[Span]) -> tuple[Array, Array]:
    """Ancestor bit sets of all tree spans. A token's set is its parent's and itself, so one pass in order suffices."""
    words = max((span.count + 63) // 64 for span in spans if span.parents is not None)
    bits = np.zeros((sum(span.count for span in spans), words), dtype=np.uint64)
    is_tree = np.zeros(len(spans), dtype=np.uint8)
    at = 0
    for i, span in enumerate(spans):
        if span.parents is not None:
            is_tree[i] = 1
            for row, parent in enumerate(span.parents.tolist()):
                if parent >= 0:
                    bits[at + row] = bits[at + parent]
                bits[at + row, row // 64] |= np.uint64(1) << np.uint64(row % 64)
        at += span.count
    return bits.view(np.int64), is_tree
