"""Loads: KV that a look-up found in slower tiers and that is fetched for a sequence before it runs.

Who loads what, and since when; which state a sequence is in is the ledger's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import numpy as np

from hasten.engine.kv.base import Ints, Load
from hasten.engine.sequence import Sequence

_NOTHING = np.empty((0, 4), dtype=np.int32)


class Loads:
    """By sequence: what was found for those that have not started, with the tokens that it covers behind their views, and what
    is under way for those that wait for it, with the tokens that it covers at the ends of their views."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Load, int]] = {}
        self._under_way: dict[int, tuple[Load, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._under_way)

    def __contains__(self, seq: Sequence) -> bool:
        """It waits for KV."""
        return seq.id in self._under_way

    def found(self, seq: Sequence, load: Load, tokens: int) -> None:
        assert seq.id not in self._found, "a load is the last of what is found"
        self._found[seq.id] = (load, tokens)

    def promised(self, seq: Sequence) -> int:
        """Tokens that were found for it and that would be fetched before it starts."""
        return self._found[seq.id][1] if self._found and seq.id in self._found else 0

    def forget(self, seq: Sequence) -> None:
        """It will not start after all."""
        self._found.pop(seq.id, None)

    def begin(self, seq: Sequence) -> Ints:
        """It is to start: fetch what was found for it. The runs of blocks that are taken for that, none where nothing was found
        or is there any more. Raises NoBlocks; then it is forgotten."""
        found = self._found.pop(seq.id, None)
        if found is None:
            return _NOTHING
        runs = found[0].begin()
        if len(runs):
            self._under_way[seq.id] = (found[0], int(runs[:, 2].sum()))
        return runs

    def cancel(self, seq: Sequence) -> bool:
        """Nobody wants it any more; whether nothing writes its blocks already."""
        load, _ = self._under_way[seq.id]
        load.cancel()
        return load.done()

    def done(self) -> list[int]:
        """Sequences whose loads are over."""
        return [id for id, (load, _) in self._under_way.items() if load.done()]

    def end(self, seq: Sequence) -> tuple[int, int]:
        """(tokens that came, tokens that did not)."""
        load, tokens = self._under_way.pop(seq.id)
        came = load.end()
        return came, tokens - came

    @property
    def ends_s(self) -> float:
        """As `kv.base.Handle.ends_s`, of whichever is first."""
        return min((load.ends_s for load, _ in self._under_way.values()), default=inf)

    def stirs(self) -> bool:
        """One of them has got further. Changes nothing."""
        return any(load.stirs() for load, _ in list(self._under_way.values()))

    def audit(self, opened: Iterable[int], loading: Iterable[int]) -> None:
        assert self._found.keys() <= set(opened), "a load was found for a sequence that was not looked after"
        assert self._under_way.keys() <= set(loading), "a sequence that loads is in another state"
