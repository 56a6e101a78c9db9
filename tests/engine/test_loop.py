"""The loop over random schedules: every request gets exactly what it would get alone, and no block is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.engine.fake import VOCABULARY, alone, make_engine

from hasten.engine.events import Kind
from hasten.engine.outputs import QueueFull, TokenDelta
from hasten.engine.request import BadRequest, Request, SamplingParams
from hasten.engine.scheduling.base import StepPlan, Work, WorkKind
from hasten.engine.scheduling.priority import Priority
from hasten.engine.scheduling.whole_prompts import WholePrompts
from hasten.engine.sequence import Finish

EOS = frozenset({7})


def request(id: str, prompt: list[int], **sampling: object) -> Request:
    priority = int(sampling.pop("priority", 0))  # type: ignore[call-overload]
    params = SamplingParams(**{"temperature": 0.0, "seed": 1, **sampling})  # type: ignore[arg-type]
    return Request(id=id, prompt=np.array(prompt), sampling=params, priority=priority)


def gather(deltas: list[TokenDelta]) -> dict[str, dict[int, list[int]]]:
    out: dict[str, dict[int, list[int]]] = {}
    for delta in deltas:
        out.setdefault(delta.request_id, {}).setdefault(delta.index, []).extend(delta.tokens)
    return out


def expect(request_: Request, got: dict[int, list[int]], eos: frozenset[int] = EOS) -> None:
    assert [got[i] for i in sorted(got)] == alone(request_, eos=eos)


prompts = st.one_of(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=60),
    # Prompts that share prefixes, so that the tree is hit at full and at partial blocks.
    st.builds(lambda k, tail: [i % 11 for i in range(k)] + tail, st.integers(1, 50), st.lists(st.integers(0, 39), max_size=9)),
)
requests = st.builds(
    lambda prompt, tokens, n, hot, priority: (prompt, tokens, n, 0.8 if hot else 0.0, priority),
    prompts,
    st.integers(1, 30),
    st.sampled_from([1, 1, 1, 2, 3]),
    st.booleans(),
    st.integers(0, 2),
)


@settings(
    max_examples=25,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    jobs=st.lists(st.tuples(requests, st.integers(0, 6), st.sampled_from([None, None, None, 1, 4, 9])), min_size=1, max_size=9),
    blocks=st.integers(12, 40),
    host=st.sampled_from([0, 8, 40]),
    shape=st.tuples(st.integers(8, 70), st.integers(1, 8), st.integers(1, 40)),
    batching=st.sampled_from(["stall-free", "whole-prompts"]),
    order=st.sampled_from(["fcfs", "priority"]),
    reuse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_schedule_gives_what_each_request_gets_alone(
    jobs: list, blocks: int, host: int, shape: tuple[int, int, int], batching: str, order: str, reuse: bool, seed: int
) -> None:
    tokens, rows, chunk = shape
    engine = make_engine(
        blocks=blocks, host_blocks=host, tokens=tokens, rows=rows, chunk=chunk, reuse=reuse, seed=seed, eos=EOS,
        max_length=96,
        batching=WholePrompts() if batching == "whole-prompts" else None,
        order=Priority() if order == "priority" else None,
    )  # fmt: skip
    made, cancel_at, out = [], {}, []
    for i, ((prompt, count, n, temperature, priority), wait, cancelled) in enumerate(jobs):
        made.append(request(f"r{i}", prompt, max_tokens=count, n=n, temperature=temperature, seed=i, priority=priority))
        engine.add(made[-1])
        if cancelled is not None:
            cancel_at[i] = engine.executor.steps + wait + cancelled
        for _ in range(wait):
            out += engine.step()
            engine.ledger.audit()
            for j, at in cancel_at.items():
                if engine.executor.steps >= at:
                    engine.cancel(f"r{j}")
    steps = 0
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
        for j in cancel_at:
            engine.cancel(f"r{j}")
        steps += 1
        assert steps < 5000, "the engine does not come to an end"
    got = gather(out)
    finishes: dict[tuple[str, int], list[str]] = {}
    for delta in out:
        if delta.finish is not None:
            finishes.setdefault((delta.request_id, delta.index), []).append(delta.finish)
    for i, one in enumerate(made):
        assert all(len(finishes[(one.id, k)]) == 1 for k in range(one.sampling.n)), "each sequence ends exactly once"
        whole = alone(one, max_length=96, eos=EOS)
        for k in range(one.sampling.n):
            mine = got[one.id].get(k, [])
            if finishes[(one.id, k)][0] in ("stop", "length"):
                assert mine == whole[k]
            else:
                assert i in cancel_at, finishes[(one.id, k)]
                assert mine == whole[k][: len(mine)]
    pool = engine.ledger.books.pool
    assert pool.available == pool.blocks, "blocks are still held after the last request"
    counts, sums = engine.events.counts, engine.events.sums
    assert counts[Kind.FINISHED] + counts[Kind.FAILED] == sum(1 for _ in finishes) - unsplit(out, made)
    assert sums[Kind.TOKENS] == sum(len(delta.tokens) for delta in out)


def unsplit(out: list[TokenDelta], made: list[Request]) -> int:
    """Sequences that ended before they came into being: their request was cancelled while its prompt was computed."""
    started = {delta.request_id for delta in out if delta.tokens}
    return sum(one.sampling.n - 1 for one in made if one.id not in started)


def test_one_failing_request_ends_alone() -> None:
    engine = make_engine(eos=EOS)
    engine.executor.fail_on = {39}
    good = [request(f"g{i}", [i, 2, 3], max_tokens=6) for i in range(3)]
    for one in good:
        engine.add(one)
    engine.add(request("bad", [1, 39, 2], max_tokens=6))
    out = engine.run()
    assert [d.finish for d in out if d.request_id == "bad" and d.finish] == ["error"]
    assert "cannot be computed" in next(d.error for d in out if d.error)
    for one in good:
        want = alone(one, eos=EOS)
        if 39 not in want[0]:
            assert list(gather(out)[one.id].values()) == want
    engine.ledger.audit()


@pytest.mark.parametrize("host", [0, 64])
def test_memory_pressure_preempts_and_nobody_notices(host: int) -> None:
    engine = make_engine(blocks=10, host_blocks=host, reuse=False, eos=frozenset())
    made = [request(f"r{i}", list(range(i, i + 12)), max_tokens=40) for i in range(5)]
    for one in made:
        engine.add(one)
    out = engine.run()
    for one in made:
        expect(one, gather(out)[one.id], frozenset())
    counts = engine.events.counts
    assert counts[Kind.SWAPPED if host else Kind.PREEMPTED] > 0
    assert (counts[Kind.RESUMED] > 0) == (host > 0)


def test_a_prefix_is_computed_once() -> None:
    engine = make_engine()
    shared = [i % 13 for i in range(40)]
    engine.add(request("a", [*shared, 1], max_tokens=2))
    engine.run()
    engine.add(request("b", [*shared, 2], max_tokens=2))
    out = engine.run()
    assert out[0].reused == 40
    other = Request(id="c", prompt=np.array([*shared, 2]), tenant="someone else", sampling=SamplingParams(max_tokens=1))
    engine.add(other)
    assert engine.run()[0].reused == 0, "tenants do not share"


def test_queue_limit_and_bad_requests_change_nothing() -> None:
    engine = make_engine(queue_limit=2, max_length=50, blocks=4)
    engine.add(request("a", [1], max_tokens=1))
    with pytest.raises(BadRequest, match="already running"):
        engine.add(request("a", [1], max_tokens=1))
    with pytest.raises(BadRequest, match="context"):
        engine.add(request("b", [1] * 50))
    with pytest.raises(BadRequest, match="KV memory"):
        engine.add(request("b", [1] * 40))
    with pytest.raises(BadRequest, match="vocabulary"):
        engine.add(request("b", [VOCABULARY]))
    with pytest.raises(BadRequest, match="constraint"):
        engine.add(request("b", [1], constraint="x"))
    engine.add(request("b", [1], max_tokens=1))
    with pytest.raises(QueueFull):
        engine.add(request("c", [1], max_tokens=1))
    engine.run()
    engine.add(request("c", [1], max_tokens=1))
    engine.run()


class Broken:
    """A batching that does everything wrong, one thing a step."""

    def __init__(self) -> None:
        self.step = 0

    def compose(self, ranked: list, view: object) -> StepPlan:
        self.step += 1
        if self.step % 4 == 0:
            raise KeyError("a bug")
        first = ranked[0]
        wrong = [
            [Work(first, 1, WorkKind.PREFILL), Work(first, 1, WorkKind.PREFILL)],
            [Work(first, first.remaining + 1, WorkKind.PREFILL)],
            [Work(seq, 0, WorkKind.DECODE) for seq in ranked],
        ]
        return StepPlan(wrong[self.step % 4 - 1])


class Useless:
    def plan(self, view: object, plan: StepPlan, short: int) -> list:
        return []


def test_a_broken_policy_slows_the_engine_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine(batching=Broken(), eos=EOS)
    made = [request(f"r{i}", [i, 2, 3], max_tokens=9) for i in range(4)]
    for one in made:
        engine.add(one)
    out = engine.run()
    for one in made:
        expect(one, gather(out)[one.id])
    assert engine.events.counts[Kind.PLAN_REFUSED] > 3
    assert "planned twice" in caplog.text and "a bug" in caplog.text


def test_a_residency_that_frees_nothing_ends_requests_rather_than_hanging() -> None:
    engine = make_engine(blocks=4, residency=Useless(), reuse=False)
    for i in range(3):
        engine.add(request(f"r{i}", list(range(9)), max_tokens=20))
    finishes = [delta.finish for delta in engine.run() if delta.finish]
    assert sorted(set(finishes)) in (["error", "length"], ["length"]) and len(finishes) == 3
    engine.ledger.audit()


def test_twins_that_prefill_together_leave_no_block_that_cannot_be_had() -> None:
    """Two requests compute the same prefix in one step; the one that goes on must be able to use all the memory."""
    engine = make_engine(blocks=8, max_length=70, tokens=64, chunk=64)
    shared = list(range(17))
    engine.add(request("a", [*shared, 1], max_tokens=1))
    twin = request("b", [*shared, *range(20, 30)], max_tokens=35)  # a third full block, below the shared two
    engine.add(twin)
    out = engine.run()
    assert [delta.error for delta in out if delta.error] == []
    assert gather(out)["b"][0] == alone(twin, max_length=70)[0]
    pool, tree = engine.ledger.books.pool, engine.ledger.books.reuse
    assert tree is not None
    tree.evict(pool.evictable)
    assert pool.free == pool.blocks


def test_a_sequence_that_fills_the_pool_comes_back_from_the_host() -> None:
    engine = make_engine(blocks=9, host_blocks=20, reuse=False, max_length=90)
    one = request("r", list(range(30)), max_tokens=42, n=2)
    engine.add(one)
    out = engine.run()
    assert [gather(out)["r"][k] for k in (0, 1)] == alone(one, max_length=90)


def test_part_of_a_request_can_be_cancelled_before_it_is_split() -> None:
    engine = make_engine()
    one = request("q", [1, 2, 3], max_tokens=5, n=3, temperature=0.9)
    engine.add(one)
    engine.cancel("q", 0)
    engine.cancel("q", 2)
    out = engine.run()
    ends = {delta.index: delta.finish for delta in out if delta.finish}
    assert ends == {0: "cancelled", 1: "length", 2: "cancelled"}
    assert gather(out)["q"][1] == alone(one)[1]
    assert [delta.last for delta in out if delta.last] == [True] and out[-1].last


def test_a_draw_that_fails_ends_its_request_only() -> None:
    class Bad:
        def prepare(self, request: Request) -> None:
            pass

        def start(self, request: Request) -> Bad:
            return self

        def fill(self, mask: np.ndarray) -> None:
            raise KeyError("a bug in a grammar")

        def fork(self) -> Bad:
            return self

    engine = make_engine(constraint=Bad())
    good = request("good", [1, 2], max_tokens=5)
    engine.add(good)
    engine.add(request("bad", [1, 2], max_tokens=5, constraint="x"))
    out = engine.run()
    assert [d.finish for d in out if d.request_id == "bad"] == ["error"]
    expect(good, gather(out)["good"], frozenset())
    engine.add(request("next", [1, 2], max_tokens=2))
    assert engine.run()[-1].finish == "length"


def test_a_stop_is_a_success_and_only_running_sequences_fork() -> None:
    engine = make_engine()
    engine.add(request("s", list(range(20)), max_tokens=50))
    engine.step()
    engine.step()
    (seq,) = engine.ledger.sequences.values()
    engine.cancel("s", 0, Finish.STOP)
    engine.run()
    assert (engine.events.counts[Kind.FINISHED], engine.events.counts[Kind.FAILED]) == (1, 0)
    with pytest.raises(ValueError, match="not running"):
        engine.control.fork(seq, 1)
    with pytest.raises(ValueError, match="not running"):
        engine.control.inject(seq, [1])


def test_a_lookup_that_leads_nowhere_costs_nobody_its_blocks() -> None:
    """One of two is dropped; what the tree kept of it is found again at once, but does not fit beside what still runs."""
    engine = make_engine(blocks=40, max_length=400, chunk=512)
    first = Request(id="a", prompt=np.array([7]), sampling=SamplingParams(max_tokens=113, temperature=0))
    second = Request(id="b", prompt=np.arange(1, 100) % VOCABULARY, sampling=SamplingParams(max_tokens=111, temperature=0))

    for request in (first, second):
        engine.add(request)
    deltas = engine.run()
    assert [d.error for d in deltas if d.error] == []
    assert engine.events.counts[Kind.PREEMPTED] > 0
    engine.ledger.audit()


def test_what_was_swapped_comes_back_before_new_requests_take_its_place() -> None:
    """A steady stream of requests that each fit must not keep a swapped one, which needs more, out for ever."""
    engine = make_engine(blocks=12, block_size=8, host_blocks=24, max_length=96, chunk=512, reuse=False, rows=4)
    two = [
        Request(id=f"s{i}", prompt=np.arange(1, 41) % VOCABULARY, sampling=SamplingParams(max_tokens=40, temperature=0))
        for i in (0, 1)
    ]
    for request_ in two:
        engine.add(request_)
    ended: list[str] = []
    number = 0
    while len(ended) < 12:
        while engine.unfinished < 6:  # always some that wait
            prompt = np.arange(1, 50) % VOCABULARY
            engine.add(Request(id=f"w{number}", prompt=prompt, sampling=SamplingParams(max_tokens=4, temperature=0)))
            number += 1
        for delta in engine.step():
            assert delta.error is None, delta.error
            if delta.last:
                ended.append(delta.request_id)
    assert engine.events.counts[Kind.SWAPPED] > 0
    assert {"s0", "s1"} <= set(ended[:4])


def test_policies_that_raise_are_survived() -> None:
    class Broken:
        stale_on: frozenset[Kind] = frozenset()
        lifetime_s = float("inf")

        def keys(self, stale: object, view: object) -> np.ndarray:
            raise RuntimeError("no order today")

        def plan(self, view: object, plan: StepPlan, short: int) -> list:
            raise RuntimeError("no transfers today")

    engine = make_engine(order=Broken(), residency=Broken())
    requests_ = [request(str(i), [i + 1] * 20, max_tokens=5) for i in range(4)]
    for request_ in requests_:
        engine.add(request_)
    got = gather(engine.run())
    for request_ in requests_:
        expect(request_, got[request_.id])


def test_a_plan_that_runs_what_it_rejects_is_refused() -> None:
    class Both:
        def compose(self, ranked: list, view: object) -> StepPlan:
            return StepPlan(work=[Work(seq, 1, WorkKind.PREFILL) for seq in ranked], reject=[(seq, "no") for seq in ranked])

    engine = make_engine(batching=Both())
    engine.add(request("a", [1, 2, 3], max_tokens=3))
    got = gather(engine.run())
    assert len(got["a"][0]) == 3
    assert engine.events.counts[Kind.PLAN_REFUSED] > 0
