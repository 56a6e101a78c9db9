"""Plain chunks: marked chunks are joined as they were computed by themselves, or all of them computed again.

Two controls. `recompute=none` is the naive reuse that repair policies must beat: no token of a chunk has seen what stands
before it. `recompute=all` takes the same way, chunks linked and turned, and then computes every token of them again, so it
gives what an engine without chunks gives: whatever a policy does between the two rests on parts that were tested by it. It
saves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

from hasten.engine.kv.base import Linked
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    recompute: Literal["none", "all"] = "none"
    """What of the chunks is computed again where they stand."""


class PlainChunks:
    def __init__(self, recompute: str) -> None:
        self._all = recompute == "all"

    def anew(self, chunks: Seq[Linked]) -> list[tuple[int, int]]:
        return [(chunk.start, chunk.stop) for chunk in chunks] if self._all else []


TECHNIQUE = Technique(
    name="plain-chunks",
    seam="kv",
    summary="marked chunks are joined as they are, or all computed again: controls, not for use",
    exact=False,
    sets={"kv.repair": "plain-chunks"},
    options=Options,
    make=lambda parts, options: PlainChunks(options.recompute),
)
