"""Prompt lookup: what followed the last tokens when they stood in the text before is drafted again.

Prompt lookup decoding (Saxena, 2023); LLMA (Yang et al., "Inference with Reference: Lossless Acceleration of Large Language
Models", 2023). The longest stretch that ends the sequence and occurred earlier is found with a suffix automaton, as in SAM
Decoding (Hu et al., 2024): amortised constant time a token and memory in proportion to the text, however long it is. A draft is
verified like any other, so the tokens are those of plain decoding.

Beyond the papers, the sequences of a request share one automaton: a fork begins where its prompt ends, for nothing, and what
one of n samples or branches has said is drafted for the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from hasten.engine.decoding.automaton import ROOT, SuffixAutomaton
from hasten.engine.events import ENDS, Event
from hasten.engine.sequence import Draft, Sequence
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.executors.base import StepResult
    from hasten.engine.scheduling.base import View

AT_ONCE = 2048
"""Tokens read of a sequence while one step is planned, some 10 ms' worth: a long prompt is read in several steps."""


@dataclass(frozen=True, slots=True)
class Options:
    """`shortest`: tokens that must have occurred before. `most`: tokens drafted in one step; nor are they more than occurred
    before, so that chance agreements cost little."""

    shortest: Annotated[int, Field(ge=1)] = field(default=3, metadata={"search": (2, 3, 5)})
    most: Annotated[int, Field(ge=1)] = field(default=16, metadata={"search": (8, 16, 32)})


@dataclass(slots=True)
class _Texts:
    """Of a request: its sequences' texts. `read`: for each sequence the state that its text ended with when it was read, and
    how many tokens that were. `prompt`: the state behind the prompt, once somebody was read so far."""

    automaton: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    read: dict[int, tuple[int, int]] = field(default_factory=dict)
    prompt: int | None = None


class PromptLookup:
    learns_from = ENDS

    def __init__(self, options: Options) -> None:
        self._options = options
        self._texts: dict[str, _Texts] = {}
        """By request."""
        self._found: dict[int, tuple[int, list[int]]] = {}
        """By sequence, what `lookahead` saw in the step being planned: how many tokens agreed, and what followed."""

    def lookahead(self, sequence: Sequence) -> int:
        texts = self._texts.setdefault(sequence.request.id, _Texts())
        state, read = texts.read[sequence.id] = self._read(texts, sequence)
        matched, found = self._after(texts.automaton, state) if read == sequence.length else (0, [])
        if found:
            self._found[sequence.id] = matched, found
        else:
            self._found.pop(sequence.id, None)
        return len(found)

    def evidence(self, sequence: Sequence) -> int:
        """The length of the match, in doublings."""
        return self._found[sequence.id][0].bit_length()

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        found = [self._found.pop(sequence.id, None) for sequence in sequences]
        return [
            Draft(np.array(here[1][:budget], dtype=np.int32)) if here is not None else None
            for here, budget in zip(found, budgets, strict=True)
        ]

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        """A sequence has ended, and with its last one the request."""
        self._found.pop(event.sequence, None)
        texts = self._texts.get(sequence.request.id) if sequence is not None else None
        if sequence is not None and texts is not None:
            texts.read.pop(event.sequence, None)
            if not texts.read:
                del self._texts[sequence.request.id]
        return ()

    def _read(self, texts: _Texts, sequence: Sequence) -> tuple[int, int]:
        """Take in what the sequence has grown by; (state, tokens read)."""
        prompt = sequence.prompt_length  # with which all sequences of a request begin, joined ones too
        start = (ROOT, 0) if texts.prompt is None else (texts.prompt, prompt)
        state, read = texts.read.get(sequence.id, start)
        stop = min(sequence.length, read + AT_ONCE)
        for token in sequence.tokens[read : min(stop, prompt)].tolist():
            state = texts.automaton.append(state, token)
        if read < prompt <= stop:
            texts.prompt = state
        for token in sequence.tokens[max(read, prompt) : stop].tolist():
            state = texts.automaton.append(state, token)
        return state, stop

    def _after(self, automaton: SuffixAutomaton, state: int) -> tuple[int, list[int]]:
        """How long the longest stretch is that ends the text and was followed by anything, and what followed most recently."""
        state, matched = automaton.continued(state, automaton.length_of(state))
        agreed = matched
        out: list[int] = []
        most = min(self._options.most, matched)
        while matched >= self._options.shortest and len(out) < most:
            token, state = automaton.latest(state)
            out.append(token)
            # Where its last occurrence ends the text itself, shorter stretches may go on: that is how a pattern repeats.
            state, matched = automaton.continued(state, matched + 1)
        return agreed, out


TECHNIQUE = Technique(
    name="prompt-lookup",
    seam="decoding",
    summary="drafts what followed the last tokens when they stood in prompt or output before",
    exact=True,
    sets={"decoding.proposers": ("prompt-lookup",)},
    options=Options,
    make=lambda context, options: PromptLookup(options),
    paper="Prompt Lookup Decoding (2023); Inference with Reference (2023)",
)
