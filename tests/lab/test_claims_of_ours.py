"""The parts of our claims that can be wrong without a measurement looking odd: turns, equal tokens, orders, workloads."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine import tiny

from hasten.engine.config import EngineConfig
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.lab.bench.metrics import requests, steps
from hasten.lab.bench.saturation import throughput
from hasten.lab.claims import flover, idealized_runtime, prefix_caching, simulator
from hasten.lab.claims.sides import Side, Sides, equal_tokens, share
from hasten.lab.planning.devices import Device
from hasten.lab.planning.simulate import simulate
from hasten.lab.workloads.base import TimedRequest, Workload
from hasten.lab.workloads.generate import poisson
from hasten.lab.workloads.transform import scale_load

COMMON = ("model.load_format=dummy", "kv.memory_bytes=4000000", "executor.threads=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


def workload(seed: int = 0, count: int = 6, rate: float = 1e4) -> Workload:
    return poisson(rate=rate, requests=count, prompt=20, prompt_sigma=0.5, output=8, output_sigma=0.8, longest=60, seed=seed)


def test_sides_take_turns_on_the_same_arrivals(model: str) -> None:
    sides = Sides([Side("a"), Side("b", ("whole-prompts",)), Side("c")], model=model, common=COMMON)
    told: list[str] = []
    rounds = sides.rounds(
        workload, 3, lambda what, done: told.append(what), lambda number: ["a", "b"] if number else ["a", "b", "c"]
    )
    works = []
    for runs in rounds:
        works.append({id(run.workload) for run in runs.values()})
        assert all(requests(run).ok.all() for run in runs.values())
    assert [what.partition(": ")[2] for what in told] == ["a", "b", "c", "b", "a", "a", "b"]
    assert [len(work) for work in works] == [1, 1, 1], "all sides of a round have one workload"
    sides.close()


def test_a_failed_request_stops_the_claim(model: str) -> None:
    sides = Sides([Side("a")], model=model, common=COMMON)
    long = Workload(name="long", requests=[TimedRequest(id="x", arrival_s=0, prompt_tokens=600, output_tokens=1)])
    with pytest.raises(RuntimeError, match=r"a: 1 requests of long failed, the first, 0: .*context"):
        sides.replay("a", long)
    sides.close()


def test_equal_tokens_are_told_from_unequal_ones(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [Side("plain"), Side("batches", ("static-batches:rows=2",))]
    guard = equal_tokens(sides, workload(), model=model, common=COMMON)
    total = sum(request.output_tokens for request in workload())
    assert guard.held and f"6 requests, {total} output tokens" in guard.detail
    replay = Sides.replay

    def wrong(self: Sides, name: str, work: Workload, seed: int = 0) -> Any:
        run, tokens = replay(self, name, work, seed)
        if name == "batches":
            tokens[4][-1] += 1
        return run, tokens

    monkeypatch.setattr(Sides, "replay", wrong)
    broken = equal_tokens(sides, workload(), model=model, common=COMMON)
    assert not broken.held and "batches differs from plain in request 4" in broken.detail


def test_a_part_of_the_progress_stays_in_its_part() -> None:
    told: list[float] = []
    part = share(share(lambda what, done: told.append(done), 0.5, 1.0), 0.0, 0.5)
    part("x", 0.0)
    part("x", 1.0)
    assert told == [0.5, 0.75]


def test_sustained_throughput_leaves_filling_and_draining_out(model: str) -> None:
    sides = Sides([Side("one", ("static-batches:rows=1",))], model=model, common=COMMON)
    work = Workload(
        name="w",
        requests=[
            TimedRequest(id=str(i), arrival_s=0, prompt_tokens=4, output_tokens=n) for i, n in enumerate((50, 5, 7, 400))
        ],
    )
    run, tokens = sides.replay("one", work)
    sides.close()
    assert [len(tokens[i]) for i in range(4)] == [50, 5, 7, 400]
    _, begin_s, _, end_s = requests(run).scheduled_s
    assert flover.sustained(run) == pytest.approx(12 / (end_s - begin_s), rel=1e-6)
    assert steps(run).end_s[-1] > 2 * end_s, "most of the run was draining"


def test_the_workloads_are_what_the_claims_say() -> None:
    outputs = [request.output_tokens for request in flover.workload(4000, 1.0, 0)]
    assert 48 < sum(outputs) / len(outputs) < 62 and max(outputs) > 500
    flows = prefix_caching.shared_workload(8, 1.0, 0)
    assert {request.application for request in flows} == {"conversation", "agent"}
    assert max(request.prompt_tokens + request.output_tokens for request in flows) <= 1900
    alone = prefix_caching.unshared_workload(50, 0)
    assert not any(request.blocks for request in alone) and alone.duration_s < 0.01


@given(st.permutations(range(6)))
def test_agreement_of_orders(order: list[int]) -> None:
    true = {str(i): 1.5**i for i in range(6)}
    other = {str(i): float(order[i]) for i in range(6)}
    inversions = sum(order[i] > order[j] for i in range(6) for j in range(i + 1, 6))
    assert idealized_runtime.agreement(true, other) == pytest.approx(1 - 2 * inversions / 15)
    alike = {str(i): 1 + 0.01 * i for i in range(6)}
    assert idealized_runtime.agreement(alike, other) == 1, "who is alike is not ranked"


@pytest.mark.parametrize("quick", [True, False])
def test_few_queries_make_the_fit_and_others_judge_it(quick: bool) -> None:
    plan = idealized_runtime.plan(quick)
    assert len(plan.fit) <= 20
    assert len(set(plan.fit)) == len(plan.fit)
    prompts = [prompt for prompt, _ in plan.fit]
    first, second = (idealized_runtime.held_out(plan, seed) for seed in (0, 1))
    assert first == idealized_runtime.held_out(plan, 0) != second
    assert not set(plan.fit) & set(first), "points of the fit cannot judge it"
    assert all(min(prompts) <= prompt <= max(prompts) for prompt, _ in first + second), "F is interpolated, not extrapolated"
    assert plan.long[1] > 10 * max(output for _, output in plan.fit)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes are bound to cores on Linux only")
def test_the_busy_process_shares_our_core_and_ends() -> None:
    before = os.sched_getaffinity(0)
    with idealized_runtime._busy(0):
        assert len(os.sched_getaffinity(0)) == 1
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        assert children
        time.sleep(0.05)
    assert os.sched_getaffinity(0) == before
    assert not set(children) & set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize(("slower", "right"), [(1.0, True), (1.5, False)])
def test_the_simulator_claim_sees_a_wrong_cost_model(slower: float, right: bool) -> None:
    """What is called real is simulated here too, on a machine that is as fast as the calibration says, or is not."""
    costs = CostModel(knots=(1, 64, 512), knot_s=(0.01, 0.012, 0.05), row_s=1e-4, cached_s=1e-7, pair_s=1e-9)
    model = SimulatedModel(name="test", vocabulary=1000, max_length=600)
    device = Device(model=model, costs=costs, kv_token_bytes=100, kv_bytes=None, source="a test")
    config = EngineConfig.build()
    work = poisson(rate=4.0, requests=40, prompt=60, output=40, longest=500, seed=3)
    rates = {"azure": throughput(lambda crowd: simulate(crowd, device, config, speeds=[1 / slower]), work)}
    real = {
        ("azure", load): simulate(scale_load(work, load * rates["azure"]), device, config, speeds=[1 / slower])
        for load in simulator.LOADS
    }
    found = simulator._compare(device, config, {"azure": work}, rates, real)
    worst = [max(found[f"azure_{load * 100:.0f}"].values()) for load in simulator.LOADS] + [found["azure_full"]]
    assert (max(worst) < 1e-6) is right
    assert right or min(worst) > 0.2
