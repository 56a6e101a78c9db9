"""The hash model with chunks that are computed in their context: what was found decides what a request must give, so the
linker's decisions are written down, and what follows from them is computed from tokens alone."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tests.engine.fake import MASK, _draw, logits_of, make_engine
from tests.kv.chunked import MAX_LENGTH, TURN, RelativeExecutor, _hash
from tests.kv.chunked import expected as expected_alone

from hasten.engine.batch import Batch
from hasten.engine.context_linking import ContextLinker
from hasten.engine.kv.base import ContextRepair
from hasten.engine.kv.books import Books
from hasten.engine.kv.chunks import Chunk, ChunkStore
from hasten.engine.kv.variants import Floats, PerRepair
from hasten.engine.links import Links
from hasten.engine.loop import Engine
from hasten.engine.request import Request
from hasten.engine.rng import mix
from hasten.engine.sequence import Sequence, Span


def mass_of(tokens: Any, token: int, start: int) -> float:
    """What the model says of the mass of a token on the chunk that begins at `start`."""
    return float(1 + (5 * int(tokens[token]) + 3 * int(tokens[start]) + start) % 7) / 64


class MeasuringExecutor(RelativeExecutor):
    """Its model has one layer, before which rows leave whose chunks are ranked low: their slots keep what they held."""

    linker: WatchedContextLinker

    def submit(self, batch: Batch, taps: frozenset[int] = frozenset()) -> SimpleNamespace:
        stays = np.ones(batch.size, dtype=bool)
        for number, span in enumerate(batch.spans):
            for rows in self._leaving(span):
                stays[batch.span_offsets[number] + rows] = False
        result = super().submit(batch if stays.all() else batch.keep(np.flatnonzero(stays)), taps).wait()
        result.skipped = int((~stays).sum())
        for number, span in enumerate(batch.spans):
            if span.measure is not None:
                known, ranges = span.sequence.tokens, span.measure.ranges
                assert (known[span.measure.tokens] == span.tokens[span.measure.rows]).all()
                rows = [[mass_of(known, token, start) for start, _ in ranges] for token in span.measure.tokens.tolist()]
                result.mass = {**(result.mass or {}), number: torch.tensor(rows)}
        return SimpleNamespace(wait=lambda: result)

    def _leaving(self, span: Span) -> list[Any]:
        """Rows of the span; what follows from it is written down."""
        if span.mending is None:
            return []
        seq, ranges = span.sequence, span.mending.question.ranges
        mass = [mass_of(seq.tokens, seq.length - 1, start) for start, _ in ranges]
        low = span.mending.low(np.array(mass, dtype=np.float32))
        leaving = []
        for number, rows in span.mending.rows.items():
            linked = self.linker.epochs[(seq.request.id, seq.index)][-1].chunks[number]
            assert linked is not None, "a chunk that is new goes through all layers"
            if low[number]:
                leaving.append(rows)
                for token in span.positions[rows] - seq.positions[ranges[number][0]]:
                    linked[1][token] = False
        return leaving


@dataclass(frozen=True)
class Epoch:
    """From `said` tokens of output on, until the next: what each chunk was linked from, (hashes, bool [tokens] computed again),
    None: computed whole."""

    said: int
    chunks: tuple[tuple[list[int], list[bool]] | None, ...]


class WatchedContextLinker(ContextLinker):
    taken: dict[str, bool]
    epochs: dict[tuple[str, int], list[Epoch]]
    hashes: dict[Chunk, list[int]]
    """Of every variant that was ever kept."""
    forgets = False
    """Nothing is measured."""

    def admit(self, seq: Sequence) -> None:
        super().admit(seq)
        self.taken[seq.request.id] = bool(seq.chunks)

    def _assemble(self, seq: Sequence, links: Links) -> None:
        super()._assemble(seq, links)
        anew = np.zeros(seq.length, dtype=bool)
        for start, stop in seq.todo:
            anew[start:stop] = True
        chunks = tuple(
            None if chunk is None else (self.hashes[chunk], anew[piece.start : piece.stop].tolist())
            for piece, chunk in zip(seq.chunks, links.found, strict=True)
        )
        assert all(anew[p.start : p.stop].all() for p, c in zip(seq.chunks, chunks, strict=True) if c is None)
        self.epochs.setdefault((seq.request.id, seq.index), []).append(Epoch(seq.output_length, chunks))

    def _keep(self, seq: Sequence, number: int, mass: Floats) -> None:
        pieces = seq.chunks[: number + 1]
        naive = [[mass_of(seq.tokens, i, one.start) for one in pieces] for i in range(pieces[-1].start, pieces[-1].stop)]
        assert self.forgets or (mass == np.array(naive, dtype=np.float32)).all(), "the mass is not that of the chunk's tokens"
        before = self.store.variants(pieces[-1].name)
        super()._keep(seq, number, mass)
        for chunk in self.store.variants(pieces[-1].name):
            if chunk not in before:
                epoch = self.epochs_of(seq.request, seq.index)[-1]
                self.hashes[chunk] = hashes_of(seq.request, epoch)[pieces[-1].start : pieces[-1].stop]

    def epochs_of(self, request: Request, index: int) -> list[Epoch]:
        first = self.epochs[(request.id, 0)]
        if index == 0:
            return first
        return [[epoch for epoch in first if epoch.said == 0][-1], *self.epochs.get((request.id, index), [])]


def hashes_of(request: Request, epoch: Epoch) -> list[int]:
    """Of the prompt's tokens."""
    tokens = request.prompt.tolist()
    hashes: list[int | None] = [None] * len(tokens)
    for (start, stop), linked in zip(request.chunks, epoch.chunks, strict=True):
        if linked is not None:
            assert len(linked[0]) == stop - start
            hashes[start:stop] = [None if anew else held for held, anew in zip(*linked, strict=True)]
    for i in range(len(tokens)):
        if hashes[i] is None:
            hashes[i] = _hash(tokens, hashes, 0, i)  # type: ignore[arg-type]
    return hashes  # type: ignore[return-value]


def context_engine(repair: ContextRepair, *, share: float = 0.5, max_length: int = MAX_LENGTH, **settings: Any) -> Engine:
    def make_linker(books: Books) -> WatchedContextLinker:
        store = ChunkStore(books.pool, PerRepair(), share, repair.variants)
        linker = WatchedContextLinker(books, store, repair, lambda tokens: 1e-3 * tokens, max_length)
        linker.taken, linker.epochs, linker.hashes = {}, {}, {}
        return linker

    engine = make_engine(make_linker=make_linker, executor=MeasuringExecutor, max_length=max_length, **settings)
    engine.executor.linker = linker_of(engine)  # type: ignore[attr-defined]
    return engine


def linker_of(engine: Engine) -> WatchedContextLinker:
    linker = engine.ledger.linker
    assert isinstance(linker, WatchedContextLinker)
    return linker


def expected(engine: Engine, request: Request, index: int, max_length: int = MAX_LENGTH) -> list[int]:
    """The output of one of a request's sequences."""
    linker = linker_of(engine)
    if not linker.taken.get(request.id, False):
        return expected_alone(request, None, max_length)[index]
    if (request.id, 0) not in linker.epochs:
        return []  # it never ran
    sampling, length = request.sampling, len(request.prompt)
    own = mix(sampling.seed or 0, 0)
    own = own if index == 0 else mix(own, index)
    epochs = linker.epochs_of(request, index)
    said: list[int] = request.prompt.tolist()
    for number, epoch in enumerate(epochs):
        until = epochs[number + 1].said if number + 1 < len(epochs) else None
        held = hashes_of(request, epoch)
        while until is None or len(said) - length < until:
            while len(held) < len(said):
                held.append(_hash(said, held, 0, len(held)))
            last = len(said) - 1
            said.append(_draw(logits_of((held[last] + last * TURN) & MASK), sampling, own, len(said) - length))
            if len(said) >= max_length or len(said) - length == sampling.max_tokens:
                break
    return said[length:]


def all_free(engine: Engine) -> None:
    pool = engine.ledger.books.pool
    assert pool.available == pool.blocks, "blocks are still held after the last request"
    linker_of(engine).store.clear()
    engine.ledger.audit()
    if engine.ledger.books.reuse is not None:
        engine.ledger.books.reuse.evict(pool.blocks)
    assert pool.free == pool.blocks
