"""The replay's own limit in process: a schedule against an engine that answers at once and does nothing.

    python -m hasten.lab.bench.null --rate 2000 --seconds 5

What is left is the replay: waking up in time, making requests, handing them over and following their ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hasten.engine.clock import Clock, RealClock
from hasten.engine.events import EventLog, Kind
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import Request
from hasten.lab.bench.drive import replay
from hasten.lab.bench.run import Run
from hasten.lab.workloads.base import TimedRequest, Workload


class NullExecutor:
    vocabulary = 32_000

    def describe(self) -> Mapping[str, Any]:
        return {"device": "none"}


class NullEngine:
    """An engine (`drive.Engine`) whose every step ends all that was asked, with one commit of all its tokens."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock if clock is not None else RealClock()
        self.events = EventLog()
        self.executor = NullExecutor()
        self._waiting: list[Request] = []
        self._sequences = 0

    @property
    def unfinished(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        self._waiting = [request for request in self._waiting if request.id != request_id]

    def step(self, until_s: float = inf) -> list[TokenDelta]:
        out = []
        for request in self._waiting:
            now, sequence = self.clock.now(), self._sequences
            arrived_s = now if request.arrival_s is None else request.arrival_s
            count = request.sampling.max_tokens or 1
            self._sequences += 1
            self.events.add(arrived_s, Kind.ARRIVED, sequence, len(request.prompt))
            self.events.add(now, Kind.SCHEDULED, sequence, len(request.prompt))
            self.events.add(now, Kind.FIRST_TOKEN, sequence)
            self.events.add(now, Kind.TOKENS, sequence, count)
            self.events.add(now, Kind.FINISHED, sequence, count)
            out.append(TokenDelta(request.id, 0, [0] * count, finish="length", last=True))
        self._waiting.clear()
        return out

    def run(self) -> list[TokenDelta]:
        return self.step()


def schedule(rate: float, seconds: float, *, prompt: int = 200, output: int = 20, seed: int = 0) -> Workload:
    """Poisson arrivals at `rate` requests per second for about `seconds`."""
    count = max(1, round(rate * seconds))
    arrivals_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count)).tolist()
    requests = [
        TimedRequest(id=str(i), arrival_s=at_s, prompt_tokens=prompt, output_tokens=output) for i, at_s in enumerate(arrivals_s)
    ]
    return Workload(name=f"{rate:g} requests/s", requests=requests)


def measure(rate: float, seconds: float) -> Run:
    """The replay of such a schedule on a null engine."""
    return replay(NullEngine(), schedule(rate, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=2000.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of schedule, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not (0 < options.rate < inf and 0 < options.seconds < inf and options.rounds >= 1):
        parser.error("rate and seconds must be above 0 and rounds at least 1")
    table = Table("round", "requests", "requests/s", "lag p50 ms", "p99 ms", "largest ms", "CPU s per 1,000")
    with Console(stderr=True).status("replaying") as status:
        for number in range(options.rounds):
            status.update(f"replaying, round {number + 1} of {options.rounds}")
            run = measure(options.rate, options.seconds)
            lag_ms = run.lag_s * 1e3
            took_s = float(run.due_s[-1] + run.lag_s[-1] - run.due_s[0])
            table.add_row(
                str(number + 1),
                f"{len(run.workload):,}",
                f"{(len(run.workload) - 1) / took_s:,.0f}" if took_s > 0 else "-",
                *(f"{value:.2f}" for value in (*np.percentile(lag_ms, [50, 99]), lag_ms.max())),
                f"{run.cpu_s * 1e3 / len(run.workload):.3f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
