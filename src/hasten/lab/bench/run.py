"""A run: what one engine (in process, behind HTTP, simulated) did with a workload, as events. Metrics are functions of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.lab.workloads.base import Workload

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LAG_LIMIT_S = 0.05
"""A run whose 99th percentile of lag is above this offered another load than the workload asks for, and is invalid."""


@dataclass(slots=True)
class Run:
    """`columns`: the event log's columns of this run (see `engine.events`): time_s float64, kind int8, sequence int64, a and b
    float64, in the order written. `sequence` int64 [n]: the event log's sequence of each request of the workload, -1 where it
    was refused. `start_s`: the log's time of the workload's second 0. `due_s`, `lag_s` float64 [n]: when each request was to
    be sent, in the log's time (for stages: known only once the parents ended), and how much later than it could have been it
    was handed over by the replay itself; NaN where it never came to that. `errors`: why a request was refused or failed, by
    its number.

    `wall_s`: real seconds the run took; `cpu_s`: CPU seconds of this process meanwhile; `peak_memory_bytes`: of this process
    so far."""

    name: str
    workload: Workload
    columns: dict[str, Any]
    sequence: Ints
    start_s: float
    due_s: Floats
    lag_s: Floats
    errors: dict[int, str] = field(default_factory=dict)
    simulated: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    total_blocks: int | None = None
    """KV blocks of the engine, where known."""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lag_p99_s(self) -> float:
        lag = self.lag_s[np.isfinite(self.lag_s)]
        return float(np.percentile(lag, 99)) if len(lag) else 0.0

    @property
    def valid(self) -> bool:
        """False when the replay itself fell behind the schedule."""
        return self.lag_p99_s <= LAG_LIMIT_S
