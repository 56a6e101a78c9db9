"""Random steps whose views share runs, as `worlds` has them for views that do not."""

from __future__ import annotations

import numpy as np
import torch
from tests.kernels.worlds import World, cut_into_runs

from hasten.kernels import ViewIndex

Run = tuple[int, int, int, int]


class Free:
    """Costs by which sharing always pays and cutting too."""

    merge = 1e-9

    def seconds(self, rows, keys):
        return 1e-3 * np.asarray(keys, dtype=float) * (1 + np.asarray(rows) / 1000) + 1e-6


def make_forest_world(
    rng: np.random.Generator,
    dtype: torch.dtype,
    kv_heads: int = 2,
    group: int = 2,
    dim: int = 32,
    block_size: int = 16,
    spans: int = 6,
    levels: int = 3,
    longest: int = 300,
    widest: int = 3,
    window: int | None = None,
    weighted: bool = False,
    trees: bool = False,
) -> World:
    """`spans` spans of 1 to `widest` tokens at the leaves of a random tree of up to `levels` shared stretches of up to
    `longest` entries, some of them empty, some with positions that restart."""
    used: list[np.ndarray] = []
    free = iter(range(10**6))

    def stretch(start: int, count: int, positions: np.ndarray | None = None) -> list[Run]:
        """Runs of `count` entries in fresh blocks, half-filled ones among them."""
        positions = np.arange(start, start + count) if positions is None else positions
        entries, i = [], 0
        while i < count:
            take = int(rng.integers(1, block_size + 1)) if rng.random() < 0.3 else block_size
            first = int(rng.integers(0, block_size - take + 1))
            block = next(free)
            entries += [(block, first + j, int(p)) for j, p in enumerate(positions[i : i + take])]
            i += take
        used.append(np.array([(b, s) for b, s, _ in entries], dtype=int).reshape(-1, 2))
        return cut_into_runs(entries, rng, 0.05)

    prefixes: list[list[Run]] = [[]]
    for _ in range(levels):  # every level hangs new stretches under some of the prefixes so far
        for prefix in [prefixes[i] for i in rng.integers(0, len(prefixes), 2)]:
            begin = sum(count for _, _, count, _ in prefix)
            if rng.random() < 0.2:
                begin = int(rng.integers(0, begin + 1))
            prefixes.append(prefix + stretch(begin, int(rng.integers(0, longest + 1))))

    queries, views, runs, masks, ancestors, is_tree = [], [], [], [], [], []
    for _ in range(spans):
        prefix = prefixes[int(rng.integers(0, len(prefixes)))]
        length = sum(count for _, _, count, _ in prefix)
        private = int(rng.choice([0, 1, int(rng.integers(0, longest + 1))]))
        n = int(rng.integers(1, widest + 1))
        tree = trees and bool(rng.integers(0, 2))
        parents = [-1 if i == 0 or not tree else int(rng.integers(-1, i)) for i in range(n)]
        bits, depth = np.eye(n, dtype=bool), np.zeros(n, int)
        for i, parent in enumerate(parents):
            if tree and parent >= 0:
                bits[i] |= bits[parent]
                depth[i] = depth[parent] + 1
        own = length + private + (depth if tree else np.arange(n))
        if rng.random() < 0.2:  # asks from before the end of what it shares
            own = own - int(rng.integers(0, length + 1))
        mine = prefix + stretch(length, private) + stretch(0, n, own)
        view = [(b, s + j, p + j) for b, s, count, p in mine for j in range(count)]
        keys = np.array([p for _, _, p in view])
        mask = keys[None] <= own[:, None]
        if tree:
            mask[:, len(view) - n :] = bits
        if window is not None:
            mask &= keys[None] > own[:, None] - window
        queries.append(own)
        views.append(view)
        runs.append(mine)
        masks.append(mask)
        is_tree.append(tree)
        words = np.zeros((n, 1), np.uint64)
        for i in range(n):
            words[i, 0] = sum(1 << j for j in np.flatnonzero(bits[i]).tolist())
        ancestors.append(words)
    index = ViewIndex.from_numpy(
        np.cumsum([0, *map(len, queries)]),
        np.concatenate(queries),
        np.array([run for view in runs for run in view], np.int32).reshape(-1, 4),
        np.cumsum([0, *map(len, runs)]),
        np.concatenate(ancestors) if trees else None,
        np.array(is_tree, np.uint8) if trees else None,
    )
    blocks = max(1, next(free))

    def make(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(dtype)

    heads = kv_heads * group
    q = make(len(index.positions), heads + 3, dim)[:, 1 : 1 + heads]
    log_weight = None
    if weighted:
        raw = rng.standard_normal((blocks, block_size)).astype(np.float32)
        raw[rng.random(raw.shape) < 0.1] = -np.inf
        log_weight = torch.from_numpy(raw)
    k, v = (make(blocks, kv_heads, block_size, dim) for _ in range(2))
    held = np.zeros((blocks, block_size), bool)
    for block, slot in np.concatenate(used).tolist():
        held[block, slot] = True
    for cache in (k, v):  # nothing outside the views may be read
        cache.transpose(1, 2)[torch.from_numpy(~held)] = float("nan")
    return World(q, k, v, index, float(rng.uniform(0.5, 1.5)) / dim**0.5, window, log_weight, views, masks)
