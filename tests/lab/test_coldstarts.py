"""Cold starts: the recorder, its report, generated invocations, the keep-alive simulator, its policies and frontiers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.config import EngineConfig
from hasten.engine.outputs import EngineDead
from hasten.lab.claims import serverless_cold_starts as claim
from hasten.lab.claims.base import Setting
from hasten.lab.planning import coldstarts
from hasten.lab.planning.coldstarts import COMPONENTS, Start, breakdown, peak_to_trough, record
from hasten.lab.planning.frontier import FIXED, OTHERS, Family, Frontier, cut, lower_hull, trace
from hasten.lab.planning.invocations import REGION_2, Function, Stream, generate
from hasten.lab.planning.keepalive import Cost, simulate
from hasten.lab.planning.keepalive_policies import (
    Combined,
    DelayPeaks,
    FixedKeepAlive,
    Histogram,
    ReservedPool,
    TimerAware,
    WorkflowPrewarm,
    best_window,
)

# -- recording --------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_real_start_sum_to_its_total() -> None:
    seen: list[tuple[int, int]] = []
    (start,) = record(EngineConfig(), 1, resources="plain", progress=lambda done, count: seen.append((done, count)))
    assert tuple(start.components) == COMPONENTS
    assert all(seconds > 0 for seconds in start.components.values())
    assert 0.95 <= start.accounted <= 1.0
    assert (start.resources, seen) == ("plain", [(1, 1)])


def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(EngineDead, match=r"could not start: .*no-such-model"):
        record(EngineConfig.build("/no-such-model"), 1)


def test_breakdown_by_group() -> None:
    starts = [
        Start(components={"a": 1.0, "b": 3.0}, total_s=4.0, resources="small"),
        Start(components={"a": 3.0, "b": 3.0}, total_s=6.0, resources="small"),
        Start(components={"a": 9.0, "b": 1.0}, total_s=10.0, resources="large"),
    ]
    report = breakdown(starts, by=lambda start: start.resources)
    assert {name: group["dominant"] for name, group in report.items()} == {"small": "b", "large": "a"}
    assert report["small"]["components"]["a"] == {
        "mean_s": 2.0,
        "p50_s": 2.0,
        "p90_s": pytest.approx(2.8),
        "max_s": 3.0,
        "share": pytest.approx(0.4),
    }
    assert breakdown(starts)["all"]["starts"] == 3


def test_peak_to_trough() -> None:
    minutes = np.arange(600)
    wave = 100 + 60 * np.sin(minutes / 600 * 4 * np.pi)
    assert peak_to_trough(wave) == pytest.approx(160 / 40, rel=0.01)
    assert peak_to_trough(np.full(600, 7.0)) == 1.0
    assert peak_to_trough(np.linspace(0, 9, 600)) == 1.0  # it only climbs
    assert peak_to_trough(np.zeros(3)) == 1.0
    bursts = np.zeros(600)
    bursts[[100, 300, 500]] = 50
    bursts[200], bursts[400] = 0.0, 0.0
    assert peak_to_trough(bursts) == pytest.approx(50)  # 10 a bin, over one call in five bins


# -- streams ----------------------------------------------------------------------------------------------------------


def stream_of(
    arrivals: list[tuple[float, int]],
    functions: list[Function],
    *,
    run_s: float = 1.0,
    start_s: float = 2.0,
    duration_s: float = 1e4,
) -> Stream:
    """Calls (time, function); those of a workflow's first function bring its later stages."""
    rows = [(at, function, -1) for at, function in sorted(arrivals)]
    at = 0
    while at < len(rows):
        time_s, number, _ = rows[at]
        follows = functions[number].child
        if follows is not None:
            rows[at] = (time_s, number, len(rows))
            rows.append((float("nan"), follows, -1))
        at += 1
    count = len(rows)
    return Stream(
        functions=functions,
        arrival_s=np.array([row[0] for row in rows]),
        function=np.array([row[1] for row in rows]),
        run_s=np.full(count, run_s),
        start_s=np.full(count, start_s),
        child=np.array([row[2] for row in rows]),
        spare_start_s=np.full(8, start_s),
        duration_s=duration_s,
    )


def function(trigger: str = "api", **fields: Any) -> Function:
    return Function(trigger=trigger, synchronous=trigger in ("api", "workflow"), resources="small", **fields)


def test_generated_streams_are_sound() -> None:
    stream = generate(200, 3600.0, seed=3)
    rooted = np.isfinite(stream.arrival_s)
    assert (np.diff(stream.arrival_s[rooted]) >= 0).all()
    assert stream.arrival_s[rooted].min() >= 0 and stream.arrival_s[rooted].max() < 3600
    children = stream.child[stream.child >= 0]
    assert sorted(children) == list(np.flatnonzero(~rooted))  # each once, and only those that nothing else invokes
    for parent in np.flatnonzero(stream.child >= 0):
        assert stream.functions[stream.function[parent]].child == stream.function[stream.child[parent]]
    assert (stream.run_s > 0).all() and (stream.start_s > 0).all()
    shares = {name: np.mean([f.trigger == name for f in stream.functions]) for name in REGION_2}
    assert shares == pytest.approx(REGION_2, abs=0.02)
    timers = [n for n, f in enumerate(stream.functions) if f.period_s == 300.0]
    gaps = np.diff(stream.arrival_s[stream.function == timers[0]])
    assert np.median(gaps) == pytest.approx(300, abs=2)


def test_a_seed_makes_the_same_stream() -> None:
    one, same, other = generate(50, 1800.0, seed=1), generate(50, 1800.0, seed=1), generate(50, 1800.0, seed=2)
    assert one.functions == same.functions
    for name in ("arrival_s", "function", "run_s", "start_s", "child", "spare_start_s"):
        assert np.array_equal(getattr(one, name), getattr(same, name), equal_nan=True)
    assert len(one) != len(other) or not np.array_equal(one.start_s, other.start_s)


@pytest.mark.parametrize(("functions", "duration_s"), [(0, 60.0), (5, 0.0), (5, float("nan"))])
def test_an_empty_stream_is_refused(functions: int, duration_s: float) -> None:
    with pytest.raises(ValueError, match="at least one function"):
        generate(functions, duration_s)


# -- the simulator ----------------------------------------------------------------------------------------------------


def test_fixed_keep_alive_by_hand() -> None:
    # Cold at 0 (ready 2, ends 3), warm at 10 (idle 7, ends 11), cold at 100 (idle 60 in vain), ends 103, idle 60 in vain.
    functions = [function()]
    cost = simulate(stream_of([(0, 0), (10, 0), (100, 0)], functions), FixedKeepAlive(functions, 60))
    assert (cost.warm, cost.cold_waits, cost.starts, cost.by_trigger) == (1, 2, 2, {"api": 2})
    assert cost.waited_s == pytest.approx(4)
    assert cost.idle_s == pytest.approx(7 + 60 + 60)
    assert cost.useful_s.tolist() == pytest.approx([9, 1])
    assert cost.utility.tolist() == pytest.approx([4.5, 0.5])


def test_a_pod_runs_one_invocation_at_a_time() -> None:
    functions = [function()]
    cost = simulate(stream_of([(0, 0), (0.5, 0), (50, 0)], functions), FixedKeepAlive(functions, 60))
    assert (cost.cold_waits, cost.warm) == (2, 1)
    # Ends at 3 and 3.5; the pod used last is used again (46.5 s, then 60 s), the other idles for its 60 s.
    assert cost.idle_s == pytest.approx(60 + 46.5 + 60)


def test_nothing_is_charged_after_the_stream() -> None:
    functions = [function()]
    cost = simulate(stream_of([(0, 0)], functions, duration_s=10.0), FixedKeepAlive(functions, 60))
    assert cost.idle_s == pytest.approx(7)


@given(st.lists(st.floats(4, 500), min_size=1, max_size=30), st.floats(0, 300))
@settings(max_examples=60)
def test_fixed_keep_alive_against_a_closed_form(gaps: list[float], keep_s: float) -> None:
    """Calls that never overlap: each ends 3 s after its arrival if cold, 1 s if warm, and meets a pod if it comes in time."""
    arrivals = np.cumsum([0.0, *gaps])
    end_s, idle_s, cold = -np.inf, 0.0, 0
    for at in arrivals:
        warm = at <= end_s + keep_s
        idle_s += 0.0 if end_s < 0 else min(at - end_s, keep_s)
        cold += not warm
        end_s = at + (1.0 if warm else 3.0)
    functions = [function()]
    cost = simulate(
        stream_of([(float(at), 0) for at in arrivals], functions, duration_s=1e6), FixedKeepAlive(functions, keep_s)
    )
    assert (cost.cold_waits, cost.warm) == (cold, len(arrivals) - cold)
    assert cost.idle_s == pytest.approx(idle_s + keep_s, abs=1e-6)


POLICIES = {
    "fixed": lambda fs: FixedKeepAlive(fs, 30),
    "pool": lambda fs: ReservedPool(fs, 2, 0.5),
    "delay": lambda fs: DelayPeaks(fs, 5),
    "timer": TimerAware,
    "workflow": WorkflowPrewarm,
    "histogram": lambda fs: Histogram(fs, 100),
    "combined": lambda fs: Combined(fs, 100, 5),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_every_invocation_is_served_once(name: str, seed: int) -> None:
    stream = generate(60, 3600.0, seed)
    cost = simulate(stream, POLICIES[name](stream.functions))
    assert cost.warm + cost.cold_waits + cost.delayed == len(stream) == cost.invocations
    assert sum(cost.by_trigger.values()) == cost.cold_waits
    # Whoever waits has a pod started for it, or takes one that was being started early.
    assert cost.starts - cost.early <= cost.cold_waits <= cost.starts
    assert cost.idle_s > 0 and cost.waited_s > 0
    assert len(cost.useful_s) <= cost.starts and (cost.useful_s >= 0).all()
    again = simulate(stream, POLICIES[name](stream.functions))
    assert (again.idle_s, again.waited_s, again.cold_waits) == (cost.idle_s, cost.waited_s, cost.cold_waits)


def test_a_longer_keep_alive_waits_less_and_idles_more() -> None:
    stream = generate(60, 3600.0)
    costs = [simulate(stream, FixedKeepAlive(stream.functions, keep_s)) for keep_s in (0, 10, 60, 300, 3600)]
    assert costs[0].cold_waits == len(stream) and costs[0].idle_s == 0
    assert all(a.cold_waits >= b.cold_waits and a.idle_s < b.idle_s for a, b in pairwise(costs))


# -- the policies -----------------------------------------------------------------------------------------------------


def test_timers_are_ready_when_they_fire() -> None:
    functions = [function("timer", period_s=300.0)]
    stream = stream_of([(300.0 * i, 0) for i in range(10)], functions)
    aware, fixed = simulate(stream, TimerAware(functions, 60)), simulate(stream, FixedKeepAlive(functions, 60))
    assert (aware.cold_waits, fixed.cold_waits) == (1, 10)
    # Early by the lead (2 s, its start, charged too), and once 5 s in vain; the last due time lies beyond no call.
    assert aware.idle_s == pytest.approx(9 * 2 + 2 + 5)
    assert fixed.idle_s == pytest.approx(10 * 60)


def test_the_stage_after_a_long_one_is_ready_when_it_ends() -> None:
    functions = [function("workflow", child=1), function("workflow")]
    stream = stream_of([(500.0 * i, 0) for i in range(5)], functions, run_s=10.0)
    ahead, fixed = simulate(stream, WorkflowPrewarm(functions, 60)), simulate(stream, FixedKeepAlive(functions, 60))
    # The first time nobody knows how long the first stage takes, and the pod ended before it was wanted.
    assert (ahead.cold_waits, fixed.cold_waits) == (5 + 1, 10)
    assert ahead.early == 5


def test_an_early_start_that_nobody_wants_is_charged() -> None:
    class Eager(FixedKeepAlive):
        def arrived(self, function: int, now_s: float) -> Any:
            from hasten.lab.planning.keepalive import Prewarm

            return Prewarm(1, now_s, now_s + 20)

    functions = [function(), function()]
    cost = simulate(stream_of([(0, 0)], functions), Eager(functions, 0))
    assert (cost.early, cost.starts) == (1, 2)
    assert cost.idle_s == pytest.approx(20)  # 2 s of them its start


def test_a_burst_is_worked_off_by_one_pod_where_it_may_be_delayed() -> None:
    functions = [function("storage")]
    calls = [(0.0, 0), *((2.5, 0) for _ in range(4))]
    late, fixed = (
        simulate(stream_of(calls, functions), DelayPeaks(functions, 30)),
        simulate(stream_of(calls, functions), FixedKeepAlive(functions)),
    )
    assert (late.starts, late.delayed, fixed.starts) == (1, 4, 5)
    assert late.delay_s == pytest.approx(0.5 + 1.5 + 2.5 + 3.5)
    impatient = simulate(stream_of(calls, functions), DelayPeaks(functions, 2))
    assert (impatient.delayed, impatient.cold_waits) == (2, 3)
    asked = [function("api")]  # somebody waits: no delay
    assert simulate(stream_of(calls, asked), DelayPeaks(asked, 30)).starts == 5


def test_a_reserved_pod_saves_its_share_of_a_start() -> None:
    functions = [function()]
    stream = stream_of([(0, 0), (500, 0)], functions, duration_s=1000.0)
    cost = simulate(stream, ReservedPool(functions, 1, 0.25, keep_s=0))
    assert cost.waited_s == pytest.approx(2 * 2.0 * 0.75)
    assert cost.idle_s == pytest.approx(1000)  # one stands ready or is being started, all the time


def test_a_histogram_learns_a_rhythm_and_its_price() -> None:
    functions = [function()]
    regular = stream_of([(200.0 * i, 0) for i in range(40)], functions)
    learned = simulate(regular, Histogram(functions, 1000))
    assert learned.cold_waits <= 8
    assert learned.idle_s < 40 * 60
    dear = simulate(regular, Histogram(functions, 1.0))
    assert dear.cold_waits == 40 and dear.idle_s <= 6 * 60  # nothing is worth it once it knows


def test_a_negative_knob_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_s must be"):
        FixedKeepAlive([], -1)
    with pytest.raises(ValueError, match="worth_s must be"):
        Histogram([], float("nan"))


def gain(gaps: np.ndarray[Any, Any], window: tuple[float, float], worth_s: float, lead_s: float) -> float:
    """What a window saves a gap, one gap at a time."""
    from_s, to_s = window
    begin_s = from_s - lead_s if from_s > 0 else 0.0
    total = 0.0
    for gap in gaps.tolist():
        total += worth_s if from_s <= gap <= to_s else 0.0
        total -= max(0.0, min(gap, to_s) - begin_s)
    return total / len(gaps)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=25),
    st.integers(0, 600),
    st.integers(0, 30),
)
@settings(max_examples=150)
def test_the_window_chosen_is_the_best(gaps: list[int], worth_s: int, lead_s: int) -> None:
    seconds = np.sort(np.array(gaps, dtype=np.float64))
    window = best_window(seconds, worth_s, lead_s)
    best = gain(seconds, window, worth_s, lead_s)
    assert best >= -1e-9
    assert (window == (0.0, 0.0)) == (best <= 0 or window[1] == 0)
    others = [(0.0, to * 1.05 + 1) for to in gaps]
    others += [(seconds[0], to * 1.05 + 1) for to in gaps if seconds[0] >= lead_s]
    assert best >= max(gain(seconds, other, worth_s, lead_s) for other in others) - 1e-9


def test_windows() -> None:
    steady = np.full(20, 300.0)
    from_s, to_s = best_window(steady, 60, 5)
    assert from_s == 300 and 300 <= to_s < 330
    assert best_window(np.full(20, 3.0), 60, 5)[0] == 0 < best_window(np.full(20, 3.0), 60, 5)[1]
    assert best_window(steady, 4, 5) == (0.0, 0.0)


# -- frontiers --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1, max_size=20))
@settings(max_examples=100)
def test_the_hull_is_below_all_points_and_convex(points: list[tuple[float, float]]) -> None:
    x, y = (np.array(column) for column in zip(*points, strict=True))
    hx, hy = lower_hull(x, y)
    assert (hx[0], hx[-1]) == (x.min(), x.max())
    assert (np.diff(hx) > 0).all()
    assert (np.interp(x, hx, hy) <= y + 1e-6 * (1 + np.abs(y))).all()
    assert set(zip(hx, hy, strict=True)) <= set(points)


def test_a_cut_is_taken_at_equal_idle_seconds() -> None:
    def made(name: str, rows: list[tuple[float, int]]) -> Frontier:
        family = Family(name, "knob", tuple(float(i) for i in range(len(rows))), FixedKeepAlive)
        return Frontier(family, tuple(Cost(100, cold_waits=c, waited_s=2.0 * c, idle_s=i) for i, c in rows))

    baseline = made("baseline", [(0, 100), (10, 60), (20, 20)])
    better = made("better", [(5, 40), (15, 20)])
    assert cut(baseline, better, 10) == pytest.approx((0.5, 0.5))
    assert np.isnan(cut(baseline, better, 2)).all()  # it does not reach there
    above = made("above", [(0, 100), (10, 99), (20, 20)])
    assert above.at(10, above.cold_waits) == pytest.approx(60)  # half of the functions each way


def test_a_frontier_has_a_cost_for_each_value() -> None:
    stream = generate(30, 1800.0)
    ticks: list[int] = []
    frontier = trace(stream, FIXED, lambda: ticks.append(1))
    assert len(frontier.costs) == len(FIXED.values) == len(ticks)
    assert (np.diff(frontier.idle_s) >= 0).all() and (np.diff(frontier.cold_waits) <= 0).all()
    assert len({family.name for family in (FIXED, *OTHERS)}) == 1 + len(OTHERS)


def test_the_claim_measures_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    parts = dict.fromkeys(COMPONENTS, 0.1)
    started: list[str] = []

    def fake(config: EngineConfig, count: int, *, resources: str) -> list[Start]:
        started.append(resources)
        return [Start(components=parts, total_s=0.71, resources=resources)] * count

    monkeypatch.setattr(coldstarts, "record", fake)
    monkeypatch.setattr(claim, "DRAWS", 1000)
    monkeypatch.setattr(claim, "generate", lambda functions, duration_s, seed, shares: generate(40, 1800.0, seed, shares))
    shares: list[float] = []
    outcome = claim.CLAIM.run(Setting(quick=True, progress=lambda what, share: shares.append(share)))
    assert set(outcome.samples) == {requirement.name for requirement in claim.CLAIM.requirements}
    assert started == ["bfloat16", "float32"] * 5
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    assert outcome.pictures["serverless-cold-starts"].startswith(b"\x89PNG")
    assert outcome.samples["start-components"] == pytest.approx([100 * 0.7 / 0.71] * 10)
