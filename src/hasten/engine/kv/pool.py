"""The block pool: reference counts and the free list. Numbers only; the tensors are `Memory`'s."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from hasten.engine.kv.base import Allocator, NoBlocks


class FreeList:
    """Last freed, first given: the block most likely still in the processor's caches. `near` is ignored."""

    def __init__(self, blocks: int) -> None:
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int, near: int = -1) -> list[int]:
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        return taken

    def give(self, blocks: Seq[int]) -> None:
        self._free.extend(reversed(blocks))


class BlockPool:
    """Counts who holds each of `blocks` blocks of `block_size` slots.

    A block that only a cache holds (`cache`, and a count of one) is *evictable*: it counts as available, because the
    cache gives it back on demand.
    """

    def __init__(self, blocks: int, block_size: int, allocator: Allocator | None = None) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs at least one block of one slot, got {blocks} of {block_size}")
        self.blocks = blocks
        self.block_size = block_size
        self.refs = [0] * blocks
        self._cached = bytearray(blocks)
        self._allocator = allocator if allocator is not None else FreeList(blocks)
        self.evictable = 0

    @property
    def free(self) -> int:
        return self._allocator.free

    @property
    def available(self) -> int:
        return self._allocator.free + self.evictable

    def take(self, count: int, near: int = -1) -> list[int]:
        """Blocks with a count of one each. Raises NoBlocks, changing nothing, when too few are *free*."""
        if count > self._allocator.free:
            raise NoBlocks(f"{count} blocks wanted, {self._allocator.free} free")
        taken = self._allocator.take(count, near)
        for block in taken:
            self.refs[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if self.refs[block] == 1 and self._cached[block]:
                self.evictable -= 1
            self.refs[block] += 1

    def drop(self, blocks: Iterable[int]) -> None:
        freed = []
        for block in blocks:
            self.refs[block] -= 1
            count = self.refs[block]
            if count == 0:
                freed.append(block)
            elif count == 1 and self._cached[block]:
                self.evictable += 1
            elif count < 0:
                raise AssertionError(f"block {block} was given back more often than taken")
        if freed:
            self._allocator.give(freed)

    def cache(self, blocks: Iterable[int]) -> None:
        """A cache takes a reference of each of `blocks`, which somebody else holds too."""
        for block in blocks:
            self.refs[block] += 1
            self._cached[block] = 1

    def uncache(self, blocks: Seq[int]) -> None:
        """A cache lets go of `blocks`, which nobody else holds: they are free."""
        for block in blocks:
            if self.refs[block] != 1:
                raise AssertionError(f"block {block} is read by somebody and cannot be given up")
            self.refs[block] = 0
            self._cached[block] = 0
        self.evictable -= len(blocks)
        self._allocator.give(blocks)

    def is_cached(self, block: int) -> bool:
        return bool(self._cached[block])
