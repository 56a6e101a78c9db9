"""Where the time of a cold start goes: recording starts of an engine worker, and reports over starts.

After Serverless Cold Starts and Where to Find Them (Joosen et al., 2025), which breaks the start of a pod into pool allocation,
code, dependencies and scheduling. A worker of ours has other parts: `spawn` (the process and its interpreter), `import`,
`tokenizer`, `weights` (reading the checkpoint), `kv` (allocating the cache), `assembly` (the rest of building the engine:
kernels, policies) and `warmup` (its first token). Each is timed on its own, and so is the whole, by the parent; what lies
between the parts is what they lack of the total.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from hasten.engine.config import EngineConfig
from hasten.engine.outputs import EngineDead
from hasten.engine.request import Request, SamplingParams
from hasten.lab.bench.run import Floats

COMPONENTS = ("spawn", "import", "tokenizer", "weights", "kv", "assembly", "warmup")
START_LIMIT_S = 120.0
"""A worker that has not answered by then is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One cold start. `components`: seconds by name; `total_s`: timed apart from them. `trigger`, `synchronous` and
    `resources` (the resource class): what it is grouped by in reports."""

    components: Mapping[str, float]
    total_s: float
    trigger: str = ""
    synchronous: bool = True
    resources: str = ""

    @property
    def accounted(self) -> float:
        """Share of the total that the components sum to."""
        return sum(self.components.values()) / self.total_s


def record(
    config: EngineConfig, count: int, *, resources: str = "", progress: Callable[[int, int], None] | None = None
) -> list[Start]:
    """Start a worker `count` times, one after the other, each until its first token, and end it. The files it reads are in the
    page cache after the first, as on a machine that has started one before. Raises EngineDead."""
    starts = []
    for done in range(count):
        starts.append(_record(config, resources))
        if progress is not None:
            progress(done + 1, count)
    return starts


def _record(config: EngineConfig, resources: str) -> Start:
    ours, theirs = socket.socketpair()
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "hasten.lab.planning.worker_start", str(theirs.fileno()), str(write_fd)]
    began = time.monotonic()
    process = subprocess.Popen(command, pass_fds=[theirs.fileno(), write_fd], stdin=subprocess.DEVNULL)
    theirs.close()
    os.close(write_fd)
    try:
        with Connection(ours.detach()) as link, open(read_fd) as pipe:
            link.send(config.model_dump_json())
            _until(link, process, "ready")
            asked = time.monotonic()
            request = Request(id="first", prompt=np.zeros(1, np.int32), sampling=SamplingParams(max_tokens=1, ignore_eos=True))
            link.send(("add", request.id, pickle.dumps(request)))
            _until(link, process, "out")
            ended = time.monotonic()
            link.send(("stop",))
            process.wait(timeout=START_LIMIT_S)
            stages = {name: (float(a), float(b)) for name, a, b in (line.split() for line in pipe)}
    finally:
        process.kill()
        process.wait()
    spent = {name: stop - start for name, (start, stop) in stages.items()}
    components = {
        "spawn": stages["interpreter"][0] - began,
        "import": spent["import"],
        "tokenizer": spent["tokenizer"],
        "weights": spent["weights"],
        "kv": spent["kv"],
        "assembly": spent["build"] - spent["weights"] - spent["kv"],
        "warmup": ended - asked,
    }
    return Start(components=components, total_s=ended - began, trigger="direct", resources=resources)


def _until(link: Connection, process: subprocess.Popen[bytes], wanted: str) -> None:
    """Read the worker's messages up to `ready`, or up to its first token (`out` with deltas in it)."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            if not link.poll(max(0.0, deadline - time.monotonic())):
                raise EngineDead(f"the worker did not answer within {START_LIMIT_S:g} s of its start")
            kind, *rest = link.recv()
        except (EOFError, OSError):
            raise EngineDead(f"the worker ended while starting (exit status {process.wait()})") from None
        if kind in ("failed", "died", "refused"):
            raise EngineDead(f"the worker could not start: {rest[-1]}")
        if kind == wanted and (kind == "ready" or rest[0]):
            return


def breakdown(starts: Sequence[Start], by: Callable[[Start], str] | None = None) -> dict[str, dict[str, Any]]:
    """For each group (all starts in one, named `all`, unless `by` says of each where it belongs): `starts`, `dominant` (the
    component with the largest mean), `total` and each of `components` with `mean_s`, `p50_s`, `p90_s`, `max_s` and `share` of
    the mean total."""
    groups: dict[str, list[Start]] = {}
    for start in starts:
        groups.setdefault(by(start) if by is not None else "all", []).append(start)
    return {name: _breakdown(group) for name, group in groups.items()}


def _breakdown(starts: Sequence[Start]) -> dict[str, Any]:
    total = np.array([start.total_s for start in starts])
    names = list(dict.fromkeys(name for start in starts for name in start.components))
    parts = {name: np.array([start.components.get(name, 0.0) for start in starts]) for name in names}

    def spread(seconds: Floats) -> dict[str, float]:
        p50, p90 = np.percentile(seconds, [50, 90])
        figures = {"mean_s": seconds.mean(), "p50_s": p50, "p90_s": p90, "max_s": seconds.max()}
        return {name: float(value) for name, value in figures.items()} | {"share": float(seconds.mean() / total.mean())}

    return {
        "starts": len(starts),
        "dominant": max(names, key=lambda name: parts[name].mean()),
        "total": spread(total),
        "components": {name: spread(seconds) for name, seconds in parts.items()},
    }


def peak_to_trough(counts: Floats, window: int = 5) -> float:
    """The largest peak over the lowest trough of a workload's calls per bin, float64 [bins], smoothed over `window` bins; 1
    where it has no peak or no trough. A trough without a call counts as one call in its window."""
    if len(counts) <= window + 1:
        return 1.0
    smooth = np.convolve(counts, np.full(window, 1 / window), mode="valid")
    # A plateau is one value, so that its edges are neither peak nor trough.
    smooth = smooth[np.append(True, np.abs(np.diff(smooth)) > 1e-9)]
    left, middle, right = smooth[:-2], smooth[1:-1], smooth[2:]
    peaks, troughs = middle[(middle > left) & (middle > right)], middle[(middle < left) & (middle < right)]
    if not len(peaks) or not len(troughs):
        return 1.0
    return max(1.0, float(peaks.max() / max(troughs.min(), 1 / window)))
