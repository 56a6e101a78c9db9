"""A demand graph as arrays, for walking it many times at once.

Record r is a visit that was seen. A cell of a unit is what one value of its feature (see `graph.Features`) leaves of its
records or ways on; cells with too few observations are those of the unit without the feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.engine.scheduling.demand.graph import BUCKETS, BY_VISIT, NOBODY, VISITS, DemandGraph
from hasten.engine.scheduling.demand.prices import Prices
from hasten.engine.scheduling.demand.runs import Visit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FEWEST = 8
"""Observations of a cell that is believed."""
_CELLS = max(VISITS, BUCKETS) + 1


@dataclass(slots=True)
class Tables:
    """U units, R records. Of a record: `calls`, `prompt` (tokens of all of them), `output` (mean of a call), `longest` output,
    `service_s` in cost-model seconds, `time_s` it takes with steps of `Prices.step_s` (tools: as logged), `bucket` [R, 2]. Of
    a unit: `demand_by`, `branch_by` (features); cell c of unit u holds the records `records[u][start[u, c] : start[u, c] +
    count[u, c]]`, ascending by prompt; `ways` float64 [U, visits, buckets, U + 1]: cumulative probabilities of the next unit,
    the last being the end. `steps`: most units of a walk."""

    graph: DemandGraph
    calls: Ints
    prompt: Floats
    output: Floats
    longest: Floats
    service_s: Floats
    time_s: Floats
    bucket: Ints
    demand_by: Ints
    branch_by: Ints
    start: Ints
    count: Ints
    order: Ints
    ways: Floats
    steps: int

    @property
    def units(self) -> int:
        return len(self.demand_by)

    def cell(self, unit: int, number: int, history: list[int]) -> Ints:
        """The records that a visit to `unit`, the `number`-th of its run, may be like: ascending by prompt."""
        by = int(self.demand_by[unit])
        value = 0 if by == NOBODY else min(number, VISITS) if by == BY_VISIT else history[by]
        begin = int(self.start[unit, value])
        return self.order[begin : begin + int(self.count[unit, value])]

    def chances(self, unit: int, number: int, history: list[int]) -> Floats:
        """float64 [U + 1]: probability of each next unit, the end last; `history` as it is when the unit has ended."""
        by = int(self.branch_by[unit])
        return np.diff(self.ways[unit, min(number, VISITS), 0 if by == NOBODY else history[by]], prepend=0.0)


def tables(graph: DemandGraph, prices: Prices) -> Tables:
    units = len(graph.units)
    features = graph.features
    visits = [visit for seen in graph.seen for visit in seen.visits]
    calls = [np.array(visit.calls, dtype=np.float64).reshape(-1, 2) for visit in visits]
    served = [len(of) > 0 and not visit.backend for of, visit in zip(calls, visits, strict=True)]
    service = [
        float((prices.prompt(of[:, 0]) + prices.output(of[:, 0], of[:, 1])).sum()) if here else 0.0
        for of, here in zip(calls, served, strict=True)
    ]
    prompt = np.array([of[:, 0].sum() for of in calls])
    start, count = np.zeros((units, _CELLS), dtype=np.int64), np.zeros((units, _CELLS), dtype=np.int64)
    order: list[Ints] = []
    ways = np.zeros((units, VISITS + 1, BUCKETS + 1, units + 1))
    first = filled = 0
    for unit, seen in enumerate(graph.seen):
        numbers = first + np.arange(len(seen.visits))
        numbers = numbers[np.argsort(prompt[numbers], kind="stable")]
        by = features.demand[unit]
        visit = np.minimum(seen.number, VISITS)
        value = np.zeros_like(visit) if by == NOBODY else visit if by == BY_VISIT else seen.before[:, by]
        start[unit], count[unit] = filled, len(numbers)
        order.append(numbers)
        filled += len(numbers)
        for cell in np.unique(value) if by != NOBODY else ():
            inside = numbers[value[numbers - first] == cell]
            if len(inside) >= FEWEST:
                start[unit, cell], count[unit, cell] = filled, len(inside)
                order.append(inside)
                filled += len(inside)
        _ways(ways[unit], seen.next % (units + 1), visit, seen.after[:, features.branch[unit]], features.branch[unit], units)
        first += len(seen.visits)
    return Tables(
        graph=graph,
        calls=np.array([len(of) for of in calls], dtype=np.int64),
        prompt=prompt,
        output=np.array([of[:, 1].mean() if len(of) else 0.0 for of in calls]),
        longest=np.array([of[:, 1].max() if len(of) else 0.0 for of in calls]),
        service_s=np.array(service),
        time_s=np.array([_time(visit, of, prices) for visit, of in zip(visits, calls, strict=True)]),
        bucket=np.concatenate([seen.bucket for seen in graph.seen]),
        demand_by=np.array(features.demand),
        branch_by=np.array(features.branch),
        start=start,
        count=count,
        order=np.concatenate(order),
        ways=ways,
        steps=2 * max(len(run) for run in graph.runs),
    )


def _ways(ways: Floats, following: Ints, visit: Ints, bucket: Ints, by: int, units: int) -> None:
    """Fill in the cumulative chances [visits, buckets, units + 1] of one unit."""
    everybody = np.ones(len(following), dtype=bool)
    for value in range(ways.shape[1]):
        inside = everybody if by == NOBODY else bucket == value
        if inside.sum() < FEWEST:
            inside = everybody
        for number in range(1, ways.shape[0]):
            rows, least = inside & (visit == number), number
            while rows.sum() < FEWEST and least > 0:  # repeats that few runs reached go on as those just before them
                rows, least = inside & (visit >= least), least - 1
            counts = np.bincount(following[rows], minlength=units + 1)
            ways[number, value] = np.cumsum(counts) / counts.sum()


def _time(visit: Visit, calls: Floats, prices: Prices) -> float:
    if len(calls) and not visit.backend:
        return visit.delay_s + float((prices.prompt(calls[:, 0]) + calls[:, 1] * prices.step_s).max())
    return visit.delay_s + (0.0 if math.isnan(visit.duration_s) else visit.duration_s)
