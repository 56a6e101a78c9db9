"""Chunks kept in their context, in the hash model: what is kept, what is chosen and mended, and that no block is lost."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.kv.contexts import all_free, context_engine, expected, linker_of
from tests.kv.marked import marked
from tests.kv.test_linking import DOCUMENTS, Guesser, gather, jobs

from hasten.engine.events import Kind
from hasten.engine.kv.cache_craft import CacheCraft, Options, cci, disorder, kept_share
from hasten.engine.kv.chunks import Chunk, ChunkStore
from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.retention import LRU, Facts
from hasten.engine.kv.variants import Notes, PerRepair
from hasten.engine.loop import Engine
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import BadRequest, Request
from hasten.engine.sequence import Draft, Span, State

POLICIES = {
    "cfo": CacheCraft(Options()),
    "alpha": CacheCraft(Options(alpha=1.6, variants=2)),
    "one": CacheCraft(Options(alpha=1.3, variants=1)),
    "random": CacheCraft(Options(share=0.4, pick="random")),
    "none": CacheCraft(Options(share=0.0)),
    "all": CacheCraft(Options(share=1.0, variants=2)),
    "stop": CacheCraft(Options(alpha=1.4, variants=2, stop_after=1, stop_share=0.5)),
}


def request(id: str, *pieces: int | list[int], **sampling: Any) -> Request:
    return marked(id, DOCUMENTS, *pieces, **{"temperature": 0.0, "seed": 1, "max_tokens": 6, **sampling})


def run(engine: Engine, *requests: Request) -> dict[tuple[str, int], list[int]]:
    for one in requests:
        engine.add(one)
    out: list[TokenDelta] = []
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
        assert engine.events.counts[Kind.STEP] < 5000, "the engine does not come to an end"
    return gather(out)


def check(engine: Engine, one: Request, got: dict[tuple[str, int], list[int]]) -> None:
    assert linker_of(engine).taken[one.id], "memory was to suffice"
    assert [got[(one.id, i)] for i in range(one.sampling.n)] == [expected(engine, one, i) for i in range(one.sampling.n)]


# -- the formulas ---------------------------------------------------------------------------------------------------------


def naive_cfo(alpha: float, front: list[bytes], sizes: list[int], mass: list[list[float]], new: list[bytes]) -> float:
    """From the entry's formulas, pair by pair; names are unlike."""
    size, total = sizes[-1], 0.0
    inter = []
    for j in range(len(front)):
        inter.append(sum(row[j] for row in mass))
        total += inter[j] / (size * sizes[j])
    bound = 1 / (1 + math.exp(-total / (sum(row[-1] for row in mass) / size**2)))
    if not front:
        return alpha * bound * (1 if new else 0)
    there = [name for name in front if name in new]
    beta = sum(inter[front.index(name)] for name in there) / sum(inter)
    pairs = [(x, y) for i, x in enumerate(there) for y in there[i + 1 :]]
    gamma = sum(new.index(x) > new.index(y) for x, y in pairs) / len(pairs) if pairs else 0
    return alpha * bound * (1 - beta * (1 - gamma))


@given(seed=st.integers(0, 10**6), before=st.integers(0, 5), alpha=st.sampled_from([0.5, 1.0, 2.5]))
def test_what_is_mended_follows_from_what_was_measured(seed: int, before: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    names = [bytes([65 + i]) for i in range(8)]
    policy = CacheCraft(Options(alpha=alpha))
    size = int(rng.integers(1, 40))
    kept, costs = [], []
    new = list(rng.permutation(np.array(names))[: rng.integers(0, 6)])
    for _ in range(int(rng.integers(1, 4))):
        front = list(rng.permutation(np.array(names))[:before])
        sizes = [*rng.integers(1, 50, before).tolist(), size]
        mass = rng.dirichlet(np.ones(before + 1), size).astype(np.float32)
        kept.append(policy.note(front, sizes, mass))
        costs.append(naive_cfo(alpha, front, sizes, mass.tolist(), new))
        scores = mass[:, :-1].sum(1)
        assert kept[-1].scores == pytest.approx(scores)
    choice = policy.choose(new, b"me", kept)
    count = math.ceil(min(costs) * size - 1e-6)
    if choice is None:
        assert count >= size or min(costs) * size - 1e-6 > size - 1 - 1e-3
        return
    best, tokens = choice
    assert costs[best] == pytest.approx(min(costs), abs=1e-5)
    assert abs(len(tokens) - min(costs) * size) <= 1 + 1e-3 and (np.diff(tokens) > 0).all()
    rest = np.setdiff1d(np.arange(size), tokens)
    if len(tokens) and len(rest):
        assert kept[best].scores[tokens].min() >= kept[best].scores[rest].max(), "others have more mass on what stood before"


def test_the_formulas_at_their_ends() -> None:
    assert cci([], 3.0, [], 4) == 0.5
    assert cci([2.0], 2.0, [4], 4) == pytest.approx(1 / (1 + math.exp(-1))), "as dense before as within"
    assert cci([4.0], 1e-9, [4], 4) == 1.0
    assert disorder([0, 1, 2]) == 0 and disorder([2, 1, 0]) == 1 and disorder([1, 0, 2]) == pytest.approx(1 / 3)
    first = Notes((), np.zeros(0, np.float32), np.zeros(5, np.float32), 0.5)
    assert kept_share(first, []) == 1 and kept_share(first, [b"a"]) == 0
    notes = Notes((b"a", b"b", b"a"), np.array([4, 2, 2], np.float32), np.ones(5, np.float32), 0.8)
    assert kept_share(notes, [b"a", b"b", b"a"]) == 1
    assert kept_share(notes, [b"x", b"a", b"y", b"b", b"a"]) == 1, "what is new is not seen"
    assert kept_share(notes, [b"a"]) == pytest.approx(0.5), "the second of a name is another"
    assert kept_share(notes, [b"b", b"a", b"a"]) == pytest.approx(1 - 1 / 3)
    unseen = Notes((b"a", b"b"), np.zeros(2, np.float32), np.zeros(5, np.float32), 0.5)
    assert kept_share(unseen, [b"b"]) == 0.5
    # A chunk that stood first is mended from its beginning.
    choice = CacheCraft(Options()).choose([b"a"], b"me", [first])
    assert choice is not None and choice[1].tolist() == [0, 1, 2]


def test_controls_take_as_many_tokens_as_they_are_told() -> None:
    scores = np.array([0.1, 0.5, 0.2, 0.4, 0.3, 0.6, 0.0, 0.05, 0.01, 0.02], np.float32)
    notes = Notes((b"a",), np.array([2.18], np.float32), scores, 0.9)
    for share, want in ((0.0, []), (0.3, [1, 3, 5]), (0.31, [1, 3, 4, 5])):
        choice = CacheCraft(Options(share=share)).choose([b"a"], b"me", [notes])
        assert choice is not None and choice[1].tolist() == want
    assert CacheCraft(Options(share=1.0)).choose([b"a"], b"me", [notes]) is None
    policy = CacheCraft(Options(share=0.3, pick="random"))
    drawn = [policy.choose([bytes([i])], b"me", [notes]) for i in range(40)]
    assert all(choice is not None and len(set(choice[1].tolist())) == 3 for choice in drawn)
    assert len({tuple(choice[1].tolist()) for choice in drawn if choice is not None}) > 20
    assert len(np.unique(np.concatenate([choice[1] for choice in drawn if choice is not None]))) == 10
    again = policy.choose([bytes([7])], b"me", [notes])
    assert again is not None and drawn[7] is not None and (again[1] == drawn[7][1]).all()
    for options, why in (({"alpha": -1.0}, "alpha"), ({"variants": 0}, "variants"), ({"share": 1.2}, "share")):
        with pytest.raises(ValueError, match=why):
            CacheCraft(Options(**options))


# -- the engine -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("chunk", [4, 64])
def test_chunks_are_found_at_other_positions(policy: CacheCraft, chunk: int) -> None:
    engine = context_engine(policy, chunk=chunk, tokens=chunk)
    one = request("a", [1, 2, 3], 4, [9], 6, [4, 5])
    got = run(engine, one)
    check(engine, one, got)
    assert got == run(context_engine(policy), Request(id="a", prompt=one.prompt, sampling=one.sampling)), "new is plain"
    linker = linker_of(engine)
    assert linker.computed == 2 and linker.linked == 0 and len(list(linker.store)) == 2
    for other in (request("b", 6, 4, [8] * 11), request("c", [5] * 9, 4, [1], 6, 4, [2], n=2), request("d", [1, 2, 3], 4, [7])):
        check(engine, other, run(engine, other))
    if policy is not POLICIES["all"]:
        assert linker.linked > 0
    if policy is not POLICIES["stop"]:
        assert engine.skipped == 0
    elif chunk == 64:
        assert engine.skipped > 0, "the question is there"
    all_free(engine)


@pytest.mark.parametrize("chunk", [4, 64])
def test_the_same_context_is_found_whole_and_is_exact(chunk: int) -> None:
    engine = context_engine(POLICIES["cfo"], chunk=chunk, tokens=chunk, reuse=False)
    one = request("a", [1, 2, 3], 4, [9], 6, 5, [4, 5], max_tokens=4)
    got = run(engine, one)
    computed = engine.events.sums[Kind.SCHEDULED]
    again = Request(id="b", prompt=one.prompt, sampling=one.sampling, chunks=one.chunks)
    assert run(engine, again)[("b", 0)] == got[("a", 0)]
    linker = linker_of(engine)
    assert linker.computed == linker.linked == 3 and linker.mended_tokens == 0 and linker.reused_tokens == 16 + 30 + 21
    assert engine.events.sums[Kind.SCHEDULED] - computed == 3 + 1 + 2 + 3, "text, and tokens of the answer"
    assert engine.events.sums[Kind.REUSED] == 67


def test_elsewhere_as_many_tokens_are_mended_as_the_policy_says() -> None:
    policy = CacheCraft(Options(alpha=0.5))
    engine = context_engine(policy, reuse=False)
    run(engine, request("a", [1], 4, 6, [2], max_tokens=1))
    kept = {len(chunk.notes.scores): chunk for chunk in linker_of(engine).store if chunk.notes is not None}
    other = request("b", 6, 5, 4, [3, 3], max_tokens=1)
    computed = engine.events.sums[Kind.SCHEDULED]
    check(engine, other, run(engine, other))
    # 30 tokens lost the chunk before them, 16 stood first and now do not.
    mended = math.ceil(0.5 * kept[30].notes.cci * 30) + math.ceil(0.5 * 0.5 * 16)  # type: ignore[union-attr]
    assert linker_of(engine).mended_tokens == mended
    assert engine.events.sums[Kind.SCHEDULED] - computed == mended + 21 + 2
    assert 0 < kept[30].facts.repaired < 0.5 and kept[30].facts.hits == 1


def test_a_chunk_wanted_whole_becomes_another_variant_until_there_are_enough() -> None:
    engine = context_engine(CacheCraft(Options(alpha=3.0, variants=2)), blocks=200)
    linker = linker_of(engine)

    def variants() -> list[int]:
        """Of the document that is asked about: how many chunks stood before."""
        return [len(c.notes.front) for c in linker.store if c.notes is not None and len(c.notes.scores) == 21]

    counts = []
    for number, front in enumerate(([], [6], [4, 3], [6, 4, 3])):
        one = request(f"r{number}", [1], *front, 5, [2], max_tokens=1)
        check(engine, one, run(engine, one))
        counts.append((variants(), linker.epochs[(one.id, 0)][-1].chunks[-1] is None))
    # The first made way; the last saw all that one of the others had before it.
    assert counts == [([0], True), ([0, 1], True), ([1, 2], True), ([1, 2], False)]
    again = request("again", [1], 4, 3, 5, [2], max_tokens=1)
    before = linker.mended_tokens
    check(engine, again, run(engine, again))
    assert linker.mended_tokens == before, "its own context's variant is there and costs nothing"
    all_free(engine)


@pytest.mark.parametrize("tree", [True, False])
def test_no_row_leaves_a_tree(tree: bool) -> None:
    """Drafts behind a prompt's last token, as a batching may plan them."""
    engine = context_engine(CacheCraft(Options(stop_after=1, stop_share=1.0)))
    run(engine, request("a", [1], 4, 6, [2], max_tokens=1))
    maker, executor, spans = engine._spans, engine.executor, list[Span]()
    submit = executor.submit

    def drafts(plan: Any, last: Any) -> dict[int, Draft]:
        guess = Draft(np.array([7, 8], np.int32), np.array([-1, -1], np.int32) if tree else None)
        return {work.sequence.id: guess for work in plan.work if 1 < work.count == work.sequence.remaining}

    def watched(batch: Any, *more: Any) -> Any:
        spans.extend(batch.spans)
        return submit(batch, *more)

    maker._drafts, executor.submit = drafts, watched  # type: ignore[method-assign]
    one = request("b", [3], 6, 4, [2])
    check(engine, one, run(engine, one))
    drafted = [span.mending is None for span in spans if span.draft is not None]
    assert drafted == [tree] and (engine.skipped == 0) == tree
    all_free(engine)


def test_a_prompt_that_ends_with_its_first_token_leaves_its_chunks() -> None:
    engine = context_engine(POLICIES["cfo"])
    run(engine, request("a", [1], 6, [2], max_tokens=1))
    assert linker_of(engine).computed == 1 and len(list(linker_of(engine).store)) == 1


def test_several_answers_to_a_prompt_compute_its_chunks_once() -> None:
    engine = context_engine(POLICIES["cfo"])
    run(engine, request("a", [1], 6, 5, [2], n=3))
    assert linker_of(engine).computed == 2 == len(list(linker_of(engine).store))
    all_free(engine)


def test_a_chunk_that_was_not_measured_is_not_kept() -> None:
    engine = context_engine(POLICIES["cfo"])
    executor: Any = engine.executor
    measured = executor.submit

    def forgets(*batch: Any) -> Any:
        handle = measured(*batch)
        handle.wait().mass = None
        return handle

    executor.submit = forgets
    linker_of(engine).forgets = True
    run(engine, request("a", [1], 6, [2]))
    assert linker_of(engine).computed == 0 and not list(linker_of(engine).store)
    all_free(engine)


def test_a_chunk_without_notes_is_not_kept() -> None:
    class Broken(CacheCraft):
        def note(self, *measured: Any) -> Any:
            raise RuntimeError("no idea")

    engine = context_engine(Broken(Options()))
    one = request("a", [1], 6, [2])
    check(engine, one, run(engine, one))
    assert linker_of(engine).computed == 0 and not list(linker_of(engine).store)


def test_a_policy_that_fails_has_everything_computed() -> None:
    class Broken(CacheCraft):
        def choose(self, *asked: Any) -> Any:
            raise RuntimeError("no idea")

    engine = context_engine(Broken(Options()))
    for id in ("a", "b"):
        one = request(id, [1], 6, 5, [2])
        plain = Request(id=id, prompt=one.prompt, sampling=one.sampling)
        assert run(engine, one) == run(context_engine(POLICIES["cfo"]), plain)
    assert linker_of(engine).linked == 0


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_prompt_dropped_in_the_middle_is_begun_again_with_what_is_there(steps: int) -> None:
    engine = context_engine(POLICIES["cfo"], tokens=8, chunk=8)
    run(engine, request("warm", 6, 5, [1], max_tokens=1))
    one = request("a", [1] * 17, 4, [2], 5, [3])
    engine.add(one)
    out: list[TokenDelta] = []
    for _ in range(steps):
        out += engine.step()
    (seq,) = engine.ledger.in_state(State.RUNNING)
    computed = linker_of(engine).computed
    assert engine.ledger.drop(seq)
    engine.ledger.audit()
    done = [8 * steps >= 17 + 16]
    assert linker_of(engine).computed - computed <= sum(done)
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    check(engine, one, gather(out))
    all_free(engine)


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_fork_in_the_middle_of_the_prompt_goes_on_from_there(steps: int) -> None:
    engine = context_engine(POLICIES["alpha"], tokens=8, chunk=8)
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
    assert got[("b", 0)] == got[("b", 1)] == expected(engine, one, 0)
    all_free(engine)


def test_a_fork_that_outlives_its_parent_keeps_what_both_computed() -> None:
    engine = context_engine(POLICIES["cfo"], tokens=8, chunk=8)
    engine.add(request("b", [2], 6, [4]))
    for _ in range(2):
        engine.step()
    (seq,) = engine.ledger.in_state(State.RUNNING)
    engine.control.fork(seq, 1)
    engine.cancel("b", 0)
    while engine.unfinished:
        engine.step()
        engine.ledger.audit()
    assert linker_of(engine).computed == 1 and len(list(linker_of(engine).store)) == 1
    all_free(engine)


def test_the_store_keeps_variants_and_loses_the_one_least_used_for_what_it_costs() -> None:
    pool = BlockPool(40, 8)
    store = ChunkStore(pool, PerRepair(), share=0.5, variants=2)

    def add(name: bytes, *front: bytes) -> bool:
        blocks = pool.take(2)
        notes = Notes(front, np.zeros(len(front), np.float32), np.zeros(9, np.float32), 0.5)
        kept = store.add(name, 0, blocks, Facts(0, 2, 1.0), notes)
        pool.drop(blocks)
        store.audit()
        pool.audit()
        return kept

    assert add(b"a", b"x") and add(b"a", b"y") and not add(b"a", b"x"), "there is one of this name and context"
    cheap, dear = store.variants(b"a")
    for chunk, repaired in ((cheap, 0.1), (dear, 0.5)):
        chunk.facts.repaired = repaired
        store.used(chunk)
    store.used(dear)
    assert cheap.score > dear.score, "two uses at half of the work are less than one at a tenth"
    assert add(b"a", b"z") and cheap in store.variants(b"a") and dear not in store.variants(b"a")
    assert store.gone == 1 and store.blocks == 4
    assert all(add(bytes([i])) for i in range(8)) and store.blocks == 20
    assert add(b"last") and store.blocks == 20 and store.gone == 2 and cheap in list(store)
    assert store.evict(3) == 4
    store.audit()
    single = ChunkStore(BlockPool(10, 8), LRU())
    assert single.get(b"a") is None and single.variants(b"a") == []


def test_a_chunk_whose_score_falls_goes_before_others() -> None:
    pool = BlockPool(40, 8)
    store = ChunkStore(pool, PerRepair())
    for name in (b"a", b"b", b"c"):
        blocks = pool.take(1)
        store.add(name, 0, blocks, Facts(0, 1, 1.0))
        pool.drop(blocks)
    falling, other, least = store

    def use(chunk: Chunk, repaired: float) -> None:
        chunk.facts.repaired = repaired
        store.used(chunk)
        store.audit()

    use(falling, 0.1)
    use(other, 0.25)
    assert store.evict(1) == 1 and least not in list(store), "the others were looked at, and stand where they belong now"
    use(falling, 1.0)
    assert falling.score < other.score
    assert store.evict(1) == 1 and list(store) == [other]
    use(falling, 4.0)  # it was found before it went


@settings(
    max_examples=40,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    work=st.lists(jobs, min_size=1, max_size=8),
    policy=st.sampled_from(sorted(POLICIES)),
    blocks=st.integers(24, 70),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    host=st.sampled_from([0, 8, 40]),
    shape=st.tuples(st.integers(8, 70), st.integers(1, 8), st.integers(1, 40)),
    reuse=st.booleans(),
    keep_copies=st.booleans(),
    fail_copies=st.sampled_from([0.0, 0.3]),
    drafts=st.booleans(),
)
def test_any_schedule_gives_what_follows_from_what_was_found(
    work: list[Any],
    policy: str,
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
    guesser, guesses = Guesser(blocks), random.Random(blocks)
    engine = context_engine(
        POLICIES[policy], share=share, blocks=blocks, host_blocks=host, tokens=tokens, rows=rows, chunk=chunk, reuse=reuse,
        keep_copies=keep_copies, proposer=guesser if drafts else None,
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
        guesser.right[one.id] = [[guesses.randrange(40) for _ in range(count)] for _ in range(n)]
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
        for i in range(one.sampling.n):
            mine, whole = got.get((one.id, i), []), expected(engine, one, i)
            assert mine == whole or (one.id in cancelled and mine == whole[: len(mine)])
    all_free(engine)
