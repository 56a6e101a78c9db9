"""Steps whose sequences share prefixes, made without computing any prompt: views over a KV pool of made-up contents, for the
claim `flashforge`. What a step takes does not depend on what the keys are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hasten.engine.batch import Batch
    from hasten.kernels import ViewIndex

SIZE = 32
"""Tokens of a block."""


@dataclass(frozen=True, slots=True)
class Shared:
    """One decoding step: `runs` int32 [R, 4] and `offsets` int32 [S + 1] of the views (as in `ViewIndex`), each of `lengths`
    tokens, the decoded one last; `blocks`: how many they take."""

    runs: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    blocks: int

    def index(self) -> ViewIndex:
        """A fresh index: what a step builds."""
        from hasten.kernels import ViewIndex

        rows = len(self.lengths)
        return ViewIndex.from_numpy(np.arange(rows + 1), self.lengths - 1, self.runs, self.offsets)

    def batch(self, vocabulary: int) -> Batch:
        """The step as an executor takes it."""
        from hasten.engine.batch import Batch

        rows = len(self.lengths)
        last = self.runs[self.offsets[1:] - 1]
        one = {"sequence": None, "count": 1, "logits": (0,), "parents": None, "measure": None}
        spans: list[Any] = [SimpleNamespace(**one) for _ in range(rows)]
        return Batch(
            spans,
            (np.arange(rows) * 97 + 1) % vocabulary,
            (self.lengths - 1).astype(np.int32),
            np.zeros(rows, dtype=np.int32),
            (last[:, 0] * SIZE + last[:, 1] + last[:, 2] - 1).astype(np.int64),
            np.arange(rows + 1, dtype=np.int32),
            self.runs,
            self.offsets,
            np.arange(rows),
        )

    @property
    def entries(self) -> int:
        """Keys of all views; `blocks` says how many there are."""
        return int(self.lengths.sum())


def shared(paths: Sequence[Sequence[Hashable]], tokens: Mapping[Hashable, int], private: Sequence[int]) -> Shared:
    """A step of one sequence a path: the stretches that the path names, of `tokens` each in blocks of their own, then so many
    private tokens."""
    held: dict[Hashable, list[list[int]]] = {}
    runs: list[list[int]] = []
    offsets, lengths, blocks = [0], [], 0

    def fill(count: int) -> list[list[int]]:
        nonlocal blocks
        first, blocks = blocks, blocks + -(-count // SIZE)
        return [[block, 0, min(SIZE, count - SIZE * i)] for i, block in enumerate(range(first, blocks))]

    for path, own in zip(paths, private, strict=True):
        at = 0
        for stretch in (*path, None):
            if stretch is None:
                mine = fill(own)
            elif stretch not in held:
                mine = held[stretch] = fill(tokens[stretch])
            else:
                mine = held[stretch]
            for block, slot, count in mine:
                runs.append([block, slot, count, at])
                at += count
        offsets.append(len(runs))
        lengths.append(at)
    return Shared(np.array(runs, dtype=np.int32), np.array(offsets, dtype=np.int32), np.array(lengths), blocks)


def common_prompt(rng: np.random.Generator, requests: int = 32, prefix: int = 8192) -> Shared:
    """The entry's first case: one shared prefix, 128 to 512 private tokens."""
    return shared([["prompt"]] * requests, {"prompt": prefix}, rng.integers(128, 513, requests).tolist())


def skewed_tree(rng: np.random.Generator, requests: int = 32) -> Shared:
    """Its second: three levels of shared nodes, half of the requests below the longest of the second, a quarter below the
    next, three quarters of each below the longer one of the third."""
    tokens: dict[Hashable, int] = {"root": 6144}
    paths = []
    for number in range(requests):
        branch = 0 if number < requests // 2 else 1 if number < 3 * requests // 4 else 2
        leaf = number % 4 != 0
        tokens[branch] = 2048 >> branch
        tokens[branch, leaf] = 1024 if leaf else 256
        paths.append(["root", branch, (branch, leaf)])
    return shared(paths, tokens, rng.integers(128, 513, requests).tolist())


def apart(rng: np.random.Generator, requests: int = 32, length: int = 512) -> Shared:
    """Nothing shared."""
    return shared([[]] * requests, {}, rng.integers(length // 2, 3 * length // 2, requests).tolist())


LONGEST = 32768
"""Tokens of the trace's requests that are used."""


def of_trace(first: int, requests: int, scale: int, answers: int = 1) -> Shared:
    """Requests number `first` and following of Mooncake's conversation trace but the longest, all decoding at once, each
    prompt in as many `answers` at a time. A block of the trace (512 tokens) becomes 512 / `scale` tokens; of each answer half
    is there."""
    from hasten.lab.workloads.data import find
    from hasten.lab.workloads.mooncake import BLOCK_TOKENS, load

    usable = [one for one in load(find("mooncake-conversation.jsonl")) if one.prompt_tokens <= LONGEST]
    some = usable[first : first + requests]
    paths: list[list[Hashable]] = []
    private = []
    tokens: dict[Hashable, int] = {}
    for request in some:
        whole = request.prompt_tokens // BLOCK_TOKENS
        rest = (request.prompt_tokens - whole * BLOCK_TOKENS) // scale
        path: list[Hashable] = list(request.blocks[:whole])
        tokens.update(dict.fromkeys(path, BLOCK_TOKENS // scale))
        if answers > 1 and rest:
            path.append(("rest", request.id))
            tokens["rest", request.id] = rest
            rest = 0
        for _ in range(answers):
            paths.append(path)
            private.append(max(1, rest + request.output_tokens // (2 * scale)))
    return shared(paths, tokens, private)
