"""The disk tier: a folder of block files behind worker threads, within a budget of bytes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf

from hasten.engine.kv.base import Handle
from hasten.engine.kv.blockfile import Head, Unusable, pack
from hasten.engine.kv.codecs import RAW, codec
from hasten.engine.kv.folder import Folder
from hasten.engine.kv.host import SecondPool
from hasten.engine.kv.jobs import Job, Rate, submit
from hasten.engine.kv.retention import Facts, Retention
from hasten.engine.kv.shelf import Entry, Shelf
from hasten.engine.technique import ConfigError

_PAUSE_S = 10.0
"""After a write failed (a full disk, most likely) none is tried for so long."""


class Disk:
    """The `Store` of `folder`. New chunks are written with `codec_name`; those of other codecs than it and `raw` are neither
    used nor counted. `price(start, tokens)`: seconds of computing so many tokens behind others. `rate`: bytes per second
    expected of reading, before any was measured; `pending_bytes`: most that wait to be written. Raises ConfigError when the
    folder cannot be used, or another engine uses it."""

    def __init__(
        self,
        folder: Folder,
        second: SecondPool,
        budget: int,
        retention: Retention,
        *,
        price: Callable[[int, int], float],
        codec_name: str = RAW,
        rate: float = 1e9,
        pending_bytes: int = 1 << 30,
    ) -> None:
        self.folder = folder
        self._second = second
        self._codec = codec_name
        self._price = price
        self._shelf = Shelf(budget, retention)
        self._rate = Rate(rate)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="hasten-disk-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hasten-disk-write")
        self._pending = 0
        self._pending_limit = pending_bytes
        self._paused_until = -inf
        self._lock = self._own()
        self._scan({codec_name, RAW})

    def _own(self) -> int:
        """One engine at a time: two would give up each other's files without knowing."""
        try:
            lock = os.open(self.folder.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"{self.folder.path}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise ConfigError(f"{self.folder.path}: another engine keeps its KV there") from None
        return lock

    def _scan(self, codecs: set[str]) -> None:
        for stored in self.folder.list():
            if stored.head.codec not in codecs or stored.head.name in self._shelf:
                continue
            seconds = self._price(stored.head.start, len(stored.head.tokens))
            self._shelf.restore(stored.head, Facts(stored.head.start, stored.nbytes, seconds))
        for entry in self._shelf.make_room(0):
            self._unlink(entry.head)

    def _ready(self, entry: Entry) -> None:
        entry.ready = True
        self._shelf.unpin(entry)

    def _add(self, head: Head, facts: Facts) -> Entry | None:
        entry, gone = self._shelf.add(head, facts)
        for one in gone:
            self._unlink(one.head)
        return entry

    def _unlink(self, head: Head) -> None:
        def work() -> None:
            with suppress(OSError):
                self.folder.drop(head.name, head.codec)

        self._writer.submit(work)

    # -- the store ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._shelf.entries)

    def holds(self, name: bytes) -> int | None:
        entry = self._shelf.get(name)
        return entry.facts.nbytes if entry is not None and entry.ready else None

    def used(self, name: bytes) -> None:
        entry = self._shelf.get(name)
        if entry is not None:
            self._shelf.used_again(entry, self._shelf.tick(), found=True)

    def fetch(self, wanted: Head, blocks: Seq[int]) -> Handle:
        entry = self._shelf.get(wanted.name)
        if entry is None:
            raise FileNotFoundError("the chunk is not on disk any more")
        name = entry.head.codec

        def work() -> None:
            coder = codec(name)
            head, payload = self.folder.get(wanted.name, name, coder.most_bytes(wanted))
            if not head.says(wanted):
                raise Unusable("it holds KV of other tokens, or of another form")
            self._second.write(blocks, coder.decode(payload, head))

        return submit(self._readers, self._rate, entry.facts.nbytes, work)

    def keep(self, head: Head, blocks: Seq[int], facts: Facts) -> Handle | None:
        coder = codec(self._codec)
        most = coder.most_bytes(head) + len(head.to_bytes()) + 64
        if time.monotonic() < self._paused_until or self._pending + most > self._pending_limit or head.name in self._shelf:
            return None
        entry = self._add(head, Facts(facts.start, most, facts.seconds, hits=facts.hits))
        if entry is None:
            return None
        self._pending += most
        writing = _Write(self, entry, most)

        def work() -> None:
            packed = pack(head, coder.encode(self._second.read(blocks), head))
            self.folder.put(head, packed)
            writing.size = packed.nbytes

        writing.job = submit(self._writer, None, 0, work)
        return writing

    def kept(self, entry: Entry, most: int, size: int | None) -> None:
        """A write is over; `size` None: it failed."""
        self._pending -= most
        if size is not None:
            self._shelf.resize(entry, size)
            self._ready(entry)
            return
        self._paused_until = time.monotonic() + _PAUSE_S
        self._shelf.remove(entry)

    def lose(self, name: bytes) -> None:
        entry = self._shelf.get(name)
        if entry is not None and entry.ready:
            self._shelf.remove(entry)
            self._unlink(entry.head)

    def seconds(self, nbytes: int) -> float:
        return self._rate.seconds(nbytes)

    def audit(self) -> None:
        self._shelf.audit()

    def close(self) -> None:
        """Finish writing what was given."""
        self._readers.shutdown(wait=True)
        self._writer.shutdown(wait=True)
        os.close(self._lock)


class _Write:
    """A chunk being written. The books hear of the end when the engine's thread first waits for it."""

    ends_s = inf

    def __init__(self, disk: Disk, entry: Entry, most: int) -> None:
        self._disk = disk
        self._entry = entry
        self._most = most
        self._noted = False
        self.job: Job
        self.size: int | None = None
        """Of the file, when it is there."""

    @property
    def seconds(self) -> float:
        return self.job.seconds

    def done(self) -> bool:
        return self.job.done()

    def wait(self) -> None:
        try:
            self.job.wait()
        finally:
            if not self._noted:
                self._noted = True
                self._disk.kept(self._entry, self._most, self.size)
