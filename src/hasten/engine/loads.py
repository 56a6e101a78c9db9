"""Loads: KV that a look-up found in slower tiers and that is fetched for a sequence before it runs.

Who loads what, and since when; which state a sequence is in is the ledger's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from hasten.engine.kv.base import Load
from hasten.engine.sequence import Sequence


class Loads:
    """By sequence: what was found for those that have not started, and what is under way for those that wait for it, each with
    the tokens that it covers at the end of the sequence's view."""

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

    def forget(self, seq: Sequence) -> None:
        """It will not start after all."""
        found = self._found.pop(seq.id, None)
        if found is not None:
            found[0].abandon()

    def begin(self, seq: Sequence) -> bool:
        """It is to start: whether something must be fetched first. That is under way now."""
        found = self._found.pop(seq.id, None)
        if found is None:
            return False
        self._under_way[seq.id] = found
        found[0].begin()
        return True

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
        """Engine time when it is worth looking after them again (`kv.base.Handle.ends_s`)."""
        return min((load.ends_s for load, _ in self._under_way.values()), default=-inf)

    def stirs(self) -> bool:
        """One of them has got further. Changes nothing."""
        return any(load.stirs() for load, _ in list(self._under_way.values()))

    def audit(self, opened: Iterable[int], loading: Iterable[int]) -> None:
        assert self._found.keys() <= set(opened), "a load was found for a sequence that was not looked after"
        assert self._under_way.keys() <= set(loading), "a sequence that loads is in another state"
