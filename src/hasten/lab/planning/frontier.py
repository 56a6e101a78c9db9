"""The frontier of a keep-alive policy: cold waits against idle seconds as its knob turns, and two frontiers held together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.lab.bench.run import Floats
from hasten.lab.planning.invocations import Function, Stream
from hasten.lab.planning.keepalive import Cost, Policy, simulate
from hasten.lab.planning.keepalive_policies import (
    Combined,
    DelayPeaks,
    FixedKeepAlive,
    Histogram,
    ReservedPool,
    TimerAware,
    WorkflowPrewarm,
)

PATIENCE_S = 30.0
POOL_EVERY = 75
"""One generic pod of each resource class for so many functions."""
POOL_SHARE = 0.5
"""Of a start-up time, that taking a generic pod saves. Assumed: the paper shows pod allocation to be the largest of four parts
in Region 2, without a figure."""


@dataclass(frozen=True, slots=True)
class Family:
    """A policy with its knob turned to each of `values` in seconds. `delays`: asynchronous invocations pay with delay."""

    name: str
    knob: str
    values: tuple[float, ...]
    make: Callable[[Sequence[Function], float], Policy]
    delays: bool = False


_KEEPS = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0)
_WORTHS = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)


def _reserved(functions: Sequence[Function], keep_s: float) -> ReservedPool:
    return ReservedPool(functions, max(1, len(functions) // POOL_EVERY), POOL_SHARE, keep_s)


FIXED = Family(
    "fixed keep-alive",
    "keep",
    # Some are a little longer than a timer's period: the best that a fixed keep-alive can do for it.
    (0.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 65.0, 90.0, 120.0, 180.0, 305.0, 450.0, 605.0, 905.0, 1205.0, 1805.0, 3605.0),
    FixedKeepAlive,
)
OTHERS = (
    Family("timer-aware", "keep of the others", _KEEPS, TimerAware),
    Family("workflow prewarm", "keep of the others", _KEEPS, WorkflowPrewarm),
    Family("reserved pool", "keep", _KEEPS, _reserved),
    Family("histogram", "worth of a cold wait", _WORTHS, Histogram),
    Family("combined", "worth of a cold wait", _WORTHS, Combined),
    Family("delayed peaks", "keep", _KEEPS, lambda fs, keep_s: DelayPeaks(fs, PATIENCE_S, keep_s), delays=True),
    Family("combined, delayed peaks", "worth of a cold wait", _WORTHS, lambda fs, w: Combined(fs, w, PATIENCE_S), delays=True),
)


@dataclass(frozen=True, slots=True)
class Frontier:
    """One family on one stream: a cost for each of its values."""

    family: Family
    costs: tuple[Cost, ...]

    @property
    def idle_s(self) -> Floats:
        return np.array([cost.idle_s for cost in self.costs])

    @property
    def cold_waits(self) -> Floats:
        return np.array([float(cost.cold_waits) for cost in self.costs])

    @property
    def waited_s(self) -> Floats:
        return np.array([cost.waited_s for cost in self.costs])

    def at(self, idle_s: float, of: Floats) -> float:
        """`of` (one of the arrays above) at `idle_s`, in between linear on the lower convex hull: turning the knob one way for
        some functions and the other way for the rest gets there. NaN outside what the knob reaches."""
        x, y = lower_hull(self.idle_s, of)
        return float(np.interp(idle_s, x, y, left=np.nan, right=np.nan))


def trace(stream: Stream, family: Family, progress: Callable[[], None] = lambda: None) -> Frontier:
    """Simulate the family; `progress` is called after each value of its knob."""
    costs = []
    for value in family.values:
        costs.append(simulate(stream, family.make(stream.functions, value)))
        progress()
    return Frontier(family, tuple(costs))


def cut(baseline: Frontier, other: Frontier, idle_s: float) -> tuple[float, float]:
    """By what share `other` has fewer cold waits, and fewer seconds waited for starts, than the baseline at `idle_s`; NaN where
    either does not reach there."""
    waits = other.at(idle_s, other.cold_waits) / baseline.at(idle_s, baseline.cold_waits)
    waited = other.at(idle_s, other.waited_s) / baseline.at(idle_s, baseline.waited_s)
    return 1.0 - waits, 1.0 - waited


def lower_hull(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The lower convex hull of points float64 [n], by ascending x from the least x to the greatest (Andrew, 1979)."""
    hull: list[tuple[float, float]] = []
    for px, py in sorted(zip(x.tolist(), y.tolist(), strict=True)):
        if hull and hull[-1][0] == px:  # a point above one at the same x
            continue
        while len(hull) > 1 and _left_turn(hull[-2], hull[-1], (px, py)) <= 0:
            hull.pop()
        hull.append((px, py))
    points = np.array(hull)
    return points[:, 0], points[:, 1]


def _left_turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
