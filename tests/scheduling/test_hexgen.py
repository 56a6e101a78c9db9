"""HexGen's budgets against a computation by hand, its dispatcher's books, and when alpha is tuned again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.engine.fake import make_engine

from hasten.engine.executors.cost import StepShape
from hasten.engine.request import SLO, AppContext, Request, SamplingParams
from hasten.engine.scheduling.demand.expected import call_seconds, expected
from hasten.engine.scheduling.demand.graph import DemandGraph
from hasten.engine.scheduling.demand.runs import Visit
from hasten.engine.scheduling.demand.store import Demand
from hasten.engine.scheduling.hexgen import HexGen, Options
from hasten.lab.planning.alpha import Drift
from hasten.serving.cluster.base import Dispatcher, EngineView, FleetView
from hasten.serving.cluster.hexgen import HexGenDispatcher
from hasten.serving.cluster.least_outstanding import LeastOutstanding
from hasten.serving.cluster.round_robin import RoundRobin

STEP_TOKENS = 16
STEP_S = 1e-3 * STEP_TOKENS  # as the fake executor prices a step


def visit(unit: str, *calls: tuple[int, int]) -> Visit:
    return Visit(unit, calls=calls)


DEMAND = Demand(
    {
        "sql": DemandGraph(
            "sql",
            (
                (visit("plan", (32, 4)), visit("write", (16, 9), (16, 11)), visit("revise", (16, 3))),
                (visit("plan", (32, 4)), visit("write", (16, 10)), visit("revise", (16, 3)), visit("revise", (16, 3))),
            ),
        )
    }
)
SECONDS = {"plan": (2 + 4) * STEP_S, "write": (1 + 10) * STEP_S, "revise": (1 + 3) * STEP_S}


def call(id: str, stage: str, workflow: str, *, prompt: int = 16, parents: tuple[str, ...] = (), **more: object) -> Request:
    return Request(
        id=id,
        prompt=np.arange(prompt) % 30,
        sampling=SamplingParams(max_tokens=5, temperature=0, ignore_eos=True),
        app=AppContext(application="sql", workflow=workflow, stage=stage, parents=parents),
        slo=SLO(deadline_s=more.get("deadline_s")),  # type: ignore[arg-type]
        arrival_s=more.get("arrival_s"),  # type: ignore[arg-type]
    )


def engine_with(order: HexGen, **more: object):  # type: ignore[no-untyped-def]
    return make_engine(order=order, **more)


def key(engine: object, request_id: str) -> float:
    planner = engine._planner  # type: ignore[attr-defined]
    return next(planner.order_key(seq) for seq in planner.sequences if seq.request.id == request_id)


def test_the_expected_list_has_means_over_runs() -> None:
    stages = expected(DEMAND.graphs["sql"])
    assert {unit: stage.visits for unit, stage in stages.items()} == {"plan": 1.0, "write": 1.0, "revise": 1.5}
    assert (stages["write"].prompt, stages["write"].output) == (16, 10)
    assert call_seconds(32, 4, 0.5, 16) == 3.0


def test_a_stage_gets_its_share_of_what_is_left_and_seen_stages_are_struck() -> None:
    order = HexGen(Options(step_tokens=STEP_TOKENS), DEMAND)
    engine = engine_with(order, chunk=16)
    assert order._step(engine._planner) == pytest.approx(STEP_S) == engine._planner.price(StepShape(16, 1, 1, 16, 16))
    deadline_s = 2.0
    engine.add(call("a", "plan", "w", prompt=32, deadline_s=deadline_s, arrival_s=0.0))
    engine.step()
    left = SECONDS["write"] + 1.5 * SECONDS["revise"]
    budget = deadline_s * SECONDS["plan"] / (SECONDS["plan"] + left)
    assert key(engine, "a") == pytest.approx(budget - SECONDS["plan"])
    engine.run()

    now = engine.clock.now()
    engine.add(call("b", "write", "w", parents=("a",), arrival_s=now))
    engine.add(call("c", "write", "w", parents=("a",), arrival_s=now, prompt=64))
    engine.step()
    budget = (deadline_s - now) * SECONDS["write"] / (SECONDS["write"] + 1.5 * SECONDS["revise"])
    assert key(engine, "b") == pytest.approx(now + budget - SECONDS["write"])
    assert key(engine, "c") == pytest.approx(now + budget - (4 + 10) * STEP_S), "its own prompt, its stage's budget"
    engine.run()

    now = engine.clock.now()
    engine.add(call("d", "revise", "w", parents=("b", "c"), arrival_s=now))
    engine.step()
    share = SECONDS["revise"] / (SECONDS["revise"] + 0.5 * SECONDS["revise"])
    assert key(engine, "d") == pytest.approx(now + (deadline_s - now) * share - SECONDS["revise"])
    engine.run()

    now = engine.clock.now()
    engine.add(call("e", "revise", "w", parents=("d",), arrival_s=now))
    engine.step()
    assert key(engine, "e") == pytest.approx(deadline_s - SECONDS["revise"]), "nothing more is expected: all of the rest"


def test_the_most_urgent_call_runs_next() -> None:
    engine = engine_with(HexGen(Options(step_tokens=STEP_TOKENS), DEMAND), rows=1)
    engine.add(call("first", "plan", "w0", deadline_s=9.0))
    engine.step()
    engine.add(call("easy", "revise", "w1", deadline_s=5.0))
    engine.add(call("tight", "revise", "w2", deadline_s=0.5))
    engine.add(call("long", "revise", "w3", deadline_s=0.5, prompt=120))
    ended = [delta.request_id for delta in engine.run() if delta.last]
    assert ended == ["first", "long", "tight", "easy"], "who runs is not preempted; of equal budgets the longer call goes first"


def test_without_deadline_or_graph_there_still_is_an_order() -> None:
    engine = engine_with(HexGen(Options(step_tokens=STEP_TOKENS, slack=2.0), DEMAND))
    engine.add(call("a", "plan", "w", prompt=32, arrival_s=0.0))
    stranger = call("s", "what", "x", arrival_s=0.0)
    engine.add(stranger)
    engine.step()
    whole = SECONDS["plan"] + SECONDS["write"] + 1.5 * SECONDS["revise"]
    assert key(engine, "a") == pytest.approx(2.0 * whole * SECONDS["plan"] / whole - SECONDS["plan"])
    assert math.isfinite(key(engine, "s"))
    engine.run()


def test_calls_of_their_own_leave_nothing_behind_and_push_no_workflow_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.engine.scheduling.hexgen.KEPT", 2)
    order = HexGen(Options(step_tokens=STEP_TOKENS), DEMAND)
    engine = engine_with(order)
    engine.add(call("a", "plan", "w", deadline_s=9.0))
    engine.run()
    for id in "bcde":
        engine.add(call(id, "write", ""))
        engine.run()
    assert [progress.seen for progress in order._all.values()] == [{"plan": 1}]
    assert not order._of


def test_a_stage_that_always_begins_with_another_is_as_long_as_the_two_are() -> None:
    demand = Demand({"sql": DemandGraph("sql", ((visit("check+write", (16, 9), (16, 11)),),))})
    order = HexGen(Options(step_tokens=STEP_TOKENS), demand)
    engine = engine_with(order)
    engine.add(call("a", "write", "w", deadline_s=2.0, arrival_s=0.0))
    engine.add(call("b", "check", "w", deadline_s=2.0, arrival_s=0.0))
    engine.step()
    for id in "ab":  # all of the deadline less 10 tokens and the prompt, not the 5 tokens that a call may have
        assert key(engine, id) == pytest.approx(2.0 - (1 + 10) * STEP_S)


def test_urgency_follows_the_pace_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with(HexGen(Options(step_tokens=STEP_TOKENS), DEMAND))
    engine.add(call("a", "revise", "w", deadline_s=2.0, arrival_s=0.0))
    engine.step()
    monkeypatch.setattr(engine.executor, "price", lambda shape: 2e-3 * shape.tokens)  # it turns out to be slower
    now = engine.clock.now()
    engine.add(call("b", "revise", "v", deadline_s=2.0, arrival_s=now))
    engine.step()
    share = SECONDS["revise"] / (1.5 * SECONDS["revise"] + SECONDS["plan"] + SECONDS["write"])
    assert key(engine, "b") == pytest.approx(now + 2.0 * share - 2 * SECONDS["revise"])


@pytest.mark.parametrize("knobs", [{"slack": 0.0}, {"slack": math.inf}, {"step_tokens": 0}])
def test_bad_knobs_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"hexgen: {next(iter(knobs))}"):
        HexGen(Options(**knobs))  # type: ignore[arg-type]


# -- the dispatcher ------------------------------------------------------------------------------------------------------


def fleet(*speeds: float) -> FleetView:
    return FleetView(0.0, [EngineView(i, speed) for i, speed in enumerate(speeds)])


def test_alpha_one_looks_at_speed_alone_and_zero_at_queues_alone() -> None:
    view = fleet(1.0, 2.0)
    fast = HexGenDispatcher(1.0, DEMAND)
    assert [fast.assign(call(str(i), "plan", "w"), view) for i in range(4)] == [1, 1, 1, 1]
    even = HexGenDispatcher(0.0, DEMAND)
    given = [even.assign(call(str(i), "plan", "w"), view) for i in range(6)]
    assert given.count(1) == 4, "twice the work lies on the engine of twice the speed"


def test_a_score_is_what_the_formula_says() -> None:
    view = fleet(1.0, 1.5)
    dispatcher = HexGenDispatcher(0.6, DEMAND)
    first = dispatcher.assign(call("a", "write", "w"), view)
    assert first == 1
    # W: 0 and its 16/512 + 10 steps at speed 1.5; the mean is half of that.
    scores = [0.6 * 1.0 - 0.4 * 0.0, 0.6 * 1.5 - 0.4 * 2.0]
    assert dispatcher.assign(call("b", "write", "w"), view) == int(np.argmax(scores))


def test_work_comes_off_when_it_comes_back() -> None:
    view = fleet(1.0, 1.0)
    dispatcher = HexGenDispatcher(0.0, DEMAND)
    assert [dispatcher.assign(call(id, "plan", "w"), view) for id in "ab"] == [0, 1]
    dispatcher.ended("b")
    dispatcher.ended("b")
    dispatcher.ended("unknown")
    assert dispatcher._work == {0: pytest.approx(16 / 512 + 4), 1: 0.0}
    assert dispatcher.assign(call("c", "plan", "w"), view) == 1
    with pytest.raises(ValueError, match="alpha"):
        HexGenDispatcher(1.5)


@pytest.mark.parametrize("dispatcher", [RoundRobin(), LeastOutstanding(), HexGenDispatcher(0.5, DEMAND)])
def test_engines_are_called_by_their_numbers(dispatcher: Dispatcher) -> None:
    engines = [EngineView(3), EngineView(7)]
    given = set()
    for id in "ab":
        number = dispatcher.assign(call(id, "plan", "w"), FleetView(0.0, engines))
        next(engine for engine in engines if engine.number == number).outstanding += 1
        given.add(number)
    assert given == {3, 7}


# -- tuning again --------------------------------------------------------------------------------------------------------


def test_drift_is_seen_in_times_and_in_the_mix() -> None:
    slower = Drift(window=4)
    assert not any(slower.done(1.0, ["plan", "write"]) for _ in range(8))
    assert [slower.done(2.0, ["plan", "write"]) for _ in range(4)].index(True) < 3
    mixed = Drift(window=4)
    assert not any(mixed.done(1.0, ["plan", "write"]) for _ in range(8))
    assert any(mixed.done(1.0, ["plan", "revise", "revise", "revise"]) for _ in range(4))
    steady = Drift(window=4)
    assert not any(steady.done(1.0 + 0.1 * (i % 2), ["plan", "write"]) for i in range(40))
