"""What a workload is like, in numbers, and how far two are apart.

Bursts are judged as in BurstGPT (Wang et al., KDD 2025): by the coefficient of variation (CV) of the gaps between arrivals,
over the whole and in windows, where drift of the rate does not count as burstiness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.lab.workloads.base import Workload
from hasten.lab.workloads.transform import mean_rate

Floats = npt.NDArray[np.float64]

WINDOWS = 40
"""A trace's time is looked at in so many parts."""
LEAST_GAPS = 20
"""A window with fewer gaps says nothing of burstiness."""
CELLS = 12


@dataclass(frozen=True, slots=True)
class Windows:
    """Equal parts of a workload's time. `at_s` [k]: their middles; `rate` [k]: arrivals/s; `cv` [k]: of the gaps within, NaN
    where there are few. Arrivals are those of requests without parents."""

    at_s: Floats
    rate: Floats
    cv: Floats


def arrivals(workload: Workload) -> Floats:
    """Times of the requests without parents, float64 [n] in seconds, ascending."""
    return np.array([request.arrival_s for request in workload if not request.parents])


def lengths(workload: Workload) -> tuple[Floats, Floats]:
    """(prompt tokens, output tokens) of all requests, float64 [n] each."""
    pairs = np.array([(request.prompt_tokens, request.output_tokens) for request in workload], dtype=np.float64)
    return pairs[:, 0], pairs[:, 1]


def windows(workload: Workload, count: int = WINDOWS) -> Windows:
    """Rate and burstiness over time."""
    at_s = arrivals(workload)
    edges = np.linspace(at_s[0], at_s[-1], count + 1)
    if edges[0] == edges[-1]:
        return Windows(at_s[:1], np.full(1, np.inf), np.full(1, np.nan))
    first = np.searchsorted(at_s, edges[:-1])
    last = np.append(first[1:], len(at_s))
    cv = [_cv(np.diff(at_s[i:j])) if j - i > LEAST_GAPS else math.nan for i, j in zip(first, last, strict=True)]
    return Windows((edges[1:] + edges[:-1]) / 2, (last - first) / np.diff(edges), np.array(cv))


def statistics(workload: Workload) -> dict[str, float]:
    """The figures of a workload; NaN where one does not apply.

    Rates per second count all requests. `gap_cv`: CV of the gaps between arrivals, 1 for Poisson; `gap_cv_windows`: its median
    over windows. `peak_to_mean`: highest window's rate over the mean. `period_s`, `period_strength`: the lag at which arrivals
    per time repeat best and their autocorrelation there, NaN and 0 if no lag stands out from chance. `length_correlation`: of
    the logarithms of prompt and output length. `reuse_share`: share of prompt tokens that an unlimited prefix cache would hold
    already, were each prompt computed before the next arrives. `workflows`: with their `requests_per_workflow`."""
    at_s = arrivals(workload)
    gaps = np.diff(at_s)
    prompt, output = lengths(workload)
    parts = windows(workload)
    rate = mean_rate(workload)
    known = np.isfinite(parts.cv)
    period_s, strength = period(at_s)
    flows: dict[str, int] = {}
    for request in workload:
        if request.workflow:
            flows[request.workflow] = flows.get(request.workflow, 0) + 1
    figures = {
        "requests": float(len(workload)),
        "duration_s": workload.duration_s,
        "requests_per_s": rate,
        "prompt_tokens_per_s": rate * float(prompt.mean()),
        "output_tokens_per_s": rate * float(output.mean()),
        "gap_cv": _cv(gaps),
        "gap_cv_windows": float(np.median(parts.cv[known])) if known.any() else math.nan,
        "peak_to_mean": float(parts.rate.max() / parts.rate.mean()) if np.isfinite(rate) else math.nan,
        "period_s": period_s,
        "period_strength": strength,
    }
    for name, values in (("prompt", prompt), ("output", output)):
        figures[f"{name}_mean"] = float(values.mean())
        for quantile in (10, 50, 90, 99):
            figures[f"{name}_p{quantile}"] = float(np.percentile(values, quantile))
        figures[f"{name}_max"] = float(values.max())
    figures["length_correlation"] = _correlation(np.log(prompt), np.log(output))
    figures["reuse_share"] = reuse_share(workload)
    figures["workflows"] = float(len(flows))
    figures["requests_per_workflow"] = float(np.mean(list(flows.values()))) if flows else math.nan
    figures["waiting_share"] = sum(bool(request.parents) for request in workload) / len(workload)
    figures["failed_share"] = sum(request.failed for request in workload) / len(workload)
    return figures


def reuse_share(workload: Workload) -> float:
    """Share of prompt tokens whose block stood in an earlier prompt after the same blocks (blocks of a workload are numbered by
    their content, so only a leading run counts)."""
    seen: set[tuple[int, int]] = set()
    tokens = reused = 0
    size = workload.block_tokens
    for request in workload:
        tokens += request.prompt_tokens
        before, leading = -1, True
        for index, block in enumerate(request.blocks):
            key = (before, block)
            leading = leading and key in seen
            if leading:
                reused += min(size, request.prompt_tokens - index * size)
            seen.add(key)
            before = block
    return reused / tokens


def period(at_s: Floats) -> tuple[float, float]:
    """(seconds, strength) of the strongest repetition of arrivals per time, found by autocorrelation of up to 2,048 bins;
    (NaN, 0) if no peak is above what chance gives once in a hundred."""
    bins = min(2048, len(at_s) // 4)
    if bins < 16 or at_s[-1] <= at_s[0]:
        return math.nan, 0.0
    gaps = np.diff(at_s)
    width = (at_s[-1] - at_s[0]) / bins
    if np.mean(gaps == 0) > 0.5:
        # A clock with coarse ticks is no periodicity of the arrivals: as many ticks fall into each bin.
        tick = gaps[gaps > 0].min()
        width = tick * math.ceil(width / tick)
    bins = int((at_s[-1] - at_s[0]) / width) + 1
    if bins < 16:
        return math.nan, 0.0
    counts, _ = np.histogram(at_s, bins=at_s[0] + width * (np.arange(bins + 1) - 1e-6))
    signal = counts - np.polyval(np.polyfit(np.arange(bins), counts, 1), np.arange(bins))
    spectrum = np.abs(np.fft.rfft(signal, 2 * bins)) ** 2
    correlation = np.fft.irfft(spectrum)[: bins // 2]
    if correlation[0] <= 0:
        return math.nan, 0.0
    # Fewer pairs lie far apart; without this far lags would look weaker than they are.
    correlation = correlation / correlation[0] * bins / np.arange(bins, bins - bins // 2, -1)
    # A slow drift correlates at short lags without repeating: a period begins behind the first fall below 0.
    below = np.flatnonzero(correlation <= 0)
    if not len(below):
        return math.nan, 0.0
    later = correlation[below[0] :]
    # Multiples of a period correlate as well: the first lag that comes near the highest peak belongs to the period itself.
    near = int(below[0]) + int(np.argmax(later >= 0.8 * later.max()))
    lag = near + int(np.argmax(correlation[near : near + near // 4 + 1]))
    chance = math.sqrt(2 * math.log(100 * bins / 2) / bins)
    strength = float(correlation[lag])
    return (lag * float(width), strength) if strength > chance else (math.nan, 0.0)


def compare(one: Workload, other: Workload) -> dict[str, float]:
    """Distances of two workloads, all from 0 (alike) to 1.

    Kolmogorov-Smirnov distances of the gaps between arrivals (`ks_gaps`), of gaps over their mean (`ks_gap_shape`), of prompt
    and output lengths. `ks_noise`: what two samples of one distribution stay below 95 % of the time, with so many gaps.
    `joint_error`: total variation distance of (prompt, output) over a grid of CELLS x CELLS cells at the first workload's
    quantiles; `joint_noise`: its mean between two samples of so many requests from one distribution, estimated. `rate_ratio`:
    the other's mean rate over the first's."""
    gaps, other_gaps = np.diff(arrivals(one)), np.diff(arrivals(other))
    prompt, output = lengths(one)
    other_prompt, other_output = lengths(other)
    figures = {"rate_ratio": mean_rate(other) / mean_rate(one)}
    if len(gaps) and len(other_gaps):
        figures["ks_gaps"] = ks(gaps, other_gaps)
        figures["ks_gap_shape"] = ks(gaps / gaps.mean(), other_gaps / other_gaps.mean())
        figures["ks_noise"] = 1.358 * math.sqrt(1 / len(gaps) + 1 / len(other_gaps))
    figures["ks_prompt"] = ks(prompt, other_prompt)
    figures["ks_output"] = ks(output, other_output)
    figures["joint_error"], figures["joint_noise"] = _joint((prompt, output), (other_prompt, other_output))
    return figures


def ks(one: Floats, other: Floats) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest difference of their cumulative distributions."""
    one, other = np.sort(one), np.sort(other)
    places = np.concatenate([one, other])
    difference = np.searchsorted(one, places, "right") / len(one) - np.searchsorted(other, places, "right") / len(other)
    return float(np.abs(difference).max())


def _joint(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> tuple[float, float]:
    edges = [np.unique(np.quantile(values, np.linspace(0, 1, CELLS + 1)[1:-1])) for values in one]
    shape = (len(edges[0]) + 1, len(edges[1]) + 1)

    def shares(pair: tuple[Floats, Floats]) -> Floats:
        row, column = (np.searchsorted(edge, values) for edge, values in zip(edges, pair, strict=True))
        return np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]) / len(pair[0])

    p, q = shares(one), shares(other)
    pooled = (p * len(one[0]) + q * len(other[0])) / (len(one[0]) + len(other[0]))
    # The mean absolute value of a normal variable is sqrt(2/pi) standard deviations.
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / len(one[0]) + 1 / len(other[0])))
    return float(np.abs(p - q).sum() / 2), float(math.sqrt(2 / math.pi) * deviation.sum() / 2)


def _cv(gaps: Floats) -> float:
    mean = float(gaps.mean()) if len(gaps) else 0.0
    return float(gaps.std()) / mean if mean > 0 else math.nan


def _correlation(x: Floats, y: Floats) -> float:
    if len(x) < 2 or not x.std() or not y.std():
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
