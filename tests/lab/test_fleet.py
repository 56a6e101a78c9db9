"""Simulated engines: alone and together they keep time, order and every request."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.request import Request
from hasten.engine.technique import ConfigError
from hasten.lab.bench import ideal
from hasten.lab.bench.drive import replay
from hasten.lab.bench.metrics import requests
from hasten.lab.planning.devices import Device
from hasten.lab.planning.fleet import replay_fleet
from hasten.lab.planning.simulate import simulate
from hasten.lab.workloads.base import TimedRequest, Workload
from hasten.serving.cluster.base import EngineView, FleetView
from hasten.serving.cluster.least_outstanding import LeastOutstanding
from hasten.serving.cluster.round_robin import RoundRobin

COSTS = CostModel(knots=(1, 64, 512), knot_s=(0.01, 0.012, 0.05), row_s=1e-4, cached_s=1e-7, pair_s=1e-9)
DEVICE = Device(
    model=SimulatedModel(name="test", vocabulary=1000, max_length=600),
    costs=COSTS,
    kv_token_bytes=100,
    kv_bytes=None,
    source="a test",
)
CONFIG = EngineConfig.build()


def workload(count: int, gap_s: float, seed: int = 0) -> Workload:
    random = np.random.default_rng(seed)
    return Workload(
        name="test",
        requests=[
            TimedRequest(
                id=str(i),
                arrival_s=i * gap_s,
                prompt_tokens=int(random.integers(1, 200)),
                output_tokens=int(random.integers(1, 100)),
            )
            for i in range(count)
        ],
    )


def workflows(count: int) -> Workload:
    """Two stages each: the second comes when the first has ended, plus half a second."""
    out = []
    for i in range(count):
        out.append(TimedRequest(id=f"{i}a", arrival_s=i * 0.05, prompt_tokens=40, output_tokens=10 + i))
        out.append(TimedRequest(id=f"{i}b", arrival_s=0, prompt_tokens=40, output_tokens=5, parents=(f"{i}a",), delay_s=0.5))
    return Workload(name="flows", requests=out)


def test_one_engine_of_a_fleet_is_that_engine() -> None:
    work = workload(30, 0.05)
    alone = simulate(work, DEVICE, CONFIG)
    fleet = replay_fleet([DEVICE.engine(CONFIG)], RoundRobin(), work)
    order = np.argsort(alone.columns["time_s"], kind="stable")  # arrivals are logged when an engine sees them
    for name, column in alone.columns.items():
        assert np.array_equal(column[order], fleet.columns[name]), name


def test_every_request_is_served_once_and_conserves_tokens() -> None:
    work = workload(60, 0.02)
    run = simulate(work, DEVICE, CONFIG, speeds=[1.0, 2.0, 0.5])
    table = requests(run)
    assert table.ok.all()
    assert table.output_tokens.tolist() == [r.output_tokens for r in work]
    assert sum(run.info["requests"]) == 60
    assert (np.diff(run.columns["time_s"]) >= 0).all()
    assert len(set(run.sequence.tolist())) == 60


def test_a_faster_engine_takes_proportionally_less_time() -> None:
    work = workload(1, 0.0)
    slow, fast = (requests(simulate(work, DEVICE, CONFIG, speeds=[speed])) for speed in (1.0, 4.0))
    assert slow.e2e_s[0] == pytest.approx(4 * fast.e2e_s[0])


@pytest.mark.parametrize("engines", [1, 3])
def test_stages_arrive_when_their_parents_have_ended(engines: int) -> None:
    work = workflows(20)
    run = simulate(work, DEVICE, CONFIG, speeds=[1.0] * engines)
    table = requests(run)
    assert table.ok.all()
    assert np.allclose(run.due_s[1::2], table.end_s[::2] + 0.5)
    scheduled = run.columns["time_s"][run.columns["kind"] == Kind.ARRIVED]
    assert sorted(scheduled) == sorted(run.due_s)


def test_more_engines_wait_less() -> None:
    work = workload(60, 0.02)
    one, three = (requests(simulate(work, DEVICE, CONFIG, speeds=[1.0] * n)) for n in (1, 3))
    assert np.median(three.e2e_s) < np.median(one.e2e_s)


def test_dispatchers() -> None:
    request = Request(id="x", prompt=np.array([1]))
    views = [EngineView(0, 1.0, 3), EngineView(1, 2.0, 3), EngineView(2, 1.0, 1)]
    view = FleetView(0.0, views)
    robin = RoundRobin()
    assert [robin.assign(request, view) for _ in range(4)] == [0, 1, 2, 0]
    # 4/1, 4/2 and 2/1 to do for each: a tie, which the faster engine wins.
    assert LeastOutstanding().assign(request, view) == 1
    views[1].outstanding = 5
    assert LeastOutstanding().assign(request, view) == 2


@pytest.mark.parametrize("speeds", [[], [0.0], [1.0, float("inf")], [-1.0]])
def test_impossible_speeds_are_refused(speeds: list[float]) -> None:
    with pytest.raises(ConfigError, match="speeds must be positive"):
        simulate(workload(2, 0.1), DEVICE, CONFIG, speeds=speeds)


def test_what_cannot_be_served_is_told_and_the_rest_served() -> None:
    work = Workload(
        name="one too long",
        requests=[
            TimedRequest(id="long", arrival_s=0, prompt_tokens=700, output_tokens=3),
            TimedRequest(id="after", arrival_s=0, prompt_tokens=7, output_tokens=3, parents=("long",)),
            TimedRequest(id="short", arrival_s=0, prompt_tokens=7, output_tokens=3),
        ],
    )
    for speeds in ([1.0], [1.0, 1.0]):
        run = simulate(work, DEVICE, CONFIG, speeds=speeds)
        assert "700 tokens" in run.errors[0]
        assert "request 0, which it needs" in run.errors[1]
        assert requests(run).ok.tolist() == [False, False, True]


def test_a_simulated_device_is_as_ideal_as_its_cost_model() -> None:
    """Alone, a request's time is the prompt's and the same for each further token but for what attention reads: `ideal` finds
    it from a few measurements."""
    engine = DEVICE.engine(CONFIG)
    alone = ideal.measure(lambda work, seed: replay(engine, work, seed=seed), engine.max_length, repeats=1)
    held_out = []
    for prompt, output in ((64, 40), (256, 30), (512, 20)):
        request = TimedRequest(id="held out", arrival_s=0.0, prompt_tokens=prompt, output_tokens=output)
        run = replay(engine, Workload(name="one", requests=[request]))
        held_out.append((prompt, output, float(requests(run).e2e_s[0])))
    assert alone.errors(held_out).max() < 1e-3
    assert alone.token_s == pytest.approx(COSTS.tokens(1) + COSTS.row_s, rel=0.01)
