"""FlashForge: shared-prefix attention in decode, over a tree of all that sequences share. Exact.

FlashForge: Ultra-Efficient Prefix-Aware Attention for LLM Decoding (2025; also published as CoDec). Sequences that begin
alike read the same keys and values, and a kernel that goes sequence by sequence fetches them from memory once for each. Here
the step's views form a forest (`forest.py`): every shared run of blocks is a node that is read once, for the stacked query
rows of all sequences that cross it; each row's partial results, one for each node of its path, are then merged by their
log-sum-exp. Nodes are cut into tasks by a measured table of what a task takes, and begun longest first.

Cost: a step without sharing pays for a look at the first block of each view and takes the plain paged kernel. With sharing it
pays for comparing the shared runs (the plan itself is kept until the tree changes) and saves reading a node of n members n - 1
times. A node stays only where the table says that it pays.

It serves common prompts, forks (n > 1) and drafted trees, whose rows cross the shared nodes together; windows and log-weights
too. Deterministic engines take the plain paged kernel: here a row's order of summation depends on who shares with it.

Where this differs from the paper: the table is measured by the engine itself, not offline; several cuts are tried on it
instead of solving for the best; the least-loaded worker is whoever is free, not whoever the table says; partial results are
merged row by row, rows in parallel, since a path is a handful of nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.engine.attention.forest import Costs, ReadingCosts
from hasten.engine.attention.forest_planner import ForestPlanner
from hasten.engine.attention.paged import PagedAttention
from hasten.engine.executors.step import Site, Step
from hasten.engine.technique import Technique
from hasten.kernels import Kernels, ViewIndex
from hasten.kernels.cpu import CpuKernels
from hasten.kernels.cpu.costs import AttentionCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashForgeOptions:
    split: bool = True
    """Cut long nodes into tasks. False shows what that is worth."""
    gpu: bool = False
    """Plan for a GPU too. Its kernels were only ever run in Triton's interpreter, so they wait to be asked for."""


class FlashForgeAttention(PagedAttention):
    """`planner` None: plain paged attention."""

    def __init__(self, planner: ForestPlanner | None) -> None:
        self.planner = planner

    def before_step(self, index: ViewIndex) -> None:
        if self.planner is not None:
            index.forest = self.planner.plan(index.on_host())

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        forest, on_gpu = step.index.forest, _on_gpu() if q.is_cuda else None
        if forest is None or forest.contexts is not None or on_gpu is None:
            return super().attend(site, q, k, v, step)
        step.kernels.rope_and_store(q, k, v, site.cos_sin, step.index.positions, step.slots, site.k, site.v)
        out = step.empty(*q.shape)
        on_gpu(forest, q, site.k, site.v, step.index, site.scale, out, window=site.window)
        return out.view(q.shape[0], -1)


@functools.cache
def _on_gpu() -> Callable[..., None] | None:
    """The Triton kernel, None where Triton is not installed."""
    try:
        from hasten.kernels.triton.forest import attention
    except ImportError:
        return None
    return attention


def make(context: Any, options: FlashForgeOptions) -> FlashForgeAttention:
    if context.config.executor.deterministic or (context.model.device.type != "cpu" and not options.gpu):
        return FlashForgeAttention(None)
    site = context.model.sites[0]
    costs = costs_of(context.kernels, context.model.dtype, site.head_dim, context.config.kv.block_size)
    workers = torch.get_num_threads()
    return FlashForgeAttention(ForestPlanner(costs, site.heads, site.kv_heads, workers, split=options.split))


def costs_of(kernels: Kernels, dtype: torch.dtype, dim: int, block_size: int) -> Costs:
    """Measured where the kernels are ours, else by the keys that are read."""
    return AttentionCosts(kernels, dtype, dim, block_size) if isinstance(kernels, CpuKernels) else ReadingCosts()


TECHNIQUE = Technique(
    name="flashforge",
    seam="attention",
    summary="keys that sequences share are read once for all of them",
    exact=True,
    default=True,
    sets={"attention.policy": "flashforge"},
    make=make,
    options=FlashForgeOptions,
    paper="FlashForge: Ultra-Efficient Prefix-Aware Attention for LLM Decoding (2025)",
)
