"""What the linear layers of a model see on some texts: the sums of products that GPTQ weighs errors with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.engine.executors.step import Linear, Site, Step
from hasten.engine.llm import LLM
from hasten.engine.request import SamplingParams

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Watched:
    """An op in the place of a `Linear`, which adds up h^T h before it multiplies."""

    inner: Linear
    hessian: Tensor
    name: str = field(init=False)
    kind: str = "linear"

    def __post_init__(self) -> None:
        self.name = self.inner.name

    def __call__(self, step: Step, site: Site) -> None:
        h = step.h.float()
        self.hessian.addmm_(h.T, h)
        self.inner(step, site)


def hessians(model: str, stretches: Sequence[Sequence[int]], progress: Progress) -> dict[tuple[int, str], Tensor]:
    """`watch` on an engine of its own, which has room for one stretch at a time and finds none of it in a cache."""
    llm = LLM(model, set_={"model.max_length": max(map(len, stretches)) + 1, "scheduling.max_rows": 1, "kv.reuse": None})
    try:
        return watch(llm, stretches, progress)
    finally:
        llm.engine.executor.close()


def watch(llm: LLM, texts: Sequence[Sequence[int]], progress: Progress) -> dict[tuple[int, str], Tensor]:
    """Run token lists through the model and return sum x x^T [in, in] in float32 by (block, name of the op)."""
    blocks = llm.parts.model.blocks
    watched = {}
    for number, block in enumerate(blocks):
        for op in [op for op in block.ops if isinstance(op, Linear)]:
            width = op.store.shape[1]
            watched[number, op.name] = Watched(op, torch.zeros(width, width))
            block.replace(op.name, watched[number, op.name])
    try:
        once = SamplingParams(max_tokens=1, temperature=0)
        for done, tokens in enumerate(texts):
            progress(done, len(texts))
            llm.generate([list(tokens)], once)
        progress(len(texts), len(texts))
    finally:
        for (number, name), watching in watched.items():
            blocks[number].replace(name, watching.inner)
    return {place: watching.hessian for place, watching in watched.items()}
