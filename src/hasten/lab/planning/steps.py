"""Measured steps as an event log holds them: what each did and how long it took."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Kind

Floats = npt.NDArray[np.float64]

PAUSE_S = 5e-3
"""A longer gap between two steps is time in which there was nothing to do, not a step's own overhead."""

COLUMNS = ("tokens", "rows", "heads", "cached", "pairs")


def steps_of(columns: dict[str, Any]) -> tuple[Floats, Floats]:
    """Shapes float64 [n, 5] (see COLUMNS, `executors.cost.StepShape`) and seconds float64 [n] of the steps in an event log.

    A step's seconds reach from the end of the one before it, where nothing but the caller's own work lies between."""
    kind, a, b, time_s = columns["kind"], columns["a"], columns["b"], columns["time_s"]
    step = np.flatnonzero(kind == Kind.STEP)
    memory, read = np.flatnonzero(kind == Kind.MEMORY), np.flatnonzero(kind == Kind.READ)
    if not len(step) == len(memory) == len(read):
        raise ValueError("the log does not hold whole steps")
    # Every drawn row commits at least one token, in one event, before its step's own.
    drawn = np.cumsum(kind == Kind.TOKENS)[step]
    heads = np.diff(drawn, prepend=0)
    shapes = np.stack([a[step], b[memory], heads, a[read], b[read]], axis=1)
    end = time_s[step]
    seconds = b[step].copy()
    gap = end[1:] - seconds[1:] - end[:-1]
    seconds[1:] += np.where((gap >= 0) & (gap < PAUSE_S), gap, 0.0)
    return shapes, seconds
