"""Several simulated engines behind one dispatcher, on one time.

Each engine has a virtual clock of its own, and the one that is furthest behind goes next; an arrival is handed out only when no
busy engine's clock is behind it. A step that is under way when a request arrives thus ends before the engine sees it, and what
a step gives back is known to the dispatcher only from the step's end on.
"""

from __future__ import annotations

import heapq
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.engine.clock import VirtualClock
from hasten.engine.events import COLUMNS, Kind
from hasten.engine.loop import Engine
from hasten.engine.outputs import QueueFull
from hasten.engine.request import BadRequest
from hasten.lab.bench.arrivals import Arrivals
from hasten.lab.bench.drive import Progress, Requests
from hasten.lab.bench.run import Run
from hasten.lab.workloads.base import Workload
from hasten.serving.cluster.base import Dispatcher, EngineView, FleetView, SeesEnds

LOOK_AHEAD_S = 1e-3
"""How late an engine whose policy waits may notice a stage that another engine's end sends it: as on a real clock."""


def replay_fleet(
    engines: Sequence[Engine],
    dispatcher: Dispatcher,
    workload: Workload,
    *,
    speeds: Sequence[float] | None = None,
    name: str = "",
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Replay a workload on simulated engines; one run with all their events, in order of time. `speeds`: what the dispatcher is
    told of each engine. `limit`: as `drive.replay` takes it."""
    clocks = [clock for engine in engines if isinstance(clock := engine.clock, VirtualClock) and clock.now() == 0]
    if len(clocks) < len(engines):
        raise ValueError("a fleet is made of fresh simulated engines")
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    maker = Requests(workload, engines[0].executor.vocabulary, seed=seed, temperature=0.0, salt="", limit=limit)
    arrivals = Arrivals(workload, 0.0)
    views = [EngineView(i, speeds[i] if speeds is not None else 1.0) for i in range(len(engines))]
    accepted: list[list[int]] = [[] for _ in engines]
    errors: dict[int, str] = {}
    ends: list[tuple[float, int, int, str]] = []
    """(time, engine, tokens, id) of requests that have come back, as far as the dispatcher does not know yet."""
    lag = np.full(len(workload), np.nan)
    ended = 0
    staged = workload.has_stages  # asks every request
    waited = [False] * len(engines)

    def fail(number: int, error: str) -> None:
        nonlocal ended
        errors[number] = error
        ended += 1
        for lost in arrivals.failed(number):
            errors[lost] = f"request {number}, which it needs, failed"
            ended += 1

    def size(number: int) -> int:
        timed = workload.requests[number]
        return timed.prompt_tokens + timed.output_tokens

    def hand_out(number: int) -> None:
        due_s = float(arrivals.due_s[number])
        while ends and ends[0][0] <= due_s:
            _, back, tokens, id = heapq.heappop(ends)
            views[back].outstanding -= 1
            views[back].outstanding_tokens -= tokens
            if isinstance(dispatcher, SeesEnds):
                dispatcher.ended(id)
        timed = workload.requests[number]
        request = maker.make(number, timed, maker.prompt(timed), due_s)
        view = views[dispatcher.assign(request, FleetView(due_s, views))]
        engine = engines[view.number]
        if not engine.unfinished:
            clocks[view.number].advance_to(due_s)
        lag[number] = 0.0
        try:
            engine.add(request)
        except (BadRequest, QueueFull) as refusal:
            fail(number, str(refusal))
            return
        accepted[view.number].append(number)
        view.assigned += 1
        view.outstanding += 1
        view.outstanding_tokens += size(number)

    while True:
        busy = sorted((clocks[i].now(), i) for i, engine in enumerate(engines) if engine.unfinished)
        if arrivals.next_s < np.inf and (not busy or arrivals.next_s <= busy[0][0]):
            for number in arrivals.pop(arrivals.next_s):
                hand_out(number)
            continue
        if not busy:
            break
        turn = busy[0][1]
        until_s = arrivals.next_s
        if staged and len(busy) > 1:
            # What ends elsewhere may send something here. Two whose policies wait would wait for each other: they look ahead.
            until_s = min(until_s, busy[1][0] + (LOOK_AHEAD_S if waited[turn] else 0.0))
        logged = len(engines[turn].events)
        deltas = engines[turn].step(until_s)
        waited[turn] = len(engines[turn].events) == logged
        now = clocks[turn].now()
        for delta in deltas:
            if not delta.last:
                continue
            number = int(delta.request_id)
            heapq.heappush(ends, (now, turn, size(number), delta.request_id))
            if delta.finish == "length":
                arrivals.ended(number, now)
                ended += 1
            else:
                fail(number, delta.error or str(delta.finish))
        if progress is not None and deltas:
            progress(ended, len(workload))
    columns, sequence = _merge(engines, accepted, len(workload))
    return Run(
        name=name,
        workload=workload,
        columns=columns,
        sequence=sequence,
        start_s=0.0,
        due_s=arrivals.due_s,
        lag_s=lag,
        errors=errors,
        simulated=True,
        wall_s=time.perf_counter() - began_s,
        cpu_s=time.process_time() - began_cpu_s,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        total_blocks=engines[0].ledger.books.pool.blocks,
        info={
            **engines[0].executor.describe(),
            "engines": len(engines),
            "speed": [view.speed for view in views],
            "requests": [view.assigned for view in views],
        },
    )


def _merge(engines: Sequence[Engine], accepted: list[list[int]], count: int) -> tuple[dict[str, Any], Any]:
    """All engines' events in order of time, and the sequence of each request in them."""
    logs = [engine.events.columns() for engine in engines]
    sequence = np.full(count, -1, dtype=np.int64)
    for i, log in enumerate(logs):
        own = log["sequence"] >= 0
        log["sequence"][own] = log["sequence"][own] * len(engines) + i
        sequence[accepted[i]] = log["sequence"][log["kind"] == Kind.ARRIVED]
    merged = {name: np.concatenate([log[name] for log in logs]) for name in COLUMNS}
    order = np.argsort(merged["time_s"], kind="stable")
    return {name: column[order] for name, column in merged.items()}, sequence
