"""Chunks beside each other, in the hash model: every request gets what its tokens give so, whatever was found, and no block is
lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.engine.fake import MASK, _draw, logits_of, make_engine
from tests.kv.chunked import MAX_LENGTH, TURN, RelativeExecutor
from tests.kv.marked import marked
from tests.kv.test_linking import Guesser, gather

from hasten.engine.events import Kind
from hasten.engine.kv.books import Books
from hasten.engine.kv.chunks import ChunkStore
from hasten.engine.kv.parallel import ParallelLinker, positions_beside, positions_saved
from hasten.engine.kv.plain_chunks import PlainChunks
from hasten.engine.kv.retention import LRU
from hasten.engine.kv.view import View, beside
from hasten.engine.loop import Engine
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import BadRequest, Request
from hasten.engine.rng import mix
from hasten.engine.sequence import Sequence, State

DOCUMENTS = [[(7 * d + 3 * i + i * i) % 40 for i in range(size)] for d, size in enumerate((1, 5, 8, 9, 16, 21, 30))]


def request(id: str, *pieces: int | list[int], **sampling: Any) -> Request:
    return marked(id, DOCUMENTS, *pieces, **{"temperature": 0.0, "seed": 1, "max_tokens": 6, **sampling})


class Watched(ParallelLinker):
    """`taken`: whether the chunks of a request were."""

    taken: dict[str, bool]

    def admit(self, seq: Sequence) -> None:
        super().admit(seq)
        self.taken[seq.request.id] = bool(seq.chunks)


def engine_of(*, share: float = 0.5, max_length: int = MAX_LENGTH, **settings: Any) -> Engine:
    def make_linker(books: Books) -> Watched:
        store = ChunkStore(books.pool, LRU(), share)
        linker = Watched(books, store, PlainChunks("none"), lambda tokens: 1e-3 * tokens, max_length)
        linker.taken = {}
        return linker

    return make_engine(make_linker=make_linker, executor=RelativeExecutor, max_length=max_length, **settings)


def linker_of(engine: Engine) -> Watched:
    linker = engine.ledger.linker
    assert isinstance(linker, Watched)
    return linker


def expected(request: Request, parallel: bool = True, max_length: int = MAX_LENGTH) -> list[list[int]]:
    """One list of tokens a sequence. Of a token: its position, the chunk it is in (0: the prefix, -1: none), its hash."""
    sampling, tokens = request.sampling, request.prompt.tolist()
    chunks = request.chunks if parallel else ()
    front = chunks[0][0] if chunks else len(tokens)
    behind = front + max((stop - start for start, stop in chunks), default=0)
    known: list[tuple[int, int, int]] = []

    def add(token: int, position: int, part: int) -> None:
        seen = 0
        for where, of, kv in known:
            if where < position and (part == -1 or of in (0, part)):
                seen = (seen + mix(kv, position - where)) & MASK
        known.append((position, part, mix(token + 1, seen)))

    for i in range(front):
        add(tokens[i], i, 0 if chunks else -1)
    for number, (start, stop) in enumerate(chunks, 1):
        for i in range(start, stop):
            add(tokens[i], front + i - start, number)
    others = [i for i in range(front, len(tokens)) if not any(start <= i < stop for start, stop in chunks)]
    for place, i in enumerate(others):
        add(tokens[i], behind + place, -1)
    answers = []
    prompt = list(known)
    for index in range(sampling.n):
        first = mix(sampling.seed or 0, 0)
        own = first if index == 0 else mix(first, index)
        said: list[int] = []
        known[:] = prompt
        while True:
            position, _, kv = known[-1]
            said.append(_draw(logits_of((kv + position * TURN) & MASK), sampling, own, len(said)))
            if len(said) == sampling.max_tokens or position + 2 >= max_length:
                break
            add(said[-1], position + 1, -1)
        answers.append(said)
    return answers


def run(engine: Engine, *requests: Request) -> dict[tuple[str, int], list[int]]:
    for one in requests:
        engine.add(one)
    out: list[TokenDelta] = []
    steps = 0
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
        steps += 1
        assert steps < 5000, "the engine does not come to an end"
    return gather(out)


def check(engine: Engine, one: Request, got: dict[tuple[str, int], list[int]]) -> None:
    assert linker_of(engine).taken.get(one.id, not one.chunks), "memory was to suffice"
    assert [got[(one.id, i)] for i in range(one.sampling.n)] == expected(one)


def all_free(engine: Engine) -> None:
    pool = engine.ledger.books.pool
    assert pool.available == pool.blocks, "blocks are still held after the last request"
    linker_of(engine).store.clear()
    engine.ledger.audit()
    if engine.ledger.books.reuse is not None:
        engine.ledger.books.reuse.evict(pool.blocks)
    assert pool.free == pool.blocks


@pytest.mark.parametrize("chunk", [4, 64])
def test_chunks_are_found_behind_the_same_prefix_only(chunk: int) -> None:
    engine = engine_of(chunk=chunk, tokens=chunk, blocks=128)
    one = request("a", [1, 2, 3], 4, [9], 6, [4, 5])
    check(engine, one, run(engine, one))
    assert (linker_of(engine).computed, linker_of(engine).linked) == (2, 0)
    for other in (request("b", [1, 2, 3], 6, 4, [8] * 11), request("c", [1, 2, 3], 4, [1], 6, 4, [2])):
        check(engine, other, run(engine, other))
    assert (linker_of(engine).computed, linker_of(engine).linked) == (2, 5)
    for elsewhere in (request("d", [1, 2, 4], 4, [7]), request("e", 4, 6, [7])):
        check(engine, elsewhere, run(engine, elsewhere))
    assert (linker_of(engine).computed, linker_of(engine).linked) == (5, 5)
    assert not engine.ledger.books.shifts
    all_free(engine)


def test_the_second_time_only_what_is_outside_the_chunks_is_computed() -> None:
    engine = engine_of(tokens=128, chunk=128)
    run(engine, request("a", [3] * 12, 5, [1], 6, [2, 3], max_tokens=1))
    scheduled, steps = engine.events.sums[Kind.SCHEDULED], engine.executor.steps  # type: ignore[attr-defined]
    assert scheduled == 12 + 21 + 30 + 3 and steps == 2, "the prefix and the chunks together, then the rest"
    free = engine.ledger.books.pool.free
    run(engine, request("b", [3] * 12, 6, 5, [7], max_tokens=1))
    assert engine.events.sums[Kind.SCHEDULED] == scheduled + 4 + 1 and engine.executor.steps == steps + 1  # type: ignore[attr-defined]
    assert engine.events.sums[Kind.REUSED] == 8 + 30 + 21
    assert engine.ledger.books.pool.free == free, "no block is copied"


@pytest.mark.parametrize("lead", [8, 10, 16])
def test_only_the_prefix_is_offered_to_others(lead: int) -> None:
    engine = engine_of()
    one = request("a", [1] * lead, 4, [2] * 20)
    plain = Request(id="b", prompt=one.prompt, sampling=one.sampling)
    got = run(engine, one)
    reused = engine.events.sums[Kind.REUSED]
    got |= run(engine, plain)
    check(engine, one, got)
    assert got[("b", 0)] == expected(plain, parallel=False)[0]
    assert engine.events.sums[Kind.REUSED] - reused == lead // 8 * 8
    all_free(engine)


def test_prompts_longer_than_the_context_fit_if_their_positions_do() -> None:
    engine = engine_of(max_length=64, blocks=40)
    one = request("a", [1] * 5, 6, 5, 6, [3, 3], 4, [2], max_tokens=40)
    assert len(one.prompt) > 64
    for _ in range(2):
        got = run(engine, one)
        assert len(got[("a", 0)]) == 64 - (5 + 30 + 3)
        assert got[("a", 0)] == expected(one, max_length=64)[0]
    with pytest.raises(BadRequest, match="positions"):
        engine.add(request("b", [1] * 34, 6, 6, [2]))
    with pytest.raises(BadRequest, match="the prompt has"):
        engine.add(request("c", [1] * 5, 6, 6, [2], max_tokens=None, prompt_logprobs=1))
    small = engine_of(max_length=64, blocks=9)
    with pytest.raises(BadRequest, match="the prompt has"):
        small.add(request("d", [1] * 5, 6, 6, [2]))
    all_free(engine)


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("fork", [False, True])
def test_a_prompt_dropped_or_forked_in_the_middle_goes_on(steps: int, fork: bool) -> None:
    engine = engine_of(tokens=8, chunk=8)
    one = request("a", [1] * 17, 4, [2], 5, [3, 4, 5] * 4)
    engine.add(one)
    out: list[TokenDelta] = []
    for _ in range(steps):
        out += engine.step()
        engine.ledger.audit()
    (seq,) = engine.ledger.in_state(State.RUNNING)
    assert seq.output_length == 0
    if fork:
        engine.control.fork(seq, 1)
    else:
        assert engine.ledger.drop(seq)
    engine.ledger.audit()
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    got = gather(out)
    assert list(got.values()) == expected(one) * (2 if fork else 1)
    all_free(engine)


def test_a_plan_counts_the_blocks_that_are_taken() -> None:
    engine = engine_of(tokens=8, chunk=8)
    pool = engine.ledger.books.pool
    run(engine, request("z", [1] * 9, 5, [3]))
    engine.add(request("a", [1] * 9, 4, [2], 5, [3, 4], max_tokens=20))
    engine.step()
    (seq,) = engine.ledger.in_state(State.RUNNING)
    while engine.unfinished and seq.state is State.RUNNING:
        needed, free = engine.ledger.blocks_needed(seq, min(8, seq.remaining)), pool.free
        engine.step()
        if seq.state is State.RUNNING:
            assert free - pool.free == needed


def test_joined_caches_are_refused() -> None:
    engine = engine_of()
    engine.add(request("a", [1], 4, 5, [2], n=2, temperature=1.0, max_tokens=9))
    while not (seqs := [s for s in engine.ledger.in_state(State.RUNNING) if s.output_length]):
        engine.step()
    with pytest.raises(ValueError, match="beside each other"):
        engine.control.join(seqs, [3])


pieces = st.one_of(
    st.integers(0, len(DOCUMENTS) - 1),
    st.integers(0, len(DOCUMENTS) - 1),
    st.lists(st.integers(0, 39), min_size=1, max_size=12),
)
jobs = st.tuples(
    st.sampled_from([[], [1] * 4, [1] * 9, [2] * 20]),
    st.lists(pieces, max_size=6),
    st.lists(st.integers(0, 39), min_size=1, max_size=9),
    st.integers(1, 14),
    st.sampled_from([1, 1, 1, 2, 3]),
    st.booleans(),
    st.integers(0, 6),
    st.sampled_from([None, None, None, 1, 4, 9]),
)


@settings(
    max_examples=40,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    work=st.lists(jobs, min_size=1, max_size=6),
    blocks=st.integers(14, 60),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    host=st.sampled_from([0, 8, 40]),
    shape=st.tuples(st.integers(8, 70), st.integers(1, 8), st.integers(1, 40)),
    reuse=st.booleans(),
    keep_copies=st.booleans(),
    fail_copies=st.sampled_from([0.0, 0.3]),
    drafts=st.booleans(),
    max_length=st.sampled_from([60, MAX_LENGTH]),
)
def test_any_schedule_gives_what_each_request_gets_alone(
    work: list[Any],
    blocks: int,
    share: float,
    host: int,
    shape: tuple[int, int, int],
    reuse: bool,
    keep_copies: bool,
    fail_copies: float,
    drafts: bool,
    max_length: int,
) -> None:
    tokens, rows, chunk = shape
    guesser = Guesser(blocks)
    engine = engine_of(
        share=share, blocks=blocks, host_blocks=host, tokens=tokens, rows=rows, chunk=chunk, reuse=reuse,
        keep_copies=keep_copies, max_length=max_length, proposer=guesser if drafts else None,
    )  # fmt: skip
    executor: Any = engine.executor
    executor.fail_copies = fail_copies
    made: list[Request] = []
    cancelled: set[str] = set()
    cancel_at: dict[str, int] = {}
    out: list[TokenDelta] = []

    def step() -> None:
        out.extend(engine.step())
        engine.ledger.audit()
        for id, at in cancel_at.items():
            if executor.steps >= at and id not in cancelled:
                cancelled.add(id)
                engine.cancel(id)

    for i, (lead, parts, question, count, n, hot, wait, cancel) in enumerate(work):
        front = [lead] if lead else []
        one = request(f"r{i}", *front, *parts, question, max_tokens=count, n=n, temperature=0.8 if hot else 0.0, seed=i)
        guesser.right[one.id] = expected(one, max_length=max_length) if drafts else []
        try:
            engine.add(one)
        except BadRequest:
            continue  # longer than the context, or than memory
        made.append(one)
        if cancel is not None:
            cancel_at[one.id] = executor.steps + cancel
        for _ in range(wait):
            step()
    steps = 0
    while engine.unfinished:
        step()
        steps += 1
        assert steps < 5000, "the engine does not come to an end"
    got = gather(out)
    for one in made:
        whole = expected(one, linker_of(engine).taken.get(one.id, False), max_length)
        for i in range(one.sampling.n):
            mine = got.get((one.id, i), [])
            assert mine == whole[i] or (one.id in cancelled and mine == whole[i][: len(mine)])
    all_free(engine)


@given(
    pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=8),
    last=st.integers(1, 9),
)
def test_positions(pieces: list[tuple[bool, int]], last: int) -> None:
    chunks, length = [], 0
    for is_chunk, size in pieces:
        if is_chunk:
            chunks.append((length, length + size))
        length += size
    length += last
    if not chunks:
        return
    at, behind = positions_beside(length, chunks)
    front = chunks[0][0]
    assert at[-1] + 1 == length - positions_saved(chunks)
    assert at[:front].tolist() == list(range(front))
    for start, stop in chunks:
        assert at[start:stop].tolist() == list(range(front, front + stop - start))
    rest = np.delete(at[front:], [i - front for start, stop in chunks for i in range(start, stop)])
    assert rest.tolist() == list(range(behind, behind + len(rest))) and behind == front + max(b - a for a, b in chunks)


def test_what_a_query_reads_begins_with_the_contexts() -> None:
    view = View()
    for block, count, position in (
        (4, 8, 0),
        (5, 2, 8),
        (9, 8, 10),
        (3, 4, 18),
        (7, 1, 22),
        (6, 5, 10),
        (1, 8, 23),
        (2, 3, 31),
    ):
        view.add_run(block, 0, count, position)
    runs, contexts = beside(view.runs, 10, 22, 30)
    assert runs[:, 0].tolist() == [9, 3, 6, 4, 5, 7, 1] and contexts == 3
    runs, contexts = beside(view.runs, 10, 22, 25)
    assert runs.tolist()[-1] == [1, 0, 3, 23] and runs[:, 2].sum() == 8 + 4 + 5 + 8 + 2 + 1 + 3
    runs, contexts = beside(view.runs, 10, 22, 5)
    assert runs.tolist() == [[4, 0, 6, 0]] and contexts == 0
    assert view.runs[6, 2] == 8, "the view itself stays as it is"
