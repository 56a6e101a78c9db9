"""A generator fitted to a trace, after BurstGPT (Wang et al., BurstGPT, KDD 2025).

As there, gaps between arrivals are gamma distributed and the fit is repeated in sliding windows, so that rate and burstiness
(coefficient of variation, 1/√shape) drift as they did in the trace. Services (`TimedRequest.application`) are fitted apart and
their streams merged. Our modelling, where the paper says less:

- The gamma's shape has the closed form of Ye & Chen (The American Statistician, 2017), close to maximum likelihood.
- Prompt lengths are the trace's quantiles rather than a Zipf law: they hold any tail up to the longest seen. Output lengths are
  quantiles too, of the requests with prompts of similar length, so the joint is kept, be it bimodal or linear.
- The share of failures is a line over the load at the time, relative to the mean, fitted by least squares.

Sessions are not generated (see `conversations`). Times recorded in whole seconds or another coarse unit are spread evenly over
that unit first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.generate import check_count, check_positive

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WINDOW_REQUESTS = 500
LEAST_REQUESTS = 50
CLASS_REQUESTS = 100
MOST_CLASSES = 64

_PROMPT_AT = np.concatenate([np.linspace(0, 0.99, 100), [0.995, 0.998, 0.999, 1.0]])
_OUTPUT_AT = np.linspace(0, 1, 51)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One application's part. `rate` (requests/s) and `cv` are at the times k · `Parameters.step_s`. `prompt`: quantiles of the
    prompt length. `edges`: where classes of prompt lengths end (all but the last); `output`: quantiles of the output length for
    each class. A request fails with probability `failure[0]` + `failure[1]` · load over mean load, where that is above 0."""

    application: str
    requests: int
    rate: tuple[float, ...]
    cv: tuple[float, ...]
    prompt: tuple[float, ...]
    edges: tuple[float, ...]
    output: tuple[tuple[float, ...], ...]
    failure: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What `fit` found. `step_s`: between the centres of neighbouring windows; `duration_s`: the length of the fitted trace."""

    services: tuple[Service, ...]
    step_s: float
    duration_s: float
    source: str

    @property
    def requests(self) -> int:
        return sum(service.requests for service in self.services)


def fit(workload: Workload, window_s: float | None = None) -> Parameters:
    """Fit a workload whose requests have arrival times of their own (no stages).

    `window_s`: length of a window, moved by half; None: as long as WINDOW_REQUESTS arrivals take on average. Raises
    WorkloadError for stages, fewer than LEAST_REQUESTS requests, and where all arrive at once."""
    if workload.has_stages:
        raise WorkloadError(
            f"{workload.name}: stages arrive when others end: only requests with times of their own can be fitted"
        )
    if len(workload) < LEAST_REQUESTS:
        raise WorkloadError(
            f"{workload.name}: {len(workload)} requests are too few to fit; at least {LEAST_REQUESTS} are needed"
        )
    begin_s = workload.requests[0].arrival_s
    duration_s = workload.duration_s - begin_s
    if duration_s <= 0:
        raise WorkloadError(f"{workload.name}: all requests arrive at once: there are no gaps to fit")
    window_s = window_s or min(duration_s, WINDOW_REQUESTS * duration_s / len(workload))
    check_positive("window_s", window_s)
    # The last window keeps at least a quarter of its length inside the trace.
    centres = np.arange(0.0, duration_s + window_s / 4, window_s / 2)
    apart: dict[str, list[TimedRequest]] = {}
    for request in workload:
        apart.setdefault(request.application, []).append(request)
    services = tuple(_service(name, requests, begin_s, duration_s, centres, window_s) for name, requests in apart.items())
    source = workload.source or workload.name
    return Parameters(services=services, step_s=window_s / 2, duration_s=duration_s, source=source)


def generate(
    parameters: Parameters,
    *,
    requests: int | None = None,
    rate: float | None = None,
    cv: float | None = None,
    failures: bool = False,
    seed: int = 0,
) -> Workload:
    """A workload as the fitted trace might have gone on or gone differently; the same for the same seed.

    `requests`: how many, as many as were fitted if None; the drift starts anew where the fitted time ends. `rate`: mean
    requests/s of the whole, by stretching time; None: as fitted. `cv`: burstiness scaled until its mean over time is this.
    `failures`: requests fail as often as they did at such load: they are marked `failed` and ask for one token."""
    total = parameters.requests if requests is None else requests
    check_count("requests", total)
    rng = np.random.default_rng(seed)
    rows: list[tuple[float, int, int, str, bool]] = []
    counts = _shared_out(total, [service.requests for service in parameters.services])
    for service, count, own in zip(parameters.services, counts, rng.spawn(len(counts)), strict=True):
        if count:
            of_arrivals, of_lengths, of_failures = own.spawn(3)
            at_s, load = _arrivals(of_arrivals, service, parameters, count, cv)
            prompt, output = _lengths(of_lengths, service, count)
            failed = np.zeros(count, dtype=bool)
            if failures:
                failed = of_failures.random(count) < service.failure[0] + service.failure[1] * load
                output[failed] = 1
            names = [service.application] * count
            rows += zip(at_s.tolist(), prompt.tolist(), output.tolist(), names, failed.tolist(), strict=True)
    rows.sort(key=lambda row: row[0])
    factor = 1.0
    if rate is not None:
        check_positive("rate", rate)
        factor = (total - 1) / rate / (rows[-1][0] - rows[0][0]) if total > 1 else 1.0
    made = [
        TimedRequest(
            id=str(number),
            arrival_s=(at_s - rows[0][0]) * factor,
            prompt_tokens=prompt,
            output_tokens=output,
            application=name,
            failed=lost,
        )
        for number, (at_s, prompt, output, name, lost) in enumerate(rows)
    ]
    changes = "".join(f", {name} {value:g}" for name, value in (("rate", rate), ("CV", cv)) if value is not None)
    source = f"generated like ({parameters.source}): {total:,} requests{changes}{', failures' if failures else ''}, seed {seed}"
    return Workload(name="burst", requests=made, source=source)


def like(
    *,
    trace: str = "azure-llm-2023-conv",
    requests: int | None = None,
    rate: float | None = None,
    cv: float | None = None,
    failures: bool = False,
    seed: int = 0,
) -> Workload:
    """Requests like those of the workload called `trace`, which is fitted first (see `generate`)."""
    from hasten.lab.workloads import load  # which knows this generator by name

    fitted = fit(load(f"{trace}:failures=keep" if failures else trace))
    return generate(fitted, requests=requests, rate=rate, cv=cv, failures=failures, seed=seed)


def _service(
    name: str, requests: list[TimedRequest], begin_s: float, duration_s: float, centres: Floats, window_s: float
) -> Service:
    at_s = _spread(np.array([request.arrival_s for request in requests]) - begin_s, duration_s)
    failed = np.array([request.failed for request in requests])
    low, high = np.clip(centres - window_s / 2, 0, duration_s), np.clip(centres + window_s / 2, 0, duration_s)
    first, last = np.searchsorted(at_s, low), np.searchsorted(at_s, high, side="right")
    rate = (last - first) / np.maximum(high - low, 1e-9)
    overall = _cv(np.diff(at_s)) if len(at_s) > 2 else 1.0
    # A window with few arrivals says little of its burstiness.
    cv = [_cv(np.diff(at_s[i:j])) if j - i >= LEAST_REQUESTS else overall for i, j in zip(first, last, strict=True)]
    answered = ~failed
    prompt = np.array([request.prompt_tokens for request in requests], dtype=np.float64)
    output = np.array([request.output_tokens for request in requests], dtype=np.float64)
    edges, tables = _joint(prompt[answered], output[answered]) if answered.any() else ((), ((1.0,) * len(_OUTPUT_AT),))
    return Service(
        application=name,
        requests=len(requests),
        rate=tuple(rate.tolist()),
        cv=tuple(cv),
        prompt=tuple(np.quantile(prompt, _PROMPT_AT).tolist()),
        edges=edges,
        output=tables,
        failure=_failure(failed, first, last, rate),
    )


def _spread(at_s: Floats, duration_s: float) -> Floats:
    """Times with the ties of a coarse clock undone: each moved by a part of the clock's unit."""
    gaps = np.diff(at_s)
    if not len(gaps) or np.mean(gaps == 0) < 0.01 or not gaps.any():
        return at_s
    unit = gaps[gaps > 0].min()
    return np.minimum(np.sort(at_s + unit * np.random.default_rng(0).random(len(at_s))), duration_s)


def _cv(gaps: Floats) -> float:
    """Coefficient of variation of the gamma distribution that fits the gaps (Ye & Chen, 2017)."""
    x = np.maximum(gaps, 1e-9)
    logs = np.log(x)
    inverse_shape = float((x * logs).mean() / x.mean() - logs.mean())
    return math.sqrt(max(inverse_shape, 1e-4))


def _joint(prompt: Floats, output: Floats) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    classes = int(np.clip(len(prompt) // CLASS_REQUESTS, 1, MOST_CLASSES))
    edges = np.unique(np.quantile(prompt, np.linspace(0, 1, classes + 1)[1:-1]))
    member = np.searchsorted(edges, prompt)
    used = np.unique(member)
    edges = edges[used[:-1]]  # a class nobody is in merges with the next
    member = np.searchsorted(edges, prompt)
    tables = [np.quantile(output[member == c], _OUTPUT_AT) for c in range(len(edges) + 1)]
    return tuple(edges.tolist()), tuple(tuple(table.tolist()) for table in tables)


def _failure(failed: npt.NDArray[np.bool_], first: Ints, last: Ints, rate: Floats) -> tuple[float, float]:
    """(share at no load, more at mean load): the line through each window's share, weighted by its requests."""
    counts = last - first
    seen = counts > 0
    if not failed.any() or not seen.any():
        return (0.0, 0.0)
    so_far = np.concatenate([[0], np.cumsum(failed)])
    share = (so_far[last] - so_far[first])[seen] / counts[seen]
    weight = counts[seen] / counts[seen].sum()
    load = rate[seen] / np.average(rate[seen], weights=weight)
    mean_share = float(weight @ share)
    spread = float(weight @ (load - 1) ** 2)
    slope = float(weight @ ((load - 1) * (share - mean_share))) / spread if spread > 1e-12 else 0.0
    slope = max(slope, 0.0)  # fewer failures at higher load would be chance
    return (mean_share - slope, slope)


def _shared_out(total: int, weights: list[int]) -> list[int]:
    """Whole numbers that add up to `total`, as `weights` are to each other."""
    upto = np.rint(np.cumsum(weights) / sum(weights) * total).astype(int)
    return np.diff(upto, prepend=0).tolist()


def _arrivals(
    rng: np.random.Generator, service: Service, parameters: Parameters, count: int, cv: float | None
) -> tuple[Floats, Floats]:
    """Times float64 [count] and the load at them relative to the mean.

    Unit gaps are drawn on a time that runs as fast as the rate is, then mapped back to seconds."""
    rate = np.maximum(np.array(service.rate), 1e-12)
    spread = np.array(service.cv)
    if cv is not None:
        check_positive("cv", cv)
        spread = spread * cv / float(np.average(spread, weights=rate))
    # One pass over the fitted time: at `knots` seconds, `passed` requests are expected to have come.
    step = parameters.step_s
    knots = np.append(np.arange(0.0, parameters.duration_s, step), parameters.duration_s)
    at_knots = np.interp(knots, step * np.arange(len(rate)), rate)
    passed = np.concatenate([[0.0], np.cumsum(np.diff(knots) * (at_knots[1:] + at_knots[:-1]) / 2)])
    passed *= service.requests / passed[-1]

    def seconds(place: Floats) -> tuple[Floats, Floats]:
        rounds, rest = np.divmod(place, service.requests)
        within = np.interp(rest, passed, knots)
        return rounds * parameters.duration_s + within, within

    _, expected = seconds(np.arange(count, dtype=np.float64) + 0.5)
    shape = 1.0 / np.interp(expected, step * np.arange(len(rate)), spread) ** 2
    gaps = rng.gamma(shape, 1.0 / shape)
    place = np.cumsum(gaps)
    if place[-1] <= 0:
        raise WorkloadError(f"{count} arrivals are too few for a coefficient of variation of {spread.max():g}")
    place *= count / place[-1]  # so many requests in the time that so many take on average
    at_s, within = seconds(place)
    load = np.interp(within, step * np.arange(len(rate)), rate)
    return at_s, load / float(np.average(rate, weights=rate))


def _lengths(rng: np.random.Generator, service: Service, count: int) -> tuple[Ints, Ints]:
    prompt = np.exp(np.interp(rng.random(count), _PROMPT_AT, np.log(service.prompt)))
    prompt = np.maximum(np.rint(prompt), 1)
    member = np.searchsorted(np.array(service.edges), prompt)
    place = rng.random(count)
    output = np.empty(count)
    for c, table in enumerate(service.output):
        mine = member == c
        output[mine] = np.exp(np.interp(place[mine], _OUTPUT_AT, np.log(table)))
    return prompt.astype(np.int64), np.maximum(np.rint(output), 1).astype(np.int64)
