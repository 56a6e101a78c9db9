"""The tiered cache under random schedules: exact tokens, sound books, nobody stuck; and what it is for does happen."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.engine.fake import VOCABULARY, alone
from tests.kv.tiers import FakeStore, cache_of, forget_device, tiered_engine

from hasten.engine.clock import RealClock
from hasten.engine.events import Kind
from hasten.engine.loop import Engine
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import Request, SamplingParams
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.scheduling.stall_free import Options, StallFree
from hasten.engine.sequence import State


def request(id: str, prompt: list[int], tokens: int = 4, **more: Any) -> Request:
    sampling = SamplingParams(max_tokens=tokens, temperature=0, seed=1, n=more.pop("n", 1))
    return Request(id=id, prompt=np.array(prompt), sampling=sampling, **more)


def tokens_of(out: list[TokenDelta], id: str, index: int = 0) -> list[int]:
    return [token for d in out if d.request_id == id and d.index == index for token in d.tokens]


def serve(engine: Engine, one: Request) -> tuple[list[TokenDelta], int]:
    """(what came of it, tokens computed for it)."""
    before = engine.events.sums[Kind.STEP]
    engine.add(one)
    out = []
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    assert [d.error for d in out if d.error] == []
    for index in range(one.sampling.n):
        assert tokens_of(out, one.id, index) == alone(one)[index]
    return out, int(engine.events.sums[Kind.STEP] - before)


def prompt(length: int, family: int = 0) -> list[int]:
    return [(i * (family + 3) + family) % VOCABULARY for i in range(length)]


def test_what_the_device_lost_comes_back_from_host_memory() -> None:
    engine = tiered_engine()
    serve(engine, request("a", prompt(70)))
    forget_device(engine)
    out, computed = serve(engine, request("b", prompt(70)))
    assert out[0].reused == 64 and computed == 70 - 64 + 3
    assert engine.events.counts[Kind.LOADED] == 1
    out, computed = serve(engine, request("c", prompt(70)))
    assert out[0].reused == 64 and engine.events.counts[Kind.LOADED] == 1, "what was loaded is cached in the pool again"


def test_what_is_kept_of_a_chunk_does_not_keep_its_prompt() -> None:
    engine = tiered_engine()
    serve(engine, request("a", prompt(170)))
    for entry in cache_of(engine)._host.everything():
        assert entry.head.tokens.base is None


def test_a_span_of_both_the_device_and_the_host_continues_within_a_chunk() -> None:
    engine = tiered_engine(chunk=4, blocks=40)
    serve(engine, request("a", prompt(100)))
    cache, pool = cache_of(engine), engine.ledger.books.pool
    while cache.settle(wait=True):
        pass
    cache.evict(7)  # the deepest blocks: 5 of 12 are left, which ends within the second chunk
    assert sum(map(pool.is_cached, range(pool.blocks))) == 5
    out, computed = serve(engine, request("b", prompt(100)))
    assert out[0].reused == 96 and computed == 100 - 96 + 3
    assert engine.executor.traffic.blocks_in == 7


def test_the_last_token_is_always_computed() -> None:
    engine = tiered_engine(chunk=2)
    serve(engine, request("a", prompt(64)))
    forget_device(engine)
    out, _ = serve(engine, request("b", prompt(64)))
    assert out[0].reused == 56


def test_loading_overlaps_the_steps_of_others() -> None:
    engine = tiered_engine(blocks=64)
    serve(engine, request("a", prompt(70)))
    forget_device(engine)
    other = request("other", prompt(20, 1), 30)
    engine.add(other)
    out = engine.step()
    engine.executor.random.randint = lambda low, high: 60  # type: ignore[method-assign]
    engine.add(request("b", prompt(70)))
    steps_while_loading = 0
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
        loading = engine.ledger.in_state(State.LOADING)
        steps_while_loading += bool(loading)
        assert all(seq.request.id == "b" for seq in loading)
    assert steps_while_loading > 5
    assert tokens_of(out, "other") == alone(other)[0] and tokens_of(out, "b") == alone(request("b", prompt(70)))[0]


def test_two_that_want_the_same_share_its_journey_and_its_blocks() -> None:
    engine = tiered_engine(blocks=20, tokens=256, chunk=2)
    serve(engine, request("a", prompt(70)))
    forget_device(engine)
    for id in ("b", "c"):
        engine.add(request(id, prompt(70)))
    out = []
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    assert engine.events.counts[Kind.LOADED] == 2
    assert engine.executor.traffic.blocks_in == 8
    for id in ("b", "c"):
        assert tokens_of(out, id) == alone(request(id, prompt(70)))[0]


def test_while_one_loads_others_are_planned_when_their_policy_says_so() -> None:
    """And no later than a transfer of another kind ends."""

    class Late(StallFree):
        """Holds "other" back for 50 ms."""

        opens_s = 0.0

        def compose(self, ranked: Sequence[Any], view: View) -> StepPlan:
            if any(seq.request.id == "other" for seq in ranked) and view.now < self.opens_s:
                return StepPlan(replan_at=self.opens_s)
            return super().compose(ranked, view)

    batching = Late(Options())
    engine = tiered_engine(clock=RealClock(), batching=batching, stores=lambda pool: [FakeStore(pool, 99)], second=16)
    serve(engine, request("a", prompt(70)))
    serve(engine, request("z", prompt(130, 2)))  # pushes it out of host memory
    forget_device(engine)
    arrived = threading.Event()
    late = SimpleNamespace(done=arrived.is_set, wait=arrived.wait, ends_s=inf, seconds=0.0)
    cache_of(engine)._stores[0].fetch = lambda wanted, blocks: late  # type: ignore[method-assign]
    engine.add(request("b", prompt(70)))
    engine.step()
    assert engine.ledger.loads
    batching.opens_s = engine.clock.now() + 0.05
    engine.add(request("other", prompt(20, 1)))
    threading.Timer(1.0, arrived.set).start()
    out = []
    while not tokens_of(out, "other"):
        out += engine.step()
    assert not arrived.is_set()
    engine.run()
    ledger = engine.ledger
    ledger.loads._under_way[-1] = (SimpleNamespace(ends_s=5.0), 0)  # type: ignore[assignment]
    ledger.transfers = SimpleNamespace(moves={-1: SimpleNamespace(handle=SimpleNamespace(ends_s=3.0))})  # type: ignore[assignment]
    assert ledger.ends_s == 3.0


@pytest.mark.parametrize("where", ["host", "store"])
@pytest.mark.parametrize("at", range(1, 6))
def test_cancelled_while_loading(where: str, at: int) -> None:
    """At every moment of the way; a second one that shares the journey goes on."""
    kept: list[FakeStore] = []

    def stores(pool: Any) -> list[FakeStore]:
        kept.append(FakeStore(pool, 50))
        return kept

    engine = tiered_engine(stores=stores, second=16 if where == "store" else 64)
    serve(engine, request("a", prompt(70)))
    if where == "store":  # others push it out of host memory
        serve(engine, request("z", prompt(130, 2)))
    forget_device(engine)
    for one in (request("b", prompt(70)), request("c", prompt(70))):
        engine.add(one)
    out = []
    for _ in range(at):
        out += engine.step()
        engine.ledger.audit()
    engine.cancel("b")
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    assert tokens_of(out, "c") == alone(request("c", prompt(70)))[0]
    assert engine.ledger.books.pool.available == engine.ledger.books.pool.blocks
    serve(engine, request("d", prompt(70)))


def test_a_load_that_fails_is_computed_instead() -> None:
    engine = tiered_engine()
    serve(engine, request("a", prompt(70)))
    forget_device(engine)
    engine.executor.fail_copies = 1.0
    _, computed = serve(engine, request("b", prompt(70)))
    assert computed == 73
    engine.executor.fail_copies = 0.0
    forget_device(engine)
    serve(engine, request("c", prompt(70)))


def test_damage_behind_a_good_beginning_costs_only_what_is_behind_it() -> None:
    kept: list[FakeStore] = []

    def stores(pool: Any) -> list[FakeStore]:
        kept.append(FakeStore(pool, 50))
        return kept

    engine = tiered_engine(stores=stores, second=16)
    serve(engine, request("a", prompt(70)))
    serve(engine, request("z", prompt(130, 2)))  # pushes it out of host memory
    forget_device(engine)
    store = kept[0]
    names = list(store.files)
    third = names[2]
    store.files[third] = store.files[third][:-1] + bytes([store.files[third][-1] ^ 1])
    out, computed = serve(engine, request("b", prompt(70)))
    assert out[0].reused == 32 and computed == 70 - 32 + 3
    assert store.lost == 1


def test_nothing_is_loaded_that_is_computed_sooner() -> None:
    engine = tiered_engine(price=lambda start, tokens: 1e-12)
    serve(engine, request("a", prompt(70)))
    forget_device(engine)
    out, _ = serve(engine, request("b", prompt(70)))
    assert out[0].reused == 0 and engine.events.counts[Kind.LOADED] == 0


def test_a_prompt_without_memory_for_all_of_it_waits_and_takes_nothing() -> None:
    engine = tiered_engine(blocks=12, max_length=96)
    serve(engine, request("a", prompt(70)))
    forget_device(engine)
    holder = request("holder", prompt(40, 1), 20)
    engine.add(holder)
    out = engine.step()
    engine.add(request("b", prompt(70)))
    for _ in range(3):
        out += engine.step()
        engine.ledger.audit()
    assert not engine.ledger.in_state(State.LOADING)
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    assert tokens_of(out, "b") == alone(request("b", prompt(70)), max_length=96)[0]
    assert engine.events.counts[Kind.LOADED] == 1


@settings(
    max_examples=25,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    jobs=st.lists(
        st.tuples(
            st.integers(1, 70),  # prompt
            st.integers(0, 2),  # family
            st.integers(1, 25),  # output
            st.sampled_from([1, 1, 1, 2]),
            st.sampled_from(["", "", "t"]),  # tenant
            st.integers(0, 9),  # steps before the next
            st.sampled_from([None, None, None, 0, 1, 2, 5]),  # steps until it is cancelled
        ),
        min_size=3,
        max_size=16,
    ),
    blocks=st.integers(13, 30),
    second=st.sampled_from([4, 10, 40]),
    chunk=st.integers(1, 3),
    most=st.sampled_from([0, 4, 50]),
    keep=st.sampled_from(["lru", "cost-aware"]),
    to_stores=st.sampled_from(["all", "reused"]),
    swap=st.sampled_from([0, 20]),
    group=st.sampled_from([0, 4]),
    faults=st.sampled_from([(0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), (0.2, 0.2, 0.2, 0.2), (0.0, 0.5, 0.3, 0.0)]),
    seed=st.integers(0, 999),
)
def test_any_schedule_gives_what_each_request_gets_alone(
    jobs: list, blocks: int, second: int, chunk: int, most: int, keep: str, to_stores: str, swap: int, group: int,
    faults: tuple[float, float, float, float], seed: int,
) -> None:  # fmt: skip
    kept: list[FakeStore] = []

    def stores(pool: Any) -> list[FakeStore]:
        if most:
            kept.append(FakeStore(pool, most, seed))
            kept[0].fail, kept[0].damage, kept[0].forget = faults[1:]
        return kept

    engine = tiered_engine(
        second=second, chunk=chunk, stores=stores, keep=keep, to_stores=to_stores,
        blocks=blocks, host_blocks=swap, swap_from=9, group=group, max_length=96, seed=seed, rows=6,
    )  # fmt: skip
    engine.executor.fail_copies = faults[0]
    made, cancel_at, out = [], {}, []
    steps = 0

    def step() -> None:
        nonlocal steps
        for id, at in list(cancel_at.items()):
            if steps >= at:
                engine.cancel(id)
                del cancel_at[id]
        out.extend(engine.step())
        engine.ledger.audit()
        steps += 1
        assert steps < 6000, "the engine does not come to an end"

    for i, (length, family, output, n, tenant, wait, cancelled) in enumerate(jobs):
        made.append(request(f"r{i}", [*prompt(length, family), *[i] * (i % 3)], output, n=n, tenant=tenant))
        engine.add(made[-1])
        if cancelled is not None:
            cancel_at[f"r{i}"] = steps + cancelled
        for _ in range(wait):
            step()
    while engine.unfinished:
        step()
    for one in made:
        whole = alone(one, max_length=96)
        for index in range(one.sampling.n):
            mine = tokens_of(out, one.id, index)
            (finish,) = [d.finish for d in out if d.request_id == one.id and d.index == index and d.finish is not None]
            assert finish in ("length", "cancelled"), [d.error for d in out if d.error]
            assert mine == (whole[index] if finish == "length" else whole[index][: len(mine)])
    cache, pool = cache_of(engine), engine.ledger.books.pool
    while cache.settle(wait=True) or cache.moving:
        pass
    assert pool.available == pool.blocks
    assert not engine.events.counts[Kind.PLAN_REFUSED]
    if engine.ledger.transfers is not None:
        engine.ledger.transfers.audit([])
    engine.ledger.audit()


@settings(max_examples=25, phases=(Phase.explicit, Phase.generate))
@given(
    victim=st.integers(17, 90),
    probe=st.integers(17, 90),
    other=st.sampled_from([{"cache_salt": "b"}, {"tenant": "b"}, {"cache_salt": "b", "tenant": "b"}]),
    where=st.sampled_from(["device", "host", "store"]),
    repeat=st.booleans(),
)
def test_a_probe_of_another_salt_or_tenant_sees_no_difference(
    victim: int, probe: int, other: dict, where: str, repeat: bool
) -> None:
    """All that a prober could time (states, tokens computed and reused, loads) is the same whether or not somebody else's
    prompt, which begins like his own, lies in any tier."""

    def observed(with_victim: bool) -> list[tuple[float, ...]]:
        engine = tiered_engine(stores=lambda pool: [FakeStore(pool, 99)], second=16 if where == "store" else 64)
        if with_victim:
            serve(engine, request("victim", prompt(victim), cache_salt="a"))
            if where == "store":
                serve(engine, request("z", prompt(130, 2), cache_salt="a"))
            if where != "device":
                forget_device(engine)
        first = len(engine.events)
        for i in range(1 + repeat):
            if i:
                forget_device(engine)
            serve(engine, request(f"probe{i}", prompt(probe), **other))
        columns = engine.events.columns(first)
        mine = columns["sequence"] == max(columns["sequence"])
        seen = (columns["sequence"] >= 0) | (columns["kind"] == Kind.STEP)
        assert mine.any()
        rows = zip(columns["kind"][seen].tolist(), columns["a"][seen].tolist(), strict=True)
        return [row for row in rows if row[0] != Kind.FORKED]

    assert observed(True) == observed(False)
    if where != "device" or not repeat:
        return
    same = tiered_engine()
    serve(same, request("victim", prompt(90), cache_salt="a"))
    out, _ = serve(same, request("own", prompt(90), cache_salt="a"))
    assert out[0].reused > 0, "one's own salt does hit, so the comparison above can fail"
