"""The hash model with relative positions, and what a request with chunks must give in it, from its tokens alone.

KV of a token is a hash of the token and of what it sees, by distance, plus its position times a constant: so it may be turned
to another position, and turned by the wrong number of positions it says something else."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tests.engine.fake import MASK, FakeExecutor, _draw, logits_of, make_engine

from hasten.engine.batch import Batch
from hasten.engine.kv.base import Repair
from hasten.engine.kv.books import Books
from hasten.engine.kv.chunks import ChunkStore
from hasten.engine.kv.retention import LRU
from hasten.engine.linking import Linker
from hasten.engine.links import Piece
from hasten.engine.loop import Engine
from hasten.engine.request import Request
from hasten.engine.rng import mix
from hasten.engine.sequence import Sequence as Sequence_

TURN = 0x9E3779B97F4A7C15
MAX_LENGTH = 200


class RelativeExecutor(FakeExecutor):
    def submit(self, batch: Batch, taps: frozenset[int] = frozenset()) -> SimpleNamespace:
        for i in range(len(batch.spans)):
            rows = slice(*batch.span_offsets[i : i + 2].tolist())
            runs = batch.runs[batch.run_offsets[i] : batch.run_offsets[i + 1]]
            last = (runs[:, 3] + runs[:, 2]).max() - 1
            assert last <= batch.positions[rows].max(), "a span's view goes on behind its last token, where nothing may be yet"
        return super().submit(batch, taps)

    def value(self, token: int, position: int, seen: int) -> int:
        return (mix(token + 1, seen) + position * TURN) & MASK

    def effect(self, kv: int, where: int, position: int) -> int:
        return mix((kv - where * TURN) & MASK, position - where)

    def turned(self, kv: int, by: int) -> int:
        return (kv + by * TURN) & MASK


class WatchedLinker(Linker):
    """`taken`: whether the chunks of a request were."""

    taken: dict[str, bool]

    def admit(self, seq: Sequence_) -> None:
        super().admit(seq)
        self.taken[seq.request.id] = bool(seq.chunks)


def chunk_engine(repair: Repair, *, share: float = 0.5, max_length: int = MAX_LENGTH, **settings: Any) -> Engine:
    def make_linker(books: Books) -> Linker:
        linker = WatchedLinker(books, ChunkStore(books.pool, LRU(), share), repair, lambda tokens: 1e-3 * tokens, max_length)
        linker.taken = {}
        return linker

    return make_engine(make_linker=make_linker, executor=RelativeExecutor, max_length=max_length, **settings)


def linker_of(engine: Engine) -> WatchedLinker:
    linker = engine.ledger.linker
    assert isinstance(linker, WatchedLinker)
    return linker


def expected(
    request: Request, repair: Repair | None, max_length: int = MAX_LENGTH, eos: frozenset[int] = frozenset()
) -> list[list[int]]:
    """One list of tokens a sequence; `repair` None: chunks are text like all else."""
    sampling = request.sampling
    tokens = request.prompt.tolist()
    length = len(tokens)
    hashes = [0] * length
    anew = [True] * length
    if repair is not None:
        for start, stop in request.chunks:
            for i in range(start, stop):
                hashes[i] = _hash(tokens, hashes, start, i)
                anew[i] = False
        for start, stop in repair.anew([Piece(start, stop, b"") for start, stop in request.chunks]):
            anew[start:stop] = [True] * (stop - start)
        anew[length - 1] = True
    for i in range(length):
        if anew[i]:
            hashes[i] = _hash(tokens, hashes, 0, i)
    answers = []
    for index in range(sampling.n):
        first = mix(sampling.seed or 0, 0)
        own = first if index == 0 else mix(first, index)
        said, held = list(tokens), list(hashes)
        while True:
            last = len(said) - 1
            said.append(_draw(logits_of((held[last] + last * TURN) & MASK), sampling, own, len(said) - length))
            output = len(said) - length
            over = sampling.max_tokens is not None and output >= sampling.max_tokens
            if said[-1] in eos or over or len(said) >= max_length:
                break
            held.append(_hash(said, held, 0, last + 1))
        answers.append(said[length:])
    return answers


def _hash(tokens: Sequence[int], hashes: Sequence[int], start: int, i: int) -> int:
    seen = 0
    for j in range(start, i):
        seen = (seen + mix(hashes[j], i - j)) & MASK
    return mix(tokens[i] + 1, seen)
