"""Virtual token counters: the order of the paper's algorithm, its bound, and that nobody saves up service."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.fake import alone, make_engine
from tests.engine.test_steady import COSTS, MODEL

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.loop import Engine
from hasten.engine.request import Request, SamplingParams
from hasten.engine.scheduling import fair_share
from hasten.engine.scheduling.fair_share import FairShare, Options
from hasten.engine.simulate import simulated_engine
from hasten.engine.technique import ConfigError


def request(id: str, tenant: str, prompt: int = 5, output: int = 4) -> Request:
    sampling = SamplingParams(max_tokens=output, temperature=0, seed=1, ignore_eos=True)
    return Request(id=id, prompt=1 + np.arange(prompt) % 37, sampling=sampling, tenant=tenant)


class Naive:
    """Algorithm 2 of the paper, admitting one request at a time from whoever has the lowest counter."""

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self.counter: dict[str, float] = {}
        self.queue: list[tuple[str, str, int]] = []
        self.last = ""
        self.weights = weights or {}

    def came(self, id: str, tenant: str, prompt: int) -> None:
        waiting = {name for _, name, _ in self.queue}
        if tenant not in waiting:
            low = min((self.counter[name] for name in waiting), default=self.counter.get(self.last, 0.0))
            self.counter[tenant] = max(self.counter.get(tenant, 0.0), low)
        self.queue.append((id, tenant, prompt))

    def admit(self) -> str:
        name = min(dict.fromkeys(tenant for _, tenant, _ in self.queue), key=lambda tenant: self.counter[tenant])
        place = next(i for i, (_, tenant, _) in enumerate(self.queue) if tenant == name)
        id, _, prompt = self.queue.pop(place)
        self.counter[name] += prompt / self.weights.get(name, 1.0)
        if all(tenant != name for _, tenant, _ in self.queue):
            self.last = name
        return id

    def produced(self, tenant: str, tokens: int) -> None:
        self.counter[tenant] += 2 * tokens / self.weights.get(tenant, 1.0)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 30), st.integers(1, 12), st.integers(0, 6)), min_size=1, max_size=25
    )
)
def test_admissions_are_those_of_the_papers_algorithm(jobs: list[tuple[str, int, int, int]]) -> None:
    """One row, so that admissions follow each other; counted at every step, tagged at every change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fair_share, "EVERY", 1)
        patch.setattr(fair_share, "DRIFT", 0.0)
        weights = {"d": 4.0}  # whose quotients floats hold exactly
        engine = make_engine(order=FairShare(Options(weights="d=4")), rows=1, reuse=False, tokens=64, chunk=64)
        naive = Naive(weights)
        admitted: list[str] = []
        running: list[str] = []
        produced: dict[str, int] = {}
        made = {f"{number}": job for number, job in enumerate(jobs)}
        todo = list(made.items())
        while todo or engine.unfinished:
            while todo:
                id, (tenant, prompt, output, wait) = todo[0]
                if wait and engine.unfinished:
                    todo[0] = (id, (tenant, prompt, output, wait - 1))
                    break
                todo.pop(0)
                engine.add(request(id, tenant, prompt, output))
                naive.came(id, tenant, prompt)
            if not running and naive.queue:
                running.append(naive.admit())
                admitted.append(running[0])
            deltas = engine.step()
            for delta in deltas:
                assert delta.request_id == running[0], "another request runs than the paper's algorithm picks"
                naive.produced(made[delta.request_id][0], len(delta.tokens))
                produced[delta.request_id] = produced.get(delta.request_id, 0) + len(delta.tokens)
                if delta.last:
                    running.clear()
        assert len(admitted) == len(jobs)


def simulated(order: str, rows: int = 8, single: bool = False) -> Engine:
    config = EngineConfig.build(
        with_=[order], set_={"kv.block_size": 8, "scheduling.max_tokens": 64, "scheduling.max_rows": rows, "kv.reuse": None}
    )
    return simulated_engine(config, MODEL, COSTS, blocks=60, single_steps=single)


def ahead(engine: Engine, requests: dict[str, list[tuple[int, int]]], weights: dict[str, float]) -> tuple[float, float]:
    """(widest difference of service per weight of the first two tenants over any interval in which both have somebody
    waiting, the service of the first in it). `requests`: (prompt, output) by tenant, all of which come at once."""
    tenant_of: dict[int, str] = {}
    number = 0
    for tenant, jobs in requests.items():
        for prompt, output in jobs:
            engine.add(request(str(number), tenant, prompt, output))
            tenant_of[number] = tenant
            number += 1
    names = list(requests)[:2]
    while engine.unfinished:
        waiting = {seq.request.tenant for seq in engine.ledger.sequences.values() if not seq.service}
        if engine.ledger.sequences and not set(names) <= waiting:
            break
        engine.step()
    columns = engine.events.columns()
    service = dict.fromkeys(requests, 0.0)
    seen: set[int] = set()
    differences = [0.0]
    prompts = {i: job[0] for i, job in enumerate(job for jobs in requests.values() for job in jobs)}
    for kind, sequence, a in zip(columns["kind"], columns["sequence"].tolist(), columns["a"].tolist(), strict=True):
        if kind == Kind.SCHEDULED and sequence not in seen:
            seen.add(sequence)
            service[tenant_of[sequence]] += prompts[sequence]
        elif kind == Kind.TOKENS:
            service[tenant_of[sequence]] += 2 * a
        one, other = (service[name] / weights.get(name, 1.0) for name in names)
        differences.append(one - other)
    return max(differences) - min(differences), service[names[0]]


@pytest.mark.parametrize("seed", range(4))
def test_service_of_two_tenants_that_wait_differs_by_no_more_than_the_bound(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = {"a": 2.0} if seed % 2 else {}
    order = "fair-share:weights=a=2" if weights else "fair-share"
    jobs = {
        "a": [(int(random.integers(1, 8)), int(random.integers(60, 100))) for _ in range(120)],
        "b": [(int(random.integers(40, 60)), int(random.integers(1, 8))) for _ in range(360)],
        "c": [(10, 10)] * 50,
    }
    rows = 4
    spread, service = ahead(simulated(order, rows), jobs, weights)
    bound = 2 * max(60, 2 * 60 * 8)  # the longest prompt, the tokens of KV
    bound += fair_share.EVERY * rows * 2 + fair_share.DRIFT
    assert spread <= bound
    assert service > 4 * bound, "the interval is long enough for an unfair order to break the bound"
    unfair, _ = ahead(simulated("fcfs", rows), {"a": jobs["a"], "b": jobs["b"]}, weights)
    assert unfair > bound


def test_who_comes_back_has_saved_nothing_up() -> None:
    order = FairShare(Options())
    engine = make_engine(order=order, rows=2, blocks=200)
    engine.add(request("early", "a", output=3))
    engine.run()
    for number in range(30):
        engine.add(request(f"b{number}", "b", prompt=20, output=10))
    for _ in range(60):
        engine.step()
    assert order.tenants["b"].counter > 100
    engine.add(request("late", "a", output=3))
    engine.step()
    a, b = order.tenants["a"], order.tenants["b"]
    assert a.counter >= b.counter - 2 * (20 + 2 * fair_share.EVERY), "lifted to where the others are"


def test_and_after_a_pause_of_all_it_starts_where_the_last_one_stopped() -> None:
    order = FairShare(Options())
    engine = make_engine(order=order, rows=2)
    engine.add(request("one", "a", prompt=30, output=3))
    engine.run()
    engine.add(request("two", "b", prompt=4, output=3))
    engine.step()
    assert order.tenants["b"].counter >= 30


def test_what_leaves_unserved_costs_nothing_and_lets_the_others_up() -> None:
    order = FairShare(Options())
    engine = make_engine(order=order, rows=1)
    engine.add(request("running", "x", output=30))
    engine.step()
    for id in ("gone", "stays"):
        engine.add(request(id, "a", prompt=40))
    engine.add(request("other", "b", prompt=10))
    engine.step()
    key = engine._planner.order_key
    found = {seq.request.id: seq for seq in engine.ledger.sequences.values()}
    assert key(found["other"]) < key(found["stays"])
    engine.cancel("gone")
    engine.step()
    assert key(found["stays"]) == key(found["other"])
    engine.run()
    assert not order._tags and not order._charged


def test_idle_tenants_are_forgotten_without_giving_them_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_share, "KEPT", 20)
    order = FairShare(Options())
    engine = make_engine(order=order)
    for number in range(100):
        engine.add(request(str(number), f"tenant{number}"))
        engine.run()
        assert len(order.idle) <= 20
    assert not order.tenants


@pytest.mark.parametrize("seed", range(12))
def test_steps_taken_together_are_single_steps(seed: int) -> None:
    random = np.random.default_rng(seed)
    arrivals = sorted((float(random.uniform(0, 3)), number) for number in range(16))
    jobs = [(str(random.choice(list("abc"))), int(random.integers(1, 60)), int(random.integers(1, 120))) for _ in arrivals]
    logs = []
    for single in (False, True):
        engine = simulated("fair-share", rows=3, single=single)
        waiting = list(arrivals)
        while waiting or engine.unfinished:
            while waiting and waiting[0][0] <= engine.clock.now():
                _, number = waiting.pop(0)
                engine.add(request(str(number), *jobs[number]))
            next_s = waiting[0][0] if waiting else float("inf")
            if not engine.unfinished:
                engine.clock.sleep(next_s - engine.clock.now())
                continue
            engine.step(next_s)
        logs.append(engine.events.columns())
    for name, column in logs[1].items():
        assert np.array_equal(logs[0][name], column), name


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(1, 40), st.integers(1, 25), st.sampled_from([1, 1, 3]), st.integers(0, 4)
        ),
        min_size=1,
        max_size=9,
    ),
    blocks=st.integers(12, 40),
    host=st.sampled_from([0, 8]),
    cancelled=st.integers(0, 12),
)
def test_any_arrivals_give_what_each_request_gets_alone(
    jobs: list[tuple[str, int, int, int, int]], blocks: int, host: int, cancelled: int
) -> None:
    order = FairShare(Options())
    engine = make_engine(order=order, blocks=blocks, host_blocks=host, max_length=96, rows=4)
    made, out = [], []
    for number, (tenant, prompt, output, n, wait) in enumerate(jobs):
        sampling = SamplingParams(max_tokens=output, temperature=0.8 if n > 1 else 0.0, seed=1, n=n)
        made.append(Request(id=str(number), prompt=np.arange(prompt) % 37, sampling=sampling, tenant=tenant))
        engine.add(made[-1])
        for _ in range(wait):
            out += engine.step()
    engine.cancel(str(cancelled))
    steps = 0
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
        steps += 1
        assert steps < 3000, "the engine does not come to an end"
    for one in made:
        expected = alone(one, max_length=96)
        for index, tokens in enumerate(expected):
            got = [token for d in out if (d.request_id, d.index) == (one.id, index) for token in d.tokens]
            assert got == tokens or (one.id == str(cancelled) and got == tokens[: len(got)])
    assert not order._tags and not order._charged and not order.tenants
    assert all(not tenant.waiting and not tenant.live for tenant in order.idle.values())


def test_bad_knobs_are_refused() -> None:
    for knob, message in (
        ("weights=gold", "expected tenant=weight"),
        ("weights=gold=0", "weights above 0"),
        ("weights=gold=1+gold=2", "expected tenant=weight"),
        ("prompt_price=-1", "prompt_price must be a number from 0 on"),
        ("prompt_price=0:output_price=0", "both 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            EngineConfig.build(with_=[f"fair-share:{knob}"]).make("fair-share")
    assert FairShare(Options(weights="a=b=2+c=1"))._weights == {"a=b": 2.0, "c": 1.0}
