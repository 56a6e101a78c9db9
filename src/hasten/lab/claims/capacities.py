"""The highest rate of a production trace that keeps a target between tokens, by side, on the virtual clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hasten.lab.claims.sides import Side
from hasten.lab.claims.stalls import Progress, decode_only_s
from hasten.lab.claims.virtual import Virtual, h100
from hasten.lab.workloads.base import Workload

TRACE = "azure-llm-2023-conv"
CONTEXT = 8192
QUEUE_S = 2.0
"""Capacity is the highest rate that also keeps the median time from due to first scheduled at most this, over the later half of
the requests: a rate that cannot last must not pass because its queue was short at first."""
ROWS, MEAN_CONTEXT = 32, 1260
"""The decode-only step that objectives are multiples of: as many rows as the paper's, at the trace's mean context (1,155 tokens
of prompt and half of 211 tokens of output)."""
CHUNKS = (256, 512, 1024, 2048)
STRICT, RELAXED = 5, 25
"""The paper's objectives, in steps that only decode."""


def trace(requests: int, first: int) -> Workload:
    """`requests` successive requests of the trace from the `first` on; those beyond the model's context left out."""
    from hasten.lab.workloads import load
    from hasten.lab.workloads.transform import cut

    whole = load(TRACE)
    fitting = [r for r in whole if r.prompt_tokens + r.output_tokens < CONTEXT]
    whole = dataclasses.replace(whole, requests=fitting)
    return cut(whole, first, first + requests)


def capacity(
    sides: Virtual, name: str, work: Callable[[int], Workload], seconds: float, tbt_s: float, start: float, tolerance: float
) -> float:
    """The highest rate, in requests per second, at which a side keeps the 99th percentile of the time between tokens at most
    `tbt_s` and the median queueing time at most `QUEUE_S`; searched from `start` within `tolerance`. `work(count)`: so many
    requests; arrivals of `seconds` are replayed at each rate. 0 where not even a 16th of `start` keeps them."""
    from hasten.lab.bench.metrics import requests, summary
    from hasten.lab.bench.saturation import Probe, search
    from hasten.lab.workloads.transform import scale_load

    def measure(rate: float) -> Probe:
        run = sides.replay(name, scale_load(work(max(20, round(rate * seconds))), rate))
        queue_s = requests(run).queue_s
        late = float(np.median(queue_s[len(queue_s) // 2 :]))
        return Probe(rate, float(summary(run)["gap_p99_s"] <= tbt_s and late <= QUEUE_S))

    return search(measure, start, attainment=1.0, tolerance=tolerance).rate


@dataclass(slots=True)
class Capacities:
    """Requests per second. `rates`: by round, then by side: `whole`, `sarathi`, `fixed` (the best chunk) within the strict
    objective; in some rounds also `cut` (whole prompts, at most 2,048 tokens a step), and within the relaxed one
    `relaxed` and `relaxed whole`. `chunks`: what each fixed chunk did in the search for the best. `saturation`: with all
    waiting. `decode_s`: the step that objectives are multiples of."""

    decode_s: float
    seconds: float
    saturation: float
    chunks: dict[int, float] = field(default_factory=dict)
    rates: list[dict[str, float]] = field(default_factory=list)

    def ratios(self, of: str, to: str) -> list[float]:
        return [at[of] / at[to] for at in self.rates if of in at and to in at]


def compare(quick: bool, tell: Progress) -> Capacities:
    """Three rounds, each on another part of the trace. Where not even a 16th of the first rate tried keeps an objective, that
    stands in for the capacity, so ratios are then too low."""
    seconds, tolerance, tried = (12.0, 0.4, CHUNKS[2:3]) if quick else (30.0, 0.07, CHUNKS)
    device = h100()
    decode_s = decode_only_s(device, ROWS, MEAN_CONTEXT)
    sides = {
        "whole": Side("whole", ("whole-prompts",)),
        "cut": Side("cut", ("whole-prompts",), ("scheduling.max_tokens=2048",)),
        "sarathi": Side("sarathi", (f"sarathi-serve:tbt_s={STRICT * decode_s}:tile=128",)),
        "relaxed": Side("relaxed", (f"sarathi-serve:tbt_s={RELAXED * decode_s}:tile=128",)),
        **{str(chunk): Side(str(chunk), (f"stall-free:chunk={chunk}",)) for chunk in CHUNKS},
    }
    virtual = Virtual(list(sides.values()), device=device, common=("scheduling.max_tokens=8192",))
    found = Capacities(decode_s, seconds, virtual.saturation("sarathi", trace(200 if quick else 600, 0)))
    done = 0

    def of(name: str, number: int, slack: float = STRICT, within: float = tolerance) -> float:
        nonlocal done
        tell(f"capacity of {name}", done / (13 if quick else len(tried) + 18))
        done += 1
        start = 0.7 * found.saturation
        rate = capacity(
            virtual, name, lambda count: trace(count, 3000 + 3000 * number), seconds, slack * decode_s, start, within
        )
        return max(start / 16, rate)

    for chunk in tried:
        found.chunks[chunk] = of(str(chunk), 0, within=max(tolerance, 0.1)) if len(tried) > 1 else np.nan
    best = str(max(found.chunks, key=lambda chunk: found.chunks[chunk]))
    for number in (1, 2, 3):
        at = {"whole": of("whole", number), "sarathi": of("sarathi", number)}
        if number == 1 or not quick:
            at |= {"fixed": of(best, number), "cut": of("cut", number)}
            at |= {"relaxed": of("relaxed", number, RELAXED), "relaxed whole": of("whole", number, RELAXED)}
        found.rates.append(at)
    return found
