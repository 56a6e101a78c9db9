"""Suffix trees: what an application said before, after the same words, is drafted again, likelier continuations first.

SuffixDecoding (Oliaro et al., "SuffixDecoding: A Model-Free Approach to Speeding Up Large Language Model Inference", 2024):
agents and pipelines say much the same again and again. Past outputs are kept with the number of times that each stretch
occurred; the stretch that ends the sequence is looked up, and the draft is the part of the tree below it whose nodes are
likeliest to be accepted, a node's score being the product of the branches' shares on the way to it. Verified like any draft,
so exact.

Where it differs: the tree is held as a suffix automaton (the same stretches in linear space), in pages; the page that was not
written to for longest is dropped when all of them hold too much. The text of the running request is the business of
`prompt-lookup`, which can be chained with this. Outputs are kept apart by tenant, cache salt and application.
Amortised O(1) a token to look up and to learn, O(draft) to draft.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from hasten.engine.decoding.automaton import ROOT, SuffixAutomaton
from hasten.engine.events import ENDS, Event
from hasten.engine.request import Request
from hasten.engine.sequence import Draft, Sequence
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.executors.base import StepResult
    from hasten.engine.kv.base import Ints
    from hasten.engine.scheduling.base import View

BEFORE = 16
"""Tokens of the prompt that are kept before an output, so that its beginning is found too."""
CONTEXT = 64
"""Last tokens of a sequence that are looked up when it is first seen."""
PAGE_COSTS = 64
"""Tokens that an empty page counts as: many applications that say little take memory too."""


@dataclass(frozen=True, slots=True)
class Options:
    """`shortest`: tokens that must have occurred before. `most`: tokens drafted in one step; nor are they more than occurred
    before. `least`: score below which nothing is drafted. `tokens`: kept of past outputs, of all applications together."""

    shortest: Annotated[int, Field(ge=1)] = field(default=2, metadata={"search": (2, 3, 5)})
    most: Annotated[int, Field(ge=1)] = field(default=16, metadata={"search": (8, 16, 32)})
    least: Annotated[float, Field(gt=0, le=1)] = field(default=0.2, metadata={"search": (0.1, 0.2, 0.4)})
    tokens: Annotated[int, Field(ge=4 * PAGE_COSTS)] = 100_000


Key = tuple[str, str, str]
"""Whose outputs: tenant, cache salt, application."""


def key_of(request: Request) -> Key:
    return request.tenant, request.cache_salt, request.app.application


@dataclass(slots=True, eq=False)
class Page:
    key: Key
    automaton: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    tokens: int = PAGE_COSTS

    def add(self, text: Ints) -> None:
        state = ROOT
        for token in text.tolist():
            state = self.automaton.append(state, token)
        self.tokens += len(text)


class Outputs:
    """Past outputs in pages, `tokens` of them at most."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self.tokens = 0
        self._pages: dict[Page, None] = {}
        """Who was written to longest ago comes first."""
        self._of: dict[Key, list[Page]] = {}

    def of(self, key: Key) -> list[Page]:
        """The newest last."""
        return self._of.get(key, [])

    def add(self, key: Key, text: Ints) -> None:
        half = self._most // 2
        text = text[: half - PAGE_COSTS]
        pages = self._of.setdefault(key, [])
        if not pages or pages[-1].tokens + len(text) > half:
            pages.append(Page(key))
            self.tokens += PAGE_COSTS
        page = pages[-1]
        self._pages.pop(page, None)
        self._pages[page] = None
        while self.tokens + len(text) > self._most:
            self._drop(next(iter(self._pages)))
        page.add(text)
        self.tokens += len(text)

    def _drop(self, page: Page) -> None:
        del self._pages[page]
        self.tokens -= page.tokens
        page.automaton = SuffixAutomaton()  # places of sequences that wait keep the page for long
        self._of[page.key].remove(page)
        if not self._of[page.key]:
            del self._of[page.key]


@dataclass(slots=True)
class _Place:
    """Where a sequence stands in each page of its application: (state, length of the stretch that occurs there). `read`: how
    many of its tokens were looked up."""

    pages: list[Page]
    stands: list[tuple[int, int]]
    read: int


@dataclass(slots=True)
class _Found:
    """A draft, its likeliest nodes first, below a stretch of `matched` tokens."""

    matched: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


class SuffixTree:
    learns_from = ENDS

    def __init__(self, options: Options) -> None:
        self._options = options
        self.outputs = Outputs(options.tokens)
        self._places: dict[int, _Place] = {}
        """By sequence."""
        self._found: dict[int, _Found] = {}
        """By sequence, what `lookahead` saw in the step being planned."""

    def lookahead(self, sequence: Sequence) -> int:
        self._found.pop(sequence.id, None)
        pages = self.outputs.of(key_of(sequence.request))
        if not pages:
            return 0
        drafts = [
            self._draft(page.automaton, state, matched)
            for page, (state, matched) in zip(pages, self._stands(sequence, pages), strict=True)
        ]
        best = max(drafts, key=lambda draft: sum(draft.scores))
        if best.tokens:
            self._found[sequence.id] = best
        return len(best.tokens)

    def odds(self, sequence: Sequence, most: int) -> list[float]:
        return self._found[sequence.id].scores[:most]

    def evidence(self, sequence: Sequence) -> int:
        """The length of the match, in doublings."""
        return self._found[sequence.id].matched.bit_length()

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        drafts: list[Draft | None] = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            found = self._found.pop(sequence.id, _Found(0))
            made = Draft(np.array(found.tokens[:budget], dtype=np.int32), np.array(found.parents[:budget], dtype=np.int32))
            drafts.append(made if len(made.tokens) else None)
        return drafts

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        """A sequence has ended: what it said is kept if it ended well."""
        self._found.pop(event.sequence, None)
        self._places.pop(event.sequence, None)
        if sequence is not None and sequence.finish is not None and sequence.finish.ok and sequence.output_length:
            text = sequence.tokens[max(0, sequence.prompt_length - BEFORE) :]
            self.outputs.add(key_of(sequence.request), text)
        return ()

    def _stands(self, sequence: Sequence, pages: list[Page]) -> list[tuple[int, int]]:
        place = self._places.get(sequence.id)
        if place is None or place.pages != pages:
            read = max(0, sequence.length - CONTEXT)
            place = self._places[sequence.id] = _Place(list(pages), [(ROOT, 0)] * len(pages), read)
        for token in sequence.tokens[place.read :].tolist():
            place.stands = [
                page.automaton.follow(state, matched, token) for page, (state, matched) in zip(pages, place.stands, strict=True)
            ]
        place.read = sequence.length
        return place.stands

    def _draft(self, automaton: SuffixAutomaton, state: int, matched: int) -> _Found:
        """The likeliest nodes below a stretch, best first."""
        state, matched = automaton.continued(automaton.now_of(state, matched), matched)
        found = _Found(matched)
        if matched < self._options.shortest:
            return found
        most = min(self._options.most, matched)
        open_ = [(-share, token, there, -1) for token, there, share in automaton.branches(state)]
        heapq.heapify(open_)
        while open_ and len(found.tokens) < most and -open_[0][0] >= self._options.least:
            score, token, at, parent = heapq.heappop(open_)
            found.scores.append(-score)
            found.tokens.append(token)
            found.parents.append(parent)
            for then, there, share in automaton.branches(at):
                if -score * share >= self._options.least:
                    heapq.heappush(open_, (score * share, then, there, len(found.tokens) - 1))
        return found


TECHNIQUE = Technique(
    name="suffix-tree",
    seam="decoding",
    summary="drafts trees of what the same application said before after the same words",
    exact=True,
    sets={"decoding.proposers": ("suffix-tree",)},
    options=Options,
    make=lambda context, options: SuffixTree(options),
    paper="SuffixDecoding: A Model-Free Approach to Speeding Up Large Language Model Inference (2024)",
)
