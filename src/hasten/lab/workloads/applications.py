"""Five kinds of applications with demand that varies much, within and between them: what demand graphs are tried on.

The shapes follow the applications that papers on serving them describe (routed assistants, map and reduce over documents,
writing code until its tests pass, agents that browse, extraction in pieces). All numbers are our modelling; that these
applications read 50 to 100 tokens for each one they write is what public traces of such calls show (text-to-SQL workflows: 25,
Azure's code completion of 2023: 73, Mooncake's tools and agents: 47). Each kind's service time has a coefficient of variation
of 1 or more, most have two clearly separate modes, and in three an early stage tells something about the later ones. Tools work
between stages: they take time and no service. Prompts share nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.generate import arrivals, check_count

LONGEST = 60_000
"""Most tokens of a prompt."""
_MOST_OUTPUT = 1_000


@dataclass(slots=True)
class Stage:
    """Calls that run together: (prompt, output) tokens; `tool` works for `delay_s` before they come."""

    name: str
    calls: list[tuple[int, int]]
    tool: str = ""
    delay_s: float = 0.0


@dataclass(slots=True)
class _Draw:
    rng: np.random.Generator

    def tokens(self, median: float, sigma: float) -> int:
        return int(np.clip(median * np.exp(self.rng.normal(0.0, sigma)), 1, LONGEST))

    def output(self, median: float, sigma: float) -> int:
        return min(_MOST_OUTPUT, self.tokens(median, sigma))

    def seconds(self, median: float, sigma: float = 0.5) -> float:
        return float(median * np.exp(self.rng.normal(0.0, sigma)))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def count(self, mean: float) -> int:
        return 1 + int(self.rng.poisson(mean - 1))


def assistant(draw: _Draw) -> Iterator[Stage]:
    """Three questions of four are answered at once; the others after reading what a search has found."""
    asked = draw.tokens(600, 0.5)
    yield Stage("route", [(asked, draw.output(6, 0.3))])
    if draw.chance(0.75):
        yield Stage("reply", [(asked + draw.tokens(2000, 0.5), draw.output(60, 0.5))])
        return
    pages = [(draw.tokens(12_000, 0.4), draw.output(60, 0.4)) for _ in range(draw.count(8))]
    yield Stage("read", pages, "search", draw.seconds(0.7))
    yield Stage("answer", [(asked + 2000 + sum(output for _, output in pages), draw.output(150, 0.5))])


def report(draw: _Draw) -> Iterator[Stage]:
    """An outline of some sections, each written from its own pages, and all merged: the outline's length tells how many."""
    sections = int(np.clip(draw.tokens(5, 1.0), 1, 40))
    yield Stage("outline", [(draw.tokens(4000, 0.5), 8 * sections + draw.output(10, 0.3))])
    written = [(draw.tokens(9000, 0.5), draw.output(90, 0.4)) for _ in range(sections)]
    yield Stage("section", written, "browser", draw.seconds(0.8))
    yield Stage("merge", [(600 + sum(output for _, output in written), draw.output(200, 0.4))])


def coder(draw: _Draw) -> Iterator[Stage]:
    """Code is written and run until its tests pass: soon, or after many tries. Hard tasks have longer plans."""
    hard = draw.chance(0.3)
    context = draw.tokens(6000, 0.6)
    plan = draw.output(85 if hard else 40, 0.3)
    yield Stage("plan", [(context, plan)])
    context += plan
    for number in range(draw.count(9) if hard else draw.count(1.5)):
        output = draw.output(100, 0.5)
        delay_s = draw.seconds(1.0) if number else 0.0
        yield Stage("write", [(min(LONGEST, context), output)], "sandbox" if number else "", delay_s)
        context += output + draw.tokens(1500, 0.7)
    yield Stage("review", [(min(LONGEST, context), draw.output(40, 0.4))], "sandbox", draw.seconds(1.0))


def researcher(draw: _Draw) -> Iterator[Stage]:
    """Thinks, looks at a page, thinks again with all of it before it, and answers."""
    context = draw.tokens(2500, 0.4)
    for number in range(draw.count(9) if draw.chance(0.25) else draw.count(1.8)):
        output = draw.output(40, 0.5)
        delay_s = draw.seconds(0.6, 0.7) if number else 0.0
        yield Stage("think", [(min(LONGEST, context), output)], "browser" if number else "", delay_s)
        context += output + draw.tokens(3500, 0.8)
    yield Stage("answer", [(min(LONGEST, context), draw.output(120, 0.5))])


def extractor(draw: _Draw) -> Iterator[Stage]:
    """A short document in one call, or a long one in many; what does not fit the schema is repaired."""
    if draw.chance(0.8):
        pieces = [(draw.tokens(3000, 0.5), draw.output(50, 0.5))]
    else:
        pieces = [(draw.tokens(14_000, 0.2), draw.output(80, 0.5)) for _ in range(draw.count(12))]
    yield Stage("extract", pieces)
    while draw.chance(0.3):
        yield Stage("repair", [(draw.tokens(2500, 0.5), draw.output(40, 0.5))], "validator", draw.seconds(0.2))


KINDS: dict[str, Callable[[_Draw], Iterator[Stage]]] = {
    kind.__name__: kind for kind in (assistant, report, coder, researcher, extractor)
}


@dataclass(slots=True)
class _Made:
    requests: list[TimedRequest] = field(default_factory=list)

    def add(self, number: int, kind: str, arrival_s: float, stages: Iterator[Stage]) -> None:
        parents: tuple[str, ...] = ()
        for depth, stage in enumerate(stages):
            ids = []
            for place, (prompt, output) in enumerate(stage.calls):
                ids.append(f"{number}.{depth}.{place}")
                request = TimedRequest(
                    id=ids[-1],
                    arrival_s=0.0 if parents else arrival_s,
                    prompt_tokens=prompt,
                    output_tokens=output,
                    application=kind,
                    workflow=str(number),
                    stage=stage.name,
                    parents=parents,
                    delay_s=stage.delay_s if parents else 0.0,
                    tool=stage.tool if parents else "",
                )
                self.requests.append(request)
            parents = tuple(ids)


def applications(*, rate: float = 0.5, workflows: int = 200, kind: str = "", seed: int = 0) -> Workload:
    """Runs of five kinds of applications, as likely each, whose demand varies much.

    `rate`: runs a second (Poisson). `workflows`: how many. `kind`: only this one (assistant, report, coder, researcher or
    extractor)."""
    check_count("workflows", workflows)
    if kind and kind not in KINDS:
        raise WorkloadError(f"no kind of application is called {kind!r}; known: {', '.join(KINDS)}")
    of_arrivals, of_kinds, of_work = np.random.default_rng(seed).spawn(3)
    starts_s = arrivals(of_arrivals, workflows, rate)
    names = [kind] if kind else list(KINDS)
    drawn = of_kinds.integers(0, len(names), workflows)
    made = _Made()
    for number in range(workflows):
        name = names[int(drawn[number])]
        made.add(number, name, float(starts_s[number]), KINDS[name](_Draw(of_work)))
    source = f"{workflows} runs of {', '.join(names)} arriving at {rate:g}/s (Poisson), seed {seed}"
    return Workload(name="applications", requests=made.requests, block_tokens=512, source=source)
