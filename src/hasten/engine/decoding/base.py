"""The decoding seam: which tokens to try next, and which of them to keep.

Six small protocols. The `Sampler` draws from the final logits; what it returns for a row depends only on that row's logits
and its request, never on the batch. A `Constraint` says which tokens are legal; a `Proposer` guesses ahead within what the
`SpeculationBudget` grants, and a `Governor` makes that less where it would not pay; a `Controller` reacts to what was
committed and may fork, inject, join and finish sequences. Drafts are checked against the constraint before they cost a forward
pass, and verified under it, so grammars and speculation compose.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy.typing as npt

from hasten.engine.kv.base import Ints
from hasten.engine.request import Request
from hasten.engine.sequence import Draft, Finish, Sequence

if TYPE_CHECKING:
    from hasten.engine.executors.base import StepResult
    from hasten.engine.executors.cost import StepShape
    from hasten.engine.scheduling.base import View


@dataclass(slots=True)
class Row:
    """One draw: row `logits_row` of the step's logits for `sequence`, after the drafted tokens `path`.

    `depth` = len(path); the draw is number `sequence.output_length + depth` of its sequence, which fixes its random number.
    `constraint`: the state after `path`, or None."""

    sequence: Sequence
    logits_row: int
    path: tuple[int, ...] = ()
    constraint: Any = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a token and the most probable ones beside it, from the raw logits."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Drawn:
    """One token per row, and log-probabilities where the request wants them."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]


class Sampler(Protocol):
    def draw(self, result: StepResult, rows: Seq[Row]) -> Drawn: ...
    def score(self, result: StepResult, rows: Seq[int], tokens: Ints, top: int) -> list[TokenLogprobs]:
        """Log-probabilities of given `tokens` under the given rows of logits (prompt log-probabilities)."""
        ...


class ConstraintState(Protocol):
    """Where one sequence stands in its grammar. Cheap to fork: nothing is copied but a pointer.

    A class may offer a static method `fill_many(states, masks)` for many of its own states, with masks int32 [n, words]."""

    @property
    def ended(self) -> bool:
        """Whether the text may end here."""
        ...

    def fill(self, mask: npt.NDArray[Any]) -> None:
        """Write the legal tokens into `mask` int32 [ceil(vocabulary / 32)], one bit a token, lowest bit first."""
        ...

    def advance(self, token: int) -> None:
        """Commit a token; ValueError if it is not legal here."""
        ...

    def rollback(self, count: int) -> None: ...
    def fork(self) -> ConstraintState: ...
    def forced_bytes(self) -> bytes:
        """What must come next, as far as it is certain; may be empty."""
        ...


def fill(states: Seq[ConstraintState], masks: npt.NDArray[Any]) -> None:
    """Write each state's legal tokens into its row of `masks`, in one call where all are of a kind that offers one."""
    kind = type(states[0])
    many = getattr(kind, "fill_many", None)
    if many is not None and all(type(state) is kind for state in states):
        many(states, masks)
        return
    for state, mask in zip(states, masks, strict=True):
        state.fill(mask)


class Constraint(Protocol):
    """Compiles what requests ask for (`SamplingParams.constraint`)."""

    def prepare(self, request: Request) -> Future[Any] | None:
        """Called by whoever adds the request, before anything of it exists: BadRequest if it cannot be enforced. A future: the
        engine waits for it before it lets the request in, and serves others meanwhile."""
        ...

    def start(self, request: Request) -> ConstraintState:
        """The state before the first token of output, of a request that was prepared."""
        ...


class SpeculationBudget(Protocol):
    """How many drafted tokens of a sequence to verify in the step being planned."""

    def lookahead(self, sequence: Sequence) -> int: ...


class Proposer(SpeculationBudget, Protocol):
    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        """A draft of at most the budget for each sequence, None for no guess."""
        ...


@dataclass(frozen=True, slots=True)
class Offer:
    """In the step being planned `proposer` could draft at most `most` tokens (>= 1) for a sequence."""

    sequence: Sequence
    most: int
    proposer: Proposer


PREPARING = "preparing"


@runtime_checkable
class Evidenced(Protocol):
    """What a Proposer may offer whose guesses are of unlike quality."""

    def evidence(self, sequence: Sequence) -> Hashable:
        """On what its guess of the step being planned rests: guesses of equal evidence are about equally good. PREPARING: it
        would use the step to prepare itself for the sequence, and guess later."""
        ...


@runtime_checkable
class Treelike(Protocol):
    """What a Proposer may offer whose drafts branch."""

    def odds(self, sequence: Sequence, most: int) -> Seq[float]:
        """Of the draft that it has for the step being planned: how likely it thinks each token is to be accepted, in the order
        in which a smaller budget keeps them."""
        ...


@runtime_checkable
class Priced(Protocol):
    """What a Proposer may offer whose drafts take more than a look-up."""

    def price(self, sequences: int, tokens: int, length: int) -> float:
        """Predicted seconds of drafting `length` tokens for each of so many sequences, which have so many tokens in all."""
        ...


class Governor(Protocol):
    """Decides how many of the tokens that could be drafted are worth their verification, for all sequences at once."""

    def wants(self, view: View) -> bool:
        """Whether to look for drafts at all in the step being planned; False costs nothing."""
        ...

    def grant(self, offers: Seq[Offer], view: View) -> list[int]:
        """How many tokens of each to draft, 0 to its `most`."""
        ...

    def measured(self, shape: StepShape, seconds: float, drafting_s: float) -> None:
        """The step took so long, and making its drafts before that so long."""
        ...


class Actions(Protocol):
    """What a controller may do, between steps."""

    def fork(self, sequence: Sequence, count: int) -> list[Sequence]:
        """New sequences that share all of `sequence` so far."""
        ...

    def inject(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Append tokens that were not drawn; they count as output."""
        ...

    def join(self, sequences: Seq[Sequence], tokens: Seq[int]) -> Sequence:
        """A new sequence of their request that reads all their caches and goes on with `tokens`."""
        ...

    def finish(self, sequence: Sequence, reason: Finish = Finish.STOP) -> None: ...


class Controller(Protocol):
    def on_commit(self, committed: Seq[tuple[Sequence, int]], result: StepResult, actions: Actions) -> None:
        """After a step: the sequences that got tokens, and how many each."""
        ...

    @property
    def taps(self) -> frozenset[int]:
        """Layers whose hidden state of the drawn rows it wants in `result.hidden`."""
        ...


@runtime_checkable
class Reader(Protocol):
    """A proposer that reads the served model's hidden states."""

    @property
    def taps(self) -> frozenset[int]:
        """Layers whose hidden state of the drawn rows it wants in `result.hidden`; `NORMED` for what the head reads."""
        ...

    def committed(self, sequence: Sequence, row: int, result: StepResult) -> None:
        """`sequence` got tokens and goes on; the last of them was drawn from row `row` of the step's logits."""
        ...


@cache
def _reads(kind: type) -> bool:
    """Whether a proposer is a `Reader`. Asked in every step: looking at the protocol anew takes 12 us."""
    return all(hasattr(kind, name) for name in ("taps", "committed"))


@dataclass(slots=True)
class Policies:
    """The decoding policies of one engine; None where nothing was switched on."""

    sampler: Sampler
    constraint: Constraint | None = None
    proposer: Proposer | None = None
    governor: Governor | None = None
    controller: Controller | None = None

    @property
    def reader(self) -> Reader | None:
        """The proposer, if it reads the model."""
        return cast(Reader, self.proposer) if self.proposer is not None and _reads(type(self.proposer)) else None

    @property
    def taps(self) -> frozenset[int]:
        """What of the model's inside a step is to show."""
        wanted = frozenset[int]() if self.controller is None else self.controller.taps
        reader = self.reader
        return wanted if reader is None else wanted | reader.taps
