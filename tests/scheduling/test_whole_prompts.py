"""Whole prompts first: who joins a step beside a prompt that is cut because it exceeds a step."""

from __future__ import annotations

from tests.engine.fake import make_engine
from tests.scheduling.asks import asking

from hasten.engine.scheduling.whole_prompts import WholePrompts
from hasten.engine.sequence import State


def test_the_rest_of_a_long_prompt_takes_one_row() -> None:
    engine = make_engine(rows=2, tokens=16, batching=WholePrompts(), reuse=False)
    engine.add(asking("long", prompt=40))
    engine.add(asking("short", prompt=5))
    for _ in range(3):  # 16 + 16 + 8, and 5 beside the last 8
        engine.step()
    assert [seq.state for seq in engine._planner.sequences] == [State.RUNNING, State.RUNNING]


def test_no_more_are_begun_than_there_are_rows() -> None:
    engine = make_engine(rows=2, tokens=16, batching=WholePrompts(), reuse=False)
    for id in "abc":
        engine.add(asking(id))
    engine.step()
    assert [seq.state for seq in engine._planner.sequences] == [State.RUNNING, State.RUNNING, State.WAITING]
