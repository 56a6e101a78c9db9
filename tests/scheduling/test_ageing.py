"""Nobody starves: under every order there is, whoever was not served for long goes ahead, and stays there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.engine.fake import alone, make_engine

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.loop import Engine
from hasten.engine.request import SLO, AppContext, Request, SamplingParams
from hasten.engine.scheduling.ageing import Ageing
from hasten.engine.simulate import simulated_engine
from hasten.engine.technique import ConfigError, all_techniques

ORDERS = sorted({str(t.sets["scheduling.order"]) for t in all_techniques() if "scheduling.order" in t.sets})
COSTS = CostModel(knots=(1, 64), knot_s=(0.01, 0.02))
MODEL = SimulatedModel(name="test", vocabulary=1000, max_length=400)
PATIENCE_S = 2.0
ROWS, OUTPUT, STEP_S = 2, 10, 0.04
"""Of the flood: rows of the engine, tokens of each request, and what a step takes at most."""


def engine(order: str, patience_s: float | None, *, single: bool = False, with_: tuple[str, ...] = ()) -> Engine:
    settings = {
        "scheduling.order": order,
        "scheduling.max_rows": ROWS,
        "scheduling.max_tokens": 64,
        "scheduling.patience_s": patience_s,
        "kv.block_size": 8,
        "kv.reuse": None,
    }
    return simulated_engine(EngineConfig.build(with_=with_, set_=settings), MODEL, COSTS, blocks=60, single_steps=single)


def adversary(number: int) -> Request:
    """Ahead of a victim by whatever an order may look at: short, urgent, due soon, of a tenant that got nothing yet."""
    return Request(
        id=f"flood{number}",
        prompt=np.arange(1, 9),
        sampling=SamplingParams(max_tokens=OUTPUT, temperature=0, ignore_eos=True),
        slo=SLO(ttft_s=0.5, tpot_s=0.1, deadline_s=1.0),
        app=AppContext(application="flood", workflow=f"w{number}", stage="only"),
        tenant=f"tenant{number}",
        priority=-5,
    )


def victim(id: str = "victim") -> Request:
    return Request(
        id=id,
        prompt=np.arange(1, 120),
        sampling=SamplingParams(max_tokens=200, temperature=0, ignore_eos=True),
        app=AppContext(application="slow", workflow="long", stage="only"),
        tenant="victim",
        priority=5,
    )


def flooded(one: Engine, seconds: float = 12.0) -> tuple[float, float]:
    """(when the victim is first served, when it ends), engine seconds after its arrival, while the flood keeps two requests
    waiting for every row; infinity for never."""
    number = 0
    for _ in range(3 * ROWS):
        one.add(adversary(number))
        number += 1
    one.step()
    one.add(victim())
    began = one.clock.now()
    ended = math.inf
    while one.clock.now() < began + seconds:
        for delta in one.step(one.clock.now() + STEP_S):
            if delta.last and delta.request_id == "victim":
                ended = one.clock.now() - began
        while one.unfinished < 3 * ROWS + 1:
            one.add(adversary(number))
            number += 1
    columns = one.events.columns()
    mine = 3 * ROWS  # the victim came after the first of the flood
    served = columns["time_s"][(columns["sequence"] == mine) & (columns["kind"] == Kind.SCHEDULED)]
    return (float(served[0]) - began if len(served) else math.inf), ended


@pytest.mark.parametrize("order", ORDERS)
def test_the_wait_is_bounded_under_every_order(order: str) -> None:
    first_s, end_s = flooded(engine(order, PATIENCE_S))
    # What runs when it becomes overdue ends within its output; then it is next, and runs every step.
    longest_s = PATIENCE_S + (OUTPUT + 2) * STEP_S
    assert first_s <= longest_s
    assert end_s <= longest_s + (200 + 119 / 32 + 4) * STEP_S


def test_without_patience_it_may_wait_for_ever() -> None:
    first_s, end_s = flooded(engine("priority", None))
    assert first_s == end_s == math.inf


def test_the_overdue_go_first_come_first_served_and_keep_their_place() -> None:
    one = engine("priority", 1.0)
    for number in range(2):
        one.add(adversary(number))
    one.step()
    late = [victim(f"v{number}") for number in range(3)]
    for request in late:
        one.add(request)
    order: list[str] = []
    number = 2
    while one.unfinished and one.clock.now() < 60:
        for delta in one.step(one.clock.now() + STEP_S):
            if delta.last and delta.request_id.startswith("v"):
                order.append(delta.request_id)
        while len(order) < 3 and sum(s.request.priority < 0 for s in one.ledger.sequences.values()) < 4:
            one.add(adversary(number))
            number += 1
            one._inbox.empty_into(one.ledger)
    assert order == ["v0", "v1", "v2"]


def test_an_overdue_sequence_yields_its_memory_last() -> None:
    one = engine("priority", 1.0)
    one.add(victim())
    number = 0
    while one.clock.now() < 2.0:
        while one.unfinished < 5:
            one.add(adversary(number))
            number += 1
        one.step(one.clock.now() + STEP_S)
    planner = one._planner
    seq = next(s for s in one.ledger.sequences.values() if s.request.id == "victim")
    assert planner.order_key(seq) == -math.inf
    assert all(planner.order_key(s) > -math.inf for s in one.ledger.sequences.values() if s is not seq)


@pytest.mark.parametrize("seed", range(12))
def test_steps_taken_together_age_as_single_ones_do(seed: int) -> None:
    random = np.random.default_rng(seed)
    order = ["priority", "srpt", "fair-share", "fcfs"][seed % 4]
    arrivals = [(float(random.uniform(0, 4)), int(random.integers(1, 60)), int(random.integers(1, 90))) for _ in range(14)]
    logs = []
    for single in (False, True):
        one = engine(order, 0.7, single=single)
        waiting = sorted(arrivals)
        number = 0
        while waiting or one.unfinished:
            while waiting and waiting[0][0] <= one.clock.now():
                at, prompt, output = waiting.pop(0)
                sampling = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
                one.add(
                    Request(
                        id=str(number),
                        prompt=np.arange(1, prompt + 1),
                        sampling=sampling,
                        priority=number % 3,
                        tenant=f"t{number % 3}",
                        arrival_s=at,
                    )
                )
                number += 1
            next_s = waiting[0][0] if waiting else math.inf
            if not one.unfinished:
                one.clock.sleep(next_s - one.clock.now())
                continue
            one.step(next_s)
        one.ledger.audit()
        logs.append(one.events.columns())
    for name, column in logs[1].items():
        assert np.array_equal(logs[0][name], column), name


def test_tokens_are_those_of_the_plain_engine() -> None:
    from hasten.engine.scheduling.priority import Priority

    one = make_engine(order=Priority(), patience_s=0.02, blocks=20, rows=3)
    made = []
    for number in range(8):
        sampling = SamplingParams(max_tokens=5 + number, temperature=0, seed=number)
        made.append(Request(id=str(number), prompt=np.arange(number + 3), sampling=sampling, priority=-number))
        one.add(made[-1])
        one.step()
        one.clock.advance(0.01)
        one.ledger.audit()
    got: dict[str, list[int]] = {}
    for delta in one.run():
        got.setdefault(delta.request_id, []).extend(delta.tokens)
    for request in made[-3:]:  # their first tokens may have come before
        assert alone(request)[0][-len(got[request.id]) :] == got[request.id]


def test_patience_is_checked() -> None:
    with pytest.raises(ConfigError, match="greater than 0"):
        EngineConfig.build(set_={"scheduling.patience_s": 0})
    with pytest.raises(ValueError, match="seconds above 0"):
        Ageing(0.0)
