"""What is trained, on what and for how long: the testbed's family of models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hasten.lab.testbed.tasks.registry import find
from hasten.lab.training.batch import Mixture
from hasten.lab.training.net import MixtralConfig, NetConfig

MODELS: dict[str, NetConfig] = {
    "base": NetConfig(),
    "draft": NetConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4),
    "moe": MixtralConfig(),
    "large": NetConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=10, head_dim=64),
}

TASKS = {
    "recall": 15.0,
    "needle": 4.0,
    "dialogue": 3.0,
    "tracing:hops=3,chains=6": 12.0,
    "copying": 4.0,
    "rules": 1.0,
    "arithmetic:operands=4": 13.0,
    "json": 20.0,
    "calls": 18.0,
    "sql": 4.0,
    "python": 3.0,
}
"""Lessons of each task in a hundred or so."""
TEXTS = {
    "python": 9.0,
    "essay": 5.0,
    "encyclopaedia": 4.0,
    "chat: python": 3.0,
    "chat: sums": 2.0,
    "chat: documentation": 1.0,
    "small talk": 0.7,
}
"""Stretches of each kind of text."""


@dataclass(frozen=True)
class Stage:
    """A part of the training: until `until` of all tokens, steps of `rows` windows of `length` tokens. A share `echoes` of them
    are repeated random tokens, a share `skips` has gaps in its positions (`Windows.batch`)."""

    until: float
    length: int
    rows: int
    echoes: float = 0.0
    skips: float = 0.5


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Rates are peaks; tokens counts all positions, learnt or only read."""

    model: str
    tokens: int
    stages: tuple[Stage, ...] = (
        Stage(0.015, 256, 16, echoes=0.5, skips=0.0),
        Stage(0.2, 512, 8, echoes=0.05),
        Stage(0.8, 512, 16, echoes=0.05),
        Stage(0.94, 2048, 4),
        Stage(0.976, 4096, 2),
        Stage(1.0, 8192, 1),
    )
    matrix_rate: float = 0.02
    vector_rate: float = 1.5e-3
    last_rate: float = 0.03
    warm_up_tokens: int = 300_000
    weight_decay: float = 0.02
    text_share: float = 0.12
    seed: int = 0
    tasks: dict[str, float] = field(default_factory=lambda: dict(TASKS))
    texts: dict[str, float] = field(default_factory=lambda: dict(TEXTS))

    def stage(self, tokens: int) -> Stage:
        """The stage after so many tokens."""
        return next((s for s in self.stages if tokens < s.until * self.tokens), self.stages[-1])

    def rate(self, tokens: int, since_start: int) -> float:
        """The learning rates' factor after so many tokens, `since_start` of them with this optimiser: a linear warm-up, then
        half a cosine from 1 to `last_rate`."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, tokens / self.tokens)))
        return (self.last_rate + (1 - self.last_rate) * cosine) * min(1.0, (since_start + 1) / self.warm_up_tokens)

    def mixture(self) -> Mixture:
        """The tasks and texts with their shares."""
        tasks = [(find(name), share) for name, share in self.tasks.items()]
        return Mixture(tasks, list(self.texts.items()), self.text_share)


RECIPES: dict[str, Recipe] = {
    "base": Recipe("base", 34_000_000),
    "draft": Recipe("draft", 12_000_000),
    "moe": Recipe("moe", 12_000_000),
    "large": Recipe("large", 2_000_000_000),
}
