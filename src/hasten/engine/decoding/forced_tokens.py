"""Forced tokens: what a grammar leaves no choice about is drafted, so that one forward pass computes all of it.

Jump-forward decoding (compressed finite-state machines; Zheng et al., "SGLang: Efficient Execution of Structured Language Model
Programs", 2024) with its one weakness mended: they append forced text to the answer as the tokenizer splits it, while the model
might have split it otherwise. Here it is a draft like any other, verified under the constraint: exact, whatever is guessed.
Text is split together with the tokens before it, and cut where a longer legal token would reach beyond it ("token
healing"). O(forced text) a step, and nothing for a sequence without a constraint.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.engine.decoding.constraints.policy import tokenizer_of
from hasten.engine.request import BadRequest
from hasten.engine.sequence import Draft, Sequence
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.decoding.base import ConstraintState, Proposer
    from hasten.engine.executors.base import StepResult

BEFORE = 4  # tokens of context that forced text is split with
HEALED = 4  # last tokens for which a longer one may be legal


@dataclass(frozen=True, slots=True)
class Options:
    """`most`: tokens drafted in one step."""

    most: int = 32


class ForcedTokens:
    """A proposer; where nothing is forced, the one it stands `around` is asked."""

    def __init__(self, parts: Parts, options: Options) -> None:
        self._parts = parts
        self._most = options.most
        self._inner: Proposer | None = None
        self._lengths: Any = None
        self._found: dict[int, list[int]] = {}
        """By sequence, what `lookahead` saw in the step being planned."""

    def around(self, inner: Proposer | None) -> ForcedTokens:
        self._inner = inner
        return self

    def lookahead(self, sequence: Sequence) -> int:
        forced = self._forced(sequence) if sequence.constraint is not None else []
        if forced:
            self._found[sequence.id] = forced
            return len(forced)
        self._found.pop(sequence.id, None)
        return self._inner.lookahead(sequence) if self._inner is not None else 0

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        drafts: list[Draft | None] = [None] * len(sequences)
        others = []
        for i, sequence in enumerate(sequences):
            forced = self._found.get(sequence.id)
            if forced is None:
                others.append(i)
            else:
                drafts[i] = Draft(np.array(forced[: budgets[i]], dtype=np.int32))
        self._found.clear()
        if others and self._inner is not None:
            guessed = self._inner.propose([sequences[i] for i in others], [budgets[i] for i in others], last)
            for i, draft in zip(others, guessed, strict=True):
                drafts[i] = draft
        return drafts

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
    summary="tokens that a constraint forces are drafted together; around any other proposer",
    exact=True,
    sets={"decoding.forced": "forced-tokens"},
    options=Options,
    make=ForcedTokens,
    paper="SGLang: Efficient Execution of Structured Language Model Programs (2024)",
)
