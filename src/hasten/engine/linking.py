"""Linking: chunks of a prompt, whose KV was computed by itself, become part of a sequence's view wherever they stand.

A prompt with chunks is computed in two passes. First the chunks that nobody has computed yet, each by itself: its tokens see
nothing but the chunk, at the positions where they stand, in blocks that the sequence will go on using; then the store keeps
them too. So no second sequence, no second request and no waiting for either is needed, and a chunk is found by all who come
later. The others' blocks are shared where they stand at the same position as now and nothing of them is computed again, else
copied with their keys turned (`executors/shifting.py`). The second pass runs everything else, a chosen subset of the prompt's
positions, in their order against the assembled view: what stands between the chunks, what the repair policy wants anew, the
last token. It overwrites slots, copying blocks that the store or others hold.

A view has its runs in the order of the tokens, so the entries of a gap are reserved when the view is assembled, and filled
later. No token sees an entry that is not filled: chunks see only themselves, and in the second pass whatever a token sees
stands before it, was computed before it or is computed beside it. Every chunk begins a new block and so does what follows it,
so that a chunk's blocks hold nothing else; that costs up to a block for each of them.

Only the tokens in front of the first chunk are looked up in the prefix cache, and offered to it: what stands behind has seen
chunks that were computed by themselves.

Chunks that are computed behind others instead, and mended by what was measured then, are `context_linking.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.base import ContextRepair, Repair, Shift
from hasten.engine.kv.blockfile import name_after, root
from hasten.engine.kv.books import Books
from hasten.engine.kv.boundaries import Boundaries
from hasten.engine.kv.chunks import Chunk, ChunkStore
from hasten.engine.kv.retention import Facts
from hasten.engine.kv.variants import Measure, Mending
from hasten.engine.links import Links, Mask, Piece, fresh_blocks, pieces_of, ranges_of
from hasten.engine.request import Request
from hasten.engine.sequence import Sequence, Span

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Linker:
    """`price(tokens)`: predicted seconds of computing a chunk; `context`: what KV depends on beside the `ReuseKey`;
    `max_length`: most tokens of a sequence; `boundaries`: cuts prompts that nobody marked."""

    books: Books
    store: ChunkStore
    repair: Repair | ContextRepair
    price: Callable[[int], float]
    max_length: int
    context: str = ""
    boundaries: Boundaries | None = None
    linked: int = 0
    """Chunks found and linked so far."""
    computed: int = 0
    """Chunks computed by themselves so far."""
    left: int = 0
    """Prompts whose chunks were left alone so far, for want of memory."""
    _root: Callable[..., bytes] = field(default_factory=lambda: lru_cache(maxsize=1024)(root))
    how: ClassVar[str] = "alone"
    """How chunks are computed: a part of their names."""
    copies: ClassVar[bool] = True
    """Chunks may be copied when they are linked or repaired."""

    @property
    def keeps_under(self) -> bool:
        """What is computed again may end before the last layer, whose slots must then hold what was found."""
        return False

    # -- coming and going -----------------------------------------------------------------------------------------------

    def admit(self, seq: Sequence) -> None:
        """Take note of the chunks of a new sequence's prompt. Where memory is so short that they might stand in its way, it is
        computed as if it had none."""
        chunks = seq.request.chunks
        if self.boundaries is not None and not chunks:
            chunks = self.boundaries.chunks(self._root(seq.reuse_key, "pieces"), seq, self.books)
        if chunks and self.fits(seq.request, chunks):
            self._note(seq, chunks, self._root(seq.reuse_key, f"{self.context} {self.how}"))
        elif chunks:
            self._leave(seq)

    def _leave(self, seq: Sequence) -> None:
        """It is computed as if it had no chunks."""
        self.left += 1
        if self.left == 1:
            pool = self.books.pool
            _log.warning(
                "a prompt of %d tokens has chunks that are not reused: with all of its answer (max_tokens: %s) it could need "
                "more than the %d tokens of KV memory; max_tokens, or more kv.memory_bytes, would help (said once)",
                seq.length, seq.request.sampling.max_tokens, pool.blocks * pool.block_size,
            )  # fmt: skip

    def saves(self, request: Request) -> int:
        """How many positions fewer than tokens its prompt takes here."""
        return 0

    def fits(self, request: Request, chunks: Seq[tuple[int, int]], saved: int = 0) -> bool:
        """Whether memory is enough for a prompt with these chunks, whose tokens need so many positions less than one each."""
        length, size = len(request.prompt), self.books.pool.block_size
        room = min(request.sampling.max_tokens or self.max_length, self.max_length + saved - length)
        most = sum(-(-(stop - start) // size) for start, stop in pieces_of(chunks, length + room))
        if self.copies:
            # What was found is held beside its turned copy, what is kept beside the one that is written anew.
            most += sum(-(-(stop - start) // size) for start, stop in chunks)
        return most <= self.books.pool.blocks

    @staticmethod
    def _note(seq: Sequence, chunks: Seq[tuple[int, int]], above: bytes) -> None:
        """Name its chunks, after what their KV depends on beside their tokens."""
        seq.chunks = tuple(Piece(start, stop, name_after(above, seq.tokens[start:stop])) for start, stop in chunks)
        for number, (start, stop) in enumerate(chunks):
            seq.segments[start:stop] = number + 1

    def open(self, seq: Sequence) -> int:
        """Look everything up for a waiting sequence, whose `todo` then says what is left; how many tokens are not computed."""
        self._find_head(seq)
        chunks = [self.store.get(piece.name) for piece in seq.chunks]
        anew = self._anew(seq)
        for chunk in chunks:
            if chunk is not None:
                self.books.pool.share(chunk.blocks)
        alone = [(piece.start, piece.stop) for piece, chunk in zip(seq.chunks, chunks, strict=True) if chunk is None]
        rest = ranges_of(anew)
        seq.todo = [*alone, *rest]
        seq.links = Links(chunks, alone, len(rest))
        for start, stop in alone:
            anew[start:stop] = True
        return seq.length - int(anew.sum())

    def _find_head(self, seq: Sequence) -> None:
        """Begin its view with what the prefix cache has of the text in front of the first chunk."""
        if self.books.reuse is not None:
            for found in self.books.reuse.match(seq.reuse_key, seq.tokens, seq.chunks[0].start):
                self.books.link(seq.view, found.runs)

    def _anew(self, seq: Sequence) -> Mask:
        """Bool [length]: the tokens of the second pass."""
        assert not isinstance(self.repair, ContextRepair)
        anew = np.ones(seq.length, dtype=bool)
        anew[: seq.view.length] = False
        for piece in seq.chunks:
            anew[piece.start : piece.stop] = False
        try:
            for start, stop in self.repair.anew(seq.chunks):
                anew[max(start, seq.view.length) : stop] = True
        except Exception:
            _log.exception("the repair failed; everything is computed again")
            anew[seq.view.length :] = True
        anew[seq.length - 1] = True
        return anew

    def fork(self, links: Links) -> Links:
        """Those of a sequence that shares the view so far."""
        if not links.assembled:
            for chunk in links.found:
                self.books.pool.share(chunk.blocks if chunk is not None else ())
        return Links(list(links.found), list(links.alone), links.rest, links.assembled)

    def forget(self, seq: Sequence) -> None:
        """Its view is given up."""
        links, seq.links = seq.links, None
        if links is not None and not links.assembled:
            self._let_go(links)

    def _let_go(self, links: Links) -> None:
        for chunk in links.found:
            self.books.pool.drop(chunk.blocks if chunk is not None else ())

    # -- the view -------------------------------------------------------------------------------------------------------

    def alone(self, seq: Sequence, count: int) -> list[tuple[int, int, int, int]]:
        """(start, stop, first token that it sees, how many of the text's first it sees before that) of what is to be computed
        now, at most `count` tokens, of chunks that are computed by themselves and what they see; none when that is done and the
        rest of `todo` may run. The view is there afterwards. Raises NoBlocks."""
        links = seq.links
        assert links is not None
        if not links.assembled:
            self._assemble(seq, links)
        self.settle(seq)
        if not links.alone:
            return []
        left = sum(stop - start for start, stop in seq.todo[: len(links.alone)])
        ranges = seq.next_ranges(min(count, left))
        return [(*part, *self._sees(seq, whole[0])) for part, whole in zip(ranges, links.alone, strict=False)]

    def _sees(self, seq: Sequence, start: int) -> tuple[int, int]:
        """What the chunk at `start` sees, as `alone` says it."""
        return start, 0

    def _assemble(self, seq: Sequence, links: Links) -> None:
        anew = np.zeros(seq.length, dtype=bool)
        for start, stop in seq.todo[len(links.alone) :]:
            anew[start:stop] = True
        last = seq.view.last_run()
        fresh = iter(self.books.take(fresh_blocks(self.books, seq, links.found, anew), last[0] if last is not None else -1))
        at = seq.view.length
        for piece, chunk in zip(seq.chunks, links.found, strict=True):
            self._reserve(seq, at, piece.start, fresh)
            if chunk is None:
                self._reserve(seq, piece.start, piece.stop, fresh)
            else:
                self._link(seq, piece, chunk, anew, fresh)
            at = piece.stop
        self._reserve(seq, at, seq.length, fresh)
        self._let_go(links)
        links.assembled = True

    def _reserve(self, seq: Sequence, start: int, stop: int, fresh: Iterable[int]) -> None:
        """Entries for tokens [start, stop) in new blocks."""
        size = self.books.pool.block_size
        if start < stop:
            blocks = [block for _, block in zip(range(start, stop, size), fresh, strict=False)]
            seq.view.add_blocks(blocks, size, stop - start, int(seq.positions[start]))

    def _link(self, seq: Sequence, piece: Piece, chunk: Chunk, anew: Mask, fresh: Iterable[int]) -> None:
        self.store.used(chunk)
        self.linked += 1
        size, pool = self.books.pool.block_size, self.books.pool
        for block, start in zip(chunk.blocks, range(piece.start, piece.stop, size), strict=True):
            stop = min(start + size, piece.stop)
            here = int(seq.positions[start])
            was = chunk.position + start - piece.start
            written = anew[start:stop]
            if here == was and not written.any():
                if block not in seq.view.blocks:  # else the same chunk stands there twice
                    pool.share([block])
                seq.view.add_run(block, 0, stop - start, here)
                continue
            own = next(iter(fresh))
            seq.view.add_run(own, 0, stop - start, here)
            if not written.all() or self.keeps_under:
                self.books.bring(Shift(block, own, was, here))

    def settle(self, seq: Sequence) -> None:
        """Keep the chunks that were computed by themselves since this was called last."""
        links = seq.links
        if links is None or not links.assembled:
            return
        while links.alone and len(seq.todo) < links.rest + len(links.alone):
            start, stop = links.alone.pop(0)
            piece = next((piece for piece in seq.chunks if piece.start == start), None)
            if piece is None:  # text that comes before them
                continue
            blocks = seq.view.part(start, stop)[:, 0].tolist()
            self.computed += 1
            facts = Facts(0, len(blocks), self.price(stop - start))
            self.store.add(piece.name, int(seq.positions[start]), blocks, facts)
        if not links.alone and (not seq.todo or seq.todo[0][0] >= seq.view.length):
            seq.links = None

    # -- what chunks attend to -------------------------------------------------------------------------------------------

    def measure(self, seq: Sequence, ranges: Seq[tuple[int, int]]) -> Measure | None:
        """What is to be measured while these tokens of a sequence with links are computed."""
        return None

    def mending(self, seq: Sequence, ranges: Seq[tuple[int, int]]) -> Mending | None:
        """Which of these tokens need not go through all layers, and what says so."""
        return None

    def measured(self, spans: Seq[Span], mass: Mapping[int, Any]) -> None:
        """What was: by the number of the span (`StepResult.mass`). Before the step is committed."""

    # -- for others -----------------------------------------------------------------------------------------------------

    def plain(self, seq: Sequence) -> int:
        """Leading tokens whose KV is there and is what they give by themselves."""
        return min(seq.chunks[0].start, seq.view.length, *(start for start, _ in seq.todo))

    def counts(self) -> dict[str, float]:
        """What was done so far, and the blocks held now, for metrics."""
        return {
            "chunks_linked": self.linked,
            "chunks_computed": self.computed,
            "chunks_evicted": self.store.gone,
            "chunk_prompts_left": self.left,
            "chunk_blocks": self.store.blocks,
        }

    def audit(self, sequences: Iterable[Sequence], held: npt.NDArray[np.int64]) -> None:
        """Add to `held` int64 [blocks] what is held here; AssertionError when the store's books are wrong (tests,
        debugging)."""
        self.store.audit()
        for shift in self.books.shifts:
            held[shift.source] += 1
        for seq in sequences:
            if seq.links is not None and not seq.links.assembled:
                for chunk in seq.links.found:
                    held[chunk.blocks if chunk is not None else []] += 1
