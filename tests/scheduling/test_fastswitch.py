"""FastSwitch under random schedules: equal tokens, equal KV after every way back, no block lost on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.engine.fake import VOCABULARY, alone, make_engine

from hasten.engine.config import EngineConfig
from hasten.engine.events import Event, Kind
from hasten.engine.loop import Engine
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import Request, SamplingParams
from hasten.engine.scheduling.base import Direction, StepPlan, Transfer
from hasten.engine.scheduling.follow_order import FollowOrder, Options
from hasten.engine.scheduling.priority import Priority
from hasten.engine.scheduling.priority_trace import Options as TraceOptions
from hasten.engine.scheduling.priority_trace import PriorityTrace
from hasten.engine.sequence import State
from hasten.engine.technique import ConfigError


def watch(engine: Engine) -> list[int]:
    """Hold KV that came back against what left; the number of sequences compared grows with each."""
    left: dict[int, list[int]] = {}
    compared: list[int] = []
    executor: Any = engine.executor

    def kv(sequence: int) -> list[int]:
        view = engine.ledger.sequences[sequence].view
        return [executor.kv[slot] for slot in view.slots(np.arange(view.length), executor.size).tolist()]

    def follow(event: Event) -> None:
        if event.kind is Kind.SWAPPED:
            left[event.sequence] = kv(event.sequence)
        else:
            assert kv(event.sequence) == left.pop(event.sequence), "KV came back other than it left"
            compared.append(event.sequence)

    engine.events.subscribe(follow, {Kind.SWAPPED, Kind.RESUMED})
    return compared


def engine_of(transfers: str = "adaptive", every: int = 3, **settings: Any) -> Engine:
    return make_engine(
        residency=FollowOrder(Options(transfers=transfers, swap_from=1)),  # type: ignore[arg-type]
        order=PriorityTrace(TraceOptions(least=1, most=every, stay=0.3)),
        **settings,
    )


def request(number: int, prompt: int, output: int, n: int = 1) -> Request:
    tokens = (np.arange(prompt) * (number % 3 + 1)) % VOCABULARY
    return Request(id=f"r{number}", prompt=tokens, sampling=SamplingParams(max_tokens=output, temperature=0, seed=number, n=n))


@settings(
    max_examples=25,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    jobs=st.lists(
        st.tuples(
            st.integers(1, 60),
            st.integers(1, 40),
            st.sampled_from([1, 1, 2]),
            st.integers(0, 4),
            st.sampled_from([None, None, 1, 9]),
        ),
        min_size=2,
        max_size=10,
    ),
    blocks=st.integers(13, 30),
    host=st.sampled_from([0, 6, 20, 60]),
    transfers=st.sampled_from(["adaptive", "async", "sync"]),
    group=st.sampled_from([0, 1, 4, 60]),
    keep=st.booleans(),
    reuse=st.booleans(),
    failing=st.sampled_from([0.0, 0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_any_schedule_gives_what_each_request_gets_alone(
    jobs: list, blocks: int, host: int, transfers: str, group: int, keep: bool, reuse: bool, failing: float, seed: int
) -> None:
    engine = engine_of(
        transfers, blocks=blocks, host_blocks=host, group=group, keep_copies=keep, reuse=reuse, seed=seed, max_length=101
    )
    engine.executor.fail_copies = failing  # type: ignore[attr-defined]
    watch(engine)
    made, cancel_at, out = [], {}, []
    for i, (prompt, output, n, wait, cancelled) in enumerate(jobs):
        made.append(request(i, prompt, output, n))
        engine.add(made[-1])
        if cancelled is not None:
            cancel_at[f"r{i}"] = engine.events.counts[Kind.STEP] + cancelled
        for _ in range(wait):
            out += engine.step()
            engine.ledger.audit()
    steps = 0
    while engine.unfinished:
        for id, at in cancel_at.items():
            if engine.events.counts[Kind.STEP] >= at:
                engine.cancel(id)
        out += engine.step()
        engine.ledger.audit()
        steps += 1
        assert steps < 5000, "the engine does not come to an end"
    for one in made:
        whole = alone(one, max_length=101)
        for index in range(one.sampling.n):
            mine = [d for d in out if d.request_id == one.id and d.index == index]
            tokens = [token for d in mine for token in d.tokens]
            (finish,) = [d.finish for d in mine if d.finish is not None]
            assert finish in ("length", "cancelled"), [d.error for d in mine if d.error]
            assert tokens == (whole[index] if finish == "length" else whole[index][: len(tokens)])
    pool = engine.ledger.books.pool
    assert pool.available == pool.blocks
    if engine.ledger.transfers is not None:
        engine.ledger.transfers.audit([])


def test_switches_are_many_and_every_way_back_is_compared() -> None:
    """Otherwise the test above could pass with nothing swapped."""
    engine = engine_of(blocks=16, host_blocks=60, group=4, keep_copies=True, reuse=False, max_length=101)
    compared = watch(engine)
    for i in range(8):
        engine.add(request(i, 20, 40))
    engine.run()
    assert len(compared) > 20
    columns = engine.events.columns()
    swapped = columns["kind"] == Kind.SWAPPED
    assert columns["b"][swapped].sum() > 0, "nothing that lay there was spared"


def drive(blocks: int = 24, **settings: Any) -> Engine:
    engine = engine_of(blocks=blocks, max_length=101, reuse=False, rows=6, **settings)
    for i in range(9):
        engine.add(request(i, 30, 60))
    for _ in range(4000):
        engine.step()
    assert not engine.unfinished
    engine.ledger.audit()
    return engine


def test_what_lies_there_is_not_sent_again_and_groups_take_fewer_copies() -> None:
    plain, kept = drive(host_blocks=120).executor.traffic, drive(host_blocks=120, keep_copies=True).executor.traffic
    assert kept.blocks_out < 0.7 * plain.blocks_out
    by_block, runs, groups = (
        drive(60, host_blocks=120, **settings).executor.traffic for settings in ({"by_block": True}, {}, {"group": 12})
    )
    assert by_block.calls_out == by_block.blocks_out
    assert groups.calls_out < 0.7 * runs.calls_out


def test_copies_make_way_for_whoever_needs_the_room() -> None:
    engine = drive(host_blocks=40, keep_copies=True, group=4)
    assert engine.ledger.transfers is not None and engine.ledger.transfers.contaminated > 0


class Script:
    """Moves what it is told before a step."""

    def __init__(self) -> None:
        self.moves: list[tuple[int, Direction]] = []

    def ahead(self, view: Any, ranked: Any) -> list[Transfer]:
        moves, self.moves = self.moves, []
        return [Transfer(view.sequence(id), direction) for id, direction in moves]

    def plan(self, view: Any, plan: StepPlan, short: int) -> list[Transfer]:
        return []


def scripted(**settings: Any) -> tuple[Engine, Script, Any]:
    script = Script()
    engine = make_engine(residency=script, reuse=False, max_length=101, **settings)
    return engine, script, engine.ledger


def steps_until(engine: Engine, condition: Callable[[], bool]) -> list[TokenDelta]:
    out: list[TokenDelta] = []
    for _ in range(60):
        if condition():
            return out
        out += engine.step()
        engine.ledger.audit()
    raise AssertionError("it does not come to that")


def slow(engine: Engine, looks: int) -> None:
    """Copies that begin from now on end when they were looked at so often."""
    engine.executor.random.randint = lambda low, high: looks  # type: ignore[attr-defined]


def test_a_block_that_a_copy_reads_is_given_last_and_waited_for() -> None:
    engine, script, ledger = scripted(blocks=8, host_blocks=8)
    slow(engine, 99)
    engine.add(request(0, 31, 30))
    engine.add(request(1, 8, 30))
    engine.step()
    first, second = ledger.sequences.values()
    script.moves = [(first.id, Direction.OUT)]
    engine.step()
    pool = ledger.books.pool
    assert first.state is State.LEAVING and pool.leaving == 4 and pool.free == 4 - len(second.view.blocks)
    ledger.audit()
    pool.drop(pool.take(pool.free))
    assert not pool.take_waits(), "nobody waits for blocks that are free"
    pool.drop(pool.take(2, in_turn=True))
    assert not pool.take_waits(), "a copy that queues up behind needs no waiting"
    assert pool.leaving == 4, "whoever else gets them must wait all the same"
    pool.drop(pool.take(pool.free + 1))
    (copy,) = pool.take_waits()
    assert copy is ledger.transfers.moves[first.id].handle
    ledger.audit()


def test_a_step_waits_for_the_copy_that_reads_its_blocks_and_no_other() -> None:
    """The first leaves; when the second has used up what else is free, it goes on in the blocks of the first."""
    engine, script, ledger = scripted(blocks=8, host_blocks=8)
    slow(engine, 99)
    made = [request(0, 31, 20), request(1, 24, 30)]
    for one in made:
        engine.add(one)
    out = engine.step()
    first, second = ledger.sequences.values()
    script.moves = [(first.id, Direction.OUT)]
    out += engine.step()
    (move,) = ledger.transfers.moves.values()
    out += steps_until(engine, lambda: ledger.books.pool.leaving < 4)
    assert move.handle not in engine.executor._under_way, "a block was written that a copy still read"  # type: ignore[attr-defined]
    move.handle._looks = 0
    out += steps_until(engine, lambda: second.id not in ledger.sequences)
    script.moves = [(first.id, Direction.IN)]
    out += engine.run()
    for one in made:
        assert [token for d in out if d.request_id == one.id for token in d.tokens] == alone(one, max_length=101)[0]


def test_a_sequence_comes_back_into_blocks_that_are_still_read() -> None:
    engine, script, ledger = scripted(blocks=16, host_blocks=16)
    compared = watch(engine)
    made = [request(0, 31, 20), request(1, 38, 20)]
    for one in made:
        engine.add(one)
    out = engine.step()
    first, second = ledger.sequences.values()
    script.moves = [(first.id, Direction.OUT)]
    out += steps_until(engine, lambda: first.state is State.SWAPPED)
    slow(engine, 3)
    held = ledger.books.pool.take(ledger.books.pool.free)  # only those of the second are left
    script.moves = [(second.id, Direction.OUT), (first.id, Direction.IN)]
    out += engine.step()
    assert first.state is State.LOADING or first.id in compared
    ledger.books.pool.drop(held)
    out += steps_until(engine, lambda: second.state is State.SWAPPED)
    script.moves = [(second.id, Direction.IN)]
    out += engine.run()
    assert compared == [first.id, second.id], [d.error for d in out if d.error]
    for one in made:
        assert [token for d in out if d.request_id == one.id for token in d.tokens] == alone(one, max_length=101)[0]


@pytest.mark.parametrize("direction", [Direction.OUT, Direction.IN])
def test_a_failed_copy_costs_its_own_sequence_a_recomputation(direction: Direction) -> None:
    engine, script, ledger = scripted(blocks=30, host_blocks=30, keep_copies=True)
    made = [request(0, 31, 20), request(1, 20, 40)]
    for one in made:
        engine.add(one)
    out = engine.step() + engine.step()
    first = next(iter(ledger.sequences.values()))
    if direction is Direction.IN:
        script.moves = [(first.id, Direction.OUT)]
        out += steps_until(engine, lambda: first.state is State.SWAPPED)
    engine.executor.fail_copies = 1.0  # type: ignore[attr-defined]
    script.moves = [(first.id, direction)]
    out += engine.step()
    engine.executor.fail_copies = 0.0  # type: ignore[attr-defined]
    served = first.service
    out += engine.run()
    assert first.service - served > 31, "it was not computed again"
    ledger.audit()
    ledger.transfers.audit([])
    for one in made:
        assert [token for d in out if d.request_id == one.id for token in d.tokens] == alone(one, max_length=101)[0]


@pytest.mark.parametrize("direction", [Direction.OUT, Direction.IN])
def test_a_cancelled_sequence_ends_when_its_transfer_does(direction: Direction) -> None:
    engine, script, ledger = scripted(blocks=30, host_blocks=30, keep_copies=True)
    for i in range(2):
        engine.add(request(i, 31, 60))
    engine.step()
    first = next(iter(ledger.sequences.values()))
    if direction is Direction.IN:
        script.moves = [(first.id, Direction.OUT)]
        steps_until(engine, lambda: first.state is State.SWAPPED)
    slow(engine, 5)
    script.moves = [(first.id, direction)]
    engine.step()
    assert first.state in (State.LEAVING, State.LOADING)
    script.moves = [(first.id, Direction.OUT)]  # nothing can be done to it meanwhile
    engine.cancel("r0")
    ended = [engine.step() for _ in range(8)]
    assert [d.finish for step in ended for d in step if d.request_id == "r0"] == ["cancelled"]
    assert not [d for d in ended[0] if d.request_id == "r0"], "it ended before its transfer"
    ledger.audit()
    engine.run()
    ledger.transfers.audit([])


def test_a_better_rank_takes_memory_and_gives_it_back() -> None:
    engine = make_engine(
        residency=FollowOrder(Options(swap_from=1)), order=Priority(), blocks=13, host_blocks=30, reuse=False, max_length=101
    )
    low = request(0, 50, 40)
    engine.add(low)
    out = [d for _ in range(10) for d in engine.step()]
    urgent = Request(id="r1", prompt=np.arange(60) % VOCABULARY, sampling=low.sampling, priority=-1)
    engine.add(urgent)
    order: list[str] = []
    for _ in range(200):
        deltas = engine.step()
        out += deltas
        order += [d.request_id for d in deltas if d.last]
        engine.ledger.audit()
    assert order == ["r1", "r0"]
    assert engine.events.counts[Kind.SWAPPED] == engine.events.counts[Kind.RESUMED] == 1
    for one in (low, urgent):
        assert [token for d in out if d.request_id == one.id for token in d.tokens] == alone(one, max_length=101)[0]


def test_a_prompt_that_leaves_half_way_gives_up_what_it_was_promised_too() -> None:
    policy = FollowOrder(Options(swap_from=1))
    engine = make_engine(residency=policy, order=Priority(), blocks=24, host_blocks=60, reuse=False, tokens=128, max_length=150)
    runs, begun, urgent = (
        Request(
            id=str(priority), prompt=np.arange(prompt) % VOCABULARY, sampling=SamplingParams(max_tokens=40), priority=priority
        )
        for priority, prompt in ((1, 40), (2, 100), (0, 80))
    )
    view = engine._planner
    engine.add(runs)
    engine.step()
    engine.add(begun)
    while not any(16 < seq.view.length < 40 and seq.request is begun for seq in view.sequences):
        engine.step()
    engine.add(urgent)
    engine._inbox.empty_into(engine.ledger)
    assert [t.sequence.request for t in policy.ahead(view, view._ranked())] == [begun]


def test_the_rule_weighs_both_delays() -> None:
    class View:
        moving_blocks = 0

        def unsent_blocks(self, seq: Any) -> int:
            return 0

        def price(self, shape: Any) -> float:
            return 0.010

    class Seq:
        def __init__(self, stored: int, length: int = 100) -> None:
            self.stored = [0] * stored
            self.view = type("V", (), {"length": length})()

    policy: Any = FollowOrder(Options())
    running = [Seq(0) for _ in range(20)]
    assert not policy._worth_waiting([], [Seq(10)], running, View()), "no copy was timed yet"
    policy.learn(Event(0.0, Kind.TRANSFER_DONE, 0, 100, 0.1), None, View())  # 1 ms a block
    assert policy._worth_waiting([], [Seq(10)], [], View()), "nothing runs meanwhile"
    # Eight come back 2 ms early of a step of 10 ms: 16 ms saved, against 8 ms for each that runs.
    back = [Seq(1) for _ in range(8)]
    assert policy._worth_waiting([], back, running[:2], View())
    assert not policy._worth_waiting([], back, running[:3], View())


@pytest.mark.parametrize(
    "with_",
    [
        "follow-order:watermark=1",
        "follow-order:swap_from=-1",
        "follow-order:transfers=later",
        "block-groups:group=0",
        "priority-trace:least=9:most=8",
        "priority-trace:least=0",
        "priority-trace:stay=1",
        "priority-trace:patience=0",
        "priority-trace:pattern=zipf",
    ],
)
def test_bad_knobs_are_refused(with_: str) -> None:
    name = with_.partition(":")[0]
    with pytest.raises(ConfigError, match=name):
        EngineConfig.build(with_=[with_]).make(name, 10)


def test_the_preset_sets_its_parts() -> None:
    config = EngineConfig.build(with_=["fastswitch", "priority-trace"])
    assert (config.kv.allocator, config.kv.keep_copies, config.scheduling.residency) == ("block-groups", True, "follow-order")
    assert config.scheduling.order == "priority-trace"
