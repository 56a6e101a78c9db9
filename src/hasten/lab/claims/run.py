"""Running a claim: measure, judge every requirement and guard, and say on what machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hasten import __version__
from hasten.lab.claims import machine
from hasten.lab.claims.base import Claim, Outcome, Setting
from hasten.lab.claims.registry import ClaimError
from hasten.lab.claims.result import Held, Result, Verdict, judge, worst


@dataclass(slots=True)
class Finished:
    """A result and its pictures, PNG bytes by file stem."""

    result: Result
    pictures: dict[str, bytes] = field(default_factory=dict)


def run(claim: Claim, *, quick: bool = False, seed: int = 0, progress: Callable[[str, float], None] | None = None) -> Finished:
    """Run a claim and judge it. `progress(what, share)` is called as the claim goes on.

    Raises ClaimError when the claim leaves a requirement unmeasured or names a figure it does not have."""
    tell = progress or (lambda what, share: None)
    tell("looking at the machine", 0.0)
    facts = machine.facts()
    commit, date = machine.commit(), datetime.now(UTC).isoformat(timespec="seconds")
    began = time.perf_counter()
    outcome = claim.run(Setting(quick=quick, seed=seed, progress=tell))
    seconds = time.perf_counter() - began
    tell("looking at the machine again", 1.0)
    facts.read_bytes_per_s.append(machine.read_bandwidth())
    _complete(claim, outcome)
    try:
        figures = [judge(r, outcome.samples[r.name], quick, outcome.shortfall.get(r.name, "")) for r in claim.requirements]
    except ValueError as fault:
        raise ClaimError(f"{claim.name}: {fault}") from None
    guards = [Held(name=guard.name, held=guard.held, detail=guard.detail) for guard in outcome.guards]
    broken = any(not guard.held for guard in guards)
    result = Result(
        claim=claim.name,
        title=claim.title,
        paper=claim.paper,
        workload=claim.workload,
        baseline=claim.baseline,
        technique=claim.technique,
        simulated=claim.simulated,
        quick=quick,
        seed=seed,
        verdict=Verdict.BROKEN if broken else worst([figure.verdict for figure in figures]),
        figures=figures,
        guards=guards,
        notes=outcome.notes,
        details=outcome.details,
        machine=facts,
        commit=commit,
        version=__version__,
        date=date,
        seconds=seconds,
    )
    return Finished(result, outcome.pictures)


def _complete(claim: Claim, outcome: Outcome) -> None:
    names = {requirement.name for requirement in claim.requirements}
    missing = [name for name in names if not len(outcome.samples.get(name, ()))]
    if missing:
        raise ClaimError(f"{claim.name}: nothing was measured for {', '.join(sorted(missing))}")
    unknown = (set(outcome.samples) | set(outcome.shortfall)) - names
    if unknown:
        raise ClaimError(f"{claim.name}: measured {', '.join(sorted(unknown))}, which it does not name as a requirement")
