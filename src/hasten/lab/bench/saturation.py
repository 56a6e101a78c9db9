"""How much a server can take: the highest rate that keeps its objectives, and the throughput when everything comes at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from hasten.engine.technique import ConfigError
from hasten.lab.bench import metrics
from hasten.lab.bench.run import Run
from hasten.lab.workloads.base import Workload

_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Probe:
    """One measured load: `rate` in requests per second, `attainment` the share of requests that kept the objectives (0..1).
    `figures`: a run's summary, for the throughput-latency curve."""

    rate: float
    attainment: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saturation:
    """`rate`: the highest measured rate that met the attainment asked for, 0 if none did. `fails_at`: the lowest measured one
    above it that did not, infinity if none: the truth lies between. `probes` in order of rate."""

    rate: float
    fails_at: float
    probes: list[Probe]


def search(
    measure: Callable[[float], Probe], start: float, *, attainment: float = 0.9, tolerance: float = 0.05, most: int = 16
) -> Saturation:
    """Double or halve the rate from `start` until one rate meets `attainment` and the next does not, then halve the interval
    (geometrically) until its ends differ by at most `tolerance` of the lower, or `most` rates were measured. It gives up below
    a 16th of `start`: the same requests at half the rate take twice as long, and a system so far off is off for other reasons.

    Attainment is taken to fall with the rate; where noise makes it rise again, the answer is one of the crossings. Raises
    ValueError for a start or tolerance that is not above 0, or an attainment outside (0, 1]."""
    if not (start > 0 and tolerance > 0 and 0 < attainment <= 1):
        raise ValueError(f"start and tolerance must be above 0 and attainment in (0, 1]: {start}, {tolerance}, {attainment}")
    probes: list[Probe] = []
    low, high = 0.0, math.inf
    rate = start
    while len(probes) < most and high > low * (1 + tolerance):
        probe = measure(rate)
        probes.append(probe)
        if probe.attainment >= attainment:
            low = max(low, rate)
        else:
            high = min(high, rate)
        if math.isinf(high):
            rate = 2 * low
        elif low:
            rate = math.sqrt(low * high)
        elif high > start / _DEEPEST:
            rate = high / 2
        else:
            break
    return Saturation(low, high, sorted(probes, key=lambda probe: probe.rate))


def throughput(replay: Callable[[Workload], Run], workload: Workload) -> float:
    """Requests per second when all of the workload's requests come at once (stages after their parents): the saturation
    throughput that a load is a share of. Raises ConfigError when requests fail."""
    crowd = dataclasses.replace(
        workload,
        name=f"{workload.name}, all at once",
        requests=[dataclasses.replace(request, arrival_s=0.0, delay_s=0.0) for request in workload],
    )
    run = replay(crowd)
    if run.errors:
        number, error = next(iter(run.errors.items()))
        raise ConfigError(
            f"{len(run.errors)} of {len(crowd)} requests failed while all came at once, so there is no saturation "
            f"throughput to take a share of; number {number}: {error}"
        )
    return metrics.summary(run)["requests_per_s"]
