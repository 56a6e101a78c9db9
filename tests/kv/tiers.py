"""Tiers around the fake model: its second pool, and a store in a dictionary that fails, forgets and lies when told."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.engine.fake import FakeExecutor, Handle, make_engine

from hasten.engine.clock import RealClock
from hasten.engine.kv.base import Store
from hasten.engine.kv.blockfile import Head, Plane, Planes, Unusable, pack, read_chunk
from hasten.engine.kv.books import Books
from hasten.engine.kv.codecs import Raw
from hasten.engine.kv.disk import Disk
from hasten.engine.kv.folder import Folder
from hasten.engine.kv.host import Run
from hasten.engine.kv.prefix_tree import PrefixTree
from hasten.engine.kv.retention import ADMISSIONS, LRU, RETENTIONS, Facts
from hasten.engine.kv.tiered_cache import TieredCache
from hasten.engine.loop import Engine


class FakePool:
    """A `SecondPool` of hashes."""

    def __init__(self, executor: FakeExecutor, blocks: int) -> None:
        self.executor = executor
        self.blocks = blocks
        self.values = [0] * (blocks * executor.size)
        self.planes = (Plane(0, "kv", (executor.size,), "uint64"),)
        self.block_bytes = 8 * executor.size

    def copy_out(self, runs: Sequence[Run]) -> Handle:
        return self.executor._moved(self.executor.kv, self.values, runs, out=True)

    def copy_in(self, runs: Sequence[Run]) -> Handle:
        return self.executor._moved(self.values, self.executor.kv, runs, out=False)

    def read(self, blocks: Sequence[int]) -> Planes:
        size = self.executor.size
        held = self.values[blocks[0] * size : (blocks[-1] + 1) * size]
        return [np.array(held, dtype=np.uint64).reshape(len(blocks), size)]

    def write(self, blocks: Sequence[int], planes: Planes) -> None:
        size = self.executor.size
        self.values[blocks[0] * size : (blocks[-1] + 1) * size] = planes[0].ravel().tolist()


class FakeStore:
    """A `Store` of at most `most` chunks, as block files in memory. `fail`: share of transfers that fail; `damage`: share of
    chunks whose bytes rot; `forget`: share of look-ups that find nothing."""

    def __init__(self, pool: FakePool, most: int, seed: int = 0) -> None:
        self.pool = pool
        self.most = most
        self.files: dict[bytes, bytes] = {}
        self.random = random.Random(seed)
        self.fail = self.damage = self.forget = 0.0
        self.lost = 0

    def holds(self, name: bytes) -> int | None:
        if self.random.random() < self.forget:
            return None
        return len(self.files[name]) if name in self.files else None

    def fetch(self, wanted: Head, blocks: Sequence[int]) -> Handle:
        data = self.files.get(wanted.name)
        if data is None:
            raise FileNotFoundError("it was forgotten")
        if self.random.random() < self.damage:
            rotten = bytearray(data)
            rotten[self.random.randrange(len(rotten))] ^= 1 << self.random.randrange(8)
            data = bytes(rotten)
        return Checked(self._link(lambda: self._read(wanted, blocks, data)))

    def _read(self, wanted: Head, blocks: Sequence[int], data: bytes) -> None:
        head, payload = read_chunk(io.BytesIO(data), 1 << 20)
        if not head.says(wanted):
            raise Unusable("another chunk")
        self.pool.write(blocks, Raw().decode(payload, head))

    def _link(self, move: Callable[[], None]) -> Handle:
        return Handle(self.random.randint(0, 4), move, [], self.random.random() < self.fail)

    def keep(self, head: Head, blocks: Sequence[int], facts: Facts) -> Handle | None:
        if len(self.files) >= self.most:
            del self.files[self.random.choice(list(self.files))]

        def write() -> None:
            packed = pack(head, Raw().encode(self.pool.read(blocks), head))
            self.files[head.name] = packed.prefix + bytes(packed.payload)

        return Checked(self._link(write))

    def used(self, name: bytes) -> None: ...
    def lose(self, name: bytes) -> None:
        self.lost += self.files.pop(name, None) is not None

    def seconds(self, nbytes: int) -> float:
        return 0.0

    def audit(self) -> None: ...
    def close(self) -> None: ...


class Checked:
    """A handle whose error, too, comes with every wait."""

    seconds = 0.0

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._error: Exception | None = None
        self.ends_s = handle.ends_s

    def done(self) -> bool:
        return self._handle.done()

    def wait(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._handle.wait()
        except Exception as error:
            self._error = error
            raise


def tiered_engine(
    *,
    second: int = 64,
    chunk: int = 2,
    stores: Callable[[FakePool], Sequence[Store]] = lambda pool: (),
    keep: str = "lru",
    to_stores: str = "all",
    price: Callable[[int, int], float] = lambda start, tokens: 1e3 * tokens,
    context: str = "",
    **settings: Any,
) -> Engine:
    """An engine of the fake model with `second` blocks of host memory for reuse. Loading pays unless `price` says otherwise."""

    def make(books: Books, executor: FakeExecutor) -> TieredCache:
        pool = FakePool(executor, second)
        return TieredCache(
            PrefixTree(books.pool), books, pool, stores(pool),
            chunk=chunk, price=price, retention=RETENTIONS[keep](), admission=ADMISSIONS[to_stores], context=context,
        )  # fmt: skip

    return make_engine(make_reuse=make, **settings)


def disk_engine(path: Path, *, budget: int = 1 << 30, stores: Callable[[FakePool], list[Store]] | None = None, **settings: Any):
    """One whose chunks go to real files, by real threads, on a real clock."""

    def make(pool: FakePool) -> list[Store]:
        disk = Disk(Folder(path), pool, budget, LRU(), price=lambda start, tokens: 1.0)
        return [disk, *(stores(pool) if stores is not None else [])]

    return tiered_engine(stores=make, clock=RealClock(), **settings)


def cache_of(engine: Engine) -> TieredCache:
    cache = engine.ledger.books.reuse
    assert isinstance(cache, TieredCache)
    return cache


def forget_device(engine: Engine) -> None:
    """Lose all that is cached in the pool."""
    cache = cache_of(engine)
    while cache.settle(wait=True) or cache._writes:
        pass
    cache.evict(engine.ledger.books.pool.blocks)
