"""How fast a stream of tokens comes: time to the first one, and between those after it."""

from __future__ import annotations

import time


class Pace:
    """Starts when made. `loaded_s`: what loading took before that, if it is to be told."""

    def __init__(self, loaded_s: float | None = None) -> None:
        self._loaded_s = loaded_s
        self._began_s = time.perf_counter()
        self._first_s = self._last_s = self._began_s
        self.tokens = 0

    def add(self, count: int) -> None:
        """`count` tokens have just come."""
        if not count:
            return
        self._last_s = time.perf_counter()
        if not self.tokens:
            self._first_s = self._last_s
        self.tokens += count

    @property
    def ttft_s(self) -> float:
        return self._first_s - self._began_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None before there is a second."""
        return (self._last_s - self._first_s) / (self.tokens - 1) if self.tokens > 1 else None

    def summary(self) -> str:
        if not self.tokens:
            return "no tokens"
        parts = [] if self._loaded_s is None else [f"start-up {self._loaded_s:.2f} s"]
        parts.append(f"TTFT {self.ttft_s * 1e3:.0f} ms")
        if self.tpot_s:
            parts.append(f"TPOT {self.tpot_s * 1e3:.1f} ms ({1 / self.tpot_s:.0f} tokens/s)")
        parts.append(f"{self.tokens} token{'s' if self.tokens > 1 else ''}")
        return ", ".join(parts)
