"""Twins: what a draft model has computed of each sequence.

A twin is a `Sequence` over the draft's own pool that runs after the one it follows: its tokens are that one's and the guesses
behind them, its view holds the draft's KV of some of them, `todo` says what is missing. Nobody tells it what became of its
guesses: before it guesses again the two are compared, its KV is cut to what they have in common, and the rest is computed. So
rejected drafts, preempted, swapped and joined sequences are all one case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from hasten.engine.kv.base import Ints, NoBlocks
from hasten.engine.kv.books import Books, Slots
from hasten.engine.sequence import Sequence, common


class Twin(Sequence):
    """`known`: how many of its tokens are those of the sequence that it follows, whatever else they are."""

    __slots__ = ("known",)

    def __init__(self, sequence: Sequence, weights: str) -> None:
        key = replace(sequence.reuse_key, weights=weights)
        super().__init__(sequence.id, sequence.request, sequence.index, sequence.seed, key, sequence.arrival_s)
        self.known = 0


class Twins:
    """`weights`: the draft's fingerprint. The pool may be too small for all: whoever was followed least recently goes first."""

    def __init__(self, books: Books, weights: str) -> None:
        self.books = books
        self._weights = weights
        self._twins: dict[int, Twin] = {}
        """By the number of the sequence that each follows, the least recently followed first."""
        self._followed: set[int] = set()
        self._branches: list[Twin] = []

    def __len__(self) -> int:
        return len(self._twins)

    def computed(self, sequence: Sequence) -> int:
        """About how many tokens of the sequence have KV here."""
        twin = self._twins.get(sequence.id)
        return twin.view.length if twin is not None else 0

    def follow(self, sequences: Iterable[Sequence]) -> list[Twin]:
        """The twins of the sequences that are drafted for now, the first ones the dearest: with exactly their tokens, and KV of
        none that they do not have. At least the last token is `todo`."""
        twins = [self._follow(sequence) for sequence in sequences]
        self._followed = {twin.id for twin in twins}
        return twins

    def _follow(self, sequence: Sequence) -> Twin:
        twin = self._twins.pop(sequence.id, None)
        if twin is None or not twin.view.length:  # meanwhile somebody else may have computed what it needs
            twin = self._begin(sequence)
        self._twins[sequence.id] = twin
        self.books.truncate(twin.view, min(common(sequence, twin, twin.known), sequence.length - 1))
        twin.become(*sequence.piece(twin.known, sequence.length), twin.known)
        twin.known = sequence.length
        twin.seed, twin.prompt_length = sequence.seed, sequence.prompt_length
        twin.todo = [(twin.view.length, twin.length)]
        return twin

    def _begin(self, sequence: Sequence) -> Twin:
        """With whatever the draft has computed already: of the same prompt for another sequence of the request, or for another
        request."""
        for relative in self._twins.values():
            if relative.request is sequence.request and relative.view.length >= relative.prompt_length:
                return self._copy(relative, sequence)
        twin = Twin(sequence, self._weights)
        if self.books.reuse is not None and sequence.reusable:
            for found in self.books.reuse.match(twin.reuse_key, sequence.tokens, sequence.length - 1):
                self.books.link(twin.view, found.runs)
            twin.become(sequence.tokens, sequence.positions, sequence.segments)
        return twin

    def _copy(self, twin: Twin, sequence: Sequence) -> Twin:
        """A twin of `sequence` that shares all that `twin` has."""
        copy = Twin(sequence, self._weights)
        copy.take_after(twin)
        copy.view = self.books.fork(twin.view)
        return copy

    def fork(self, parent: int, child: int) -> None:
        """Sequence `child` was split off `parent`."""
        twin = self._twins.get(parent)
        if twin is not None and child not in self._twins:
            copy = self._twins[child] = self._copy(twin, twin)
            copy.id = child

    def follows(self, sequence: Sequence) -> bool:
        """Whether the sequence has a twin that knows all its tokens, and has computed all but a few."""
        twin = self._twins.get(sequence.id)
        return twin is not None and twin.known == sequence.length and twin.view.length >= sequence.length - 1

    def branch(self, sequence: Sequence, tokens: Iterable[int]) -> Twin:
        """A twin beside the one that `follows` the sequence, which holds these tokens behind the sequence's: a fork, with KV of
        as many of them as that one has. It counts until `adopt` or `drop`."""
        twin = self._twins[sequence.id]
        branch = self._copy(twin, sequence)
        branch.known, branch.seed, branch.prompt_length = twin.known, sequence.seed, sequence.prompt_length
        branch.cut(twin.known)
        for token in tokens:
            branch.append(token)
        self.books.truncate(branch.view, min(common(branch, twin, twin.known), branch.length - 1))
        branch.todo = [(branch.view.length, branch.length)]
        self._branches.append(branch)
        return branch

    def adopt(self, branch: Twin) -> None:
        """A branch has come true: it takes the place of its sequence's twin, whose KV goes. If that one is not there any more,
        its own goes."""
        self._branches.remove(branch)
        twin = self._twins.get(branch.id)
        if twin is not None:
            self.books.close(twin.view)
            self._twins[branch.id] = branch
        else:
            self.books.close(branch.view)

    def drop(self, branch: Twin) -> None:
        self._branches.remove(branch)
        self.books.close(branch.view)

    def append(self, twin: Twin, positions: Ints) -> Slots:
        """Slots for KV of so many more of its tokens. For want of memory idle twins lose theirs, then those of less dear
        sequences. Raises NoBlocks."""
        while True:
            try:
                return self.books.append(twin.view, positions)
            except NoBlocks:
                victim = self._idle() or self._behind(twin)
                if victim is None:
                    raise
                self.lose(victim)

    def make_room(self, twin: Twin, tokens: int) -> bool:
        """Whether there is room for KV of so many more of its tokens, once idle twins have lost theirs if need be."""
        while self.books.blocks_needed(twin.view, tokens) > self.books.available:
            idle = self._idle()
            if idle is None:
                return False
            self.lose(idle)
        return True

    def _idle(self) -> Twin | None:
        """The least recently followed twin that has KV and is not followed now."""
        return next((twin for id, twin in self._twins.items() if id not in self._followed and twin.view.length), None)

    def _behind(self, twin: Twin) -> Twin | None:
        """Of those followed now the last one that has KV, if it comes after `twin`; none for a branch: it is only a guess."""
        if self._twins.get(twin.id) is not twin:
            return None
        for other in reversed(self._twins.values()):
            if other is twin:
                return None
            if other.view.length:
                return other
        return None

    def lose(self, twin: Twin) -> None:
        """Its KV goes."""
        self.books.close(twin.view)
        twin.todo = [(0, twin.length)]

    def keep(self, twin: Twin) -> None:
        """Offer the KV of its known tokens for reuse."""
        done = min(twin.view.length, twin.known)
        if self.books.reuse is not None and done >= self.books.pool.block_size and twin.reusable:
            self.books.reuse.insert(twin.reuse_key, twin.tokens[:done], twin.view)

    def forget(self, id: int) -> None:
        """Nobody follows sequence `id` any more."""
        twin = self._twins.pop(id, None)
        if twin is not None:
            self.keep(twin)
            self.books.close(twin.view)

    def audit(self) -> None:
        """AssertionError when a block is leaked or owned twice (tests, debugging)."""
        pool = self.books.pool
        held = np.zeros(pool.blocks, dtype=np.int64)
        for twin in (*self._twins.values(), *self._branches):
            held[list(twin.view.blocks)] += 1
        cached = np.array([pool.is_cached(block) for block in range(pool.blocks)])
        assert (np.array(pool.refs) == held + cached).all(), "a block's count is not the number of its holders"
        pool.audit()
