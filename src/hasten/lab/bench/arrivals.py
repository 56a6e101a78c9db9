"""When each request of a workload is due: known times for most, and for stages of a workflow when their parents have ended."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from hasten.lab.bench.run import Floats
from hasten.lab.workloads.base import Workload


class Arrivals:
    """Open loop: what is due never waits for a completion, except that a stage exists only once its parents have ended.

    `start_s`: the clock's time of the workload's second 0. `delay(number, now_s)`: seconds from when the last parent of a
    request ended (now) until it is due, None for its `delay_s`. `due_s` float64 [n]: NaN until known."""

    def __init__(self, workload: Workload, start_s: float, delay: Callable[[int, float], float] | None = None) -> None:
        requests = workload.requests
        self.due_s: Floats = np.full(len(requests), np.nan)
        self._requests = requests
        self._delay = delay
        self._children: dict[int, list[int]] = {}
        self._waits_for: dict[int, int] = {}
        self._due: list[tuple[float, int]] = []
        numbers = {request.id: i for i, request in enumerate(requests)} if workload.has_stages else {}
        for i, request in enumerate(requests):
            if request.parents:
                self._waits_for[i] = len(set(request.parents))
                for parent in set(request.parents):
                    self._children.setdefault(numbers[parent], []).append(i)
            else:
                self.due_s[i] = start_s + request.arrival_s
                self._due.append((float(self.due_s[i]), i))
        heapq.heapify(self._due)

    @property
    def next_s(self) -> float:
        """When the next request is due, as far as is known now; infinity when none is."""
        return self._due[0][0] if self._due else float("inf")

    @property
    def done(self) -> bool:
        """Nothing is left to come."""
        return not self._due and not self._waits_for

    def pop(self, now_s: float) -> list[int]:
        """The numbers of the requests due by now, in order."""
        out = []
        while self._due and self._due[0][0] <= now_s:
            out.append(heapq.heappop(self._due)[1])
        return out

    def ended(self, number: int, now_s: float) -> None:
        """A request has ended well; stages that waited for it alone are due after their delay."""
        for child in self._children.get(number, ()):
            if child not in self._waits_for:
                continue  # another parent failed
            self._waits_for[child] -= 1
            if not self._waits_for[child]:
                del self._waits_for[child]
                delay_s = self._requests[child].delay_s if self._delay is None else self._delay(child, now_s)
                self.due_s[child] = now_s + delay_s
                heapq.heappush(self._due, (float(self.due_s[child]), child))

    def failed(self, number: int) -> list[int]:
        """A request was refused or failed; the numbers of the stages that will therefore never come."""
        lost = []
        behind = [number]
        while behind:
            for child in self._children.get(behind.pop(), ()):
                if self._waits_for.pop(child, None) is not None:
                    lost.append(child)
                    behind.append(child)
        return lost
