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
    from hasten.lab.planning.devices import Device
    from hasten.lab.workloads.base import Workload

MODEL, HARDWARE = "llama-3.1-8b", "h100"
"""Of the size of Llama-3 8B, with a context that holds the longest prompts of the traces."""
TTFT_S, TPOT_S, REPORT_S, AGENT_S = 1.0, 0.05, 25.0, 45.0
TRACED_REPORT_S = 20.0
LIMIT = 4096
"""Most output tokens of every request, as clients set it; true lengths are known to nobody."""
LENGTHS = "length-histogram"
OVERLOAD = 1.2
OTHER_LOADS = (0.8, 1.0, 1.3)
CHUNKS = (256, 512, 1024)
PATIENCE_S = 60.0
UNSERVED_S = 120.0
"""A request without a token for so long counts as never served: nobody waits for one any more."""
COMMON = ("model.max_length=20000", "kv.reuse=none", "kv.host_bytes=100000000000", "scheduling.patience_s=none")
TOO_MUCH = 60.0
"""Requests per second that no side sustains."""

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
        Side(JIT, (frames, LENGTHS)),
        Side(ORACLE, (frames, "length-oracle")),
        Side(ORDER, ("goodput-density", plain, LENGTHS)),
        Side(PAPER, (frames, LENGTHS, "goodput-density:per=time:penalty=1")),
        Side(AGED, (frames, LENGTHS), (f"scheduling.patience_s={PATIENCE_S:g}",)),
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
    classes = np.array([request.slo_class for request in run.workload])
    of_class = {
        name: float(found.counted[classes == name].sum() / found.offered[classes == name].sum())
        for name in (CHAT, REPORT, AGENT)
    }
    wait_s = requests(run).ttft_s
    return Served(found.share, of_class, int((~(wait_s <= UNSERVED_S)).sum()), float(np.nanmax(wait_s)))


def kept(one: Served) -> dict[str, Any]:
    return {"share": one.share, **one.of_class, "unserved": one.unserved, "longest_s": one.longest_s}


def device() -> Device:
    from hasten.lab.planning.devices import on_hardware
    from hasten.lab.planning.hardware import profile
    from hasten.lab.planning.shapes import shape

    return on_hardware(shape(MODEL), profile(HARDWARE))


def engines_of(chunk: int) -> Virtual:
    from hasten.lab.claims.virtual import Virtual

    return Virtual(sides(chunk), device=device(), common=COMMON, limit=LIMIT)


def lead(row: Mapping[str, Served]) -> float:
    """JITServe's goodput over the best baseline's."""
    return row[JIT].share / max(row[name].share for name in BASELINES if name in row)


def tuned(work: Workload, chunks: tuple[int, ...], tell: Callable[[str, float], None]) -> tuple[int, float, dict[int, float]]:
    """(the chunk with most goodput under FCFS at load 1, load 1 in requests/s, goodput by chunk)."""
    from hasten.lab.workloads.transform import scale_load

    tell("load 1", 0.0)
    rate = sustained(engines_of(chunks[0]), work)
    goods = {}
    for number, chunk in enumerate(chunks if len(chunks) > 1 else ()):
        tell(f"chunks of {chunk}", (1 + number) / (1 + len(chunks)))
        goods[chunk] = served(engines_of(chunk).replay(FCFS, scale_load(work, rate))).share
    return max(goods, key=lambda chunk: goods[chunk], default=chunks[0]), rate, goods


def sustained(engines: Virtual, work: Workload) -> float:
    """Requests per second by the tokens computed while requests keep coming much faster. (What all at once would give ends with
    long answers and last stages alone, and says too little.)"""
    from hasten.engine.events import Kind
    from hasten.lab.workloads.transform import scale_load

    run = engines.replay(FCFS, scale_load(work, TOO_MUCH))
    columns, span_s = run.columns, run.workload.duration_s
    time_s = columns["time_s"] - run.start_s
    counted = (columns["kind"] == Kind.STEP) & (time_s > span_s / 3) & (time_s <= span_s)
    tokens_per_s = float(columns["a"][counted].sum()) / (span_s * 2 / 3)
    return tokens_per_s * len(work) / sum(request.prompt_tokens + request.output_tokens for request in work)


def curve_of(
    engines: Virtual,
    work: Workload,
    rate: float,
    overload: Mapping[str, Served],
    tell: Callable[[str, float], None],
    *,
    quick: bool,
) -> dict[float, Mapping[str, Served]]:
    """What is served by load, in order."""
    from hasten.lab.workloads.transform import scale_load

    found: dict[float, Mapping[str, Served]] = {OVERLOAD: overload}
    loads = OTHER_LOADS[:1] if quick else OTHER_LOADS
    names = (FCFS, EDF, SRPT, WORK, JIT)
    for number, load in enumerate(loads):
        row = {}
        for turn, name in enumerate(names):
            tell(f"load {load:g}: {name}", (number + turn / len(names)) / len(loads))
            row[name] = served(engines.replay(name, scale_load(work, load * rate)))
        found[load] = row
    return dict(sorted(found.items()))


def on_traces(workflows: int, seed: int, chunk: int) -> dict[str, Served]:
    """The same at overload with the traces' lengths."""
    from hasten.lab.workloads.transform import scale_load

    engines = engines_of(chunk)
    work = traced(workflows, objectives(TTFT_S, TPOT_S, TRACED_REPORT_S, AGENT_S), seed)
    work = scale_load(work, OVERLOAD * sustained(engines, work))
    return {name: served(engines.replay(name, work)) for name in (FCFS, EDF, SRPT, WORK, JIT)}
