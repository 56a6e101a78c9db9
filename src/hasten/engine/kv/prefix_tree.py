"""Prefix caching: KV of equal leading tokens is computed once.

A tree of full blocks: a node stands for one block of tokens after the blocks of its ancestors, so a path from the root spells
a prefix and a look-up walks it block by block (RadixAttention, Zheng et al., 2023, at block granularity as in vLLM, Kwon et
al., 2023). Look-up and insertion cost O(blocks of the prompt), eviction O(log nodes) a block. Exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count as counter

import numpy as np

from hasten.engine.kv.base import Eviction, Found, Ints, Readiness, ReuseKey
from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.view import View
from hasten.engine.technique import Technique


class LRU:
    """Least recently used first; of equals the deepest, so that a prefix outlives its continuations."""

    def score(self, last_used: int, hits: int, depth: int) -> float:
        return last_used - depth * 1e-6


class _Node:
    __slots__ = ("block", "children", "depth", "hits", "key", "last_used", "parent")

    def __init__(self, parent: _Node | None, key: bytes, block: int, depth: int) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.depth = depth
        self.children: dict[bytes, _Node] = {}
        self.last_used = 0
        self.hits = 0


class PrefixTree:
    """One tree per `ReuseKey` over one pool; the tree holds one reference of each of its blocks."""

    def __init__(self, pool: BlockPool, eviction: Eviction | None = None) -> None:
        self._pool = pool
        self._eviction = eviction if eviction is not None else LRU()
        self._roots: dict[ReuseKey, _Node] = {}
        self._heap: list[tuple[float, int, _Node]] = []
        self._serial = counter()
        self._tick = 0
        self.nodes = 0

    def _walk(self, key: ReuseKey, tokens: Ints, blocks: int) -> list[_Node]:
        node = self._roots.get(key)
        path: list[_Node] = []
        if node is None:
            return path
        for spelled in self._spelled(tokens, 0, blocks):
            node = node.children.get(spelled)
            if node is None:
                break
            path.append(node)
        return path

    def _spelled(self, tokens: Ints, start: int, stop: int) -> Iterator[bytes]:
        """What blocks [start, stop) of `tokens` say."""
        size = self._pool.block_size
        raw = tokens[start * size : stop * size].tobytes()
        step = size * tokens.itemsize
        return (raw[i : i + step] for i in range(0, len(raw), step))

    def match(self, key: ReuseKey, tokens: Ints, limit: int) -> list[Found]:
        """At most one span, [0, k * block_size) with k blocks, never past `limit` tokens."""
        size = self._pool.block_size
        path = self._walk(key, tokens, min(limit, len(tokens) - 1) // size)
        if not path:
            return []
        self._tick += 1
        for node in path:
            node.last_used = self._tick
            node.hits += 1
        blocks = [node.block for node in path]
        self._pool.share(blocks)
        runs = np.empty((len(path), 4), dtype=np.int32)
        runs[:, 0] = blocks
        runs[:, 1] = 0
        runs[:, 2] = size
        runs[:, 3] = np.arange(len(path)) * size
        return [Found(0, len(path) * size, Readiness.READY, runs)]

    def insert(self, key: ReuseKey, tokens: Ints, view: View) -> None:
        size = self._pool.block_size
        full = min(len(tokens), view.length) // size
        if full == 0:
            return
        path = self._walk(key, tokens, full)
        if path and path[-1].block not in view.blocks:
            return  # a twin computed the same; blocks below nodes it does not read would keep those from being evicted
        self._tick += 1
        for node in path:
            node.last_used = self._tick
        parent = path[-1] if path else self._roots.setdefault(key, _Node(None, b"", -1, 0))
        fresh: list[int] = []
        blocks = view.full_blocks(len(path), full, size)
        for block, spelled in zip(blocks, self._spelled(tokens, len(path), full), strict=False):
            if self._pool.is_cached(block):
                break
            node = _Node(parent, spelled, block, parent.depth + 1)
            node.last_used = self._tick
            parent.children[spelled] = node
            fresh.append(block)
            parent = node
        if fresh:
            self._pool.cache(fresh)
            self.nodes += len(fresh)
            self._offer(parent)

    def _offer(self, leaf: _Node) -> None:
        score = self._eviction.score(leaf.last_used, leaf.hits, leaf.depth)
        heapq.heappush(self._heap, (score, next(self._serial), leaf))

    def evict(self, count: int) -> int:
        """Lose leaves nobody reads, in the policy's order, until `count` blocks are free or none is left."""
        heap, refs, score_of = self._heap, self._pool.refs, self._eviction.score
        given: list[int] = []
        in_use: list[_Node] = []
        while len(given) < count and heap:
            score, _, node = heapq.heappop(heap)
            if node.children or node.parent is None:
                continue  # grew a child, which is offered instead; or already gone
            if score_of(node.last_used, node.hits, node.depth) > score:
                self._offer(node)
                continue
            while True:
                if refs[node.block] > 1:
                    in_use.append(node)
                    break
                parent = node.parent
                assert parent is not None
                del parent.children[node.key]
                node.parent = None
                given.append(node.block)
                if parent.children:
                    break
                if parent.parent is None:  # a root without a tree: salts come and go, so roots must too
                    self._roots = {key: root for key, root in self._roots.items() if root is not parent}
                    break
                node = parent
                # Most often the parent is next in the order as well, and need not pass through the heap.
                if len(given) == count or (heap and heap[0][0] < score_of(node.last_used, node.hits, node.depth)):
                    self._offer(node)
                    break
        for node in in_use:
            self._offer(node)
        self._pool.uncache(given)
        self.nodes -= len(given)
        return len(given)

    def clear(self) -> None:
        """Forget everything nobody reads."""
        self.evict(self.nodes)


TECHNIQUE = Technique(
    name="prefix-tree",
    seam="kv",
    summary="equal leading blocks of prompts are computed once",
    exact=True,
    default=True,
    sets={"kv.reuse": "prefix-tree"},
    make=lambda parts, options: PrefixTree(parts.books.pool),
)
