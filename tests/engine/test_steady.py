"""Steps advanced together leave the events and books that single steps leave."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.loop import Engine
from hasten.engine.request import Request, SamplingParams
from hasten.engine.simulate import simulated_engine
from hasten.engine.technique import ConfigError

COSTS = CostModel(
    knots=(1, 60, 400),
    knot_s=(0.011, 0.0127, 0.07),
    row_s=3.1e-4,
    head_s=1.7e-4,
    cached_s=1.3e-6,
    pair_s=7e-8,
    copy_s=1e-3,
    copy_token_s=3e-5,
)
BLOCK_BYTES = 1000
MODEL = SimulatedModel(name="test", vocabulary=1000, max_length=400)


def engine(single: bool, blocks: int, with_: tuple[str, ...] = (), host_blocks: int = 0, **settings: object) -> Engine:
    values = {"kv.block_size": 8, "scheduling.max_tokens": 64, "scheduling.max_rows": 6}
    values |= {name.replace("__", "."): value for name, value in settings.items()}
    config = EngineConfig.build(with_=with_, set_=values)
    return simulated_engine(
        config, MODEL, COSTS, blocks=blocks, host_blocks=host_blocks, single_steps=single, block_bytes=BLOCK_BYTES
    )


def drive(engine: Engine, arrivals: list[tuple[float, int, int, int]]) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Replay (arrival, shared prefix, prompt, output); the events, and each request's tokens."""
    waiting = sorted(arrivals)
    out: dict[str, list[int]] = {}
    number = 0
    while waiting or engine.unfinished:
        while waiting and waiting[0][0] <= engine.clock.now():
            at, shared, prompt, output = waiting.pop(0)
            tokens = np.concatenate([np.arange(shared) % 900, np.random.default_rng(number).integers(1, 900, prompt)])
            sampling = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True, seed=number)
            engine.add(Request(id=str(number), prompt=tokens, sampling=sampling, arrival_s=at, priority=7 * number % 3))
            number += 1
        next_s = waiting[0][0] if waiting else float("inf")
        if not engine.unfinished:
            engine.clock.sleep(next_s - engine.clock.now())
            continue
        for delta in engine.step(next_s):
            out.setdefault(delta.request_id, []).extend(delta.tokens)
    engine.ledger.audit()
    return engine.events.columns(), out


@pytest.mark.parametrize("seed", range(60))
def test_events_equal_single_steps(seed: int) -> None:
    random = np.random.default_rng(seed)
    arrivals = [
        (
            float(random.choice([0.0, random.uniform(0, 3)])),
            int(random.choice([0, 16, 24])),
            int(random.integers(1, 90)),
            int(random.integers(1, 120)),
        )
        for _ in range(random.integers(1, 14))
    ]
    blocks = int(random.choice([40, 60, 400]))
    trace = "priority-trace:least=4:most=30"
    with_ = [
        (), ("whole-prompts",), ("priority",), ("static-batches:rows=3:window_s=0.2",), (trace, "fastswitch"),
        (trace, "follow-order:transfers=sync"), ("priority-trace", "block-groups:group=4"),
        ("tiered:host_bytes=40000:chunk=16:disk=d:disk_bytes=100000:disk_rate=1e6",),
    ][seed % 8]  # fmt: skip
    host_blocks = int(random.choice([0, 30]))
    extra = {"kv__host_bytes": 1} if host_blocks else {}
    together = engine(False, blocks, with_, host_blocks, **extra)
    alone = engine(True, blocks, with_, host_blocks, **extra)
    events, out = drive(together, arrivals)
    expected, expected_out = drive(alone, arrivals)
    for name, column in expected.items():
        assert np.array_equal(events[name], column), name
    assert out == expected_out
    assert together.events.counts == alone.events.counts
    assert together.clock.now() == alone.clock.now()


def test_what_is_loaded_takes_the_time_stated_and_saves_the_rest() -> None:
    """Three prompts in turn, of which the pool holds one: from host memory, or from a disk of a known rate."""
    took, computed = {}, {}
    for name, knobs in {
        "dropped": "prefix-tree",
        "host": "tiered:host_bytes=200000:chunk=16",
        "disk": "tiered:host_bytes=20000:chunk=16:disk=d:disk_bytes=200000:disk_rate=2e6",
    }.items():
        one = engine(False, 24, (knobs,))
        for i in range(9):
            prompt = np.arange(1 + i % 3, 150)
            one.add(Request(id=str(i), prompt=prompt, sampling=SamplingParams(max_tokens=4, ignore_eos=True)))
            began = one.clock.now()
            one.run()
            took[name] = one.clock.now() - began
            while one.tend():
                one.clock.advance(1e-3)
            one.clock.advance(1.0)
            one.tend()
        columns = one.events.columns()
        computed[name] = columns["a"][columns["kind"] == Kind.STEP].sum()
        one.ledger.audit()
    assert computed["host"] == computed["disk"] < 0.5 * computed["dropped"]
    assert took["host"] < took["disk"] < took["dropped"]
    # Copies to the pool begin when the first chunk is read; then the slower of both links sets the pace.
    assert took["disk"] - took["host"] > 0.9 * 2 * BLOCK_BYTES / 2e6


def test_steps_are_taken_together() -> None:
    one = engine(False, 400)
    one.add(Request(id="a", prompt=np.arange(1, 30), sampling=SamplingParams(max_tokens=300, ignore_eos=True)))
    calls = 0
    while one.unfinished:
        one.step()
        calls += 1
    assert one.events.counts[Kind.STEP] == 300
    assert calls < 5


def test_a_step_never_begins_after_what_is_due() -> None:
    one = engine(False, 400)
    one.add(Request(id="a", prompt=np.arange(1, 30), sampling=SamplingParams(max_tokens=300, ignore_eos=True)))
    due_s = 1.0
    while one.clock.now() < due_s:
        one.step(due_s)
    columns = one.events.columns()
    steps = columns["kind"] == Kind.STEP
    began = columns["time_s"][steps] - columns["b"][steps]
    assert (began < due_s).all()
    assert one.clock.now() < due_s + columns["b"][steps].max()


def test_what_is_not_modelled_is_refused() -> None:
    config = EngineConfig.build(set_={"depth.policy": "other"})
    with pytest.raises(ConfigError, match=r"depth\.policy=other cannot be simulated"):
        simulated_engine(config, MODEL, COSTS, blocks=10)


def test_what_arrives_at_the_moment_a_step_begins_is_in_that_step() -> None:
    first = (0.0, 0, 30, 80)
    events, _ = drive(engine(True, 400), [first])
    ends = events["time_s"][events["kind"] == Kind.STEP]
    for at in ends[[5, 17, 40]]:
        arrivals = [first, (float(at), 0, 20, 10)]
        together, _ = drive(engine(False, 400), arrivals)
        alone, _ = drive(engine(True, 400), arrivals)
        for name, column in alone.items():
            assert np.array_equal(together[name], column), name
