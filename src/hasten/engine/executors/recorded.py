"""Drafting on a virtual clock: outputs that a model gave once are said again, so guesses turn out as they did then.

Proposers that look at tokens only (`prompt-lookup`, `suffix-tree`) run as they are. A draft model's guess for an output token,
once all before it are right, depends on the true text alone: whether each was right is all that need be known of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hasten.engine.decoding.base import Drawn, Row, TokenLogprobs
from hasten.engine.executors.cost import CostModel, StepShape
from hasten.engine.kv.base import Ints
from hasten.engine.sequence import Draft, Sequence

if TYPE_CHECKING:
    from hasten.engine.clock import VirtualClock
    from hasten.engine.executors.base import StepResult


@dataclass(frozen=True, slots=True)
class Recording:
    """By request: its output int32 [n], and whether a draft model guessed each of its tokens right, bool [n], if there was one.
    `draft`: what a step of that model takes. `length`: tokens that it drafts at most."""

    said: Mapping[str, Ints]
    right: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    draft: CostModel | None = None
    length: int = 0


class RecordedSampler:
    """Token k of a sequence's output is token k of its recording, whatever was drafted before it."""

    def __init__(self, recording: Recording) -> None:
        self._said = recording.said

    def draw(self, result: StepResult, rows: Seq[Row]) -> Drawn:
        tokens = [int(self._said[row.sequence.request.id][row.sequence.output_length + len(row.path)]) for row in rows]
        return Drawn(tokens, [None] * len(rows))

    def score(self, result: StepResult, rows: Seq[int], tokens: Ints, top: int) -> list[TokenLogprobs]:
        raise ValueError("a recording has no log-probabilities")


class RecordedDraft:
    """A proposer: the draft model that was recorded. Each of its passes takes what its cost model says. Its prompts are not
    charged: they are computed once, for a small part of what the served model's take."""

    def __init__(self, recording: Recording, clock: VirtualClock, vocabulary: int) -> None:
        assert recording.draft is not None
        self._recording = recording
        self._costs = recording.draft
        self._clock = clock
        self._vocabulary = vocabulary

    def lookahead(self, sequence: Sequence) -> int:
        return self._recording.length

    def price(self, sequences: int, tokens: int, length: int) -> float:
        return length * self._costs.step(StepShape(sequences, sequences, sequences, tokens + sequences, tokens + sequences))

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        for depth in range(max(budgets)):  # who wants no more leaves the batch
            lengths = [sequence.length for sequence, most in zip(sequences, budgets, strict=True) if most > depth]
            self._clock.advance(self.price(len(lengths), sum(lengths), 1))
        return [self._draft(sequence, most) for sequence, most in zip(sequences, budgets, strict=True)]

    def _draft(self, sequence: Sequence, most: int) -> Draft:
        here = slice(sequence.output_length, sequence.output_length + most)
        said, right = self._recording.said[sequence.request.id][here], self._recording.right[sequence.request.id][here]
        return Draft(np.where(right, said, (said + 1) % self._vocabulary).astype(np.int32))
