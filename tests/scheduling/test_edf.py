"""Earliest deadline first: whose objective is due next goes first, and nobody waits for ever."""

from __future__ import annotations

import pytest
from tests.engine.fake import alone, make_engine
from tests.scheduling.asks import asking, ends

from hasten.engine.config import EngineConfig
from hasten.engine.request import SLO
from hasten.engine.scheduling.edf import EDF, Options
from hasten.engine.technique import ConfigError


def edf(patience_s: float = 60.0) -> EDF:
    return EDF(Options(patience_s=patience_s))


def test_the_next_objective_of_each_kind_decides() -> None:
    engine = make_engine(rows=1, order=edf(patience_s=4.0))
    engine.add(asking("nothing"))  # due after 4 s
    engine.add(asking("late", SLO(deadline_s=9)))
    engine.add(asking("stream", SLO(ttft_s=2, tpot_s=0.1)))
    engine.add(asking("both", SLO(ttft_s=3, deadline_s=1)))
    assert ends(engine.run()) == ["both", "stream", "nothing", "late"]


def test_a_workflow_is_due_as_a_whole() -> None:
    engine = make_engine(rows=1, order=edf())
    engine.add(asking("first", SLO(deadline_s=10), workflow="w", arrival_s=-9.0))
    engine.run()
    engine.add(asking("other", SLO(deadline_s=5), arrival_s=0.0))
    engine.add(asking("second", SLO(deadline_s=10), workflow="w", arrival_s=0.0))  # one second after the first was
    assert ends(engine.run()) == ["second", "other"]


def test_who_asks_for_nothing_is_overtaken_for_as_long_as_patience_lasts() -> None:
    engine = make_engine(rows=1, order=edf(patience_s=5.0))
    engine.add(asking("patient", arrival_s=0.0))
    number, finished = 0, []
    while "patient" not in finished:  # something more urgent at every step
        engine.add(asking(f"r{number}", SLO(deadline_s=1), arrival_s=float(number)))
        number += 1
        for _ in range(3):
            finished += ends(engine.step())
    assert number <= 8


def test_tokens_are_those_of_each_request_alone() -> None:
    engine = make_engine(blocks=14, host_blocks=8, reuse=False, order=edf())
    made = [asking(f"r{i}", SLO(deadline_s=9 - i), prompt=12, tokens=20) for i in range(6)]
    got: dict[str, list[int]] = {}
    for one in made:
        engine.add(one)
    for delta in engine.run():
        got.setdefault(delta.request_id, []).extend(delta.tokens)
    assert all(got[one.id] == alone(one)[0] for one in made)


def test_bad_knobs_are_refused() -> None:
    for value in ("0", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match="patience_s must be a number of seconds above 0"):
            EngineConfig.build(with_=[f"edf:patience_s={value}"]).make("edf")
