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
    "rules": 3.0,
    "arithmetic:operands=4": 13.0,
    "json": 20.0,
    "calls": 18.0,
    "sql": 5.0,
    "python": 4.0,
}
"""Lessons of each task in a hundred or so."""
TEXTS = {
    "package": 10.0,
    "documentation": 5.0,
    "python": 3.0,
    "chat: python": 2.0,
    "chat: sums": 1.0,
    "chat: documentation": 0.7,
    "small talk": 0.4,
    "essay": 0.3,
    "encyclopaedia": 0.15,
}
"""Stretches of each kind of text, roughly by how much of it there is: what is read a hundred times is learnt by heart, and
other text of its kind is then worse than unknown."""


@dataclass(frozen=True)
class Stage:
    """A part of the training: until `until` of all tokens, windows of `length` tokens. A share `echoes` of them are repeated
    random tokens, a share `skips` has gaps in its positions (`batch.Ask`)."""

    until: float
    length: int
    echoes: float = 0.0
    skips: float = 0.5


SHORT_BUDGET = (
    Stage(0.015, 256, echoes=0.5, skips=0.0),
    Stage(0.8, 512, echoes=0.05),
    Stage(0.94, 2048),
    Stage(0.976, 4096),
    Stage(1.0, 8192),
)
LONG_BUDGET = (
    Stage(0.005, 256, echoes=0.5, skips=0.0),
    Stage(0.45, 512, echoes=0.02),
    Stage(0.75, 2048),
    Stage(0.88, 4096),
    Stage(1.0, 8192),
)
"""Windows over the tokens of a run: on a CPU, where attention over long ones is dear, and on a GPU."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Rates are peaks; tokens counts all positions, learnt or only read, and step_tokens
    those of a step."""

    model: str
    tokens: int
    step_tokens: int
    stages: tuple[Stage, ...]
    matrix_rate: float = 0.02
    vector_rate: float = 1.5e-3
    last_rate: float = 0.03
    warm_up_steps: int = 40
    weight_decay: float = 0.02
    text_share: float = 0.12
    seed: int = 0
    tasks: dict[str, float] = field(default_factory=lambda: dict(TASKS))
    texts: dict[str, float] = field(default_factory=lambda: dict(TEXTS))

    def stage(self, tokens: int) -> Stage:
        """The stage after so many tokens."""
        return next((s for s in self.stages if tokens < s.until * self.tokens), self.stages[-1])

    def rows(self, stage: Stage) -> int:
        """How many windows a step of that stage has."""
        return max(1, self.step_tokens // stage.length)

    def rate(self, tokens: int, since_start: int) -> float:
        """The learning rates' factor after so many tokens, `since_start` of them with this optimiser: a linear warm-up, then
        half a cosine from 1 to `last_rate`."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, tokens / self.tokens)))
        return (self.last_rate + (1 - self.last_rate) * cosine) * min(
            1.0, (since_start + 1) / (self.warm_up_steps * self.step_tokens)
        )

    def mixture(self) -> Mixture:
        """The tasks and texts with their shares."""
        tasks = [(find(name), share) for name, share in self.tasks.items()]
        return Mixture(tasks, list(self.texts.items()), self.text_share)


def recipe_for(model: str, device: str) -> Recipe:
    """How a model of the testbed is trained on a device ("cpu" or "cuda"). Raises ValueError for an unknown model."""
    millions = {"base": (34, 320), "draft": (12, 150), "moe": (12, 100), "large": (34, 2000)}
    if model not in millions:
        raise ValueError(f"no testbed model is called {model!r}; there are {', '.join(millions)}")
    on_cpu, on_gpu = millions[model]
    if device == "cpu":
        return Recipe(model, on_cpu * 1_000_000, 8192, SHORT_BUDGET)
    return Recipe(model, on_gpu * 1_000_000, 32_768, LONG_BUDGET)
