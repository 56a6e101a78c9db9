"""Least attained service: workflows that were given little go first, and classes change when they should."""

from __future__ import annotations

import math
from time import perf_counter

import pytest
from tests.engine.fake import make_engine
from tests.engine.test_steady import drive, engine
from tests.scheduling.asks import asking, ends

from hasten.engine.config import EngineConfig
from hasten.engine.scheduling.least_attained import LeastAttained, Options
from hasten.engine.scheduling.workflows import Workflow
from hasten.engine.technique import ConfigError


def order(quantum: int) -> LeastAttained:
    return LeastAttained(Options(quantum=quantum))


def test_a_new_workflow_overtakes_one_that_was_given_much() -> None:
    one = make_engine(rows=1, order=order(10))
    one.add(asking("w1", prompt=30, workflow="w"))
    one.run()
    one.add(asking("w2", workflow="w"))
    one.add(asking("new", workflow="v"))
    one.add(asking("single"))
    assert ends(one.run()) == ["new", "single", "w2"]


def test_keys_follow_service_in_classes() -> None:
    policy = order(8)
    one = make_engine(order=policy, chunk=64)
    one.add(asking("a", prompt=7, tokens=30, workflow="w"))
    one.add(asking("b", prompt=3, tokens=30, workflow="w"))
    view = one._planner
    while one.unfinished:
        one.step()
        view._ranked()
        for seq in view.sequences:
            assert view.order_key(seq) == view.workflow(seq).service // 8


def test_classes_are_followed_while_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a real clock, on which a step's end is past when its event is looked at."""
    one = make_engine(order=order(8), chunk=64)
    monkeypatch.setattr(one.clock, "now", perf_counter)
    one.add(asking("a", tokens=30))
    one.step()
    view = one._planner
    (seq,) = view.sequences
    while seq.service < 16:
        one.step()
    view._ranked()
    assert view.order_key(seq) == 2


def test_a_workflow_is_summed_once_a_step_however_many_calls_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_engine(order=order(8), chunk=64)
    for number in range(12):
        one.add(asking(str(number), workflow="w", tokens=20))
    one.step()
    sums: list[int] = []
    service = Workflow.service.fget
    assert service is not None
    monkeypatch.setattr(Workflow, "service", property(lambda self: sums.append(1) or service(self)))
    one.step()
    assert 1 <= len(sums) <= 3, "at the step's end, and for keys and steadiness if asked for"


@pytest.mark.parametrize("quantum", [3, 50])
@pytest.mark.parametrize("blocks", [40, 400])
def test_steps_taken_together_leave_the_same_events(quantum: int, blocks: int) -> None:
    arrivals = [(0.05 * i, 0, 10 + 7 * i, 20 + 13 * (i % 4)) for i in range(12)]
    with_ = (f"least-attained:quantum={quantum}",)
    together, single = engine(False, blocks, with_), engine(True, blocks, with_)
    events, out = drive(together, arrivals)
    expected, expected_out = drive(single, arrivals)
    assert out == expected_out
    assert all((events[name] == column).all() for name, column in expected.items())


def test_it_holds_until_the_first_workflow_reaches_the_next_class() -> None:
    policy = order(20)
    one = make_engine(order=policy, chunk=64)
    one.add(asking("a", prompt=7, tokens=30, workflow="w"))
    one.add(asking("b", prompt=3, tokens=30, workflow="w"))
    one.step()
    plan = one._planner.plan()
    assert policy.steady(plan, one._planner) == (20 - 10) // 2
    assert order(1000).steady(type(plan)(), one._planner) == math.inf


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(ConfigError, match="quantum must be at least 1 token"):
        EngineConfig.build(with_=["least-attained:quantum=0"]).make("least-attained")
