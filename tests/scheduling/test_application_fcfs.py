"""First come, first served by application: later calls keep their workflow's place."""

from __future__ import annotations

from tests.engine.fake import make_engine
from tests.scheduling.test_seam import call

from hasten.engine.scheduling.application_fcfs import ApplicationFCFS
from hasten.engine.scheduling.fcfs import FCFS


def finished(order: object) -> list[str]:
    """One row: who ends in which order. The second call of workflow v comes when u's only call waits."""
    engine = make_engine(order=order, rows=1)
    for id, workflow, tokens in (("v1", "v", 5), ("u1", "u", 30), ("w", "", 3), ("v2", "v", 3)):
        engine.add(call(id, workflow, tokens=tokens))
        engine.step()
        engine.clock.sleep(1.0)
    return [delta.request_id for delta in engine.run() if delta.last]


def test_a_workflow_keeps_its_place() -> None:
    assert finished(ApplicationFCFS()) == ["v1", "v2", "u1", "w"]
    assert finished(FCFS()) == ["v1", "u1", "w", "v2"]


def test_two_users_workflows_of_one_name_are_two() -> None:
    from dataclasses import replace

    engine = make_engine(order=ApplicationFCFS(), rows=1)
    for request in (call("a1", "same", tokens=5), call("u", "u", tokens=8), replace(call("b1", "same"), tenant="b")):
        engine.add(request)
        engine.step()
        engine.clock.sleep(1.0)
    assert [delta.request_id for delta in engine.run() if delta.last] == ["a1", "u", "b1"]
