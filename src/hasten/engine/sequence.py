"""What is being computed: a sequence, and the span of it that one step computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.engine.kv.base import Ints, ReuseKey
from hasten.engine.kv.copies import Copy
from hasten.engine.kv.view import View, beside

if TYPE_CHECKING:
    from hasten.engine.kv.variants import Measure, Mending
    from hasten.engine.links import Links, Piece
    from hasten.engine.request import Request


class State(Enum):
    WAITING = "waiting"
    """holds no KV; not started, or preempted by recompute"""
    RUNNING = "running"
    """holds KV and may be scheduled"""
    LEAVING = "leaving"
    """its KV is on the way to a slower tier"""
    SWAPPED = "swapped"
    """its KV lies in a slower tier"""
    LOADING = "loading"
    """its KV is on the way back, or being fetched for reuse"""
    FINISHED = "finished"


class Finish(IntEnum):
    """Why a sequence ended. The first two are successes; their names are the OpenAI API's."""

    STOP = 0
    LENGTH = 1
    CANCELLED = 2
    ERROR = 3
    REJECTED = 4

    @property
    def ok(self) -> bool:
        return self in (Finish.STOP, Finish.LENGTH)


class Sequence:
    """One growing stream of tokens with its view of KV.

    Every token has a position id and a segment id of its own; nothing may assume that position equals index. `todo` lists the
    token ranges [start, stop) whose KV must still be computed, ascending: a prompt, what lies between reused chunks, or the
    one token just drawn all look alike. The sequence is drawn from once its last token is computed. Before all others come the
    ranges of chunks that are computed by themselves first (`links`); what of them is to be computed again is listed twice.
    """

    __slots__ = (
        "_positions",
        "_segments",
        "_tokens",
        "arrival_s",
        "cancelled",
        "chunks",
        "constraint",
        "contexts",
        "copy",
        "finish",
        "id",
        "index",
        "length",
        "links",
        "program",
        "prompt_length",
        "recomputable",
        "request",
        "reuse_key",
        "saved",
        "seed",
        "service",
        "state",
        "stored",
        "todo",
        "view",
    )

    def __init__(self, id: int, request: Request, index: int, seed: int, reuse_key: ReuseKey, arrival_s: float) -> None:
        prompt = request.prompt
        self.id = id
        self.request = request
        self.index = index
        """Which of the request's n sequences this is."""
        self.seed = seed
        self.reuse_key = reuse_key
        self.arrival_s = arrival_s
        self.prompt_length = len(prompt)
        self.length = len(prompt)
        capacity = max(64, len(prompt) + 32)
        self._tokens = np.empty(capacity, dtype=np.int32)
        self._tokens[: self.length] = prompt
        self._positions = np.arange(capacity, dtype=np.int32)
        self._segments = np.zeros(capacity, dtype=np.int32)
        self.view = View()
        self.todo: list[tuple[int, int]] = [(0, self.length)]
        self.state = State.WAITING
        self.finish: Finish | None = None
        self.service = 0
        """Tokens computed for it so far, recomputation included."""
        self.program: Any = None
        """Depth program: the (block, site) calls of its forward pass; None means all blocks."""
        self.constraint: Any = None
        self.stored: list[int] = []
        """Where its blocks lie in the slower tier, in the order of its view; empty while it runs."""
        self.copy: Copy | None = None
        """What was left there when it came back."""
        self.recomputable = True
        """False when its KV is not what running its tokens in a row gives (joined caches): it may be swapped, not dropped."""
        self.cancelled: Finish | None = None
        """Set when it must end as soon as the transfer under way is over."""
        self.chunks: tuple[Piece, ...] = ()
        """Ranges of the prompt whose KV is reused wherever they stand; their tokens have the segment ids 1, 2, ..."""
        self.links: Links | None = None
        """What is known of them here, from looking them up until all of the prompt is computed."""
        self.contexts: tuple[int, int] | None = None
        """Positions [first, stop) at which all its chunks stand beside each other (`kv/parallel.py`); None: they do not."""
        self.saved = 0
        """By how many positions its tokens need less than one each."""

    # -- tokens ---------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> Ints:
        return self._tokens[: self.length]

    @property
    def positions(self) -> Ints:
        return self._positions[: self.length]

    @property
    def segments(self) -> Ints:
        return self._segments[: self.length]

    def piece(self, start: int, stop: int) -> tuple[Ints, Ints, Ints]:
        """Tokens, positions and segments of [start, stop)."""
        return self._tokens[start:stop], self._positions[start:stop], self._segments[start:stop]

    @property
    def output(self) -> Ints:
        return self._tokens[self.prompt_length : self.length]

    @property
    def output_length(self) -> int:
        return self.length - self.prompt_length

    def append(self, token: int, position: int | None = None, segment: int | None = None) -> None:
        """Commit one token; it joins `todo`. Position and segment follow the last token's unless given."""
        n = self.length
        if n == len(self._tokens):
            self._grow()
        self._tokens[n] = token
        self._positions[n] = self._positions[n - 1] + 1 if position is None else position
        self._segments[n] = self._segments[n - 1] if segment is None else segment
        self.length = n + 1
        if self.todo and self.todo[-1][1] == n:
            self.todo[-1] = (self.todo[-1][0], n + 1)
        else:
            self.todo.append((n, n + 1))

    def become(self, tokens: Ints, positions: Ints, segments: Ints, start: int = 0) -> None:
        """Hold these tokens from token `start` on, each array int32 [n]; all of them count as output beyond `prompt_length`."""
        n = start + len(tokens)
        while len(self._tokens) < n:
            self._grow()
        self.length = n
        self._tokens[start:n], self._positions[start:n], self._segments[start:n] = tokens, positions, segments

    def cut(self, length: int) -> None:
        """Forget the tokens from `length` on. Whoever does so minds `view` and `todo`."""
        self.length = length

    def take_after(self, parent: Sequence) -> None:
        """Continue from where `parent` stands (its view is forked by the books)."""
        self._tokens = parent._tokens.copy()
        self._positions = parent._positions.copy()
        self._segments = parent._segments.copy()
        self.length = parent.length
        self.prompt_length = parent.prompt_length
        self.todo = list(parent.todo)
        self.state = parent.state
        self.program = parent.program
        self.recomputable = parent.recomputable
        self.constraint = parent.constraint.fork() if parent.constraint is not None else None
        self.chunks = parent.chunks
        self.contexts = parent.contexts
        self.saved = parent.saved

    def commit(self, tokens: list[int]) -> None:
        """Append drawn tokens; the KV of all but the last is already computed (accepted drafts)."""
        for token in tokens:
            self.append(token)
        self.todo = [(self.length - 1, self.length)]

    def run_on(self, token: int, count: int) -> None:
        """`count` decode steps at once, each of which computed the last token and committed `token`."""
        start, stop = self.length, self.length + count
        if count == 1:
            self.append(token)
            self.service += 1
            self.todo = [(start, stop)]
            return
        while len(self._tokens) < stop:
            self._grow()
        position = int(self._positions[start - 1]) + 1
        self._tokens[start:stop] = token
        self._positions[start:stop] = np.arange(position, position + count, dtype=np.int32)
        self._segments[start:stop] = self._segments[start - 1]
        self.length = stop
        self.service += count
        self.todo = [(stop - 1, stop)]

    def set_positions(self, start: int, positions: Ints, segment: int = 0) -> None:
        """Place tokens [start, start + n) at `positions`; only before their KV is computed."""
        stop = start + len(positions)
        if stop > self.length or self.view.length > start:
            raise ValueError(f"tokens {start} to {stop} are not all there, or already computed")
        self._positions[start:stop] = positions
        self._segments[start:stop] = segment

    def _grow(self) -> None:
        capacity = 2 * len(self._tokens)
        for name in ("_tokens", "_positions", "_segments"):
            old = getattr(self, name)
            new = np.empty(capacity, dtype=np.int32)
            new[: len(old)] = old
            setattr(self, name, new)

    # -- what is left to compute ----------------------------------------------------------------------------------------

    @property
    def remaining(self) -> int:
        """Known tokens whose KV is still to be computed; 1 while decoding."""
        if len(self.todo) == 1:
            start, stop = self.todo[0]
            return stop - start
        return sum(stop - start for start, stop in self.todo)

    @property
    def decoding(self) -> bool:
        """It runs, and all that is left to compute is the last token."""
        last = self.length - 1
        return self.state is State.RUNNING and self.view.length == last and self.todo == [(last, last + 1)]

    def next_ranges(self, count: int) -> list[tuple[int, int]]:
        """The next `count` tokens to compute, as ranges."""
        if len(self.todo) == 1:
            start, stop = self.todo[0]
            return [(start, min(stop, start + count))]
        ranges = []
        for start, stop in self.todo:
            if count <= 0:
                break
            take = min(count, stop - start)
            ranges.append((start, start + take))
            count -= take
        return ranges

    def computed(self, count: int) -> None:
        """The next `count` tokens of `todo` are done."""
        self.service += count
        while count > 0:
            start, stop = self.todo[0]
            if stop - start <= count:
                count -= stop - start
                self.todo.pop(0)
            else:
                self.todo[0] = (start + count, stop)
                count = 0

    @property
    def reusable(self) -> bool:
        """Its KV may be looked up and stored by tokens alone: positions and segments are the plain ones."""
        n = self.length
        plain = self._positions[n - 1] == n - 1 and bool((np.diff(self._positions[:n]) == 1).all())
        return bool(plain and not self._segments[:n].any())

    def __repr__(self) -> str:
        return f"Sequence({self.id}, {self.request.id!r}[{self.index}], {self.state.value}, {self.length} tokens)"


def common(one: Sequence, other: Sequence, start: int = 0) -> int:
    """Leading tokens that two sequences share, positions and segments included, as far as `other` has computed them. The first
    `start` are known to be the same."""
    n = min(one.length, other.view.length)
    if n <= start:
        return n
    same = np.ones(n - start, dtype=bool)
    for mine, theirs in zip(one.piece(start, n), other.piece(start, n), strict=True):
        same &= mine == theirs
    return n if same.all() else start + int(same.argmin())


@dataclass(slots=True)
class Draft:
    """Guessed continuations of a sequence: `tokens` int32 [k]; `parents` int32 [k], each the index of the draft it follows or
    -1 for the sequence's last token (None: a plain list); `probs` what the proposer thought of each, or None. `states`: the
    constraint's state after each, once the draft was checked against one."""

    tokens: Ints
    parents: Ints | None = None
    probs: Any = None
    states: list[Any] | None = None

    def __post_init__(self) -> None:
        if self.parents is not None and any(p >= i or p < -1 for i, p in enumerate(self.parents.tolist())):
            raise ValueError("each draft's parent must come before it")


@dataclass(slots=True)
class Span:
    """The tokens of one sequence computed in one step.

    `tokens`, `positions`, `segments` int32 [n]; `slots` int64 [n], where their KV goes. The last `drafts` of them are guesses;
    with `parents` int32 [n] (index within the span, -1 outside) they form a tree. `logits`: rows of the span whose logits are
    wanted; `samples`: the sequence is drawn from at the end of this step.
    """

    sequence: Sequence
    count: int
    tokens: Ints
    positions: Ints
    segments: Ints
    slots: np.ndarray
    logits: list[int] = field(default_factory=list)
    drafts: int = 0
    parents: Ints | None = None
    draft: Draft | None = None
    samples: bool = False
    sees: tuple[int, int] | None = None
    """Entries [start, stop) of the sequence's view that it reads, its own included; None: all."""
    measure: Measure | None = None
    """Attention mass that is wanted of its rows; None: none."""
    mending: Mending | None = None
    """Which of its rows may leave the step before its last layer, and when; None: none."""
    behind: int = 0
    """It reads entries [0, behind) before those too."""
    contexts: tuple[int, int] | None = None
    """Positions [first, stop) of contexts that it reads beside each other, before all else that stands at positions up to its
    last one. `sees` and `behind` say nothing then."""

    def reads(self) -> tuple[Ints, int]:
        """The entries that it reads, as runs int32 [n, 4], and how many of the first are contexts."""
        view = self.sequence.view
        if self.contexts is not None:
            return beside(view.runs, *self.contexts, int(self.positions.max()))
        if self.sees is None:
            return view.runs, 0
        runs = view.part(*self.sees)
        return (np.concatenate([view.part(0, self.behind), runs]), 0) if self.behind else (runs, 0)
