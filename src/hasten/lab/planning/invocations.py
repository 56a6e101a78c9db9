"""Invocations of serverless functions, generated from published statistics: timers, bursts, workflows and plain requests.

Published by Serverless Cold Starts and Where to Find Them (Joosen et al., 2025) and used: the functions by trigger, the share
called at least once a minute (20 % in Region 1), a run's median time (100 ms in Region 1), the time of a start, the burstiness
of gaps (published for cold starts, taken here for the calls of each function). From Serverless in the Wild (Shahrad et al.,
2020): 45 % are called at most once an hour (said of applications), and the spread of the times of runs (log sd 2.36). Assumed,
because nothing is published: the periods of timers (common cron lines, evenly), the stages and the rate of workflows, the calls
of a burst. Functions called more often than every 10 s are left out: no policy lets them go cold. Start-up times are drawn for
every start by itself: a function's next one cannot be foreseen, which is hard on early starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hasten.lab.bench.run import Floats, Ints
from hasten.lab.workloads.coldstarts import GAP_MEAN_S, GAP_SD_S, gaps, start_ups

REGION_2 = {"timer": 0.55, "api": 0.28, "workflow": 0.05, "storage": 0.04, "async": 0.05, "sync": 0.03}
"""Functions by trigger in Region 2: timers alone 42 % and with an API 13 %, APIs alone 23 %, each other kind below 5 %
(Joosen et al., 2025)."""
AZURE = {"timer": 0.156, "api": 0.55, "workflow": 0.069, "storage": 0.152, "async": 0.073}
"""Functions by trigger at another provider (Shahrad et al., 2020), their queues as bursts: far fewer timers."""
SYNCHRONOUS = frozenset({"api", "workflow", "sync"})
"""Somebody waits for the answer."""
SMALL = 0.6
"""Share of functions in the small resource class."""
PERIODS_S = (60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
STAGES = (3, 4, 5)
BURST = 10.0
"""Mean calls of a burst of storage events."""
WORKFLOW_GAP_S = 60.0
"""Median over workflows of the mean gap between their calls."""
_GAP_CV = GAP_SD_S / GAP_MEAN_S
_LEAST_GAP_S, _MOST_GAP_S = 10.0, 6 * 3600.0
_MEDIAN_RUN_S, _LOG_SD_RUN, _MOST_RUN_S = 0.1, 2.36, 60.0
_JITTER_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """`resources`: the resource class of its pods. `period_s`: of a timer, else None. `child`: the function that a run's end
    invokes, for the stages of a workflow."""

    trigger: str
    synchronous: bool
    resources: str
    period_s: float | None = None
    child: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """n invocations of functions. `arrival_s` float64 [n]: NaN for those that a parent's end invokes; `function` int64 [n];
    `run_s` float64 [n]; `start_s` float64 [n]: what a start takes if the invocation meets no pod; `child` int64 [n]: the
    invocation that the end of this one brings about, −1 for none. `spare_start_s`: start-up times of starts that no invocation
    asked for, used in turn."""

    functions: list[Function]
    arrival_s: Floats
    function: Ints
    run_s: Floats
    start_s: Floats
    child: Ints
    spare_start_s: Floats
    duration_s: float

    def __len__(self) -> int:
        return len(self.function)


def generate(
    functions: int = 300, duration_s: float = 6 * 3600.0, seed: int = 0, shares: Mapping[str, float] = REGION_2
) -> Stream:
    """Invocations of about `functions` functions (each kind has one, and workflows are whole) over `duration_s` seconds."""
    if functions < 1 or not duration_s > 0:
        raise ValueError(f"at least one function and a duration above 0 s are needed, got {functions} and {duration_s:g} s")
    rng = np.random.default_rng(seed)
    made = _functions(functions, shares, rng)
    children = {f.child for f in made}
    times, numbers = [], []
    for number, function in enumerate(made):
        if number not in children:
            arrivals = _arrivals(function, duration_s, rng)
            times.append(arrivals)
            numbers.append(np.full(len(arrivals), number))
    arrival_s, function_of = np.concatenate(times), np.concatenate(numbers)
    order = np.argsort(arrival_s, kind="stable")
    arrival_s, function_of = arrival_s[order], function_of[order]

    # Every call of a workflow's first function brings the calls of its later stages with it.
    child = np.full(len(arrival_s), -1)
    blocks_a, blocks_f, blocks_c = [arrival_s], [function_of], [child]
    total, level = len(arrival_s), (function_of, 0)
    while True:
        follows = np.array([-1 if f.child is None else f.child for f in made])[level[0]]
        parents = np.flatnonzero(follows >= 0)
        if not len(parents):
            break
        blocks_c[-1][parents] = total + np.arange(len(parents))
        blocks_a.append(np.full(len(parents), np.nan))
        blocks_f.append(follows[parents])
        blocks_c.append(np.full(len(parents), -1))
        total, level = total + len(parents), (follows[parents], total)
    function_of = np.concatenate(blocks_f)
    mean_run_s = np.minimum(rng.lognormal(math.log(_MEDIAN_RUN_S), _LOG_SD_RUN, len(made)), _MOST_RUN_S)
    return Stream(
        functions=made,
        arrival_s=np.concatenate(blocks_a),
        function=function_of,
        run_s=mean_run_s[function_of] * rng.lognormal(-0.125, 0.5, total),
        start_s=start_ups(rng, total),
        child=np.concatenate(blocks_c),
        spare_start_s=start_ups(rng, 4096),
        duration_s=duration_s,
    )


def _functions(count: int, shares: Mapping[str, float], rng: np.random.Generator) -> list[Function]:
    made: list[Function] = []
    for trigger, share in shares.items():
        enough = len(made) + max(1, round(share * count))
        while len(made) < enough:
            resources = "small" if rng.random() < SMALL else "large"
            stages = int(rng.choice(STAGES)) if trigger == "workflow" else 1
            for stage in range(stages):
                function = Function(
                    trigger=trigger,
                    synchronous=trigger in SYNCHRONOUS,
                    resources=resources,
                    period_s=float(rng.choice(PERIODS_S)) if trigger == "timer" else None,
                    child=len(made) + 1 if stage + 1 < stages else None,
                )
                made.append(function)
    return made


def _arrivals(function: Function, duration_s: float, rng: np.random.Generator) -> Floats:
    """Ascending seconds in [0, duration_s)."""
    if function.period_s is not None:
        due = np.arange(rng.uniform(0, function.period_s), duration_s, function.period_s)
        due = due + rng.exponential(_JITTER_S, len(due))
        return due[due < duration_s]
    mean, deviation = (math.log(WORKFLOW_GAP_S), 1.0) if function.trigger == "workflow" else _rate()
    mean_gap_s = float(np.clip(rng.lognormal(mean, deviation), _LEAST_GAP_S, _MOST_GAP_S))
    bursts = function.trigger == "storage"
    times = _renewals(mean_gap_s * (BURST if bursts else 1.0), duration_s, rng)
    if bursts:
        times = np.repeat(times, rng.geometric(1 / BURST, len(times)))
    return times


def _renewals(mean_gap_s: float, duration_s: float, rng: np.random.Generator) -> Floats:
    """Times with Weibull gaps of the published burstiness. The process is old when the stream begins: a random share of a
    duration like it has passed already."""
    before = rng.uniform(1, 2) * max(duration_s, 10 * mean_gap_s)
    times = np.zeros(0)
    last = -before
    while last < duration_s:
        block = last + np.cumsum(gaps(rng, 64 + int((duration_s - last) / mean_gap_s), mean_gap_s, mean_gap_s * _GAP_CV))
        times = np.concatenate([times, block])
        last = float(block[-1])
    return times[(times >= 0) & (times < duration_s)]


def _rate() -> tuple[float, float]:
    """Log mean and log sd of the mean gap in seconds: 80 % of functions above a minute, 45 % above an hour."""
    below_minute, below_hour = -0.8416, 0.1257  # standard normal quantiles of 0.20 and 0.55
    deviation = math.log(60) / (below_hour - below_minute)
    return math.log(60) - below_minute * deviation, deviation
