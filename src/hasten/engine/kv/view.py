"""A view: which KV one sequence reads, in order, as runs of slots. Pure book-keeping in numpy."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from hasten.engine.kv.base import Ints


class View:
    """The entries of a sequence's KV. Entry i is the KV of the sequence's i-th token (a policy that merges or drops entries
    keeps a view of its own).

    `runs` int32 [n, 4]: (block, first slot, count, position of the first); a run's entries lie in consecutive slots of one
    block and have consecutive positions, so every entry has its own position and a block may be partly used or appear more
    than once. `blocks` says how many runs of this view lie in each block; the pool counts the view once per block.
    """

    __slots__ = ("_last", "_runs", "_starts", "blocks", "length")

    def __init__(self) -> None:
        self._runs = np.empty((8, 4), dtype=np.int32)
        self._last: tuple[int, int, int, int] | None = None
        """The last run once more: it is asked for in every step."""
        self._starts: list[int] = []
        self.blocks: dict[int, int] = {}
        self.length = 0

    @property
    def runs(self) -> Ints:
        return self._runs[: len(self._starts)]

    @property
    def run_count(self) -> int:
        return len(self._starts)

    def last_run(self) -> tuple[int, int, int, int] | None:
        """(block, first slot, count, position of the first), None in an empty view."""
        return self._last

    def _read_last(self) -> None:
        n = len(self._starts)
        self._last = tuple(self._runs[n - 1].tolist()) if n else None

    def _reserve(self, count: int) -> None:
        n = len(self._starts)
        if n + count > len(self._runs):
            grown = np.empty((max(2 * n, n + count), 4), dtype=np.int32)
            grown[:n] = self._runs[:n]
            self._runs = grown

    def add_run(self, block: int, first: int, count: int, position: int) -> None:
        n = len(self._starts)
        self._reserve(1)
        self._last = self._runs[n] = (block, first, count, position)
        self._starts.append(self.length)
        self.length += count
        self.blocks[block] = self.blocks.get(block, 0) + 1

    def add_blocks(self, blocks: Sequence[int], size: int, count: int, position: int) -> None:
        """Runs of `count` entries in all that fill `blocks`, new to this view, from their first slots, each but the last
        wholly."""
        n, fresh = len(self._starts), len(blocks)
        self._reserve(fresh)
        runs = self._runs[n : n + fresh]
        runs[:, 0] = blocks
        runs[:, 1] = 0
        runs[:, 2] = size
        runs[:, 3] = np.arange(position, position + fresh * size, size)
        runs[-1, 2] = count - (fresh - 1) * size
        self._starts.extend(range(self.length, self.length + fresh * size, size))
        self.length += count
        self.blocks.update(dict.fromkeys(blocks, 1))
        self._read_last()

    def extend_last(self, count: int) -> None:
        assert self._last is not None
        block, first, held, position = self._last
        self._last = (block, first, held + count, position)
        self._runs[len(self._starts) - 1, 2] = held + count
        self.length += count

    def cut(self, length: int) -> list[int]:
        """Keep the first `length` entries; the blocks that this view no longer holds."""
        if length == 0:
            left = list(self.blocks)
            self.blocks.clear()
            self._starts.clear()
            self.length, self._last = 0, None
            return left
        left = []
        while self.length > length:
            n = len(self._starts) - 1
            start = self._starts[n]
            if start < length:
                self._runs[n, 2] = length - start
                self.length = length
                break
            left += self._forget(int(self._runs[n, 0]))
            self._starts.pop()
            self.length = start
        self._read_last()
        return left

    def _forget(self, block: int) -> list[int]:
        self.blocks[block] -= 1
        if self.blocks[block]:
            return []
        del self.blocks[block]
        return [block]

    def replace_block(self, old: int, new: int) -> None:
        """Every run in `old` now lies in `new`, at the same slots."""
        runs = self.runs
        runs[runs[:, 0] == old, 0] = new
        self.blocks[new] = self.blocks.pop(old)
        self._read_last()

    def remap(self, mapping: dict[int, int]) -> None:
        """Move all runs to other blocks at once (a view coming back from another tier)."""
        runs = self.runs
        runs[:, 0] = [mapping[block] for block in runs[:, 0].tolist()]
        self.blocks = {mapping[block]: count for block, count in self.blocks.items()}
        self._read_last()

    def copy(self) -> View:
        other = View()
        other._runs = self._runs[: max(8, len(self._starts) + 1)].copy()
        other._last = self._last
        other._starts = self._starts.copy()
        other.blocks = self.blocks.copy()
        other.length = self.length
        return other

    def run_of(self, entry: int) -> int:
        """Index of the run that holds `entry`."""
        return bisect_right(self._starts, entry) - 1

    def slots(self, entries: np.ndarray, block_size: int) -> np.ndarray:
        """Slot numbers (block * block_size + offset) int64 of `entries` int [n]."""
        starts = np.asarray(self._starts, dtype=np.int64)
        which = np.searchsorted(starts, entries, side="right") - 1
        runs = self.runs[which].astype(np.int64)
        return runs[:, 0] * block_size + runs[:, 1] + (np.asarray(entries, dtype=np.int64) - starts[which])

    def part(self, start: int, stop: int) -> Ints:
        """Runs int32 [n, 4] of the entries [start, stop), at least one, in memory of their own."""
        first, last = self.run_of(start), self.run_of(stop - 1)
        runs: Ints = self._runs[first : last + 1].copy()
        runs[-1, 2] = stop - self._starts[last]
        over = start - self._starts[first]
        runs[0, 1] += over
        runs[0, 2] -= over
        runs[0, 3] += over
        return runs

    def positions(self) -> Ints:
        """Position of every entry, int32 [length]."""
        runs = self.runs
        if not len(runs):
            return np.empty(0, dtype=np.int32)
        out = np.concatenate([np.arange(p, p + c, dtype=np.int32) for _, _, c, p in runs.tolist()])
        return out

    def full_blocks(self, start: int, stop: int, block_size: int) -> list[int]:
        """The blocks that hold entries [i * block_size, (i + 1) * block_size) in one full run each, for i from `start` on, up
        to `stop` or the first for which there is none."""
        first = self.run_of(start * block_size)
        if first < 0 or self._starts[first] != start * block_size:
            return []
        runs = self.runs[first : first + stop - start]
        # Full runs one after the other begin at multiples of the block size by themselves.
        whole = (runs[:, 1] == 0) & (runs[:, 2] == block_size)
        count = len(runs) if whole.all() else int(whole.argmin())
        blocks: list[int] = runs[:count, 0].tolist()
        return blocks


def beside(runs: Ints, first: int, stop: int, last: int) -> tuple[Ints, int]:
    """Of runs int32 [n, 4] the entries at positions up to `last`, those at [first, stop) before all others, and how many runs
    these are. No run lies on both sides of `first` or `stop`."""
    position = runs[:, 3]
    contexts = (position >= first) & (position < stop) & (position <= last)
    others = (position <= last) & ~contexts
    ordered = np.concatenate([runs[contexts], runs[others]])
    np.minimum(ordered[:, 2], last + 1 - ordered[:, 3], out=ordered[:, 2])
    return ordered, int(contexts.sum())
