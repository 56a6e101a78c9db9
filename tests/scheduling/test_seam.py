"""The scheduling seam itself: what policies are told, and that what they answer is used safely."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import fields

import numpy as np
import pytest
from tests.engine.fake import make_engine

from hasten.engine.events import Event, EventLog, Kind
from hasten.engine.request import AppContext, Request, SamplingParams
from hasten.engine.scheduling import workflows
from hasten.engine.scheduling.base import Direction, Hint, StepPlan, Transfer, View
from hasten.engine.scheduling.fcfs import FCFS
from hasten.engine.scheduling.newest_yields import NewestYields
from hasten.engine.scheduling.newest_yields import Options as ResidencyOptions
from hasten.engine.scheduling.stall_free import Options as BatchingOptions
from hasten.engine.scheduling.stall_free import StallFree
from hasten.engine.sequence import Sequence, State


def call(id: str, workflow: str = "", stage: str = "", *, tokens: int = 4, prompt: int = 10, n: int = 1) -> Request:
    return Request(
        id=id,
        prompt=np.arange(prompt) % 30,
        sampling=SamplingParams(max_tokens=tokens, temperature=0, n=n),
        app=AppContext(application="app", workflow=workflow, stage=stage),
    )


class Watching(FCFS):
    """First come, first served, and a diary."""

    learns_from = frozenset({Kind.ARRIVED, Kind.FORKED, Kind.FIRST_TOKEN, Kind.FINISHED})

    def __init__(self) -> None:
        self.seen: list[tuple[Kind, str, int, int]] = []
        self.asked: list[int] = []
        self.stale: list[int] = []

    def keys(self, stale: Seq[Sequence], view: View) -> np.ndarray:
        self.asked += [seq.id for seq in stale]
        return super().keys(stale, view)

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        assert sequence is not None, "the books know whom the event concerns"
        workflow = view.workflow(sequence)
        self.seen.append((event.kind, sequence.request.id, len(workflow.live), workflow.ended))
        stale, self.stale = self.stale, []
        return stale


def test_a_learner_sees_each_event_with_its_sequence_and_workflow() -> None:
    order = Watching()
    engine = make_engine(order=order)
    engine.add(call("a", "w", "plan"))
    engine.add(call("b", "w", "plan", tokens=6))
    engine.run()
    assert order.seen == [
        (Kind.ARRIVED, "a", 1, 0),
        (Kind.ARRIVED, "b", 2, 0),
        (Kind.FIRST_TOKEN, "a", 2, 0),
        (Kind.FIRST_TOKEN, "b", 2, 0),
        (Kind.FINISHED, "a", 1, 1),
        (Kind.FINISHED, "b", 0, 2),
    ]


def test_a_workflow_remembers_its_calls_and_service() -> None:
    kept: list[workflows.Workflow] = []

    class Order(Watching):
        def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
            assert sequence is not None
            kept.append(view.workflow(sequence))
            return super().learn(event, sequence, view)

    engine = make_engine(order=Order(), reuse=False)
    engine.add(call("a", "w", "plan", tokens=3))
    engine.run()
    engine.add(call("b", "w", "act", tokens=5, n=2))
    engine.run()
    assert all(workflow is kept[0] for workflow in kept)
    assert (kept[0].ended, kept[0].prompt_tokens, kept[0].output_tokens) == (3, 30, 13)
    assert kept[0].service == (10 + 2) + (10 + 4) + 4, "the prompt of n sequences is computed once, a last token never"


def test_a_request_without_a_workflow_is_one_of_its_own_and_forgotten() -> None:
    known = workflows.Workflows()
    engine = make_engine()
    engine._planner._workflows = known
    for id in "ab":
        engine.add(call(id))
    engine.step()
    assert len(known) == 2
    engine.run()
    assert len(known) == 0


def test_old_idle_workflows_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows, "KEPT", 3)
    engine = make_engine()
    known = engine._planner._workflows
    for number in range(6):
        engine.add(call(str(number), f"w{number}"))
        engine.run()
    assert len(known) == 3


def test_what_failed_counts_as_service_only() -> None:
    engine = make_engine()
    for id in "ab":
        engine.add(call(id, "w", tokens=20))
    for _ in range(3):
        engine.step()
    engine.cancel("a")
    engine.step()
    (seq,) = engine.ledger.sequences.values()
    workflow = engine._planner.workflow(seq)
    assert (workflow.ended, workflow.prompt_tokens, workflow.output_tokens) == (1, 0, 0)
    assert workflow.ended_service > 10


def test_a_name_that_is_used_for_ever_takes_no_more_memory() -> None:
    order = Watching()
    engine = make_engine(order=order)
    kept = engine._planner._workflows
    for number in range(5):
        engine.add(call(str(number), "w"))
        engine.run()
    (workflow,) = kept._idle.values()
    assert workflow.ended == 5
    values = [getattr(workflow, field.name) for field in fields(workflow)]
    assert not any(value for value in values if not isinstance(value, int | float | str)), "numbers and names, nothing a call"


def test_keys_named_stale_are_asked_again() -> None:
    order = Watching()
    engine = make_engine(order=order)
    for id in "abc":
        engine.add(call(id, tokens=8))
    engine.step()
    assert order.asked == [0, 1, 2]
    order.stale = [1, 2]
    engine.add(call("d"))  # its arrival makes the order name the two
    engine.step()
    assert order.asked == [0, 1, 2, 1, 2, 3]


def test_a_learner_that_fails_hurts_nobody() -> None:
    class Order(Watching):
        def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
            raise RuntimeError("nothing sticks")

    engine = make_engine(order=Order())
    engine.add(call("a"))
    assert [delta.finish for delta in engine.run()][-1] == "length"


def test_keys_that_are_no_numbers_go_last() -> None:
    class Order(FCFS):
        def keys(self, stale: Seq[Sequence], view: View) -> np.ndarray:
            return np.array([math.nan if seq.request.id == "a" else 1.0 for seq in stale])

    engine = make_engine(order=Order(), rows=1)
    for id in "abc":
        engine.add(call(id))
    assert [delta.request_id for delta in engine.run() if delta.last] == ["b", "c", "a"]


class BringsBackAtOnce(NewestYields):
    """Swaps everybody out once, and steps wait for those that come back."""

    swapped = False

    def ahead(self, view: View, ranked: Seq[Sequence]) -> list[Transfer]:
        if not self.swapped:
            self.swapped = bool(view.in_state(State.RUNNING))
            return [Transfer(seq, Direction.OUT, False) for seq in view.in_state(State.RUNNING)]
        return [Transfer(seq, Direction.IN, False) for seq in view.in_state(State.SWAPPED)]

    def plan(self, view: View, plan: StepPlan, short: int) -> list[Transfer]:
        return []


def test_who_ends_while_the_step_waits_for_it_is_not_planned() -> None:
    engine = make_engine(
        host_blocks=40, residency=BringsBackAtOnce(ResidencyOptions()), batching=StallFree(BatchingOptions(preempt=True))
    )
    engine.add(call("lost", tokens=20))
    engine.step()
    (seq,) = engine.ledger.sequences.values()
    seq.recomputable = False
    engine.step()
    engine.add(call("other", tokens=20))
    engine.executor.fail_copies = 1.0  # type: ignore[attr-defined]
    deltas = engine.run()
    assert [(d.request_id, bool(d.error)) for d in deltas if d.last] == [("lost", True), ("other", False)]
    assert not engine.events.counts[Kind.PLAN_REFUSED]
    engine.ledger.audit()


def test_hints_reach_whoever_asked_for_them() -> None:
    class Order(FCFS):
        def hints(self, view: View) -> list[Hint]:
            return [Hint("sandbox", "w")] if len(view.sequences) == 1 else []

    engine = make_engine(order=Order())
    got: list[Hint] = []
    engine.on_hint(got.append)
    engine.add(call("a", "w"))
    engine.step()
    assert got == [Hint("sandbox", "w")]


def test_lengths_are_kept_within_the_room_and_may_fail() -> None:
    class Wild:
        def remaining(self, sequence: Sequence, view: View) -> np.ndarray:
            if sequence.request.id == "b":
                raise RuntimeError("no idea")
            return np.array([-5.0, 3.0, 1e9])

    engine = make_engine(lengths=Wild(), max_length=50)
    engine.add(call("a", tokens=20))
    engine.add(call("b", tokens=100))
    engine.step()
    planner = engine._planner
    a, b = planner.sequences
    assert planner.remaining_output(a).tolist() == [1.0, 3.0, 19.0]
    assert planner.remaining_output(b).tolist() == [39.0], "the context's room"


def test_observers_get_the_kinds_they_named() -> None:
    log, got = EventLog(), []
    log.subscribe(lambda event: got.append((event.kind, event.sequence)), {Kind.TOKENS, Kind.STEP})
    log.add(0.0, Kind.ARRIVED, 1)
    log.add_each(1.0, Kind.TOKENS, [1, 2], 1)
    log.add(1.0, Kind.STEP)
    log.extend(log.columns())
    assert got == [(Kind.TOKENS, 1), (Kind.TOKENS, 2), (Kind.STEP, -1)] * 2
