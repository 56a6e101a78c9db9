"""Drafted tokens in the core: how guesses become rows of a span, and which of them survive.

Verification here draws the true token at every drafted node with the random number that draw would have had without drafts
(a function of the request's seed and the draw's number) and keeps the path on which guess and draw agree. That is lossless for
greedy and sampled decoding alike: the sequence gets exactly the tokens it would have got one at a time.
"""

from __future__ import annotations

import numpy as np

from hasten.engine.decoding.base import Drawn, Row
from hasten.engine.kv.base import Ints
from hasten.engine.sequence import Draft, Sequence, Span

DEEPEST = 16
"""Depth from which on drafts are counted together."""


class Acceptance:
    """How many tokens were drafted and accepted so far at each depth, from 0 on: int64 [DEEPEST]."""

    def __init__(self) -> None:
        self.drafted = np.zeros(DEEPEST, dtype=np.int64)
        self.accepted = np.zeros(DEEPEST, dtype=np.int64)

    def add(self, depths: Ints, accepted: int) -> None:
        """A draft was verified whose tokens lie at these depths: `accepted` of them, on one path, were right."""
        self.drafted += np.bincount(np.minimum(depths, DEEPEST - 1), minlength=DEEPEST)
        self.accepted += np.bincount(np.minimum(np.arange(accepted), DEEPEST - 1), minlength=DEEPEST)


def prune(draft: Draft, sequence: Sequence, budget: int) -> Draft | None:
    """The part of a draft that its constraint allows and the budget covers, no token twice in one place; None when nothing is
    left."""
    kept: list[int] = []
    places: set[tuple[int, int]] = set()
    renumber: dict[int, int] = {-1: -1}
    states = {-1: sequence.constraint}
    parents = parents_of(draft)
    for i, token in enumerate(draft.tokens.tolist()):
        parent = int(parents[i])
        if len(kept) == budget or parent not in renumber or (parent, token) in places:
            continue
        state = states[parent]
        if state is not None:
            state = state.fork()
            try:
                state.advance(token)
            except ValueError:
                continue
        places.add((parent, token))
        renumber[i] = len(kept)
        states[i] = state
        kept.append(i)
    if not kept:
        return None
    tree = np.array([renumber[int(parents[i])] for i in kept], dtype=np.int32)
    chain = bool((tree == np.arange(-1, len(kept) - 1)).all())
    probs = draft.probs[kept] if draft.probs is not None else None
    after = [states[i] for i in kept] if sequence.constraint is not None else None
    return Draft(draft.tokens[kept].astype(np.int32), None if chain else tree, probs, after)


def parents_of(draft: Draft) -> Ints:
    """Parents int32 [k] of a draft, also when it is a plain list."""
    if draft.parents is not None:
        return draft.parents
    return np.arange(-1, len(draft.tokens) - 1, dtype=np.int32)


def depths(draft: Draft) -> Ints:
    """How many drafts each one follows, int32 [k]."""
    out = np.zeros(len(draft.tokens), dtype=np.int32)
    for i, parent in enumerate(parents_of(draft).tolist()):
        out[i] = 0 if parent < 0 else out[parent] + 1
    return out


def rows(span: Span, logits_row: int) -> list[Row]:
    """The draws of a span: after its last known token, then after each drafted one. `logits_row` is the first one's."""
    seq = span.sequence
    out = [Row(seq, logits_row, (), seq.constraint)]
    if span.draft is None:
        return out
    for i, (token, parent) in enumerate(zip(span.draft.tokens.tolist(), parents_of(span.draft).tolist(), strict=True)):
        before = out[parent + 1]
        state = span.draft.states[i] if span.draft.states is not None else None
        out.append(Row(seq, logits_row + 1 + i, (*before.path, token), state))
    return out


def accept(span: Span, drawn: Drawn, first: int) -> tuple[list[int], list[int]]:
    """Walk the tree along the drawn tokens: (indices of the accepted drafts, offsets of the draws to commit).

    `first` is the span's first draw in `drawn`. The draws to commit are one more than the accepted drafts."""
    accepted: list[int] = []
    draws = [0]
    if span.draft is None:
        return accepted, draws
    children: dict[int, list[int]] = {}
    for i, parent in enumerate(parents_of(span.draft).tolist()):
        children.setdefault(parent, []).append(i)
    node = -1
    while True:
        token = drawn.tokens[first + draws[-1]]
        match = [i for i in children.get(node, ()) if span.draft.tokens[i] == token]
        if not match:
            return accepted, draws
        node = match[0]
        accepted.append(node)
        draws.append(node + 1)
