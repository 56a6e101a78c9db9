"""Independent requests: Poisson or gamma arrivals, log-normal lengths.

Default lengths are those of the Azure conversation trace (Patel et al., Splitwise, ISCA 2024): medians of 1,020 prompt and 129
output tokens as published; the spreads (standard deviation of the logarithm: 0.99 and 0.86) are measured on the public trace.
Gamma gaps of a chosen coefficient of variation are how BurstGPT (Wang et al., KDD 2025) models bursts.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError

PROMPT, PROMPT_SIGMA = 1020, 0.99
OUTPUT, OUTPUT_SIGMA = 129, 0.86
LONGEST = 16_384


def poisson(
    *,
    rate: float = 4.0,
    requests: int = 500,
    prompt: float = PROMPT,
    prompt_sigma: float = PROMPT_SIGMA,
    output: float = OUTPUT,
    output_sigma: float = OUTPUT_SIGMA,
    longest: int = LONGEST,
    seed: int = 0,
) -> Workload:
    """Independent requests with Poisson arrivals at `rate` a second.

    `requests`: how many. `prompt`, `output`: median lengths in tokens; `*_sigma`:
    standard deviations of their logarithms; `longest`: no length is above."""
    what = f"Poisson arrivals at {rate:g} requests/s"
    return _independent("poisson", what, rate, 1.0, requests, prompt, prompt_sigma, output, output_sigma, longest, seed)


def gamma(
    *,
    rate: float = 4.0,
    cv: float = 2.0,
    requests: int = 500,
    prompt: float = PROMPT,
    prompt_sigma: float = PROMPT_SIGMA,
    output: float = OUTPUT,
    output_sigma: float = OUTPUT_SIGMA,
    longest: int = LONGEST,
    seed: int = 0,
) -> Workload:
    """Independent requests that arrive in bursts.

    As `poisson`, with gaps of the coefficient of variation `cv`: 1 is Poisson, above comes in bursts, below is regular."""
    what = f"gamma arrivals at {rate:g} requests/s, CV {cv:g}"
    return _independent("gamma", what, rate, cv, requests, prompt, prompt_sigma, output, output_sigma, longest, seed)


def _independent(
    name: str,
    what: str,
    rate: float,
    cv: float,
    requests: int,
    prompt: float,
    prompt_sigma: float,
    output: float,
    output_sigma: float,
    longest: int,
    seed: int,
) -> Workload:
    check_count("requests", requests)
    # Arrivals and lengths have generators of their own, so that changing the one leaves the other as it was.
    of_arrivals, of_lengths = np.random.default_rng(seed).spawn(2)
    at_s = arrivals(of_arrivals, requests, rate, cv)
    prompts = lengths(of_lengths, requests, prompt, prompt_sigma, longest)
    outputs = lengths(of_lengths, requests, output, output_sigma, longest)
    rows = zip(at_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    made = [TimedRequest(id=str(i), arrival_s=t, prompt_tokens=p, output_tokens=o) for i, (t, p, o) in enumerate(rows)]
    source = (
        f"{what}, {requests} requests, log-normal lengths (prompt median {prompt:g}, sigma {prompt_sigma:g}; "
        f"output {output:g}, {output_sigma:g}; at most {longest}), seed {seed}"
    )
    return Workload(name=name, requests=made, source=source)


def arrivals(rng: np.random.Generator, count: int, rate: float, cv: float = 1.0) -> npt.NDArray[np.float64]:
    """float64 [count], seconds: the first at 0, gamma gaps of coefficient of variation `cv`, stretched as a whole so that the
    mean rate is exactly `rate` (of Poisson arrivals that leaves Poisson arrivals, given their number)."""
    check_positive("rate", rate)
    check_positive("cv", cv)
    gaps = rng.gamma(1.0 / cv**2, cv**2, count - 1)
    total = gaps.sum()
    if count > 1 and total <= 0:
        raise WorkloadError(f"{count} arrivals are too few for a coefficient of variation of {cv:g}")
    at = np.zeros(count)
    np.cumsum(gaps, out=at[1:])
    return at * ((count - 1) / rate / total) if count > 1 else at


def lengths(rng: np.random.Generator, count: int, median: float, sigma: float, longest: int) -> npt.NDArray[np.int64]:
    """int64 [count]: log-normal lengths in [1, longest]."""
    check_positive("the median length", median)
    check_count("longest", longest)
    if not math.isfinite(sigma) or sigma < 0:
        raise WorkloadError(f"the spread of lengths must be a number from 0 on, got {sigma}")
    drawn = np.exp(rng.normal(math.log(median), sigma, count))
    return np.clip(np.rint(drawn), 1, longest).astype(np.int64)


def check_positive(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise WorkloadError(f"{name} must be a positive number, got {value}")


def check_count(name: str, value: int, low: int = 1) -> None:
    if value < low:
        raise WorkloadError(f"{name} must be at least {low}, got {value}")
