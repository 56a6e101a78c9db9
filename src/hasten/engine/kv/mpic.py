"""MPIC: the first tokens of every reused chunk are computed again, in the same pass as the text around it.

MPIC: Position-Independent Multimodal Context Caching System for Efficient MLLM Serving (2025). A chunk that was computed by
itself took its own first tokens for those of the text: attention sinks. Joined as they are, chunks have a false sink each,
which takes attention from what stands before. So the first k tokens of each chunk are computed again where they stand, together
with the text between the chunks and the question, in a single pass over the assembled cache. Not exact. A prompt of T tokens of
text and c chunks costs T + ck tokens of computing instead of all; attention reads everything.

Where this differs from the paper: chunks are text of any kind, not images; their keys are kept as they were rotated first and
turned when linked (`executors/shifting.py`); they lie in the KV pool, not on disk, without static and expiring libraries; a
chunk that is missing is computed before the pass, not beside it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from hasten.engine.kv.base import Linked
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    first: int = field(default=32, metadata={"search": (8, 16, 64)})
    """Tokens at the beginning of each chunk that are computed again; 0: chunks stay as they are."""


class MPIC:
    def __init__(self, first: int) -> None:
        if first < 0:
            raise ValueError(f"mpic: first must be at least 0, got {first}")
        self._first = first

    def anew(self, chunks: Seq[Linked]) -> list[tuple[int, int]]:
        return [(chunk.start, min(chunk.stop, chunk.start + self._first)) for chunk in chunks]


TECHNIQUE = Technique(
    name="mpic",
    seam="kv",
    summary="marked chunks are reused at any position; the first tokens of each are computed again",
    exact=False,
    sets={"kv.repair": "mpic"},
    options=Options,
    make=lambda parts, options: MPIC(options.first),
    paper="MPIC: Position-Independent Multimodal Context Caching System for Efficient MLLM Serving (2025)",
)
