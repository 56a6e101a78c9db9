"""The time that planning takes is counted, and counted while as many run and wait as asked."""

from __future__ import annotations

from hasten.engine.config import EngineConfig
from hasten.lab.bench import planning


def test_planning_is_timed_with_a_full_queue() -> None:
    found = planning.measure(EngineConfig.build(with_=["priority"]), 40, running=8, steps=20)
    assert (found.running, found.waiting, len(found.seconds)) == (8, 40, 20)
    assert (found.seconds > 0).all()
    assert 0 < found.median_s <= found.p99_s


def test_a_sweep_can_be_drawn() -> None:
    points = [planning.measure(EngineConfig.build(), waiting, running=4, steps=5) for waiting in (0, 10)]
    assert planning.picture({"plain": points}).startswith(b"\x89PNG")
