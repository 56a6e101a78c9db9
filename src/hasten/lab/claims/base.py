"""A claim: an experiment anyone can run that holds a technique against the plain engine on the same work in the same run.

A claim is a file `lab/claims/<name with underscores>.py` that holds `CLAIM`. It is honest when the baseline is the best plain
configuration, both sides run in one process alternately, every figure is a median with its spread, quality is scored beside
speed, and a shortfall is printed as a shortfall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One figure of a claim: what it is, what the paper reports of it (in words, with the paper's conditions), and what we
    require: `at_least` or `at_most` a value (neither: it is reported, not required). `unit`: as `x`, `%`, `ms`, or empty."""

    name: str
    what: str
    paper: str = ""
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None


@dataclass(slots=True)
class Setting:
    """What a claim's `run` gets. `quick`: the same baselines and guards with fewer rounds, within 60 s; otherwise up to ten
    minutes. `progress(what, share done in 0..1)`."""

    quick: bool = False
    seed: int = 0
    progress: Callable[[str, float], None] = lambda what, share: None


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition without which no figure counts (equal tokens, no starvation, a score not lost)."""

    name: str
    held: bool
    detail: str = ""


@dataclass(slots=True)
class Outcome:
    """What was measured. `samples`: for each requirement's name the figure of every round (a ratio of two runs of one round,
    where it is a comparison). `guards` checked meanwhile. `shortfall`: for each requirement that may fall short the reason
    found. `notes`: sentences a reader of the result should know. `details`: anything else for the JSON. `pictures`: PNG bytes
    by file stem."""

    samples: Mapping[str, Sequence[float]]
    guards: list[Guard] = field(default_factory=list)
    shortfall: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`paper`: title, year. `workload`, `baseline`, `technique`: what runs, in words, with the knobs that matter; a tuned
    baseline says by which search. `simulated`: the figures come from the virtual clock."""

    name: str
    title: str
    paper: str
    workload: str
    baseline: str
    technique: str
    requirements: tuple[Requirement, ...]
    run: Callable[[Setting], Outcome]
    simulated: bool = False
