"""Chunks linked at any position, in the hash model: every request gets what its tokens and the repair say, whatever was found,
and no block is lost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.kv.chunked import MAX_LENGTH, chunk_engine, expected, linker_of
from tests.kv.marked import marked

from hasten.engine.events import Kind
from hasten.engine.kv.base import Linked, Repair
from hasten.engine.kv.chunks import ChunkStore
from hasten.engine.kv.mpic import MPIC
from hasten.engine.kv.plain_chunks import PlainChunks
from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.retention import LRU, Facts
from hasten.engine.loop import Engine
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import BadRequest, Request, Segment
from hasten.engine.sequence import Draft, State

DOCUMENTS = [[(7 * d + 3 * i + i * i) % 40 for i in range(size)] for d, size in enumerate((1, 5, 8, 9, 16, 21, 30))]
REPAIRS: dict[str, Repair] = {
    "none": PlainChunks("none"),
    "all": PlainChunks("all"),
    "random-3": PlainChunks("random", 3),
    "mpic-3": MPIC(3),
    "mpic-8": MPIC(8),
}


def request(id: str, *pieces: int | list[int], **sampling: Any) -> Request:
    return marked(id, DOCUMENTS, *pieces, **{"temperature": 0.0, "seed": 1, "max_tokens": 6, **sampling})


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


def gather(deltas: list[TokenDelta]) -> dict[tuple[str, int], list[int]]:
    got: dict[tuple[str, int], list[int]] = {}
    for delta in deltas:
        assert delta.error is None, delta.error
        got.setdefault((delta.request_id, delta.index), []).extend(delta.tokens)
    return got


def check(engine: Engine, repair: Repair, one: Request, got: dict[tuple[str, int], list[int]]) -> None:
    assert linker_of(engine).taken.get(one.id, not one.chunks), "memory was to suffice"
    assert [got[(one.id, i)] for i in range(one.sampling.n)] == expected(one, repair)


def all_free(engine: Engine) -> None:
    pool = engine.ledger.books.pool
    assert pool.available == pool.blocks, "blocks are still held after the last request"
    linker_of(engine).store.clear()
    engine.ledger.audit()
    if engine.ledger.books.reuse is not None:
        engine.ledger.books.reuse.evict(pool.blocks)
    assert pool.free == pool.blocks


@pytest.mark.parametrize("repair", REPAIRS.values(), ids=REPAIRS)
@pytest.mark.parametrize("chunk", [4, 64])
def test_chunks_are_found_at_other_positions(repair: Repair, chunk: int) -> None:
    engine = chunk_engine(repair, chunk=chunk, tokens=chunk)
    one = request("a", [1, 2, 3], 4, [9], 6, [4, 5])
    check(engine, repair, one, run(engine, one))
    assert linker_of(engine).computed == 2 and linker_of(engine).linked == 0
    computed = engine.events.sums[Kind.SCHEDULED]
    # In another order, one next to the other, one of them twice, and with text of other lengths around.
    for other in (request("b", 6, 4, [8] * 11), request("c", [5] * 9, 4, [1], 6, 4, [2]), request("d", [1, 2, 3], 4, [7])):
        check(engine, repair, other, run(engine, other))
    assert linker_of(engine).computed == 2 and linker_of(engine).linked == 6
    assert engine.events.counts[Kind.REUSED] == (0 if repair is REPAIRS["all"] else 3)
    assert engine.events.sums[Kind.SCHEDULED] > computed
    all_free(engine)


def test_the_second_time_only_what_the_repair_wants_is_computed() -> None:
    repair = MPIC(3)
    engine = chunk_engine(repair)
    run(engine, request("a", 5, [1], 6, [2, 3], max_tokens=1))
    assert engine.events.sums[Kind.SCHEDULED] == 21 + 30 + (3 + 1) + (3 + 2), "each chunk by itself, then the rest"
    run(engine, request("b", [4, 5], 6, 5, [7], max_tokens=1))
    assert engine.events.sums[Kind.SCHEDULED] == 60 + (2 + 3 + 3 + 1)
    assert engine.events.sums[Kind.REUSED] == 30 + 21 - 6


def test_blocks_are_shared_where_nothing_of_them_changes() -> None:
    engine = chunk_engine(PlainChunks("none"), reuse=False)
    pool = engine.ledger.books.pool
    run(engine, request("a", [1] * 8, 6, [3], max_tokens=1))
    free = pool.free
    for id, lead, own in (("same place", [2] * 8, 2), ("other place", [2] * 7, 6)):
        engine.add(request(id, lead, 6, [3], max_tokens=1))
        with engine._lock:
            engine._inbox.empty_into(engine.ledger)
            (seq,) = engine.ledger.in_state(State.WAITING)
            engine.ledger.open(seq)
            assert engine.ledger.blocks_needed(seq, seq.remaining) == own
            assert pool.free == free, "looking up takes nothing"
            engine.ledger.close_unplanned()
        engine.ledger.audit()
        run(engine)
    assert pool.free == free


def test_a_cold_chunk_is_whole_before_the_first_token_is_written_anew() -> None:
    """What is kept is the chunk as it was computed by itself, though the sequence goes on to write into it."""
    repair = MPIC(8)
    engine = chunk_engine(repair, tokens=7, chunk=7)
    one, other = request("a", [1], 6, 5, [2], n=2, temperature=0.9), request("b", [1, 1], 5, 6, [2])
    got = run(engine, one, other)
    check(engine, repair, one, got)
    check(engine, repair, other, got)
    again = request("c", [3], 5, [3], 6, [3])
    check(engine, repair, again, run(engine, again))
    all_free(engine)


def test_tenants_and_salts_share_nothing() -> None:
    engine = chunk_engine(PlainChunks("none"))
    base = request("a", 6, [1])
    for number, changes in enumerate(({}, {"tenant": "x"}, {"cache_salt": "y"}, {"tenant": "x", "cache_salt": "y"})):
        one = Request(id=f"r{number}", prompt=base.prompt, sampling=base.sampling, chunks=base.chunks, **changes)
        check(engine, PlainChunks("none"), one, run(engine, one))
        assert linker_of(engine).computed == number + 1 and linker_of(engine).linked == 0
    run(engine, Request(id="again", prompt=base.prompt, sampling=base.sampling, chunks=base.chunks, tenant="x"))
    assert linker_of(engine).linked == 1


@pytest.mark.parametrize("lead", [8, 10, 16])
def test_requests_without_chunks_never_meet_what_was_computed_by_itself(lead: int) -> None:
    repair = PlainChunks("none")
    engine = chunk_engine(repair)
    marked = request("a", [1] * lead, 4, [2] * 20)
    plain = Request(id="b", prompt=marked.prompt, sampling=marked.sampling)
    run(engine, request("elsewhere", [3] * 5, 4, [2]))  # so what is linked now is a copy, which no cache holds
    got = run(engine, marked)
    reused = engine.events.sums[Kind.REUSED]
    got |= run(engine, plain)
    check(engine, repair, marked, got)
    assert got[("b", 0)] == expected(plain, None)[0] != got[("a", 0)]
    reused = engine.events.sums[Kind.REUSED] - reused
    assert reused == lead // 8 * 8, "what stands before the chunk is the same for both"
    all_free(engine)


def test_the_store_loses_what_was_used_longest_ago() -> None:
    pool = BlockPool(20, 8)
    store = ChunkStore(pool, LRU(), share=0.4)
    blocks = {name: pool.take(3) for name in (b"a", b"b", b"c")}
    for name in (b"a", b"b"):
        assert store.add(name, 0, blocks[name], Facts(0, 3, 1.0))
        pool.drop(blocks[name])
    assert not store.add(b"a", 0, blocks[b"c"], Facts(0, 3, 1.0)), "there is one of this name"
    assert not store.add(b"d", 0, list(range(9)), Facts(0, 9, 1.0)), "that is more than all of its share"
    store.used(store.get(b"a"))  # type: ignore[arg-type]
    assert store.exceeds and pool.evictable == 6
    assert store.add(b"c", 5, blocks[b"c"], Facts(0, 3, 1.0)) and b"b" not in store and b"a" in store
    pool.drop(blocks[b"c"])
    assert store.gone == 1 and pool.free == 14
    store.audit()
    # Of a chunk that is read in part, the rest can be had; of one that is read whole, nothing.
    pool.share(blocks[b"a"][:1])
    pool.share(blocks[b"c"])
    assert store.evict(6) == 2 and list(store) == [store.get(b"c")]
    assert not pool.is_cached(blocks[b"a"][0]) and pool.refs[blocks[b"a"][0]] == 1
    pool.drop([blocks[b"a"][0], *blocks[b"c"]])
    assert store.evict(1) == 3 and pool.free == 20
    store.audit()
    pool.audit()


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_prompt_dropped_in_the_middle_is_begun_again_with_what_is_there(steps: int) -> None:
    repair = MPIC(3)
    engine = chunk_engine(repair, tokens=8, chunk=8)
    one = request("a", [1] * 17, 4, [2], 5, [3])
    engine.add(one)
    out: list[TokenDelta] = []
    for _ in range(steps):
        out += engine.step()
    (seq,) = engine.ledger.in_state(State.RUNNING)
    assert engine.ledger.drop(seq)
    engine.ledger.audit()
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    check(engine, repair, one, gather(out))
    assert linker_of(engine).computed == 2 and linker_of(engine).linked == (0 if steps < 2 else 1 if steps < 5 else 2)
    all_free(engine)


@pytest.mark.parametrize("repair", REPAIRS.values(), ids=REPAIRS)
def test_a_plan_counts_the_blocks_that_are_taken(repair: Repair) -> None:
    engine = chunk_engine(repair, tokens=8, chunk=8)
    pool = engine.ledger.books.pool
    engine.add(request("a", [1] * 9, 4, [2], 5, [3, 4], max_tokens=20))
    engine.step()
    (seq,) = engine.ledger.in_state(State.RUNNING)
    needed, taken = [], []
    while engine.unfinished and seq.state is State.RUNNING:
        needed.append(engine.ledger.blocks_needed(seq, min(8, seq.remaining)))
        free = pool.free
        engine.step()
        engine.ledger.audit()
        if seq.state is State.RUNNING:
            taken.append(free - pool.free)
            assert taken[-1] <= needed[-1]
    assert sum(taken) >= (2 if repair is REPAIRS["none"] else 4), "blocks that the store holds are copied, and the answer grows"
    assert sum(needed) <= sum(taken) + 2, "a step that ends with the chunks may have been planned to go on"


def test_a_view_given_up_before_its_blocks_were_turned_is_not_written() -> None:
    engine = chunk_engine(PlainChunks("none"), host_blocks=16)
    run(engine, request("a", 6, [1]))
    engine.add(request("b", [2], 6, [1]))
    with engine._lock:
        engine._inbox.empty_into(engine.ledger)
        plan = engine._planner.plan()
        engine._spans.make(plan, None)
        assert len(engine.ledger.books.shifts) == 4
        (seq,) = engine.ledger.in_state(State.RUNNING)
        assert not engine.ledger.swap_out(seq)
        assert engine.ledger.drop(seq)
    engine.ledger.audit()
    assert not engine.ledger.books.shifts
    run(engine)
    all_free(engine)


def test_scores_of_a_prompt_are_those_of_its_tokens() -> None:
    """Who asks for them wants every token's logits: nothing is reused."""
    engine = chunk_engine(PlainChunks("none"))
    one = request("a", [1], 6, [2], prompt_logprobs=1)
    assert run(engine, one)[("a", 0)] == expected(one, None)[0]
    assert linker_of(engine).computed == 0


def test_a_repair_that_fails_has_everything_computed() -> None:
    class Broken:
        def anew(self, chunks: Any) -> list[tuple[int, int]]:
            raise RuntimeError("no idea")

    engine = chunk_engine(Broken())
    one = request("a", [1], 6, 5, [2])
    for id in ("a", "b"):
        one = request(id, [1], 6, 5, [2])
        assert run(engine, one)[(id, 0)] == expected(one, None)[0]


def test_a_step_that_fails_ends_the_request_and_leaks_nothing() -> None:
    repair = PlainChunks("none")
    engine = chunk_engine(repair)
    executor: Any = engine.executor
    executor.fail_on = {DOCUMENTS[5][4]} - set(DOCUMENTS[4])
    assert executor.fail_on and not executor.fail_on & {1, 2}
    good, bad = request("good", [1], 4, [2]), request("bad", [1], 4, 5, 6, [2])
    for one in (bad, good):
        engine.add(one)
    ends = {}
    tokens: list[int] = []
    while engine.unfinished:
        for delta in engine.step():
            if delta.request_id == "good":
                tokens += delta.tokens
            ends[delta.request_id] = delta.finish or ends.get(delta.request_id)
        engine.ledger.audit()
    assert ends["bad"] == "error"
    assert ends["good"] == "length" and tokens == expected(good, repair)[0]
    all_free(engine)


def test_memory_too_short_for_chunks_is_enough_for_the_prompt() -> None:
    repair = PlainChunks("none")
    engine = chunk_engine(repair, blocks=8, max_length=64)
    one = request("a", [1], 6, [2])
    got = run(engine, one)
    assert not linker_of(engine).taken["a"]
    assert linker_of(engine).counts()["chunk_prompts_left"] == 1
    assert got[("a", 0)] == expected(one, None)[0]


@pytest.mark.parametrize("repair", REPAIRS.values(), ids=REPAIRS)
@pytest.mark.parametrize("steps", range(1, 6))
def test_a_fork_in_the_middle_of_the_prompt_goes_on_from_there(repair: Repair, steps: int) -> None:
    engine = chunk_engine(repair, tokens=8, chunk=8)
    run(engine, request("a", 4, [1]))
    one = request("b", [2], 4, [3, 1], 6, 2, [4])
    engine.add(one)
    out: list[TokenDelta] = []
    for _ in range(steps):
        out += engine.step()
        engine.ledger.audit()
    (seq,) = engine.ledger.in_state(State.RUNNING)
    assert seq.output_length == 0
    engine.control.fork(seq, 1)
    engine.ledger.audit()
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    got = gather(out)
    assert got[("b", 0)] == got[("b", 1)] == expected(one, repair)[0]
    all_free(engine)


class Guesser:
    """Drafts what is to come, but for a few tokens."""

    def __init__(self, seed: int) -> None:
        self.right: dict[str, list[list[int]]] = {}
        self._random = random.Random(seed)

    def lookahead(self, sequence: Any) -> int:
        return 3

    def propose(self, sequences: Sequence[Any], budgets: Sequence[int], last: Any) -> list[Draft | None]:
        return [self._draft(seq, budget) for seq, budget in zip(sequences, budgets, strict=True)]

    def _draft(self, seq: Any, budget: int) -> Draft | None:
        coming = self.right[seq.request.id][seq.index][seq.output_length :][:budget]
        guesses = [token if self._random.random() < 0.7 else self._random.randrange(40) for token in coming]
        return Draft(np.array(guesses, dtype=np.int32)) if guesses else None


pieces = st.one_of(
    st.integers(0, len(DOCUMENTS) - 1),
    st.lists(st.integers(0, 39), min_size=1, max_size=12),
    st.builds(lambda k: [i % 11 for i in range(k)], st.integers(1, 20)),
)
jobs = st.tuples(
    st.lists(pieces, max_size=5),
    st.lists(st.integers(0, 39), min_size=1, max_size=9),
    st.integers(1, 14),
    st.sampled_from([1, 1, 1, 2, 3]),
    st.booleans(),
    st.integers(0, 6),
    st.sampled_from([None, None, None, 1, 4, 9]),
)


@settings(
    max_examples=60,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    work=st.lists(jobs, min_size=1, max_size=8),
    repair=st.sampled_from(sorted(REPAIRS)),
    blocks=st.integers(24, 70),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    host=st.sampled_from([0, 8, 40]),
    shape=st.tuples(st.integers(8, 70), st.integers(1, 8), st.integers(1, 40)),
    reuse=st.booleans(),
    keep_copies=st.booleans(),
    fail_copies=st.sampled_from([0.0, 0.3]),
    drafts=st.booleans(),
)
def test_any_schedule_gives_what_each_request_gets_alone(
    work: list[Any],
    repair: str,
    blocks: int,
    share: float,
    host: int,
    shape: tuple[int, int, int],
    reuse: bool,
    keep_copies: bool,
    fail_copies: float,
    drafts: bool,
) -> None:
    tokens, rows, chunk = shape
    policy = REPAIRS[repair]
    guesser = Guesser(blocks)
    engine = chunk_engine(
        policy, share=share, blocks=blocks, host_blocks=host, tokens=tokens, rows=rows, chunk=chunk, reuse=reuse,
        keep_copies=keep_copies, max_length=MAX_LENGTH, proposer=guesser if drafts else None,
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

    for i, (parts, question, count, n, hot, wait, cancel) in enumerate(work):
        one = request(f"r{i}", *parts, question, max_tokens=count, n=n, temperature=0.8 if hot else 0.0, seed=i)
        guesser.right[one.id] = expected(one, policy) if drafts else []
        try:
            engine.add(one)
        except BadRequest:
            continue  # longer than the context
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
        whole = expected(one, policy if linker_of(engine).taken.get(one.id, False) else None)
        for i in range(one.sampling.n):
            mine = got.get((one.id, i), [])
            assert mine == whole[i] or (one.id in cancelled and mine == whole[i][: len(mine)])
    all_free(engine)


def test_segments_and_chunks_are_checked_at_the_edge() -> None:
    with pytest.raises(BadRequest, match="at least one token"):
        Segment("")
    prompt = np.arange(1, 20)
    assert Request(id="a", prompt=prompt, chunks=[[0, 4], [4, 18]]).chunks == ((0, 4), (4, 18))  # type: ignore[arg-type]
    for chunks, why in (
        (((0, 19),), "last token"),
        (((3, 3),), "ascend"),
        (((4, 8), (2, 3)), "ascend"),
        (((0, 5), (4, 8)), "ascend"),
        (((-1, 5),), "ascend"),
        ((3, 4), "ranges"),
    ):
        with pytest.raises(BadRequest, match=why) as raised:
            Request(id="a", prompt=prompt, chunks=chunks)  # type: ignore[arg-type]
        assert raised.value.param == "chunks"


def test_what_the_policies_want_anew() -> None:
    chunks = [Linked(2, 5), Linked(5, 50)]
    assert MPIC(4).anew(chunks) == [(2, 5), (5, 9)]
    assert PlainChunks("all").anew(chunks) == [(2, 5), (5, 50)]
    assert not PlainChunks("none").anew(chunks)
    with pytest.raises(ValueError, match="first"):
        MPIC(-1)
