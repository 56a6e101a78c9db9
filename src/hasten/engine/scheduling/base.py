"""The scheduling seam: independent questions, asked every step.

*Order*: who goes first. *Batching*: how many tokens of whom go into this step. *Residency*: who holds KV in fast memory, who
yields, and how. *Lengths*: how much a sequence will still produce, which the others ask through `View`. A published scheduler
is a named preset of such parts. Policies read `View`, answer, and never touch a sequence; the core checks every plan (`check`)
and runs the first-come plan in place of an invalid one.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.scheduling.workflows import Workflow
from hasten.engine.sequence import Sequence, State

if TYPE_CHECKING:
    from hasten.engine.executors.cost import StepShape


class WorkKind(Enum):
    PREFILL = "prefill"
    """known tokens, the last of which may be drawn from"""
    DECODE = "decode"
    """the one token just drawn"""
    VERIFY = "verify"
    """the same, and room for `drafts` guesses behind it"""


@dataclass(slots=True)
class Work:
    """`count` known tokens of `sequence`, then up to `drafts` guessed ones."""

    sequence: Sequence
    count: int
    kind: WorkKind
    drafts: int = 0


class Direction(Enum):
    DROP = "drop"
    """lose the KV, compute it again later"""
    OUT = "out"
    """copy it to the slower tier"""
    IN = "in"
    """copy it back"""


@dataclass(slots=True)
class Transfer:
    """Move a sequence's KV. `may_run_late`: the step need not wait for it."""

    sequence: Sequence
    direction: Direction
    may_run_late: bool = True


@dataclass(slots=True)
class StepPlan:
    """What one step computes. `reject` ends sequences with a reason.
    `replan_at`: engine time of the policy's next full re-plan, None for every step; an empty plan with it
    means that the policy holds everything back until then, or until something arrives."""

    work: list[Work] = field(default_factory=list)
    reject: list[tuple[Sequence, str]] = field(default_factory=list)
    replan_at: float | None = None

    @property
    def tokens(self) -> int:
        return sum(w.count + w.drafts for w in self.work)


@dataclass(frozen=True, slots=True)
class Hint:
    """Something outside the engine will be needed soon, or will not after all: `backend` names it (a model, a container) in
    the words of whoever learned from it, `workflow` for which it is wanted, `wanted` False takes an earlier hint back."""

    backend: str
    workflow: str
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one step: flat tokens and rows (sequences)."""

    tokens: int
    rows: int


class View(Protocol):
    """What policies may read. Live, not a snapshot: valid during the call only."""

    @property
    def now(self) -> float: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def sequences(self) -> Seq[Sequence]:
        """All unfinished sequences in order of arrival."""
        ...

    def in_state(self, *states: State) -> Seq[Sequence]:
        """Those of them in any of these states, in order of arrival; costs nothing for others."""
        ...

    @property
    def free_blocks(self) -> int:
        """Blocks that can be had now, evictable ones included."""
        ...

    @property
    def total_blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def host_room(self) -> int:
        """Blocks the slower tier would still take, the places of copies that it keeps included; 0 when there is none."""
        ...

    @property
    def leaving_blocks(self) -> int:
        """Blocks without a holder that copies to the slower tier still read: they are not among the free ones, but a sequence
        that comes back may have them at once."""
        ...

    @property
    def moving_blocks(self) -> int:
        """Blocks that transfers under way, in either direction, still copy."""
        ...

    def unsent_blocks(self, sequence: Sequence) -> int:
        """Blocks that would have to be copied if the running sequence left for the slower tier now."""
        ...

    def blocks_needed(self, sequence: Sequence, tokens: int) -> int: ...
    def blocks_for(self, works: Iterable[Work]) -> int:
        """Blocks that all of these need together."""
        ...

    def blocks_freed(self, sequence: Sequence) -> int:
        """Blocks that could be had if the sequence gave up its KV: those nobody else reads."""
        ...

    def order_key(self, sequence: Sequence) -> float:
        """The Order's current key of a sequence; minus infinity for one that is overdue (`scheduling.ageing`)."""
        ...

    def open(self, sequence: Sequence) -> int:
        """Look up reusable KV for a waiting sequence; the tokens left to compute. What is opened but not planned is closed."""
        ...

    def sequence(self, id: int) -> Sequence | None:
        """The unfinished sequence of that number."""
        ...

    def remaining_output(self, sequence: Sequence) -> npt.NDArray[np.float64]:
        """How many more tokens it will produce: float64 [k], ascending, equally likely, each at least 1 and at most `room`. A
        distribution, never only a point."""
        ...

    def room(self, sequence: Sequence) -> int:
        """The most tokens it may still produce."""
        ...

    def workflow(self, sequence: Sequence) -> Workflow:
        """The workflow that its request is a call of."""
        ...

    def lookahead(self, sequence: Sequence) -> int:
        """Drafted tokens that the speculation budget wants verified in this step."""
        ...

    def cost(self, plan: StepPlan) -> float:
        """Predicted seconds of the step."""
        ...

    def price(self, shape: StepShape) -> float:
        """Predicted seconds of any step of that shape."""
        ...


def rank(sequence: Sequence, view: View) -> tuple[float, float, int]:
    """What sequences are ranked by, in whatever state they are: the order's key, then arrival and number. Lower is better."""
    return view.order_key(sequence), sequence.arrival_s, sequence.id


@runtime_checkable
class Steady(Protocol):
    """What a policy may offer for simulation: without it every step is asked for singly, which is always right."""

    def steady(self, plan: StepPlan, view: View) -> float:
        """For how many more steps (infinity allowed) the policy's answers stay what they were for `plan`, in which every
        sequence decodes one token, as long as nothing arrives, ends, moves between tiers or runs out of memory."""
        ...


class Order(Protocol):
    """A sort key per sequence, float64 [n], lower first; equal keys keep arrival order. Asked only for sequences that are new,
    that an event of a kind in `stale_on` concerned, that `Learner.learn` named, or whose key is older than `lifetime_s`."""

    stale_on: frozenset[Kind]
    lifetime_s: float

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]: ...


@runtime_checkable
class Learner(Protocol):
    """What a policy may offer to see events happen. Steps that are advanced together (`Steady`) show theirs afterwards."""

    learns_from: frozenset[Kind]

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        """Called for each event of these kinds, when the books already show it; `sequence`: whom it concerns, also if it has
        just ended. Gives the numbers of the sequences whose keys are stale by it (an Order's alone count)."""
        ...


@runtime_checkable
class Prewarms(Protocol):
    """What an Order may offer to say beforehand what will be needed outside the engine."""

    def hints(self, view: View) -> Seq[Hint]:
        """What has become likely since it was last asked, once a step."""
        ...


class Lengths(Protocol):
    """How long outputs become."""

    def remaining(self, sequence: Sequence, view: View) -> npt.NDArray[np.float64]:
        """Equally likely numbers of tokens it will still produce, given what it has produced: float64 [k], ascending, k from 1
        to 64, without regard to `View.room`."""
        ...


class Batching(Protocol):
    """Turns the order into a ragged step. `ranked` holds the waiting and running sequences, first goes first."""

    def compose(self, ranked: Seq[Sequence], view: View) -> StepPlan: ...


class Residency(Protocol):
    """Asked every step with the plan about to run, which needs `short` more blocks than are free (negative: so many would stay
    free). If it is short, the answer should free them; the core runs what fits and leaves the rest."""

    def plan(self, view: View, plan: StepPlan, short: int) -> list[Transfer]: ...


@runtime_checkable
class Ahead(Protocol):
    """What a Residency may offer to move sequences before the step is composed, so that what comes back at once, or is freed,
    takes part in it."""

    def ahead(self, view: View, ranked: Seq[Sequence]) -> list[Transfer]:
        """`ranked`: all unfinished sequences, whatever their state, first goes first."""
        ...


def check(plan: StepPlan, view: View) -> str | None:
    """What is wrong with a plan, or None. Memory is not checked here: that is the residency's to solve."""
    seen: set[int] = set()
    rejected = {sequence.id for sequence, _ in plan.reject}
    for work in plan.work:
        seq = work.sequence
        if seq.id in seen:
            return f"sequence {seq.id} is planned twice"
        seen.add(seq.id)
        if seq.id in rejected:
            return f"sequence {seq.id} is planned and rejected"
        if seq.state not in (State.WAITING, State.RUNNING):
            return f"sequence {seq.id} is {seq.state.value} and cannot run"
        if not 1 <= work.count <= seq.remaining:
            return f"{work.count} tokens of sequence {seq.id}, which has {seq.remaining} to compute"
        if work.drafts < 0 or (work.drafts and work.count < seq.remaining):
            return f"sequence {seq.id}: drafts only follow its last token"
    if plan.tokens > view.limits.tokens:
        return f"{plan.tokens} tokens in a step of at most {view.limits.tokens}"
    if len(plan.work) > view.limits.rows:
        return f"{len(plan.work)} rows in a step of at most {view.limits.rows}"
    return None
