"""Attention by a forest on a GPU: what `hasten.kernels.forest.attend` specifies, as two Triton kernels.

A program of the first computes one task for one KV head and some of the task's rows, and leaves for each row its maximum, mass
and sum of values. One of the second merges what the tasks on a row's path have left. Everything they look up is flattened once
a step and read by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from hasten.kernels.base import ViewIndex
from hasten.kernels.forest import REST, TILE, Forest, entries_of, own_tokens, runs_of

ROWS = 16
"""Query rows of a program, and the least that a tensor core takes."""
KEYS = 64
"""Entries it looks at at once."""


@triton.jit
def _task(
    q, k_cache, v_cache, log_weight, sums, tops, masses, tasks, rows, slots, entry_positions, positions, ancestors,
    q_stride, scale, window, words,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WEIGHTED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    task = tasks + tl.program_id(0) * 7
    first, end, tree = tl.load(task), tl.load(task + 1), tl.load(task + 2)  # entries; where the tree's own tokens begin
    row_from, row_end, leaves_at = tl.load(task + 3), tl.load(task + 4), tl.load(task + 5)
    node_end = tl.load(task + 6)
    head = tl.program_id(1)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    number = tl.program_id(2) * ROWS + tl.arange(0, ROWS)  # row of the node times query head of the group
    inside = number < (row_end - row_from) * GROUP
    token = tl.load(rows + row_from + number // GROUP, inside, 0)
    query_head = head * GROUP + number % GROUP
    at = tl.load(positions + token, inside, 0)
    d = tl.arange(0, WIDTH)
    query = tl.load(q + token[:, None] * q_stride + query_head[:, None] * DIM + d, inside[:, None] & (d < DIM), 0.0)
    if WIDEN:
        query = query.to(tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for begin in range(first, end, KEYS):
        entry = begin + tl.arange(0, KEYS)
        there = entry < end
        slot = tl.load(slots + entry, there, 0)
        position = tl.load(entry_positions + entry, there, 0)
        where = ((slot // SIZE * KV_HEADS + head) * SIZE + slot % SIZE)[:, None] * DIM + d
        wanted = there[:, None] & (d < DIM)
        keys = tl.load(k_cache + where, wanted, 0.0)
        if WIDEN:
            keys = keys.to(tl.float32)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee").to(tl.float32) * scale
        if WEIGHTED:
            scores += tl.load(log_weight + slot, there, 0.0)
        own = entry - tree
        seen = position[None] <= at[:, None]
        if tree < node_end:
            is_own = there & (own >= 0)
            word = tl.load(ancestors + token[:, None] * words + own[None] // 64, inside[:, None] & is_own[None], 0)
            seen = tl.where(is_own[None], (word >> (own[None] % 64) & 1) != 0, seen)
        seen = seen & (position[None] > at[:, None] - window) & there[None]
        scores = tl.where(seen, scores, float("-inf"))
        joined = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(joined == float("-inf"), 0.0, joined)
        p = tl.exp(scores - base[:, None])
        keep = tl.exp(top - base)
        values = tl.load(v_cache + where, wanted, 0.0)
        if WIDEN:
            values = values.to(tl.float32)
        mass = mass * keep + tl.sum(p, 1)
        total = total * keep[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee").to(tl.float32)
        top = joined
    out = (leaves_at + number // GROUP).to(tl.int64) * HEADS + query_head
    tl.store(tops + out, top, inside)
    tl.store(masses + out, mass, inside)
    tl.store(sums + out[:, None] * DIM + d, total, inside[:, None] & (d < DIM))


@triton.jit
def _merge(
    sums, tops, masses, offsets, parts, out, lse, out_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, WITH_LSE: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, WIDTH)
    top = float("-inf")
    mass = 0.0
    total = tl.zeros([WIDTH], tl.float32)
    for i in range(tl.load(offsets + token), tl.load(offsets + token + 1)):
        at = tl.load(parts + i).to(tl.int64) * HEADS + head
        here = tl.load(tops + at)
        joined = tl.maximum(top, here)
        base = tl.where(joined == float("-inf"), 0.0, joined)
        keep, share = tl.exp(top - base), tl.exp(here - base)
        mass = mass * keep + tl.load(masses + at) * share
        total = total * keep + tl.load(sums + at * DIM + d, d < DIM, 0.0) * share
        top = joined
    result = total / tl.where(mass > 0, mass, 1.0)
    tl.store(out + token.to(tl.int64) * out_stride + head * DIM + d, result.to(out.dtype.element_ty), d < DIM)
    if WITH_LSE:
        tl.store(lse + token * HEADS + head, tl.where(mass > 0, top + tl.log(mass), float("-inf")))


@dataclass(frozen=True, slots=True)
class _Flat:
    """A forest as the kernels read it. `tasks` int32 [K, 7]: first and end entry, where the tree's own tokens begin (its end:
    there are none), first and end row, where its results begin, the node's end. `parts`: results by token, as `offsets` say."""

    tasks: Tensor
    rows: Tensor
    slots: Tensor
    entry_positions: Tensor
    offsets: Tensor
    parts: Tensor
    results: int
    widest: int


def attention(
    forest: Forest,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    index: ViewIndex,
    scale: float,
    out: Tensor,
    lse: Tensor | None = None,
    window: int | None = None,
    log_weight: Tensor | None = None,
) -> None:
    """`Kernels.attention` by a forest, on tensors of one GPU. Shapes and dtypes as there."""
    tokens, heads, dim = q.shape
    kv_heads, size = k_cache.shape[1:3]
    if q.stride()[1:] != (dim, 1) or out.stride()[1:] != (dim, 1) or not k_cache.is_contiguous() or not v_cache.is_contiguous():
        raise ValueError("attention by a forest needs heads side by side and contiguous caches")
    flat = index.cache.get("triton forest")
    if flat is None:
        flat = index.cache["triton forest"] = _flatten(forest, index, size, q.device)
    sums = torch.empty(flat.results, heads, dim, dtype=torch.float32, device=q.device)
    tops, masses = (torch.empty(flat.results, heads, dtype=torch.float32, device=q.device) for _ in range(2))
    width = triton.next_power_of_2(max(dim, 16))
    blocks = triton.cdiv(flat.widest * (heads // kv_heads), ROWS)
    words = 0 if index.ancestors is None else index.ancestors.shape[1]
    _task[(len(flat.tasks), kv_heads, blocks)](
        q, k_cache, v_cache, log_weight if log_weight is not None else q, sums, tops, masses,
        flat.tasks, flat.rows, flat.slots, flat.entry_positions, index.positions,
        index.ancestors if words else flat.slots,
        q.stride(0), scale, window if window is not None else 1 << 30, words,
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, WIDTH=width, SIZE=size, ROWS=ROWS, KEYS=KEYS, WEIGHTED=log_weight is not None,
        WIDEN=not q.is_cuda,  # the interpreter multiplies no bfloat16
    )  # fmt: skip
    _merge[(tokens, heads)](
        sums, tops, masses, flat.offsets, flat.parts, out, lse if lse is not None else sums, out.stride(0),
        HEADS=heads, DIM=dim, WIDTH=width, WITH_LSE=lse is not None,
    )  # fmt: skip


def _flatten(forest: Forest, index: ViewIndex, size: int, device: torch.device) -> _Flat:
    host = index.on_host()
    entries = [entries_of(runs_of(host, node)) for node in forest.nodes]
    begins = np.cumsum([0, *(len(blocks) for blocks, _, _ in entries)])
    own = [own_tokens(index, int(node[0])) if node[4] == REST else 0 for node in forest.nodes]
    tasks: list[list[int]] = []
    of: list[list[int]] = [[] for _ in forest.nodes]  # where the results of each node's tasks begin
    results = 0
    for number, first, end in forest.tasks.tolist():
        begin, stop, (row_from, row_end) = begins[number], begins[number + 1], forest.nodes[number, 5:].tolist()
        last = stop if end == REST else min(begin + end * TILE, stop)
        tasks.append([min(begin + first * TILE, last), last, stop - own[number], row_from, row_end, results, stop])
        of[number].append(results)
        results += row_end - row_from
    parts = [[begin + row for begin in of[node]] for node, row in forest.paths.tolist()]
    counts = np.cumsum([0, *map(len, parts)])

    def put(array: object, dtype: type) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype)).to(device)

    return _Flat(
        put(tasks, np.int32),
        put(forest.rows, np.int32),
        put(np.concatenate([blocks * size + slots for blocks, slots, _ in entries]), np.int64),
        put(np.concatenate([positions for _, _, positions in entries]), np.int32),
        put(counts[forest.path_offsets], np.int32),
        put([part for some in parts for part in some], np.int32),
        results,
        int((forest.nodes[:, 6] - forest.nodes[:, 5]).max()),
    )
