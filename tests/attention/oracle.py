"""What a budgeted policy must give: a whole sequence in one pass of plain softmax attention under an explicit mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.engine.attention.base import StatelessAttention
from hasten.engine.executors.step import Model, Site, Step
from hasten.kernels import ReferenceKernels, ViewIndex


class Masked(StatelessAttention):
    """`mask` bool [T, T]: which tokens each row sees. Needs no pool: keys of the step are all there are."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = torch.from_numpy(mask)

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        rows = k.shape[0]
        cache = k.new_zeros(1, site.kv_heads, rows, site.head_dim)
        values = torch.zeros_like(cache)
        step.kernels.rope_and_store(q, k, v, site.cos_sin, step.index.positions, step.slots, cache, values)
        group = site.heads // site.kv_heads
        out = torch.empty_like(q)
        for head in range(site.heads):
            scores = q[:, head] @ cache[0, head // group].T * site.scale
            out[:, head] = torch.softmax(scores.masked_fill(~self.mask, -torch.inf), -1) @ values[0, head // group]
        return out.reshape(rows, -1)


@torch.inference_mode()
def log_probabilities(model: Model, tokens: list[int], mask: np.ndarray) -> Tensor:
    """Float32 [T, vocabulary]."""
    count = len(tokens)
    positions = np.arange(count)
    index = ViewIndex.from_numpy(np.array([0, count]), positions, np.array([[0, 0, count, 0]]), np.array([0, 1]))
    x = model.embed(torch.tensor(tokens))
    batch: Any = None
    step = Step(batch, index, torch.from_numpy(positions), ReferenceKernels(), Masked(mask), False, x, x)
    for block, site in zip(model.blocks, model.sites, strict=True):
        for op in block.ops:
            op(step, site)
    model.norm(step, model.sites[-1])
    return torch.log_softmax(model.head.apply(step.h).float(), -1)
