"""Static and window batches: nobody joins, nobody hangs, and everybody gets the tokens they would get alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.fake import alone, make_engine

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.loop import Engine
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import Request, SamplingParams
from hasten.engine.scheduling.base import StepPlan, Work, WorkKind
from hasten.engine.scheduling.static_batches import Options, StaticBatches
from hasten.engine.technique import ConfigError


def policy(rows: int = 32, window_s: float = 0.0) -> StaticBatches:
    return StaticBatches(Options(rows=rows, window_s=window_s))


def request(id: str, prompt: int = 5, output: int = 4, n: int = 1) -> Request:
    sampling = SamplingParams(max_tokens=output, temperature=0.8 if n > 1 else 0.0, seed=1, n=n)
    return Request(id=id, prompt=np.arange(prompt) % 37, sampling=sampling)


def gather(deltas: list[TokenDelta]) -> dict[str, list[list[int]]]:
    out: dict[str, dict[int, list[int]]] = {}
    for delta in deltas:
        assert delta.error is None, delta.error
        out.setdefault(delta.request_id, {}).setdefault(delta.index, []).extend(delta.tokens)
    return {id: [tokens[i] for i in sorted(tokens)] for id, tokens in out.items()}


def batches(engine: Engine) -> list[set[int]]:
    """The sequences that ran together, from the events: a batch is what starts before everything running has ended."""
    columns = engine.events.columns()
    out: list[set[int]] = []
    running: set[int] = set()
    for kind, sequence in zip(columns["kind"], columns["sequence"], strict=True):
        if kind == Kind.SCHEDULED:
            if not running:
                out.append(set())
            out[-1].add(int(sequence))
            running.add(int(sequence))
        elif kind in (Kind.FINISHED, Kind.FAILED):
            running.discard(int(sequence))
    return out


def test_nobody_joins_until_the_whole_batch_has_ended() -> None:
    engine = make_engine(batching=policy())
    engine.add(request("short", output=2))
    engine.add(request("long", output=20))
    out = engine.step()
    engine.add(request("late", output=2))
    out += engine.run()
    order = [delta.request_id for delta in out if delta.finish]
    assert order == ["short", "long", "late"]
    assert batches(engine) == [{0, 1}, {2}]


def test_a_batch_has_at_most_so_many_rows_and_continuous_batching_has_one() -> None:
    for batching, sizes in ((policy(rows=3), [3, 3, 2]), (policy(rows=1), [1] * 8), (None, [8])):
        engine = make_engine(batching=batching)
        for i in range(8):
            engine.add(request(f"r{i}", output=6))
        engine.run()
        assert [len(batch) for batch in batches(engine)] == sizes


def test_a_batch_is_as_large_as_its_longest_outputs_fit_in_memory() -> None:
    engine = make_engine(blocks=10, block_size=8, reuse=False, batching=policy())  # each may come to 5 blocks
    for i in range(5):
        engine.add(request(f"r{i}", prompt=10, output=30))
    engine.run()
    assert [len(batch) for batch in batches(engine)] == [2, 2, 1]
    assert engine.events.counts[Kind.PREEMPTED] == 0


class At:
    """A view of waiting sequences at a moment, with all the memory they want."""

    def __init__(self, engine: Engine, now: float) -> None:
        self._view: Any = engine._planner
        self.now = now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


def test_a_window_waits_for_more_and_says_until_when() -> None:
    engine = make_engine()
    for i, arrival in enumerate((1.0, 1.5, 2.0)):
        engine.add(Request(id=f"r{i}", prompt=np.arange(4), sampling=SamplingParams(max_tokens=3), arrival_s=arrival))
    engine._inbox.empty_into(engine.ledger)
    waiting = list(engine.ledger.sequences.values())
    window = policy(rows=3, window_s=2.0)
    plan = window.compose(waiting[:1], At(engine, 1.0))
    assert (plan.work, plan.replan_at) == ([], 3.0)
    assert window.compose(waiting[:2], At(engine, 2.5)).replan_at == 3.0, "the first arrival decides, not the last"
    assert [w.sequence for w in window.compose(waiting[:2], At(engine, 3.0)).work] == waiting[:2]
    full = policy(rows=3, window_s=2.0).compose(waiting, At(engine, 2.0))
    assert [w.sequence for w in full.work] == waiting, "a full batch waits for nobody"
    assert policy().compose([], At(engine, 0.0)).work == []


def test_an_engine_waits_out_the_window_and_takes_who_came_meanwhile() -> None:
    engine = make_engine(batching=policy(rows=8, window_s=2.0))
    engine.add(request("first"))
    assert engine.step(until_s=1.0) == [] and engine.clock.now() == 1.0
    engine.add(request("second"))
    assert all(delta.error is None for delta in engine.run())
    assert batches(engine) == [{0, 1}]
    columns = engine.events.columns()
    assert columns["time_s"][columns["kind"] == Kind.SCHEDULED].min() == 2.0


def test_only_a_batch_that_decodes_is_steady() -> None:
    engine = make_engine()
    engine.add(request("r"))
    engine._inbox.empty_into(engine.ledger)
    (seq,) = engine.ledger.sequences.values()
    view: Any = At(engine, 0.0)
    assert policy().steady(StepPlan([Work(seq, 1, WorkKind.DECODE)]), view) == math.inf
    assert policy().steady(StepPlan([Work(seq, 5, WorkKind.PREFILL)]), view) == 0
    assert policy().steady(StepPlan([Work(seq, 1, WorkKind.VERIFY, 2)]), view) == 0
    assert policy().steady(StepPlan(replan_at=3.0), view) == 0


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 25), st.sampled_from([1, 1, 1, 3]), st.integers(0, 5)),
        min_size=1,
        max_size=9,
    ),
    blocks=st.integers(12, 40),
    host=st.sampled_from([0, 8]),
    shape=st.tuples(st.integers(8, 70), st.integers(1, 8)),
    rows=st.integers(1, 6),
)
def test_any_arrivals_give_what_each_request_gets_alone(
    jobs: list[tuple[int, int, int, int]], blocks: int, host: int, shape: tuple[int, int], rows: int
) -> None:
    engine = make_engine(
        blocks=blocks, host_blocks=host, tokens=shape[0], rows=shape[1], max_length=96, batching=policy(rows=rows)
    )
    made, out, steps = [], [], 0
    for i, (prompt, output, n, wait) in enumerate(jobs):
        made.append(request(f"r{i}", prompt, output, n))
        engine.add(made[-1])
        for _ in range(wait):
            out += engine.step()
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
        steps += 1
        assert steps < 3000, "the engine does not come to an end"
    got = gather(out)
    assert all(got[one.id] == alone(one, max_length=96) for one in made)
    pool = engine.ledger.books.pool
    assert pool.available == pool.blocks


def test_bad_knobs_are_refused() -> None:
    for knob, message in (
        ("rows=0", "rows must be at least 1"),
        ("window_s=-1", "seconds from 0 on"),
        ("window_s=nan", "seconds"),
    ):
        config = EngineConfig.build(with_=[f"static-batches:{knob}"])
        with pytest.raises(ConfigError, match=message):
            config.make("static-batches")
    with pytest.raises(ConfigError, match="both decide"):
        EngineConfig.build(with_=["static-batches,whole-prompts"])
