"""What a dispatcher sees of simulated engines, and when an engine sees what it was given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.request import Request
from hasten.lab.bench.metrics import requests
from hasten.lab.planning.devices import Device
from hasten.lab.planning.fleet import LOOK_AHEAD_S, replay_fleet
from hasten.lab.workloads.base import TimedRequest, Workload
from hasten.serving.cluster.base import Dispatcher, EngineView, FleetView
from hasten.serving.cluster.least_outstanding import LeastOutstanding
from hasten.serving.cluster.round_robin import RoundRobin

DEVICE = Device(
    model=SimulatedModel(name="test", vocabulary=1000, max_length=600),
    costs=CostModel(knots=(1, 64, 512), knot_s=(0.01, 0.012, 0.05), row_s=1e-4, cached_s=1e-7),
    kv_token_bytes=100,
    kv_bytes=None,
    source="a test",
)


class Watched:
    """Asks another dispatcher and remembers what it was shown and what it said."""

    def __init__(self, inner: Dispatcher) -> None:
        self._inner = inner
        self.shown: dict[int, tuple[float, list[EngineView]]] = {}
        self.said: dict[int, int] = {}

    def assign(self, request: Request, view: FleetView) -> int:
        number = int(request.id)
        assert number not in self.said
        copies = [EngineView(e.number, e.speed, e.outstanding, e.outstanding_tokens, e.assigned) for e in view.engines]
        self.shown[number] = (view.now, copies)
        self.said[number] = self._inner.assign(request, view)
        return self.said[number]


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Independent requests and short chains of stages, at times that often coincide."""
    out: list[TimedRequest] = []
    at_s = 0.0
    for i in range(draw(st.integers(1, 25))):
        at_s += draw(st.sampled_from([0.0, 0.01, 0.05, 0.3]))
        parents = (str(draw(st.integers(0, i - 1))),) if i and draw(st.booleans()) else ()
        out.append(
            TimedRequest(
                id=str(i),
                arrival_s=0.0 if parents else at_s,
                prompt_tokens=draw(st.integers(1, 300)),
                output_tokens=draw(st.integers(1, 60)),
                parents=parents,
                delay_s=draw(st.sampled_from([0.0, 0.1])) if parents else 0.0,
            )
        )
    return Workload(name="drawn", requests=out)


@settings(max_examples=60)
@given(
    workloads(),
    st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=4),
    st.sampled_from([RoundRobin, LeastOutstanding]),
    st.sampled_from([(), ("whole-prompts",), ("static-batches:window_s=0.2",)]),
)
def test_the_view_is_what_a_front_end_can_know(
    work: Workload, speeds: list[float], dispatcher: type[Dispatcher], with_: tuple[str, ...]
) -> None:
    config = EngineConfig.build(with_=with_)
    watched = Watched(dispatcher())
    run = replay_fleet([DEVICE.engine(config, speed=speed) for speed in speeds], watched, work, speeds=speeds)
    table = requests(run)
    assert table.ok.all() and sorted(watched.said) == list(range(len(work)))
    order = list(watched.said)
    for place, number in enumerate(order):
        now, views = watched.shown[number]
        assert now == run.due_s[number]
        earlier = order[:place]
        for view, speed in zip(views, speeds, strict=True):
            given_it = [other for other in earlier if watched.said[other] == view.number]
            out = [other for other in given_it if table.end_s[other] > now]
            assert view.speed == speed
            assert view.assigned == len(given_it)
            assert view.outstanding == len(out)
            assert view.outstanding_tokens == sum(
                work.requests[other].prompt_tokens + work.requests[other].output_tokens for other in out
            )
    assert (np.diff([watched.shown[number][0] for number in order]) >= 0).all()
    assert (table.scheduled_s >= table.due_s).all()
    for i in range(len(speeds)):
        mine = (run.columns["sequence"] >= 0) & (run.columns["sequence"] % len(speeds) == i)
        arrived = run.columns["time_s"][mine & (run.columns["kind"] == Kind.ARRIVED)]
        expected = [run.due_s[number] for number in order if watched.said[number] == i]
        assert arrived.tolist() == sorted(expected)


@pytest.mark.parametrize("count", [1, 3])
def test_an_engine_takes_what_is_due_in_its_next_step(count: int) -> None:
    random = np.random.default_rng(3)
    arrivals = np.cumsum(random.exponential(0.03, 120)).tolist()
    work = Workload(
        name="test",
        requests=[TimedRequest(id=str(i), arrival_s=at, prompt_tokens=9, output_tokens=20) for i, at in enumerate(arrivals)],
    )
    run = replay_fleet([DEVICE.engine(EngineConfig()) for _ in range(count)], RoundRobin(), work)
    table = requests(run)
    assert (table.scheduled_s >= table.due_s).all()  # not by a rounding either
    scheduled = run.columns["kind"] == Kind.SCHEDULED
    times, engines = run.columns["time_s"][scheduled], run.columns["sequence"][scheduled] % count
    waited = 0
    for number, sequence in enumerate(run.sequence):
        begins = times[engines == sequence % count]
        between = begins[(begins >= table.due_s[number]) & (begins < table.scheduled_s[number])]
        assert not len(between)
        waited += table.scheduled_s[number] > table.due_s[number]
    assert waited > 10  # steps were under way


def test_a_stage_reaches_an_engine_whose_policy_waits() -> None:
    """Engine 1 holds a request for a window in which a stage, sent by engine 0's end, arrives: both run together."""
    work = Workload(
        name="window",
        requests=[
            TimedRequest(id="parent", arrival_s=0.0, prompt_tokens=5, output_tokens=3),
            TimedRequest(id="early", arrival_s=0.0, prompt_tokens=5, output_tokens=3),
            TimedRequest(id="other", arrival_s=0.01, prompt_tokens=5, output_tokens=3),
            TimedRequest(id="stage", arrival_s=0.0, prompt_tokens=5, output_tokens=3, parents=("parent",)),
        ],
    )
    plain, windowed = EngineConfig(), EngineConfig.build(with_=["static-batches:window_s=0.5"])
    run = replay_fleet([DEVICE.engine(plain), DEVICE.engine(windowed)], RoundRobin(), work)
    table = requests(run)
    assert table.ok.all()
    assert table.end_s[0] < 0.1
    assert table.due_s[3] == table.end_s[0]
    assert table.scheduled_s[[1, 3]] == pytest.approx([0.5, 0.5], abs=LOOK_AHEAD_S)
