"""Goodput density against the same arithmetic done token by token and call by call, and what follows for who goes first."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.fake import make_engine
from tests.scheduling.asks import asking, ends

from hasten.engine.config import EngineConfig
from hasten.engine.events import Event, Kind
from hasten.engine.request import SLO
from hasten.engine.scheduling import gain
from hasten.engine.scheduling.gain import Prices, Standing
from hasten.engine.scheduling.goodput_density import GoodputDensity, Options
from hasten.engine.scheduling.objectives import NEVER_S
from hasten.engine.scheduling.pace import Pace
from hasten.engine.sequence import Sequence
from hasten.engine.technique import ConfigError

eighths = st.integers(-80, 80).map(lambda n: n / 8)


def standing(count: int = 1, **columns: Any) -> Standing:
    fields = {name: np.zeros(count) for name in Standing.__dataclass_fields__}
    fields["left"] += 1
    fields["deadline_s"] += NEVER_S
    fields["wait_s"] += NEVER_S
    fields["first_s"] += NEVER_S
    fields["tpot_s"] += NEVER_S
    return Standing(**fields | {name: np.atleast_1d(np.asarray(value, dtype=float)) for name, value in columns.items()})


@settings(max_examples=300)
@given(
    first_s=eighths,
    next_s=eighths,
    tpot_s=st.integers(1, 24).map(lambda n: n / 8),
    interval_s=st.integers(1, 24).map(lambda n: n / 8),
    produced=st.integers(0, 20),
    left=st.integers(1, 40),
)
def test_tokens_on_schedule_are_counted_right(
    first_s: float, next_s: float, tpot_s: float, interval_s: float, produced: int, left: int
) -> None:
    one = standing(first_s=first_s, tpot_s=tpot_s, produced=produced, left=left)
    found = gain.on_schedule(one, one.first_s, np.array([next_s]), interval_s)
    want = sum(next_s + j * interval_s <= first_s + (produced + j) * tpot_s for j in range(left))
    assert found.tolist() == [want]


PRICES = Prices(interval_s=0.5, token_s=0.01, row_s=0.02, cached_s=0.001, pair_s=1e-4, chunk=8, kv_tokens=100.0, occupied=0.25)


def test_the_time_and_the_work_that_are_left() -> None:
    one = standing(2, left=[4, 4], todo=[17, 0], held=[3, 20], copy_s=[0.0, 2.5])
    assert gain.remaining_s(one, PRICES).tolist() == [3 * 0.5 + 2.0, 2.5 + 2.0]
    prompt = 17 * 0.01 + sum(3 + i + 0.5 for i in range(17)) * 1e-4
    decode = [4 * 0.02 + sum(before + i + 0.5 for i in range(4)) * 0.001 for before in (20, 20)]
    engine = np.array([prompt + decode[0], 2.5 + decode[1]])
    np.testing.assert_allclose(gain.engine_s(one, PRICES), engine)
    pool = np.array([(3 + 4) * 0.5 * (3 + 17 + 2) / 100, 4 * 0.5 * (20 + 2) / 100])
    np.testing.assert_allclose(gain.memory_s(one, PRICES), pool)
    np.testing.assert_allclose(gain.work_s(one, PRICES), 0.75 * engine + 0.25 * pool)
    assert gain.later_s(np.array([[10.0, 16.0, 3.0]]), PRICES).tolist() == [(10 + 2) * 0.5 + 3]


def alone_worth(seq: Sequence, view: Any, options: Options, prices: Prices, now_s: float) -> tuple[float, float, float]:
    """(gain without the deadline's share, moment of the end, cost) of one sequence served from `now_s` on, its workflow
    apart."""
    slo = seq.request.slo
    left = float(view.remaining_output(seq)[-1])
    todo = 0 if seq.decoding else seq.remaining
    held, produced = seq.view.length, seq.output_length
    start_s = math.ceil(todo / prices.chunk) * prices.interval_s
    taken_s = start_s + left * prices.interval_s
    prefill = todo * prices.token_s + (todo * held + todo**2 / 2) * prices.pair_s
    cost = prefill + left * (prices.row_s + (held + todo + left / 2) * prices.cached_s)
    pool = (start_s + left * prices.interval_s) * (held + todo + left / 2) / prices.kv_tokens
    cost = (1 - prices.occupied) * cost + prices.occupied * pool
    if options.per == "time":
        cost = taken_s
    if slo.ttft_s is None and slo.tpot_s is None:
        return seq.prompt_length + options.output_weight * (produced + left), now_s + taken_s, cost
    next_s = now_s + start_s + prices.interval_s
    due_s = seq.arrival_s + slo.ttft_s if slo.ttft_s is not None else next_s
    tpot_s = slo.tpot_s if slo.tpot_s is not None else 1e9
    late = sum(next_s + j * prices.interval_s > due_s + (produced + j) * tpot_s for j in range(int(left)))
    kept = options.output_weight * left * ((left - late) / left) ** options.penalty
    if produced == 0:
        wait_s = slo.ttft_s if slo.ttft_s is not None else options.best_effort_s
        kept += seq.prompt_length * min(1.0, wait_s / (next_s - seq.arrival_s)) ** options.penalty
    return kept, now_s + taken_s, cost


def worth(seq: Sequence, view: Any, options: Options, prices: Prices, now_s: float) -> tuple[float, float]:
    """(gain, cost) of a sequence with all calls under its deadline."""
    slo, workflow = seq.request.slo, view.workflow(seq)
    shared = [seq]
    if slo.deadline_s is not None and seq.request.app.workflow:
        shared = [other for other in workflow.live.values() if other.request.slo.deadline_s is not None]
    calls = [alone_worth(other, view, options, prices, now_s) for other in shared]
    cost = max(call[2] for call in calls) if options.per == "time" else sum(call[2] for call in calls)
    found = sum(call[0] for call in calls)
    if slo.ttft_s is None and slo.tpot_s is None:
        begin_s = workflow.arrival_s if slo.deadline_s is not None else seq.arrival_s
        allowed_s = slo.deadline_s if slo.deadline_s is not None else options.best_effort_s
        found *= min(1.0, allowed_s / (max(call[1] for call in calls) - begin_s)) ** options.penalty
    return found, cost


jobs = st.lists(
    st.tuples(
        st.sampled_from([None, 0.5031, 3.0017]),  # ttft
        st.sampled_from([None, 0.00417, 0.2003]),  # tpot
        st.sampled_from([None, None, 0.4, 8.0]),  # deadline
        st.sampled_from(["", "", "v", "w"]),
        st.integers(1, 40),
        st.integers(1, 30),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60)
@given(
    jobs=jobs,
    per=st.sampled_from(["work", "time"]),
    penalty=st.sampled_from([1.0, 2.0, 4.0]),
    early=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_keys_are_what_the_arithmetic_gives_one_by_one(jobs: list[Any], per: Any, penalty: float, early: float) -> None:
    options = Options(per=per, penalty=penalty, quantile=1.0, frame=1, early=early)
    order = GoodputDensity(options)
    engine = make_engine(order=order, reuse=False, rows=5, chunk=12)
    submit = engine.executor.submit

    def taking(batch: Any, taps: frozenset[int] = frozenset()) -> Any:
        engine.clock.sleep(1e-3 * batch.size)
        return submit(batch, taps)

    engine.executor.submit = taking
    for number, (ttft, tpot, deadline, workflow, prompt, tokens, steps) in enumerate(jobs):
        if (ttft is not None or tpot is not None) and deadline is not None:
            deadline = None
        slo = SLO(ttft_s=ttft, tpot_s=tpot, deadline_s=deadline)
        engine.add(asking(f"r{number}", slo, prompt=prompt, tokens=tokens, workflow=workflow))
        engine.clock.sleep(0.0301)
        for _ in range(steps):
            engine.step()
    engine._inbox.empty_into(engine.ledger)
    view = engine._planner
    view._ranked()
    prices = order._pace.prices(view)
    for seq in view.sequences:
        if seq.output_length and seq.request.slo.tpot_s is not None and seq.request.slo.ttft_s is None:
            continue  # its schedule began with the first token, whose time the sequence does not hold
        if seq.request.app.workflow and view.workflow(seq).ended:
            continue  # what ended calls put in has a test of its own
        now, cost = worth(seq, view, options, prices, view.now)
        later, _ = worth(seq, view, options, prices, view.now + prices.interval_s)
        lost = max(0.0, now - later)
        want = (lost + early * (now - lost)) / cost
        np.testing.assert_allclose(-view.order_key(seq), want, rtol=1e-6, atol=1e-9 * now / cost)


def test_a_stream_that_only_says_its_pace_is_not_put_off_for_ever() -> None:
    """Whatever comes later loses more by waiting, until its first token has been waited for long enough."""
    order = GoodputDensity(Options(frame=1, early=0.0, best_effort_s=5.0))
    engine = make_engine(rows=1, order=order, reuse=False)
    engine.add(asking("pace", SLO(tpot_s=10.0)))
    engine._inbox.empty_into(engine.ledger)
    view = engine._planner
    keys = []
    for _ in range(2):
        view._ranking.touch_all()
        view._ranked()
        keys.append(view.order_key(view.sequences[0]))
        engine.clock.sleep(5.0)
    assert keys[0] == 0.0 and keys[1] < 0.0


def test_what_others_have_put_into_a_workflow_counts() -> None:
    engine = make_engine(rows=1, order=GoodputDensity(Options()), reuse=False)
    slo = SLO(deadline_s=100.0)
    engine.add(asking("w1", slo, prompt=30, tokens=10, workflow="w"))
    engine.run()
    for name, workflow in (("v1", "v"), ("w2", "w")):
        engine.add(asking(name, slo, prompt=10, tokens=10, workflow=workflow))
    assert ends(engine.run()) == ["w2", "v1"]


def test_what_is_late_does_not_go_first_for_what_it_has_put_in() -> None:
    engine = make_engine(rows=1, order=GoodputDensity(Options()), reuse=False)
    engine.add(asking("w1", SLO(deadline_s=100.0), prompt=60, tokens=80, workflow="w"))
    engine.run()
    engine.clock.sleep(110.0)
    engine.add(asking("w2", SLO(deadline_s=100.0), prompt=10, tokens=10, workflow="w"))
    engine.add(asking("fresh", SLO(deadline_s=100.0), prompt=10, tokens=10))
    assert ends(engine.run()) == ["fresh", "w2"]


def test_a_workflow_is_as_urgent_as_the_stages_that_follow_make_it() -> None:
    """The same call and deadline, but workflows of one application go on and those of the other do not."""
    order = GoodputDensity(Options(frame=5))
    engine = make_engine(rows=1, order=order, reuse=False)
    submit = engine.executor.submit

    def taking(batch: Any, taps: frozenset[int] = frozenset()) -> Any:
        engine.clock.sleep(0.1)
        return submit(batch, taps)

    engine.executor.submit = taking
    slo = SLO(deadline_s=6.4)  # 60 steps are needed, and a frame of 5 cannot be spared
    for number in range(4):
        for application, stages in (("short", 1), ("long", 2)):
            for stage in range(stages):
                tokens = 10 + 40 * stage
                engine.add(asking(f"{application}{number}.{stage}", slo, tokens=tokens, workflow=f"w{number}", app=application))
                engine.run()
    engine.clock.sleep(40.0)
    engine.add(asking("short", slo, tokens=10, workflow="v", app="short"))
    engine.add(asking("long", slo, tokens=10, workflow="v", app="long"))
    later = order._standings.patterns
    engine._inbox.empty_into(engine.ledger)
    engine._planner._ranked()
    of = {seq.request.id: later.later(seq)[:, 0] for seq in engine._planner.sequences}
    assert set(of["short"]) == {0.0} and set(of["long"]) == {50.0}
    assert ends(engine.run()) == ["long", "short"]


def test_the_whole_distribution_is_weighed_unless_a_quantile_is_asked_for() -> None:
    """One that ends in time in half of the cases is worth half; by its upper quantile it is hopeless."""

    class Either:
        def remaining(self, seq: Sequence, view: Any) -> np.ndarray:
            return np.array([10.0, 1000.0])

    worths = {}
    for quantile in (None, 0.95, 0.5):
        order = GoodputDensity(Options(quantile=quantile, early=1.0, per="time"))
        engine = make_engine(order=order, lengths=Either(), max_length=2048)
        engine.add(asking("a", SLO(deadline_s=1.0), prompt=8, tokens=1000))
        engine._inbox.empty_into(engine.ledger)
        view = engine._planner
        view._ranked()
        order._pace.interval_s, order._pace._prices = 0.01, None
        view._ranking.touch_all()
        view._ranked()
        prices = order._pace.prices(view)
        rows = order._standings.refresh(view.sequences, view, 0.0)
        cost = float(gain.remaining_s(order._standings.of(rows), prices).mean())
        worths[quantile] = -view.order_key(view.sequences[0]) * cost
    assert worths[0.5] == pytest.approx(8 + 8 * 10, rel=1e-6)
    assert worths[None] == pytest.approx((8 + 8 * 10) / 2, rel=1e-6)
    assert worths[0.95] < 1e-6


def test_what_is_hopeless_makes_way() -> None:
    engine = make_engine(rows=1, order=GoodputDensity(Options()), reuse=False)
    engine.add(asking("late", SLO(deadline_s=0.1), tokens=20, arrival_s=-10.0))
    engine.add(asking("in time", SLO(deadline_s=100.0), tokens=20, arrival_s=0.0))
    assert ends(engine.run()) == ["in time", "late"]


def test_lengths_are_looked_up_again_as_tokens_appear() -> None:
    class Learning:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def remaining(self, seq: Sequence, view: Any) -> np.ndarray:
            self.asked.append(seq.output_length)
            return np.array([50.0])

    lengths = Learning()
    engine = make_engine(order=GoodputDensity(Options(frame=1)), lengths=lengths)
    engine.add(asking("a", tokens=120))
    engine.run()
    looks = lengths.asked
    assert looks[0] == 0 and looks[-1] > 80 and len(looks) < 12
    assert all(b - a >= max(16, a // 4) for a, b in pairwise(looks))


def test_a_swapped_sequence_pays_for_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.engine.fake.Handle.seconds", 0.02)
    engine = make_engine(
        blocks=10, host_blocks=30, rows=3, order=GoodputDensity(Options(frame=1)), reuse=False, swap_from=1, max_length=80
    )
    order: GoodputDensity = engine._planner._order
    for name in "abc":
        engine.add(asking(name, prompt=20, tokens=40))
    seen = 0
    while engine.unfinished:
        engine.step()
        engine.clock.sleep(0.01)
        rows = order._standings._row
        for seq in engine.ledger.sequences.values():
            if seq.state.value == "swapped" and order._pace.block_copy_s > 0 and seq.id in rows:
                engine._planner._ranked()
                paid = order._standings.of(np.array([rows[seq.id]])).copy_s[0, 0]
                assert paid == pytest.approx(len(seq.stored) * order._pace.block_copy_s)
                seen += 1
    assert seen > 0


def test_nothing_is_kept_of_what_has_ended() -> None:
    order = GoodputDensity(Options())
    engine = make_engine(order=order)
    for number in range(90):
        engine.add(asking(f"r{number}", SLO(deadline_s=5.0), workflow=f"w{number % 7}"))
    engine.run()
    kept = order._standings
    assert not (kept._row or kept._groups or kept._by_number or kept._look_at or kept._part)
    assert len(kept._free) == len(kept.group)


def test_bad_knobs_are_refused() -> None:
    for knob, message in (
        ("frame=0", "frame must be at least 1"),
        ("quantile=0", "quantile must be above 0"),
        ("quantile=1.5", "quantile must be above 0"),
        ("penalty=0", "penalty must be a number above 0"),
        ("output_weight=nan", "output_weight must be"),
        ("best_effort_s=inf", "best_effort_s must be"),
        ("early=2", "early must be a share"),
        ("per=luck", "per"),
    ):
        with pytest.raises(ConfigError, match=message):
            EngineConfig.build(with_=[f"goodput-density:{knob}"]).make("goodput-density")


def test_what_a_block_takes_to_copy_is_the_copying_alone() -> None:
    pace = Pace(4)
    pace.learn(Event(1.0, Kind.SWAPPED, 7, 0, 3))  # all of it lies there already: nothing is copied, no transfer ends
    pace.learn(Event(100.0, Kind.TRANSFER_DONE, 7, 3, 0.6))  # and long after that it comes back
    assert pace.block_copy_s == pytest.approx(0.2)
    pace.learn(Event(101.0, Kind.TRANSFER_DONE, 8, 0, 0.0))
    assert pace.block_copy_s == pytest.approx(0.2), "a copy of nothing says nothing"
