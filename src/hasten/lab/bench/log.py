"""A run's events by request: what every metric is computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.engine.events import Kind
from hasten.lab.bench.run import Floats, Ints, Run


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of the log that belong to requests: which row, whose, when."""

    row: Ints
    request: Ints
    time_s: Floats


class Log:
    """The columns, with the request's number instead of the log's sequence."""

    def __init__(self, run: Run) -> None:
        self.kind = np.asarray(run.columns["kind"])
        self.time_s = np.asarray(run.columns["time_s"], dtype=np.float64) - run.start_s
        self.a = np.asarray(run.columns["a"], dtype=np.float64)
        sequence = np.asarray(run.columns["sequence"]).astype(np.int64, copy=False)
        known = run.sequence[run.sequence >= 0]
        low, high = (int(known.min()), int(known.max())) if len(known) else (0, -1)
        # A log numbers its sequences one after the other, so a table over all of them is small. Its last entry means none.
        table = np.full(high - low + 2, -1, dtype=np.int64)
        table[run.sequence[run.sequence >= 0] - low] = np.flatnonzero(run.sequence >= 0)
        inside = (sequence >= low) & (sequence <= high)
        self.request = table[np.where(inside, sequence - low, -1)]
        self.count = len(run.sequence)

    def rows(self, *kinds: Kind) -> Rows:
        wanted = self.kind == kinds[0]
        for kind in kinds[1:]:
            wanted |= self.kind == kind
        row = np.flatnonzero(wanted & (self.request >= 0))
        return Rows(row, self.request[row], self.time_s[row])

    def first(self, rows: Rows) -> tuple[Floats, Ints]:
        """[n] time and row of each request's earliest of these; NaN and a row beyond the end where there is none."""
        row = np.full(self.count, len(self.kind), dtype=np.int64)
        np.minimum.at(row, rows.request, rows.row)
        there = row < len(self.kind)
        time_s = np.full(self.count, np.nan)
        time_s[there] = self.time_s[row[there]]
        return time_s, row

    def total(self, rows: Rows) -> Ints:
        """[n] sum of `a`."""
        return np.bincount(rows.request, self.a[rows.row], self.count).astype(np.int64)
