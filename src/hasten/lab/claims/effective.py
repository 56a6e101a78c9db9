"""Effective throughput, as DeepSpeed-FastGen (2024) counts it: requests that were answered and then kept up with, per second.

A request counts when its prompt was answered at a certain rate (seconds until the first token over its tokens) and the moving
average of the gaps between its tokens never exceeded a bound. The paper's 512 prompt tokens/s and 2, 4 or 6 output tokens/s, of
a model of 70 billion parameters on four A100, are scaled to the machine at hand by one factor: how many prompt tokens a second
it computes, over how many theirs does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.planning.devices import Device

PROMPT_RATE, RATES = 512.0, (6.0, 4.0, 2.0)
"""Tokens per second that the paper asks for, of prompts and of output."""
MACHINE = 4_500.0
"""Prompt tokens per second that the paper's machine computes at best (four A100 at half their peak)."""
SMOOTHING = 0.1
"""Weight of the newest gap in the moving average."""


def scale(device: Device, limit: int) -> float:
    """What the paper's rates are to be multiplied by on this machine, in passes of up to `limit` tokens."""
    return best_prompt_rate(device, limit) / MACHINE


def best_prompt_rate(device: Device, limit: int) -> float:
    """Most prompt tokens per second that any one pass computes."""
    from hasten.engine.executors.cost import StepShape, span_pairs

    sizes = range(32, limit + 1, 32)
    return max(size / device.costs.step(StepShape(size, 1, 1, size, span_pairs(size, 0))) for size in sizes)


def kept(run: Run, prompt_rate: float, gap_s: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [requests]: the prompt was answered within its tokens / `prompt_rate` seconds and the moving average of the gaps
    between tokens never exceeded `gap_s`."""
    from hasten.lab.bench.metrics import gaps_by_request, requests

    table, gaps = requests(run), gaps_by_request(run)
    out = table.ok & (table.ttft_s <= table.prompt_tokens / prompt_rate)
    edges = np.searchsorted(gaps.request, np.arange(len(table) + 1))  # they stand request after request
    for number in np.flatnonzero(out):
        average = 0.0
        for i, seconds in enumerate(gaps.seconds[edges[number] : edges[number + 1]].tolist()):
            average = seconds if i == 0 else average + SMOOTHING * (seconds - average)
            if average > gap_s:
                out[number] = False
                break
    return out


def effective(run: Run, prompt_rate: float, gap_s: float) -> float:
    """Requests per second that kept both."""
    from hasten.lab.bench.metrics import summary

    return float(kept(run, prompt_rate, gap_s).sum()) / summary(run)["duration_s"]
