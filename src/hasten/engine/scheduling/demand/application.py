"""An application run under way: which unit it is in, what it has been given there, and what it will still ask for.

Estimates are made when a unit begins (its prompts are known then, and the branch that led to it is) and hold until the next one
does: totals X of the current unit and all that follows, of which `attained` seconds are done. What cannot change between two
units costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from zlib import crc32

import numpy as np

from hasten.engine.scheduling.base import View
from hasten.engine.scheduling.demand.graph import MOST_UNITS, DemandGraph
from hasten.engine.scheduling.demand.prices import Prices
from hasten.engine.scheduling.demand.runs import joins, unit_name
from hasten.engine.scheduling.demand.tables import Floats, Tables, tables
from hasten.engine.scheduling.demand.walks import Walks, walk, window
from hasten.engine.sequence import Sequence, State

KEPT = 4096
"""Applications from which on idle ones are forgotten."""
STATES = 4096
"""Walks of so many states of an application are kept: runs in the same state share them."""


class Estimator:
    """Walks of one application's graph, by the state they begin in."""

    def __init__(self, graph: DemandGraph, prices: Prices, walks: int, seed: int) -> None:
        self.tables: Tables = tables(graph, prices)
        self._walks, self._seed = walks, (seed, crc32(graph.application.encode()))
        features = graph.features
        told_by = {*features.demand, *features.branch}
        self._read = [entry for entry in range(2 * self.tables.units) if entry in told_by]
        """Entries of the history that anything depends on: the rest of it is no part of a state."""
        self._looped = [unit for unit, seen in enumerate(graph.seen) if seen.number.max() > 1]
        self._cached = lru_cache(maxsize=STATES)(self._walk)

    def walks(self, unit: int, seen: list[int], history: list[int], prompt: int) -> Walks:
        around = window(self.tables.cell(unit, seen[unit], history), self.tables.prompt, prompt)
        state = tuple(history[i] for i in self._read), tuple(min(seen[i], 255) for i in self._looped)
        return self._cached(unit, around, *state)

    def _walk(self, unit: int, around: tuple[int, int], read: tuple[int, ...], looped: tuple[int, ...]) -> Walks:
        seen, history = [0] * self.tables.units, [0] * (2 * self.tables.units)
        for i, number in zip(self._looped, looped, strict=True):
            seen[i] = number
        seen[unit] = max(1, seen[unit])
        for i, bucket in zip(self._read, read, strict=True):
            history[i] = bucket
        rng = np.random.default_rng([*self._seed, unit, *around, *read, *looped])
        return walk(self.tables, unit, seen, history, around, self._walks, rng)


@dataclass(slots=True, eq=False)
class Application:
    """`arrival_s`: of its first call. `unit`: the current one's number, None where the graph does not know it. `seen`,
    `history`: as `walk` takes them. `live`: calls of the current unit that are not over; `done_s`: service of those that are;
    `output`: what they wrote. `total`: ascending estimates of the current unit and all that follows, None when
    they are to be made anew."""

    arrival_s: float
    estimator: Estimator | None
    unit: int | None = None
    seen: list[int] = field(default_factory=list)
    history: list[int] = field(default_factory=list)
    parents: tuple[str, ...] = ()
    stages: set[str] = field(default_factory=set)
    live: dict[int, Sequence] = field(default_factory=dict)
    calls: int = 0
    prompt: int = 0
    longest: int = 0
    """Prompt of any of its calls."""
    done_s: float = 0.0
    output: int = 0
    deadline_s: float = np.inf
    walks: Walks | None = None
    total: Floats | None = None
    rest_time: tuple[Floats, Floats, Floats] | None = None
    """Beside `total`: what comes after the current unit takes, what the current unit takes, and its service (seconds)."""
    edges: Floats = field(default_factory=lambda: np.array([0.0, np.inf]))
    """Where its buckets of attained service begin, and infinity."""
    bucket: int = -1
    key: float = np.inf
    ended_s: float = 0.0
    """When the last call of a unit ended."""
    passed: int | None = None
    """The tool that must have worked before the current unit."""
    hinted: set[str] = field(default_factory=set)
    wanted: list[tuple[str, float]] = field(default_factory=list)
    """Backends that may come next and have not been asked for, with the chance of each."""

    def arrived(self, seq: Sequence) -> bool:
        """A call of it has come; whether it began a new unit."""
        app = seq.request.app
        fresh = not self.calls or not joins(app.parents, self.parents, bool(self.live))
        left, self.passed = self.unit, None
        if fresh:
            self._leave()
            self.parents, self.stages, self.live = app.parents, set(), {}
            self.calls = self.prompt = self.output = 0
            self.done_s = 0.0
        if app.stage not in self.stages and len(self.stages) < MOST_UNITS:  # names are the clients' to choose
            if not fresh and self.unit is not None:
                self.seen[self.unit] -= 1
            self.stages.add(app.stage)
            self._enter()
            if fresh and left is not None:
                self._pass(left, seq.arrival_s - self.ended_s)
        self.live[seq.id] = seq
        self.calls += 1
        self.prompt += seq.prompt_length if seq.index == 0 else 0
        self.longest = max(self.longest, seq.prompt_length)
        if seq.request.slo.deadline_s is not None:
            self.deadline_s = min(self.deadline_s, seq.arrival_s + seq.request.slo.deadline_s)
        self.total = None
        return fresh

    def went(self, seq: Sequence, prices: Prices, now: float) -> None:
        if self.live.pop(seq.id, None) is not None:
            self.ended_s = now
            if seq.index == 0:
                self.done_s += float(prices.prompt(seq.prompt_length))
            self.done_s += float(prices.output(seq.prompt_length, max(0, seq.output_length)))
            self.output += seq.output_length

    def attained(self, prices: Prices) -> float:
        """Seconds of service that the current unit's calls have had. KV that was dropped is to be computed again."""
        return self.done_s + sum(attained(seq, prices) for seq in self.live.values())

    def estimate(self, prices: Prices, view: View) -> None:
        """Make `total` anew, for the calls that have come so far."""
        prompts = [seq.prompt_length for seq in self.live.values() if seq.index == 0]
        known = self.done_s + float(sum(prices.prompt(tokens) for tokens in prompts))
        each = sum(seq.prompt_length for seq in self.live.values()) / max(1, len(self.live))
        if self.unit is None or self.estimator is None:
            outputs = [view.remaining_output(seq) + seq.output_length for seq in self.live.values()]
            drawn = np.mean([_spread(one) for one in outputs], axis=0) if outputs else np.zeros(1)
            self.walks = None
            later, time_s, longest = np.zeros(len(drawn)), np.zeros(len(drawn)), drawn
        else:
            found = self.walks = self.estimator.walks(self.unit, self.seen, self.history, self.prompt)
            drawn, later, time_s, longest = found.output, found.service_s, found.time_s, found.longest
        unit_s = known + len(self.live) * prices.output(each, drawn)
        total = unit_s + later
        order = np.argsort(total, kind="stable")
        self.total = np.maximum(total[order], 1e-9)
        current_s = prices.prompt(max(prompts, default=0)) + longest * prices.step_s
        self.rest_time = (time_s[order], current_s[order], unit_s[order])
        self.bucket = -1

    def _leave(self) -> None:
        """The current unit is over: it becomes history."""
        if self.unit is not None and self.estimator is not None:
            self._remember(self.unit, self.prompt, self.output)

    def _enter(self) -> None:
        if self.estimator is None:
            return
        graph = self.estimator.tables.graph
        self.unit = graph.number.get(unit_name(self.stages))
        if not self.seen:
            self.seen, self.history = [0] * len(graph.units), [0] * (2 * len(graph.units))
        if self.unit is not None:
            self.seen[self.unit] += 1

    def _pass(self, left: int, took_s: float) -> None:
        """A tool that usually works between the unit that was left and this one has worked: the engine does not see it."""
        if self.estimator is None or self.unit is None:
            return
        graph = self.estimator.tables.graph
        self.passed = graph.between.get((left, self.unit))
        if self.passed is not None:
            self.seen[self.passed] += 1
            self._remember(self.passed, took_s, 0.0)

    def _remember(self, unit: int, read: float, wrote: float) -> None:
        assert self.estimator is not None
        graph = self.estimator.tables.graph
        self.history[unit], self.history[unit + len(graph.units)] = graph.buckets(unit, read, wrote)


def attained(seq: Sequence, prices: Prices) -> float:
    prompt_s = prices.prompt(min(seq.prompt_length, seq.view.length)) if seq.index == 0 else 0.0
    return float(prompt_s + prices.output(seq.prompt_length, max(0, seq.output_length)))


def _spread(samples: Floats, count: int = 64) -> Floats:
    """As many equally likely values of the same distribution: float64 [count]."""
    return samples[(np.arange(count) * len(samples)) // count]


class Applications:
    """The applications that have live calls, and lately had some."""

    def __init__(self, graphs: dict[str, DemandGraph], walks: int, seed: int) -> None:
        self._graphs, self._walks, self._seed = graphs, walks, seed
        self._estimators: dict[str, Estimator] = {}
        self._all: OrderedDict[tuple[str, str, str], Application] = OrderedDict()
        self.of: dict[int, Application] = {}
        """By live sequence."""
        self.dropped: set[int] = set()
        """Live sequences that have lost their KV and may wait for it."""

    def came(self, seq: Sequence, view: View, prices: Prices) -> tuple[Application, bool]:
        """Its application, and whether a unit of it begins."""
        workflow = view.workflow(seq)
        key = seq.request.tenant, workflow.application, workflow.id
        app = self._all.get(key)
        if app is None:
            app = Application(workflow.arrival_s, self._estimator(workflow.application, prices))
            if seq.request.app.workflow:
                self._forget()
                self._all[key] = app
            elif len(workflow.live) > 1:  # several sequences of one request that has no workflow
                app = self.of.get(next(iter(workflow.live)), app)
        else:
            self._all.move_to_end(key)
        self.of[seq.id] = app
        return app, app.arrived(seq)

    def _forget(self) -> None:
        """Let go of old idle ones: two for each that comes if need be, as live ones may stand before them."""
        for _ in range(2):
            if len(self._all) >= KEPT:
                key, oldest = self._all.popitem(last=False)
                if oldest.live:
                    self._all[key] = oldest

    def running(self, view: View) -> list[tuple[Sequence, Application]]:
        """Sequences that have been given something, with their applications."""
        begun = view.in_state(State.RUNNING, State.SWAPPED, State.LEAVING, State.LOADING)
        waiting = [seq for id in self.dropped if (seq := view.sequence(id)) is not None and seq.state is State.WAITING]
        return [(seq, self.of[seq.id]) for seq in [*begun, *waiting] if seq.view.length or seq.output_length]

    def went(self, seq: Sequence, prices: Prices, now: float) -> Application | None:
        self.dropped.discard(seq.id)
        app = self.of.pop(seq.id, None)
        if app is not None:
            app.went(seq, prices, now)
        return app

    def _estimator(self, application: str, prices: Prices) -> Estimator | None:
        graph = self._graphs.get(application)
        if graph is None:
            return None
        if application not in self._estimators:
            self._estimators[application] = Estimator(graph, prices, self._walks, self._seed)
        return self._estimators[application]
