"""Ways of reusing what was retrieved, asked the same questions: answers, tokens computed and time to first token.

Each way is an engine of its own over the same weights. The plain engine with its prefix cache is one of them, and gives the
answers of full computation, which the cache does not change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hasten.engine.events import Kind as Event
from hasten.engine.request import SamplingParams, Segment
from hasten.lab.bench.rag import Kind, Library, Query
from hasten.lab.claims.sides import Side
from hasten.lab.testbed.evaluate import material_for, spoken
from hasten.lab.testbed.material import Material

if TYPE_CHECKING:
    from hasten.engine.llm import LLM

Progress = Callable[[str, float], None]


@dataclass
class Answers:
    """`right`: of every question, in the order asked, with its kind. `outputs`: what was said."""

    right: list[tuple[Kind, bool]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def points(self, kind: Kind | None = None) -> float:
        """Per cent right, of one kind or all; NaN where nothing was asked."""
        found = [right for of, right in self.right if kind in (None, of)]
        return 100 * sum(found) / len(found) if found else float("nan")


@dataclass(frozen=True)
class First:
    """One prompt's way to its first token: seconds, its tokens, and how many tokens ran through the layers for it, those that
    did so twice counted twice, and by the share of the layers those that left before the last."""

    seconds: float
    prompt: int
    computed: float


class Ways:
    """Engines of `sides`, with settings `common` to all. `model`: None for the built-in one. `material`: as the property, where
    it was read before."""

    def __init__(
        self, sides: Iterable[Side], common: Sequence[str] = (), model: str | None = None, material: Material | None = None
    ) -> None:
        from hasten.engine.llm import LLM

        self.llms: dict[str, LLM] = {side.name: LLM(model, with_=side.with_, set_=(*common, *side.set_)) for side in sides}
        self._material = material

    @property
    def any(self) -> LLM:
        return next(iter(self.llms.values()))

    @property
    def material(self) -> Material:
        """What libraries are made of; reading it takes seconds."""
        if self._material is None:
            self._material = material_for(self.any)
        return self._material

    def encode(self, text: str) -> list[int]:
        return self.any.tokenizer.encode(text, add_special_tokens=False)

    def answers(self, name: str, books: Library, queries: Iterable[Query]) -> Answers:
        """What one way answers, greedily, the questions of each query side by side."""
        llm, found = self.llms[name], Answers()
        for query in queries:
            asked = query.questions
            sampling = [SamplingParams(max_tokens=one.max_tokens, temperature=0) for one in asked]
            done = llm.generate([books.prompt(query.pieces, one) for one in asked], sampling)
            for one, completion in zip(asked, done, strict=True):
                if error := completion.choices[0].error:
                    raise RuntimeError(f"{name}: {error}")
                output = spoken(llm, completion.choices[0])
                found.outputs.append(output)
                found.right.append((one.kind, one.right(output)))
        return found

    def first(self, name: str, prompt: Sequence[Segment]) -> First:
        """One prompt alone, up to its first token."""
        llm = self.llms[name]
        before = self._computed(llm)
        began = time.perf_counter()
        (done,) = llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0))
        seconds = time.perf_counter() - began
        return First(seconds, len(done.prompt_tokens), self._computed(llm) - before)

    @staticmethod
    def _computed(llm: LLM) -> float:
        """Tokens that ran through the layers so far."""
        events: Any = llm.engine.events
        skipped = llm.engine.stats()["row_layers_skipped_total"] / len(llm.parts.model.blocks)
        return float(events.sums[Event.SCHEDULED] - skipped)

    def warm(self, books: Library, queries: Sequence[Query], names: Iterable[str] | None = None) -> None:
        """Have every way see these prompts once."""
        for name in names or self.llms:
            for query in queries:
                self.first(name, books.prompt(query.pieces, query.questions[0]))

    def firsts(self, books: Library, queries: Sequence[Query], names: Sequence[str] | None = None) -> dict[str, list[First]]:
        """Each query's first question by every way in turn, every other time in reverse, so that a machine that drifts favours
        nobody."""
        names = list(names or self.llms)
        found: dict[str, list[First]] = {name: [] for name in names}
        for number, query in enumerate(queries):
            prompt = books.prompt(query.pieces, query.questions[0])
            for name in names[:: 1 if number % 2 == 0 else -1]:
                found[name].append(self.first(name, prompt))
        return found

    def forget(self, name: str) -> None:
        """What a way keeps, it loses."""
        books = self.llms[name].parts.books
        if books.chunks is not None:
            books.chunks.clear()
        if books.reuse is not None:
            books.reuse.evict(books.pool.blocks)

    def close(self) -> None:
        for llm in self.llms.values():
            llm.engine.executor.close()
        self.llms.clear()


def lost(plain: Answers, other: Answers, kind: Kind | None = None) -> float:
    """Points of a hundred by which a way's answers are below those of full computation, on the same questions."""
    return plain.points(kind) - other.points(kind)


def share_computed(firsts: Sequence[First]) -> float:
    """Per cent of the prompts' tokens that ran through the layers."""
    return 100 * sum(one.computed for one in firsts) / sum(one.prompt for one in firsts)


def pooled(rounds: Iterable[Mapping[str, Answers]]) -> dict[str, Answers]:
    """The answers of all rounds together, by way."""
    every: dict[str, Answers] = {}
    for one in rounds:
        for name, answers in one.items():
            found = every.setdefault(name, Answers())
            found.right += answers.right
            found.outputs += answers.outputs
    return every
