"""A workload made another one: other times, other lengths, a part, several together. `source` says what was done."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from hasten.engine.request import SLO
from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError


def mean_rate(workload: Workload) -> float:
    """Requests a second, stages included, over the time in which those without parents arrive. Infinite where all come at
    once."""
    roots = sum(not request.parents for request in workload)
    gaps = max(roots - 1, 1) / roots  # n arrivals have n - 1 gaps between them
    span_s = workload.duration_s - workload.requests[0].arrival_s
    return len(workload) * gaps / span_s if span_s > 0 else math.inf


def scale_time(workload: Workload, factor: float) -> Workload:
    """Every time, think times included, multiplied by `factor`: below 1 is faster."""
    _positive("factor", factor)
    requests = [replace(r, arrival_s=r.arrival_s * factor, delay_s=r.delay_s * factor) for r in workload]
    return _made(workload, requests, f"time x {factor:.6g}")


def scale_load(workload: Workload, requests_per_s: float) -> Workload:
    """Arrivals moved together or apart until the mean rate is `requests_per_s` (stages and later turns count as requests).
    What happens after an answer (`delay_s`) keeps its time: more load is more users, not faster ones."""
    _positive("requests_per_s", requests_per_s)
    now = mean_rate(workload)
    if not math.isfinite(now):
        raise WorkloadError(f"{workload.name}: all of its requests arrive at once: there is no rate to scale")
    factor = now / requests_per_s
    requests = [replace(request, arrival_s=request.arrival_s * factor) for request in workload]
    return _made(workload, requests, f"load {requests_per_s:.6g} requests/s (was {now:.6g})")


def scale_lengths(workload: Workload, factor: float) -> Workload:
    """Prompts and outputs `factor` times as long, rounded down, at least 1 token each. Where blocks are shared the factor is
    rounded so that blocks stay whole tokens long: equal blocks stay equal, and the same share of a prompt is reused."""
    _positive("factor", factor)
    if not _shares(workload):
        return _scaled(workload, factor, workload.block_tokens)
    size = max(1, round(workload.block_tokens * factor))
    return _scaled(workload, size / workload.block_tokens, size)


def fit_context(workload: Workload, context_tokens: int) -> Workload:
    """All lengths scaled down by the one factor with which the longest prompt and output together fit `context_tokens`;
    a workload that fits is left as it is. Where blocks are shared the factor is rounded down to keep them whole tokens long."""
    if context_tokens < 2:
        raise WorkloadError(f"context_tokens must be at least 2 (a prompt and an output token), got {context_tokens}")
    longest = max(request.prompt_tokens + request.output_tokens for request in workload)
    if longest <= context_tokens:
        return workload
    factor, size = context_tokens / longest, workload.block_tokens
    if _shares(workload):
        size = workload.block_tokens * context_tokens // longest
        if size < 1:
            raise WorkloadError(
                f"{workload.name}: its longest request has {longest} tokens: fitted into {context_tokens} its "
                f"blocks of {workload.block_tokens} tokens would vanish; {-(-longest // workload.block_tokens)} are needed"
            )
        factor = size / workload.block_tokens
    return _scaled(workload, factor, size)


def cut(workload: Workload, start: int = 0, stop: int | None = None) -> Workload:
    """The requests number `start` to before `stop`, with the first arrival at 0 s. A workflow (requests linked by parents)
    is in whole if its first request is, or else not at all. Raises WorkloadError where nothing is left."""
    stop = len(workload) if stop is None else stop
    if not 0 <= start < stop:
        raise WorkloadError(f"{workload.name}: cannot cut from {start} to {stop}: give numbers from 0 on, the first lower")
    first = _first_of_workflow(workload)
    kept = [request for request, root in zip(workload, first, strict=True) if start <= root < stop]
    if not kept:
        raise WorkloadError(f"{workload.name}: no request or workflow begins among the numbers {start} to {stop - 1}")
    return _made(workload, _shifted(kept, kept[0].arrival_s), f"requests {start} to {stop}")


def between(workload: Workload, start_s: float, stop_s: float) -> Workload:
    """What arrives at `start_s` or later and before `stop_s`, with `start_s` as the new 0 s; a workflow is in whole if its
    first request is. Raises WorkloadError where nothing is left."""
    if not 0 <= start_s < stop_s:
        raise WorkloadError(
            f"{workload.name}: cannot cut from {start_s} s to {stop_s} s: give seconds from 0 on, the first lower"
        )
    first = _first_of_workflow(workload)
    kept = [r for r, root in zip(workload, first, strict=True) if start_s <= workload.requests[root].arrival_s < stop_s]
    if not kept:
        raise WorkloadError(
            f"{workload.name}: nothing arrives from {start_s:g} s to {stop_s:g} s; it lasts {workload.duration_s:g} s"
        )
    return _made(workload, _shifted(kept, start_s), f"{start_s:g} s to {stop_s:g} s")


def mix(*workloads: Workload) -> Workload:
    """All requests of several workloads on one time line. Ids and workflows get the workload's name (and number, where names
    repeat) in front, `application` is that name where it was empty, and blocks of different workloads stay different."""
    if not workloads:
        raise WorkloadError("there are no workloads to mix")
    names = [workload.name for workload in workloads]
    labels = [name if names.count(name) == 1 else f"{name}#{number}" for number, name in enumerate(names)]
    # Blocks of unequal size are broken into pieces of the greatest common size, which equal blocks do equally.
    size = math.gcd(*(w.block_tokens for w in workloads if _shares(w))) or workloads[0].block_tokens
    slos: dict[str, SLO] = {}
    numbers: dict[tuple[int, int, int], int] = {}
    merged: list[tuple[float, TimedRequest]] = []
    for number, (label, workload) in enumerate(zip(labels, workloads, strict=True)):
        for name, slo in workload.slos.items():
            if slos.setdefault(name, slo) != slo:
                raise WorkloadError(
                    f"{workload.name}: the SLO class {name!r} means something else in another workload of the mix"
                )
        pieces = max(1, workload.block_tokens // size)
        earliest: dict[str, float] = {}
        for request in workload:
            at_s = max((earliest[parent] for parent in request.parents), default=request.arrival_s)
            earliest[request.id] = at_s
            keys = [(number, block, piece) for block in request.blocks for piece in range(pieces)]
            keys = keys[: -(-request.prompt_tokens // size)]
            changed = replace(
                request,
                id=f"{label}/{request.id}",
                blocks=tuple(numbers.setdefault(key, len(numbers)) for key in keys),
                application=request.application or workload.name,
                workflow=f"{label}/{request.workflow}" if request.workflow else "",
                parents=tuple(f"{label}/{parent}" for parent in request.parents),
            )
            merged.append((at_s, changed))
    merged.sort(key=lambda item: item[0])
    return Workload(
        name="+".join(names),
        requests=[request for _, request in merged],
        block_tokens=size,
        slos=slos,
        source="mix of " + " and ".join(f"({workload.source or workload.name})" for workload in workloads),
    )


def _positive(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise WorkloadError(f"{name} must be a positive number, got {value}")


def _shares(workload: Workload) -> bool:
    return any(request.blocks for request in workload)


def _scaled(workload: Workload, factor: float, block_tokens: int) -> Workload:
    requests = []
    for request in workload:
        if request.text is not None:
            raise WorkloadError(f"{workload.name}: request {request.id!r} is text, whose length cannot be scaled")
        prompt = max(1, _times(request.prompt_tokens, factor))
        requests.append(
            replace(
                request,
                prompt_tokens=prompt,
                output_tokens=max(1, _times(request.output_tokens, factor)),
                blocks=request.blocks[: -(-prompt // block_tokens)],
            )
        )
    return replace(_made(workload, requests, f"lengths x {factor:.6g}"), block_tokens=block_tokens)


def _times(length: int, factor: float) -> int:
    """length · factor rounded down, but not below a whole number that rounding of floats just misses."""
    return math.floor(length * factor + 1e-12 * length)


def _first_of_workflow(workload: Workload) -> list[int]:
    """For each request the number of the first request that parents link it to, directly or not."""
    number = {request.id: i for i, request in enumerate(workload)}
    above = list(range(len(workload)))

    def first(i: int) -> int:
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    for i, request in enumerate(workload):
        for parent in request.parents:
            one, other = sorted((first(i), first(number[parent])))
            above[other] = one
    return [first(i) for i in range(len(workload))]


def _shifted(requests: Iterable[TimedRequest], start_s: float) -> list[TimedRequest]:
    return [r if r.parents else replace(r, arrival_s=max(0.0, r.arrival_s - start_s)) for r in requests]


def _made(workload: Workload, requests: list[TimedRequest], done: str) -> Workload:
    return replace(workload, requests=requests, source=f"{workload.source or workload.name}; {done}")
