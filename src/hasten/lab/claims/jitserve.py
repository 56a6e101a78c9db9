"""JITServe (2025): token goodput under mixed service levels near and beyond saturation, when lengths have to be guessed.

Chats that stream, long answers by a deadline and workflows of many calls by a deadline share one simulated engine. All sides get
the same arrivals and the same budget of a step; those that ask for lengths learn them, from nothing, within the run. None ages
its requests, since ageing serves what is late already; what it costs, what an oracle of lengths would give and what each part
does is measured beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.jitserve_mix import AGENT, CHAT, REPORT, mixed, objectives
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from hasten.engine.request import SLO
    from hasten.lab.bench.run import Run
    from hasten.lab.claims.virtual import Point, Virtual
    from hasten.lab.workloads.base import Workload

MODEL, HARDWARE = "llama-3.1-8b", "h100"
TTFT_S, TPOT_S, REPORT_S, AGENT_S = 2.0, 0.1, 30.0, 60.0
LIMIT = 4096
"""Most output tokens of every request, as clients set it; true lengths are known to nobody."""
LENGTHS = "length-histogram"
OVERLOAD = 1.2
OTHER_LOADS = (0.8, 1.0, 1.3)
CHUNKS = (256, 512, 1024)
PATIENCE_S = 60.0
COMMON = ("model.max_length=20000", "kv.reuse=none", "kv.host_bytes=100000000000", "scheduling.patience_s=none")

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
    within `UNSERVED_S`, and the longest wait for a first one in seconds."""

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
        name: float(found.counted[classes == name].sum() / found.offered[classes == name].sum()) for name in (CHAT, REPORT, AGENT)
    }
    wait_s = requests(run).ttft_s
    return Served(found.share, of_class, int((~(wait_s <= UNSERVED_S)).sum()), float(np.nanmax(wait_s)))


def run(setting: Setting) -> Outcome:
    from hasten.lab.claims.virtual import Virtual
    from hasten.lab.workloads.transform import scale_load

    workflows, rounds = (4, 3) if setting.quick else (16, 3)
    slos = objectives(TTFT_S, TPOT_S, REPORT_S, AGENT_S)
    tell = setting.progress
    tell("equal tokens", 0.0)
    guard = _equal(setting.seed)
    first = mixed(workflows, slos, setting.seed)
    chunk, rate, tried = _tuned(first, (512,) if setting.quick else CHUNKS, share(tell, 0.05, 0.15))
    engines = Virtual(sides(chunk), device=device(), common=COMMON, limit=LIMIT)
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    details: dict[str, Any] = {"rate": rate, "chunk": chunk, "chunks": tried, "rounds": []}

    def arriving(number: int) -> Workload:
        return scale_load(mixed(workflows, slos, setting.seed + number), OVERLOAD * rate)

    unserved: list[str] = []
    found: dict[str, Served] = {}
    for runs in engines.rounds(arriving, rounds, share(tell, 0.15, 0.65)):
        found = {name: served(one) for name, one in runs.items()}
        best = max(found[name].share for name in BASELINES)
        samples["best"].append(found[JIT].share / best)
        samples["oracle"].append(100 * found[JIT].share / found[ORACLE].share)
        for requirement, name in (("fcfs", FCFS), ("edf", EDF), ("las", LAS)):
            samples[requirement].append(found[JIT].share / found[name].share)
        samples["srpt"].append(found[JIT].share / max(found[SRPT].share, found[WORK].share))
        for requirement, name in (("order", ORDER), ("paper", PAPER), ("aged", AGED)):
            samples[requirement].append(100 * found[name].share / found[JIT].share)
        samples["share"].append(100 * found[JIT].share)
        unserved += [f"{name} {one.unserved} (longest wait {one.longest_s:.0f} s)" for name, one in found.items()]
        details["rounds"].append({name: _kept(one) for name, one in found.items()})
    curve = _loads(engines, lambda load: scale_load(first, load * rate), found, share(tell, 0.65, 0.85))
    details["loads"] = curve
    samples["light"].append(curve[0.8][JIT] / max(curve[0.8][name] for name in BASELINES if name in curve[0.8]))
    samples["alike"].append(_alike(engines, workflows, slos, rate, setting.seed))
    point = _real(setting, share(tell, 0.85, 1.0))
    samples["real"].append(float(np.median(point.ratios(JIT, FCFS, "token_goodput"))))
    samples["real-error"].append(100 * point.error("token_goodput"))
    details["real"] = {"rate": point.rate, "measured": point.measured, "predicted": point.predicted}
    return Outcome(samples=samples, guards=[guard], details=details)
