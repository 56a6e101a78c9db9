"""A forest: which parts of the views of a step are the same, so that attention reads them once for all who share them.

A *node* is a stretch of runs and the rows that read it: a shared one ends where some of them part, a leaf is what a span has
to itself and grows with its view. Every row has a *path* of nodes that make up its view, the leaf last. A node is computed as
*tasks*, each some of its tiles of TILE entries. Each gives for its rows a partial result; a row's partial results merge
exactly, as those over any disjoint sets of keys do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from hasten.kernels.base import HostIndex, ViewIndex

TILE = 256
"""Entries of a tile, in which tasks are cut."""
REST = -1
"""As an end: whatever there is, however much the view grows."""
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """How one `ViewIndex` (of one view a span) falls into nodes. Without contexts it says nothing of results but the order in
    which they are summed. It fits every index of the same spans whose views have only grown at their ends.

    nodes         int32 [N, 7]    span whose view holds the node; first run and end run in it (REST: to its end); first entry;
                                  entries (REST: to its end, a leaf); first and end row of `rows`
    rows          int32 [R]       flat tokens, node after node; several nodes may be the leaf of parts of one span's tokens
    tasks         int32 [K, 3]    node, first tile, end tile (REST: to the node's end), in the order in which to begin them
    path_offsets  int32 [T + 1]   rows of `paths` by flat token
    paths         int32 [P, 2]    node and the token's place among the node's rows, from the root on

    Entries before a node in its span's view are those of the nodes before it on the path. A leaf of a tree span holds all
    tokens of the tree. Shared nodes are not empty.

    contexts      uint8 [N]       or None: which nodes are contexts. Their scores (before log-weights) are divided by
                                  `temperature`, and what those on a row's path give together counts with `scale` times its
                                  log-sum-exp. Where not both are 1 a forest does change results then.
    """

    nodes: Ints
    rows: Ints
    tasks: Ints
    path_offsets: Ints
    paths: Ints
    contexts: npt.NDArray[np.uint8] | None = None
    temperature: float = 1.0
    scale: float = 1.0

    @property
    def shared(self) -> int:
        """Nodes that more than one span may read."""
        return int((self.nodes[:, 4] >= 0).sum())


def runs_of(host: HostIndex, node: Ints) -> Ints:
    """The runs [n, 4] of one row of `Forest.nodes`."""
    span, first, end = node[:3].tolist()
    begin, stop = host.run_offsets[span], host.run_offsets[span + 1]
    return host.runs[begin + first : stop if end == REST else begin + end]


def attend(
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
    """`Kernels.attention` by a forest, in plain torch and task by task: the specification of every faster one."""
    kv_heads, dim = k_cache.shape[1], q.shape[2]
    group = q.shape[1] // kv_heads
    host, device = index.on_host(), q.device
    # Of all rows: what is known of the ordinary keys, and of those in contexts.
    parts = 1 if forest.contexts is None else 2
    mosts = torch.full((parts, q.shape[0], kv_heads, group), -torch.inf, device=device)
    masses, totals = torch.zeros_like(mosts), torch.zeros(*mosts.shape, dim, device=device)
    for number, first_tile, end_tile in forest.tasks.tolist():
        node = forest.nodes[number]
        context = forest.contexts is not None and bool(forest.contexts[number])
        most, mass, total = mosts[int(context)], masses[int(context)], totals[int(context)]
        tokens = torch.from_numpy(forest.rows[node[5] : node[6]].astype(np.int64)).to(device)
        block, slot, position = entries_of(runs_of(host, node))
        own = own_tokens(index, int(node[0])) if node[4] == REST else 0
        low, high = first_tile * TILE, len(block) if end_tile == REST else end_tile * TILE
        seen = _visible(index, int(node[0]), own, tokens, torch.from_numpy(position).to(device), window)[:, low:high]
        at = (torch.from_numpy(block[low:high]).to(device), slice(None), torch.from_numpy(slot[low:high]).to(device))
        queries = q[tokens].unflatten(1, (kv_heads, group)).float()
        scores = torch.einsum("nhgd,lhd->nhgl", queries, k_cache[at].float()) * (
            scale / forest.temperature if context else scale
        )
        if log_weight is not None:
            scores = scores + log_weight[at[0], at[2]]
        scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
        if scores.shape[-1] == 0:
            continue
        # The task's (m, l, O) of each row joins what the row has so far.
        m = scores.amax(-1)
        joined = torch.maximum(most[tokens], m)
        base = joined.nan_to_num(neginf=0.0)
        p = torch.exp(scores - base[..., None])
        keep = torch.exp(most[tokens] - base)
        mass[tokens] = mass[tokens] * keep + p.sum(-1)
        total[tokens] = total[tokens] * keep[..., None] + torch.einsum("nhgl,lhd->nhgd", p, v_cache[at].float())
        most[tokens] = joined
    norms = mosts + torch.log(masses)
    if forest.contexts is not None:
        norms[1] = torch.where(masses[1] > 0, forest.scale * norms[1], norms[1])
    norm = torch.logsumexp(norms, 0)
    shares = torch.exp(norms - norm.nan_to_num(neginf=0.0)) / torch.where(masses > 0, masses, 1.0)
    out.copy_((totals * shares[..., None]).sum(0).flatten(1, 2))
    if lse is not None:
        lse.copy_(norm.flatten(1, 2))


def entries_of(runs: Ints) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Block, slot and position of every entry of runs [n, 4]."""
    block, first, count, position = (column.astype(np.int64) for column in runs.T)
    within = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    return np.repeat(block, count), np.repeat(first, count) + within, np.repeat(position, count) + within


def own_tokens(index: ViewIndex, span: int) -> int:
    """The tokens of a tree span; 0 where the span is none."""
    host = index.on_host()
    if host.is_tree is None or not host.is_tree[span]:
        return 0
    return int(host.span_offsets[span + 1] - host.span_offsets[span])


def _visible(index: ViewIndex, span: int, own: int, tokens: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Bool [rows, entries] for entries at positions `keys`, of which the last `own` are the tree's tokens."""
    at = index.positions[tokens][:, None].long()
    seen = keys[None] <= at
    if own:
        assert index.ancestors is not None
        number = torch.arange(own, device=keys.device)
        bits = index.ancestors[tokens].index_select(1, number // 64) >> (number % 64)
        seen[:, len(keys) - own :] = (bits & 1).bool()
    return seen if window is None else seen & (keys[None] > at - window)
