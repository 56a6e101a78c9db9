"""Models with a mixture of experts in their feed-forward half: Mixtral (Jiang et al., 2024) and Qwen3-MoE.

A router gives each token to a few experts; tokens are grouped by expert and only experts that got any run. The
router's softmax is in float32. A token's experts are added in float32 in the router's order, so a row's bits depend on
the batch only as far as the matmuls' do, and not at all in deterministic runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.engine.executors.step import Delta, Op, Site, Step
from hasten.engine.models.config import ExpertShape
from hasten.engine.models.llama import Loader
from hasten.engine.weights.base import WeightStore
from hasten.kernels import Activation


@dataclass(slots=True)
class Experts:
    """h = sum over the chosen experts e of weight_e * down_e(activation(gate_e h) * up_e h).

    `router` [experts, width] is small and stays a plain tensor, whatever stores the experts use; `gate_up` [2 * inner,
    width] and `down` [width, inner], one of each an expert."""

    name: str
    router: Tensor
    gate_up: list[WeightStore]
    down: list[WeightStore]
    per_token: int
    normalise: bool
    activation: Activation = "silu"
    kind: str = "experts"

    def __call__(self, step: Step, site: Site) -> None:
        x = step.h
        weights, chosen = self.route(step, x)
        picked = chosen.flatten()
        order = torch.argsort(picked, stable=True)  # (token, choice) pairs, expert by expert
        rows = order // self.per_token
        parts = torch.empty(len(order), x.shape[1], dtype=x.dtype, device=x.device)
        at = 0
        # Reading the counts waits for the device: the grouping decides which weights are used at all.
        for expert, count in enumerate(torch.bincount(picked, minlength=len(self.down)).tolist()):
            if count:
                of = rows[at : at + count]
                parts[order[at : at + count]] = self.run(step, expert, x.index_select(0, of))
                at += count
        step.h = combine(parts.view(x.shape[0], self.per_token, -1), weights)

    def route(self, step: Step, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights float32 [T, per_token] and expert ids int64 [T, per_token], best first."""
        if step.deterministic:
            scores = x.new_empty(x.shape[0], self.router.shape[0])
            step.kernels.linear(x, self.router, None, scores)
        else:
            scores = F.linear(x, self.router)
        weights, chosen = torch.topk(torch.softmax(scores.float(), -1), self.per_token, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen

    def run(self, step: Step, expert: int, x: Tensor) -> Tensor:
        """One expert over its rows [n, width]."""
        gate_up = self.gate_up[expert].apply(x)
        inner = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        step.kernels.act_mul(gate_up, inner, self.activation)
        return self.down[expert].apply(inner)


def combine(parts: Tensor, weights: Tensor) -> Tensor:
    """sum_j weights[:, j] * parts[:, j]: parts [T, k, width], weights float32 [T, k] -> [T, width] in the dtype of
    parts.

    Products and sums are separate passes: fused ones may round differently at the edge of a vector, which depends on
    T."""
    out = parts[:, 0].float() * weights[:, :1]
    for j in range(1, parts.shape[1]):
        out += parts[:, j].float() * weights[:, j : j + 1]
    return out.to(parts.dtype)


class ExpertLoader(Loader):
    """The families differ only in what their tensors are called."""

    def feed_forward(self, prefix: str, layer: int) -> list[Op]:
        experts = self.shape.experts
        if experts is None or layer not in experts.layers:
            return super().feed_forward(prefix, layer)
        norm = self.norm("mlp_norm", f"{prefix}.post_attention_layernorm.weight")
        return [norm, self._experts(prefix, experts), Delta("mlp_delta")]

    def _experts(self, prefix: str, experts: ExpertShape) -> Experts:
        mixtral = self.shape.family == "mixtral"
        name = f"{prefix}.{'block_sparse_moe' if mixtral else 'mlp'}"
        gate, down, up = ("w1", "w2", "w3") if mixtral else ("gate_proj", "down_proj", "up_proj")
        width, share = self.shape.width, experts.per_token / experts.count
        router = self.source.take(f"{name}.gate.weight", experts.count, width).clone()
        self.count(router.nbytes)
        gate_ups, downs = [], []
        for expert in range(experts.count):
            own = f"{name}.experts.{expert}"
            pair = [f"{own}.{gate}", f"{own}.{up}"]
            gate_ups.append(self.store(pair, [experts.width] * 2, width, share=share))
            downs.append(self.store([f"{own}.{down}"], [width], experts.width, share=share))
        return Experts("experts", router, gate_ups, downs, experts.per_token, experts.normalise, self.shape.activation)
