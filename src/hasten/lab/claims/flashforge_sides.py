"""What the claim `flashforge` times: calls of the kernels, and whole decode steps, the two sides in turns over one KV pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.flashforge_steps import SIZE, Shared

if TYPE_CHECKING:
    from hasten.engine.attention.forest_planner import ForestPlanner
    from hasten.kernels.cpu import CpuKernels

DIM = 128
"""Of a head of Qwen3-0.6B."""
CALLS = 3
"""Of a side in a round."""


class Bench:
    """One layer's KV in float32 and the calls over it."""

    def __init__(self, kernels: CpuKernels, heads: int, kv_heads: int, blocks: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.kernels, self.heads, self.kv_heads = kernels, heads, kv_heads
        self._k, self._v = (torch.randn(blocks, kv_heads, SIZE, DIM, generator=generator) for _ in range(2))
        self._q = torch.randn(64, heads, DIM, generator=generator)

    def planner(self, *, split: bool = True) -> ForestPlanner:
        import torch

        from hasten.engine.attention.flashforge import costs_of
        from hasten.engine.attention.forest_planner import ForestPlanner

        costs = costs_of(self.kernels, torch.float32, DIM, SIZE)
        return ForestPlanner(costs, self.heads, self.kv_heads, torch.get_num_threads(), split=split)

    def call(self, step: Shared, planner: ForestPlanner | None) -> tuple[float, int, Any]:
        """Seconds, bytes of KV that were read, output; the index and its forest are there before, as in all layers but one."""
        import torch

        index = step.index()
        if planner is not None:
            index.forest = planner.plan(index.on_host())
            if index.forest is None:
                raise RuntimeError("a step that shares was given no forest")
        self.kernels.prepare(index)
        q = self._q[: len(step.lengths)]
        out = torch.empty_like(q)
        before, began = self.kernels.kv_bytes(), time.perf_counter()
        self.kernels.attention(q, self._k, self._v, index, DIM**-0.5, out)
        return time.perf_counter() - began, self.kernels.kv_bytes() - before, out

    def compare(self, step: Shared, sides: dict[str, ForestPlanner | None]) -> dict[str, tuple[float, int, Any]]:
        """The median call of each side, taken in turns; its bytes and output."""
        calls: dict[str, list[tuple[float, int, Any]]] = {name: [] for name in sides}
        for turn in range(CALLS):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                calls[name].append(self.call(step, sides[name]))
        return {name: (median(s for s, _, _ in of), of[-1][1], of[-1][2]) for name, of in calls.items()}


class Steps:
    """Whole decode steps over random weights: two executors, one model and one KV pool."""

    def __init__(self, model: str | None, settings: tuple[str, ...]) -> None:
        from hasten.engine.attention.flashforge import FlashForgeOptions, make
        from hasten.engine.attention.paged import PagedAttention
        from hasten.engine.build import build
        from hasten.engine.config import EngineConfig
        from hasten.engine.executors.local import LocalExecutor

        self._parts = parts = build(EngineConfig.build(model, set_=[f"kv.block_size={SIZE}", *settings])).parts
        for site in parts.model.sites:
            site.k.fill_(0.01)
            site.v.fill_(0.01)
        policies = {"paged": PagedAttention(), "flashforge": make(parts, FlashForgeOptions())}
        self._executors = {
            name: LocalExecutor(parts.memory, parts.kernels, policy, parts.depth) for name, policy in policies.items()
        }
        self.blocks = parts.books.pool.blocks
        self._turn = -1

    def seconds(self, step: Shared, turns: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
        """The median step of each side, taken in turns."""
        if step.blocks > self.blocks:
            raise RuntimeError(f"a step needs {step.blocks} blocks of {SIZE} tokens, the pool has {self.blocks}")
        batch = step.batch(self._parts.model.vocabulary)
        for executor in self._executors.values():
            executor.attention.before_step(step.index())  # plans; the steps after find the plan made
        took: dict[str, list[float]] = {name: [] for name in self._executors}
        for _ in range(turns + (self._turn < 0)):
            for name in list(took)[:: 1 if self._turn % 2 == 0 else -1]:
                began = clock()
                self._executors[name].submit(batch).wait()
                if self._turn >= 0:  # the first records the step and measures the costs
                    took[name].append(clock() - began)
            self._turn += 1
        return {name: median(of) for name, of in took.items()}

    def close(self) -> None:
        assert self._parts.executor is not None
        self._parts.executor.close()
