"""Frames: the window against every window there is, members before others, and everybody's tokens as they are alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.fake import make_engine
from tests.scheduling.asks import asking

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.request import SLO
from hasten.engine.scheduling import framing
from hasten.engine.scheduling.frames import Frames, Options
from hasten.engine.scheduling.priority import Priority
from hasten.engine.sequence import State
from hasten.engine.technique import ConfigError


@settings(max_examples=200)
@given(
    candidates=st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 9)), min_size=1, max_size=30),
    width=st.integers(1, 12),
)
def test_the_window_is_the_best_of_all(candidates: list[tuple[int, int]], width: int) -> None:
    values = np.array([value for value, _ in candidates], dtype=np.float64)
    lengths = np.array([length for _, length in candidates])
    chosen = framing.window(values, lengths, width)
    by_length = sorted(range(len(candidates)), key=lambda i: lengths[i])
    windows = [by_length[i : i + width] for i in range(max(1, len(candidates) - width + 1))]
    assert list(chosen) in windows
    assert values[chosen].sum() == max(values[w].sum() for w in windows)


@settings(max_examples=200)
@given(
    left=st.integers(0, 2000),
    time_s=st.one_of(st.just(-1.0), st.floats(0.01, 50)),
    frame_s=st.floats(0.1, 5),
    frame=st.integers(1, 60),
    inside=st.integers(0, 5),
)
def test_missing_siblings_are_the_fewest_that_do(left: int, time_s: float, frame_s: float, frame: int, inside: int) -> None:
    found = framing.siblings_short(left, time_s, frame_s, frame, inside)
    if time_s <= 0:
        assert found == 0
        return
    need = left / time_s * frame_s
    assert (inside + found) * frame >= need * (1 - 1e-6) - 1e-6
    assert found == 0 or (inside + found - 1) * frame < need


def test_siblings_join_for_the_least_valued_others() -> None:
    values = np.array([5.0, 1.0, 4.0, 3.0, 2.0, 9.0])
    of = ["w", None, None, "w", "w", None]
    assert framing.add_siblings([0, 1, 2], of, values, lambda key, inside: 3 - inside, 3) == [0, 3, 4]
    assert framing.add_siblings([0, 1, 2], of, values, lambda key, inside: 2 - inside, 3) == [0, 2, 3]
    assert framing.add_siblings([0, 1, 2], of, values, lambda key, inside: 2 - inside, 4) == [0, 1, 2, 3]
    assert framing.add_siblings([1, 2], of, values, lambda key, inside: 9, 3) == [1, 2], "only of workflows that are in it"


def frames(**knobs: Any) -> Frames:
    return Frames(Options(**{"chunk": 16, "frame": 4, "pool": 1.0, **knobs}))


class Ranks(Priority):
    """The request's id says its key."""

    def keys(self, stale: Any, view: Any) -> np.ndarray:
        return np.array([float(seq.request.id) for seq in stale])


def rows_of(engine: Any, kind: Kind = Kind.SCHEDULED) -> list[set[int]]:
    """Who was scheduled in each step."""
    columns = engine.events.columns()
    out: list[set[int]] = [set()]
    for what, sequence in zip(columns["kind"], columns["sequence"], strict=True):
        if what == kind:
            out[-1].add(int(sequence))
        elif what == Kind.STEP:
            out.append(set())
    return out[:-1]


def test_a_member_takes_the_row_of_one_outside_the_frame_at_the_next_frame() -> None:
    engine = make_engine(rows=2, order=Ranks(), batching=frames(), reuse=False)
    engine.add(asking("5", tokens=40))
    engine.add(asking("6", tokens=40))
    for _ in range(3):
        engine.step()
    engine.add(asking("1", tokens=6))
    for _ in range(12):
        engine.step()
    steps = rows_of(engine)
    assert all(step == {0, 1} for step in steps[:4]), "the frame is over first"
    assert steps[4] == {0, 2} and steps[5] == {0, 2}, "then the better rank has the row of the worst"
    assert {1} <= set.union(*steps[9:]), "which goes on when the row is free"
    assert engine.events.counts[Kind.PREEMPTED] == 0


def test_a_step_is_filled_by_whoever_is_there() -> None:
    engine = make_engine(rows=4, order=Ranks(), batching=frames(frame=50))
    engine.add(asking("1", tokens=9))
    engine.step()
    engine.add(asking("3", tokens=9))  # no member of the frame that began before it came
    engine.step()
    assert rows_of(engine)[1] == {0, 1}


def test_a_member_takes_memory_where_there_is_a_slower_tier() -> None:
    took: list[int] = []
    for host_blocks in (0, 30):
        engine = make_engine(
            blocks=12, host_blocks=host_blocks, rows=2, order=Ranks(), batching=frames(), reuse=False, swap_from=1
        )
        engine.add(asking("5", prompt=30, tokens=60))
        engine.add(asking("6", prompt=30, tokens=60))
        for _ in range(6):
            engine.step()
        engine.add(asking("1", prompt=30, tokens=4))
        steps, ended = 0, False
        while not ended:
            ended = any(delta.last for delta in engine.step())
            steps += 1
        took.append(steps)
        assert (engine.events.counts[Kind.SWAPPED] > 0) == (host_blocks > 0)
    assert took[1] < took[0]


def test_rows_shrink_while_steps_are_slower_than_the_tightest_pace() -> None:
    policy = frames(frame=2, shrink=1)
    engine = make_engine(rows=6, order=Ranks(), batching=policy, reuse=False)
    for number in range(8):
        engine.add(asking(str(number), SLO(tpot_s=1e-4), tokens=30))
    policy._pace.interval_s = 1.0
    for _ in range(3):
        engine._inbox.empty_into(engine.ledger)
        policy._replan(engine._planner._ranked(), engine._planner)
    assert policy._rows == 3
    policy._pace.interval_s = 1e-6
    policy._replan(engine._planner._ranked(), engine._planner)
    assert policy._rows == 4
    for _ in range(9):
        policy._replan(engine._planner._ranked(), engine._planner)
    assert policy._rows == 6, "never beyond the engine's"


def test_a_workflow_short_of_time_gets_more_of_its_calls_in() -> None:
    policy = frames()
    engine = make_engine(rows=3, order=Ranks(), batching=policy, reuse=False)
    for name in ("1", "2", "3"):
        engine.add(asking(name, tokens=100))
    for name in ("0", "7", "8"):
        engine.add(asking(name, SLO(deadline_s=300.0), tokens=100, workflow="w"))
    engine._inbox.empty_into(engine.ledger)
    policy._pace.interval_s = 1.0
    view = engine._planner
    policy._replan(view._ranked(), view)  # about 300 tokens in 300 s: one call a step keeps up
    names = {seq.id: seq.request.id for seq in view.sequences}
    assert {names[id] for id in policy._members} == {"0", "1", "2"}
    policy._pace.interval_s = 2.0  # two a step
    policy._replan(view._ranked(), view)
    assert {names[id] for id in policy._members} == {"0", "1", "7"}


class Overdue(Ranks):
    """All are ahead of all others, as `Planner.order_key` says of those that waited longer than patience allows."""

    def keys(self, stale: Any, view: Any) -> np.ndarray:
        return np.full(len(stale), -np.inf)


def members(policy: Frames, engine: Any) -> set[str]:
    view = engine._planner
    policy._replan([seq for seq in view._ranked() if seq.state in (State.WAITING, State.RUNNING)], view)
    return {seq.request.id for seq in view.sequences if seq.id in policy._members}


def test_who_is_overdue_is_a_member_whatever_its_length() -> None:
    policy = frames(pool=2.0)
    engine = make_engine(rows=2, order=Overdue(), batching=policy, reuse=False)
    for id, prompt in (("long", 100), ("short", 5), ("as short", 5)):
        engine.add(asking(id, prompt=prompt))
    engine._inbox.empty_into(engine.ledger)
    assert members(policy, engine) == {"long", "short"}, "in order of arrival, not the two that are alike"


def test_who_is_overdue_in_the_slower_tier_keeps_its_place() -> None:
    policy = frames()
    engine = make_engine(rows=1, host_blocks=30, order=Overdue(), batching=policy, reuse=False)
    engine.add(asking("first", prompt=20, tokens=40))
    for _ in range(4):
        engine.step()
    assert engine.ledger.swap_out(engine._planner.sequences[0])
    engine.add(asking("second"))
    engine._inbox.empty_into(engine.ledger)
    assert members(policy, engine) == {"first"}


def test_it_holds_until_the_frame_is_over() -> None:
    policy = frames(frame=10)
    engine = make_engine(order=Ranks(), batching=policy)
    engine.add(asking("1", tokens=30))
    for step in range(4):
        engine.step()
        assert policy.steady(engine._planner.plan(), engine._planner) == 9 - step
    assert all(seq.state is State.RUNNING for seq in engine._planner.sequences)


def test_bad_knobs_are_refused() -> None:
    for knob, message in (
        ("chunk=0", "chunk must be at least 1"),
        ("frame=0", "frame must be at least 1"),
        ("shrink=0", "shrink must be at least 1"),
        ("pool=0.5", "pool must be a number from 1 on"),
        ("pool=nan", "pool must be"),
        ("watermark=1", "watermark must be a share"),
    ):
        with pytest.raises(ConfigError, match=message):
            EngineConfig.build(with_=[f"frames:{knob}"]).make("frames")
