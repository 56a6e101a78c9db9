"""What is known of a prompt's chunks while it is computed, and how many blocks that will take.

Numbers only; what becomes of them is the linker's business (`linking.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.base import Linked
from hasten.engine.kv.books import Books
from hasten.engine.kv.chunks import Chunk
from hasten.engine.sequence import Sequence

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Piece(Linked):
    """A chunk of a prompt under the name by which it is kept."""

    name: bytes


@dataclass(slots=True)
class Links:
    """Of a sequence whose prompt has chunks. `found`: for each of them what is kept of it, None where it is computed by itself;
    the blocks of what was found are held until the view is `assembled`. `alone`: chunks [start, stop) that are still to be
    computed so, ascending, behind text that they see; all that is the head of `todo`. `rest`: ranges of `todo` behind it."""

    found: list[Chunk | None]
    alone: list[tuple[int, int]]
    rest: int
    assembled: bool = False

    def whole(self, books: Books) -> bool:
        """Its view is there to be copied: nothing of it waits to be linked or shifted."""
        return self.assembled and not books.shifts

    def beyond(self, seq: Sequence, tokens: int) -> int:
        """How many of the next `tokens` (more than are left: drafts) have no entry in the view yet."""
        held = sum(max(0, min(stop, seq.view.length) - start) for start, stop in seq.next_ranges(tokens))
        return tokens - held


def ranges_of(mask: Mask) -> list[tuple[int, int]]:
    """The ranges [start, stop) in which it is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def pieces_of(chunks: Iterable[tuple[int, int]], length: int, start: int = 0) -> list[tuple[int, int]]:
    """Chunks and what is between them, in order, from token `start` on."""
    pieces = []
    for first, stop in chunks:
        pieces += [(start, first), (first, stop)]
        start = stop
    pieces.append((start, length))
    return [(first, stop) for first, stop in pieces if first < stop]


# -- for planning -------------------------------------------------------------------------------------------------------


def fresh_blocks(books: Books, seq: Sequence, chunks: Seq[Chunk | None], anew: Mask) -> int:
    """Blocks that the view of a sequence takes beyond what is linked at its head and shared with the store."""
    size = books.pool.block_size
    ranges = [(piece.start, piece.stop) for piece in seq.chunks]
    count = sum(-(-(stop - start) // size) for start, stop in pieces_of(ranges, seq.length, seq.view.length))
    for piece, chunk in zip(seq.chunks, chunks, strict=True):
        if chunk is not None and chunk.position == int(seq.positions[piece.start]):
            count -= sum(not anew[i : min(i + size, piece.stop)].any() for i in range(piece.start, piece.stop, size))
    return count


def blocks_needed(books: Books, seq: Sequence, tokens: int) -> int:
    """New blocks that computing the next `tokens` takes (more than are left: drafts), those for the whole view while that
    is not assembled, and copies of blocks that are written while others hold them."""
    links = seq.links
    assert links is not None
    size = books.pool.block_size
    ranges = seq.next_ranges(tokens)
    second = ranges[len(links.alone) :]
    if not links.assembled:
        anew = np.zeros(seq.length, dtype=bool)
        for start, stop in seq.todo[len(links.alone) :]:
            anew[start:stop] = True
        written = sum(
            anew[i : min(i + size, stop)].any() for start, stop in links.alone for i in range(start, stop, size) if second
        )
        drafts = max(0, tokens - seq.remaining)
        return fresh_blocks(books, seq, links.found, anew) + int(written) - (-drafts // size)
    count = books.blocks_needed(seq.view, links.beyond(seq, tokens))
    kept = {int(b) for start, stop in links.alone for b in seq.view.part(start, stop)[:, 0]}
    again = kept & _blocks(books, seq, second)
    return count + sum(block in again or books.pool.refs[block] > 1 for block in _blocks(books, seq, ranges))


def _blocks(books: Books, seq: Sequence, ranges: Iterable[tuple[int, int]]) -> set[int]:
    """Those of its view in which these tokens lie, as far as they have entries."""
    size, blocks = books.pool.block_size, set[int]()
    for start, stop in ranges:
        slots = seq.view.slots(np.arange(start, max(start, min(stop, seq.view.length))), size)
        blocks.update((slots // size).tolist())
    return blocks
