"""Walks through the rest of a demand graph, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hasten.engine.scheduling.demand.graph import BY_VISIT, NOBODY, VISITS

if TYPE_CHECKING:
    from hasten.engine.scheduling.demand.tables import Tables

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NEAREST = 16
"""Fewest records that the current unit's may be drawn from, where there are so many."""
_PARTS = 8


@dataclass(slots=True)
class Walks:
    """Of W walks, arrays [W]: of the unit they begin in the `output` tokens of a call (mean) and of its `longest` call; of
    all that comes after it the `service_s` and the `time_s`. `following` float64 [units + 1]: how often each unit came next,
    the last being the end."""

    output: Floats
    longest: Floats
    service_s: Floats
    time_s: Floats
    following: Floats


def window(cell: Ints, prompt: Floats, known: float) -> tuple[int, int]:
    """Which eighths of a cell's records, from and to, have prompts like `known` (tokens of all calls): one or two of them, or
    all that have this very length."""
    step = -(-len(cell) // _PARTS)
    low, high = (int(np.searchsorted(prompt[cell], known, side=side)) for side in ("left", "right"))
    return low // step, -(-high // step)


def walk(
    tables: Tables,
    unit: int,
    seen: list[int],
    history: list[int],
    around: tuple[int, int],
    walks: int,
    rng: np.random.Generator,
) -> Walks:
    """Begin in `unit`, whose prompts are known (`around`, from `window`) and whose outputs are not. `seen`: visits to each
    unit, this one included; `history`: the buckets of the last ended visits (see `graph.Seen`), 0 where there is none."""
    units = tables.units
    cell = tables.cell(unit, seen[unit], history)
    # Those whose prompts are nearest: what a call will write, and what comes later, may go with what it reads.
    step = -(-len(cell) // _PARTS)
    low, high = around[0] * step, min(len(cell), around[1] * step)
    width = min(len(cell), max(NEAREST, len(cell) // 4))
    if high - low < width:
        low = min(max(0, (low + high - width) // 2), len(cell) - width)
        high = low + width
    record = cell[rng.integers(low, high, walks)]
    output, longest = tables.output[record], tables.longest[record]
    service_s, time_s = np.zeros(walks), np.zeros(walks)
    following = np.zeros(units + 1)
    who = np.arange(walks)
    at = np.full(walks, unit)
    times = np.tile(np.array(seen, dtype=np.int64), (walks, 1))
    past = np.tile(np.array(history, dtype=np.int64), (walks, 1))
    for step in range(tables.steps):
        rows = np.arange(len(who))
        past[rows, at], past[rows, at + units] = tables.bucket[record].T
        by = tables.branch_by[at]
        value = np.where(by == NOBODY, 0, past[rows, by])
        ways = tables.ways[at, np.minimum(times[rows, at], VISITS), value]
        at = (ways <= rng.random(len(who))[:, None]).sum(1)
        if step == 0:
            following = np.bincount(np.minimum(at, units), minlength=units + 1) / walks
        on = at < units
        if not on.any():
            break
        who, at, times, past = who[on], at[on], times[on], past[on]
        rows = np.arange(len(who))
        times[rows, at] += 1
        by = tables.demand_by[at]
        value = np.where(by == NOBODY, 0, np.where(by == BY_VISIT, np.minimum(times[rows, at], VISITS), past[rows, by]))
        record = tables.order[tables.start[at, value] + (rng.random(len(who)) * tables.count[at, value]).astype(np.int64)]
        service_s[who] += tables.service_s[record]
        time_s[who] += tables.time_s[record]
    return Walks(output, longest, service_s, time_s, following)
