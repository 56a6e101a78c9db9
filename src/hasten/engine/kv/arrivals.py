"""Chunks on their way into the pool: from a store to host memory, where it must, and from there into blocks.

Everything here is done by the engine's thread; what takes time runs elsewhere and is looked at. Two sequences that want the
same chunk share its journey and its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from hasten.engine.kv.base import Dearer, Handle, Ints, Store
from hasten.engine.kv.blockfile import Head
from hasten.engine.kv.host import SecondPool, runs_of
from hasten.engine.kv.host_chunks import HostChunks
from hasten.engine.kv.retention import Facts
from hasten.engine.kv.shelf import Entry


class Part:
    """One chunk, or the piece of it from block `skip` on, and the pool's `blocks` that it goes to. It comes from host memory
    (`entry`, pinned) or from `store`. `users`: loads that want it."""

    __slots__ = ("blocks", "copying", "entry", "error", "fetching", "head", "over", "skip", "store", "users")

    def __init__(self, head: Head, blocks: list[int], skip: int, entry: Entry | None, store: Store | None) -> None:
        self.head = head
        self.blocks = blocks
        self.skip = skip
        self.entry = entry
        self.store = store
        self.users = 0
        self.fetching: Handle | None = None
        self.copying: Handle | None = None
        self.error: str | None = None
        self.over = False

    @property
    def _step(self) -> Handle | None:
        return self.fetching if self.fetching is not None else self.copying

    def stirs(self) -> bool:
        return self.over or ((step := self._step) is not None and step.done())

    @property
    def ends_s(self) -> float:
        step = self._step
        return step.ends_s if step is not None and not self.over else -inf


class Arrivals:
    """`facts(head)` of a chunk new to host memory; `arrived(entry, store)`: it lies there now."""

    def __init__(
        self,
        second: SecondPool,
        host: HostChunks,
        facts: Callable[[Head], Facts],
        arrived: Callable[[Entry, Store], None],
        copied: Callable[[Handle, int], None],
    ) -> None:
        self._second = second
        self._host = host
        self._facts = facts
        self._arrived = arrived
        self._copied = copied
        self.parts: dict[bytes, Part] = {}
        """Under way, by chunk."""
        self.failed = 0
        self.dearer = 0
        """Parts that are computed after all, because that takes less time by now."""

    def begin(self, part: Part) -> None:
        """Set out. From now on others may share it."""
        assert part.head.name not in self.parts
        self.parts[part.head.name] = part
        if part.entry is None:
            assert part.store is not None
            part.entry = self._host.add(part.head, self._facts(part.head))
            if part.entry is None:
                self._fail(part, "host memory has no room for it")
                return
            try:
                part.fetching = part.store.fetch(part.head, self._host.blocks(part.entry))
            except Exception as error:
                self._lose(part, error)
                return
        else:
            self._set_out(part)

    def _set_out(self, part: Part) -> None:
        assert part.entry is not None
        there = self._host.blocks(part.entry)[part.skip : part.skip + len(part.blocks)]
        part.copying = self._second.copy_in(runs_of(part.blocks, there))

    def advance(self, part: Part, wait: bool = False) -> None:
        """Take note of what of it is done; `wait`: until all is."""
        if part.over:
            return
        if part.fetching is not None:
            if not (wait or part.fetching.done()):
                return
            fetched, part.fetching = part.fetching, None
            try:
                fetched.wait()
            except Dearer as error:
                part.store = None  # which has it still
                self._lose(part, error)
                self.failed -= 1
                self.dearer += 1
                return
            except Exception as error:
                self._lose(part, error)
                return
            assert part.entry is not None and part.store is not None
            part.entry.ready = True
            self._arrived(part.entry, part.store)
            if not part.users:  # it is in host memory now, and nobody waits for it in the pool
                self._over(part)
                return
            self._set_out(part)
        copying = part.copying
        assert copying is not None
        if not (wait or copying.done()):
            return
        try:
            copying.wait()
        except Exception as error:
            part.store = None  # what it has is good
            self._lose(part, error)
            return
        self._copied(copying, len(part.blocks))
        self._over(part)

    def settle(self) -> None:
        for part in list(self.parts.values()):
            self.advance(part)

    def _lose(self, part: Part, error: Exception) -> None:
        """It did not come, or cannot be trusted: nobody is to find it there again."""
        if part.store is not None:
            part.store.lose(part.head.name)
        if part.entry is not None:
            self._host.drop(part.entry)
        self._fail(part, str(error) or type(error).__name__)

    def _fail(self, part: Part, error: str) -> None:
        part.error = error
        self.failed += 1
        self._over(part)

    def _over(self, part: Part) -> None:
        part.over = True
        if self.parts.get(part.head.name) is part:
            del self.parts[part.head.name]
        if part.entry is not None:
            self._host.unpin(part.entry)


class ChunkLoad:
    """The `Load` of one sequence. `start()` takes what it needs and gives (runs, parts in the order of its prompt, tokens of
    each that it uses)."""

    def __init__(self, arrivals: Arrivals, start: Callable[[], tuple[Ints, list[Part], list[int]]]) -> None:
        self._arrivals = arrivals
        self._start = start
        self._parts: list[Part] = []
        self._tokens: list[int] = []
        self._cancelled = False

    def begin(self) -> Ints:
        runs, self._parts, self._tokens = self._start()
        return runs

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            for part in self._parts:
                part.users -= 1

    def done(self) -> bool:
        for part in self._parts:
            self._arrivals.advance(part)
        return all(self._no_longer_written(part) for part in self._parts)

    def _no_longer_written(self, part: Part) -> bool:
        # Blocks that others wait for are theirs as well; what has not set out for the pool will not, if nobody wants it.
        return part.over or (self._cancelled and (part.users > 0 or part.copying is None))

    def wait(self) -> None:
        for part in self._parts:
            if not self._no_longer_written(part):
                self._arrivals.advance(part, wait=True)

    def stirs(self) -> bool:
        return any(part.stirs() for part in self._parts if not part.over) or all(part.over for part in self._parts)

    @property
    def ends_s(self) -> float:
        return min((part.ends_s for part in self._parts if not part.over), default=-inf)

    def end(self) -> int:
        self.cancel()
        there = 0
        for part, tokens in zip(self._parts, self._tokens, strict=True):
            if part.error is not None or not part.over:
                break
            there += tokens
        return there
