"""Block groups: a sequence's blocks lie in long contiguous runs, so that moving them takes few large copies.

From FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving (Shen et al., 2024). A
sequence gets blocks out of a contiguous group, of which what it does not need yet is kept for it to grow into; outside, its
blocks are an ordinary block table. Free runs merge with their neighbours; when no other run is as good, the unused tail of
another sequence's group is split, and its owner keeps the nearer part. Exact. O(log runs) comparisons a call, plus the blocks.

Reconstructed: the paper names the initial size (about 60), merging and splitting, not which run is taken. Here it is the
smallest that holds the whole group, else the longest. A kept tail has no owner's name: it belongs to whoever holds the block
before it, and is void when that block comes back. It still counts as free.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    group: int = 60
    """Blocks of a group."""


class _Runs:
    """Disjoint runs of blocks, found by either end and by length."""

    def __init__(self) -> None:
        self.length: dict[int, int] = {}
        """By first block."""
        self.before: dict[int, int] = {}
        """First block by the block behind the last."""
        self.sizes: list[tuple[int, int]] = []
        """(length, first block), ascending."""

    def add(self, start: int, length: int) -> None:
        if length:
            self.length[start] = length
            self.before[start + length] = start
            insort(self.sizes, (length, start))

    def remove(self, start: int) -> int:
        """The length of the run that begins at `start`."""
        length = self.length.pop(start)
        del self.before[start + length]
        del self.sizes[bisect_left(self.sizes, (length, start))]
        return length

    @property
    def longest(self) -> int:
        return self.sizes[-1][0] if self.sizes else 0


class BlockGroups:
    """An `Allocator` over `blocks` blocks. Raises ValueError for groups of less than a block."""

    def __init__(self, blocks: int, options: Options) -> None:
        if options.group < 1:
            raise ValueError(f"block-groups: group must be at least 1, got {options.group}")
        self._group = self.together = options.group
        self._open = _Runs()
        """Free for anybody; no two of them touch."""
        self._kept = _Runs()
        """Free, and meant for the holder of the block before."""
        self._open.add(0, blocks)
        self._free = blocks

    @property
    def free(self) -> int:
        return self._free

    def take(self, count: int, near: int = -1) -> list[int]:
        self._free -= count
        taken: list[int] = []
        if near >= 0 and count and (near + 1 in self._kept.length or near + 1 in self._open.length):
            self._go_on(near + 1, count, taken)
        while len(taken) < count:
            self._begin(count - len(taken), taken)
        return taken

    def _go_on(self, start: int, count: int, taken: list[int]) -> None:
        """Take from the run that begins right behind the sequence's last block."""
        if start in self._kept.length:
            length = self._kept.remove(start)
            use = min(length, count)
            self._kept.add(start + use, length - use)
            taken.extend(range(start, start + use))
        else:
            self._use(start, self._open.remove(start), count, taken)

    def _begin(self, count: int, taken: list[int]) -> None:
        """Take from a new group."""
        sizes = self._open.sizes
        i = bisect_left(sizes, (self._whole(count), -1))
        if i == len(sizes) and self._open.longest < count and self._open.longest < (self._kept.longest + 1) // 2:
            self._split(count, taken)
            return
        start = sizes[min(i, len(sizes) - 1)][1]
        self._use(start, self._open.remove(start), count, taken)

    def _whole(self, count: int) -> int:
        """Blocks of the groups that hold `count` blocks."""
        return -(-count // self._group) * self._group

    def _use(self, start: int, length: int, count: int, taken: list[int]) -> None:
        """Take up to `count` blocks of a run that is in no list any more, keep the rest of the group, open what is beyond."""
        use = min(length, count)
        keep = min(length - use, self._whole(count) - use)
        taken.extend(range(start, start + use))
        self._kept.add(start + use, keep)
        self._open.add(start + use + keep, length - use - keep)

    def _split(self, count: int, taken: list[int]) -> None:
        """Take the far half of the longest kept tail, or more where `count` needs it."""
        length, start = self._kept.sizes[-1]
        self._kept.remove(start)
        piece = max(min(count, length), length // 2)
        self._kept.add(start, length - piece)
        use = min(piece, count)
        taken.extend(range(start + length - piece, start + length - piece + use))
        self._kept.add(start + length - piece + use, piece - use)

    def give(self, blocks: Seq[int]) -> None:
        self._free += len(blocks)
        ordered = sorted(blocks)
        first = 0
        for i in range(1, len(ordered) + 1):
            if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
                self._give(ordered[first], i - first)
                first = i

    def _give(self, start: int, length: int) -> None:
        if start + length in self._kept.length:  # its owner has left the block before it
            length += self._kept.remove(start + length)
        if start + length in self._open.length:
            length += self._open.remove(start + length)
        if start in self._open.before:
            start = self._open.before[start]
            length += self._open.remove(start)
        self._open.add(start, length)

    def runs(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(open runs, kept tails) as (first block, length), ascending."""
        return sorted(self._open.length.items()), sorted(self._kept.length.items())


TECHNIQUE = Technique(
    name="block-groups",
    seam="kv",
    summary="a sequence's blocks lie in contiguous groups, so that it moves in few large copies",
    exact=True,
    sets={"kv.allocator": "block-groups"},
    options=Options,
    make=lambda blocks, options: BlockGroups(blocks, options),
    paper="the allocator of FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware LLM Serving, 2024",
)
