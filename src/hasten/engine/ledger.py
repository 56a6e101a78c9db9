"""The ledger: which sequence is in which state and holds which KV. All state changes of sequences happen here.

It imports no torch: bytes move through the executor. The loop calls it under `Memory.lock`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from hasten.engine.attention.base import AttentionPolicy
from hasten.engine.clock import Clock
from hasten.engine.decoding.base import TokenLogprobs
from hasten.engine.events import EventLog, Kind
from hasten.engine.kv.base import Ints, NoBlocks, Readiness, Reuse, ReuseKey, Tier, Tiered
from hasten.engine.kv.books import Books, Slots
from hasten.engine.linking import Linker
from hasten.engine.links import blocks_needed
from hasten.engine.loads import Loads
from hasten.engine.request import Request
from hasten.engine.rng import mix
from hasten.engine.sequence import Finish, Sequence, State, common
from hasten.engine.transfers import Move, Transfers


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
        *,
        keep_copies: bool = False,
        linker: Linker | None = None,
    ) -> None:
        """`keep_copies`: see `Transfers`. `linker`: reuses chunks of prompts at any position; None: nobody does."""
        self.books = books
        self.linker = linker
        self.transfers = Transfers(books, tier, keep_copies) if tier is not None else None
        self.events = events
        self.clock = clock
        self.sequences: dict[int, Sequence] = {}
        """Unfinished sequences in order of arrival."""
        self._in: dict[State, dict[int, Sequence]] = {state: {} for state in State}
        """The same by state; ended ones are not kept."""
        self.groups: dict[str, Group] = {}
        self.on_close: Closed = lambda sequence, error: None
        self.rank: Callable[[Sequence], Any] = lambda sequence: sequence.arrival_s
        """Whose copy in the slower tier is given up first when its place is needed: the highest."""
        self.waited_s = 0.0
        """Seconds spent waiting for transfers so far."""
        self._attention = attention
        self._fingerprint = fingerprint
        self._ids = count()
        self._numbers = count()
        self._opened: dict[int, int] = {}
        """Tokens that a look-up found here for sequences that have not started."""
        self.loads = Loads()
        self._reuse: Reuse | None = None
        self._known_tiers: Tiered | None = None

    # -- birth ----------------------------------------------------------------------------------------------------------

    def admit(self, request: Request, seed: int) -> Sequence:
        now = self.clock.now()
        group = Group(request, next(self._numbers))
        key = ReuseKey(self._fingerprint, request.adapter or "", "", request.tenant, request.cache_salt)
        arrival = request.arrival_s if request.arrival_s is not None else now
        seq = Sequence(next(self._ids), request, 0, mix(seed, 0), key, arrival)
        if request.sampling.prompt_logprobs is not None:
            group.prompt_scores = [None] * seq.prompt_length
        elif self.linker is not None and (request.chunks or self.linker.boundaries is not None):
            self.linker.admit(seq)
        group.sequences.append(seq)
        self.groups[request.id] = group
        self._enter(seq)
        self.events.add(arrival, Kind.ARRIVED, seq.id, seq.prompt_length, group.number)
        self.events.add(now, Kind.QUEUED, seq.id, seq.remaining)
        return seq

    def _enter(self, seq: Sequence) -> None:
        self.sequences[seq.id] = self._in[seq.state][seq.id] = seq

    def _become(self, seq: Sequence, state: State) -> None:
        del self._in[seq.state][seq.id]
        seq.state = state
        self._in[state][seq.id] = seq

    def _restart(self, seq: Sequence) -> None:
        """Its KV is gone: everything is to be computed again."""
        self._unlink(seq)
        seq.todo = [(0, seq.length)]
        self._become(seq, State.WAITING)

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
        if self.linker is not None and parent.links is not None:
            child.links = self.linker.fork(parent.links)
        self._attention.fork(parent, child)
        group.sequences.append(child)
        self._enter(child)
        self.events.add(self.clock.now(), Kind.FORKED, child.id, parent.id)
        return child

    def join(self, parents: Seq[Sequence], tokens: Seq[int], seed: int) -> Sequence:
        """A sequence that reads the computed KV of all `parents` (of one request) and goes on with `tokens`."""
        first = parents[0]
        if not tokens or any(p.request is not first.request or p.state is not State.RUNNING for p in parents):
            raise ValueError("running sequences of one request can be joined, with at least one token to go on with")
        if any(p.contexts is not None for p in parents):
            raise ValueError(f"{first} cannot be joined: its contexts stand beside each other")
        group = self.groups[first.request.id]
        child = Sequence(next(self._ids), first.request, len(group.sequences), seed, first.reuse_key, first.arrival_s)
        # What a path has in common with an earlier one is read once, from the earlier.
        skips = [min(p.view.length, max((common(p, other) for other in parents[:i]), default=0)) for i, p in enumerate(parents)]
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
        self._enter(child)
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
        if self.linker is not None and seq.chunks:
            self._opened[seq.id] = self.linker.open(seq)
            return seq.remaining
        if reuse is None or not seq.reusable or group.prompt_scores is not None:
            return seq.remaining
        for found in reuse.match(seq.reuse_key, seq.tokens, seq.length - 1):
            if found.start != seq.view.length or found.readiness is Readiness.RECOMPUTE:
                raise AssertionError("what is found by tokens alone is a beginning; chunks further on are the linker's")
            if found.load is not None:
                self.loads.found(seq, found.load, found.stop - found.start)
            else:
                self.books.link(seq.view, found.runs)
        seq.todo = [(seq.view.length + self.loads.promised(seq), seq.length)]
        self._opened[seq.id] = seq.view.length
        return seq.remaining

    def load(self, seq: Sequence) -> bool:
        """The sequence was planned. If some of the KV that was looked up for it must be fetched first, that begins now and it
        cannot run before it has ended; whether that is so."""
        if not self.loads.promised(seq):
            return False
        try:
            runs = self.loads.begin(seq)
        except NoBlocks:
            runs = None
        if runs is None or not len(runs):  # it is computed
            seq.todo = [(seq.view.length, seq.length)]
            return False
        self.books.link(seq.view, runs)
        seq.todo = [(seq.view.length, seq.length)]
        del self._opened[seq.id]
        self._become(seq, State.LOADING)
        return True

    def start(self, seq: Sequence) -> None:
        """The sequence was planned: from now on it is running."""
        if seq.state is State.WAITING:
            reused = self._opened.pop(seq.id, 0)
            self._become(seq, State.RUNNING)
            self._reused(seq, reused)

    def _reused(self, seq: Sequence, tokens: int) -> None:
        if tokens:
            self.events.add(self.clock.now(), Kind.REUSED, seq.id, tokens)
            if seq.output_length == 0:
                self.groups[seq.request.id].reused = min(tokens, seq.prompt_length)

    def close_unplanned(self, planned: Container[int] = ()) -> None:
        """Let go of the KV looked up for sequences that were not planned after all."""
        for id in list(self._opened):
            if id in planned:
                continue
            seq = self.sequences[id]
            del self._opened[id]
            self.loads.forget(seq)
            self._release(seq)
            self._restart(seq)

    def cache(self, seq: Sequence) -> None:
        """Offer the sequence's computed KV for reuse: its chunks, and the rest as far as it is what its tokens alone give."""
        if self.linker is not None and seq.links is not None:
            self.linker.settle(seq)
        if self.books.reuse is None:
            return
        if self.linker is not None and seq.chunks:
            plain = self.linker.plain(seq)
        else:
            plain = seq.view.length if seq.reusable else 0
        if plain >= self.books.pool.block_size:
            self.books.reuse.insert(seq.reuse_key, seq.tokens[:plain], seq.view)

    def _unlink(self, seq: Sequence) -> None:
        if self.linker is not None and seq.links is not None:
            self.linker.forget(seq)

    def _release(self, seq: Sequence) -> None:
        self._unlink(seq)
        if self.transfers is not None:
            self.transfers.forget_copy(seq)
        self.books.close(seq.view)
        self._attention.close(seq)

    def truncate(self, seq: Sequence, entries: int) -> None:
        self.books.truncate(seq.view, entries)
        self._attention.truncate(seq, entries)
        if self.transfers is not None:
            self.transfers.cut(seq, entries)

    def rewrite(self, seq: Sequence, entries: Ints) -> Slots:
        """As `Books.rewrite` of the sequence's view."""
        slots = self.books.rewrite(seq.view, entries)
        if self.transfers is not None and len(entries):
            self.transfers.cut(seq, int(entries.min()))
        return slots

    def blocks_needed(self, seq: Sequence, tokens: int) -> int:
        """New blocks that computing its next `tokens` takes, and more: drafts behind them, and what is to be fetched before."""
        if seq.links is not None:
            return blocks_needed(self.books, seq, tokens)
        return self.books.blocks_needed(seq.view, self.loads.promised(seq) + tokens)

    @property
    def moving(self) -> bool:
        """Some KV is on the way between tiers."""
        if self.loads or (self.transfers is not None and self.transfers.moves):
            return True
        return self._tiers is not None and self._tiers.moving

    @property
    def _tiers(self) -> Tiered | None:
        reuse = self.books.reuse
        if reuse is not self._reuse:  # asking a protocol takes microseconds, and this is asked several times a step
            self._reuse, self._known_tiers = reuse, reuse if isinstance(reuse, Tiered) else None
        return self._known_tiers

    def stirs(self) -> bool:
        """There is something for `settle` to do. Changes nothing."""
        moves = list(self.transfers.moves.values()) if self.transfers is not None else []
        return self.loads.stirs() or any(move.handle.done() for move in moves)

    @property
    def ends_s(self) -> float:
        """Engine time when it is worth looking after what is on its way again (`kv.base.Handle.ends_s`)."""
        moves = self.transfers.moves.values() if self.transfers is not None else ()
        return min([self.loads.ends_s, *(move.handle.ends_s for move in moves)])

    # -- yielding and coming back ---------------------------------------------------------------------------------------

    def drop(self, seq: Sequence) -> bool:
        """Preempt by recompute: the KV goes (what is cached may be found again), the tokens stay. False when its KV cannot be
        computed again."""
        if not seq.recomputable:
            return False
        lost = seq.view.length
        self.cache(seq)
        self._release(seq)
        self._restart(seq)
        self.events.add(self.clock.now(), Kind.PREEMPTED, seq.id, lost)
        return True

    def swap_out(self, seq: Sequence) -> bool:
        """Start moving the sequence's KV to the slower tier; False when there is no room. Its blocks are free at once; those
        that the copy reads are given only when there are no others (`BlockPool`)."""
        if self.transfers is None or not seq.view.blocks or (seq.links is not None and not seq.links.whole(self.books)):
            return False

        def tell(sent: int, kept: int) -> None:
            self.events.add(self.clock.now(), Kind.SWAPPED, seq.id, sent, kept)  # observers may still read its KV
            self.cache(seq)

        if not self.transfers.send(seq, self.sequences.values(), self.rank, tell):
            return False
        self._attention.swap_out(seq)
        self._become(seq, State.LEAVING if self.moves(seq) else State.SWAPPED)
        return True

    def swap_in(self, seq: Sequence) -> bool:
        """Start bringing it back; False when the pool has no room."""
        assert self.transfers is not None
        if not self.transfers.fetch(seq):
            return False
        self._become(seq, State.LOADING)
        return True

    def moves(self, seq: Sequence) -> bool:
        return self.transfers is not None and seq.id in self.transfers.moves

    def finish_move(self, seq: Sequence) -> None:
        """Wait until the transfer of a sequence, if one is under way, has ended."""
        move = self.transfers.moves.get(seq.id) if self.transfers is not None else None
        if move is not None:
            self._end(move)

    def settle(self, wait: bool = False) -> bool:
        """Finish the transfers that are done, waiting for one if told to; True when any was under way."""
        moves = list(self.transfers.moves.values()) if self.transfers is not None else []
        for move in moves:
            if wait or move.handle.done():
                self._end(move)
            wait = False
        tiers = self._tiers
        busy = bool(moves or self.loads)
        if tiers is not None:
            began = self.clock.now()
            busy |= tiers.settle(wait and not busy)
            self.waited_s += self.clock.now() - began if wait else 0.0
        for id in self.loads.done():
            self._loaded(self.sequences[id])
        return busy

    def _loaded(self, seq: Sequence) -> None:
        """What was fetched for it is there, as far as it came: it goes on behind that."""
        came, missing = self.loads.end(seq)
        there = seq.view.length - missing
        self.truncate(seq, there)
        seq.todo = [(there, seq.length)]
        self.events.add(self.clock.now(), Kind.LOADED, seq.id, came, missing)
        self._become(seq, State.RUNNING)
        if seq.cancelled is not None:
            self.close(seq, seq.cancelled)
        else:
            self._reused(seq, there)
            self.cache(seq)

    def _end(self, move: Move) -> None:
        assert self.transfers is not None
        began = self.clock.now()
        error = self.transfers.end(move)
        self.waited_s += self.clock.now() - began
        self._arrived(move, error)

    def _arrived(self, move: Move, error: str | None) -> None:
        assert self.transfers is not None
        seq = move.sequence
        leaving = seq.state is State.LEAVING
        if leaving:
            self._become(seq, State.SWAPPED)
        else:
            self.transfers.arrived(seq)
            self._attention.swap_in(seq)
            self._become(seq, State.RUNNING)
        now = self.clock.now()
        self.events.add(now, Kind.TRANSFER_DONE, seq.id, move.sent, move.handle.seconds)
        if error is not None:
            self._lose(seq)
            if not seq.recomputable:
                self.close(seq, Finish.ERROR, f"its KV was lost on the way: {error}")
        elif not leaving:
            self.events.add(now, Kind.RESUMED, seq.id)
        if seq.cancelled is not None:
            self.close(seq, seq.cancelled)

    def wait_for_readers(self) -> None:
        """Wait for the copies that read blocks which are about to be written; if one fails, its own sequence learns of it."""
        began = self.clock.now()
        for copy in self.books.pool.take_waits():
            with suppress(Exception):
                copy.wait()
        self.waited_s += self.clock.now() - began

    def _lose(self, seq: Sequence) -> None:
        """Whatever KV it has, here or there, is void."""
        if seq.stored:
            assert self.transfers is not None
            self.transfers.forget(seq)
            seq.view.cut(0)
            self._attention.close(seq)
        else:
            self._release(seq)
        self._restart(seq)

    # -- end ------------------------------------------------------------------------------------------------------------

    def close(self, seq: Sequence, reason: Finish, error: str | None = None) -> None:
        """End a sequence, whatever state it is in. During a transfer it ends when that is over."""
        if seq.state is State.FINISHED:
            return
        if self.moves(seq):
            seq.cancelled = reason
            return
        if seq in self.loads:
            seq.cancelled = reason
            if self.loads.cancel(seq):
                self._loaded(seq)
            return
        self._opened.pop(seq.id, None)
        self.loads.forget(seq)
        if seq.state is State.SWAPPED:
            self._lose(seq)
        else:
            if reason.ok:
                self.cache(seq)
            self._release(seq)
        del self._in[seq.state][seq.id]
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

    def in_state(self, *states: State) -> list[Sequence]:
        """Unfinished sequences in any of these states, in order of arrival."""
        found = {id: seq for state in states for id, seq in self._in[state].items()}
        return [found[id] for id in sorted(found)]

    def audit(self) -> None:
        """Check the books against the sequences; AssertionError when a block is leaked or owned twice (tests, debugging)."""
        pool = self.books.pool
        by_state = {id: state for state, those in self._in.items() for id in those}
        assert by_state == {id: seq.state for id, seq in self.sequences.items()}, "a sequence is kept under another state"
        held = np.zeros(pool.blocks, dtype=np.int64)
        for seq in self.sequences.values():
            if seq.state not in (State.SWAPPED, State.LEAVING):
                held[list(seq.view.blocks)] += 1
        if self.linker is not None:
            self.linker.audit(self.sequences.values(), held)
        cached = np.array([pool.is_cached(b) for b in range(pool.blocks)])
        assert (np.array(pool.refs) == held + cached).all(), "a block's count is not the number of its holders"
        pool.audit()
        if self.transfers is not None:
            self.transfers.audit(self.sequences.values())
        self.loads.audit(self._opened, self._in[State.LOADING])
        if self._tiers is not None:
            self._tiers.audit()
