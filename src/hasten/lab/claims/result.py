"""A result: what a claim measured, judged, with all that a reader needs to believe it or to measure again."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from pydantic import BaseModel

from hasten.lab.claims.base import Requirement
from hasten.lab.claims.machine import Machine
from hasten.lab.claims.statistics import interval


class Verdict(Enum):
    MET = "met"
    SHORT = "falls short"
    UNDECIDED = "undecided"
    """a quick run whose interval holds the threshold"""
    BROKEN = "guard broken"
    """no figure counts"""
    REPORTED = "reported"
    """nothing is required of it"""

    @property
    def exit_code(self) -> int:
        return {Verdict.SHORT: 1, Verdict.BROKEN: 1, Verdict.UNDECIDED: 3}.get(self, 0)


class Figure(BaseModel):
    """One requirement and what was measured: `samples` one a round, their median, and its interval with its confidence."""

    name: str
    what: str
    paper: str
    unit: str
    at_least: float | None
    at_most: float | None
    samples: list[float]
    median: float
    low: float
    high: float
    confidence: float
    verdict: Verdict
    shortfall: str = ""


class Held(BaseModel):
    """A guard, and whether it held."""

    name: str
    held: bool
    detail: str


class Result(BaseModel):
    """`pictures`: file names beside the stored result's pictures. `seconds`: the claim's own wall time."""

    claim: str
    title: str
    paper: str
    workload: str
    baseline: str
    technique: str
    simulated: bool
    quick: bool
    seed: int
    verdict: Verdict
    figures: list[Figure]
    guards: list[Held]
    notes: list[str]
    details: dict[str, Any]
    pictures: list[str] = []
    machine: Machine
    commit: str
    version: str
    date: str
    seconds: float


def judge(requirement: Requirement, samples: Sequence[float], quick: bool, shortfall: str = "") -> Figure:
    """A full run is judged by its median, a quick one by its whole interval; one sample makes none, and decides nothing then.
    Raises ValueError for samples that are none."""
    found = interval(samples)
    low, high = (found.low, found.high) if quick else (found.median, found.median)
    verdicts = []
    if requirement.at_least is not None:
        verdicts.append(_side(low >= requirement.at_least, high < requirement.at_least))
    if requirement.at_most is not None:
        verdicts.append(_side(high <= requirement.at_most, low > requirement.at_most))
    verdict = worst(verdicts) if verdicts else Verdict.REPORTED
    if quick and len(samples) == 1 and verdicts:
        verdict = Verdict.UNDECIDED
    return Figure(
        name=requirement.name,
        what=requirement.what,
        paper=requirement.paper,
        unit=requirement.unit,
        at_least=requirement.at_least,
        at_most=requirement.at_most,
        samples=[float(sample) for sample in samples],
        median=found.median,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        verdict=verdict,
        shortfall=shortfall if verdict is not Verdict.MET else "",
    )


def _side(right: bool, wrong: bool) -> Verdict:
    return Verdict.MET if right else Verdict.SHORT if wrong else Verdict.UNDECIDED


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of several together; REPORTED figures do not count, and none at all are MET."""
    for verdict in (Verdict.BROKEN, Verdict.SHORT, Verdict.UNDECIDED):
        if verdict in verdicts:
            return verdict
    return Verdict.MET
