"""Pieces that come again in prompts that nobody marked: cut at places that the content decides, known by name.

A prompt is cut behind every token at which a rolling hash over the last few tokens is a multiple of a number; so cuts move
with the text when something is put in front of it, and two prompts that hold the same text are cut alike within it, but for its
first and last piece (content-defined chunking: Muthitacharoen et al., A Low-Bandwidth Network File System, 2001). A piece has a
least and a greatest length: a cut that comes too soon does not count, and one is made where none comes for too long.

A piece that was met before behind other text is taken for one worth keeping. Behind the same text the prefix cache finds it,
and exactly. So the first prompt that holds a text is computed as ever, the second keeps its pieces, the third finds them. What
is remembered of a piece is its name and what stood before it, both as a hash, of the pieces met most recently.

Cost: O(tokens) a prompt, in a few numpy operations for each token of the hash's window.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.blockfile import name_after

if TYPE_CHECKING:
    from hasten.engine.kv.books import Books
    from hasten.engine.sequence import Sequence

WINDOW = 16
"""Tokens that decide whether there is a cut behind them."""


class Boundaries:
    """`mean` tokens of a piece, about; at least a quarter (and WINDOW) and at most four times as many."""

    def __init__(self, mean: int, remembered: int = 1 << 16) -> None:
        if mean < 2 * WINDOW:
            raise ValueError(f"pieces of prompts must have {2 * WINDOW} tokens or more on average, got {mean}")
        self.least, self.most = max(WINDOW, mean // 4), 4 * mean
        self._divisor = mean - self.least
        self._remembered = remembered
        self._met: OrderedDict[bytes, bytes] = OrderedDict()
        """By a piece's name what stood before it, empty once it was met behind something else."""

    def cut(self, tokens: npt.NDArray[np.int32]) -> list[int]:
        """Where pieces begin and end, from 0 on; what lies behind the last cut is no piece."""
        marks = np.flatnonzero(_hashes(tokens) % np.uint64(self._divisor) == 0) + WINDOW
        cuts = [0]
        while (at := cuts[-1]) + self.least <= len(tokens):
            place = int(np.searchsorted(marks, at + self.least))
            cut = min(int(marks[place]) if place < len(marks) else len(tokens) + 1, at + self.most)
            if cut > len(tokens):
                break
            cuts.append(cut)
        return cuts

    def chunks(self, above: bytes, seq: Sequence, books: Books) -> tuple[tuple[int, int], ...]:
        """The pieces of a new sequence's prompt that are worth keeping, behind what the prefix cache has of it; the last token
        is in none."""
        start = 0
        if books.reuse is not None:
            for found in books.reuse.match(seq.reuse_key, seq.tokens, seq.length - 1):
                start = found.stop
                books.pool.drop(found.runs[:, 0].tolist())
        return tuple((first, stop) for first, stop in self.again(above, seq.tokens, start) if stop < seq.length)

    def again(self, above: bytes, tokens: npt.NDArray[np.int32], start: int) -> list[tuple[int, int]]:
        """The pieces of a prompt from token `start` on that were met before, behind something else; all of its pieces are met
        now. `above`: names of different ones are different."""
        cuts = self.cut(tokens)
        found = []
        before = above
        for first, stop in pairwise(cuts):
            name = name_after(above, tokens[first:stop])
            known = self._met.get(name)
            elsewhere = known is not None and known != before
            self._met[name] = b"" if elsewhere else before
            self._met.move_to_end(name)
            if elsewhere and first >= start:
                found.append((first, stop))
            before = name_after(before, tokens[first:stop])
        while len(self._met) > self._remembered:
            self._met.popitem(last=False)
        return found


def _hashes(tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """uint64 [tokens - WINDOW + 1]: of every WINDOW tokens in a row, each token scrambled (the finaliser of splitmix64) and
    turned by its place."""
    count = len(tokens) - WINDOW + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    found = np.zeros(count, np.uint64)
    for place in range(WINDOW):
        part, by = mixed[place : place + count], 64 * place // WINDOW
        found ^= part if not by else (part << np.uint64(by)) | (part >> np.uint64(64 - by))
    return found
