"""Hermes: who goes first, when that changes, what it asks others for, and that nobody is hurt by it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.fake import alone, make_engine
from tests.engine.test_steady import COSTS, MODEL
from tests.scheduling.test_demand import visit

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.loop import Engine
from hasten.engine.request import SLO, AppContext, Request, SamplingParams
from hasten.engine.scheduling.base import Hint
from hasten.engine.scheduling.demand import application as applications
from hasten.engine.scheduling.demand.graph import MOST_UNITS, DemandGraph
from hasten.engine.scheduling.demand.runs import Run, Visit
from hasten.engine.scheduling.demand.store import Demand
from hasten.engine.scheduling.hermes import Hermes, Options
from hasten.engine.scheduling.length_oracle import LengthOracle
from hasten.engine.simulate import simulated_engine
from hasten.engine.technique import ConfigError


def graph(name: str, *runs: Run, times: int = 10) -> DemandGraph:
    return DemandGraph(name, runs * times)


def call(
    id: str, application: str, stage: str, workflow: str = "", *, tokens: int = 10, prompt: int = 10, **more: Any
) -> Request:
    return Request(
        id=id,
        prompt=np.arange(prompt) % 30,
        sampling=SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True),
        app=AppContext(application=application, workflow=workflow or id, stage=stage),
        **more,
    )


DEMAND = Demand(
    {
        "short": graph("short", (visit("only", 10, 10),)),
        "long": graph("long", (visit("first", 10, 10), visit("second", 500, 100))),
        "either": graph("either", *[(visit("only", 10, 5),)] * 8, *[(visit("only", 10, 150),)] * 2),
        "tool": graph(
            "tool",
            *[(visit("think", 10, 20), Visit("box", "box", duration_s=1.0), visit("answer", 10, 5))] * 9,
            (visit("think", 10, 20), visit("quit", 10, 1)),
        ),
    },
    {"box": 0.05},
)


def hermes(demand: Demand = DEMAND, **knobs: Any) -> Hermes:
    return Hermes(Options(**knobs), demand)


def ends(engine: Engine) -> list[str]:
    return [delta.request_id for delta in engine.run() if delta.last]


def test_the_application_with_less_to_come_goes_first() -> None:
    engine = make_engine(order=hermes(), rows=1)
    for id, application, stage in (("a", "long", "first"), ("b", "short", "only"), ("c", "long", "second")):
        engine.add(call(id, application, stage))
    assert ends(engine) == ["b", "c", "a"], "the second stage has no first one before it"


def test_calls_of_a_run_share_its_index() -> None:
    engine = make_engine(order=hermes(), rows=1)
    engine.add(call("x", "short", "only"))
    engine.step()
    engine.add(call("a", "long", "first", "w"))
    engine.add(call("b", "long", "first", "w", prompt=30))
    engine.step()
    planner = engine._planner
    keys = {seq.request.id: planner.order_key(seq) for seq in planner.sequences}
    assert keys["a"] == keys["b"] < np.inf


def test_who_has_passed_the_short_mode_yields() -> None:
    engine = make_engine(order=hermes(), rows=4)
    engine.add(call("a", "either", "only", tokens=150))
    engine.step()
    planner = engine._planner
    (seq,) = planner.sequences
    early = planner.order_key(seq)
    while seq.output_length < 12:
        engine.step()
    late = planner.order_key(seq)
    assert early < 0.03 and late > 0.1, "seconds: 15 tokens of a millisecond most likely, then over a hundred"


def test_the_mean_does_not_know_two_modes() -> None:
    """Short mean takes the sure medium job first; the index prefers four chances of five of a short one."""
    demand = Demand({**DEMAND.graphs, "medium": graph("medium", (visit("only", 10, 20),))})
    for rule, first in (("gittins", "a"), ("mean", "b")):
        engine = make_engine(order=hermes(demand, rule=rule), rows=1)
        engine.add(call("x", "short", "only"))
        engine.step()
        engine.add(call("a", "either", "only", tokens=5))
        engine.add(call("b", "medium", "only", tokens=20))
        assert ends(engine)[1] == first, rule


def test_least_slack_goes_first_and_who_has_no_deadline_last() -> None:
    engine = make_engine(order=hermes(rule="deadline"), rows=1)
    engine.add(call("x", "short", "only"))
    engine.step()
    engine.add(call("none", "short", "only"))
    engine.add(call("loose", "short", "only", slo=SLO(deadline_s=5.0)))
    engine.add(call("tight", "short", "only", slo=SLO(deadline_s=2.0)))
    # Ten times the step of 64 tokens for "second" alone: its slack is less than that of "loose", though its deadline is later.
    engine.add(call("much", "long", "first", slo=SLO(deadline_s=6.0)))
    assert ends(engine)[1:] == ["much", "tight", "loose", "none"]


def test_what_no_graph_knows_goes_by_its_lengths() -> None:
    engine = make_engine(order=hermes(Demand()), rows=1)
    engine.add(call("x", "?", "?"))
    engine.step()
    for id, tokens in (("a", 100), ("b", 20), ("c", 60)):
        engine.add(call(id, "?", "?", tokens=tokens))
    assert ends(engine) == ["x", "b", "c", "a"]


def test_stages_that_a_graph_does_not_know_and_many_sequences_are_no_fault() -> None:
    engine = make_engine(order=hermes())
    engine.add(call("a", "long", "unheard of", "w"))
    engine.add(replace(call("b", "long", "first", "w"), sampling=SamplingParams(max_tokens=5, n=3, seed=1)))
    engine.add(Request(id="c", prompt=np.arange(5), sampling=SamplingParams(max_tokens=4, n=2, seed=1)))
    assert engine.run()
    assert engine.events.counts[Kind.FINISHED] == 6


def test_a_unit_whose_calls_were_cancelled_at_once_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """A call of the unit before is still to be ranked, and nothing of the current one is left."""
    engine = make_engine(order=hermes(), rows=1)
    engine.add(call("x", "short", "only"))
    engine.step()
    engine.add(call("a", "?", "first", "w", tokens=100))
    engine.add(
        replace(call("b", "?", "second", "w"), app=AppContext(application="?", workflow="w", stage="second", parents=("a",)))
    )
    engine.add(call("c", "?", "only", tokens=20))
    engine.cancel("b")
    assert ends(engine) == ["b", "x", "a", "c"], "the run has been given nothing and needs no more that is known"
    assert not caplog.records


def test_a_unit_of_many_stages_keeps_so_many_names_only() -> None:
    order = hermes()
    engine = make_engine(order=order, rows=4)
    for number in range(2 * MOST_UNITS):
        engine.add(call(str(number), "long", f"stage {number}", "w", tokens=2))
    engine.step()
    (app,) = set(order._applications.of.values())
    assert len(app.stages) == MOST_UNITS and len(app.live) == 2 * MOST_UNITS
    engine.run()
    assert engine.events.counts[Kind.FINISHED] == 2 * MOST_UNITS


def test_each_of_n_sequences_reads_the_whole_prompt() -> None:
    """What a unit of one call with n=4 needs is what four calls need, but for computing their prompts."""
    found = {}
    for n, many in ((4, 1), (1, 4)):
        order = hermes(Demand())
        engine = make_engine(order=order, rows=8, blocks=200, lengths=LengthOracle())
        engine.executor.price = COSTS.step  # type: ignore[method-assign]
        for number in range(many):
            sampling = SamplingParams(max_tokens=40, n=n, seed=1)
            engine.add(replace(call(f"{number}", "?", "only", "w", prompt=100), sampling=sampling))
        while len(engine.ledger.sequences) < 4:
            engine.step()
        engine.step()
        engine._planner._ranked()
        (app,) = set(order._applications.of.values())
        prices = order._prices
        assert app.total is not None and prices is not None
        found[n] = app.total.mean() - many * prices.prompt(100)
    assert found[4] == pytest.approx(found[1])


def test_idle_applications_are_forgotten_though_one_lives_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applications, "KEPT", 5)
    order = hermes()
    engine = make_engine(order=order)
    engine.add(call("long", "long", "first", "w", tokens=150))
    for number in range(20):
        engine.add(call(str(number), "short", "only", tokens=2))
        for _ in range(4):
            engine.step()
    known = order._applications._all
    assert len(known) <= 6 and any(key[-1] == "w" for key in known)


def test_nobody_waits_for_ever() -> None:
    """Short ones keep coming; the long one's turn comes when its patience ends (and it would not without)."""
    assert EngineConfig.build(with_=["hermes"]).scheduling.patience_s is not None
    waited: dict[float | None, float] = {}
    for patience_s in (None, 2.0):
        engine = make_engine(order=hermes(), rows=1, max_length=800, blocks=200, patience_s=patience_s)
        engine.add(call("x", "short", "only"))
        engine.step()
        engine.add(call("late", "long", "first"))
        done: list[str] = []
        for number in range(200):
            engine.add(call(f"s{number}", "short", "only"))
            while engine.unfinished > 2 and "late" not in done:
                before = engine.clock.now()
                done += [delta.request_id for delta in engine.step() if delta.last]
                engine.clock.sleep(max(0.0, before + 0.01 - engine.clock.now()))  # the fake executor takes no time
        waited[patience_s] = engine.clock.now() if "late" in done else np.inf
    assert waited[None] == np.inf and 2.0 <= waited[2.0] < 2.5


# -- hints ------------------------------------------------------------------------------------------------------------------


def hinted(*stages: tuple[str, int]) -> list[Hint]:
    engine = make_engine(order=hermes())
    got: list[Hint] = []
    engine.on_hint(got.append)
    for number, (stage, tokens) in enumerate(stages):
        engine.add(call(str(number), "tool", stage, "w", tokens=tokens))
        while engine.unfinished:
            engine.step()
            engine.clock.sleep(0.01)
    engine.add(call("other", "short", "only"))
    engine.run()
    return got


def test_a_backend_is_asked_for_before_its_time() -> None:
    assert hinted(("think", 20), ("answer", 5)) == [Hint("box", "w")]


def test_what_another_branch_does_not_need_is_taken_back() -> None:
    assert hinted(("think", 20), ("quit", 1)) == [Hint("box", "w"), Hint("box", "w", wanted=False)]


# -- the engine -------------------------------------------------------------------------------------------------------------


def test_bad_knobs_are_refused(tmp_path: Path) -> None:
    for knob in ("walks=0", "buckets=0", "prewarm=0", "prewarm=2", "seed=-1", "step_tokens=0"):
        config = EngineConfig.build(with_=[f"hermes:{knob}"])
        with pytest.raises(ConfigError, match=f"hermes: {knob.partition('=')[0]}"):
            config.make("hermes")
    with pytest.raises(ConfigError, match="rule"):
        EngineConfig.build(with_=["hermes:rule=best"])
    with pytest.raises(ConfigError, match="No such file"):
        EngineConfig.build(with_=[f"hermes:graphs={tmp_path}/none.json"]).make("hermes")


@pytest.mark.parametrize("seed", range(4))
def test_tokens_and_books_under_arrivals_cancels_and_pressure(seed: int) -> None:
    rng = random.Random(seed)
    rule = rng.choice(["gittins", "mean", "deadline"])
    engine = make_engine(
        order=hermes(rule=rule), blocks=rng.choice([30, 60]), rows=6, host_blocks=rng.choice([0, 12]), seed=seed
    )
    requests: dict[str, Request] = {}
    given: dict[str, list[int]] = {}
    cancelled: set[str] = set()
    stages = [("short", "only"), ("long", "first"), ("long", "second"), ("either", "only"), ("tool", "think"), ("?", "x")]
    for step in range(300):
        if rng.random() < 0.15 and len(requests) < 30:
            application, stage = rng.choice(stages)
            id = f"r{len(requests)}"
            slo = SLO(deadline_s=rng.uniform(1, 9)) if rng.random() < 0.3 else SLO()
            workflow = f"w{rng.randrange(6)}"
            made = call(id, application, stage, workflow, tokens=rng.randint(1, 40), prompt=rng.randint(1, 60), slo=slo)
            requests[id] = made
            engine.add(made)
        if requests and rng.random() < 0.03:
            id = rng.choice(list(requests))
            cancelled.add(id)
            engine.cancel(id)
        for delta in engine.step() if step < 299 else engine.run():
            given.setdefault(delta.request_id, []).extend(delta.tokens)
        engine.ledger.audit()
    for id, request in requests.items():
        if id not in cancelled:
            assert given[id] == alone(request)[0]
    assert engine.events.counts[Kind.PLAN_REFUSED] == 0


@pytest.mark.parametrize("seed", range(6))
def test_steps_taken_together_are_those_taken_singly(seed: int, tmp_path: Path) -> None:
    DEMAND.save(tmp_path / "demand.json")
    costs = CostModel(knots=(1, 60, 400), knot_s=(0.011, 0.0127, 0.07), row_s=3e-4, cached_s=1e-6, pair_s=1e-7)
    logs = []
    for single in (False, True):
        values = {"kv.block_size": 8, "scheduling.max_tokens": 64, "scheduling.max_rows": 5}
        config = EngineConfig.build(with_=[f"hermes:graphs={tmp_path}/demand.json"], set_=values)
        engine = simulated_engine(config, MODEL, costs, blocks=120, single_steps=single)
        hints: list[Hint] = []
        engine.on_hint(hints.append)
        rng = np.random.default_rng(seed)
        at = np.sort(rng.uniform(0, 4, 16)).tolist()
        stages = [("long", "first"), ("either", "only"), ("tool", "think"), ("short", "only"), ("tool", "quit")]
        waiting = [
            call(str(i), *stages[rng.integers(5)], f"w{rng.integers(6)}", tokens=int(rng.integers(2, 90)), arrival_s=t)
            for i, t in enumerate(at)
        ]
        while waiting or engine.unfinished:
            while at and at[0] <= engine.clock.now():
                at.pop(0)
                engine.add(waiting.pop(0))
            next_s = at[0] if at else float("inf")
            if engine.unfinished:
                engine.step(next_s)
            else:
                engine.clock.sleep(next_s - engine.clock.now())
        logs.append((engine.events.columns(), hints))
    for name, column in logs[0][0].items():
        assert np.array_equal(column, logs[1][0][name]), name
    assert logs[0][1] == logs[1][1]
