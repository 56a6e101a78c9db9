"""Which guesses to try together: a tree of ranks, grown from how often each rank was right."""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from hasten.engine.kv.base import Ints


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Nodes, the most useful first, so that the first m of them are the best tree of m nodes. int32 [n] each: `depths` from 0,
    which is also the head that guesses; `ranks`, which of its guesses; `parents`, the node before it, -1 for the last token
    of the sequence. `expected`, float64 [n]: how likely a node is to be accepted."""

    depths: Ints
    ranks: Ints
    parents: Ints
    expected: np.ndarray

    def __len__(self) -> int:
        return len(self.depths)

    def first(self, nodes: int) -> Tree:
        """Its best nodes."""
        return Tree(self.depths[:nodes], self.ranks[:nodes], self.parents[:nodes], self.expected[:nodes])


def grow(accuracies: Seq[Seq[float]], nodes: int) -> Tree:
    """The tree of at most `nodes` nodes with the most accepted tokens to expect, if accuracies[k][i], how often head k's i-th
    guess is right, do not depend on what was guessed before it: each time the node with the largest product of accuracies
    along its path is added. No product exceeds its parent's, so parents come first."""
    found: list[tuple[int, int, int, float]] = []
    # (minus the product, number, depth, rank, parent): of equal products the one that came up first.
    heap = [(-share, rank, 0, rank, -1) for rank, share in enumerate(accuracies[0])] if accuracies else []
    heapq.heapify(heap)
    number = len(heap)
    while heap and len(found) < nodes:
        product, _, depth, rank, parent = heapq.heappop(heap)
        if product == 0.0:
            break
        found.append((depth, rank, parent, -product))
        if depth + 1 < len(accuracies):
            for below, share in enumerate(accuracies[depth + 1]):
                heapq.heappush(heap, (product * share, number, depth + 1, below, len(found) - 1))
                number += 1
    depths, ranks, parents = (np.array([node[i] for node in found], dtype=np.int32) for i in range(3))
    return Tree(depths, ranks, parents, np.array([node[3] for node in found], dtype=np.float64))
