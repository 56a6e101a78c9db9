"""Tiers without bytes: a second pool on the simulated executor's link, and a store that takes time."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from hasten.engine.clock import VirtualClock
from hasten.engine.executors.simulated import SimulatedExecutor, SimulatedTransfer
from hasten.engine.kv.blockfile import Head, Plane, Planes
from hasten.engine.kv.host import Run
from hasten.engine.kv.retention import Facts, Retention
from hasten.engine.kv.shelf import Entry, Shelf


@dataclass(frozen=True, slots=True)
class SimulatedPool:
    """`blocks` blocks of `block_bytes` bytes (`kv.host.SecondPool`)."""

    executor: SimulatedExecutor
    blocks: int
    block_bytes: int
    planes: tuple[Plane, ...] = ()

    def copy_out(self, runs: Seq[Run]) -> SimulatedTransfer:
        return self.executor.copy_out(runs)

    def copy_in(self, runs: Seq[Run]) -> SimulatedTransfer:
        return self.executor.copy_in(runs)

    def read(self, blocks: Seq[int]) -> Planes:
        return []

    def write(self, blocks: Seq[int], planes: Planes) -> None: ...

    def on_close(self, close: object) -> None:
        """Nothing is to be saved."""


class SimulatedStore:
    """A store (`kv.base.Store`) of `budget` bytes that reads and, beside that, writes `rate` bytes per second."""

    def __init__(self, clock: VirtualClock, budget: int, retention: Retention, rate: float) -> None:
        self._clock = clock
        self._shelf = Shelf(budget, retention)
        self._rate = rate
        self._read_free_s = 0.0
        self._write_free_s = 0.0

    def holds(self, name: bytes) -> int | None:
        entry = self._shelf.get(name)
        if entry is None:
            return None
        return entry.facts.nbytes if entry.ready else None

    def used(self, name: bytes) -> None:
        entry = self._shelf.get(name)
        if entry is not None:
            self._shelf.used_again(entry, self._shelf.tick(), found=True)

    def fetch(self, wanted: Head, blocks: Seq[int]) -> SimulatedTransfer:
        entry = self._shelf.get(wanted.name)
        if entry is None:
            raise FileNotFoundError("the chunk is not there any more")
        seconds = entry.facts.nbytes / self._rate
        self._read_free_s = max(self._clock.now(), self._read_free_s) + seconds
        return SimulatedTransfer(self._clock, self._read_free_s, seconds)

    def keep(self, head: Head, blocks: Seq[int], facts: Facts) -> SimulatedTransfer | None:
        if head.name in self._shelf:
            return None
        entry, _ = self._shelf.add(head, Facts(facts.start, facts.nbytes, facts.seconds, hits=facts.hits))
        if entry is None:
            return None
        seconds = facts.nbytes / self._rate
        self._write_free_s = max(self._clock.now(), self._write_free_s) + seconds
        return _Write(self._clock, self._write_free_s, seconds, self._shelf, entry)

    def lose(self, name: bytes) -> None:
        entry = self._shelf.get(name)
        if entry is not None:
            self._shelf.remove(entry)

    def seconds(self, nbytes: int) -> float:
        return max(0.0, self._read_free_s - self._clock.now()) + nbytes / self._rate

    def audit(self) -> None:
        self._shelf.audit()

    def close(self) -> None: ...


@dataclass(slots=True)
class _Write(SimulatedTransfer):
    shelf: Shelf
    entry: Entry

    def wait(self) -> None:
        SimulatedTransfer.wait(self)
        if not self.entry.ready:
            self.entry.ready = True
            self.shelf.unpin(self.entry)
