"""The KV books: views that grow, fork, are cut and joined over one pool, with copy on write.

No tensors here: what must happen to the bytes (blocks to copy before the next step) is left in `copies` for the executor.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.base import Ints, NoBlocks, Reuse, Shift
from hasten.engine.kv.chunks import ChunkStore
from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.view import View

Slots = npt.NDArray[np.int64]


class Books:
    """The core's ledger of KV. Every method either succeeds or raises NoBlocks with nothing changed."""

    def __init__(self, pool: BlockPool, reuse: Reuse | None = None) -> None:
        self.pool = pool
        self.reuse = reuse
        self.chunks: ChunkStore | None = None
        self.copies: list[tuple[int, int]] = []
        """(from block, to block) to be copied, in order, before the next step reads or writes KV."""
        self.shifts: list[Shift] = []
        """Blocks to be copied with their keys turned to other positions, before `copies`; those they read are held until
        then."""

    @property
    def available(self) -> int:
        return self.pool.available

    def _take(self, count: int, near: int = -1, *, in_turn: bool = False) -> list[int]:
        short = count - self.pool.free
        if short > 0 and self.chunks is not None:
            self._evict(max(short, self.pool.together), self.chunks)
        elif short > 0 and self.reuse is not None:
            self.reuse.evict(max(short, self.pool.together))
        return self.pool.take(count, near, in_turn=in_turn)

    def _evict(self, count: int, chunks: ChunkStore) -> None:
        """Whichever of the two caches has more than its share loses first."""
        caches = [chunks, self.reuse] if chunks.exceeds else [self.reuse, chunks]
        for cache in caches:
            if cache is not None and count > 0:
                count -= cache.evict(count)

    def take(self, count: int, near: int = -1) -> list[int]:
        """Blocks that nobody else holds. Raises NoBlocks."""
        return self._take(count, near)

    def blocks_needed(self, view: View, entries: int) -> int:
        """New blocks that appending `entries` consecutive tokens takes (a shared tail is copied, which takes one)."""
        if entries <= 0:
            return 0
        last = view.last_run()
        size = self.pool.block_size
        room = size - last[1] - last[2] if last is not None else 0
        if last is None or room == 0:
            return -(-entries // size)
        shared = 1 if self.pool.refs[last[0]] > 1 else 0
        return shared if entries <= room else shared + -(-(entries - room) // size)

    def append(self, view: View, positions: Ints) -> Slots:
        """Grow `view` by entries at `positions` int32 [n]; their slots int64 [n]."""
        n = len(positions)
        size = self.pool.block_size
        last = view.last_run()
        if n == 1 and last is not None:  # the decode step: one more token behind the last one
            block, first, count, position = last
            if first + count < size and self.pool.refs[block] == 1 and positions[0] == position + count:
                view.extend_last(1)
                return np.array([block * size + first + count], dtype=np.int64)
        near = last[0] if last is not None else -1
        fresh = self._take(self.blocks_needed(view, n), near)
        if last is not None and last[1] + last[2] < size and self.pool.refs[last[0]] > 1:
            self._repoint(view, last[0], fresh.pop(0))
        slots = np.empty(n, dtype=np.int64)
        done = 0
        breaks = (np.flatnonzero(np.diff(positions) != 1) + 1).tolist() if n > 1 else []
        for stop in [*breaks, n]:
            self._fill(view, slots[done:stop], int(positions[done]), fresh)
            done = stop
        return slots

    def _fill(self, view: View, slots: Slots, position: int, fresh: list[int]) -> None:
        """Add len(slots) entries at positions from `position` on: what room the last block has, then blocks of `fresh`."""
        size, left, done = self.pool.block_size, len(slots), 0
        last = view.last_run()
        if last is not None and (begin := last[1] + last[2]) < size:
            done = min(left, size - begin)
            slots[:done] = np.arange(last[0] * size + begin, last[0] * size + begin + done)
            if position == last[3] + last[2]:
                view.extend_last(done)
            else:
                view.add_run(last[0], begin, done, position)
        if done < left:
            blocks = fresh[: -(-(left - done) // size)]
            del fresh[: len(blocks)]
            first = np.array(blocks, dtype=np.int64)[:, None] * size
            slots[done:] = (first + np.arange(size)).ravel()[: left - done]
            view.add_blocks(blocks, size, left - done, position + done)

    def extend(self, view: View, count: int) -> None:
        """Grow a view that is not empty by `count` entries at the positions that follow."""
        last = view.last_run()
        assert last is not None
        block, first, held, position = last
        room = self.pool.block_size - first - held
        if count <= room and self.pool.refs[block] == 1:
            view.extend_last(count)
            return
        fresh = self._take(self.blocks_needed(view, count), block)
        if room and self.pool.refs[block] > 1:
            self._repoint(view, block, fresh.pop(0))
        here = min(room, count)
        view.extend_last(here)
        if here < count:
            view.add_blocks(fresh, self.pool.block_size, count - here, position + held + here)

    def _repoint(self, view: View, old: int, new: int) -> None:
        """Copy on write: `view` leaves the shared block `old` for the fresh block `new`."""
        self.copies.append((old, new))
        view.replace_block(old, new)
        self.pool.drop([old])

    def rewrite(self, view: View, entries: np.ndarray) -> Slots:
        """Slots int64 [n] of existing `entries`, made exclusive to `view` so that they may be overwritten."""
        size = self.pool.block_size
        slots = view.slots(entries, size)
        blocks = dict.fromkeys((slots // size).tolist())
        shared = [b for b in blocks if self.pool.refs[b] > 1]
        self.pool.write(b for b in blocks if self.pool.refs[b] == 1)
        if not shared:
            return slots
        for old, new in zip(shared, self._take(len(shared)), strict=True):
            self._repoint(view, old, new)
        return view.slots(entries, size)

    def fork(self, view: View) -> View:
        self.pool.share(view.blocks)
        return view.copy()

    def link(self, view: View, runs: Ints) -> None:
        """Append runs of blocks whose references the caller already holds for this view (one per block named)."""
        for block, first, count, position in runs.tolist():
            if block in view.blocks:
                self.pool.drop([block])
            view.add_run(block, first, count, position)

    def join(self, views: Seq[View], skips: Seq[int]) -> View:
        """A view that reads all of `views`, one after the other, without the first `skips[i]` entries of each."""
        joined = View()
        for view, skip in zip(views, skips, strict=True):
            for block, first, count, position in view.runs.tolist():
                over = min(skip, count)
                skip -= over
                if over < count:
                    joined.add_run(block, first + over, count - over, position + over)
        self.pool.share(joined.blocks)
        return joined

    def bring(self, shift: Shift) -> None:
        """Have a block copied into another one, which the caller has taken."""
        self.pool.share([shift.source])
        self.shifts.append(shift)

    def shift(self, carry_out: Callable[[Seq[Shift]], None]) -> None:
        """Have `shifts` carried out."""
        shifts, self.shifts = self.shifts, []
        carry_out(shifts)
        self.pool.drop(shift.source for shift in shifts)

    def truncate(self, view: View, length: int) -> None:
        left = view.cut(length)
        self.pool.drop(left)
        if self.shifts:  # what is free must not be written
            over = [shift for shift in self.shifts if not self.pool.refs[shift.target]]
            self.shifts = [shift for shift in self.shifts if self.pool.refs[shift.target]]
            self.pool.drop(shift.source for shift in over)

    def close(self, view: View) -> None:
        self.truncate(view, 0)

    def take_copies(self) -> list[tuple[int, int]]:
        copies, self.copies = self.copies, []
        return copies

    def receive(self, count: int) -> list[int]:
        """Blocks that a copy will write, which begins when those asked for before have ended."""
        return self._take(count, in_turn=True)

    def adopt(self, view: View, mapping_from: Seq[int]) -> dict[int, int]:
        """Give `view`, whose runs name blocks of another tier, fresh blocks here, which a copy will write; {other tier's block:
        ours}."""
        fresh = self.receive(len(mapping_from))
        mapping = dict(zip(mapping_from, fresh, strict=True))
        view.remap(mapping)
        return mapping


__all__ = ["Books", "NoBlocks"]
