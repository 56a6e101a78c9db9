"""A simulated owner of backends: starts the tools that stages of a workflow need, when they are needed or when a hint says so.

As in `keepalive`: an instance serves one use at a time, a use finds an idle one or waits for a start, idle ones are kept for a
while, and every second an instance is there without working is charged, the start of one that nobody had asked for when it
began included. What a use waits delays the stage behind it, so the replay feels it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hasten.engine.scheduling.base import Hint
from hasten.lab.planning.keepalive import Cost
from hasten.lab.workloads.base import Workload

PATIENCE_S = 60.0
"""How long an instance that was hinted at is kept for whoever was to use it."""


@dataclass(slots=True, eq=False)
class _Instance:
    """`free_s`: ready, and not in use, from here on; charged from `since_s` on; ends at `until_s` if it is not used by then.
    `for_`: the workflow that a hint wants it for."""

    since_s: float
    free_s: float
    until_s: float
    for_: str = ""


@dataclass(slots=True)
class Owner:
    """`warm_s`: seconds a start takes, by backend; tools that are not named need none. `keep_s`: how long an idle instance is
    kept. `delay` is what a replay asks (`bench.drive.replay`), `hint` what an engine tells (`Engine.on_hint`), with the
    time."""

    workload: Workload
    warm_s: Mapping[str, float]
    keep_s: float = 0.0
    cost: Cost = field(default_factory=lambda: Cost(0))
    cancelled: int = 0
    """Starts that a hint brought about and another took back."""
    _instances: dict[str, list[_Instance]] = field(default_factory=dict)
    _uses: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)

    def listener(self, now: Callable[[], float]) -> Callable[[Hint], None]:
        """What to give `Engine.on_hint`."""
        return lambda hint: self.hint(hint, now())

    def hint(self, hint: Hint, now_s: float) -> None:
        if hint.backend not in self.warm_s:
            return
        instances = self._current(hint.backend, now_s)
        mine = next((one for one in instances if one.for_ == hint.workflow), None)
        if not hint.wanted:
            if mine is not None:
                self._charge(now_s - mine.since_s)
                instances.remove(mine)
                self.cancelled += 1
            return
        if mine is not None:
            return
        idle = next((one for one in instances if not one.for_ and one.free_s <= now_s), None)
        if idle is not None:
            idle.for_, idle.until_s = hint.workflow, now_s + PATIENCE_S
            return
        ready_s = now_s + self.warm_s[hint.backend]
        self.cost.starts += 1
        self.cost.early += 1
        instances.append(_Instance(now_s, ready_s, ready_s + PATIENCE_S, hint.workflow))

    def delay(self, number: int, now_s: float) -> float:
        """Seconds from when the parents of request `number` ended, which is now, until it comes. All calls of a stage wait for
        one use of its tool."""
        request = self.workload.requests[number]
        if request.tool not in self.warm_s:
            return request.delay_s
        key = request.workflow, request.parents
        if key not in self._uses:
            self._uses[key] = self._use(request.tool, request.workflow, request.delay_s, now_s)
        return self._uses[key] + request.delay_s

    def finish(self, now_s: float) -> Cost:
        """Charge what is left at the end."""
        for backend in list(self._instances):
            for one in self._current(backend, now_s):
                self._charge(min(now_s, one.until_s) - one.since_s)
        self._instances.clear()
        return self.cost

    def _use(self, backend: str, workflow: str, run_s: float, now_s: float) -> float:
        """Seconds to wait for an instance, which is taken: the one kept for this workflow, an idle one that nobody wants, or,
        if it is there sooner than a fresh one, one that is starting."""
        instances = self._current(backend, now_s)
        self.cost.invocations += 1
        warm_s = self.warm_s[backend]
        there = [
            one for one in instances if one.since_s <= now_s and one.free_s <= now_s + warm_s and one.for_ in ("", workflow)
        ]
        best = min(there, key=lambda one: (one.for_ != workflow, one.free_s > now_s, -one.free_s), default=None)
        if best is None:
            best = _Instance(now_s, now_s + warm_s, 0.0)
            instances.append(best)
            self.cost.starts += 1
        else:
            self._charge(now_s - best.since_s)
        waits_s = max(0.0, best.free_s - now_s)
        if waits_s > 0:
            self.cost.cold_waits += 1
            self.cost.waited_s += waits_s
        else:
            self.cost.warm += 1
        end_s = now_s + waits_s + run_s
        best.since_s = best.free_s = end_s
        best.until_s, best.for_ = end_s + self.keep_s, ""
        return waits_s

    def _current(self, backend: str, now_s: float) -> list[_Instance]:
        """The instances that have not ended by now; the others are charged."""
        kept = []
        for one in self._instances.get(backend, ()):
            if one.until_s < now_s:
                self._charge(one.until_s - one.since_s)
            else:
                kept.append(one)
        self._instances[backend] = kept
        return kept

    def _charge(self, seconds: float) -> None:
        self.cost.idle_s += max(0.0, seconds)
