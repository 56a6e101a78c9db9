"""Random caches, views and queries, and the naive answers they should give."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from hasten.kernels import ViewIndex


@dataclasses.dataclass
class World:
    """One step's worth of attention: what the kernel is given, and the same told plainly, entry by entry."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    index: ViewIndex
    scale: float
    window: int | None
    log_weight: Tensor | None
    # views[span * groups + part]: list of (block, slot, position); masks[view]: bool [rows, entries]
    views: list[list[tuple[int, int, int]]]
    masks: list[np.ndarray]

    def arguments(self) -> dict:
        names = ("q", "k_cache", "v_cache", "index", "scale", "window", "log_weight")
        return {name: getattr(self, name) for name in names}


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def run(kernels, world: World, **changes) -> tuple[Tensor, Tensor]:
    given = world.arguments() | changes
    out = poisoned(*given["q"].shape, dtype=given["q"].dtype)
    lse = poisoned(*given["q"].shape[:2], dtype=torch.float32)
    kernels.attention(out=out, lse=lse, **given)
    return out, lse


def cut_into_runs(
    entries: list[tuple[int, int, int]], rng: np.random.Generator, split: float
) -> list[tuple[int, int, int, int]]:
    """Runs of consecutive slots and positions, some cut for no reason."""
    runs: list[list[int]] = []
    for block, slot, position in entries:
        if runs:
            b, first, count, start = runs[-1]
            if (b, first + count, start + count) == (block, slot, position) and rng.random() >= split:
                runs[-1][2] += 1
                continue
        runs.append([block, slot, 1, position])
    return [tuple(r) for r in runs]


def build_index(
    spans: list[np.ndarray],
    views: list[list[tuple[int, int, int]]],
    rng: np.random.Generator,
    split: float = 0.02,
    ancestors: np.ndarray | None = None,
    is_tree: np.ndarray | None = None,
) -> ViewIndex:
    """spans: query positions of each; views: entries of each view."""
    runs = [cut_into_runs(view, rng, split) for view in views]
    flat = [r for view in runs for r in view]
    return ViewIndex.from_numpy(
        np.cumsum([0, *(len(s) for s in spans)]),
        np.concatenate([*spans, np.zeros(0)]),
        np.array(flat, np.int32).reshape(-1, 4),
        np.cumsum([0, *(len(r) for r in runs)]),
        ancestors,
        is_tree,
    )


def make_world(
    rng: np.random.Generator,
    dtype: torch.dtype,
    kv_heads: int = 2,
    group: int = 2,
    dim: int = 32,
    block_size: int = 16,
    spans: int = 3,
    longest: int = 300,
    widest: int = 20,
    per_head: bool = False,
    window: int | None = None,
    weighted: bool = False,
    trees: bool = False,
    scattered: bool = True,
) -> World:
    """Spans of 0 to `widest` tokens over views of up to `longest` earlier entries. `scattered`: half-filled blocks anywhere,
    restarting and repeated positions; else a plain sequence."""
    groups = kv_heads if per_head else 1
    blocks = spans * groups * ((longest + widest) * (3 if scattered else 1) // block_size + 3)
    free = list(rng.permutation(blocks))

    def store(positions: np.ndarray) -> list[tuple[int, int, int]]:
        entries: list[tuple[int, int, int]] = []
        i = 0
        while i < len(positions):
            block = free.pop()
            take = int(rng.integers(1, block_size + 1)) if scattered else block_size
            first = int(rng.integers(0, block_size - take + 1))
            for j, position in enumerate(positions[i : i + take]):
                entries.append((int(block), first + j, int(position)))
            i += take
            if scattered and len(free) * block_size < 4 * (longest + widest):
                break
        return entries

    queries: list[np.ndarray] = []
    views: list[list[tuple[int, int, int]]] = []
    masks: list[np.ndarray] = []
    is_tree = np.zeros(spans, np.uint8)
    rows: list[np.ndarray] = []
    words = 1 + widest // 64
    for span in range(spans):
        n = int(rng.choice([0, 1, 1, 2, int(rng.integers(1, widest + 1))])) if scattered else int(rng.integers(1, widest + 1))
        tree = trees and n > 0 and bool(rng.integers(0, 2))
        before = int(rng.integers(0, longest + 1))
        past = np.arange(before)
        if scattered and before and rng.random() < 0.5:  # positions restart: a reused chunk, a parallel thought
            at = int(rng.integers(0, before))
            past[at:] = np.arange(before - at) + int(rng.integers(0, before))
        parents = np.array([-1 if i == 0 or not tree else int(rng.integers(-1, i)) for i in range(n)])
        bits = np.eye(n, dtype=bool)
        depth = np.zeros(n, int)
        for i, parent in enumerate(parents):
            if tree and parent >= 0:
                bits[i] |= bits[parent]
                depth[i] = depth[parent] + 1
        own = before + (depth if tree else np.arange(n))
        if not tree and n and scattered and rng.random() < 0.3:  # any subset of positions is a span
            own = np.sort(rng.choice(before + n + 5, n, replace=False))
        packed = np.zeros((n, words), np.uint64)
        for i in range(n):
            for j in range(n):
                packed[i, j // 64] |= np.uint64(int(bits[i, j]) << (j % 64))
        rows.append(packed)
        queries.append(own)
        is_tree[span] = tree
        for _ in range(groups):
            entries = store(past) if rng.random() < 0.9 else []
            entries += store_own(store, own, n)
            keys = np.array([p for _, _, p in entries], int)
            mask = keys[None] <= own[:, None]
            if tree:
                mask[:, len(entries) - n :] = bits
            if window is not None:
                mask &= keys[None] > own[:, None] - window
            views.append(entries)
            masks.append(mask)
    index = build_index(queries, views, rng, 0.05, np.concatenate(rows) if trees else None, is_tree if trees else None)
    tokens, heads = sum(map(len, queries)), kv_heads * group
    make = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(dtype)  # noqa: E731
    q = make(tokens, heads + 3, dim)[:, 1 : 1 + heads]  # a row stride of its own
    log_weight = None
    if weighted:
        raw = rng.standard_normal((blocks, block_size)).astype(np.float32)
        raw[rng.random(raw.shape) < 0.1] = -np.inf
        log_weight = torch.from_numpy(raw)
    caches = make(blocks, kv_heads, block_size, dim), make(blocks, kv_heads, block_size, dim)
    used = np.zeros((blocks, block_size), bool)
    for view in views:
        for block, slot, _ in view:
            used[block, slot] = True
    for cache in caches:  # nothing outside the views may be read
        cache.transpose(1, 2)[torch.from_numpy(~used)] = float("nan")
    return World(q, *caches, index, float(rng.uniform(0.5, 1.5)) / dim**0.5, window, log_weight, views, masks)


def store_own(store, own: np.ndarray, n: int) -> list[tuple[int, int, int]]:
    """The span's own tokens, all of them: they end the view."""
    entries = store(own)
    while len(entries) < n:
        entries += store(own[len(entries) :])
    return entries


def naive_attention(world: World) -> tuple[Tensor, Tensor]:
    """Row by row, head by head, entry by entry, in float64."""
    tokens, heads, dim = world.q.shape
    kv_heads = world.k_cache.shape[1]
    groups, group = world.index.groups, heads // kv_heads
    offsets = world.index.on_host().span_offsets
    out, lse = np.zeros((tokens, heads, dim)), np.full((tokens, heads), -np.inf)
    q, k, v = (t.double().numpy() for t in (world.q, world.k_cache, world.v_cache))
    for span in range(world.index.spans):
        for head in range(heads):
            kv = head // group
            view = span * groups + (kv if groups > 1 else 0)
            entries = world.views[view]
            if not entries:
                continue
            keys = np.stack([k[b, kv, s] for b, s, _ in entries])
            values = np.stack([v[b, kv, s] for b, s, _ in entries])
            weight = np.zeros(len(entries))
            if world.log_weight is not None:
                weight = np.array([float(world.log_weight[b, s]) for b, s, _ in entries])
            for row in range(offsets[span], offsets[span + 1]):
                seen = world.masks[view][row - offsets[span]] & (weight > -np.inf)
                if not seen.any():
                    continue
                scores = keys[seen] @ q[row, head] * world.scale + weight[seen]
                top = scores.max()
                p = np.exp(scores - top)
                out[row, head], lse[row, head] = p @ values[seen] / p.sum(), top + np.log(p.sum())
    return torch.from_numpy(out), torch.from_numpy(lse)
