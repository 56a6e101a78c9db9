"""Open-loop replay in process: on a real engine, on one that does nothing, and when things go wrong."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine import tiny

from hasten.engine.build import Built
from hasten.engine.clock import VirtualClock
from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.outputs import QueueFull, TokenDelta
from hasten.engine.request import SLO, Request
from hasten.engine.simulate import simulated_engine
from hasten.lab.bench import null
from hasten.lab.bench.arrivals import Arrivals
from hasten.lab.bench.drive import replay
from hasten.lab.bench.metrics import requests, summary
from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny.engine(tiny.folder(tmp_path_factory.mktemp("tiny")))


def timed(id: str, arrival_s: float = 0.0, prompt: int = 20, output: int = 5, **more: object) -> TimedRequest:
    return TimedRequest(id=id, arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output, **more)  # type: ignore[arg-type]


def steady(count: int, gap_s: float) -> Workload:
    return Workload(name="steady", requests=[timed(str(i), i * gap_s, 10 + i, 3 + i) for i in range(count)])


# -- a real engine -----------------------------------------------------------------------------------------------------


def test_every_request_ends_with_the_tokens_it_asked_for(built: Built) -> None:
    told: list[tuple[int, int]] = []
    work = steady(20, 0.01)
    run = replay(built.engine, work, name="real", progress=lambda done, total: told.append((done, total)))
    table = requests(run)
    assert table.ok.all() and not run.errors and not run.simulated
    assert table.output_tokens.tolist() == [r.output_tokens for r in work]
    assert table.prompt_tokens.tolist() == [r.prompt_tokens for r in work]
    assert np.allclose(table.due_s, [r.arrival_s for r in work])
    assert (table.ttft_s > 0).all() and (table.e2e_s >= table.ttft_s).all()
    assert np.isfinite(run.lag_s).all() and (run.lag_s >= 0).all()
    assert run.name == "real" and run.wall_s >= 0.19 and run.total_blocks == built.parts.books.pool.blocks
    assert told[-1] == (20, 20)
    assert built.engine.unfinished == 0
    built.engine.ledger.audit()


def test_a_second_replay_stands_alone(built: Built) -> None:
    """Neither the first one's events nor the KV it left behind are found in it."""
    work = Workload(
        name="shared", requests=[timed(str(i), 0.0, 128, 2, blocks=(1, 2, 3, 4)) for i in range(4)], block_tokens=32
    )
    first, second = replay(built.engine, work), replay(built.engine, work)
    assert requests(second).ok.all()
    assert (second.columns["kind"] == Kind.ARRIVED).sum() == 4
    assert set(first.sequence).isdisjoint(second.sequence)
    assert requests(second).reused_tokens.max() == requests(first).reused_tokens.max()


def test_the_log_keeps_as_much_as_before(built: Built) -> None:
    kept = built.engine.events.keep
    replay(built.engine, steady(1, 0.0))
    assert built.engine.events.keep == kept is not None


def test_what_is_refused_is_told_and_its_stages_never_come(built: Built) -> None:
    work = Workload(
        name="refused",
        requests=[
            timed("long", prompt=2000),
            timed("child", parents=("long",)),
            timed("fine", 0.01),
            timed("both", parents=("child", "fine")),
            timed("after", parents=("fine",)),
        ],
    )
    run = replay(built.engine, work)
    assert "2000 tokens" in run.errors[0]
    assert run.errors[1] == run.errors[3] == "request 0, which it needs, failed"
    assert set(run.errors) == {0, 1, 3}
    table = requests(run)
    assert table.ok.tolist() == [False, False, True, False, True]
    assert run.sequence[[0, 1, 3]].tolist() == [-1, -1, -1]
    assert np.isnan(run.due_s[[1, 3]]).all() and np.isnan(run.lag_s[[1, 3]]).all()
    assert summary(run)["failed"] == 3


def test_stages_follow_their_parents(built: Built) -> None:
    work = Workload(
        name="stages",
        requests=[
            timed("a"),
            timed("b", output=9),
            timed("join", parents=("a", "b", "a"), delay_s=0.05),
            timed("end", parents=("join",)),
        ],
    )
    run = replay(built.engine, work)
    table = requests(run)
    assert table.ok.all()
    # A stage is due counting from when the replay learns of the end, which is just after the step that brought it.
    late_s = table.due_s[2:] - np.array([max(table.end_s[:2]) + 0.05, table.end_s[2]])
    assert (late_s >= 0).all() and (late_s < 0.05).all()
    assert (table.scheduled_s >= table.due_s).all()


def test_objectives_and_priorities_reach_the_engine() -> None:
    engine = Recorder()
    work = Workload(
        name="facts",
        requests=[timed("0", slo_class="fast", priority=-3, tenant="t", workflow="w", stage="s"), timed("1", output=7)],
        slos={"fast": SLO(ttft_s=0.5)},
    )
    replay(engine, work, temperature=0.7)
    one, other = engine.seen
    assert (one.slo, one.priority, one.tenant, one.app.workflow, one.app.stage) == (SLO(ttft_s=0.5), -3, "t", "w", "s")
    assert other.slo == SLO() and other.sampling.max_tokens == 7
    assert one.sampling.ignore_eos and one.sampling.temperature == 0.7 and one.arrival_s is not None


# -- when things go wrong ----------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def test_an_interrupted_replay_leaves_the_engine_idle(built: Built) -> None:
    kept = built.engine.events.keep

    def interrupt(done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        replay(built.engine, Workload(name="long", requests=[timed(str(i), output=200) for i in range(5)]), progress=interrupt)
    assert built.engine.unfinished == 0
    assert built.engine.events.keep == kept
    built.engine.ledger.audit()
    assert requests(replay(built.engine, steady(3, 0.0))).ok.all()


def test_a_busy_engine_is_refused(built: Built) -> None:
    built.engine.add(Request(id="other", prompt=np.array([1, 2])))
    with pytest.raises(RuntimeError, match="still busy"):
        replay(built.engine, steady(2, 0.0))
    built.engine.cancel("other")
    built.engine.run()


def test_text_needs_a_tokenizer() -> None:
    work = Workload(name="text", requests=[timed("0", text="hello")])
    with pytest.raises(WorkloadError, match="a tokenizer is needed"):
        replay(null.NullEngine(), work)


class Recorder(null.NullEngine):
    """Remembers what it was asked, and can hold `limit` requests."""

    def __init__(self, limit: int = 10**9, fails: str | None = None) -> None:
        super().__init__()
        self.seen: list[Request] = []
        self.cancelled: list[str] = []
        self._limit, self._fails = limit, fails

    def add(self, request: Request) -> None:
        if self.unfinished >= self._limit:
            raise QueueFull("full")
        self.seen.append(request)
        super().add(request)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        super().cancel(request_id)

    def step(self, until_s: float = float("inf")) -> list[TokenDelta]:
        out = super().step(until_s)
        if self._fails is not None:
            out = [dataclasses.replace(delta, finish="error", error=self._fails) for delta in out]
        return out


def test_a_full_queue_refuses() -> None:
    run = replay(Recorder(limit=2), Workload(name="crowd", requests=[timed(str(i)) for i in range(5)]))
    assert run.errors == {2: "full", 3: "full", 4: "full"}
    assert (run.sequence >= 0).tolist() == [True, True, False, False, False]


def test_what_fails_later_takes_its_stages_along() -> None:
    work = Workload(name="fails", requests=[timed("a"), timed("b", parents=("a",)), timed("c", parents=("b",))])
    run = replay(Recorder(fails="out of luck"), work)
    assert run.errors == {0: "out of luck", 1: "request 0, which it needs, failed", 2: "request 0, which it needs, failed"}


class Broken(Recorder):
    """Fails in its second step."""

    steps = 0

    def step(self, until_s: float = float("inf")) -> list[TokenDelta]:
        self.steps += 1
        if self.steps == 2:
            raise Interrupted
        return super().step(until_s)


def test_an_engine_that_breaks_is_told_to_drop_what_runs() -> None:
    engine = Broken()
    with pytest.raises(Interrupted):
        replay(engine, Workload(name="two", requests=[timed("0"), timed("1", 0.01), timed("2", 0.02)]))
    assert engine.cancelled == [engine.seen[1].id]
    assert engine.unfinished == 0
    assert engine.events.keep is not None


# -- time --------------------------------------------------------------------------------------------------------------


class Slow(null.NullEngine):
    """Each step takes 20 ms."""

    def step(self, until_s: float = float("inf")) -> list[TokenDelta]:
        time.sleep(0.02)
        return super().step(until_s)


def test_a_step_under_way_is_not_the_replays_lag() -> None:
    work = Workload(name="behind", requests=[timed(str(i), i * 0.005) for i in range(20)])
    run = replay(Slow(), work)
    handed_s = run.columns["time_s"][run.columns["kind"] == Kind.SCHEDULED] - run.start_s
    waited = handed_s - np.array([r.arrival_s for r in work])
    assert np.median(waited) > 0.02  # of which none counts:
    assert np.median(run.lag_s) < 0.005


def test_a_slow_replay_is_reported_as_lag() -> None:
    class Reluctant(null.NullEngine):
        def add(self, request: Request) -> None:
            time.sleep(0.02)  # of the handing over, not of a step
            super().add(request)

    run = replay(Reluctant(), Workload(name="crowd", requests=[timed(str(i)) for i in range(6)]))
    assert (np.diff(run.lag_s) >= 0.019).all()
    assert run.lag_s[0] >= 0.019
    assert not run.valid


def test_nothing_is_handed_over_early() -> None:
    class Watched(Recorder):
        def add(self, request: Request) -> None:
            assert request.arrival_s is not None
            assert self.clock.now() >= request.arrival_s
            super().add(request)

    engine = Watched()
    replay(engine, null.schedule(2000, 0.2))
    arrivals = [request.arrival_s for request in engine.seen]
    assert len(arrivals) == 400 and arrivals == sorted(arrivals)


def test_the_null_target_answers_everything() -> None:
    run = null.measure(2000, 0.2)
    table = requests(run)
    assert table.ok.all() and len(table) == 400
    assert (table.output_tokens == 20).all()
    assert np.isfinite(run.lag_s).all() and run.lag_p99_s == np.percentile(run.lag_s, 99)
    assert not run.simulated and run.cpu_s > 0


def test_a_schedule_has_the_rate_it_is_asked_for() -> None:
    work = null.schedule(500, 20)
    assert len(work) == 10_000
    assert work.duration_s == pytest.approx(20, rel=0.05)


def test_on_a_virtual_clock_there_is_no_lag() -> None:
    engine = null.NullEngine(VirtualClock(7.0))
    began = time.perf_counter()
    run = replay(engine, Workload(name="days", requests=[timed("0"), timed("1", 86_400.0)]))
    assert run.simulated and run.lag_s.tolist() == [0, 0]
    assert run.start_s == 7.0 and run.due_s.tolist() == [7.0, 86_407.0]
    assert time.perf_counter() - began < 1


def test_a_simulated_engine_is_replayed_twice() -> None:
    model = SimulatedModel(name="m", vocabulary=500, max_length=300)
    engine = simulated_engine(EngineConfig(), model, CostModel(knots=(1, 300), knot_s=(0.01, 0.1)), blocks=100)
    work = steady(20, 0.05)
    one, other = (requests(replay(engine, work)) for _ in range(2))
    assert np.allclose(one.e2e_s, other.e2e_s)


# -- arrivals ----------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> Workload:
    """Requests with parents among the earlier ones."""
    count = draw(st.integers(1, 12))
    out = []
    for i in range(count):
        parents = draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else []
        delay = draw(st.sampled_from([0.0, 0.5])) if parents else 0.0
        out.append(timed(str(i), parents=tuple(map(str, parents)), delay_s=delay))
    return Workload(name="graph", requests=out)


@given(graphs(), st.sets(st.integers(0, 11)))
def test_every_request_either_comes_after_its_parents_or_is_lost(work: Workload, failing: set[int]) -> None:
    arrivals = Arrivals(work, 100.0)
    now = 100.0
    ended: dict[int, float] = {}
    lost: list[int] = []
    came: list[int] = []
    while arrivals.next_s < np.inf:
        now = max(now, arrivals.next_s)
        for number in arrivals.pop(now):
            came.append(number)
            parents = [int(parent) for parent in work.requests[number].parents]
            expected = max((ended[p] for p in parents), default=100.0) + work.requests[number].delay_s
            assert arrivals.due_s[number] == expected
            now += 1.0
            if number in failing:
                lost += arrivals.failed(number)
            else:
                ended[number] = now
                arrivals.ended(number, now)
    assert arrivals.done
    assert sorted([*came, *lost]) == list(range(len(work)))
    hopeless = set(failing)
    for i, request in enumerate(work):
        if hopeless & {int(parent) for parent in request.parents}:
            hopeless.add(i)
            assert i in lost and np.isnan(arrivals.due_s[i])


def test_arrivals_at_the_same_time_come_in_order() -> None:
    arrivals = Arrivals(Workload(name="same", requests=[timed(str(i)) for i in range(5)]), 1.0)
    assert arrivals.pop(0.999) == [] and arrivals.next_s == 1.0
    assert arrivals.pop(1.0) == [0, 1, 2, 3, 4]
    assert arrivals.done and arrivals.next_s == float("inf")
