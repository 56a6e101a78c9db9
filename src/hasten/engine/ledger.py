"""The ledger: which sequence is in which state and holds which KV. All state changes of sequences happen here.

It imports no torch: bytes move through the executor. The loop calls it under `Memory.lock`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from hasten.engine.attention.base import AttentionPolicy
from hasten.engine.clock import Clock
from hasten.engine.decoding.base import TokenLogprobs
from hasten.engine.events import EventLog, Kind
from hasten.engine.kv.base import NoBlocks, Readiness, ReuseKey, Tier
from hasten.engine.kv.books import Books
from hasten.engine.request import Request
from hasten.engine.rng import mix
from hasten.engine.sequence import Finish, Sequence, State


@dataclass(slots=True)
class Group:
    """A request and its sequences. `split`: its n sequences exist (they share the prompt's KV, computed by the first)."""

    request: Request
    number: int
    sequences: list[Sequence] = field(default_factory=list)
    split: bool = False
    unwanted: set[int] = field(default_factory=set)
    """Sequences cancelled before the request was split."""
    reused: int = 0
    prompt_scores: list[TokenLogprobs | None] | None = None


Closed = Callable[[Sequence, str | None], None]


class Ledger:
    def __init__(
        self,
        books: Books,
        tier: Tier | None,
        attention: AttentionPolicy,
        events: EventLog,
        clock: Clock,
        fingerprint: str = "",
    ) -> None:
        self.books = books
        self.tier = tier
        self.events = events
        self.clock = clock
        self.sequences: dict[int, Sequence] = {}
        """Unfinished sequences in order of arrival."""
        self.groups: dict[str, Group] = {}
        self.on_close: Closed = lambda sequence, error: None
        self._attention = attention
        self._fingerprint = fingerprint
        self._ids = count()
        self._numbers = count()
        self._moving: dict[int, Sequence] = {}
        self._opened: dict[int, int] = {}

    # -- birth ----------------------------------------------------------------------------------------------------------

    def admit(self, request: Request, seed: int) -> Sequence:
        now = self.clock.now()
        group = Group(request, next(self._numbers))
        key = ReuseKey(self._fingerprint, request.adapter or "", "", request.tenant, request.cache_salt)
        arrival = request.arrival_s if request.arrival_s is not None else now
        seq = Sequence(next(self._ids), request, 0, mix(seed, 0), key, arrival)
        if request.sampling.prompt_logprobs is not None:
            group.prompt_scores = [None] * seq.prompt_length
        group.sequences.append(seq)
        self.groups[request.id] = group
        self.sequences[seq.id] = seq
        self.events.add(arrival, Kind.ARRIVED, seq.id, seq.prompt_length, group.number)
        self.events.add(now, Kind.QUEUED, seq.id, seq.remaining)
        return seq

    def will_split(self, seq: Sequence) -> bool:
        """Whether `seq` stands for n sequences, made when its prompt is computed."""
        group = self.groups[seq.request.id]
        return not group.split and group.request.sampling.n > 1

    def fork(self, parent: Sequence, seed: int) -> Sequence:
        """A sequence of the same request that shares all of `parent`'s tokens and KV."""
        group = self.groups[parent.request.id]
        child = Sequence(next(self._ids), parent.request, len(group.sequences), seed, parent.reuse_key, parent.arrival_s)
        child.take_after(parent)
        child.view = self.books.fork(parent.view)
        self._attention.fork(parent, child)
        group.sequences.append(child)
        self.sequences[child.id] = child
        self.events.add(self.clock.now(), Kind.FORKED, child.id, parent.id)
        return child

    def join(self, parents: Seq[Sequence], tokens: Seq[int], seed: int) -> Sequence:
        """A sequence that reads the computed KV of all `parents` (of one request) and goes on with `tokens`."""
        first = parents[0]
        if not tokens or any(p.request is not first.request or p.state is not State.RUNNING for p in parents):
            raise ValueError("running sequences of one request can be joined, with at least one token to go on with")
        group = self.groups[first.request.id]
        child = Sequence(next(self._ids), first.request, len(group.sequences), seed, first.reuse_key, first.arrival_s)
        # What a path has in common with an earlier one is read once, from the earlier.
        skips = [
            min(p.view.length, max((_common(p, other) for other in parents[:i]), default=0)) for i, p in enumerate(parents)
        ]
        child.view = self.books.join([p.view for p in parents], skips)
        kept = [slice(skip, p.view.length) for p, skip in zip(parents, skips, strict=True)]
        child.become(
            np.concatenate([p.tokens[k] for p, k in zip(parents, kept, strict=True)]),
            child.view.positions(),
            np.concatenate([p.segments[k] for p, k in zip(parents, kept, strict=True)]),
        )
        position = max(int(p.positions[-1]) for p in parents)
        for i, token in enumerate(tokens):
            child.append(token, position + 1 + i)
        child.todo = [(child.view.length, child.length)]
        child.state = State.RUNNING
        child.recomputable = False
        self._attention.open(child)
        group.sequences.append(child)
        self.sequences[child.id] = child
        self.events.add(self.clock.now(), Kind.FORKED, child.id, first.id)
        return child

    # -- KV -------------------------------------------------------------------------------------------------------------

    def open(self, seq: Sequence) -> int:
        """Look up reusable KV for a waiting sequence that holds none; the tokens left to compute."""
        if seq.id in self._opened or seq.view.length or seq.state is not State.WAITING:
            return seq.remaining
        self._attention.open(seq)
        self._opened[seq.id] = 0
        reuse = self.books.reuse
        group = self.groups[seq.request.id]
        if reuse is None or not seq.reusable or group.prompt_scores is not None:
            return seq.remaining
        for found in reuse.match(seq.reuse_key, seq.tokens, seq.length - 1):
            if found.start != seq.view.length or found.readiness is not Readiness.READY:
                raise AssertionError("spans beyond a leading ready one need partial prefill, which this engine lacks")
            self.books.link(seq.view, found.runs)
        seq.todo = [(seq.view.length, seq.length)]
        self._opened[seq.id] = seq.view.length
        return seq.remaining

    def start(self, seq: Sequence) -> None:
        """The sequence was planned: from now on it is running."""
        if seq.state is State.WAITING:
            reused = self._opened.pop(seq.id, 0)
            seq.state = State.RUNNING
            if reused:
                self.events.add(self.clock.now(), Kind.REUSED, seq.id, reused)
                if seq.output_length == 0:
                    self.groups[seq.request.id].reused = min(reused, seq.prompt_length)

    def close_unplanned(self, planned: Container[int] = ()) -> None:
        """Let go of the KV looked up for sequences that were not planned after all."""
        for id in list(self._opened):
            if id in planned:
                continue
            seq = self.sequences[id]
            del self._opened[id]
            self._release(seq)
            seq.restart()

    def cache(self, seq: Sequence) -> None:
        """Offer the sequence's computed KV for reuse."""
        if self.books.reuse is not None and seq.reusable and seq.view.length >= self.books.pool.block_size:
            self.books.reuse.insert(seq.reuse_key, seq.tokens[: seq.view.length], seq.view)

    def _release(self, seq: Sequence) -> None:
        self.books.close(seq.view)
        self._attention.close(seq)

    def truncate(self, seq: Sequence, entries: int) -> None:
        self.books.truncate(seq.view, entries)
        self._attention.truncate(seq, entries)

    @property
    def moving(self) -> bool:
        """Some sequence's KV is on the way between tiers."""
        return bool(self._moving)

    # -- yielding and coming back ---------------------------------------------------------------------------------------

    def drop(self, seq: Sequence) -> bool:
        """Preempt by recompute: the KV goes (what is cached may be found again), the tokens stay. False when its KV cannot be
        computed again."""
        if not seq.recomputable:
            return False
        lost = seq.view.length
        self.cache(seq)
        self._release(seq)
        seq.restart()
        self.events.add(self.clock.now(), Kind.PREEMPTED, seq.id, lost)
        return True

    def swap_out(self, seq: Sequence) -> bool:
        """Start moving the sequence's KV to the slower tier; False when there is no room."""
        blocks = list(seq.view.blocks)
        if self.tier is None or not blocks or len(blocks) > self.tier.room:
            return False
        seq.stored, seq.handle = self.tier.put(blocks)
        self._attention.swap_out(seq)
        seq.state = State.LEAVING
        self._moving[seq.id] = seq
        self.events.add(self.clock.now(), Kind.SWAPPED, seq.id, len(blocks))
        return True

    def swap_in(self, seq: Sequence) -> bool:
        """Start bringing it back; False when the pool has no room."""
        assert self.tier is not None
        try:
            mapping = self.books.adopt(seq.view, seq.stored)
        except NoBlocks:
            return False
        seq.handle = self.tier.get(seq.stored, [mapping[block] for block in seq.stored])
        seq.state = State.LOADING
        self._moving[seq.id] = seq
        return True

    def settle(self, wait: bool = False) -> bool:
        """Finish the transfers that are done, waiting for one if told to; True when any was under way."""
        any_moving = bool(self._moving)
        for seq in list(self._moving.values()):
            assert seq.handle is not None
            if not wait and not seq.handle.done():
                continue
            wait = False
            del self._moving[seq.id]
            handle, seq.handle = seq.handle, None
            error: str | None = None
            try:
                handle.wait()
            except Exception as failure:  # the copy failed: this sequence starts over, the others go on
                error = str(failure)
            self._arrived(seq, error)
        return any_moving

    def _arrived(self, seq: Sequence, error: str | None) -> None:
        assert self.tier is not None
        blocks = len(seq.stored)
        leaving = seq.state is State.LEAVING
        if leaving:
            mapping = dict(zip(seq.view.blocks, seq.stored, strict=True))
            held = list(seq.view.blocks)
            if error is None:
                self.cache(seq)
            self.books.pool.drop(held)
            seq.view.remap(mapping)
            seq.state = State.SWAPPED
        else:
            self.tier.forget(seq.stored)
            seq.stored = []
            self._attention.swap_in(seq)
            seq.state = State.RUNNING
        now = self.clock.now()
        self.events.add(now, Kind.TRANSFER_DONE, seq.id, blocks)
        if error is not None:
            self._lose(seq)
            if not seq.recomputable:
                self.close(seq, Finish.ERROR, f"its KV was lost on the way: {error}")
        elif not leaving:
            self.events.add(now, Kind.RESUMED, seq.id)
        if seq.cancelled is not None:
            self.close(seq, seq.cancelled)

    def _lose(self, seq: Sequence) -> None:
        """Whatever KV it has, here or there, is void."""
        if seq.stored:
            assert self.tier is not None
            self.tier.forget(seq.stored)
            seq.stored = []
            seq.view.cut(0)
            self._attention.close(seq)
        else:
            self._release(seq)
        seq.restart()

    # -- end ------------------------------------------------------------------------------------------------------------

    def close(self, seq: Sequence, reason: Finish, error: str | None = None) -> None:
        """End a sequence, whatever state it is in. During a transfer it ends when that is over."""
        if seq.state is State.FINISHED:
            return
        if seq.id in self._moving:
            seq.cancelled = reason
            return
        self._opened.pop(seq.id, None)
        if seq.state is State.SWAPPED:
            self._lose(seq)
        else:
            if reason.ok:
                self.cache(seq)
            self._release(seq)
        seq.state, seq.finish = State.FINISHED, reason
        seq.todo = []
        kind = Kind.FINISHED if reason.ok else Kind.FAILED
        self.events.add(self.clock.now(), kind, seq.id, seq.output_length, reason.value)  # observers may still look it up
        del self.sequences[seq.id]
        self.on_close(seq, error)
        group = self.groups.get(seq.request.id)
        if group is not None and all(s.state is State.FINISHED for s in group.sequences):
            del self.groups[seq.request.id]

    def cancel(self, request_id: str, index: int | None = None, reason: Finish = Finish.CANCELLED) -> None:
        """End a request, or only its sequence `index`."""
        group = self.groups.get(request_id)
        if group is not None and index is not None and self.will_split(group.sequences[0]):
            group.unwanted.add(index)
            if len(group.unwanted) < group.request.sampling.n:
                return
            index = None
        for seq in list(group.sequences) if group is not None else []:
            if index is None or seq.index == index:
                self.close(seq, reason)

    # -- reading --------------------------------------------------------------------------------------------------------

    def in_state(self, *states: State) -> Iterable[Sequence]:
        return (seq for seq in self.sequences.values() if seq.state in states)

    def audit(self) -> None:
        """Check the books against the sequences; AssertionError when a block is leaked or owned twice (tests, debugging)."""
        pool = self.books.pool
        held = np.zeros(pool.blocks, dtype=np.int64)
        for seq in self.sequences.values():
            if seq.state is not State.SWAPPED:
                held[list(seq.view.blocks)] += 1
        cached = np.array([pool.is_cached(b) for b in range(pool.blocks)])
        counts = np.array(pool.refs)
        assert (counts == held + cached).all(), "a block's count is not the number of its holders"
        assert pool.free == int((counts == 0).sum()), "the free list disagrees with the counts"
        assert pool.evictable == int((cached & (counts == 1)).sum()), "the evictable count is wrong"


def _common(one: Sequence, other: Sequence) -> int:
    """Leading tokens that two sequences share, positions and segments included, as far as `other` has computed them."""
    n = min(one.length, other.view.length)
    same = (
        (one.tokens[:n] == other.tokens[:n])
        & (one.positions[:n] == other.positions[:n])
        & (one.segments[:n] == other.segments[:n])
    )
    return n if same.all() else int(same.argmin())
