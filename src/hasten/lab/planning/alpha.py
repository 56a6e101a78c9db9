"""Finds the alpha of HexGen's dispatcher: recent calls are replayed in simulation for each value, and the best is installed.

Done again when it has become wrong: when workflows take longer than they did after the last tuning, or when their stages are
mixed differently.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hasten.lab.bench import metrics
from hasten.lab.bench.run import Run

GRID = tuple(round(0.1 * i, 1) for i in range(11))


@dataclass(frozen=True, slots=True)
class Choice:
    """`alpha`, and what each value tried gave: seconds that 95 % of the workflows (or requests) were done in."""

    alpha: float
    tried: dict[float, float]


def completion_s(run: Run, share: float = 95.0) -> float:
    """Seconds in which `share` per cent of the run's workflows were done; of its requests where it has no workflows."""
    table = metrics.requests(run)
    took_s = metrics.workflows(run, table)
    return float(np.nanpercentile(took_s if len(took_s) else table.e2e_s, share))


def tune(replay: Callable[[float], Run], grid: Sequence[float] = GRID) -> Choice:
    """`replay(alpha)` runs recent traffic. Of values that are equally good the middle one is taken."""
    tried = {alpha: completion_s(replay(alpha)) for alpha in grid}
    best = min(tried.values())
    good = [alpha for alpha, took_s in tried.items() if took_s <= best * (1 + 1e-9)]
    return Choice(good[len(good) // 2], tried)


@dataclass(slots=True)
class Drift:
    """Whether it is time to tune again. `window`: workflows that are looked at together; `worse`: by how much their mean time
    may grow, relative to the first window since the last tuning; `shift`: by how much the shares of stages may move, in
    all."""

    window: int = 50
    worse: float = 0.2
    shift: float = 0.2
    _first: list[tuple[float, Counter[str]]] = field(default_factory=list)
    _last: deque[tuple[float, Counter[str]]] = field(default_factory=deque)

    def done(self, took_s: float, stages: Iterable[str]) -> bool:
        """A workflow has ended; True when alpha should be tuned again (and this starts anew)."""
        one = took_s, Counter(stages)
        if len(self._first) < self.window:
            self._first.append(one)
            return False
        self._last.append(one)
        if len(self._last) < self.window:
            return False
        if len(self._last) > self.window:
            self._last.popleft()
        before_s, now_s = (float(np.mean([took for took, _ in part])) for part in (self._first, self._last))
        if now_s <= before_s * (1 + self.worse) and _moved(self._first, self._last) <= self.shift:
            return False
        self._first, self._last = [], deque()
        return True


def _moved(one: Iterable[tuple[float, Counter[str]]], other: Iterable[tuple[float, Counter[str]]]) -> float:
    """Total variation between the shares that stages have of all calls."""
    totals = [sum((stages for _, stages in part), Counter[str]()) for part in (one, other)]
    counts = [sum(total.values()) or 1 for total in totals]
    names = {name for total in totals for name in total}
    return sum(abs(totals[0][name] / counts[0] - totals[1][name] / counts[1]) for name in names) / 2
