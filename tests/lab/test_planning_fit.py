"""Steps read from a log, and the cost model fitted to them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.config import EngineConfig
from hasten.engine.events import EventLog, Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.lab.bench.drive import replay
from hasten.lab.planning.devices import Device
from hasten.lab.planning.fit import errors, fit, knots_for, predict
from hasten.lab.planning.steps import Floats, steps_of
from hasten.lab.workloads import load

TRUE = CostModel(knots=(1, 16, 128, 512), knot_s=(0.01, 0.012, 0.02, 0.08), row_s=2e-4, head_s=3e-4, cached_s=4e-7, pair_s=5e-9)


def shapes(count: int, seed: int = 0) -> Floats:
    """Decoding and prompts, mixed as an engine mixes them: float64 [n, 5]."""
    random = np.random.default_rng(seed)
    rows = random.integers(1, 33, count)
    prompts = np.where(random.random(count) < 0.5, random.integers(0, 480, count), 0)
    tokens = rows + prompts
    heads = np.where(random.random(count) < 0.7, rows, np.maximum(rows - 1, 0))
    cached = tokens + rows * random.integers(0, 1500, count)
    pairs = cached + prompts * random.integers(1, 1500, count)
    return np.stack([tokens, rows, heads, cached, pairs], axis=1).astype(np.float64)


def test_a_known_model_is_found_without_noise() -> None:
    made = shapes(2000)
    fitted = fit(made, predict(TRUE, made))
    assert fitted.median_error < 1e-3
    assert abs(fitted.bias) < 1e-3
    unseen = shapes(500, seed=9)
    assert predict(fitted.costs, unseen) == pytest.approx(predict(TRUE, unseen), rel=0.02)
    for term in ("head_s", "cached_s", "pair_s"):
        assert getattr(fitted.costs, term) == pytest.approx(getattr(TRUE, term), rel=0.02)


def test_a_known_model_is_found_through_noise_and_disturbed_steps() -> None:
    made = shapes(4000)
    random = np.random.default_rng(1)
    seconds = predict(TRUE, made) * random.lognormal(0, 0.05, len(made))
    disturbed = random.random(len(made)) < 0.03
    seconds[disturbed] *= random.uniform(5, 50, disturbed.sum())
    fitted = fit(made, seconds)
    median, _, bias = errors(fitted.costs, made, predict(TRUE, made))
    assert median < 0.01
    assert abs(bias) < 0.02
    # The figures given count the disturbed steps too.
    assert (fitted.median_error, fitted.p95_error, fitted.bias) == errors(fitted.costs, made, seconds)
    assert fitted.steps == 4000


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(20, 200))
def test_no_term_is_negative_whatever_was_measured(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    costs = fit(shapes(count, seed), random.lognormal(-5, 1.5, count)).costs  # CostModel itself refuses negative terms
    assert all(seconds >= 0 for seconds in predict(costs, shapes(100, seed + 1)))
    assert costs.tokens(100_000) >= 0


def test_steps_of_one_size_alone_are_enough() -> None:
    made = np.tile([1.0, 1.0, 1.0, 100.0, 100.0], (30, 1))
    fitted = fit(made, np.full(30, 0.02))
    assert fitted.median_error < 1e-9


def test_copies_are_passed_on() -> None:
    made = shapes(50)
    costs = fit(made, predict(TRUE, made), copy_s=0.5, copy_token_s=0.25).costs
    assert (costs.copy_s, costs.copy_token_s) == (0.5, 0.25)


def test_too_few_steps_are_refused() -> None:
    made = shapes(19)
    with pytest.raises(ValueError, match="at least 20 steps are needed to fit the cost model, got 19"):
        fit(made, predict(TRUE, made))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200))
def test_knots_ascend_and_span_what_was_measured(tokens: list[int]) -> None:
    knots = knots_for(np.array(tokens, dtype=np.float64))
    assert knots[0] == min(tokens)
    assert knots[-1] >= max(tokens)
    assert knots == sorted(set(knots))
    measured = np.array(tokens)
    for low, high in pairwise(knots[:-1]):
        assert ((measured > low) & (measured <= high)).sum() >= 3
        assert (measured >= high).sum() >= 3


# -- steps of a log ----------------------------------------------------------------------------------------------------


def step(log: EventLog, end_s: float, took_s: float, tokens: int, rows: int, heads: int, cached: int, pairs: int) -> None:
    for number in range(rows):
        log.add(end_s - took_s, Kind.SCHEDULED, number, 1)
    for number in range(heads):
        log.add(end_s, Kind.TOKENS, number, 1)
    log.add(end_s, Kind.STEP, -1, tokens, took_s)
    log.add(end_s, Kind.MEMORY, -1, 99, rows)
    log.add(end_s, Kind.READ, -1, cached, pairs)


def test_steps_of_a_log() -> None:
    log = EventLog()
    log.add(9.0, Kind.ARRIVED, 0, 30)
    step(log, 10.0, 0.5, 30, 1, 0, 30, 465)
    step(log, 10.202, 0.2, 4, 2, 2, 44, 60)  # 2 ms after the one before: the caller's own work
    log.add(10.202, Kind.FINISHED, 0, 3)
    step(log, 11.0, 0.1, 1, 1, 1, 50, 50)  # nothing to do in between
    step(log, 11.1, 0.101, 1, 1, 1, 51, 51)  # begins before the one before ended, as far as the clock can tell
    found, seconds = steps_of(log.columns())
    assert found.tolist() == [[30, 1, 0, 30, 465], [4, 2, 2, 44, 60], [1, 1, 1, 50, 50], [1, 1, 1, 51, 51]]
    assert seconds == pytest.approx([0.5, 0.202, 0.1, 0.101])


def test_a_log_without_steps_and_one_cut_short() -> None:
    log = EventLog()
    found, seconds = steps_of(log.columns())
    assert found.shape == (0, 5) and seconds.shape == (0,)
    log.add(1.0, Kind.STEP, -1, 1, 0.1)
    with pytest.raises(ValueError, match="whole steps"):
        steps_of(log.columns())


def test_the_steps_of_a_simulation_take_what_its_cost_model_says() -> None:
    """From the cost model to events and back: the model is found again."""
    device = Device(
        model=SimulatedModel(name="test", vocabulary=1000, max_length=800),
        costs=TRUE,
        kv_token_bytes=1,
        kv_bytes=None,
        source="a test",
    )
    work = load("poisson:rate=8,requests=150@context=700")
    run = replay(device.engine(EngineConfig.build()), work)
    found, seconds = steps_of(run.columns)
    assert seconds == pytest.approx(predict(TRUE, found))
    assert fit(found, seconds).median_error < 0.01
