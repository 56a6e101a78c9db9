"""The sides of JITServe's claim, what each of them serves in time, and at which loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.jitserve_mix import AGENT, CHAT, REPORT, objectives, traced
from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.claims.virtual import Virtual
    from hasten.lab.workloads.base import Workload

MODEL, HARDWARE = "llama-3-8b", "l4"
"""A card whose memory, not its rows, bounds how many requests run, so that residency counts too; and a run that is long against
its deadlines takes few steps."""
LARGE, LARGER = "llama-3.1-8b", "h100"
"""What the traces run on: the same size with a context that holds their prompts."""
TTFT_S, TPOT_S, REPORT_S, STAGE_S = 3.0, 0.15, 120.0, 30.0
"""Twice what an unloaded engine needs for the mean of each: 65 ms a token, 30 s a report (the longest: 80 s), 12 s the longest
call of a stage. A full one needs 90 ms a token. A workflow has `STAGE_S` for each of its stages."""
TRACED = (1.0, 0.05, 20.0, 5.0)
"""The same objectives where the traces run."""
LIMIT = 4096
"""Most output tokens of every request, as clients set it; true lengths are known to nobody."""
LENGTHS = "length-histogram"
OVERLOAD = 1.2
OTHER_LOADS = (0.8, 1.0, 1.3, 2.2)
CHUNKS = (128, 256, 512)
PATIENCE_S = 60.0
UNSERVED_S = 300.0
"""A request without a token for so long counts as never served: nobody waits for one any more."""
COMMON = ("kv.reuse=none", "kv.host_bytes=90000000000", "scheduling.patience_s=none")
CROWD = 2.0
"""Load 1 is measured at so many times the rate at which all requests that come at once are served: more than an engine does."""
SCORED = "goodput-density:output_weight=1000"
"""What the claim counts: output tokens, and prompts for nothing."""
PUBLISHED = "goodput-density:per=time:quantile=0.95:early=1"

FCFS, EDF, SRPT, WORK, LAS = "fcfs", "edf", "srpt", "srpt by work", "least-attained"
BASELINES = (FCFS, EDF, SRPT, WORK, LAS)
JIT, ORACLE, ORDER, PAPER, AGED = "jitserve", "lengths known", "order alone", "density as published", "aged"


def sides(chunk: int) -> list[Side]:
    plain, frames = f"stall-free:chunk={chunk}", f"jitserve,frames:chunk={chunk}"
    return [
        Side(FCFS, (plain,)),
        Side(EDF, ("edf", plain)),
        Side(SRPT, ("srpt", plain, LENGTHS)),
        Side(WORK, ("srpt:by=work", plain, LENGTHS)),
        Side(LAS, ("least-attained", plain)),
        Side(JIT, (frames, SCORED, LENGTHS)),
        Side(ORACLE, (frames, SCORED, "length-oracle")),
        Side(ORDER, (SCORED, plain, LENGTHS)),
        Side(PAPER, (frames, PUBLISHED, LENGTHS)),
        Side(AGED, (frames, SCORED, LENGTHS), (f"scheduling.patience_s={PATIENCE_S:g}",)),
    ]


@dataclass(frozen=True, slots=True)
class Served:
    """What a run's requests got. `share` of all output tokens in time, also by class; `unserved`: requests that got no token
    within `UNSERVED_S`; `longest_s`: the longest wait for a first one."""

    share: float
    of_class: Mapping[str, float]
    unserved: int
    longest_s: float


def served(run: Run) -> Served:
    from hasten.lab.bench.metrics import requests
    from hasten.lab.bench.token_goodput import token_goodput

    found = token_goodput(run)
    classes = np.array([request.application for request in run.workload])
    of_class = {
        name: float(found.counted[classes == name].sum() / found.offered[classes == name].sum())
        for name in (CHAT, REPORT, AGENT)
    }
    wait_s = requests(run).ttft_s
    return Served(found.share, of_class, int((~(wait_s <= UNSERVED_S)).sum()), float(np.nanmax(wait_s)))


def kept(one: Served) -> dict[str, Any]:
    return {"share": one.share, **one.of_class, "unserved": one.unserved, "longest_s": one.longest_s}


def engines_of(chunk: int, *, traces: bool = False) -> Virtual:
    from hasten.lab.claims.virtual import Virtual
    from hasten.lab.planning.devices import on_hardware
    from hasten.lab.planning.hardware import profile
    from hasten.lab.planning.shapes import shape

    model, hardware, longest = (LARGE, LARGER, ("model.max_length=20000",)) if traces else (MODEL, HARDWARE, ())
    on = on_hardware(shape(model), profile(hardware))
    return Virtual(sides(chunk), device=on, common=(*longest, *COMMON), limit=LIMIT)


def lead(row: Mapping[str, Served]) -> float:
    """JITServe's goodput over the best baseline's."""
    return row[JIT].share / max(row[name].share for name in BASELINES)


def tuned(work: Workload, chunks: tuple[int, ...], tell: Callable[[str, float], None]) -> tuple[int, float, dict[int, float]]:
    """(the chunk with most goodput under FCFS at load 1, load 1 in output tokens/s, goodput by chunk)."""
    middle = chunks[len(chunks) // 2]
    tell("load 1", 0.0)
    tokens_s = sustained(engines_of(middle), work)
    goods = {}
    for number, chunk in enumerate(chunks if len(chunks) > 1 else ()):
        tell(f"chunks of {chunk}", (1 + number) / (1 + len(chunks)))
        goods[chunk] = served(engines_of(chunk).replay(FCFS, at_load(work, 1.0, tokens_s))).share
    return max(goods, key=lambda chunk: goods[chunk], default=middle), tokens_s, goods


def sustained(engines: Virtual, work: Workload) -> float:
    """Output tokens per second that FCFS commits while more keeps coming than it can serve, after a quarter of the arrivals:
    what a load is a share of. (What all at once would give ends with long answers and last stages alone, and says too little;
    so does the rate up to which nobody waits, which bursts exceed long before an engine is busy all the time.)"""
    from hasten.engine.events import Kind
    from hasten.lab.workloads.transform import scale_load

    crowd = scale_load(work, CROWD * engines.saturation(FCFS, work))
    run = engines.replay(FCFS, crowd)
    begin_s, end_s = crowd.duration_s / 4, crowd.duration_s
    time_s = run.columns["time_s"] - run.start_s
    counted = (run.columns["kind"] == Kind.TOKENS) & (time_s > begin_s) & (time_s <= end_s)
    return float(run.columns["a"][counted].sum()) / (end_s - begin_s)


def at_load(work: Workload, load: float, tokens_s: float) -> Workload:
    """`work`, asking for `load` times `tokens_s` output tokens per second: samples differ in the mean length of a request."""
    from hasten.lab.workloads.transform import scale_load

    return scale_load(work, load * tokens_s * len(work) / sum(request.output_tokens for request in work))


def curve_of(
    engines: Virtual,
    work: Workload,
    tokens_s: float,
    overload: Mapping[str, Served],
    tell: Callable[[str, float], None],
    *,
    quick: bool,
) -> dict[float, Mapping[str, Served]]:
    """What is served by load, in order."""
    found: dict[float, Mapping[str, Served]] = {OVERLOAD: overload}
    loads = OTHER_LOADS[:: len(OTHER_LOADS) - 1] if quick else OTHER_LOADS
    names = (*BASELINES, JIT)
    for number, load in enumerate(loads):
        row = {}
        for turn, name in enumerate(names):
            tell(f"load {load:g}: {name}", (number + turn / len(names)) / len(loads))
            row[name] = served(engines.replay(name, at_load(work, load, tokens_s)))
        found[load] = row
    return dict(sorted(found.items()))


def on_traces(workflows: int, seed: int) -> dict[str, Served]:
    """The same at overload with the traces' lengths."""
    engines = engines_of(512, traces=True)
    work = traced(workflows, objectives(*TRACED), seed)
    work = at_load(work, OVERLOAD, sustained(engines, work))
    return {name: served(engines.replay(name, work)) for name in (*BASELINES, JIT)}
