"""APE: chunks of a prompt are encoded beside each other, and attention to them is brought back to what it would be in a row.

APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding (2025). Every context is computed once behind
a common prefix and reused without any repair (`kv/parallel.py`). Joined like that, many contexts of which each was the only one
draw attention that is too flat, and too much of it. So for every query behind them attention falls into two parts: the keys of
all contexts together, their scores divided by `temperature`, and all other keys, as ever; the log-sum-exp of the first is
multiplied by `scale`; the two results are then weighted by the softmax of both. Not exact.

Cost: of a known prompt only the text outside the contexts is computed. A decode step reads every key once, as it would without
APE: its index gets a forest in which contexts are a node of their own (`contexts.py`), kept from step to step, so what is added
is a comparison of the contexts' runs and a partial result for each row. Sequences that read the same contexts in the same order
share the node; nothing else is shared in steps with contexts. With temperature and scale 1 that is attention over all keys at
once, and takes that way.

Where this differs from the paper: the prefix is whatever a prompt has in front of its first chunk, never a filler; text between
chunks counts as text behind them; computing the contexts is part of the first request that has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch

from hasten.engine.attention.contexts import ContextPlanner
from hasten.engine.attention.flashforge import FlashForgeAttention, FlashForgeOptions, costs_of
from hasten.engine.attention.flashforge import make as make_flashforge
from hasten.engine.technique import Technique
from hasten.kernels import ViewIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    temperature: float = field(default=0.9, metadata={"search": (0.8, 0.9, 1.0)})
    """What scores of keys in contexts are divided by: below 1 makes attention among them sharper."""
    scale: float = field(default=0.8, metadata={"search": (0.8, 0.9, 1.0)})
    """What the log-sum-exp of all contexts together is multiplied by: below 1 gives them less weight, where it is positive. It
    takes back what a temperature below 1 adds."""


class ApeAttention(FlashForgeAttention):
    """`plain`: of steps without contexts, and of all where `contexts` is None."""

    def __init__(self, plain: FlashForgeAttention, contexts: ContextPlanner | None) -> None:
        super().__init__(plain.planner)
        self._contexts = contexts

    def before_step(self, index: ViewIndex) -> None:
        if self._contexts is None or index.contexts is None:
            super().before_step(index)
        else:
            index.forest = self._contexts.plan(index.on_host(), index.contexts)


def make(context: Any, options: Options) -> ApeAttention:
    temperature, scale = options.temperature, options.scale
    for name, value in (("temperature", temperature), ("scale", scale)):
        if not (value > 0 and isfinite(value)):
            raise ValueError(f"ape: {name} must be above 0, got {value}")
    context.facts["contexts_beside"] = True
    plain = make_flashforge(context, FlashForgeOptions())
    if temperature == scale == 1:
        return ApeAttention(plain, None)
    if context.config.executor.deterministic:
        raise ValueError(
            "ape and executor.deterministic cannot run together: kernels that add in a fixed order keep contexts and other "
            "keys in one sum (temperature=1:scale=1 can)"
        )
    site = context.model.sites[0]
    costs = costs_of(context.kernels, context.model.dtype, site.head_dim, context.config.kv.block_size)
    workers = torch.get_num_threads()
    return ApeAttention(plain, ContextPlanner(costs, site.heads, site.kv_heads, workers, temperature, scale))


TECHNIQUE = Technique(
    name="ape",
    seam="attention",
    summary="marked chunks are encoded beside each other; attention to them is sharpened and weighted as one part",
    exact=False,
    sets={"attention.policy": "ape", "kv.repair": "ape"},
    options=Options,
    make=make,
    paper="APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding (2025)",
)
