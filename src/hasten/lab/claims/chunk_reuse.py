"""What the claims about reused chunks share: libraries, answers of all ways in turn, speed after everything was seen once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from hasten.lab.claims.base import Guard
from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.lab.bench.rag import Library, Query
    from hasten.lab.bench.rag_runs import Answers, First, Ways

COMMON = ("model.max_length=8192", "model.dtype=bfloat16", f"kv.memory_bytes={96 << 20}", "scheduling.max_tokens=2048")
PLAIN = Side("plain")
"""The prefix tree is on by default."""
NONE = Side("none", ("plain-chunks:recompute=none",))
ALL = Side("all", ("plain-chunks:recompute=all",))
SKEW = 1.0
TUNING = 10_000
"""Added to the seed: libraries that are tuned on are asked about nowhere else."""
LEAST_LOSS = 5.0
"""Points that a control must lose for the task to tell it apart."""

Progress = Callable[[str, float], None]
Rounds = Sequence[Mapping[str, "Answers"]]
Firsts = Sequence[Mapping[str, "Sequence[First]"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`pieces` of `tokens` tokens in a library, `each` of them in a prompt; the rest as in `rag.library`."""

    pieces: int
    tokens: int
    each: int
    facts: int
    cut: int
    links: int = 0

    def library(self, ways: Ways, seed: int) -> Library:
        from hasten.lab.bench.rag import library

        return library(
            ways.encode, ways.material, seed, pieces=self.pieces, tokens=self.tokens, facts=self.facts, cut=self.cut,
            links=self.links,
        )  # fmt: skip

    def queries(self, books: Library, seed: int, count: int, questions: int = 1) -> list[Query]:
        """All pieces in changing order where a prompt takes them all, else skewed samples."""
        from hasten.lab.bench.rag import retrieved, shuffled, zipf

        seeds = range(1000 * seed, 1000 * seed + count)
        if self.each == self.pieces:
            return [shuffled(books, one, questions) for one in seeds]
        weights = zipf(len(books.texts), SKEW, seed)
        return [retrieved(books, weights, one, pieces=self.each, questions=questions) for one in seeds]

    def once(self, books: Library, seed: int) -> list[Query]:
        """Prompts in which every piece stands once, in any company."""
        from hasten.lab.bench.rag import Query

        order = random.Random(f"once/{seed}").sample(range(self.pieces), self.pieces)
        parts = [tuple(order[i : i + self.each]) for i in range(0, self.pieces, self.each)]
        return [Query(part, (books.about(part)[0],)) for part in parts]


LARGE = Shape(pieces=8, tokens=512, each=8, facts=2, cut=3)
SMALL = Shape(pieces=200, tokens=128, each=5, facts=2, cut=60, links=40)
FEW = Shape(pieces=40, tokens=128, each=5, facts=2, cut=12, links=8)
"""As SMALL; all of its pieces can be seen within seconds."""


def ask(
    ways: Ways, shape: Shape, names: Sequence[str], *, rounds: int, queries: int, questions: int, seed: int, seen: bool = False,
    progress: Progress,
) -> list[dict[str, Answers]]:  # fmt: skip
    """Answers of each round, by way: of a library of its own, all ways in turn. `seen`: every piece was seen once before, which
    matters to ways whose answers depend on it."""
    found = []
    for number in range(rounds):
        books = shape.library(ways, seed + number)
        asked = shape.queries(books, seed + number, queries, questions)
        one: dict[str, Answers] = {}
        for turn, name in enumerate(names):
            progress(f"questions, round {number + 1} of {rounds}: {name}", (number + turn / len(names)) / rounds)
            if seen:
                ways.warm(books, shape.once(books, seed + number), [name])
            one[name] = ways.answers(name, books, asked)
            ways.forget(name)
        found.append(one)
    return found


def speed(
    ways: Ways, shape: Shape, names: Sequence[str], *, rounds: int, queries: int, seed: int, progress: Progress
) -> list[dict[str, list[First]]]:
    """First tokens of each round, by way, when every piece was seen once: prompts of a library of its own, ways in turn."""
    found = []
    for number in range(rounds):
        progress(f"time to first token, round {number + 1} of {rounds}", number / rounds)
        books = shape.library(ways, seed + number)
        ways.warm(books, shape.once(books, seed + number), names)
        found.append(ways.firsts(books, shape.queries(books, seed + number, queries), names))
        for name in names:
            ways.forget(name)
    return found


def ttft_ratios(rounds: Firsts, name: str, over: str = PLAIN.name) -> list[float]:
    """How many times as long another way takes, medians of each round."""
    return [median(f.seconds for f in one[over]) / median(f.seconds for f in one[name]) for one in rounds]


def saved(rounds: Firsts, name: str, over: str = PLAIN.name) -> list[float]:
    """Per cent of the tokens that another way computes, saved."""
    computed = [(sum(f.computed for f in one[over]), sum(f.computed for f in one[name])) for one in rounds]
    return [100 * (1 - ours / theirs) for theirs, ours in computed]


def lost(rounds: Rounds, name: str) -> float:
    """Points below full computation, over all questions: a round has too few, a median of rounds would mostly say 0."""
    from hasten.lab.bench.rag_runs import lost as below
    from hasten.lab.bench.rag_runs import pooled

    every = pooled(rounds)
    return below(every[PLAIN.name], every[name])


def in_words(rounds: Rounds, names: Sequence[str]) -> list[str]:
    """Of every way, what is right of each kind of question, and its distance to full computation with Newcombe's interval."""
    import numpy as np

    from hasten.lab.bench.rag import KINDS
    from hasten.lab.bench.rag_runs import pooled
    from hasten.lab.testbed.pairwise import newcombe

    every = pooled(rounds)
    plain = np.array([float(right) for _, right in every[PLAIN.name].right])
    said = []
    for name in names:
        here = every[name]
        kinds = ", ".join(f"{kind} {here.points(kind):.1f} %" for kind in KINDS if any(of == kind for of, _ in here.right))
        words = f"{name}: {len(here.right)} questions, {here.points():.1f} % right ({kinds})"
        if name != PLAIN.name:
            apart = newcombe(plain, np.array([float(right) for _, right in here.right]))
            words += f"; {100 * apart.value:+.1f} points ({100 * apart.low:+.1f} to {100 * apart.high:+.1f})"
        said.append(words)
    return said


def controls(rounds: Rounds, ours: str, naive: str, chance: str) -> list[Guard]:
    """Naive reuse loses visibly, and so do as many tokens at random; without that the task is too easy to say anything."""
    of = {name: lost(rounds, name) for name in (ours, naive, chance)}
    return [
        Guard("naive reuse is visibly worse", of[naive] >= LEAST_LOSS, f"nothing computed again loses {of[naive]:.1f} points"),
        Guard(
            "as many tokens at random are visibly worse",
            of[chance] - of[ours] >= LEAST_LOSS,
            f"{of[chance]:.1f} points lost, {of[ours]:.1f} by {ours}",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Point:
    """`computed`: per cent of a prompt's tokens; `right`: per cent of the questions."""

    series: str
    name: str
    computed: float
    right: float


def points(rounds: Rounds, firsts: Firsts, series: Mapping[str, Sequence[str]]) -> list[Point]:
    """Of the ways of each series."""
    from hasten.lab.bench.rag_runs import pooled, share_computed

    every = pooled(rounds)
    return [
        Point(label, name, share_computed([f for one in firsts for f in one[name]]), every[name].points())
        for label, names in series.items()
        for name in names
        if name in every
    ]


def picture(found: Sequence[Point]) -> bytes:
    """Right answers by the share of tokens that is computed."""
    from hasten.lab.claims.picture import axes, png

    figure, (plot,) = axes(1)
    for label, of in _by_series(found):
        of = sorted(of, key=lambda point: point.computed)
        plot.plot(
            [p.computed for p in of], [p.right for p in of], marker="o", linestyle="-" if len(of) > 1 else "", label=label
        )
        for point in of:  # steep, since most points lie beside each other
            plot.annotate(
                point.name, (point.computed, point.right), fontsize=6, rotation=65, xytext=(0, 4), textcoords="offset points"
            )
    low, high = plot.get_ylim()
    plot.set(
        xlabel="tokens of a prompt that are computed, %", ylabel="right answers, %", ylim=(low, high + 0.25 * (high - low))
    )
    plot.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=3)
    return png(figure)


def _by_series(found: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    for label in dict.fromkeys(point.series for point in found):
        yield label, [point for point in found if point.series == label]
