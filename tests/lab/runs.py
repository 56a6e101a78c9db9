"""Runs written by hand: a log of events, and what a request did, told in a line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.engine.events import EventLog, Kind
from hasten.lab.bench.run import Run
from hasten.lab.workloads.base import TimedRequest, Workload


@dataclass
class Life:
    """What became of a request, in seconds after the workload's start. `commits`: (time, tokens) of each commit of output."""

    due_s: float = 0.0
    scheduled_s: float | None = None
    commits: Sequence[tuple[float, int]] = ()
    end_s: float | None = None
    ok: bool = True
    prompt: int = 10
    reused: int = 0
    preempted_s: Sequence[float] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    """More fields of its TimedRequest."""


def run_of(lives: Sequence[Life], *, start_s: float = 100.0, steps: Sequence[tuple[float, int]] = (), **fields: Any) -> Run:
    """The run in which these requests did that. `steps`: (time, free blocks) after each step of 0.01 s."""
    rows: list[tuple[float, Kind, int, float, float]] = []
    for i, life in enumerate(lives):
        # The log's sequences are in another order than the workload's requests, and do not begin at 0.
        seq = 7 + len(lives) - i
        if life.end_s is None and life.scheduled_s is None and not life.commits:
            continue
        rows.append((life.due_s, Kind.ARRIVED, seq, life.prompt, i))
        if life.scheduled_s is not None:
            if life.reused:
                rows.append((life.scheduled_s, Kind.REUSED, seq, life.reused, 0))
            rows.append((life.scheduled_s, Kind.SCHEDULED, seq, life.prompt, 0))
        for at in life.preempted_s:
            rows.append((at, Kind.PREEMPTED, seq, 1, 0))
            rows.append((at, Kind.REUSED, seq, 5, 0))
        for j, (at, tokens) in enumerate(life.commits):
            if not j:
                rows.append((at, Kind.FIRST_TOKEN, seq, 0, 0))
            rows.append((at, Kind.TOKENS, seq, tokens, 0))
        if life.end_s is not None:
            output = sum(tokens for _, tokens in life.commits)
            rows.append((life.end_s, Kind.FINISHED if life.ok else Kind.FAILED, seq, output, 0))
    for at, free in steps:
        rows.append((at, Kind.STEP, -1, 8, 0.01))
        rows.append((at, Kind.MEMORY, -1, free, 2))
    log = EventLog()
    # A sequence nobody asked about: another client's.
    log.add(start_s, Kind.TOKENS, 7, 3)
    for at, kind, seq, a, b in sorted(rows, key=lambda row: row[0]):
        log.add(start_s + at, kind, seq, a, b)
    ids = np.array([7 + len(lives) - i for i in range(len(lives))])
    seen = np.array([life.end_s is not None or life.scheduled_s is not None or bool(life.commits) for life in lives])
    requests = [
        TimedRequest(
            id=f"r{i}",
            arrival_s=life.due_s,
            prompt_tokens=life.prompt,
            output_tokens=max(1, sum(tokens for _, tokens in life.commits)),
            **life.facts,
        )
        for i, life in enumerate(lives)
    ]
    workload = Workload(name="by hand", requests=requests, slos=fields.pop("slos", {}))
    return Run(
        name=fields.pop("name", "by hand"),
        workload=workload,
        columns=log.columns(),
        sequence=np.where(seen, ids, -1),
        start_s=start_s,
        due_s=start_s + np.array([life.due_s for life in lives]),
        lag_s=np.zeros(len(lives)),
        **fields,
    )
