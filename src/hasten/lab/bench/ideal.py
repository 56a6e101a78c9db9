"""Idealised runtime: what a request would take alone, as arithmetic (Cheaply Evaluating Inference Efficiency Metrics, 2023).

T(p, o) = F(p) + g (o - 1): F is the time of the prompt with its first token, tabulated and interpolated, g the constant time of
a further token. It holds while attention is small against the weights; the context term h, seconds per token attended to by a
further token, carries it to long outputs: T = F(p) + g (o - 1) + h sum of (p + i) for i in 1 .. o - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.lab.bench.metrics import Table, requests
from hasten.lab.bench.run import Floats, Run
from hasten.lab.workloads.base import TimedRequest, Workload

Point = tuple[int, int, float]
"""Prompt tokens, output tokens, seconds."""


@dataclass(frozen=True, slots=True)
class Ideal:
    """`prompts`, `first_s` float64 [k]: F's table, prompts ascending, times non-decreasing. `token_s`: g; `context_s`: h.
    `r2` and `worst` (largest relative error) on the points of the fit; judge it on points held out with `errors`."""

    prompts: Floats
    first_s: Floats
    token_s: float
    context_s: float
    r2: float
    worst: float

    def seconds(self, prompt: Floats | int, output: Floats | int) -> Floats:
        """Idealised seconds; beyond the table F goes on along its last segment, before it F is constant."""
        p, o = np.asarray(prompt, dtype=np.float64), np.asarray(output, dtype=np.float64)
        return _first(self.prompts, self.first_s, p) + self.token_s * (o - 1) + self.context_s * _attended(p, o)

    def errors(self, points: Sequence[Point]) -> Floats:
        """[n] relative errors |T ideal - T measured| / T measured."""
        p, o, t = _columns(points)
        return np.abs(self.seconds(p, o) - t) / t


def fit(points: Sequence[Point], *, context: bool = False) -> Ideal:
    """F from the points with one output token (their median, where repeated), then g, and h if `context`, by least squares on
    the others. Raises ValueError when either kind of point is missing."""
    p, o, t = _columns(points)
    single = o == 1
    if not single.any() or single.all():
        raise ValueError("a fit needs points of one output token, for F, and points of more, for g")
    prompts = np.unique(p[single])
    first_s = np.maximum.accumulate([np.median(t[single & (p == length)]) for length in prompts])
    terms = [o - 1, _attended(p, o)] if context else [o - 1]
    basis = np.stack(terms, axis=1)[~single]
    found = np.linalg.lstsq(basis, (t - _first(prompts, first_s, p))[~single], rcond=None)[0]
    token_s, context_s = float(found[0]), float(found[1]) if context else 0.0
    guess = _first(prompts, first_s, p) + token_s * (o - 1) + context_s * _attended(p, o)
    spread = float(((t - t.mean()) ** 2).sum())
    r2 = 1 - float(((t - guess) ** 2).sum()) / spread if spread else float("nan")
    return Ideal(prompts, first_s, token_s, context_s, r2, float((np.abs(guess - t) / t).max()))


def measure(replay: Callable[[Workload, int], Run], longest: int, *, repeats: int = 3) -> Ideal:
    """The idealised runtime of whatever `replay(workload, seed)` runs single requests on: up to eleven queries of at most
    `longest` tokens, one at a time, the fastest of `repeats` each. Raises RuntimeError when one of them fails."""
    prompts = [p for p in (1, 64, 256, 512, 1024, 1536) if p < longest - 64] or [1]
    queries = [(p, 1) for p in prompts] + [(p, o) for p in {prompts[0], prompts[-1]} for o in (16, 64) if p + o <= longest]
    points: list[Point] = []
    for repeat in range(repeats):
        for prompt, output in queries:
            request = TimedRequest(id="query", arrival_s=0.0, prompt_tokens=prompt, output_tokens=output)
            run = replay(Workload(name="one request", requests=[request]), 30_000 + 100 * repeat + len(points))
            if run.errors:
                raise RuntimeError(f"a request of {prompt} and {output} tokens failed: {run.errors[0]}")
            points.append((prompt, output, float(requests(run).e2e_s[0])))
    return fit(denoise(points), context=len(queries) > len(prompts) + 2)


def denoise(points: Sequence[Point]) -> list[Point]:
    """The fastest of the repeats of each (prompt, output): what contention added is gone, if one repeat escaped it."""
    best: dict[tuple[int, int], float] = {}
    for prompt, output, seconds in points:
        best[prompt, output] = min(seconds, best.get((prompt, output), np.inf))
    return [(prompt, output, seconds) for (prompt, output), seconds in best.items()]


def slowdown(table: Table, ideal: Ideal) -> Floats:
    """[n] measured end-to-end time over the idealised one, NaN for requests that did not end well: 1 is as if alone."""
    alone_s = ideal.seconds(table.prompt_tokens.astype(np.float64), table.output_tokens.astype(np.float64))
    return np.divide(table.e2e_s, alone_s, out=np.full(len(table), np.nan), where=table.ok)


def _columns(points: Sequence[Point]) -> tuple[Floats, Floats, Floats]:
    found = np.array(points, dtype=np.float64).reshape(-1, 3)
    if not len(found) or not (np.isfinite(found).all() and (found[:, :2] >= 1).all() and (found[:, 2] > 0).all()):
        raise ValueError("points are (prompt tokens >= 1, output tokens >= 1, seconds > 0), one at least")
    return found[:, 0], found[:, 1], found[:, 2]


def _first(prompts: Floats, first_s: Floats, p: Floats) -> Floats:
    inside = np.interp(p, prompts, first_s)
    if len(prompts) < 2:
        return inside
    slope = (first_s[-1] - first_s[-2]) / (prompts[-1] - prompts[-2])
    return inside + np.maximum(p - prompts[-1], 0) * slope


def _attended(p: Floats, o: Floats) -> Floats:
    """Tokens attended to by the o - 1 further tokens."""
    return (o - 1) * p + (o - 1) * o / 2
