"""Shortest remaining first: by what the cost model and the lengths say, renewed at edges and not at every token."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.fake import alone, make_engine
from tests.engine.test_steady import drive
from tests.engine.test_steady import engine as simulated

from hasten.engine.config import EngineConfig
from hasten.engine.loop import Engine
from hasten.engine.request import Request, SamplingParams
from hasten.engine.scheduling import srpt
from hasten.engine.scheduling.base import View
from hasten.engine.scheduling.length_oracle import LengthOracle
from hasten.engine.scheduling.srpt import EDGES, EVERY, SRPT, Options
from hasten.engine.sequence import Sequence
from hasten.engine.technique import ConfigError


def request(id: str, prompt: int = 5, output: int = 4, limit: int = 150) -> Request:
    sampling = SamplingParams(max_tokens=limit, temperature=0, seed=1)
    return Request(id=id, prompt=np.arange(prompt) % 37, sampling=sampling, ends_after=output)


def ends(engine: Engine) -> list[str]:
    return [delta.request_id for delta in engine.run() if delta.last]


class Asked(SRPT):
    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.asked: list[tuple[int, int]] = []

    def keys(self, stale: Seq[Sequence], view: View) -> np.ndarray:
        self.asked += [(seq.id, seq.output_length) for seq in stale]
        return super().keys(stale, view)


def test_with_one_row_the_shortest_goes_first_whatever_the_arrivals() -> None:
    engine = make_engine(order=SRPT(Options()), lengths=LengthOracle(), rows=1)
    outputs = {"a": 20, "b": 3, "c": 11, "d": 7}
    for id, output in outputs.items():
        engine.add(request(id, output=output))
    assert ends(engine) == sorted(outputs, key=lambda id: outputs[id])


def test_prompts_count_by_the_cost_model() -> None:
    engine = make_engine(order=SRPT(Options(by="work")), lengths=LengthOracle(), rows=1, tokens=200)
    engine.add(request("long prompt", prompt=120, output=2))
    engine.add(request("long output", prompt=4, output=30))
    assert ends(engine) == ["long output", "long prompt"], "a token costs the same in either here"


@pytest.mark.parametrize("by", ["time", "work"])
def test_it_is_the_order_of_what_is_left(by: str) -> None:
    order = SRPT(Options(by=by))  # type: ignore[arg-type]
    engine = make_engine(order=order, lengths=LengthOracle(), rows=8, tokens=200, blocks=200)
    for number, output in enumerate((40, 90, 12)):
        engine.add(request(str(number), output=output))
    engine.step()
    live = list(engine.ledger.sequences.values())
    keys = order.keys(live, engine._planner)
    left = np.array([40, 90, 12]) - 1
    assert np.allclose(keys / keys[0], left / left[0])


def test_keys_are_renewed_at_edges_and_looked_for_every_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srpt, "OLDEST", 0)
    order = Asked(Options())
    engine = make_engine(order=order, lengths=LengthOracle(), blocks=100)
    engine.add(request("a", output=150))
    engine.run()
    at = [produced for _, produced in order.asked]
    assert at[:2] == [0, 1], "on arrival, and when its prompt is done"
    edges = [edge for edge in EDGES if 1 < edge < 150]
    assert len(at) == 2 + len(edges)
    assert all(edge <= asked < edge + EVERY for edge, asked in zip(edges, at[2:], strict=True))


def test_waiting_ones_are_asked_again_in_turn() -> None:
    order = Asked(Options())
    engine = make_engine(order=order, lengths=LengthOracle(), blocks=200, rows=1)
    for number in range(60):
        engine.add(request(str(number), output=100 + number))
    for _ in range(3 * EVERY):
        engine.step()
    asked = [id for id, _ in order.asked]
    assert all(2 <= asked.count(id) <= 4 for id in range(1, 60))


def test_it_forgets_who_has_ended() -> None:
    order = SRPT(Options())
    engine = make_engine(order=order)
    for number in range(10):
        engine.add(request(str(number)))
    engine.step()
    engine.cancel("3")
    engine.run()
    assert not order._bucket


@pytest.mark.parametrize("seed", range(16))
def test_steps_taken_together_are_single_steps(seed: int) -> None:
    random = np.random.default_rng(seed)
    arrivals = [
        (float(random.uniform(0, 2)), int(random.choice([0, 16])), int(random.integers(1, 60)), int(random.integers(1, 120)))
        for _ in range(random.integers(2, 14))
    ]
    with_ = ("srpt", ["length-oracle", "length-histogram", "length-limit", "length-similarity"][seed % 4])
    with_ += ("stall-free:preempt=true",) if seed % 3 else ()
    blocks = int(random.choice([40, 60, 400]))
    (events, out), (expected, expected_out) = (drive(simulated(single, blocks, with_), arrivals) for single in (False, True))
    for name, column in expected.items():
        assert np.array_equal(events[name], column), name
    assert out == expected_out


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 4)), min_size=1, max_size=9),
    blocks=st.integers(12, 40),
    host=st.sampled_from([0, 8]),
    cancelled=st.integers(0, 12),
)
def test_any_arrivals_give_what_each_request_gets_alone(
    jobs: list[tuple[int, int, int]], blocks: int, host: int, cancelled: int
) -> None:
    engine = make_engine(
        order=SRPT(Options()), lengths=LengthOracle(), blocks=blocks, host_blocks=host, max_length=96, rows=4, patience_s=0.5
    )
    made, out = [], []
    for number, (prompt, output, wait) in enumerate(jobs):
        made.append(request(str(number), prompt, output))
        engine.add(made[-1])
        for _ in range(wait):
            out += engine.step()
    engine.cancel(str(cancelled))
    steps = 0
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
        engine.clock.advance(0.01)
        steps += 1
        assert steps < 3000, "the engine does not come to an end"
    for one in made:
        got = [token for delta in out if delta.request_id == one.id for token in delta.tokens]
        sampling = SamplingParams(max_tokens=one.ends_after, temperature=0, seed=1)
        expected = alone(Request(id=one.id, prompt=one.prompt, sampling=sampling), max_length=96)[0]
        assert got == expected or (one.id == str(cancelled) and got == expected[: len(got)])
    assert engine.ledger.books.pool.available == blocks


def test_the_mean_latency_of_a_single_server_is_the_least() -> None:
    """Schrage's theorem, on one row where all wait: no other order of the same outputs ends them sooner in the mean."""
    random = np.random.default_rng(0)
    outputs = random.integers(2, 60, 7).tolist()

    def mean(order: object) -> float:
        engine = make_engine(order=order, lengths=LengthOracle(), rows=1, max_length=100)
        for number, output in enumerate(outputs):
            engine.add(request(str(number), output=output))
        when: dict[str, int] = {}
        step = 0
        while engine.unfinished:
            step += 1
            when.update({delta.request_id: step for delta in engine.step() if delta.last})
        return float(np.mean(list(when.values())))

    best = mean(SRPT(Options()))

    class Fixed(SRPT):
        def __init__(self, places: list[int]) -> None:
            super().__init__(Options())
            self._places = places

        def keys(self, stale: Seq[Sequence], view: View) -> np.ndarray:
            return np.array([float(self._places[seq.id]) for seq in stale])

    assert all(best <= mean(Fixed(random.permutation(7).tolist())) for _ in range(20))
    assert math.isfinite(best)


def test_the_preset_says_what_it_sets() -> None:
    config = EngineConfig.build(with_=["srpt:by=work"])
    assert (config.scheduling.order, config.scheduling.patience_s) == ("srpt", 60.0)
    with pytest.raises(ConfigError, match="by"):
        EngineConfig.build(with_=["srpt:by=luck"])
