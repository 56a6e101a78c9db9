"""Runs of applications as demand graphs are learned from them: units one after the other, and what each asked for.

A unit is a stage of model calls that begin together, or a tool (a sandbox, a search service, another model) between two stages.
Calls that wait for the same parents form one unit, so a run that forks and joins is a chain of units; where branches of
different depth overlap, the chain follows the order in which they begin, which keeps the total and overstates the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Tokens = tuple[int, int]
"""Of a call: prompt and output."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A run's stay at a unit. `backend`: who serves it, empty for the engine itself. `calls`: none for a tool. `delay_s`: from
    the end of the unit before, with nobody working. `duration_s`: NaN where it is not known."""

    unit: str
    backend: str = ""
    calls: tuple[Tokens, ...] = ()
    delay_s: float = 0.0
    duration_s: float = math.nan


Run = tuple[Visit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCall:
    """A model call of a log. `parents`: ids of the calls whose ends it waited for. `tool`: what worked in the `delay_s`
    between, if anything did. `arrival_s`, `end_s`: NaN where they are not known."""

    id: str
    stage: str
    parents: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int
    delay_s: float = 0.0
    tool: str = ""
    arrival_s: float = math.nan
    end_s: float = math.nan


def joins(parents: tuple[str, ...], unit_parents: tuple[str, ...], overlaps: bool) -> bool:
    """Whether a call belongs to the unit that came last: it has that one's parents, or, where nobody names any, they
    overlap."""
    return set(parents) == set(unit_parents) if parents or unit_parents else overlaps


def unit_name(stages: Iterable[str]) -> str:
    """Of a unit whose calls are of these stages."""
    return "+".join(sorted(set(stages)))


def chain(calls: Iterable[LoggedCall]) -> Run:
    """The units of one run from its calls, parents before what follows them."""
    units: list[list[LoggedCall]] = []
    for call in calls:
        if units:
            last = units[-1]
            end_s = max(other.end_s for other in last)
            same = call.arrival_s == last[0].arrival_s or call.arrival_s < end_s
            if joins(call.parents, last[0].parents, same):
                last.append(call)
                continue
        units.append([call])
    visits: list[Visit] = []
    for unit in units:
        latest = max(unit, key=lambda call: call.delay_s)
        if latest.tool:
            visits.append(Visit(latest.tool, latest.tool, duration_s=latest.delay_s))
        began_s, end_s = min(call.arrival_s for call in unit), max(call.end_s for call in unit)
        visits.append(
            Visit(
                unit_name(call.stage for call in unit),
                calls=tuple((call.prompt_tokens, call.output_tokens) for call in unit),
                delay_s=0.0 if latest.tool else latest.delay_s,
                duration_s=end_s - began_s,
            )
        )
    return tuple(visits)
