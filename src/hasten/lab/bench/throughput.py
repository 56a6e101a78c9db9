"""Throughput of an offline batch: many requests at once through the engine in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hasten.engine.build import Built
from hasten.engine.events import Kind
from hasten.engine.request import Request, SamplingParams


def run(
    built: Built,
    requests: int,
    prompt: int,
    output: int,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Requests whose prompt and output lengths are uniform in half to one and a half times those given."""
    rng = np.random.default_rng(seed)
    engine, longest = built.engine, built.parts.model.max_length
    for i in range(requests):
        length, new = (max(1, int(rng.integers(n // 2, n + n // 2 + 1))) for n in (prompt, output))
        length = min(length, longest - 2)
        new = min(new, longest - length)
        sampling = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        tokens = rng.integers(1, built.parts.model.vocabulary, length)
        engine.add(Request(id=f"t{i}", prompt=tokens, sampling=sampling))
    began = engine.clock.now()
    done = 0
    while engine.unfinished:
        done += sum(delta.finish is not None for delta in engine.step())
        advance(done, requests)
    took = engine.clock.now() - began
    sums, counts = engine.events.sums, engine.events.counts
    return {
        "info": built.info,
        "requests": requests,
        "seconds": took,
        "requests_per_s": requests / took,
        "output_tokens_per_s": sums[Kind.TOKENS] / took,
        "total_tokens_per_s": (sums[Kind.TOKENS] + sums[Kind.ARRIVED]) / took,
        "steps": counts[Kind.STEP],
        "preemptions": counts[Kind.PREEMPTED] + counts[Kind.SWAPPED],
    }
