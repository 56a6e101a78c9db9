"""Optimisers: Muon for the layers' matrices, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hasten.lab.training.recipe import Recipe

CLIP_NORM = 1.0
NOT_MATRICES = ("embed_tokens.weight", ".gate.weight")
"""Two-dimensional, but lists of vectors: the embedding and the routers."""


class Optimisers:
    """Muon (Jordan et al., 2024) learns more per step from the layers' matrices than AdamW, which matters where steps are
    dear; embedding, norms and routers get AdamW.

    The mean of the tied embedding is held where it began. It adds the same to all logits, so no loss holds it, and AdamW, for
    which the faint but steady gradient of rare tokens is as good as any, lets it grow until the rare tokens look alike: a
    network whose tokens look alike cannot look one up."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        named = list(net.named_parameters())
        matrices = [p for n, p in named if p.dim() == 2 and not n.endswith(NOT_MATRICES)]
        others = [p for n, p in named if p.dim() != 2 or n.endswith(NOT_MATRICES)]
        self._parameters = [p for _, p in named]
        (self._embedding,) = (p for n, p in named if "embed" in n)
        self._peaks = (recipe.matrix_rate, recipe.vector_rate)
        self._steppers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, momentum=0.95),
            torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        )

    def step(self, factor: float) -> float:
        """Apply the gradients, clipped, with `factor` times the peak rates; returns their norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        mean = self._embedding.detach().mean(0)
        for stepper, peak in zip(self._steppers, self._peaks, strict=True):
            stepper.param_groups[0]["lr"] = peak * factor
            stepper.step()
            stepper.zero_grad()
        with torch.no_grad():
            self._embedding.add_(mean - self._embedding.mean(0))
        return float(norm)

    def state(self) -> list[dict[str, Any]]:
        """What `load` reads."""
        return [stepper.state_dict() for stepper in self._steppers]

    def load(self, states: Iterable[dict[str, Any]]) -> None:
        """Go on from a state."""
        for stepper, state in zip(self._steppers, states, strict=True):
            stepper.load_state_dict(state)
