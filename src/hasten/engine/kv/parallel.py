"""Parallel contexts: a prompt's chunks stand beside each other, behind what they all have in front.

The text in front of the first chunk, of p tokens, is the *prefix*. Every chunk is computed behind it and nothing else, at
positions p and following, whatever stands before the chunk in the prompt; so all chunks share one range of positions, up to
that of the longest. All other text, in its order, stands behind it: text between two chunks too, which is thereby read after
all of them, as what comes behind them is. Masks go by position, so such a token sees the prefix, all chunks, and the other
text before it. A prompt of many chunks takes no more positions than its longest chunk and the other text.

A chunk's KV depends on the prefix, so its name does. Found again it stands where it stood, always: its blocks are shared as
they are, and nothing is ever turned, copied or computed again. First the prefix is computed, as far as the prefix cache does
not have it (only it is offered there), then the chunks that nobody has, a span each and in the same step where they fit, then
all other text in a pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import ClassVar

import numpy as np

from hasten.engine.kv.base import Ints
from hasten.engine.kv.blockfile import name_after
from hasten.engine.linking import Linker
from hasten.engine.request import Request
from hasten.engine.sequence import Sequence


def positions_saved(chunks: Iterable[tuple[int, int]]) -> int:
    """By how many positions tokens need less than one each where so ranged chunks stand beside each other."""
    sizes = [stop - start for start, stop in chunks]
    return sum(sizes) - max(sizes, default=0)


def positions_beside(length: int, chunks: Seq[tuple[int, int]]) -> tuple[Ints, int]:
    """Position int32 [length] of every token of a prompt with `chunks`, and the first one behind them all."""
    front = chunks[0][0]
    behind = front + max(stop - start for start, stop in chunks)
    at = np.arange(length, dtype=np.int32)
    other = at >= front
    for start, stop in chunks:
        at[start:stop] = np.arange(front, front + stop - start)
        other[start:stop] = False
    at[other] = np.arange(behind, behind + int(other.sum()))
    return at, behind


class ParallelLinker(Linker):
    copies: ClassVar[bool] = False

    def saves(self, request: Request) -> int:
        saved = positions_saved(request.chunks) if request.sampling.prompt_logprobs is None else 0
        return saved if saved and self.fits(request, request.chunks, saved) else 0

    def admit(self, seq: Sequence) -> None:
        chunks = seq.request.chunks
        saved = positions_saved(chunks)
        if not self.fits(seq.request, chunks, saved):
            self._leave(seq)
            return
        front = chunks[0][0]
        positions, behind = positions_beside(seq.length, chunks)
        seq.set_positions(0, positions)
        seq.contexts, seq.saved = (front, behind), saved
        self._note(seq, chunks, name_after(self._root(seq.reuse_key, f"{self.context} beside"), seq.tokens[:front]))

    def open(self, seq: Sequence) -> int:
        reused = super().open(seq)
        links, first = seq.links, seq.chunks[0].start
        assert links is not None
        # What is missing of the prefix comes before the chunks that are to see it.
        alone, rest = links.alone, seq.todo[len(links.alone) :]
        front = [part for part in rest if part[0] < first] if alone else []
        links.alone, links.rest = [*front, *alone], len(rest) - len(front)
        seq.todo = [*links.alone, *rest[len(front) :]]
        return reused

    def _sees(self, seq: Sequence, start: int) -> tuple[int, int]:
        first = seq.chunks[0].start
        return (0, 0) if start < first else (start, first)
