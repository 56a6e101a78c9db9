"""The free list: the default allocator. Last freed, first given."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from hasten.engine.technique import Technique


class FreeList:
    """The block freed last is the one most likely still in the processor's caches. `near` is ignored. O(blocks) a call."""

    together = 1

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


TECHNIQUE = Technique(
    name="free-list",
    seam="kv",
    summary="the block freed last is given first",
    exact=True,
    default=True,
    sets={"kv.allocator": "free-list"},
    make=lambda blocks, options: FreeList(blocks),
)
