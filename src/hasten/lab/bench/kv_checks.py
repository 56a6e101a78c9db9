"""Holds KV that comes back from the slower tier against what left: a guard for experiments that swap, not for timed runs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.engine.events import Event, Kind

if TYPE_CHECKING:
    from hasten.engine.loop import Engine


class KVChecks:
    """Follows a real engine: `compared` sequences came back so far, those in `wrong` with other KV than they left with."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: dict[int, bytes] = {}
        self.compared = 0
        self.wrong: list[int] = []
        engine.events.subscribe(self._follow, {Kind.SWAPPED, Kind.RESUMED})

    def _follow(self, event: Event) -> None:
        if event.kind is Kind.SWAPPED:
            self._left[event.sequence] = self._digest(event.sequence)
            return
        self.compared += 1
        if self._left.pop(event.sequence, None) != self._digest(event.sequence):
            self.wrong.append(event.sequence)

    def _digest(self, sequence: int) -> bytes:
        """Of all keys and values of a sequence, in its order, wherever they lie."""
        import torch

        executor: Any = self._engine.executor
        view = self._engine.ledger.sequences[sequence].view
        size = executor.memory.block_size
        slots = torch.from_numpy(view.slots(np.arange(view.length), size))
        digest = hashlib.blake2b(digest_size=16)
        for site in executor.memory.model.sites:
            for held in site.form.read(site.planes, slots, size):
                digest.update(held.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.digest()
