"""Every block once, in order: the default."""

from __future__ import annotations

from functools import lru_cache

from hasten.engine.depth.base import Program
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique


@lru_cache(maxsize=8)
def _all(blocks: int) -> Program:
    return tuple((i, i) for i in range(blocks))


class AllBlocks:
    def sites(self, blocks: int) -> int:
        return blocks

    def program(self, sequence: Sequence, blocks: int) -> Program:
        return _all(blocks)


TECHNIQUE = Technique(
    name="all-blocks",
    seam="depth",
    summary="every block once, in order",
    exact=True,
    default=True,
    sets={"depth.policy": "all-blocks"},
    make=lambda context, options: AllBlocks(),
)
