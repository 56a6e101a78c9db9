"""A model small enough to be its own oracle: KV of a token is a hash of the token, its position and all KV it may see.

Any mistake of the books (a wrong slot, a block freed too early, a copy missed, a stale position) changes a hash and with it
every later token. The oracle computes the same hashes from the token list alone, without any engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hasten.engine.attention.base import StatelessAttention
from hasten.engine.batch import Batch
from hasten.engine.clock import Clock, VirtualClock
from hasten.engine.decoding.base import Policies
from hasten.engine.decoding.lossless import LosslessSampler
from hasten.engine.events import EventLog
from hasten.engine.executors.base import StepResult
from hasten.engine.kv.base import Allocator, Reuse, Shift
from hasten.engine.kv.block_groups import BlockGroups
from hasten.engine.kv.block_groups import Options as GroupOptions
from hasten.engine.kv.books import Books
from hasten.engine.kv.free_list import FreeList
from hasten.engine.kv.host import HostTier, Run, Traffic
from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.prefix_tree import PrefixTree
from hasten.engine.ledger import Ledger
from hasten.engine.linking import Linker
from hasten.engine.loop import Engine
from hasten.engine.request import Request, SamplingParams
from hasten.engine.rng import key, mix
from hasten.engine.scheduling.base import Limits
from hasten.engine.scheduling.fcfs import FCFS
from hasten.engine.scheduling.length_limit import LengthLimit
from hasten.engine.scheduling.newest_yields import NewestYields
from hasten.engine.scheduling.newest_yields import Options as ResidencyOptions
from hasten.engine.scheduling.stall_free import Options as BatchingOptions
from hasten.engine.scheduling.stall_free import StallFree
from hasten.kernels import ReferenceKernels
from hasten.kernels.reference import earliness

VOCABULARY = 40
MASK = (1 << 64) - 1


def kv_of(token: int, position: int, seen: int) -> int:
    return mix(mix(token + 1, position), seen)


def logits_of(kv: int) -> np.ndarray:
    return np.random.default_rng(kv & 0xFFFFFFFF).standard_normal(VOCABULARY).astype(np.float32) * 3


class Handle:
    """Done after a few looks; the bytes move only then, those of earlier copies first, so touching them earlier shows."""

    seconds = 0.0
    ends_s = -inf
    """Looking is all it takes."""

    def __init__(self, looks: int, move: Any, before: list[Handle], fail: bool = False) -> None:
        self._looks, self._move, self._fail = looks, move, fail
        self._before = before
        """Copies under way, in the order asked for."""
        before.append(self)

    def done(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def wait(self) -> None:
        while self in self._before:
            first = self._before.pop(0)
            if not first._fail:
                first._move()
        if self._fail:
            raise OSError("the link broke")


class FakeExecutor:
    vocabulary = VOCABULARY

    def __init__(self, blocks: int, block_size: int, host_blocks: int, seed: int = 0) -> None:
        self.size = block_size
        self.kv = [0] * (blocks * block_size)
        self.host = [0] * (host_blocks * block_size)
        self.attention = StatelessAttention()
        self.random = random.Random(seed)
        self.fail_on: set[int] = set()
        """Token ids that make a step fail."""
        self.fail_copies = 0.0
        """Share of copies that fail."""
        self.traffic = Traffic()
        self._under_way: list[Handle] = []
        self.steps = 0

    def submit(self, batch: Batch, taps: frozenset[int] = frozenset()) -> SimpleNamespace:
        self.steps += 1
        if self.fail_on & set(batch.tokens.tolist()):
            raise RuntimeError("this token cannot be computed")
        out = np.zeros((len(batch.logits_rows), VOCABULARY), dtype=np.float32)
        values = [0] * batch.size
        for i in range(len(batch.spans)):
            a, b = batch.span_offsets[i : i + 2].tolist()
            runs = batch.runs[batch.run_offsets[i] : batch.run_offsets[i + 1]].tolist()
            entries = [
                (block * self.size + first + j, position + j) for block, first, count, position in runs for j in range(count)
            ]
            tree = batch.is_tree is not None and batch.is_tree[i]
            own = {slot: j for j, slot in enumerate(batch.slots[a:b].tolist())}
            assert len(own) == b - a, "two tokens of a span share a slot"
            for t in range(a, b):
                position, slot = int(batch.positions[t]), int(batch.slots[t])
                seen = 0
                for other, where in entries:
                    if other == slot:
                        assert where == position, "the view says another position than the span"
                        continue
                    j = own.get(other)
                    if j is not None and tree:
                        assert batch.ancestors is not None
                        visible = bool((int(batch.ancestors[t, j // 64]) >> (j % 64)) & 1)
                    else:
                        visible = where < position
                    if visible:
                        seen = (seen + self.effect(self.kv[other], where, position)) & MASK
                self.kv[slot] = values[t] = self.value(int(batch.tokens[t]), position, seen)
        for row, t in enumerate(batch.logits_rows.tolist()):
            out[row] = logits_of(values[t])
        result = StepResult(torch.from_numpy(out))
        return SimpleNamespace(wait=lambda: result)

    def value(self, token: int, position: int, seen: int) -> int:
        """KV of a token."""
        return kv_of(token, position, seen)

    def effect(self, kv: int, where: int, position: int) -> int:
        """What the entry at `where` adds to `seen` at `position`."""
        return mix(kv, where)

    def turned(self, kv: int, by: int) -> int:
        """KV of the same token `by` positions further on."""
        raise AssertionError("this model's KV is good at its own position only")

    def shift_blocks(self, shifts: Sequence[Shift]) -> None:
        for source, target, came_from, goes_to in shifts:
            held = self.kv[source * self.size : (source + 1) * self.size]
            self.kv[target * self.size : (target + 1) * self.size] = [self.turned(kv, goes_to - came_from) for kv in held]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        for old, new in pairs:
            self.kv[new * self.size : (new + 1) * self.size] = self.kv[old * self.size : (old + 1) * self.size]

    def move_slots(self, source: Sequence[int], target: Sequence[int]) -> None:
        values = [self.kv[slot] for slot in source]
        for slot, value in zip(target, values, strict=True):
            self.kv[slot] = value

    def _moved(self, source: list[int], target: list[int], runs: Sequence[Run], out: bool) -> Handle:
        def move() -> None:
            for block, host, count in runs:
                old, new = (block, host) if out else (host, block)
                target[new * self.size : (new + count) * self.size] = source[old * self.size : (old + count) * self.size]

        self.traffic.count(out, len(runs), sum(count for _, _, count in runs))
        return Handle(self.random.randint(0, 3), move, self._under_way, self.random.random() < self.fail_copies)

    def copy_out(self, runs: Sequence[Run]) -> Handle:
        return self._moved(self.kv, self.host, runs, out=True)

    def copy_in(self, runs: Sequence[Run]) -> Handle:
        return self._moved(self.host, self.kv, runs, out=False)

    def price(self, shape: Any) -> float:
        return 1e-3 * shape.tokens

    def measured(self, shape: Any, seconds: float) -> None:
        pass

    def describe(self) -> Mapping[str, Any]:
        return {"device": "fake"}

    def close(self) -> None:
        pass


def make_engine(
    *,
    blocks: int = 64,
    block_size: int = 8,
    host_blocks: int = 0,
    max_length: int = 200,
    tokens: int = 64,
    rows: int = 16,
    chunk: int = 16,
    reuse: bool = True,
    swap_from: int = 8,
    seed: int = 0,
    eos: frozenset[int] = frozenset(),
    queue_limit: int | None = None,
    patience_s: float | None = None,
    group: int = 0,
    keep_copies: bool = False,
    by_block: bool = False,
    make_reuse: Callable[[Books, FakeExecutor], Reuse] | None = None,
    make_linker: Callable[[Books], Linker] | None = None,
    executor: type[FakeExecutor] = FakeExecutor,
    clock: Clock | None = None,
    **policies: Any,
) -> Engine:
    """An engine over the fake executor; `policies` replace order, batching, residency, lengths, proposer, governor,
    constraint or controller. `group`: blocks of a block group; 0: a free list. `make_reuse`: instead of the prefix tree.
    `make_linker`: what reuses chunks."""
    import threading

    fake = executor(blocks, block_size, host_blocks, seed)

    def placed(count: int) -> Allocator:
        return BlockGroups(count, GroupOptions(group=group)) if group else FreeList(count)

    pool = BlockPool(blocks, block_size, placed(blocks))
    books = Books(pool, PrefixTree(pool) if reuse else None)
    if make_reuse is not None:
        books.reuse = make_reuse(books, fake)
    linker = make_linker(books) if make_linker is not None else None
    books.chunks = linker.store if linker is not None else None
    events, clock = EventLog(), clock if clock is not None else VirtualClock()
    tier = HostTier(host_blocks, block_size, fake, placed(host_blocks), by_block=by_block) if host_blocks else None
    ledger = Ledger(books, tier, fake.attention, events, clock, "fake", keep_copies=keep_copies, linker=linker)
    return Engine(
        executor=fake,
        ledger=ledger,
        lock=threading.RLock(),
        clock=clock,
        events=events,
        order=policies.get("order") or FCFS(),
        batching=policies.get("batching") or StallFree(BatchingOptions(chunk=chunk)),
        residency=policies.get("residency") or NewestYields(ResidencyOptions(swap_from=swap_from)),
        lengths=policies.get("lengths") or LengthLimit(),
        decoding=Policies(
            LosslessSampler(ReferenceKernels(), VOCABULARY, eos),
            constraint=policies.get("constraint"),
            proposer=policies.get("proposer"),
            governor=policies.get("governor"),
            controller=policies.get("controller"),
        ),
        limits=Limits(tokens, rows),
        max_length=max_length,
        eos=eos,
        queue_limit=queue_limit,
        patience_s=patience_s,
    )


def alone(request: Request, max_length: int = 200, eos: frozenset[int] = frozenset()) -> list[list[int]]:
    """What the request must give, from its tokens alone; one list a sequence."""
    sampling = request.sampling
    seed = sampling.seed
    answers = []
    for index in range(sampling.n):
        first = mix(seed or 0, 0)
        own = first if index == 0 else mix(first, index)
        tokens = request.prompt.tolist()
        chain: list[int] = []
        seen = 0
        output: list[int] = []
        while True:
            for position in range(len(chain), len(tokens)):
                chain.append(kv_of(tokens[position], position, seen))
                seen = (seen + mix(chain[-1], position)) & MASK
            token = _draw(logits_of(chain[-1]), sampling, own, len(output))
            tokens.append(token)
            output.append(token)
            limit = sampling.max_tokens is not None and len(output) >= sampling.max_tokens
            if token in eos or limit or len(tokens) >= max_length:
                break
        answers.append(output)
    return answers


def _draw(logits: np.ndarray, sampling: SamplingParams, seed: int, number: int) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    # A race: each token arrives at an exponential time of its own, divided by its probability.
    early = earliness(torch.tensor([key(seed, number)]), len(logits))[0].numpy()
    return int(np.argmax(logits.astype(np.float64) / sampling.temperature + early))
