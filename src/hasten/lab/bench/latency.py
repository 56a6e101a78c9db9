"""Latency of single steps, against what the machine's bandwidth and arithmetic allow.

The engine's own loop runs with the given number of sequences; prefill and decode are timed from its step events, the parts of a
step from the executor's stopwatch in separate runs (it costs a clock read an op).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

import numpy as np

from hasten.engine.build import Built
from hasten.engine.executors.local import LocalExecutor
from hasten.engine.request import Request, SamplingParams
from hasten.lab.bench import machine

READING = ("linear", "experts", "head", "attention")
"""Kinds of op that read the weights and the KV; all else of a step is the engine's own share."""


@dataclass(slots=True)
class Point:
    """One measured case. Seconds are medians of a step; `spread` is the interquartile range. `bound_s` is what the limits
    measured around the run allow: for decode the slower of reading the weights and multiplying by them, then reading the KV;
    for prefill all its FLOP at the matmul rate."""

    what: str
    batch: int
    prompt: int
    seconds: float
    spread: float
    tokens_per_s: float
    bound_s: float
    share_of_bound: float
    parts: dict[str, float] = field(default_factory=dict)
    own_s: float | None = None


def run(
    built: Built,
    batches: Sequence[int],
    prompts: Sequence[int],
    output: int,
    breakdown: bool,
    rounds: int = 3,
    advance: Callable[[str], None] = lambda label: None,
) -> dict[str, Any]:
    """Prefill of each prompt length alone, then decode of each batch after the first prompt length."""
    before = machine.measure(built.parts.model.dtype)
    points = []
    for prompt in prompts:
        advance(f"prefill {prompt}")
        points.append(_prefill(built, prompt, rounds, breakdown))
    for batch in batches:
        advance(f"decode {batch}")
        points.append(_decode(built, batch, prompts[0], output, breakdown))
    after = machine.measure(built.parts.model.dtype)
    read, matmul = (before.read + after.read) / 2, (before.matmul + after.matmul) / 2
    for point in points:
        _judge(built, point, read, matmul, output)
    return {
        "info": built.info,
        "read_bytes_per_s": [before.read, after.read],
        "matmul_flop_per_s": [before.matmul, after.matmul],
        "points": [asdict(point) for point in points],
    }


def _requests(built: Built, count: int, prompt: int, output: int, salt: str) -> list[Request]:
    rng = np.random.default_rng(0)
    sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    return [
        # A salt of its own keeps prefix caching out of the measurement.
        Request(id=f"{salt}-{i}", prompt=rng.integers(1, built.parts.model.vocabulary, prompt), sampling=sampling,
                cache_salt=f"{salt}-{i}")
        for i in range(count)
    ]  # fmt: skip


def _steps(built: Built, requests: list[Request], profile: bool) -> list[tuple[int, float, dict[str, float]]]:
    """(tokens, seconds, seconds by part) of every step until all requests are done."""
    engine, executor = built.engine, built.parts.executor
    assert isinstance(executor, LocalExecutor)
    executor.profile = profile
    for request in requests:
        engine.add(request)
    out = []
    clock = engine.clock
    while engine.unfinished:
        began = clock.now()
        deltas = engine.step()
        took = clock.now() - began
        parts = dict(engine.last_seconds)
        tokens = sum(len(delta.tokens) for delta in deltas)
        out.append((tokens, took, parts))
    executor.profile = False
    return out


def _prefill(built: Built, prompt: int, rounds: int, breakdown: bool) -> Point:
    runs = []
    for i in range(rounds + 1):
        steps = _steps(built, _requests(built, 1, prompt, 1, f"p{prompt}-{i}"), False)
        runs.append(sum(took for _, took, _ in steps))
    times = runs[1:]
    point = _point("prefill", 1, prompt, times, prompt)
    if breakdown:
        steps = _steps(built, _requests(built, 1, prompt, 1, f"p{prompt}-b"), True)
        _break(point, [(sum(took for _, took, _ in steps), _sum([parts for _, _, parts in steps]))])
    return point


def _decode(built: Built, batch: int, prompt: int, output: int, breakdown: bool) -> Point:
    steps = _steps(built, _requests(built, batch, prompt, output, f"d{batch}"), False)
    times = [took for tokens, took, _ in steps if tokens == batch][1:]
    point = _point("decode", batch, prompt, times, batch)
    if breakdown:
        steps = _steps(built, _requests(built, batch, prompt, min(output, 24), f"d{batch}-b"), True)
        _break(point, [(took, parts) for tokens, took, parts in steps if tokens == batch][1:])
    return point


def _point(what: str, batch: int, prompt: int, times: list[float], tokens: int) -> Point:
    middle = median(times)
    quarter = quantiles(times, n=4) if len(times) > 1 else [middle] * 3
    return Point(what, batch, prompt, middle, quarter[2] - quarter[0], tokens / middle, 0.0, 0.0)


def _sum(many: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for parts in many:
        for name, value in parts.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _break(point: Point, steps: list[tuple[float, dict[str, float]]]) -> None:
    names = dict.fromkeys(name for _, parts in steps for name in parts)
    point.parts = {name: median(parts.get(name, 0.0) for _, parts in steps) for name in names}
    point.own_s = median(took - sum(parts.get(name, 0.0) for name in READING) for took, parts in steps)


def _judge(built: Built, point: Point, read: float, matmul: float, output: int) -> None:
    model, memory = built.parts.model, built.parts.memory
    if point.what == "decode":
        kv = memory.block_bytes / memory.block_size * (point.prompt + output / 2) * point.batch
        arithmetic = 2 * model.active_weights * point.batch / matmul
        point.bound_s = max(model.active_weight_bytes / read, arithmetic) + kv / read
    else:
        # The head multiplies one row only; every other weight multiplies each token.
        head = model.head.shape[0] * model.head.shape[1]
        weights = model.active_weights - head
        attention = sum(4 * site.heads * site.head_dim for site in model.sites) * point.prompt * (point.prompt + 1) / 2
        point.bound_s = (2 * weights * point.prompt + attention) / matmul
    point.share_of_bound = point.bound_s / point.seconds
