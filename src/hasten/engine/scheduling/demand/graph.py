"""The demand graph of an application: its units, where runs go from each, and what each asks for, as a set of logged runs has
it.

A graph is the runs it was learned from, and everything else follows from them: so graphs merge without loss, and what depends
on what is tested again over all runs. `Features` says by what a unit's demand and the way on from it are told apart:

- What each unit reads (prompt tokens; seconds of a tool) and what it writes (output tokens) fall into buckets of equal count. A
  run's history is both buckets of its latest visit to each unit, "not visited" being one too, so that the branch taken is part
  of it.
- A unit's demand is told apart by one entry of the history (its own, in a loop), or by the number of the visit: by whichever
  has the smallest p-value of Kruskal and Wallis, if that is below 1 % after Bonferroni's correction for all candidates.
- The next unit is told apart by the number of the visit always (so repeats of a loop have the distribution they had), and by
  one entry of the history if the chi-squared test finds one, by the same rule.

Tests take one visit of each run (the first; of a unit with itself the second), since visits of one run are not independent;
that of the number of the visit takes all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.scheduling.demand.dependence import amounts_differ, branches_differ
from hasten.engine.scheduling.demand.runs import Run, Visit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SURE = 0.01
"""The p-value below which a dependence is believed, after correction."""
BUCKETS, BUCKET_RUNS = 4, 12
"""Most buckets of a unit's demand, and fewest visits in one."""
VISITS = 16
"""Later visits to a unit count as this one."""
MOST_RUNS = 2000
"""Runs that are kept of an application, the latest."""
MOST_UNITS = 128

NOBODY, BY_VISIT = -1, -2
"""Instead of a unit's number: nothing tells apart; the number of the visit does."""
END = -1
"""Instead of the next unit's number."""


@dataclass(slots=True)
class Seen:
    """All visits to a unit in all runs, arrays [n]: which visit `number` of its run (from 1), the `demand` (all tokens, or
    seconds of a tool), `bucket` [n, 2] of what it read and wrote, `before` and `after` [n, 2 units] the history when it began
    and when it ended (what units read, then what they wrote), the `next` unit's number."""

    visits: list[Visit]
    number: Ints
    demand: Floats
    bucket: Ints
    before: Ints
    after: Ints
    next: Ints


@dataclass(slots=True)
class Features:
    """By what demand and branch of each unit are told apart: entries of the history, NOBODY or BY_VISIT; and the p-values."""

    demand: list[int]
    branch: list[int]
    demand_p: list[float]
    branch_p: list[float]


@dataclass(frozen=True)
class DemandGraph:
    """Raises ValueError where there is nothing to learn from, or stages have so many names that they say nothing."""

    application: str
    runs: tuple[Run, ...]
    units: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        runs = tuple(run for run in self.runs if run)[-MOST_RUNS:]
        if not runs:
            raise ValueError(f"{self.application or 'an application'}: there are no runs to learn from")
        units = tuple(dict.fromkeys(visit.unit for run in runs for visit in run))
        if len(units) > MOST_UNITS:
            raise ValueError(
                f"{self.application}: {len(units)} units in {len(runs)} runs, as {units[0]!r} and {units[-1]!r}: name stages "
                f"by what they do (at most {MOST_UNITS} names)"
            )
        object.__setattr__(self, "runs", runs)
        object.__setattr__(self, "units", units)

    def merged(self, other: DemandGraph) -> DemandGraph:
        """Of the runs of both, `other`'s being the later ones."""
        if other.application != self.application:
            raise ValueError(f"{self.application} and {other.application} are different applications")
        return DemandGraph(self.application, (*self.runs, *other.runs))

    @cached_property
    def number(self) -> dict[str, int]:
        return {unit: i for i, unit in enumerate(self.units)}

    @cached_property
    def backends(self) -> tuple[str, ...]:
        """Of each unit: who serves it, empty for the engine."""
        found = {visit.unit: visit.backend for run in self.runs for visit in run}
        return tuple(found[unit] for unit in self.units)

    @cached_property
    def bounds(self) -> list[Floats]:
        """Of each entry of a history the amounts at which a next bucket begins, ascending."""
        units = len(self.units)
        amounts: list[list[float]] = [[] for _ in range(2 * units)]
        for run in self.runs:
            for visit in run:
                for kind, amount in enumerate(amounts_of(visit)):
                    amounts[self.number[visit.unit] + kind * units].append(amount)
        out = []
        for values in amounts:
            count = min(BUCKETS, len(values) // BUCKET_RUNS)
            inner = np.quantile(values, np.arange(1, count) / count) if count > 1 else np.zeros(0)
            out.append(np.unique(inner[inner > min(values)]) if len(inner) else inner)
        return out

    def buckets(self, unit: int, read: float, wrote: float) -> tuple[int, int]:
        """Of what a visit read and wrote, from 1 on; 0 means that a unit has not been visited."""
        first, second = self.bounds[unit], self.bounds[unit + len(self.units)]
        return 1 + int(np.searchsorted(first, read, side="right")), 1 + int(np.searchsorted(second, wrote, side="right"))

    @cached_property
    def seen(self) -> list[Seen]:
        """Of each unit."""
        units = len(self.units)
        rows: list[list[tuple[Any, ...]]] = [[] for _ in self.units]
        for run in self.runs:
            history, times = [0] * (2 * units), [0] * units
            for place, visit in enumerate(run):
                unit = self.number[visit.unit]
                times[unit] += 1
                before = tuple(history)
                read, wrote = amounts_of(visit)
                both = self.buckets(unit, read, wrote)
                history[unit], history[unit + units] = both
                following = self.number[run[place + 1].unit] if place + 1 < len(run) else END
                rows[unit].append((visit, times[unit], read + wrote, both, before, tuple(history), following))
        out = []
        for of_unit in rows:
            visits, number, demand, *rest = zip(*of_unit, strict=True)
            of = [np.array(column, dtype=np.int64) for column in (number, *rest)]
            out.append(Seen(list(visits), of[0], np.array(demand, dtype=np.float64), *of[1:]))
        return out

    @cached_property
    def features(self) -> Features:
        chosen = Features([], [], [], [])
        for unit, seen in enumerate(self.seen):
            first = seen.number == 1
            amounts: dict[int, float] = {}
            branches: dict[int, float] = {}
            for entry in range(2 * len(self.units)):
                rows = seen.number == 2 if entry % len(self.units) == unit else first
                if rows.any() and len(np.unique(seen.before[rows, entry])) > 1:
                    amounts[entry] = amounts_differ(seen.demand[rows], seen.before[rows, entry])
                if len(np.unique(seen.after[first, entry])) > 1:
                    branches[entry] = branches_differ(seen.next[first], seen.after[first, entry])
            if seen.number.max() > 1:
                amounts[BY_VISIT] = amounts_differ(seen.demand, np.minimum(seen.number, VISITS))
            for found, names, values in (
                (amounts, chosen.demand, chosen.demand_p),
                (branches, chosen.branch, chosen.branch_p),
            ):
                best = min(found, key=lambda entry: found[entry], default=NOBODY)
                p = min(1.0, found[best] * len(found)) if found else 1.0
                names.append(best if p < SURE else NOBODY)
                values.append(p)
        return chosen

    @cached_property
    def between(self) -> dict[tuple[int, int], int]:
        """(unit, unit) -> the tool that worked between the two in most runs that went from the one to the other."""
        counts: dict[tuple[int, int], dict[int, int]] = {}
        for run in self.runs:
            last, tool = None, END
            for visit in run:
                unit = self.number[visit.unit]
                if not visit.calls:
                    tool = unit
                    continue
                if last is not None:
                    found = counts.setdefault((last, unit), {})
                    found[tool] = found.get(tool, 0) + 1
                last, tool = unit, END
        most = {pair: max(found, key=lambda tool: found[tool]) for pair, found in counts.items()}
        return {pair: tool for pair, tool in most.items() if tool != END}

    # -- as plain values ------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """A visit is [unit's number, delay, duration or null, [[prompt, output], ...]]."""

        def plain(visit: Visit) -> list[Any]:
            duration_s = None if math.isnan(visit.duration_s) else round(visit.duration_s, 6)
            return [self.number[visit.unit], round(visit.delay_s, 6), duration_s, [list(call) for call in visit.calls]]

        runs = [[plain(visit) for visit in run] for run in self.runs]
        return {"units": list(self.units), "backends": list(self.backends), "runs": runs}

    @classmethod
    def of_dict(cls, application: str, content: Any) -> DemandGraph:
        """Raises ValueError for what `as_dict` does not give."""
        try:
            units, backends = content["units"], content["backends"]
            runs = tuple(tuple(_visit(units, backends, visit) for visit in run) for run in content["runs"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{application}: this is no demand graph: {error!r}") from None
        return cls(application, runs)


def _visit(units: Sequence[str], backends: Sequence[str], visit: Sequence[Any]) -> Visit:
    unit, delay_s, duration_s, calls = visit
    tokens = tuple((int(prompt), int(output)) for prompt, output in calls)
    if unit < 0 or delay_s < 0 or (duration_s or 0) < 0 or any(prompt < 1 or output < 0 for prompt, output in tokens):
        raise ValueError(f"a visit with values that cannot be: {visit}")
    return Visit(units[unit], backends[unit], tokens, float(delay_s), math.nan if duration_s is None else float(duration_s))


def amounts_of(visit: Visit) -> tuple[float, float]:
    """What is put into buckets: prompt and output tokens of all calls, or seconds of a tool and 0."""
    if visit.calls:
        return float(sum(prompt for prompt, _ in visit.calls)), float(sum(output for _, output in visit.calls))
    return (0.0 if math.isnan(visit.duration_s) else visit.duration_s), 0.0


def graphs_of(runs: Iterable[tuple[str, Run]]) -> dict[str, DemandGraph]:
    """The graph of each application from (application, run)."""
    of: dict[str, list[Run]] = {}
    for application, run in runs:
        of.setdefault(application, []).append(run)
    return {application: DemandGraph(application, tuple(found)) for application, found in of.items()}
