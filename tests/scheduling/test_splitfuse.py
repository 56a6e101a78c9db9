"""Dynamic SplitFuse: passes of one size, filled exactly, and a way out when memory is full of half-done work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine import test_steady
from tests.engine.fake import alone, make_engine
from tests.scheduling.arrivals import JOBS, check, ends, request
from tests.scheduling.test_sarathi_serve import Priced, long_request
from tests.scheduling.test_sarathi_serve import engine as simulated

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel, StepShape, span_pairs
from hasten.engine.scheduling.base import Limits
from hasten.engine.scheduling.newest_yields import NewestYields
from hasten.engine.scheduling.newest_yields import Options as NewestOptions
from hasten.engine.scheduling.priority import Priority
from hasten.engine.scheduling.reset_on_deadlock import ResetOnDeadlock
from hasten.engine.scheduling.splitfuse import Options, SplitFuse, knee
from hasten.engine.sequence import State
from hasten.engine.technique import ConfigError


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("tile", [1, 64])
def test_the_knee_is_the_smallest_pass_of_nearly_the_best_throughput(share: float, tile: int) -> None:
    costs = CostModel(knots=(1, 256, 2048), knot_s=(0.008, 0.010, 0.08), row_s=1e-4, head_s=1e-4, cached_s=1e-8, pair_s=1e-9)
    view: Any = Priced(Limits(2048, 256), costs)

    def rate(size: int) -> float:
        return size / costs.step(StepShape(size, 1, 1, size, span_pairs(size, 0)))

    best = max(rate(size) for size in range(tile, 2049, tile))
    found = knee(view, share, tile)
    assert found % tile == 0 and rate(found) >= share * best
    assert all(rate(size) < share * best for size in range(tile, found, tile))
    assert knee(Priced(Limits(50, 4), costs), share, 64) == 50  # type: ignore[arg-type]


def passes(one: Any) -> list[int]:
    columns = one.events.columns()
    return [int(a) for a in columns["a"][columns["kind"] == Kind.STEP]]


def test_passes_are_filled_exactly_while_prompts_wait() -> None:
    one = simulated("splitfuse:tokens=200")
    for i in range(12):
        one.add(long_request(f"r{i}", 70 + 13 * i, 40))
    first_drain = 0
    while one.stats()["waiting"] or any(not seq.decoding for seq in one.ledger.sequences.values()):
        one.step()
        first_drain += 1
    assert set(passes(one)[: first_drain - 1]) == {200}


def test_the_remainder_of_a_split_prompt_goes_first() -> None:
    engine = make_engine(tokens=64, batching=SplitFuse(Options(tokens=16)), order=Priority(), reuse=False)
    engine.add(request("split", 40, 1, priority=5))
    engine.step()
    engine.add(request("urgent", 16, 1, priority=0))
    assert ends(engine) == ["split", "urgent"]


def test_a_piece_goes_in_only_if_its_whole_prompt_has_memory() -> None:
    engine = make_engine(blocks=10, batching=SplitFuse(Options(tokens=16)), residency=ResetOnDeadlock(), reuse=False)
    engine.add(request("a", 40, 10))
    for _ in range(4):
        engine.step()
    engine.add(request("b", 48, 2))
    engine.step()
    states = {seq.request.id: seq.state for seq in engine.ledger.sequences.values()}
    assert states == {"a": State.RUNNING, "b": State.WAITING}, "four blocks of six are free"
    engine.add(request("c", 8, 1))
    assert ends(engine) == ["a", "b", "c"], "nor does a shorter one overtake"
    assert engine.events.counts[Kind.PREEMPTED] == 0


def forced_deadlock(residency: Any) -> Any:
    """Three sequences fill all memory and each wants one block more."""
    engine = make_engine(blocks=9, batching=SplitFuse(Options(tokens=32)), residency=residency, reuse=False)
    made = [request(f"r{i}", 8, 30) for i in range(3)]
    for one in made:
        engine.add(one)
    out = []
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    got: dict[str, list[int]] = {}
    for delta in out:
        assert delta.error is None, delta.error
        got.setdefault(delta.request_id, []).extend(delta.tokens)
    assert all([got[one.id]] == alone(one) for one in made)
    return engine


def test_a_deadlock_is_reset_and_nobodys_tokens_change() -> None:
    engine = forced_deadlock(ResetOnDeadlock())
    columns = engine.events.columns()
    dropped = columns["time_s"][columns["kind"] == Kind.PREEMPTED]
    assert len(dropped) >= 2
    lost = columns["a"][columns["kind"] == Kind.PREEMPTED]
    assert lost[:2].tolist() == [24, 24], "all but the first, with the KV of prompt and output so far"


def test_other_residencies_solve_the_same_deadlock_their_way() -> None:
    one_by_one = forced_deadlock(NewestYields(NewestOptions()))
    assert one_by_one.events.counts[Kind.PREEMPTED] >= 1


def test_while_somebody_can_run_nobody_loses_memory() -> None:
    engine = make_engine(blocks=9, batching=SplitFuse(Options(tokens=64)), residency=ResetOnDeadlock(), reuse=False)
    for i, (prompt, output) in enumerate(((8, 24), (16, 14), (14, 10))):
        engine.add(request(f"r{i}", prompt, output))
    engine.step()
    middle = engine.ledger.sequences[1]
    lengths = [middle.length]
    while engine.unfinished:
        engine.step()
        engine.ledger.audit()
        lengths.append(middle.length)
    assert lengths[7:12].count(lengths[8]) > 1, "it waits for its block until the third has ended"
    assert lengths[-1] == 30
    assert engine.events.counts[Kind.PREEMPTED] == 0


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=JOBS,
    blocks=st.integers(12, 40),
    host=st.sampled_from([0, 8]),
    shape=st.tuples(st.integers(8, 70), st.integers(1, 8), st.integers(1, 50)),
    own=st.booleans(),
    preempt=st.booleans(),
    reuse=st.booleans(),
    cancelled=st.sets(st.integers(0, 8), max_size=2),
)
def test_any_arrivals_give_what_each_request_gets_alone(
    jobs: list, blocks: int, host: int, shape: tuple[int, int, int], own: bool, preempt: bool, reuse: bool, cancelled: set[int]
) -> None:
    check(
        jobs, cancelled, blocks=blocks, host_blocks=host, tokens=shape[0], rows=shape[1], reuse=reuse,
        batching=SplitFuse(Options(tokens=min(shape[0], shape[2]), preempt=preempt, hold=4)),
        residency=ResetOnDeadlock() if own else None, order=Priority() if preempt else None,
    )  # fmt: skip


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(jobs=JOBS, blocks=st.integers(12, 40), shape=st.tuples(st.integers(8, 70), st.integers(1, 8)))
def test_the_reset_serves_any_batching(jobs: list, blocks: int, shape: tuple[int, int]) -> None:
    check(jobs, blocks=blocks, tokens=shape[0], rows=shape[1], residency=ResetOnDeadlock())


@pytest.mark.parametrize("seed", range(0, 20, 3))
def test_events_equal_single_steps(seed: int) -> None:
    random = np.random.default_rng(seed)
    arrivals = [
        (float(random.choice([0.0, random.uniform(0, 3)])), 0, int(random.integers(1, 90)), int(random.integers(1, 120)))
        for _ in range(random.integers(4, 14))
    ]
    engines = [test_steady.engine(single, 30 + 2 * seed, ("splitfuse:tile=8",)) for single in (False, True)]
    (events, out), (expected, expected_out) = (test_steady.drive(one, arrivals) for one in engines)
    for name, column in expected.items():
        assert np.array_equal(events[name], column), name
    assert out == expected_out


def test_bad_knobs_are_refused() -> None:
    for knob, message in (
        ("tokens=0", "tokens must be at least 1"),
        ("knee=0", "knee must be a share"),
        ("knee=1.1", "knee must be a share"),
        ("tile=0", "tile must be at least 1"),
        ("hold=-1", "hold must be"),
    ):
        config = EngineConfig.build(with_=[f"splitfuse:{knob}"])
        with pytest.raises(ConfigError, match=message):
            config.make("splitfuse")
