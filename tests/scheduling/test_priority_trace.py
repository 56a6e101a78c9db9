"""Priorities from a trace: the same draws whoever runs, sticky when Markov, and nobody starves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.engine.fake import make_engine

from hasten.engine.events import Event, Kind
from hasten.engine.request import Request, SamplingParams
from hasten.engine.scheduling.follow_order import FollowOrder
from hasten.engine.scheduling.follow_order import Options as FollowOptions
from hasten.engine.scheduling.priority_trace import Options, PriorityTrace

STEP = Event(0.0, Kind.STEP, -1)


def people(count: int) -> Any:
    apps = [SimpleNamespace(workflow=f"user {i}") for i in range(count)]
    return [SimpleNamespace(id=i, service=0, request=SimpleNamespace(id=f"r{i}", app=app)) for i, app in enumerate(apps)]


def table(policy: PriorityTrace, sequences: Any, draws: int) -> np.ndarray:
    """Keys float64 [draws, sequences], asked after every draw."""
    rows = [policy.keys(sequences, None)]  # type: ignore[arg-type]
    while len(rows) < draws:
        if list(policy.learn(STEP, None, None)):  # type: ignore[arg-type]
            for seq in sequences:
                seq.service += 1
            rows.append(policy.keys(sequences, None))  # type: ignore[arg-type]
    return np.array(rows)


def test_keys_depend_on_user_and_draw_only() -> None:
    all_of_them = table(PriorityTrace(Options()), people(40), 30)
    few = people(40)[::4]
    for i, seq in enumerate(few):
        seq.id = 1000 + i  # another engine numbers them otherwise
    assert (table(PriorityTrace(Options()), few, 30) == all_of_them[:, ::4]).all()
    late = PriorityTrace(Options())
    table(late, people(1), 20)
    assert (late.keys(people(40)[1:], None) == all_of_them[19, 1:]).all(), "whoever comes late finds the same"  # type: ignore[arg-type]


@pytest.mark.parametrize(("pattern", "stay"), [("markov", 0.8), ("markov", 0.0), ("random", 0.8)])
def test_a_markov_priority_stays_as_often_as_asked(pattern: Any, stay: float) -> None:
    keys = table(PriorityTrace(Options(pattern=pattern, stay=stay)), people(300), 60)
    kept = float((keys[1:] == keys[:-1]).mean())
    assert kept == pytest.approx(stay if pattern == "markov" else 0.0, abs=0.01)
    assert keys.min() >= 0 and keys.max() < 1
    assert np.quantile(keys, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.02)


def test_draws_come_every_so_many_steps() -> None:
    policy = PriorityTrace(Options(least=5, most=9))
    policy.keys(people(2), None)  # type: ignore[arg-type]
    between, steps = [], 0
    while len(between) < 300:
        expected = policy.steady(None, None)  # type: ignore[arg-type]
        steps += 1
        if list(policy.learn(STEP, None, None)):  # type: ignore[arg-type]
            assert expected == 1, "steady promised more"
            between.append(steps)
            steps = 0
    assert set(between) == {5, 6, 7, 8, 9}


def test_nobody_starves() -> None:
    """One row, many requests that do not end within the test, priorities that hardly ever change: each is served again within
    `patience` draws and one for each that waits longer; a switch may cost two draws more."""
    patience, many = 4, 12
    order = PriorityTrace(Options(least=2, most=3, stay=0.99, patience=patience))
    residency = FollowOrder(FollowOptions())
    engine = make_engine(order=order, residency=residency, rows=1, blocks=200, host_blocks=200, max_length=150, chunk=512)
    for i in range(many):
        sampling = SamplingParams(max_tokens=120, temperature=0, ignore_eos=True)
        engine.add(Request(id=f"r{i}", prompt=np.arange(8) % 30, sampling=sampling))
    last = dict.fromkeys((f"r{i}" for i in range(many)), 0)
    for step in range(1, 600):
        for delta in engine.step():
            if delta.tokens:
                last[delta.request_id] = step
        for id, at in last.items():
            assert step - at <= 3 * 3 * (patience + many), f"{id} has waited since step {at}"
