"""Plain chunks: marked chunks are joined as they were computed by themselves, or all of them computed again, or any tokens.

Three controls. `recompute=none` is the naive reuse that repair policies must beat: no token of a chunk has seen what stands
before it. `recompute=all` takes the same way, chunks linked and turned, and then computes every token of them again, so it
gives what an engine without chunks gives: whatever a policy does between the two rests on parts that were tested by it. It
saves nothing. `recompute=random` computes as many tokens of each chunk as it is told, any of them: what a policy that chooses
must beat with the same number. The same chunk at the same place has the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hasten.engine.kv.base import Linked
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    recompute: Literal["none", "all", "random"] = "none"
    """What of the chunks is computed again where they stand."""
    tokens: int = 32
    """`recompute=random`: tokens of each chunk."""


class PlainChunks:
    def __init__(self, recompute: str, tokens: int = 32) -> None:
        if tokens < 0:
            raise ValueError(f"plain-chunks: tokens must be at least 0, got {tokens}")
        self._recompute, self._tokens = recompute, tokens

    def anew(self, chunks: Seq[Linked]) -> list[tuple[int, int]]:
        if self._recompute == "all":
            return [(chunk.start, chunk.stop) for chunk in chunks]
        if self._recompute == "random":
            return [(token, token + 1) for chunk in chunks for token in self._any(chunk)]
        return []

    def _any(self, chunk: Linked) -> list[int]:
        rng = np.random.default_rng((chunk.start, chunk.stop))
        count = min(self._tokens, chunk.stop - chunk.start)
        return sorted((chunk.start + rng.choice(chunk.stop - chunk.start, count, replace=False)).tolist())


TECHNIQUE = Technique(
    name="plain-chunks",
    seam="kv",
    summary="marked chunks are joined as they are, or all or any tokens of them computed again: controls, not for use",
    exact=False,
    sets={"kv.repair": "plain-chunks"},
    options=Options,
    make=lambda parts, options: PlainChunks(options.recompute, options.tokens),
)
