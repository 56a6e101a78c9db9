"""The cost model: predicted seconds of a step from what it computes and reads.

A step costs a fixed overhead, plus the slower of two limits per part: reading weights and KV at the memory's bandwidth, and
multiplying at the processor's rate (the roofline of Williams et al., 2009). The generic default takes round figures for a
two-core server processor; measured ones replace them when the machine is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.engine.scheduling.base import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """`weight_bytes`: read once a step; `flops_per_token`: multiply-adds of the weights, twice; `kv_bytes_per_token`: of one
    cached token over all sites; `attention_flops`: per pair of query token and cached token. Rates in bytes/s and FLOP/s."""

    weight_bytes: float
    flops_per_token: float
    kv_bytes_per_token: float
    attention_flops: float
    overhead_s: float = 1e-3
    bandwidth: float = 40e9
    rate: float = 400e9

    def step(self, tokens: int, cached: int, pairs: int) -> float:
        """Seconds of a step of `tokens` tokens over sequences that hold `cached` tokens, `pairs` (query, key) pairs in all."""
        if tokens == 0:
            return 0.0
        linear = max(self.weight_bytes / self.bandwidth, tokens * self.flops_per_token / self.rate)
        attention = max(cached * self.kv_bytes_per_token / self.bandwidth, pairs * self.attention_flops / self.rate)
        return self.overhead_s + linear + attention

    def plan(self, plan: StepPlan) -> float:
        tokens = cached = pairs = 0
        for work in plan.work:
            new = work.count + work.drafts
            before = work.sequence.view.length
            tokens += new
            cached += before + new
            pairs += new * before + new * (new + 1) // 2
        return self.step(tokens, cached, pairs)
