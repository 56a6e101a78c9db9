"""SmartSpec: the lengths it grants, what it learns, and that it loses next to nothing where drafting does not pay."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decoding.proposers import KINDS
from tests.decoding.test_proposers import FEW, Hopeful, answers
from tests.engine.test_loop import request

from hasten.engine.config import EngineConfig
from hasten.engine.decoding.goodput.acceptance import Acceptance
from hasten.engine.decoding.goodput.choice import choose
from hasten.engine.decoding.goodput.times import OUTLIER, StepTimes, size_of
from hasten.engine.decoding.smart_spec import CREDIT_S, Options, SmartSpec
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel, StepShape
from hasten.engine.executors.recorded import Recording
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.request import Request, SamplingParams
from hasten.engine.simulate import simulated_engine
from hasten.engine.technique import ConfigError

# -- the choice ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    gains=st.lists(st.lists(st.floats(0, 1), max_size=3).map(lambda own: sorted(own, reverse=True)), min_size=1, max_size=3),
    more_rows=st.integers(0, 3),
    base=st.floats(0.01, 1),
    each=st.floats(0, 0.3),
    jumps=st.lists(st.floats(0, 0.5), min_size=9, max_size=9),
    a_pass=st.floats(0, 0.5),
)
def test_no_other_lengths_give_more_tokens_a_second(
    gains: list[list[float]], more_rows: int, base: float, each: float, jumps: list[float], a_pass: float
) -> None:
    def seconds(counts: Seq[int]) -> float:
        return base + each * sum(counts) + sum(jumps[: sum(counts)]) + a_pass * max(counts)

    rows = len(gains) + more_rows
    counts = choose(gains, rows, lambda: Made(len(gains), seconds))
    assert all(count <= len(own) for count, own in zip(counts, gains, strict=True))

    def rate(counts: Seq[int]) -> float:
        return (rows + sum(sum(own[:count]) for own, count in zip(gains, counts, strict=True))) / seconds(counts)

    best = max(rate(other) for other in product(*(range(len(own) + 1) for own in gains)))
    assert rate(counts) >= best * (1 - 1e-9)


class Made:
    """A step that takes what a function of its lengths says."""

    def __init__(self, offers: int, of: Callable[[Seq[int]], float]) -> None:
        self.counts, self._of = [0] * offers, of

    def add(self, offer: int) -> None:
        self.counts[offer] += 1

    def seconds(self) -> float:
        return self._of(self.counts)


def test_many_offers_are_looked_at_sparsely() -> None:
    """And a pass of the draft for the sake of a few is not made."""
    gains = [[0.8**depth * (1 + i % 3) / 3 for depth in range(1, 9)] for i in range(100)]
    asked: list[int] = []

    def seconds(counts: Seq[int]) -> float:
        asked.append(sum(counts))
        return 1.0 + 0.001 * sum(counts) + 0.1 * max(counts)

    counts = choose(gains, 100, lambda: Made(100, seconds))
    assert len(asked) < 200
    found = (100 + sum(sum(own[:count]) for own, count in zip(gains, counts, strict=True))) / seconds(counts)
    assert found > 0.99 * max((100 + sum(sum(own[:k]) for own in gains)) / seconds([k] * 100) for k in range(9))


# -- what it learns ------------------------------------------------------------------------------------------------------


def test_gains_follow_what_was_accepted() -> None:
    rng, acceptance = np.random.default_rng(0), Acceptance()
    for _ in range(400):
        right = rng.random(5) < 0.8
        acceptance.learn(1, "kind", 5, 5 if right.all() else int(np.argmin(right)), None)
    gains = acceptance.gains(1, "kind", 8, None)
    assert len(gains) == 8 and gains[0] == pytest.approx(0.8, abs=0.1) and gains[4] == pytest.approx(0.8**5, abs=0.12)
    assert all(later <= gain for gain, later in pairwise(gains))
    assert acceptance.gains(2, "other", 2, None) == [0.5, 0.25]


def test_guesses_that_end_at_a_depth_are_not_taken_for_rare_ones() -> None:
    acceptance = Acceptance()
    for _ in range(120):
        acceptance.learn(1, "kind", 6, 3, None)
    gains = acceptance.gains(2, "kind", 6, None)
    assert gains[2] > 0.8 and gains[3] < 0.1


def test_a_request_of_its_own_kind_counts() -> None:
    acceptance = Acceptance()
    for _ in range(40):
        acceptance.learn(1, "kind", 3, 3, None)
        acceptance.learn(2, "kind", 3, 0, None)
    good, bad, new = (acceptance.gains(who, "kind", 1, None)[0] for who in (1, 2, 3))
    assert good > new + 0.2 > bad + 0.4
    acceptance.forget(1)
    assert acceptance.gains(1, "kind", 1, None)[0] == new


def test_odds_of_trees_are_corrected_by_what_came_true() -> None:
    acceptance, odds = Acceptance(), [0.9, 0.6, 0.6, 0.1]
    assert acceptance.gains(1, "tree", 3, odds) == odds[:3]
    for turn in range(200):
        acceptance.learn(1, "tree", 4, turn % 2, odds)  # 0.5 accepted where 2.2 were promised
    assert sum(acceptance.gains(1, "tree", 4, odds)) == pytest.approx(0.5, abs=0.05)


def test_times_are_those_measured_at_that_size() -> None:
    times = StepTimes()

    def price(shape: StepShape) -> float:
        return 1.0 + 0.1 * shape.tokens + 0.01 * shape.cached

    one, five = StepShape(1, 1, 1, 10, 10), StepShape(5, 1, 5, 10, 40)
    assert times.predict(one, price) == price(one)
    for _ in range(50):
        times.learn(one, 3.0)
        times.learn(five, 3.3)
    assert times.predict(one, price) == pytest.approx(3.0) and times.predict(five, price) == pytest.approx(3.3)
    longer = StepShape(1, 1, 1, 30, 30)
    assert times.predict(longer, price) == pytest.approx(3.0 * price(longer) / price(one))
    assert times.predict(StepShape(4, 1, 4, 10, 30), price) == pytest.approx(
        3.3 * price(StepShape(4, 1, 4, 10, 30)) / price(five)
    )
    times.learn(one, 1000.0)
    assert times.predict(one, price) <= 3.0 * (1 + 0.15 * (OUTLIER - 1)) + 1e-9
    sizes = [size_of(tokens) for tokens in range(1, 3000)]
    assert sizes == sorted(sizes) and len(set(sizes)) < 50 and sizes[:9] == list(range(1, 10))


# -- in the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_stay_what_they_are(kind: str, temperature: float) -> None:
    requests = [
        request(f"r{i}", [1, 2, 3, i], max_tokens=30, seed=i, n=1 + i % 2, temperature=temperature, logit_bias=FEW)
        for i in range(5)
    ]
    plain, _ = answers(requests, None)
    governor = SmartSpec(Options())
    got, engine = answers(requests, KINDS[kind](), governor=governor, blocks=40, host_blocks=20)
    assert got == plain and engine.events.counts[Kind.DRAFTED] > 0
    assert not governor._asked and not governor.acceptance._own


def test_a_governor_that_fails_costs_drafts_only() -> None:
    class Fails:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            if name not in ("wants", "grant", "measured"):
                raise AttributeError(name)
            raise RuntimeError("no")

    requests = [request("r", [1, 2, 3], max_tokens=20, logit_bias=FEW)]
    plain, _ = answers(requests, None)
    got, engine = answers(requests, Hopeful(), governor=Fails())
    assert got == plain and engine.events.counts[Kind.DRAFTED] == 0


MODEL = SimulatedModel(name="made up", vocabulary=1000, max_length=4000)
MEMORY = CostModel(knots=(1, 64, 128), knot_s=(0.02, 0.021, 0.04))
"""Reading weights dominates up to 64 tokens."""
ARITHMETIC = CostModel(knots=(1, 64), knot_s=(0.01, 0.32))
DRAFT = CostModel(knots=(1, 64, 128), knot_s=(0.001, 0.00105, 0.002))


def simulated(
    rate: float, costs: CostModel, sequences: int, length: int, governor: bool = True, tokens: int = 120, seed: int = 0
) -> Any:
    """An engine that has served so many requests at once, whose guesses were right at this rate."""
    rng = np.random.default_rng(seed)
    said = {f"r{i}": rng.integers(0, 1000, tokens + 40).astype(np.int32) for i in range(sequences)}
    right = {id: rng.random(tokens + 40) < rate for id in said}
    recording = Recording(said, right, DRAFT, length) if length else None
    config = EngineConfig.build(with_=["smart-spec"] if governor and length else [])
    engine = simulated_engine(config, MODEL, costs, blocks=2000, recording=recording, single_steps=True)
    for id in said:
        engine.add(Request(id=id, prompt=np.arange(8), sampling=SamplingParams(max_tokens=tokens, ignore_eos=True)))
    engine.run()
    return engine


def mean_latency_s(engine: Any) -> float:
    columns = engine.events.columns()
    return float(columns["time_s"][columns["kind"] == Kind.FINISHED].mean())


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(("costs", "sequences"), [(MEMORY, 1), (MEMORY, 8), (MEMORY, 24), (ARITHMETIC, 1), (ARITHMETIC, 12)])
def test_close_to_the_best_fixed_length(rate: float, costs: CostModel, sequences: int) -> None:
    took = mean_latency_s(simulated(rate, costs, sequences, 8))
    fixed = [mean_latency_s(simulated(rate, costs, sequences, length, governor=False)) for length in (0, 1, 3, 5)]
    assert took < 1.05 * min(fixed) + CREDIT_S
    assert took < 1.02 * fixed[0] + CREDIT_S


def test_guesses_that_get_better_are_noticed() -> None:
    rng, tokens = np.random.default_rng(3), 1500
    said = {"r": rng.integers(0, 1000, tokens + 40).astype(np.int32)}
    right = {"r": np.arange(tokens + 40) > tokens // 2}
    engine = simulated_engine(
        EngineConfig.build(with_=["smart-spec"]), MODEL, MEMORY, blocks=2000, recording=Recording(said, right, DRAFT, 8)
    )
    engine.add(Request(id="r", prompt=np.arange(8), sampling=SamplingParams(max_tokens=tokens, ignore_eos=True)))
    engine.run()
    columns = engine.events.columns()
    tokens_a_step = columns["a"][columns["kind"] == Kind.TOKENS]
    assert tokens_a_step[: tokens // 4].mean() < 1.05
    assert tokens_a_step[-50:].mean() > 4


def test_the_loss_is_bounded_by_the_knob() -> None:
    """Guesses that are never right, of which half cost as much as a step."""
    dear = CostModel(knots=(1, 2), knot_s=(0.02, 0.02))

    def took(loss: float | None) -> float:
        rng, tokens = np.random.default_rng(1), 2000
        said = {"r": rng.integers(0, 1000, tokens + 40).astype(np.int32)}
        recording = Recording(said, {"r": np.zeros(tokens + 40, dtype=bool)}, dear, 4) if loss is not None else None
        config = EngineConfig.build(with_=[f"smart-spec:loss={loss}"] if loss is not None else [])
        engine = simulated_engine(config, MODEL, MEMORY, blocks=2000, recording=recording)
        engine.add(Request(id="r", prompt=np.arange(8), sampling=SamplingParams(max_tokens=tokens, ignore_eos=True)))
        engine.run()
        return float(engine.clock.now())

    plain = took(None)
    for loss in (0.002, 0.01, 0.05):
        lost = took(loss) - plain
        assert 0 < lost < loss * plain + CREDIT_S + 0.2, "a step more than is allowed, at most"
    assert took(0.05) > took(0.002)


def test_time_that_prompts_take_does_not_make_drafts_pay() -> None:
    """Arithmetic bounds every step: a drafted token costs what a decoded one does, also beside hundreds of prompt tokens."""
    rng, tokens, sequences = np.random.default_rng(2), 40, 60
    said = {f"r{i}": rng.integers(0, 1000, tokens + 40).astype(np.int32) for i in range(sequences)}
    recording = Recording(said, {id: rng.random(tokens + 40) < 0.6 for id in said}, DRAFT, 4)
    config = EngineConfig.build(with_=["smart-spec"], set_=["scheduling.max_tokens=256"])
    engine = simulated_engine(config, MODEL, ARITHMETIC, blocks=4000, recording=recording, single_steps=True)
    for id in said:
        engine.add(Request(id=id, prompt=np.arange(300), sampling=SamplingParams(max_tokens=tokens, ignore_eos=True)))
    engine.run()
    assert engine.events.sums[Kind.DRAFTED] < 0.02 * tokens * sequences, "tries only"


def test_tries_are_not_hastened_by_their_own_success() -> None:
    """Guesses that are always right and never pay."""
    dear = CostModel(knots=(1, 2), knot_s=(0.1, 0.1))
    rng, tokens = np.random.default_rng(1), 600
    said = {"r": rng.integers(0, 1000, tokens + 40).astype(np.int32)}
    engine = simulated_engine(
        EngineConfig.build(with_=["smart-spec:loss=1"]), MODEL, MEMORY, blocks=2000,
        recording=Recording(said, {"r": np.ones(tokens + 40, dtype=bool)}, dear, 2), single_steps=True,
    )  # fmt: skip
    engine.add(Request(id="r", prompt=np.arange(8), sampling=SamplingParams(max_tokens=tokens, ignore_eos=True)))
    engine.run()
    assert 0 < engine.events.counts[Kind.DRAFTED] < 25


def test_it_needs_somebody_who_drafts() -> None:
    with pytest.raises(ConfigError, match="nothing drafts"):
        simulated_engine(EngineConfig.build(with_=["smart-spec"]), MODEL, MEMORY, blocks=10)


def test_prompts_beside_do_not_confuse_the_books() -> None:
    requests = [
        replace(request(f"r{i}", [1, 2, 3] * (5 + i), max_tokens=25, seed=i, logit_bias=FEW), arrival_s=None) for i in range(8)
    ]
    plain, _ = answers(requests, None, chunk=4)
    got, engine = answers(requests, KINDS["both"](), governor=SmartSpec(Options()), chunk=4)
    assert got == plain and engine.events.counts[Kind.DRAFTED] > 0
