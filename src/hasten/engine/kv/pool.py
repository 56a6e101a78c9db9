"""The block pool: reference counts over an allocator. Numbers only; the tensors are `Memory`'s."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from hasten.engine.kv.base import Allocator, Handle, NoBlocks
from hasten.engine.kv.free_list import FreeList


def longest_runs(blocks: Iterable[int], count: int) -> list[int]:
    """`count` of `blocks` in few contiguous runs: of the shortest that holds them all, else of the longest ones."""
    ordered = sorted(blocks)
    runs: list[list[int]] = []
    for block in ordered:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    runs.sort(key=len)
    taken: list[int] = []
    while len(taken) < count:
        short = count - len(taken)
        taken += next((run for run in runs if len(run) >= short), runs[-1])[:short]
        runs.pop()
    return taken


class BlockPool:
    """Counts who holds each of `blocks` blocks of `block_size` slots.

    A block that only a cache holds (`cache`, and a count of one) is *evictable*: it counts as available, because the
    cache gives it back on demand. A block that a copy to the slower tier still reads may be let go of by its holder; it is
    *leaving* then. Those who will write it in a step get it only when no other is free, and wait for that copy (`take_waits`);
    copies from the slower tier, which queue up behind, may have it at once.
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
        self._reading: dict[int, Handle] = {}
        """The copy that reads a block, held or not."""
        self._leaving: dict[int, None] = {}
        """Blocks without a holder that a copy reads, the longest waiting first."""
        self._waits: list[Handle] = []

    @property
    def free(self) -> int:
        return self._allocator.free

    @property
    def together(self) -> int:
        """Blocks that are best given up at a time (`Allocator.together`)."""
        return self._allocator.together

    @property
    def leaving(self) -> int:
        return len(self._leaving)

    @property
    def available(self) -> int:
        return self._allocator.free + self.evictable

    def take(self, count: int, near: int = -1, *, in_turn: bool = False) -> list[int]:
        """Blocks with a count of one each. Raises NoBlocks, changing nothing, when too few are free or leaving. `in_turn`: they
        are written by a copy that begins when those before it have ended. It needs to wait for nobody, so it gets those that
        are leaving, as few runs of them as will do, and others keep what is free."""
        short = count - self._allocator.free
        if short > len(self._leaving):
            raise NoBlocks(f"{count} blocks wanted, {self._allocator.free} free")
        early: list[int] = []
        if in_turn and (short > 0 or len(self._leaving) >= count):
            early = longest_runs(self._leaving, min(count, len(self._leaving)))
        elif short > 0:
            early = [block for block, _ in zip(self._leaving, range(short), strict=False)]
            self.write(early)
        for block in early:
            del self._leaving[block]
        taken = early + self._allocator.take(count - len(early), near)
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
            self._free(freed)

    def _free(self, blocks: Seq[int]) -> None:
        if self._reading:
            self._leaving.update(dict.fromkeys(block for block in blocks if block in self._reading))
            blocks = [block for block in blocks if block not in self._reading]
        self._allocator.give(blocks)

    # -- copies that read blocks ------------------------------------------------------------------------------------------

    def read(self, blocks: Iterable[int], copy: Handle) -> None:
        """`copy` reads `blocks` from now on, whoever holds them meanwhile."""
        self._reading.update(dict.fromkeys(blocks, copy))

    def read_over(self, blocks: Iterable[int], copy: Handle) -> None:
        """`copy` has ended."""
        over = [block for block in blocks if self._reading.get(block) is copy]
        for block in over:
            del self._reading[block]
        freed = [block for block in over if block in self._leaving]
        for block in freed:
            del self._leaving[block]
        self._allocator.give(freed)

    def write(self, blocks: Iterable[int]) -> None:
        """Somebody will write `blocks` in the next step: copies that read them are to be waited for."""
        if not self._reading:
            return
        for block in blocks:
            copy = self._reading.pop(block, None)
            if copy is not None and copy not in self._waits:
                self._waits.append(copy)

    def take_waits(self) -> list[Handle]:
        """The copies that must have ended before the next step writes KV."""
        waits, self._waits = self._waits, []
        return waits

    def audit(self) -> None:
        """AssertionError when the blocks without a holder are not those free and leaving (tests, debugging)."""
        unheld = self.refs.count(0)
        assert self.free + self.leaving == unheld, "the allocator disagrees with the counts"
        assert all(block in self._reading and not self.refs[block] for block in self._leaving), "a block leaves for nothing"
        evictable = sum(bool(c) and r == 1 for c, r in zip(self._cached, self.refs, strict=True))
        assert self.evictable == evictable, "the evictable count is wrong"

    # -- what caches hold -------------------------------------------------------------------------------------------------

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
        self._free(blocks)

    def disown(self, blocks: Seq[int]) -> int:
        """A cache lets go of `blocks`, whoever holds them: those that nobody else does are free; how many."""
        alone = [block for block in blocks if self.refs[block] == 1]
        for block in blocks:
            if self.refs[block] > 1:
                self.refs[block] -= 1
                self._cached[block] = 0
        self.uncache(alone)
        return len(alone)

    def is_cached(self, block: int) -> bool:
        return bool(self._cached[block])
