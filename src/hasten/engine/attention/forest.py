"""Finds the forest of a step: what its sequences share at the start of their views, and in which pieces to compute it.

Numbers only. The tree is kept from step to step, and so is the whole forest, until a shared run is not what it was, another
sequence comes or goes, or leaves have grown enough to be cut otherwise.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hasten.kernels.base import HostIndex
from hasten.kernels.forest import REST, TILE, Forest

Longs = npt.NDArray[np.int64]
WIDEST = 16
"""Tokens of a span that may share: longer ones (prompts) read their views once for many rows as it is."""
CHUNK = 64
"""Query rows of a piece of such a span."""
GROWN = 16
"""Runs by which a view may grow before the forest is cut anew."""
FINENESS = (1, 2, 4, 8)
"""Tasks are held below so many parts of a worker's fair share; the best is chosen."""


class Costs(Protocol):
    """What a task takes: T(query rows, keys), and what it takes to merge one partial result of a query row, in seconds."""

    merge: float

    def seconds(self, rows: Any, keys: Any) -> npt.NDArray[np.float64]: ...


class ReadingCosts:
    """For devices nobody measured: a key costs its reading, and a 64th of that for every row that meets it."""

    merge = 4.0

    def seconds(self, rows: Any, keys: Any) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = (np.asarray(keys) + 16.0) * (1 + np.asarray(rows) / 64)
        return result


@dataclass(slots=True)
class Node:
    """Runs [first, end) of every member's view, the same in all of them. `parent`: position in the list of nodes, -1 none."""

    members: list[int]
    first: int
    end: int
    parent: int
    entries: int = 0


def find_nodes(host: HostIndex, limits: Sequence[int] | Longs) -> list[Node]:
    """The shared nodes, parents before children: a prefix tree of the views' runs, of which span s lets its first `limits[s]`
    be shared. Two runs are the same if they name the same slots and positions."""
    keys = np.ascontiguousarray(host.runs).view(np.int64)  # [R, 2]: a run in two words
    starts = host.run_offsets[:-1].tolist()
    nodes: list[Node] = []
    stack = [([span for span in range(len(starts)) if limits[span] > 0], 0, -1)]
    while stack:
        members, depth, parent = stack.pop()
        groups: dict[tuple[int, int], list[int]] = {}
        for span in members:
            if limits[span] > depth:
                groups.setdefault(tuple(keys[starts[span] + depth].tolist()), []).append(span)
        for group in groups.values():
            if len(group) < 2:
                continue
            end = min(int(limits[span]) for span in group)
            first = keys[starts[group[0]] + depth : starts[group[0]] + end]
            for span in group[1:]:
                other = keys[starts[span] + depth : starts[span] + depth + len(first)]
                differs = (first != other).any(1)
                at = int(differs.argmax())
                if differs[at]:
                    first = first[:at]
            end = depth + len(first)
            nodes.append(Node(group, depth, end, parent))
            stack.append((group, end, len(nodes) - 1))
    for node in nodes:
        start = starts[node.members[0]]
        node.entries = int(host.runs[start + node.first : start + node.end, 2].sum())
    return nodes


def worthwhile(nodes: list[Node], tokens: Longs, group: int, costs: Costs) -> list[Node]:
    """The nodes that save more time than the partial results they leave cost; what a dropped one held goes to those below."""
    kept: list[Node] = []
    place: dict[int, int] = {-1: -1}  # of a node, or its nearest kept ancestor, among the kept
    carried: dict[int, tuple[int, int]] = {}  # by a dropped node: its first run and its entries
    for number, node in enumerate(nodes):
        first, before = carried.get(node.parent, (node.first, 0))
        entries = node.entries + before
        rows = tokens[node.members] * group
        alone = float(costs.seconds(rows, np.full(len(rows), entries)).sum())
        together = float(costs.seconds(rows.sum(), entries)) + float(rows.sum()) * costs.merge
        if entries and together < alone:
            place[number] = len(kept)
            kept.append(Node(node.members, first, node.end, place[node.parent], entries))
        else:
            place[number] = place[node.parent]
            carried[number] = (first, entries)
    return kept


def cut(costs_of: list[tuple[int, int]], costs: Costs, heads: int, workers: int, split: bool = True) -> list[list[int]]:
    """Tasks [node, first tile, end tile] of nodes of (query rows, entries), longest first.

    Every KV head of a node is a task of its own already. Tasks are cut so that none takes longer than a part of total / workers;
    which part, is tried: shorter tasks balance better and cost more merging. Assigned to the least-loaded worker in this order
    (longest processing time first), they end within a task's length of the best.
    """
    rows, entries = (np.array(column, dtype=np.int64) for column in zip(*costs_of, strict=True))
    whole = costs.seconds(rows, entries)
    tiles = np.maximum(1, -(-entries // TILE))
    fair = float(whole.sum()) * heads / workers
    best: tuple[float, npt.NDArray[np.int64], npt.NDArray[np.float64]] | None = None
    for fineness in FINENESS if split and workers > 1 else ():
        parts = np.clip(np.ceil(whole / (fair / fineness)), 1, tiles).astype(np.int64)
        seconds = costs.seconds(rows, entries / parts) + np.where(parts > 1, rows * costs.merge, 0.0)
        makespan = _makespan(seconds, parts * heads, workers)
        if best is None or makespan < best[0]:
            best = makespan, parts, seconds
        if float(seconds.max()) < fair / FINENESS[-1]:
            break
    parts, seconds = (np.ones(len(rows), dtype=np.int64), whole) if best is None else best[1:]
    tasks = []
    for node in np.argsort(-seconds, kind="stable").tolist():
        count = int(parts[node])
        edges = [int(tiles[node]) * part // count for part in range(count)]
        tasks += [[node, begin, end] for begin, end in zip(edges, [*edges[1:], REST], strict=True)]
    return tasks


def _makespan(seconds: npt.NDArray[np.float64], counts: Longs, workers: int) -> float:
    """When the last worker ends, `counts[i]` tasks of `seconds[i]` given longest first to the least-loaded one."""
    loads = [0.0] * workers
    for task in np.argsort(-seconds).tolist():
        for _ in range(int(counts[task])):
            heapq.heapreplace(loads, loads[0] + float(seconds[task]))
    return max(loads)


class ForestPlanner:
    """Gives every step its forest, or None where reading together saves nothing. `heads` query heads read `kv_heads` each,
    `workers` threads compute. `split=False` leaves nodes in one piece. Not for several threads at once."""

    def __init__(self, costs: Costs, heads: int, kv_heads: int, workers: int, *, split: bool = True) -> None:
        self._costs, self._group, self._kv_heads, self._workers, self._split = costs, heads // kv_heads, kv_heads, workers, split
        self._nodes: list[Node] = []
        none = np.empty(0, dtype=np.int64)
        self._spans = self._limits = self._depths = self._branches = none
        self._members = self._leaders = self._firsts = self._lengths = none
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
        keys = np.ascontiguousarray(host.runs).view(np.int64)
        starts = host.run_offsets[:-1].astype(np.int64)
        if not np.array_equal(_branches(host, starts, self._depths, limits), self._branches):
            return False
        within = _counted(self._lengths)
        mine = keys[np.repeat(starts[self._members] + self._firsts, self._lengths) + within]
        leaders = keys[np.repeat(starts[self._leaders] + self._firsts, self._lengths) + within]
        return np.array_equal(mine, leaders)

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
        pairs = [(span, node) for node in self._nodes for span in node.members[1:]]
        self._members = np.array([span for span, _ in pairs], dtype=np.int64)
        self._leaders = np.array([node.members[0] for _, node in pairs], dtype=np.int64)
        self._firsts = np.array([node.first for _, node in pairs], dtype=np.int64)
        self._lengths = np.array([node.end - node.first for _, node in pairs], dtype=np.int64)

    def _lay_out(self, host: HostIndex, tokens: Longs) -> Forest:
        counts = np.diff(host.run_offsets)
        lengths = np.array([int(host.runs[a:b, 2].sum()) for a, b in zip(host.run_offsets, host.run_offsets[1:], strict=False)])
        nodes: list[list[int]] = []
        rows: list[Longs] = []
        sizes: list[tuple[int, int]] = []  # query rows and entries
        paths: list[list[tuple[int, Longs]]] = [[] for _ in counts]  # of each span: nodes, places of its tokens in them
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
        depths, shared = [0] * len(counts), [0] * len(counts)
        for number, node in enumerate(self._nodes):
            for span in node.members:
                depths[span], shared[span] = node.end, before[number] + node.entries
        leaves: list[list[tuple[int, int, int]]] = [[] for _ in counts]
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


def _counted(lengths: Longs) -> Longs:
    """0 .. n - 1 for each n of `lengths`, one after the other."""
    counted: Longs = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    return counted
