"""Forced tokens: what a grammar leaves no choice about is drafted, so that one forward pass computes all of it.

Jump-forward decoding (compressed finite-state machines; Zheng et al., "SGLang: Efficient Execution of Structured Language Model
Programs", 2024) with its one weakness mended: they append forced text to the answer as the tokenizer splits it, while the model
might have split it otherwise. Here it is a draft like any other, verified under the constraint: exact, whatever is guessed.
Text is split together with the tokens before it, and cut where a longer legal token would reach beyond it ("token
healing"). O(forced text) a step, and nothing for a sequence without a constraint.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from hasten.engine.decoding.constraints.policy import tokenizer_of
from hasten.engine.events import ENDS, Event
from hasten.engine.request import BadRequest
from hasten.engine.sequence import Draft, Sequence
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.decoding.base import ConstraintState
    from hasten.engine.executors.base import StepResult
    from hasten.engine.scheduling.base import View

BEFORE = 4  # tokens of context that forced text is split with
HEALED = 4  # last tokens for which a longer one may be legal


@dataclass(frozen=True, slots=True)
class Options:
    """`most`: tokens drafted in one step."""

    most: Annotated[int, Field(ge=1)] = 32


class ForcedTokens:
    learns_from = ENDS

    def __init__(self, parts: Parts, options: Options) -> None:
        self._parts = parts
        self._most = options.most
        self._lengths: Any = None
        self._found: dict[int, list[int]] = {}
        """By sequence, what `lookahead` saw in the step being planned."""

    def lookahead(self, sequence: Sequence) -> int:
        forced = self._forced(sequence) if sequence.constraint is not None else []
        if forced:
            self._found[sequence.id] = forced
            return len(forced)
        self._found.pop(sequence.id, None)
        return 0

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        found = [self._found.pop(sequence.id, None) for sequence in sequences]
        return [
            Draft(np.array(forced[:budget], dtype=np.int32)) if forced is not None else None
            for forced, budget in zip(found, budgets, strict=True)
        ]

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        self._found.pop(event.sequence, None)
        return ()

    def _forced(self, sequence: Sequence) -> list[int]:
        text = sequence.constraint.forced_bytes()
        if not text:
            return []
        return self._healed(sequence.constraint, self._split(sequence, text)[: self._most], text)

    def _split(self, sequence: Sequence, forced: bytes) -> list[int]:
        """The tokens that `forced` becomes after the sequence, as far as they spell it."""
        tokenizer = tokenizer_of(self._parts)
        text = forced.decode(errors="ignore")  # the last character may be incomplete
        before = sequence.tokens[-BEFORE:].tolist()
        try:
            tokens = tokenizer.encode(tokenizer.decode(before, skip_special=False) + text, add_special_tokens=False)
            if tokens[: len(before)] == before:
                tokens = tokens[len(before) :]
            else:  # what was drawn is not how the tokenizer would have put it
                tokens = tokenizer.encode(text, add_special_tokens=False)
        except BadRequest:
            return []
        at = 0
        for i, token in enumerate(tokens):
            piece = tokenizer.token_bytes(token)
            if not piece or not forced.startswith(piece, at):
                return tokens[:i]
            at += len(piece)
        return tokens

    def _healed(self, state: ConstraintState, tokens: list[int], forced: bytes) -> list[int]:
        """`tokens` up to where some legal token spells all that is left of `forced`, and more."""
        pieces = tokenizer_of(self._parts).pieces.table(self._parts.model.vocabulary)
        if self._lengths is None:
            self._lengths = np.array([len(piece) for piece in pieces])
        state = state.fork()
        mask = np.zeros((len(pieces) + 31) // 32, dtype=np.int32)
        at = 0
        for i, token in enumerate(tokens):
            if i >= len(tokens) - HEALED:
                state.fill(mask)
                words = np.flatnonzero(mask)
                bits = np.unpackbits(mask[words].view(np.uint8), bitorder="little").reshape(-1, 32)
                word, bit = np.nonzero(bits)
                if (self._lengths[words[word] * 32 + bit] > len(forced) - at).any():
                    return tokens[:i]
            try:
                state.advance(token)
            except ValueError:
                return tokens[:i]
            at += len(pieces[token])
        return tokens


TECHNIQUE = Technique(
    name="forced-tokens",
    seam="decoding",
    summary="tokens that a constraint forces are drafted together, before any other proposer is asked",
    exact=True,
    sets={"decoding.forced": "forced-tokens"},
    options=Options,
    make=ForcedTokens,
    paper="SGLang: Efficient Execution of Structured Language Model Programs (2024)",
)
