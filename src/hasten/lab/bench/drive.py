"""Open-loop replay of a workload on an engine in this process, real or simulated: the engine's clock decides which."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from hasten.engine.clock import Clock, VirtualClock
from hasten.engine.events import EventLog, Kind
from hasten.engine.outputs import QueueFull, TokenDelta
from hasten.engine.request import SLO, AppContext, BadRequest, Request, SamplingParams
from hasten.lab.bench.arrivals import Arrivals
from hasten.lab.bench.run import Ints, Run
from hasten.lab.workloads.base import TimedRequest, Workload
from hasten.lab.workloads.prompts import Prompts

Progress = Callable[[int, int], None]
"""Called with (requests ended, requests in all)."""

Encode = Callable[[str], Sequence[int]]
"""A tokenizer's way from text to token ids."""


class Engine(Protocol):
    """What a replay needs of an engine (`engine.loop.Engine` is one)."""

    @property
    def clock(self) -> Clock: ...
    @property
    def events(self) -> EventLog: ...
    @property
    def executor(self) -> Any: ...
    @property
    def unfinished(self) -> int: ...
    def add(self, request: Request) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def step(self, until_s: float = ...) -> list[TokenDelta]: ...
    def run(self) -> list[TokenDelta]: ...


class Requests:
    """Makes the engine's requests of a workload's; `salt` keeps the KV of one run from being found by the next. `limit`: the
    `max_tokens` that all requests have; each ends after its own number of tokens all the same, which nobody knows beforehand.
    None: that number is the limit, and known."""

    def __init__(
        self,
        workload: Workload,
        vocabulary: int,
        *,
        seed: int,
        temperature: float,
        salt: str,
        encode: Encode | None = None,
        limit: int | None = None,
    ) -> None:
        self._workload = workload
        self._prompts = Prompts(workload, vocabulary, seed=seed, encode=encode)
        self._temperature = temperature
        self._salt = salt
        self._limit = limit
        self._no_slo = SLO()

    def prompt(self, timed: TimedRequest) -> Any:
        return self._prompts.tokens(timed)

    def make(self, number: int, timed: TimedRequest, prompt: Any, due_s: float) -> Request:
        most = max(timed.output_tokens, self._limit or 0)
        sampling = SamplingParams(max_tokens=most, temperature=self._temperature, ignore_eos=True, seed=number)
        return Request(
            id=f"{self._salt}{number}",
            prompt=prompt,
            sampling=sampling,
            slo=self._workload.slos.get(timed.slo_class, self._no_slo),
            app=AppContext(application=timed.application, workflow=timed.workflow, stage=timed.stage, parents=timed.parents),
            tenant=timed.tenant,
            adapter=timed.adapter,
            priority=timed.priority,
            cache_salt=self._salt,
            arrival_s=due_s,
            ends_after=timed.output_tokens,
        )


def replay(
    engine: Engine,
    workload: Workload,
    *,
    name: str = "",
    seed: int = 0,
    temperature: float = 0.0,
    encode: Encode | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    delay: Callable[[int, float], float] | None = None,
) -> Run:
    """Hand each request over when it is due, between steps, and run until all have ended.

    On a real clock prompts are made beforehand. A request's lag is the replay's own delay: from when it was due, or from the
    end of the step that was under way then, to its hand-over. `encode` makes tokens of prompts that are text.
    `limit`: of every request's output, whose true length nobody is told (see `Requests`). `delay` says how long after its
    parents a stage comes (see `Arrivals`), where what works in between is simulated too. Raises RuntimeError when the engine
    is not idle, WorkloadError for text without `encode`."""
    if engine.unfinished:
        raise RuntimeError("the engine is still busy with other requests")
    clock, log = engine.clock, engine.events
    virtual = isinstance(clock, VirtualClock)
    requests = workload.requests
    maker = Requests(
        workload,
        engine.executor.vocabulary,
        seed=seed,
        temperature=temperature,
        salt=f"r{log.counts[Kind.ARRIVED]}-",
        encode=encode,
        limit=limit,
    )
    prompts = None if virtual else [maker.prompt(timed) for timed in requests]
    kept, log.keep = log.keep, None
    first_row = len(log)
    numbers: dict[str, int] = {}
    accepted: list[int] = []
    errors: dict[int, str] = {}
    lag = np.full(len(requests), np.nan)
    ended = 0
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    start_s = clock.now()
    arrivals = Arrivals(workload, start_s, delay)

    def fail(number: int, error: str) -> None:
        nonlocal ended
        errors[number] = error
        ended += 1
        for lost in arrivals.failed(number):
            errors[lost] = f"request {number}, which it needs, failed"
            ended += 1

    try:
        idle_since_s = start_s
        while True:
            for number in arrivals.pop(clock.now()):
                due_s = float(arrivals.due_s[number])
                timed = requests[number]
                prompt = maker.prompt(timed) if prompts is None else prompts[number]
                request = maker.make(number, timed, prompt, due_s)
                try:
                    engine.add(request)
                except (BadRequest, QueueFull) as refusal:
                    fail(number, str(refusal))
                else:
                    accepted.append(number)
                    numbers[request.id] = number
                lag[number] = clock.now() - max(due_s, idle_since_s)
            if not engine.unfinished:
                if arrivals.done:
                    break
                clock.sleep(arrivals.next_s - clock.now())
                idle_since_s = arrivals.next_s
                continue
            deltas = engine.step(arrivals.next_s)
            idle_since_s = clock.now()
            for delta in deltas:
                if not delta.last:
                    continue
                number = numbers.pop(delta.request_id)
                if delta.finish in ("stop", "length"):
                    arrivals.ended(number, idle_since_s)
                    ended += 1
                else:
                    fail(number, delta.error or str(delta.finish))
            if progress is not None and deltas:
                progress(ended, len(requests))
        columns = log.columns(first_row)
    finally:
        log.keep = kept
        for id in numbers:
            engine.cancel(id)
        engine.run()
    return Run(
        name=name,
        workload=workload,
        columns=columns,
        sequence=_sequences(columns, accepted, len(requests)),
        start_s=start_s,
        due_s=arrivals.due_s,
        lag_s=lag,
        errors=errors,
        simulated=virtual,
        wall_s=time.perf_counter() - began_s,
        cpu_s=time.process_time() - began_cpu_s,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        total_blocks=_total_blocks(engine),
        info=engine.executor.describe(),
    )


def _sequences(columns: dict[str, Any], accepted: list[int], count: int) -> Ints:
    """The log's sequence of each request: the k-th arrival in the log is the k-th request that was accepted."""
    out = np.full(count, -1, dtype=np.int64)
    out[accepted] = columns["sequence"][columns["kind"] == Kind.ARRIVED]
    return out


def _total_blocks(engine: Engine) -> int | None:
    ledger = getattr(engine, "ledger", None)
    return ledger.books.pool.blocks if ledger is not None else None
