"""Running a loaded model by hand: one sequence, one span a call, a fresh cache. No loop, no scheduler."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten import kernels as kernel_library
from hasten.engine import models
from hasten.engine.attention.paged import PagedAttention
from hasten.engine.config import ModelConfig
from hasten.engine.executors.step import Model, Step
from hasten.engine.memory import Memory
from hasten.engine.weights.dense import DenseWeights, WeightContext
from hasten.kernels import ViewIndex

KERNELS = kernel_library.load()


def load(folder: Path, *, deterministic: bool = False, sites: Any = None, progress: Any = None, **config: Any) -> Model:
    config = {"dtype": "float32", **config}
    make = partial(make_store, context=WeightContext(KERNELS, deterministic))
    settings = ModelConfig(path=str(folder), **config)
    return models.load(settings, make, torch.device("cpu"), settings.max_length, sites, progress)


def make_store(weight: Tensor, bias: Tensor | None = None, *, context: WeightContext, name: str = "") -> DenseWeights:
    return DenseWeights(weight, bias, context)


class Runner:
    """One sequence over a model."""

    def __init__(self, model: Model, *, deterministic: bool = False, block_size: int = 16) -> None:
        self.model, self.deterministic, self.block_size = model, deterministic, block_size
        self.length = 0
        Memory(model, -(-model.max_length // block_size), block_size)

    @torch.inference_mode()
    def forward(self, tokens: list[int]) -> Tensor:
        """Logits [n, vocabulary] of the next n tokens."""
        model, size, start, stop = self.model, self.block_size, self.length, self.length + len(tokens)
        positions = np.arange(start, stop, dtype=np.int32)
        runs = [(b, 0, min(size, stop - b * size), b * size) for b in range(-(-stop // size))]
        index = ViewIndex.from_numpy(np.array([0, len(tokens)]), positions, np.array(runs), np.array([0, len(runs)]))
        x = model.embed(torch.tensor(tokens))
        slots = torch.from_numpy(positions.astype(np.int64))
        batch: Any = None
        step = Step(batch, index, slots, KERNELS, PagedAttention(), self.deterministic, x, x)
        for block, site in zip(model.blocks, model.sites, strict=True):
            for op in block.ops:
                op(step, site)
        model.norm(step, model.sites[-1])
        self.length = stop
        return model.head.apply(step.h)

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], Tensor]:
        """Greedy tokens, and the logits of the prompt's rows."""
        logits = self.forward(prompt)
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < count:
            tokens.append(int(self.forward(tokens[-1:])[-1].argmax()))
        return tokens, logits
