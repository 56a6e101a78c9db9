"""Gives steps their forests.

The tree is kept from step to step, and so is the whole forest, until a shared run is not what it was, another sequence comes or
goes, or leaves have grown enough to be cut otherwise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hasten.engine.attention.forest import Costs, Longs, Node, cut, find_nodes, worthwhile
from hasten.kernels.base import HostIndex
from hasten.kernels.forest import REST, Forest

WIDEST = 16
"""Tokens of a span that may share: longer ones (prompts) read their views once for many rows as it is."""
CHUNKS = (48, 256)
"""Query rows of a piece of such a span: the more, the less packing of keys; the fewer, the more pieces for the workers."""
GROWN = 16
"""Runs by which a view may grow before the forest is cut anew."""


class ForestPlanner:
    """Gives every step its forest, or None where reading together saves nothing. `heads` query heads read `kv_heads` each,
    `workers` threads compute. `split=False` leaves nodes in one piece. Not for several threads at once."""

    def __init__(self, costs: Costs, heads: int, kv_heads: int, workers: int, *, split: bool = True) -> None:
        self._costs, self._workers, self._split = costs, workers, split
        self._group, self._kv_heads = heads // kv_heads, kv_heads
        self._nodes: list[Node] = []
        self._held: list[bytes] = []
        """The runs of each node."""
        self._limits = self._depths = self._branches = np.empty(0, dtype=np.int64)
        self._spans: npt.NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
        self._forest: Forest | None = None
        self._counts, self._offsets = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        """Numbers of runs for which the nodes were found, span offsets for which `_forest` was made."""

    def plan(self, host: HostIndex) -> Forest | None:
        """The forest of a step with this index, of one view a span."""
        counts = np.diff(host.run_offsets)
        tokens = np.diff(host.span_offsets)
        if not self._begin_alike(host, counts):
            return None
        if not self._still_fits(host, counts, tokens) or (np.abs(counts - self._counts) > GROWN).any():
            self._grow(host, counts, tokens)
        if not self._nodes:
            return None
        if self._forest is None or not np.array_equal(self._offsets, host.span_offsets):
            self._forest = self._lay_out(host, tokens)
            self._offsets = host.span_offsets.copy()
        return self._forest

    def _begin_alike(self, host: HostIndex, counts: Longs) -> bool:
        """Whether two views begin in the same block: all that a step without sharing pays for."""
        blocks = host.runs[host.run_offsets[:-1][counts > 0], 0].tolist()
        return len(set(blocks)) < len(blocks)

    def _limits_of(self, host: HostIndex, counts: Longs, tokens: Longs) -> Longs:
        """How many runs of each span may be shared: none of a long span, none that hold a tree's own tokens."""
        limits = np.where((tokens > 0) & (tokens <= WIDEST), counts, 0)
        if host.is_tree is not None:
            for span in np.flatnonzero(host.is_tree).tolist():
                begin, end = int(host.run_offsets[span]), int(host.run_offsets[span + 1])
                held = host.runs[begin:end, 2].cumsum()
                if end > begin:
                    limits[span] = min(int(limits[span]), int(np.searchsorted(held, held[-1] - tokens[span], side="right")))
        return limits

    def _still_fits(self, host: HostIndex, counts: Longs, tokens: Longs) -> bool:
        """Whether the tree of the step before is this one's: the same spans share the same runs and part where they did."""
        if len(counts) != len(self._depths) or not np.array_equal(tokens > 0, self._spans):
            return False
        limits = self._limits_of(host, counts, tokens)
        if (limits < self._depths).any() or ((limits > 0) != (self._limits > 0)).any():
            return False
        starts = host.run_offsets[:-1].astype(np.int64)
        if not np.array_equal(_branches(host, starts, self._depths, limits), self._branches):
            return False
        # As bytes, which compare ten times faster than arrays of some hundred runs.
        raw, size = host.runs.tobytes(), host.runs.strides[0]
        begins = (starts * size).tolist()
        for node, held in zip(self._nodes, self._held, strict=True):
            first, end = size * node.first, size * node.end
            for span in node.members:
                if raw[begins[span] + first : begins[span] + end] != held:
                    return False
        return True

    def _grow(self, host: HostIndex, counts: Longs, tokens: Longs) -> None:
        limits = self._limits_of(host, counts, tokens)
        found = find_nodes(host, limits)
        self._nodes = worthwhile(found, tokens * self._group, lengths_of(host), self._costs)
        self._forest, self._spans, self._limits, self._counts = None, tokens > 0, limits, counts
        begins = host.run_offsets.tolist()
        self._held = [host.runs[begins[n.members[0]] + n.first : begins[n.members[0]] + n.end].tobytes() for n in self._nodes]
        # How deep each span shares anything, be it worthwhile or not: where it parts from others it must go on parting.
        self._depths = np.zeros(len(counts), dtype=np.int64)
        for node in found:
            self._depths[node.members] = node.end
        self._branches = _branches(host, host.run_offsets[:-1].astype(np.int64), self._depths, limits)

    def _lay_out(self, host: HostIndex, tokens: Longs) -> Forest:
        lengths = lengths_of(host)
        rows_of = np.split(np.arange(host.span_offsets[-1]), host.span_offsets[1:-1])
        making = Making(self._group)
        paths: list[list[tuple[int, int]]] = [[] for _ in tokens]  # of each span: nodes, the place of its first token in them
        depths, shared = [0] * len(tokens), [0] * len(tokens)  # of each span: runs and entries of its nodes
        for node in self._nodes:
            leader = node.members[0]
            place, before = 0, shared[leader]
            for span in node.members:
                paths[span].append((len(making.nodes), place))
                place += int(tokens[span])
                depths[span], shared[span] = node.end, before + node.entries
            where = (leader, node.first, node.end, before, node.entries)
            making.add(where, np.concatenate([rows_of[span] for span in node.members]), node.entries)
        chunk_rows = piece_rows(int(tokens.sum()) * self._group * self._kv_heads, self._workers)
        for span, rows in enumerate(rows_of):
            chunk = max(1, chunk_rows // self._group) if len(rows) > WIDEST else max(1, len(rows))
            for begin in range(0, len(rows), chunk):
                some = rows[begin : begin + chunk]
                seen = int(lengths[span]) - shared[span] - (len(rows) - begin - len(some))  # a prompt's first rows see least
                making.walk(paths[span], begin, len(some))
                making.add((span, depths[span], REST, shared[span], REST), some, max(0, seen))
        return making.forest(cut(making.sizes, self._costs, self._kv_heads, self._workers, self._split))


def piece_rows(total: int, workers: int) -> int:
    """Query rows of a piece of a long span, where a step has so many in `total`."""
    rows = CHUNKS[1]
    while rows > CHUNKS[0] and total / rows < 3 * workers:
        rows //= 2
    return rows


class Making:
    """A forest in the making."""

    def __init__(self, group: int) -> None:
        self._group = group
        self.nodes: list[list[int]] = []
        self.sizes: list[tuple[int, int]] = []
        """Query rows of each node, and how many entries they read."""
        self._rows: list[Longs] = []
        self._steps: list[tuple[int, int]] = []
        self._offsets = [0]
        self._count = 0

    def add(self, where: tuple[int, int, int, int, int], rows: Longs, entries: int) -> None:
        """A node: the first columns of `Forest.nodes`, its rows, and how many entries they read."""
        self.nodes.append([*where, self._count, self._count + len(rows)])
        self.sizes.append((len(rows) * self._group, entries))
        self._rows.append(rows)
        self._count += len(rows)

    def walk(self, path: list[tuple[int, int]], begin: int, count: int) -> None:
        """The paths of a span's tokens `begin` and following, whose leaf comes next; tokens are walked in the flat order."""
        for token in range(count):
            self._steps += [(node, place + begin + token) for node, place in path]
            self._steps.append((len(self.nodes), token))
            self._offsets.append(len(self._steps))

    def forest(self, tasks: list[list[int]]) -> Forest:
        return Forest(
            np.array(self.nodes, dtype=np.int32).reshape(-1, 7),
            np.concatenate(self._rows).astype(np.int32),
            np.array(tasks, dtype=np.int32).reshape(-1, 3),
            np.array(self._offsets, dtype=np.int32),
            np.array(self._steps, dtype=np.int32).reshape(-1, 2),
        )


def lengths_of(host: HostIndex) -> Longs:
    """Entries of each view."""
    lengths: Longs = np.diff(np.concatenate([[0], host.runs[:, 2].cumsum()])[host.run_offsets])
    return lengths


def _branches(host: HostIndex, starts: Longs, depths: Longs, limits: Longs) -> Longs:
    """The slot and position [S, 2] at which each span's first run of its own begins; -1 where it has none."""
    has = depths < limits
    runs = host.runs[np.where(has, starts + depths, 0)] if len(host.runs) else np.zeros((len(starts), 4), dtype=np.int64)
    branches: Longs = np.where(has[:, None], runs[:, [0, 1, 3]], -1)
    return branches
