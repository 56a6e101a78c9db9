"""The tiered cache: reusable KV in the pool, in host memory and beyond.

What a prompt computed is cached in the pool by the prefix tree and, chunk by chunk, copied to a second pool in host memory as
soon as it is there, so that evicting it from the device costs nothing. From host memory chunks go on to a folder on disk,
where a restarted engine finds them; what another process has can be fetched from there. A look-up follows the chain of
chunk names behind what the tree holds. Where bringing them is predicted to be faster than computing them, the sequence waits in
`State.LOADING` while others run, and goes on with what is left to compute. Exact as long as the codec is.

Everything is decided by the engine's thread; bytes move elsewhere. Names, and so look-ups, never cross tenants or salts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from hasten.engine.kv.arrivals import Arrivals, ChunkLoad, Part
from hasten.engine.kv.base import Found, Handle, Ints, NoBlocks, Readiness, Reuse, ReuseKey, Store
from hasten.engine.kv.blockfile import Head, name_after, root
from hasten.engine.kv.books import Books
from hasten.engine.kv.codecs import RAW, codec
from hasten.engine.kv.host import SecondPool, runs_of
from hasten.engine.kv.host_chunks import HostChunks
from hasten.engine.kv.retention import Admission, Facts, Retention
from hasten.engine.kv.shelf import Entry
from hasten.engine.kv.view import View

_NOTHING = np.empty((0, 4), dtype=np.int32)


@dataclass(slots=True)
class _Out:
    """A copy of a chunk from the pool to host memory."""

    entry: Entry
    blocks: list[int]
    copy: Handle


@dataclass(slots=True)
class _Write:
    entry: Entry
    store: Store
    writing: Handle


@dataclass(slots=True)
class _Piece:
    """`count` blocks of a chunk from block `skip` on, and where they are: on their way already (`part`), in host memory
    (`entry`) or in a store."""

    head: Head
    skip: int
    count: int
    part: Part | None = None
    entry: Entry | None = None
    store: Store | None = None


class TieredCache:
    """`device`: what is cached in the pool of `books`; `chunk`: blocks of a chunk; `stores`: where chunks lie beyond host
    memory, the fastest first; `price(start, tokens)`: predicted seconds of computing so many behind others; `context`: as
    `blockfile.root` takes it; `margin`: loading must be predicted to take at most this part of computing; `admission`: what of
    host memory is offered to the stores."""

    def __init__(
        self,
        device: Reuse,
        books: Books,
        second: SecondPool,
        stores: Seq[Store],
        *,
        chunk: int,
        price: Callable[[int, int], float],
        retention: Retention,
        admission: Admission,
        context: str = "",
        margin: float = 1.0,
        codec: str = RAW,
        copy_rate: float = 5e9,
    ) -> None:
        self._device = device
        self._books = books
        self._second = second
        self._stores = stores
        self._chunk = chunk
        self._price = price
        self._admission = admission
        self._context = context
        self._margin = margin
        self._codec = codec
        self._planes = second.planes
        self._root = lru_cache(maxsize=1024)(root)
        self._host = HostChunks(second, chunk, retention)
        self._arrivals = Arrivals(second, self._host, self._facts, self._arrived, self._copied)
        self._outs: list[_Out] = []
        self._writes: list[_Write] = []
        self._byte_s = 1 / copy_rate
        """Seconds a byte takes from host memory to the pool, as the copies turn out."""
        self._counts: Counter[str] = Counter()

    # -- names and prices -----------------------------------------------------------------------------------------------

    def _heads(self, key: ReuseKey, tokens: Ints, count: int) -> Iterator[Head]:
        """Of the first `count` chunks of a prompt."""
        size = self._chunk * self._books.pool.block_size
        first = parent = self._root(key, self._context)
        for start in range(0, count * size, size):
            piece = tokens[start : start + size].copy()  # a chunk that is kept must not keep the whole prompt
            name = name_after(parent, piece)
            yield Head(
                name, parent, first, start, piece, self._books.pool.block_size, self._planes, self._codec, key.weights,
                key.adapter, key.tenant,
            )  # fmt: skip
            parent = name

    def _facts(self, head: Head) -> Facts:
        return Facts(head.start, self._chunk * self._second.block_bytes, self._price(head.start, len(head.tokens)))

    def _copied(self, copy: Handle, blocks: int) -> None:
        took = copy.seconds / max(1, blocks * self._second.block_bytes)
        if took > 0:
            self._byte_s += 0.1 * (min(took, 10 * self._byte_s) - self._byte_s)

    # -- looking up -----------------------------------------------------------------------------------------------------

    def match(self, key: ReuseKey, tokens: Ints, limit: int) -> list[Found]:
        """What the device holds and, behind it, a LOADING span of what slower tiers do."""
        found = self._device.match(key, tokens, limit)
        held = found[-1].stop if found else 0
        pieces = self._beyond(key, tokens, min(limit, len(tokens) - 1), held)
        if pieces:
            stop = held + self._books.pool.block_size * sum(piece.count for piece in pieces)
            load = ChunkLoad(self._arrivals, lambda: self._start(pieces, held))
            found.append(Found(held, stop, Readiness.LOADING, _NOTHING, load))
        return found

    def _beyond(self, key: ReuseKey, tokens: Ints, limit: int, held: int) -> list[_Piece]:
        """What slower tiers hold behind the first `held` tokens, where it pays to bring it."""
        size = self._books.pool.block_size
        span = self._chunk * size
        last = limit // size
        if last * size <= held or len(tokens) < span:
            return []
        pieces: list[_Piece] = []
        for head in islice(self._heads(key, tokens, len(tokens) // span), held // span, None):
            skip = max(0, held - head.start) // size
            count = min(self._chunk, last - head.start // size) - skip
            piece = self._source(head, skip, count) if count > 0 else None
            if piece is None:
                break
            pieces.append(piece)
            if piece.count < count:
                break
        stop = held + size * sum(piece.count for piece in pieces)
        return pieces if self._load_s(pieces) <= self._margin * self._price(held, stop - held) else []

    def _source(self, head: Head, skip: int, count: int) -> _Piece | None:
        """Where the chunk is: on its way already, in host memory, or in a store."""
        part = self._arrivals.parts.get(head.name)
        if part is not None:
            wanted = part.users > 0 or part.copying is not None  # else it stops in host memory, and its blocks may be gone
            return _Piece(head, skip, min(count, len(part.blocks)), part) if wanted and part.skip == skip else None
        entry = self._host.get(head.name)
        if entry is not None:
            return _Piece(head, skip, count, entry=entry) if entry.ready else None
        store = next((store for store in self._stores if store.holds(head.name) is not None), None)
        return _Piece(head, skip, count, store=store) if store is not None else None

    def _load_s(self, pieces: Seq[_Piece]) -> float:
        """Predicted, of bringing them. Stores and the copies to the pool work at the same time: the slowest says how long."""
        new = [piece for piece in pieces if piece.part is None]
        slowest = sum(piece.count for piece in new) * self._second.block_bytes * self._byte_s
        for store in self._stores:
            nbytes = sum(store.holds(piece.head.name) or 0 for piece in new if piece.store is store)
            slowest = max(slowest, store.seconds(nbytes) if nbytes else 0.0)
        return slowest

    def _start(self, found: Seq[_Piece], held: int) -> tuple[Ints, list[Part], list[int]]:
        """Bring what a look-up has found behind `held` tokens, as far as it is still there: what `ChunkLoad` begins with."""
        pool = self._books.pool
        size = pool.block_size
        pieces: list[_Piece] = []
        for piece in found:
            now = self._source(piece.head, piece.skip, piece.count)
            if now is None:
                break
            pieces.append(now)
            if now.count < piece.count:
                break
        shared = [block for piece in pieces if piece.part is not None for block in piece.part.blocks[: piece.count]]
        pool.share(shared)  # first, or taking others might free them
        try:
            fresh = self._books.receive(sum(piece.count for piece in pieces) - len(shared))
        except NoBlocks:
            pool.drop(shared)
            raise
        tick = self._host.shelf.tick()
        parts = [self._part(piece, fresh) for piece in pieces]
        for part, piece in zip(parts, pieces, strict=True):  # once all are pinned, or the first might push out the last
            if piece.part is None:
                self._arrivals.begin(part)
            self._use(part, tick)
        blocks = [block for part, piece in zip(parts, pieces, strict=True) for block in part.blocks[: piece.count]]
        runs = np.empty((len(blocks), 4), dtype=np.int32)
        runs[:, 0], runs[:, 1], runs[:, 2] = blocks, 0, size
        runs[:, 3] = np.arange(held, held + len(blocks) * size, size)
        return runs, parts, [piece.count * size for piece in pieces]

    def _part(self, piece: _Piece, fresh: list[int]) -> Part:
        """The part that brings a piece; what is not on its way yet takes its blocks from `fresh`."""
        part = piece.part
        if part is None:
            part = Part(piece.head, fresh[: piece.count], piece.skip, piece.entry, piece.store)
            del fresh[: piece.count]
            if piece.entry is not None:
                self._host.pin(piece.entry)
        part.users += 1
        return part

    def _use(self, part: Part, tick: int) -> None:
        """A look-up led to it: that counts as used wherever it lies."""
        self._counts["chunks_found"] += 1
        if part.entry is not None and part.entry.ready:
            self._host.shelf.used_again(part.entry, tick, found=True)
            self._offer(part.entry)
        for store in self._stores:
            store.used(part.head.name)

    # -- keeping --------------------------------------------------------------------------------------------------------

    def insert(self, key: ReuseKey, tokens: Ints, view: View) -> None:
        """Cache it in the pool, and start copying whole chunks that host memory lacks."""
        self._device.insert(key, tokens, view)
        size = self._books.pool.block_size
        count = min(len(tokens), view.length) // (self._chunk * size)
        tick = self._host.shelf.tick()
        for i, head in enumerate(self._heads(key, tokens, count)):
            entry = self._host.get(head.name)
            if entry is not None:
                self._host.shelf.used_again(entry, tick, found=False)
                continue
            if head.name in self._arrivals.parts:
                continue
            blocks = view.full_blocks(i * self._chunk, (i + 1) * self._chunk, size)
            if len(blocks) < self._chunk or not self._send(head, blocks):
                break

    def _send(self, head: Head, blocks: list[int]) -> bool:
        entry = self._host.add(head, self._facts(head))
        if entry is None:
            self._counts["chunks_not_taken"] += 1
            return False
        copy = self._second.copy_out(runs_of(blocks, self._host.blocks(entry)))
        self._books.pool.read(blocks, copy)
        self._outs.append(_Out(entry, blocks, copy))
        return True

    def _offer(self, entry: Entry) -> None:
        """Let the stores have what lies in host memory."""
        if not entry.ready or entry.coded or not self._admission(entry.facts):  # coded twice, it would lose twice
            return
        for store in self._stores:
            if store.holds(entry.name) is None:
                writing = store.keep(entry.head, self._host.blocks(entry), entry.facts)
                if writing is not None:
                    self._host.pin(entry)
                    self._writes.append(_Write(entry, store, writing))

    def evict(self, count: int) -> int:
        return self._device.evict(count)

    # -- what is under way ----------------------------------------------------------------------------------------------

    @property
    def moving(self) -> bool:
        return bool(self._outs or self._arrivals.parts)

    def settle(self, wait: bool = False) -> bool:
        under_way = bool(self._outs)
        while self._outs and (wait or self._outs[0].copy.done()):
            self._out(self._outs.pop(0))
            wait = False
        self._arrivals.settle()
        for write in [write for write in self._writes if write.writing.done()]:
            self._writes.remove(write)
            self._written(write)
        return under_way

    def _out(self, out: _Out) -> None:
        try:
            out.copy.wait()
        except Exception:
            self._counts["copies_failed"] += 1
            self._host.drop(out.entry)
        else:
            self._copied(out.copy, len(out.blocks))
            out.entry.ready = True
            self._counts["chunks_to_host"] += 1
            self._offer(out.entry)
        self._books.pool.read_over(out.blocks, out.copy)
        self._host.unpin(out.entry)

    def _written(self, write: _Write) -> None:
        try:
            write.writing.wait()
        except Exception:
            self._counts["writes_failed"] += 1
            write.store.lose(write.entry.name)
        else:
            self._counts["chunks_to_stores"] += 1
        self._host.unpin(write.entry)

    def _arrived(self, entry: Entry, store: Store) -> None:
        self._counts["chunks_from_stores"] += 1
        entry.coded = codec(self._codec).loss > 0
        self._offer(entry)

    def counts(self) -> dict[str, float]:
        return {
            **self._counts,
            "loads_failed": self._arrivals.failed,
            "chunks_computed_instead": self._arrivals.dearer,
            "host_evicted": self._host.gave_up,
        }

    def audit(self) -> None:
        self._host.audit()
        for store in self._stores:
            store.audit()
        pins = Counter(out.entry for out in self._outs)
        pins.update(write.entry for write in self._writes)
        pins.update(part.entry for part in self._arrivals.parts.values() if part.entry is not None)
        for entry in self._host.everything():
            assert entry.pins == pins[entry], "a chunk is held by nobody, or by somebody unknown"

    def close(self) -> None:
        """Wait for what is under way, and for the stores to have what they were given."""
        while self._outs:
            self.settle(wait=True)
        for part in list(self._arrivals.parts.values()):
            self._arrivals.advance(part, wait=True)
        for write in self._writes:
            self._written(write)
        self._writes = []
        for store in self._stores:
            store.close()
