"""What the claims `smart-spec` and `speculation` do between their measurements, and that both can fall short."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np
import pytest

from hasten.engine.config import EngineConfig
from hasten.engine.decoding.smart_spec import SmartSpec
from hasten.lab.claims import drafting, speculation
from hasten.lab.claims.smart_spec_runs import Answer, Virtual, load_of
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.registry import all_tasks, find


@pytest.fixture(autouse=True)
def few_texts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "texts", lambda: Material(lambda text: len(text) // 4))
        yield


def answers(rate: float) -> list[Answer]:
    rng = np.random.default_rng(0)
    return [
        Answer(rng.integers(0, 900, 30).tolist(), rng.integers(0, 900, 40).tolist(), rng.random(40) < rate) for _ in range(4)
    ]


def test_latencies_are_those_of_the_virtual_clock() -> None:
    virtual = Virtual()
    alone = virtual.serve(load_of(answers(1.0), 1, inf, 0), (), 0)
    assert alone.latency_s == pytest.approx(1 / alone.rate)
    right, wrong = (virtual.serve(load_of(answers(rate), 6, 2.0, 0), (), 4).latency_s for rate in (1.0, 0.0))
    plain = virtual.serve(load_of(answers(1.0), 6, 2.0, 0), (), 0).latency_s
    assert right < 0.6 * plain and wrong > 1.2 * plain


def test_a_governor_that_never_drafts_would_fall_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def gain() -> float:
        load = load_of(answers(0.9), 8, 2.0, 0)
        virtual = Virtual()
        return virtual.serve(load, (), 0).latency_s / virtual.serve(load, ("smart-spec",), 8).latency_s

    assert gain() > 1.3
    monkeypatch.setattr(SmartSpec, "wants", lambda self, view: False)
    assert gain() < 1.05


def test_questions_are_mixed_with_what_could_confuse_drafts() -> None:
    asked = speculation._mixed(drafting.questions("calls", 12, 0))
    params = [request.sampling for request in asked]
    assert sum(one.constraint is not None for one in params) == sum(one.repetition_penalty != 1 for one in params) == 4
    assert sum(one.n == 2 and one.temperature > 0 for one in params) == 3
    assert all(one.max_tokens is not None and one.max_tokens <= speculation.LONGEST for one in params)


def test_every_task_can_be_asked_and_memory_runs_short() -> None:
    assert speculation.SHORTER.keys() <= set(all_tasks())
    for name in all_tasks():
        assert find(speculation.SHORTER.get(name, name))
    made = speculation._engine(speculation.OFF, 400)
    speculation._answers(made, speculation._mixed(drafting.questions("json", 12, 0)))
    found = speculation.Found()
    speculation._sum_up(made, found)
    made.engine.executor.close()
    assert found.preempted and found.reused


def test_answers_that_differ_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    side = speculation.SIDES[0]
    assert EngineConfig.build(None, with_=side.with_).decoding.proposers == ("prompt-lookup",)
    asked = speculation._mixed(drafting.questions("calls", 3, 0))
    plain, drafts = (speculation._engine(one, 2_400) for one in (speculation.OFF, side))
    want = speculation._answers(plain, asked)
    assert speculation._answers(drafts, asked) == want
    monkeypatch.setattr("hasten.engine.speculate.accept", lambda span, drawn, first: ([0], [0, 1]) if span.draft else ([], [0]))
    assert speculation._answers(drafts, asked) != want
    for built in (plain, drafts):
        built.engine.executor.close()
