"""The depth seam: which blocks run. Physical blocks (weights) are separate from sites (position in the stack, KV)."""

from __future__ import annotations

from typing import Protocol

from hasten.engine.sequence import Sequence

Program = tuple[tuple[int, int], ...]
"""(block, site) calls of one forward pass, in order. KV belongs to the site, so a repeated block needs a second site."""


class Depth(Protocol):
    """Says per sequence which blocks run. Sequences of unlike programs run as separate passes of one step. A program must not
    change while a sequence holds KV that a site of the new program lacks."""

    def sites(self, blocks: int) -> int:
        """How many sites a model of so many blocks needs; the pool is sized in sites."""
        ...

    def program(self, sequence: Sequence, blocks: int) -> Program: ...
