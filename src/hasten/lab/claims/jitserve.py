"""JITServe (2025): token goodput under mixed service levels near and beyond saturation, when lengths have to be guessed.

Chats that stream, long answers by a deadline and workflows of many calls by a deadline share one simulated engine. Every side
gets the same arrivals, the same budget of a step, the same predictor of lengths, which learns from nothing in each run, and no
ageing, so that none is held back by it. What ageing costs, what an oracle of lengths would give and what each part does is
measured beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.jitserve_mix import AGENT, CHAT, REPORT, mixed, objectives
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import Workload

TTFT_S, TPOT_S, REPORT_S, AGENT_S = 2.0, 0.1, 30.0, 60.0
LIMIT = 4096
"""Most output tokens of every request, as clients set it; true lengths are known to nobody."""
LENGTHS = "length-histogram"
LOADS = (0.8, 1.0, 1.2, 1.3)
LOAD = 1.2
CHUNKS = (256, 512, 1024)
COMMON = ("kv.reuse=none", "kv.host_bytes=200000000000", "scheduling.patience_s=none")

FCFS, EDF, SRPT, LAS, JIT, ORACLE = "fcfs", "edf", "srpt", "least-attained", "jitserve", "jitserve, lengths known"
BASELINES = (FCFS, EDF, SRPT, LAS)


def sides(chunk: int) -> list[Side]:
    batching = f"stall-free:chunk={chunk}"
    jitserve = f"jitserve,frames:chunk={chunk}"
    return [
        Side(FCFS, (batching,)),
        Side(EDF, ("edf", batching)),
        Side(SRPT, ("srpt", batching, LENGTHS)),
        Side(LAS, ("least-attained", batching)),
        Side(JIT, (jitserve, LENGTHS)),
        Side(ORACLE, (jitserve, "length-oracle")),
    ]
