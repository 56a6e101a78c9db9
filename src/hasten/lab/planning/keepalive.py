"""Keeping pods warm: a simulator that charges idle seconds against cold waits.

A pod serves one invocation at a time. An invocation that finds an idle pod of its function begins at once; otherwise one is
started for it and it waits: a cold wait. A policy says how long an idle pod is kept, which pods are started before anyone asks,
how many generic pods stand ready, and how long an asynchronous invocation may wait for a busy pod instead. Every second a pod
is there without running anything is charged, and so is the start of a pod that nobody had asked for when it began; a start that
an invocation waits for is not, since it costs the same under every policy.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hasten.lab.bench.run import Floats
from hasten.lab.planning.invocations import Stream


@dataclass(frozen=True, slots=True)
class Prewarm:
    """Begin to start a pod of `function` at `begin_s`, unless one is idle or starting then, and end it if it is still unused at
    `until_s`."""

    function: int
    begin_s: float
    until_s: float


class Policy(Protocol):
    """What to keep and what to start early. Asked in the order of simulated time; times in seconds.

    `pool`: generic pods kept ready, by resource class; `pool_share`: the part of a start-up time that taking one saves."""

    pool: dict[str, int]
    pool_share: float

    def arrived(self, function: int, now_s: float) -> Prewarm | None:
        """An invocation of `function` arrives. An early start that was planned for `function` and has not begun is dropped;
        what is returned is planned."""
        ...

    def idle(self, function: int, now_s: float) -> tuple[float, Prewarm | None]:
        """A run of `function` has ended and no invocation waits for its pod: how long the pod is kept unused, and a pod to
        start early, or None."""
        ...

    def started(self, function: int, start_s: float) -> None:
        """A start that takes `start_s` seconds has begun."""
        ...

    def delay_s(self, function: int) -> float:
        """How long an invocation of `function` may wait for a busy pod of it before one is started for it."""
        ...


@dataclass(slots=True)
class Cost:
    """What a policy cost. Of the `invocations`, `warm` ones began at once on an idle pod, `cold_waits` waited for a start,
    `waited_s` seconds in all, and `delayed` ones got a pod that was busy; `delay_s`: waited for busy pods, in vain or not.
    `idle_s`: as charged. `starts` of pods, `early` of them before anyone asked. `by_trigger`: cold waits. `useful_s`, `start_s`
    float64 [pods]: of each pod that ran anything, the time from its readiness to the end of its last run, and that of its
    start."""

    invocations: int
    warm: int = 0
    cold_waits: int = 0
    waited_s: float = 0.0
    idle_s: float = 0.0
    starts: int = 0
    early: int = 0
    delayed: int = 0
    delay_s: float = 0.0
    by_trigger: dict[str, int] = field(default_factory=dict)
    useful_s: Floats = field(default_factory=lambda: np.zeros(0))
    start_s: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def utility(self) -> Floats:
        """[pods] the pod utility ratio: useful lifetime, without the keep-alive at its end, over the time of its start (Joosen
        et al., 2025)."""
        return self.useful_s / self.start_s


def simulate(stream: Stream, policy: Policy) -> Cost:
    """Run the stream under a policy that has seen nothing yet."""
    return _Simulation(stream, policy).run()


@dataclass(slots=True, eq=False)
class _Pod:
    function: int
    start_s: float
    ready_s: float
    idle_since_s: float = 0.0
    """Charged from here on; for an early start, when that began."""
    until_s: float = 0.0
    """When it ends, if it is still idle then."""
    last_end_s: float = -1.0


class _Simulation:
    def __init__(self, stream: Stream, policy: Policy) -> None:
        self.stream, self.policy = stream, policy
        count = len(stream.functions)
        self.idle: list[list[_Pod]] = [[] for _ in range(count)]
        """The pod used last comes last, and is used first."""
        self.starting: dict[int, _Pod] = {}
        """Early starts that nobody waits for."""
        self.busy = [0] * count
        self.queue: list[deque[tuple[int, float]]] = [deque() for _ in range(count)]
        self.plans = [0] * count
        """Number of the last early start planned or dropped."""
        self.pool = {name: [0.0] * size for name, size in policy.pool.items()}
        """Since when each generic pod has been ready."""
        self.run_s, self.start_s = stream.run_s.tolist(), stream.start_s.tolist()
        self.function, self.child = stream.function.tolist(), stream.child.tolist()
        self.spare = stream.spare_start_s.tolist()
        self.spares = 0
        self.cost = Cost(len(stream))
        self.pods: list[tuple[float, float]] = []
        self.events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self.number = len(stream)

    def at(self, time_s: float, handler: Callable[[float, Any], None], what: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (time_s, self.number, handler, what))

    def run(self) -> Cost:
        arrivals = enumerate(self.stream.arrival_s.tolist())
        self.events = [(t, i, self.arrive, i) for i, t in arrivals if t == t]  # NaN: a parent's end invokes it
        heapq.heapify(self.events)
        while self.events:
            now, _, handler, what = heapq.heappop(self.events)
            handler(now, what)
        for ready in self.pool.values():
            for since in ready:
                self.charge(self.stream.duration_s - since)
        pods = np.array(self.pods).reshape(-1, 2)
        self.cost.useful_s, self.cost.start_s = pods[:, 0], pods[:, 1]
        return self.cost

    # -- events -----------------------------------------------------------------------------------------------------------

    def arrive(self, now: float, invocation: int) -> None:
        function = self.function[invocation]
        self.plans[function] += 1
        self.plan(self.policy.arrived(function, now))
        if self.idle[function]:
            pod = self.idle[function].pop()
            self.cost.warm += 1
            self.charge(now - pod.idle_since_s)
            self.begin(pod, invocation, now)
            return
        starting = self.starting.get(function)
        if starting is not None and starting.ready_s - now <= self.start_s[invocation]:
            del self.starting[function]
            self.charge(now - starting.idle_since_s)
            if starting.ready_s > now:
                self.wait(invocation, starting.ready_s - now)
            else:  # both at one moment
                self.cost.warm += 1
            self.begin(starting, invocation, starting.ready_s)
            return
        patience_s = self.policy.delay_s(function)
        if patience_s > 0 and self.busy[function]:
            self.queue[function].append((invocation, now))
            self.at(now + patience_s, self.give_up, (invocation, now))
            return
        self.cold(now, invocation)

    def done(self, now: float, what: tuple[_Pod, int]) -> None:
        pod, invocation = what
        function = pod.function
        self.busy[function] -= 1
        pod.last_end_s = now
        if self.child[invocation] >= 0:
            self.at(now, self.arrive, self.child[invocation])
        if self.queue[function]:
            waiting, since = self.queue[function].popleft()
            self.cost.delayed += 1
            self.cost.delay_s += now - since
            self.begin(pod, waiting, now)
            return
        keep_s, early = self.policy.idle(function, now)
        self.rest(pod, now, now + keep_s)
        self.plan(early)

    def give_up(self, now: float, entry: tuple[int, float]) -> None:
        """No pod became free in time."""
        invocation, since = entry
        queue = self.queue[self.function[invocation]]
        if entry in queue:
            queue.remove(entry)
            self.cost.delay_s += now - since
            self.cold(now, invocation)

    def expire(self, now: float, pod: _Pod) -> None:
        idle = self.idle[pod.function]
        if pod.until_s == now and pod in idle:  # it may have been used, and kept anew, since this was planned
            idle.remove(pod)
            self.charge(min(now, self.stream.duration_s) - pod.idle_since_s)
            if pod.last_end_s >= 0:
                self.pods.append((pod.last_end_s - pod.ready_s, pod.start_s))

    def prewarm(self, now: float, what: tuple[Prewarm, int]) -> None:
        early, number = what
        function = early.function
        dropped = number != self.plans[function] or now >= self.stream.duration_s
        if dropped or self.idle[function] or function in self.starting:
            return
        start_s = self.next_spare()
        self.cost.starts += 1
        self.cost.early += 1
        self.policy.started(function, start_s)
        pod = _Pod(function, start_s, now + start_s, idle_since_s=now, until_s=early.until_s)
        self.starting[function] = pod
        self.at(pod.ready_s, self.ready, pod)

    def ready(self, now: float, pod: _Pod) -> None:
        if self.starting.get(pod.function) is pod:  # else an invocation has claimed it meanwhile
            del self.starting[pod.function]
            self.rest(pod, pod.idle_since_s, max(pod.until_s, now))

    def refill(self, now: float, resources: str) -> None:
        self.pool[resources].append(now)

    # -- parts ------------------------------------------------------------------------------------------------------------

    def cold(self, now: float, invocation: int) -> None:
        function, start_s = self.function[invocation], self.start_s[invocation]
        resources = self.stream.functions[function].resources
        if self.pool.get(resources):
            self.charge(now - self.pool[resources].pop())
            generic_s = self.policy.pool_share * self.next_spare()
            self.charge(generic_s)  # the start of the one that takes its place
            self.at(now + generic_s, self.refill, resources)
            start_s *= 1.0 - self.policy.pool_share
        self.cost.starts += 1
        self.policy.started(function, start_s)
        self.wait(invocation, start_s)
        self.begin(_Pod(function, start_s, now + start_s), invocation, now + start_s)

    def begin(self, pod: _Pod, invocation: int, at_s: float) -> None:
        self.busy[pod.function] += 1
        self.at(at_s + self.run_s[invocation], self.done, (pod, invocation))

    def rest(self, pod: _Pod, since_s: float, until_s: float) -> None:
        pod.idle_since_s, pod.until_s = since_s, until_s
        self.idle[pod.function].append(pod)
        self.at(until_s, self.expire, pod)

    def plan(self, early: Prewarm | None) -> None:
        if early is not None:
            self.plans[early.function] += 1
            self.at(early.begin_s, self.prewarm, (early, self.plans[early.function]))

    def wait(self, invocation: int, seconds: float) -> None:
        trigger = self.stream.functions[self.function[invocation]].trigger
        self.cost.cold_waits += 1
        self.cost.waited_s += seconds
        self.cost.by_trigger[trigger] = self.cost.by_trigger.get(trigger, 0) + 1

    def charge(self, seconds: float) -> None:
        self.cost.idle_s += max(0.0, seconds)

    def next_spare(self) -> float:
        self.spares += 1
        return float(self.spare[self.spares % len(self.spare)])
