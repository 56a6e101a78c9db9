"""Loader of text-to-SQL workflows (HexGen-Flow / HEXGEN-TEXT2SQL, 2025; Relaxed-System-Lab/Hexgen-Flow, simulator/cli).

JSON: a list of {"Text2SQLRequest": [{"step", "input_length", "output_length"}, ...]}, the calls of one question in order.
The file says neither what depends on what nor when a question comes. Both are filled in as the released simulator does:

- The calls named `generate_candidate_llama-agent` form one stage whose calls run in parallel, and so do those named `evaluate`.
  Every other call is a stage of its own, also where several of one name follow each other (a second `revise` mends what the
  first one wrote). A stage starts when all calls of the stage before have ended.
- Questions arrive as a Poisson process.

Prompts share nothing here, since the file does not say what they have in common (in truth the templates of a step do).
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.reading import field, json_file, whole

KEY = "Text2SQLRequest"
PARALLEL = ("generate_candidate_llama-agent", "evaluate")


def load(path: Path, *, rate: float = 0.5, seed: int = 0, parallel: Collection[str] | None = PARALLEL) -> Workload:
    """The calls of each workflow, in the order of the file.

    `rate`: workflows a second of the Poisson arrivals, the first at 0 s. `parallel`: the steps of which consecutive calls run
    together; None: all of them. `stage` is the step's name. Raises WorkloadError for broken entries."""
    if not np.isfinite(rate) or rate <= 0:
        raise WorkloadError(f"rate must be a positive number of workflows a second, got {rate}")
    content = json_file(path)
    if not isinstance(content, list) or not content:
        raise WorkloadError(f"{path}: expected a list of workflows, each an object with {KEY!r}")
    gaps_s = np.random.default_rng(seed).exponential(1.0 / rate, len(content))
    arrivals_s = np.cumsum(gaps_s) - gaps_s[0]
    requests: list[TimedRequest] = []
    for number, entry in enumerate(content):
        requests += _workflow(entry, number, float(arrivals_s[number]), parallel, f"{path}: workflow {number}")
    source = f"{path.name}: {len(content)} workflows of {len(requests):,} calls, Poisson at {rate:g} workflows/s, seed {seed}"
    return Workload(name=path.stem, requests=requests, source=source)


def _workflow(entry: Any, number: int, arrival_s: float, parallel: Collection[str] | None, place: str) -> list[TimedRequest]:
    steps = entry.get(KEY) if isinstance(entry, dict) else None
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise WorkloadError(f"{place}: expected an object whose {KEY!r} is a list of steps")
    for index, step in enumerate(steps):
        name = field(step, "step", f"{place}: step {index}")
        if not isinstance(name, str) or not name:
            raise WorkloadError(f"{place}: step {index}: step must be a name, got {name!r}")

    def stage_of(item: tuple[int, dict[str, Any]]) -> tuple[str, int]:
        together = parallel is None or item[1]["step"] in parallel
        return (item[1]["step"], -1 if together else item[0])

    requests: list[TimedRequest] = []
    parents: tuple[str, ...] = ()
    for _, calls in groupby(enumerate(steps), key=stage_of):
        ids = []
        for index, step in calls:
            here = f"{place}: step {index}"
            ids.append(f"{number}.{index}")
            requests.append(
                TimedRequest(
                    id=ids[-1],
                    arrival_s=0.0 if parents else arrival_s,
                    prompt_tokens=whole(field(step, "input_length", here), f"{here}: input_length"),
                    output_tokens=whole(field(step, "output_length", here), f"{here}: output_length"),
                    application="text2sql",
                    workflow=str(number),
                    stage=step["step"],
                    parents=parents,
                )
            )
        parents = tuple(ids)
    return requests
