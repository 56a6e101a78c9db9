"""Where the time of a command's start goes, written to standard error for `hasten bench startup`, which asks for it with
HASTEN_STARTUP_TIMES in the environment."""

from __future__ import annotations

import json
import os
import sys
import time


class Stages:
    """Starts when made. Who started the process knows how long that took before, hence `began_at`, the time of day."""

    def __init__(self) -> None:
        self._began_at = time.time()
        self._began_s = self._last_s = time.perf_counter()
        self._stages: dict[str, float] = {}

    def ended(self, stage: str, following: dict[str, float] | None = None) -> None:
        """What was done since the last stage was this one, and then those `following`, whose seconds are known."""
        now, known = time.perf_counter(), following or {}
        self._stages |= {stage: now - self._last_s - sum(known.values()), **known}
        self._last_s = now

    @property
    def total_s(self) -> float:
        return self._last_s - self._began_s

    def tell(self, more: dict[str, float], sizes: dict[str, int]) -> None:
        """One line of JSON, if it is asked for. `more`: stages that were timed elsewhere. `sizes`: in bytes."""
        if os.environ.get("HASTEN_STARTUP_TIMES"):
            line = {"began_at": self._began_at, "stages": self._stages | more, "sizes": sizes}
            print(json.dumps(line), file=sys.stderr)
