"""Linking chunks in their context: what stands before a chunk is in its KV, and what was measured says how much of it.

As `linking.py` does, a prompt's chunks become part of its view wherever they stand. Here a chunk that nobody has computed yet
takes no pass of its own: it is computed where it stands, behind whatever stands before it, as text is. That is the only pass.
Nothing writes to it afterwards, so what is kept is the sequence's own blocks. While its tokens are computed, be it in one step
or in many, their attention mass on every chunk before it and on their own is measured; notes of that are kept with it.

A chunk of which variants are kept, each with its notes, is shown to the policy (`ContextRepair`): which of them to link, and
which of its tokens to compute again. Where it wants none of them, the chunk is computed as if it were new and becomes another
variant. A chunk that is mended in part is not kept: its notes would be those of two contexts.

Where the policy says that mending may end before the last layer (`ContextRepair.low`), a step that computes all of the text
behind the last chunk has that text's mass on each chunk measured too, layer by layer, and rows that mend chunks ranked low
leave it. Their slots then hold the variant's KV in the layers that they did not go through: so what is linked is brought into
its blocks even where all of a block is to be written. New chunks, text and what gives logits go through all layers; a chunk
that is new reads in each layer what is there. Where a prompt is cut between the two, mended rows go through all layers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.engine.kv.base import ContextRepair, Ints
from hasten.engine.kv.chunks import Chunk
from hasten.engine.kv.retention import Facts
from hasten.engine.kv.variants import Floats, Measure, Mending, Notes
from hasten.engine.linking import Linker
from hasten.engine.links import Links, Mask, Piece, ranges_of
from hasten.engine.sequence import Sequence, Span

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ContextLinks(Links):
    """`mass`: of each chunk that is being computed, by its number, float32 [tokens, number + 1]: each token's mass on the
    chunks up to its own, NaN until it was measured."""

    mass: dict[int, Floats] = field(default_factory=dict)


class ContextLinker(Linker):
    how = "in context"
    reused_tokens = 0
    """Tokens of linked chunks so far."""
    mended_tokens = 0
    """Those of them that were computed again."""

    @property
    def _policy(self) -> ContextRepair:
        assert isinstance(self.repair, ContextRepair)
        return self.repair

    def open(self, seq: Sequence) -> int:
        """Look everything up for a waiting sequence, whose `todo` then says what is left; how many tokens are not computed."""
        self._find_head(seq)
        anew = np.ones(seq.length, dtype=bool)
        anew[: seq.view.length] = False
        found: list[Chunk | None] = []
        mass: dict[int, Floats] = {}
        for number, piece in enumerate(seq.chunks):
            chunk, mended = self._choose(seq.chunks[:number], piece)
            found.append(chunk)
            if chunk is None:
                mass[number] = np.full((piece.stop - piece.start, number + 1), np.nan, dtype=np.float32)
            else:
                self.books.pool.share(chunk.blocks)
                anew[piece.start : piece.stop] = mended
        seq.todo = list(ranges_of(anew))
        seq.links = ContextLinks(found, [], len(seq.todo), mass=mass)
        return seq.length - int(anew.sum())

    def _choose(self, front: Seq[Piece], piece: Piece) -> tuple[Chunk | None, Mask]:
        """The variant that takes its place, None where it is computed whole, and which of its tokens are computed."""
        kept = self.store.variants(piece.name)
        mended = np.zeros(piece.stop - piece.start, dtype=bool)
        try:
            choice = self._policy.choose(names(front), piece.name, [_notes(chunk) for chunk in kept]) if kept else None
            if choice is not None:
                mended[choice[1]] = True
                return kept[choice[0]], mended
        except Exception:
            _log.exception("the repair failed; a chunk is computed again")
        return None, ~mended

    def fork(self, links: Links) -> Links:
        base = super().fork(links)
        # Shared: whoever computes a token of both writes the same there, and who has all of a chunk first keeps it for both.
        mass = links.mass if isinstance(links, ContextLinks) else {}
        return ContextLinks(base.found, base.alone, base.rest, base.assembled, mass)

    def _link(self, seq: Sequence, piece: Piece, chunk: Chunk, anew: Mask, fresh: Iterable[int]) -> None:
        size = piece.stop - piece.start
        mended = int(anew[piece.start : piece.stop].sum())
        facts = chunk.facts
        # Never nothing: one token is the least that the score tells apart.
        facts.repaired = (facts.repaired * facts.hits + max(mended, 1) / size) / (facts.hits + 1)
        self.reused_tokens += size
        self.mended_tokens += mended
        super()._link(seq, piece, chunk, anew, fresh)

    def measure(self, seq: Sequence, ranges: Seq[tuple[int, int]]) -> Measure | None:
        links = seq.links
        if not isinstance(links, ContextLinks) or not links.mass:
            return None
        tokens = _tokens(ranges)
        wanted = np.zeros(len(tokens), dtype=bool)
        for number in links.mass:
            wanted |= (tokens >= seq.chunks[number].start) & (tokens < seq.chunks[number].stop)
        if not wanted.any():
            return None
        rows = np.flatnonzero(wanted).astype(np.int32)
        last = int(tokens[rows[-1]])
        return Measure(rows, tokens[rows], tuple((piece.start, piece.stop) for piece in seq.chunks if piece.start <= last))

    @property
    def keeps_under(self) -> bool:
        return self._policy.stop_after is not None

    def mending(self, seq: Sequence, ranges: Seq[tuple[int, int]]) -> Mending | None:
        links, window, end = seq.links, self._policy.stop_after, seq.chunks[-1].stop
        # All of the question or nothing: who sees half of it does not know what is asked. As tokens are computed in order, a
        # step with its last token and any that mends has all between them.
        if window is None or links is None or ranges[-1][1] != seq.length:
            return None
        tokens = _tokens(ranges)
        rows = {}
        for number, (piece, chunk) in enumerate(zip(seq.chunks, links.found, strict=True)):
            mine = np.flatnonzero((tokens >= piece.start) & (tokens < piece.stop)).astype(np.int32)
            if chunk is not None and len(mine):
                rows[number] = mine
        if not rows:
            return None
        question = np.flatnonzero(tokens >= end).astype(np.int32)
        measure = Measure(question, tokens[question], tuple((piece.start, piece.stop) for piece in seq.chunks))
        return Mending(measure, rows, self._policy.low, window)

    def measured(self, spans: Seq[Span], mass: Mapping[int, Any]) -> None:
        for index, of_rows in mass.items():
            span = spans[index]
            links = span.sequence.links
            if not isinstance(links, ContextLinks) or span.measure is None:
                continue
            tokens, values = span.measure.tokens, of_rows.cpu().numpy()
            for number, held in links.mass.items():
                piece = span.sequence.chunks[number]
                mine = (tokens >= piece.start) & (tokens < piece.stop)
                if mine.any():
                    held[tokens[mine] - piece.start] = values[mine, : number + 1]

    def settle(self, seq: Sequence) -> None:
        """Keep the chunks that were computed since this was called last."""
        links = seq.links
        if isinstance(links, ContextLinks) and links.assembled:
            done = seq.todo[0][0] if seq.todo else seq.view.length
            for number in [number for number in links.mass if seq.chunks[number].stop <= done]:
                self._keep(seq, number, links.mass.pop(number))
        super().settle(seq)

    def _keep(self, seq: Sequence, number: int, mass: Floats) -> None:
        if np.isnan(mass).any():
            _log.error("a chunk was computed and not measured: it is not kept")
            return
        piece, front = seq.chunks[number], seq.chunks[:number]
        sizes = [one.stop - one.start for one in (*front, piece)]
        try:
            notes = self._policy.note(names(front), sizes, mass)
        except Exception:
            _log.exception("the repair made no notes of a chunk: it is not kept")
            return
        blocks = seq.view.part(piece.start, piece.stop)[:, 0].tolist()
        facts = Facts(0, len(blocks), self.price(sizes[-1]))
        self.computed += 1
        self.store.add(piece.name, int(seq.positions[piece.start]), blocks, facts, notes)

    def counts(self) -> dict[str, float]:
        return {
            **super().counts(),
            "chunk_tokens_reused": self.reused_tokens,
            "chunk_tokens_mended": self.mended_tokens,
        }


def _tokens(ranges: Seq[tuple[int, int]]) -> Ints:
    return np.concatenate([np.arange(start, stop, dtype=np.int32) for start, stop in ranges])


def names(chunks: Seq[Piece]) -> tuple[bytes, ...]:
    return tuple(piece.name for piece in chunks)


def _notes(chunk: Chunk) -> Notes:
    assert chunk.notes is not None, "a chunk was kept without notes"
    return chunk.notes
