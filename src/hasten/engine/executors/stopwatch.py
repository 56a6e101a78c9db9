"""Where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Stopwatch:
    """Seconds by kind of op, each from one call to the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, kind: str) -> None:
        now = time.perf_counter()
        self.add(kind, now - self._last)
        self._last = now

    def add(self, kind: str, seconds: float) -> None:
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def split(self, whole: str, parts: Mapping[str, float]) -> None:
        """What is known of the parts of a kind is theirs; the rest stays."""
        for kind, seconds in parts.items():
            self.add(kind, seconds)
            self.add(whole, -seconds)
