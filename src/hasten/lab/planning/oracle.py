"""Orders that know how long everything will be: bounds for those that have to guess. For simulation only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Literal

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.scheduling.base import View
from hasten.engine.scheduling.demand.application import attained
from hasten.engine.scheduling.demand.prices import Prices
from hasten.engine.sequence import Sequence
from hasten.lab.workloads.base import Workload

STEP_TOKENS = 512


class OracleSRPT:
    """Shortest remaining service first, of the call or of the whole application run, in the seconds that Hermes estimates.

    Keys are renewed after each of `every` steps, so it has no `steady`."""

    stale_on: frozenset[Kind] = frozenset()
    learns_from = frozenset({Kind.STEP, Kind.FINISHED})
    lifetime_s = math.inf

    def __init__(self, workload: Workload, per: Literal["request", "application"], every: int = 8) -> None:
        self._requests = workload.requests
        self._per = per
        self._every, self._steps = every, 0
        self._prices: Prices | None = None
        self._left: dict[str, float] = {}
        """Service of each workflow that has not begun or is under way, that of ended calls taken off."""

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        prices = self._priced(view)
        if self._per == "request":
            return np.array([self._whole(seq) - attained(seq, prices) for seq in stale])
        left: dict[str, float] = {}
        for seq in stale:
            workflow = self._workflow(seq)
            if workflow not in left:
                live = view.workflow(seq).live.values()
                left[workflow] = self._left[workflow] - sum(attained(one, prices) for one in live)
        return np.array([left[self._workflow(seq)] for seq in stale])

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind is Kind.FINISHED:
            assert sequence is not None
            self._priced(view)
            self._left[self._workflow(sequence)] -= self._whole(sequence)
            return list(view.workflow(sequence).live) if sequence.request.app.workflow else ()
        self._steps += 1
        if self._steps % self._every:
            return ()
        touched = [seq for seq in view.sequences if seq.view.length]
        if self._per == "request":
            return [seq.id for seq in touched]
        return {id for seq in touched for id in view.workflow(seq).live}

    def _number(self, seq: Sequence) -> int:
        return int(seq.request.id.rpartition("-")[2])  # as `bench.drive` names its requests

    def _workflow(self, seq: Sequence) -> str:
        request = self._requests[self._number(seq)]
        return request.workflow or request.id

    def _whole(self, seq: Sequence) -> float:
        request = self._requests[self._number(seq)]
        assert self._prices is not None
        return service_s(request.prompt_tokens, request.output_tokens, self._prices)

    def _priced(self, view: View) -> Prices:
        if self._prices is None:
            self._prices = Prices.of(view, STEP_TOKENS)
            for request in self._requests:
                name = request.workflow or request.id
                whole = service_s(request.prompt_tokens, request.output_tokens, self._prices)
                self._left[name] = self._left.get(name, 0.0) + whole
        return self._prices


def service_s(prompt: int, output: int, prices: Prices) -> float:
    return float(prices.prompt(prompt) + prices.output(prompt, output))
