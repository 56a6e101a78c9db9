"""Policies of keeping pods warm, from the fixed keep-alive to one that prices an idle second.

The fixed keep-alive of 60 s, reset by each request, is the default of the platform of Serverless Cold Starts (Joosen et al.,
2025), which names the others as what its traces call for. The histogram follows the idea of Serverless in the Wild (Shahrad et
al., 2020): each function's own history of idle times decides how long to keep it and when to start it again. There the window
is cut at percentiles (5 and 99); here it is the one that saves the most cold waits at a price of idle seconds, so that one
number, `worth_s`, moves all functions along the frontier together.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hasten.lab.bench.run import Floats
from hasten.lab.planning.invocations import Function
from hasten.lab.planning.keepalive import Prewarm

LEAD_QUANTILE = 0.95
"""Early starts begin so much ahead that this share of them is ready in time."""
_HISTORY = 200
_SLACK_S = 5.0
"""How much later than foreseen an invocation may come and still find its pod."""


class Starts:
    """Start-up times seen so far, and the lead they call for."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, start_s: float) -> None:
        self._recent.append(start_s)
        insort(self._sorted, start_s)
        if len(self._recent) > _HISTORY:
            self._sorted.remove(self._recent.popleft())

    @property
    def lead_s(self) -> float:
        return self._sorted[int(LEAD_QUANTILE * (len(self._sorted) - 1))] if self._sorted else 0.0


class FixedKeepAlive:
    """Every idle pod is kept for `keep_s`."""

    def __init__(self, functions: Sequence[Function], keep_s: float = 60.0) -> None:
        if not keep_s >= 0:
            raise ValueError(f"keep_s must be a number of seconds from 0 on, got {keep_s!r}")
        self.functions = functions
        self.keep_s = keep_s
        self.pool: dict[str, int] = {}
        self.pool_share = 0.0

    def arrived(self, function: int, now_s: float) -> Prewarm | None:
        return None

    def idle(self, function: int, now_s: float) -> tuple[float, Prewarm | None]:
        return self.keep_s, None

    def started(self, function: int, start_s: float) -> None: ...

    def delay_s(self, function: int) -> float:
        return 0.0


class ReservedPool(FixedKeepAlive):
    """`size` generic pods of each resource class stand ready; taking one saves `share` of a start."""

    def __init__(self, functions: Sequence[Function], size: int, share: float, keep_s: float = 60.0) -> None:
        super().__init__(functions, keep_s)
        self.pool = {f.resources: size for f in functions}
        self.pool_share = share


class DelayPeaks(FixedKeepAlive):
    """An asynchronous invocation waits up to `patience_s` for a busy pod: a burst is worked off by fewer pods, later."""

    def __init__(self, functions: Sequence[Function], patience_s: float, keep_s: float = 60.0) -> None:
        super().__init__(functions, keep_s)
        self.patience_s = patience_s

    def delay_s(self, function: int) -> float:
        return 0.0 if self.functions[function].synchronous else self.patience_s


class TimerAware(FixedKeepAlive):
    """Pods of timers are ended at once and started again just before the timer fires; the others are kept for `keep_s`."""

    def __init__(self, functions: Sequence[Function], keep_s: float = 60.0) -> None:
        super().__init__(functions, keep_s)
        self.starts = Starts()
        self.fired_s: dict[int, float] = {}

    def started(self, function: int, start_s: float) -> None:
        self.starts.add(start_s)

    def arrived(self, function: int, now_s: float) -> Prewarm | None:
        self.fired_s[function] = now_s
        return None

    def idle(self, function: int, now_s: float) -> tuple[float, Prewarm | None]:
        period_s = self.functions[function].period_s
        if period_s is None:
            return super().idle(function, now_s)
        due_s = self.fired_s[function] + period_s
        begin_s = due_s - self.starts.lead_s
        if begin_s <= now_s:
            return max(0.0, due_s + _SLACK_S - now_s), None
        return 0.0, Prewarm(function, begin_s, due_s + _SLACK_S)


class WorkflowPrewarm(FixedKeepAlive):
    """When a stage of a workflow arrives, the pod of the stage after it is started, to be ready when this one ends."""

    def __init__(self, functions: Sequence[Function], keep_s: float = 60.0) -> None:
        super().__init__(functions, keep_s)
        self.starts = Starts()
        self.arrived_s: dict[int, float] = {}
        self.spent_s: dict[int, float] = {}
        """From arrival to end, an exponential mean."""

    def started(self, function: int, start_s: float) -> None:
        self.starts.add(start_s)

    def arrived(self, function: int, now_s: float) -> Prewarm | None:
        self.arrived_s[function] = now_s
        child = self.functions[function].child
        if child is None:
            return None
        end_s = now_s + self.spent_s.get(function, 0.0)
        begin_s = max(now_s, end_s - self.starts.lead_s)
        return Prewarm(child, begin_s, end_s + self.starts.lead_s + _SLACK_S)

    def idle(self, function: int, now_s: float) -> tuple[float, Prewarm | None]:
        spent_s = now_s - self.arrived_s[function]
        before_s = self.spent_s.get(function, spent_s)
        self.spent_s[function] = before_s + 0.2 * (spent_s - before_s)
        return super().idle(function, now_s)


@dataclass(slots=True)
class _Gaps:
    """The last idle times of one kind of pod, and the window they call for, renewed when there are a quarter more."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    count: int = 0
    renew_at: int = 0
    window: tuple[float, float] = (0.0, 0.0)

    def add(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.count += 1


class Histogram:
    """Each function's own idle times decide, at a price: avoiding a cold wait is worth `worth_s` idle seconds.

    Idle times are told apart by how many other pods of the function were idle already, since the last used is used first; they
    are those that a keep-alive without end would have met, so no decision hides what it would have needed to learn. A function
    with fewer than `few` of them goes by those of its trigger."""

    few = 4

    def __init__(self, functions: Sequence[Function], worth_s: float) -> None:
        if not worth_s >= 0:
            raise ValueError(f"worth_s must be a number of idle seconds from 0 on, got {worth_s!r}")
        self.functions = functions
        self.worth_s = worth_s
        self.pool: dict[str, int] = {}
        self.pool_share = 0.0
        self.starts = Starts()
        self._unused: dict[int, list[float]] = {}
        """Since when the pods of a function would have been idle, had none ever been ended; the last used comes last."""
        self._own: dict[tuple[int, int], _Gaps] = {}
        self._pooled: dict[tuple[str, int], _Gaps] = {}

    def started(self, function: int, start_s: float) -> None:
        self.starts.add(start_s)

    def delay_s(self, function: int) -> float:
        return 0.0

    def arrived(self, function: int, now_s: float) -> Prewarm | None:
        unused = self._unused.get(function)
        if unused:
            gap_s = now_s - unused.pop()
            own, pooled = self._gaps(function, len(unused))
            own.add(gap_s)
            pooled.add(gap_s)
        return None

    def idle(self, function: int, now_s: float) -> tuple[float, Prewarm | None]:
        unused = self._unused.setdefault(function, [])
        own, pooled = self._gaps(function, len(unused))
        first = not unused
        unused.append(now_s)
        gaps = own if own.count >= self.few else pooled
        if gaps.count < self.few:
            return 60.0, None
        if gaps.count >= gaps.renew_at:
            gaps.window = best_window(np.sort(gaps.seconds), self.worth_s, self.starts.lead_s)
            gaps.renew_at = gaps.count + 1 + gaps.count // 4
        from_s, to_s = gaps.window
        if from_s == 0.0 or not first:  # an early start is for the next invocation, not for the one after it
            return (to_s if from_s == 0.0 else 0.0), None
        return 0.0, Prewarm(function, now_s + from_s - self.starts.lead_s, now_s + to_s)

    def _gaps(self, function: int, depth: int) -> tuple[_Gaps, _Gaps]:
        depth = min(depth, 8)
        trigger = self.functions[function].trigger
        return self._own.setdefault((function, depth), _Gaps()), self._pooled.setdefault((trigger, depth), _Gaps())


def best_window(gaps_s: Floats, worth_s: float, lead_s: float) -> tuple[float, float]:
    """The window (from_s, to_s) after a pod became idle in which it should be warm: from 0 on (it is kept), or from later on
    (it is ended, and started again `lead_s` before). The one with the largest `worth_s` × share of gaps in it − idle seconds,
    over the gaps float64 [n], ascending; (0, 0) where none is worth its price. A little is added at its end."""
    best, window = 0.0, (0.0, 0.0)
    for from_s in [0.0, *np.unique(np.quantile(gaps_s, np.linspace(0, 0.9, 7), method="lower"))]:
        begin_s = from_s - lead_s if from_s > 0.0 else 0.0
        if begin_s < 0.0:
            continue
        inside = gaps_s[gaps_s >= from_s]
        earlier = gaps_s[(gaps_s > begin_s) & (gaps_s < from_s)]
        until = inside * 1.05 + 1.0
        hits = np.searchsorted(inside, until, side="right")
        idle_s = np.concatenate([[0.0], np.cumsum(inside - begin_s)])[hits] + (len(inside) - hits) * (until - begin_s)
        gains = (worth_s * hits - idle_s - (earlier - begin_s).sum()) / len(gaps_s)
        at = int(np.argmax(gains))
        if gains[at] > best:
            best, window = float(gains[at]), (float(from_s), float(until[at]))
    return window


class Combined:
    """Timers by their period, later stages of workflows by their parents, and all else by the histogram. Asynchronous
    invocations wait up to `patience_s` for a busy pod."""

    def __init__(self, functions: Sequence[Function], worth_s: float, patience_s: float = 0.0) -> None:
        self.functions = functions
        self.patience_s = patience_s
        self.timers, self.workflows = TimerAware(functions), WorkflowPrewarm(functions)
        self.histogram = Histogram(functions, worth_s)
        self.pool: dict[str, int] = {}
        self.pool_share = 0.0

    def started(self, function: int, start_s: float) -> None:
        for part in (self.timers, self.workflows, self.histogram):
            part.started(function, start_s)

    def delay_s(self, function: int) -> float:
        return 0.0 if self.functions[function].synchronous else self.patience_s

    def arrived(self, function: int, now_s: float) -> Prewarm | None:
        self.timers.arrived(function, now_s)
        self.histogram.arrived(function, now_s)
        return self.workflows.arrived(function, now_s)

    def idle(self, function: int, now_s: float) -> tuple[float, Prewarm | None]:
        self.workflows.idle(function, now_s)
        by_histogram = self.histogram.idle(function, now_s)
        if self.functions[function].period_s is not None:
            return self.timers.idle(function, now_s)
        return by_histogram
