"""Start-up times and gaps between cold starts of serverless workers, as published ("Serverless Cold Starts and Where to Find
Them", Joosen et al., EuroSys 2025): start-up times are log-normal with a mean of 3.24 s and a standard deviation of 7.10 s, the
gaps between cold starts Weibull distributed with a mean of 1.25 s and a standard deviation of 3.66 s.

The paper gives moments; here they become the distributions' parameters.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hasten.lab.workloads.base import Workload, WorkloadError
from hasten.lab.workloads.generate import check_positive
from hasten.lab.workloads.jsonl import in_order

START_MEAN_S, START_SD_S = 3.24, 7.10
GAP_MEAN_S, GAP_SD_S = 1.25, 3.66

Floats = npt.NDArray[np.float64]


def lognormal_parameters(mean: float, sd: float) -> tuple[float, float]:
    """(mu, sigma): mean and standard deviation of the logarithm of a log-normal variable with these moments."""
    _check_moments(mean, sd)
    variance = math.log1p((sd / mean) ** 2)
    return math.log(mean) - variance / 2, math.sqrt(variance)


def weibull_parameters(mean: float, sd: float) -> tuple[float, float]:
    """(shape, scale) of the Weibull distribution with these moments; the shape by bisection of the coefficient of variation,
    which falls as the shape grows. Raises WorkloadError for a coefficient beyond what shapes from 0.1 to 100 have."""
    _check_moments(mean, sd)
    wanted = 2 * math.log(sd / mean)

    def too_spread(shape: float) -> bool:
        log_squares = math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)
        return math.log(math.expm1(log_squares)) > wanted

    low, high = 0.1, 100.0
    if not too_spread(low) or too_spread(high):
        raise WorkloadError(
            f"no Weibull distribution of a shape from {low:g} to {high:g} has mean {mean:g} and deviation {sd:g}"
        )
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_spread(middle) else (low, middle)
    shape = math.sqrt(low * high)
    return shape, mean / math.gamma(1 + 1 / shape)


def start_ups(rng: np.random.Generator, count: int, mean_s: float = START_MEAN_S, sd_s: float = START_SD_S) -> Floats:
    """Start-up times, float64 [count] in seconds."""
    mu, sigma = lognormal_parameters(mean_s, sd_s)
    return rng.lognormal(mu, sigma, count)


def gaps(rng: np.random.Generator, count: int, mean_s: float = GAP_MEAN_S, sd_s: float = GAP_SD_S) -> Floats:
    """Seconds from each cold start to the next, float64 [count]."""
    shape, scale = weibull_parameters(mean_s, sd_s)
    return scale * rng.weibull(shape, count)


def delayed(workload: Workload, gap_mean_s: float = GAP_MEAN_S, seed: int = 0) -> Workload:
    """The workload behind workers that start cold: at each cold start the next request to arrive (each only once) reaches the
    engine a start-up time later. Cold starts are `gap_mean_s` apart on average, with the published spread relative to it.
    Stages that wait for others are not delayed: by then their workflow has its worker."""
    check_positive("gap_mean_s", gap_mean_s)
    of_gaps, of_starts = np.random.default_rng(seed).spawn(2)
    roots = [number for number, request in enumerate(workload) if not request.parents]
    at_s = np.array([workload.requests[number].arrival_s for number in roots])
    sd_s = gap_mean_s * GAP_SD_S / GAP_MEAN_S
    cold_s = at_s[:1] + gaps(of_gaps, 1, gap_mean_s, sd_s)
    while cold_s[-1] <= at_s[-1]:
        more = 16 + int(1.2 * (at_s[-1] - cold_s[-1]) / gap_mean_s)
        cold_s = np.append(cold_s, cold_s[-1] + np.cumsum(gaps(of_gaps, more, gap_mean_s, sd_s)))
    hit = np.unique(np.searchsorted(at_s, cold_s[cold_s <= at_s[-1]]))
    requests = list(workload.requests)
    for place, delay_s in zip(hit.tolist(), start_ups(of_starts, len(hit)).tolist(), strict=True):
        request = requests[roots[place]]
        requests[roots[place]] = replace(request, arrival_s=request.arrival_s + delay_s)
    done = f"{len(hit)} of {len(roots)} arrivals delayed by cold starts {gap_mean_s:g} s apart, seed {seed}"
    return replace(workload, requests=in_order(requests), source=f"{workload.source or workload.name}; {done}")


def _check_moments(mean: float, sd: float) -> None:
    check_positive("the mean", mean)
    check_positive("the standard deviation", sd)
