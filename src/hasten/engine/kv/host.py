"""The host tier: a second block pool in ordinary memory, behind asynchronous copies."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from hasten.engine.kv.base import Allocator, Handle
from hasten.engine.kv.blockfile import Plane, Planes
from hasten.engine.kv.pool import BlockPool

Run = tuple[int, int, int]
"""(block, host block, count): `count` blocks from each on, contiguous on both sides."""


@dataclass(slots=True)
class Traffic:
    """What was copied between the tiers so far: copy calls, and blocks, each way."""

    calls_out: int = 0
    blocks_out: int = 0
    calls_in: int = 0
    blocks_in: int = 0

    def count(self, out: bool, calls: int, blocks: int) -> None:
        if out:
            self.calls_out += calls
            self.blocks_out += blocks
        else:
            self.calls_in += calls
            self.blocks_in += blocks


class Copier(Protocol):
    """Moves the bytes of blocks between the pool and the host pool, in all layers, in the order asked for: a copy call a run
    (and layer, where they lie apart). Executors implement it."""

    @property
    def traffic(self) -> Traffic: ...
    def copy_out(self, runs: Seq[Run]) -> Handle: ...
    def copy_in(self, runs: Seq[Run]) -> Handle: ...


class SecondPool(Protocol):
    """A pool of blocks in host memory, beside the one that sequences are swapped to. Copies to and from the first pool take
    place in the order asked for, those of swapping included."""

    @property
    def blocks(self) -> int: ...
    @property
    def planes(self) -> tuple[Plane, ...]:
        """What a block is made of; nothing in a simulation."""
        ...

    @property
    def block_bytes(self) -> int: ...
    def copy_out(self, runs: Seq[Run]) -> Handle:
        """From the first pool."""
        ...

    def copy_in(self, runs: Seq[Run]) -> Handle: ...
    def read(self, blocks: Seq[int]) -> Planes:
        """What consecutive blocks hold, perhaps as views of them. From any thread."""
        ...

    def write(self, blocks: Seq[int], planes: Planes) -> None:
        """Fill consecutive blocks. From any thread."""
        ...


def runs_of(blocks: Seq[int], host_blocks: Seq[int]) -> list[Run]:
    """The fewest runs that pair the blocks off in their order."""
    runs: list[Run] = []
    first, host, count = -1, -1, 0
    for block, other in zip(blocks, host_blocks, strict=True):
        if count and block == first + count and other == host + count:
            count += 1
            continue
        if count:
            runs.append((first, host, count))
        first, host, count = block, other, 1
    if count:
        runs.append((first, host, count))
    return runs


class HostTier:
    """`blocks` blocks of host memory, placed by `allocator`. `by_block`: each block is a copy of its own."""

    def __init__(
        self, blocks: int, block_size: int, copier: Copier, allocator: Allocator | None = None, *, by_block: bool = False
    ) -> None:
        self._pool = BlockPool(blocks, block_size, allocator)
        self._copier = copier
        self._by_block = by_block

    @property
    def room(self) -> int:
        return self._pool.free

    def take(self, count: int, near: int = -1) -> list[int]:
        return self._pool.take(count, near)

    def put(self, blocks: Seq[int], stored: Seq[int]) -> Handle:
        return self._copier.copy_out(self._runs(blocks, stored))

    def get(self, stored: Seq[int], blocks: Seq[int]) -> Handle:
        return self._copier.copy_in(self._runs(blocks, stored))

    def _runs(self, blocks: Seq[int], stored: Seq[int]) -> list[Run]:
        if self._by_block:
            return [(block, host, 1) for block, host in zip(blocks, stored, strict=True)]
        return runs_of(blocks, stored)

    def forget(self, stored: Seq[int]) -> None:
        self._pool.drop(stored)

    def audit(self, stored: Iterable[int]) -> None:
        held = [0] * self._pool.blocks
        for block in stored:
            held[block] += 1
        assert held == self._pool.refs, "a host block is leaked or owned twice"
        self._pool.audit()
