"""The pace of an engine: what its steps take and whom that is to be charged to, learned from a frame of steps at a time."""

from __future__ import annotations

from hasten.engine.events import Event, Kind
from hasten.engine.executors.cost import StepShape
from hasten.engine.scheduling.base import View
from hasten.engine.scheduling.gain import Prices

_FIRST = 32
"""Rows that a first step is taken to have, before any was seen."""
_CHUNK = 512
"""Prompt tokens of a step, likewise; and the piece that prices are taken over."""


class Pace:
    """Counts the steps of a frame and keeps the means of the one before. Its users hand on events of the kinds LEARNS_FROM."""

    LEARNS_FROM = frozenset({Kind.STEP, Kind.MEMORY, Kind.READ, Kind.TRANSFER_DONE})

    def __init__(self, frame: int) -> None:
        self._frame = frame
        self.left = frame
        """Steps until the frame ends."""
        self.block_copy_s = 0.0
        """Seconds that copying a block between the tiers takes, as the last transfer took."""
        self.interval_s: float | None = None
        """Mean seconds of a step; None before any frame has ended."""
        self._rows = self._cached = self._prompts = 0.0
        self._sums = [0.0] * 4
        """Seconds, tokens, rows and cached tokens of this frame's steps so far."""
        self._prices: Prices | None = None

    def learn(self, event: Event) -> bool:
        """Whether a frame has ended by this event. Prices stay what they are until then."""
        kind = event.kind
        if kind is Kind.STEP:
            self._sums[0] += event.b
            self._sums[1] += event.a
            self.left -= 1
        elif kind is Kind.MEMORY:
            self._sums[2] += event.b
        elif kind is Kind.READ:
            # The last event of a step.
            self._sums[3] += event.a
            if self.left <= 0:
                self._turn()
                return True
        elif event.a > 0:
            self.block_copy_s = event.b / event.a
        return False

    def _turn(self) -> None:
        seconds, tokens, rows, cached = (total / self._frame for total in self._sums)
        self.interval_s, self._rows, self._cached = seconds, rows, cached
        self._prompts = max(0.0, tokens - rows)
        self._sums = [0.0] * 4
        self.left = self._frame
        self._prices = None

    def prices(self, view: View) -> Prices:
        """By differences of the cost model around the mean step: each row's share of a step that only decodes, and what prompt
        tokens add to it."""
        if self._prices is not None:
            return self._prices
        rows = max(1, round(self._rows) or _FIRST)
        cached = round(self._cached) or rows * _CHUNK
        decode_s = view.price(StepShape(rows, rows, rows, cached, cached))
        more_s = view.price(StepShape(rows, rows, rows, cached + _CHUNK, cached + _CHUNK))
        mixed_s = view.price(StepShape(rows + _CHUNK, rows + 1, rows, cached, cached))
        paired_s = view.price(StepShape(rows + _CHUNK, rows + 1, rows, cached, cached + _CHUNK * _CHUNK))
        cached_s = max(0.0, more_s - decode_s) / _CHUNK
        kv_tokens = view.total_blocks * view.block_size
        self._prices = Prices(
            interval_s=self.interval_s if self.interval_s is not None else mixed_s,
            token_s=max(1e-9, (mixed_s - decode_s) / _CHUNK),
            row_s=max(1e-9, (decode_s - cached * cached_s) / rows),
            cached_s=cached_s,
            pair_s=max(0.0, (paired_s - mixed_s) / _CHUNK**2),
            chunk=max(self._prompts, _CHUNK) if self._prompts else _CHUNK,
            kv_tokens=kv_tokens,
            occupied=min(1.0, self._cached / kv_tokens),
        )
        return self._prices
