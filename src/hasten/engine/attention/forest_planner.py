"""Gives steps their forests.

The tree is kept from step to step, and so is the whole forest, until a shared run is not what it was, another sequence comes or
goes, or leaves have grown enough to be cut otherwise.
"""

from __future__ import annotations

import numpy as np

from hasten.engine.attention.forest import Costs, Longs, Node, cut, find_nodes, worthwhile
from hasten.kernels.base import HostIndex
from hasten.kernels.forest import REST, Forest

WIDEST = 16
"""Tokens of a span that may share: longer ones (prompts) read their views once for many rows as it is."""
CHUNK = 64
"""Query rows of a piece of such a span."""
GROWN = 16
"""Runs by which a view may grow before the forest is cut anew."""


class ForestPlanner:
    """Gives every step its forest, or None where reading together saves nothing. `heads` query heads read `kv_heads` each,
    `workers` threads compute. `split=False` leaves nodes in one piece. Not for several threads at once."""

    def __init__(self, costs: Costs, heads: int, kv_heads: int, workers: int, *, split: bool = True) -> None:
        self._costs, self._workers, self._split = costs, workers, split
        self._group, self._kv_heads = heads // kv_heads, kv_heads
        self._nodes: list[Node] = []
        self._spans = self._limits = self._depths = self._branches = np.empty(0, dtype=np.int64)
        self._forest: Forest | None = None
        self._of = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        """Span offsets and numbers of runs for which `_forest` was cut."""

    def plan(self, host: HostIndex) -> Forest | None:
        """The forest of a step with this index, of one view a span."""
        counts = np.diff(host.run_offsets)
        tokens = np.diff(host.span_offsets)
        if not self._begin_alike(host, counts):
            return None
        if not self._still_fits(host, counts, tokens):
            self._grow(host, counts, tokens)
        if not self._nodes:
            return None
        offsets, runs = self._of
        if self._forest is None or not np.array_equal(offsets, host.span_offsets) or (np.abs(counts - runs) > GROWN).any():
            self._forest = self._lay_out(host, tokens)
            self._of = host.span_offsets.copy(), counts
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
        for node in self._nodes:
            first, end = size * node.first, size * node.end
            leader = raw[begins[node.members[0]] + first : begins[node.members[0]] + end]
            for span in node.members[1:]:
                if raw[begins[span] + first : begins[span] + end] != leader:
                    return False
        return True

    def _grow(self, host: HostIndex, counts: Longs, tokens: Longs) -> None:
        limits = self._limits_of(host, counts, tokens)
        found = find_nodes(host, limits)
        self._nodes = worthwhile(found, tokens, self._group, self._costs)
        self._forest, self._spans, self._limits = None, tokens > 0, limits
        # How deep each span shares anything, be it worthwhile or not: where it parts from others it must go on parting.
        self._depths = np.zeros(len(counts), dtype=np.int64)
        for node in found:
            self._depths[node.members] = node.end
        self._branches = _branches(host, host.run_offsets[:-1].astype(np.int64), self._depths, limits)

    def _lay_out(self, host: HostIndex, tokens: Longs) -> Forest:
        lengths = np.diff(np.concatenate([[0], host.runs[:, 2].cumsum()])[host.run_offsets])
        nodes: list[list[int]] = []
        rows: list[Longs] = []
        sizes: list[tuple[int, int]] = []  # query rows and entries
        paths: list[list[tuple[int, Longs]]] = [[] for _ in tokens]  # of each span: nodes, places of its tokens in them
        before = [0] * len(self._nodes)
        at = 0
        for number, node in enumerate(self._nodes):
            if node.parent >= 0:
                before[number] = before[node.parent] + self._nodes[node.parent].entries
            mine = [np.arange(host.span_offsets[span], host.span_offsets[span + 1]) for span in node.members]
            count = 0
            for span, some in zip(node.members, mine, strict=True):
                paths[span].append((number, np.arange(count, count + len(some))))
                count += len(some)
            nodes.append([node.members[0], node.first, node.end, before[number], node.entries, at, at + count])
            rows += mine
            sizes.append((count * self._group, node.entries))
            at += count
        depths, shared = [0] * len(tokens), [0] * len(tokens)
        for number, node in enumerate(self._nodes):
            for span in node.members:
                depths[span], shared[span] = node.end, before[number] + node.entries
        leaves: list[list[tuple[int, int, int]]] = [[] for _ in tokens]
        for span, count in enumerate(tokens.tolist()):
            chunk = max(1, CHUNK // self._group) if count > WIDEST else max(1, count)
            for begin in range(0, count, chunk):
                end = min(begin + chunk, count)
                leaves[span].append((len(nodes), begin, end))
                nodes.append([span, depths[span], REST, shared[span], REST, at, at + end - begin])
                rows.append(np.arange(begin, end) + host.span_offsets[span])
                sizes.append(((end - begin) * self._group, int(lengths[span]) - shared[span]))
                at += end - begin
        tasks = cut(sizes, self._costs, self._kv_heads, self._workers, self._split)
        steps: list[tuple[int, int]] = []
        offsets = [0]
        for span, of_span in enumerate(leaves):
            for leaf, begin, end in of_span:
                for token in range(begin, end):
                    steps += [(number, int(places[token])) for number, places in paths[span]]
                    steps.append((leaf, token - begin))
                    offsets.append(len(steps))
        return Forest(
            np.array(nodes, dtype=np.int32).reshape(-1, 7),
            np.concatenate(rows).astype(np.int32),
            np.array(tasks, dtype=np.int32).reshape(-1, 3),
            np.array(offsets, dtype=np.int32),
            np.array(steps, dtype=np.int32).reshape(-1, 2),
        )


def _branches(host: HostIndex, starts: Longs, depths: Longs, limits: Longs) -> Longs:
    """The slot and position [S, 2] at which each span's first run of its own begins; -1 where it has none."""
    has = depths < limits
    runs = host.runs[np.where(has, starts + depths, 0)] if len(host.runs) else np.zeros((len(starts), 4), dtype=np.int64)
    branches: Longs = np.where(has[:, None], runs[:, [0, 1, 3]], -1)
    return branches
