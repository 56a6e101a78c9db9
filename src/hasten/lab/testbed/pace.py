"""How far a training run is: counted in time spent training, so that a run may be suspended and resumed."""

from __future__ import annotations

import statistics
import time

# A step that takes this many times the median was interrupted, and counts for no more.
LONGEST_STEP = 5.0
LANDING_S = 60.0


class Pace:
    """The share of a run that is done, from the seconds its steps took and, where there is one, a deadline."""

    def __init__(self, minutes: float, deadline: float | None = None) -> None:
        """Plan `minutes` of training, or less where the deadline (as of time.time()) comes sooner."""
        self.spent_s = 0.0
        self._planned_s = 60 * minutes
        self._deadline = deadline
        self._steps: list[float] = []

    def count(self, step_s: float) -> None:
        """Add a step that took step_s of wall-clock time."""
        typical_s = statistics.median(self._steps[-50:] or [step_s])
        self._steps.append(step_s)
        self.spent_s += min(step_s, LONGEST_STEP * typical_s)

    def land(self, *_: object) -> None:
        """Plan to end within LANDING_S from now. It can be used as a signal handler."""
        self._deadline = min(time.time() + LANDING_S, self._deadline or float("inf"))

    def left_s(self) -> float:
        """Seconds of training to go."""
        left_s = self._planned_s - self.spent_s
        return left_s if self._deadline is None else min(left_s, self._deadline - time.time())

    def progress(self) -> float:
        """Share of the run that is done; 1 or more means that it is over. It jumps ahead when a deadline draws near."""
        left_s = self.left_s()
        return 1.0 if left_s <= 0 else self.spent_s / (self.spent_s + left_s)
