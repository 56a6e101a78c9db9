"""A mixture of experts as it is trained: Mixtral's layer (Jiang et al., 2024), and the loss that keeps its experts in use.

Parameters are named as Hugging Face names them, two-dimensional each, so that Muon sees every expert's matrices as matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Expert(nn.Module):
    """SwiGLU: w2(silu(w1(x)) * w3(x))."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)
        self.w3 = nn.Linear(hidden, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, hidden] -> the same shape."""
        gate, up = F.linear(x, torch.cat((self.w1.weight, self.w3.weight))).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.w2.weight)


@dataclass(frozen=True)
class Routing:
    """What a router did with a batch: its probabilities fp32 [tokens, experts], with their graph in training; loads fp32
    [experts]: the share of all (token, expert) pairs that each expert got."""

    probabilities: Tensor
    loads: Tensor

    def balancing_loss(self) -> Tensor:
        """experts * sum_e loads_e * mean probability_e, a scalar: 1 where tokens spread evenly, up to `experts` where they
        do not (Switch Transformer, Fedus et al., 2022). Hugging Face's sum for Mixtral counts each of a token's experts
        in full, so it is `num_experts_per_tok` times this one."""
        return len(self.loads) * (self.loads * self.probabilities.mean(0)).sum()


class Experts(nn.Module):
    """h = sum over a token's experts e of weight_e * expert_e(h); the router's softmax is over all experts in fp32, and the
    weights of the best few are scaled to add up to 1.

    `routing`: of the latest call, None before the first.
    """

    def __init__(self, hidden: int, inner: int, count: int, per_token: int) -> None:
        super().__init__()
        if not 1 <= per_token <= count:
            raise ValueError(f"a token needs between 1 expert and the {count} that there are, got {per_token}")
        self.per_token = per_token
        self.gate = nn.Linear(hidden, count, bias=False)
        self.experts = nn.ModuleList(Expert(hidden, inner) for _ in range(count))
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        tokens = x.flatten(0, -2)
        probabilities = F.linear(tokens.float(), self.gate.weight.float()).softmax(-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.per_token, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).flatten()
        # (token, expert) pairs sorted by expert, so that each expert runs once, over rows that lie side by side.
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts))
        rows = order // self.per_token
        shares = tokens.index_select(0, rows).split(counts.tolist())
        parts = torch.cat([expert(share) for expert, share in zip(self.experts, shares, strict=True)])
        self.routing = Routing(probabilities, counts / len(order))
        weighted = (parts * weights[order, None]).to(x.dtype)
        return torch.zeros_like(tokens).index_add(0, rows, weighted).view_as(x)


def routings(net: nn.Module) -> list[Routing]:
    """What the routers of `net` did in its latest call, layer by layer; none in a dense network."""
    return [m.routing for m in net.modules() if isinstance(m, Experts) and m.routing is not None]


@torch.no_grad()
def expert_loads(net: nn.Module, tokens: Tensor) -> Tensor:
    """The share of the tokens [batch, length] int64 that each expert gets, fp32 [layers, experts]; a row adds up to 1."""
    net(tokens)
    return torch.stack([routing.loads for routing in routings(net)])
