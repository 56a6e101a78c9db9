"""What the sequences of a step share at the start of their views: the nodes, which of them pay, and in which tasks to compute
them. Numbers only; `forest_planner.py` makes forests of it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hasten.kernels.base import HostIndex
from hasten.kernels.forest import REST, TILE

Longs = npt.NDArray[np.int64]
SURE = 0.7
"""A node must promise to take less than this share of the time: tables err, and near the limit there is nothing to gain."""
LEAST = 0.05
"""And all nodes together must promise to save at least this share of the step's attention."""
FINENESS = (1, 2, 4, 8)
"""Tasks are held below so many parts of a worker's fair share; the best is chosen."""


class Costs(Protocol):
    """Of tasks and partial results."""

    @property
    def merge(self) -> float:
        """Seconds that one more task costs each of its query rows, beyond those for its keys."""
        ...

    def seconds(self, rows: Any, keys: Any) -> npt.NDArray[np.float64]:
        """T: what a task of so many query rows and keys takes, for numbers or arrays of them."""
        ...


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


def worthwhile(nodes: list[Node], rows: Longs, lengths: Longs, costs: Costs) -> list[Node]:
    """The nodes that save clearly more time than their partial results cost; what a dropped one held goes to those below.
    None where all of them together save next to nothing. `rows`: query rows of each span; `lengths`: entries of its view."""
    kept: list[Node] = []
    saved = 0.0
    place: dict[int, int] = {-1: -1}  # of a node, or its nearest kept ancestor, among the kept
    carried: dict[int, tuple[int, int]] = {}  # by a dropped node: its first run and its entries
    for number, node in enumerate(nodes):
        first, before = carried.get(node.parent, (node.first, 0))
        entries = node.entries + before
        mine = rows[node.members]
        # Alone, the entries would be read by tasks that are there anyway.
        alone = float((costs.seconds(mine, entries + TILE) - costs.seconds(mine, TILE)).sum())
        # Where nothing was shared above, the leaves' results become partial ones too.
        partial = 1 if place[node.parent] >= 0 else 2
        together = float(costs.seconds(mine.sum(), entries)) + partial * float(mine.sum()) * costs.merge
        if entries and together < SURE * alone:
            saved += alone - together
            place[number] = len(kept)
            kept.append(Node(node.members, first, node.end, place[node.parent], entries))
        else:
            place[number] = place[node.parent]
            carried[number] = (first, entries)
    return kept if saved > LEAST * float(costs.seconds(rows, lengths).sum()) else []


def cut(costs_of: list[tuple[int, int]], costs: Costs, heads: int, workers: int, split: bool = True) -> list[list[int]]:
    """Tasks [node, first tile, end tile] of nodes of (query rows, entries), longest first.

    Every KV head of a node is a task of its own already. Tasks are cut so that none takes longer than a part of
    total / workers; which part, is tried: shorter tasks balance better and cost more merging. Assigned to the least-loaded
    worker in this order (longest processing time first), they end within a task's length of the best.
    """
    rows, entries = (np.array(column, dtype=np.int64) for column in zip(*costs_of, strict=True))
    whole = costs.seconds(rows, entries)
    tiles = np.maximum(1, -(-entries // TILE))
    fair = float(whole.sum()) * heads / workers
    best: tuple[float, npt.NDArray[np.int64], npt.NDArray[np.float64]] | None = None
    for fineness in FINENESS if split and workers > 1 else ():
        parts = np.clip(np.ceil(whole / (fair / fineness)), 1, tiles).astype(np.int64)
        seconds = costs.seconds(rows, entries / parts)
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
