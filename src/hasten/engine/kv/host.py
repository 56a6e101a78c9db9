"""The host tier: a second block pool in ordinary memory, behind asynchronous copies."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from hasten.engine.kv.base import Handle
from hasten.engine.kv.pool import BlockPool


class Copier(Protocol):
    """Moves the bytes of blocks between the pool and the host pool, in all layers (`Memory` implements it)."""

    def copy_out(self, blocks: Seq[int], host_blocks: Seq[int]) -> Handle: ...
    def copy_in(self, host_blocks: Seq[int], blocks: Seq[int]) -> Handle: ...


class HostTier:
    """`blocks` blocks of host memory."""

    def __init__(self, blocks: int, block_size: int, copier: Copier) -> None:
        self._pool = BlockPool(blocks, block_size)
        self._copier = copier

    @property
    def room(self) -> int:
        return self._pool.free

    def put(self, blocks: Seq[int]) -> tuple[list[int], Handle]:
        stored = self._pool.take(len(blocks))
        return stored, self._copier.copy_out(blocks, stored)

    def get(self, stored: Seq[int], blocks: Seq[int]) -> Handle:
        return self._copier.copy_in(stored, blocks)

    def forget(self, stored: Seq[int]) -> None:
        self._pool.drop(stored)
