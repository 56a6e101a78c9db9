"""Every figure of a run, against a plain recount of the same lives."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lab.runs import Life, run_of

from hasten.engine.events import Kind
from hasten.engine.request import SLO
from hasten.engine.technique import ConfigError
from hasten.lab.bench import metrics
from hasten.lab.bench.ideal import denoise, fit, slowdown
from hasten.lab.bench.run import Run
from hasten.lab.bench.slo import describe, parse_slo
from hasten.lab.workloads.base import TimedRequest, Workload

TWO = [
    Life(due_s=0.0, scheduled_s=0.5, commits=[(1.0, 1), (1.25, 1), (2.25, 2)], end_s=2.25, reused=4, preempted_s=[1.5]),
    Life(due_s=1.0, scheduled_s=1.0, commits=[(1.5, 1)], end_s=1.5, prompt=20),
]


def test_a_request_by_hand() -> None:
    table = metrics.requests(run_of(TWO))
    assert table.due_s.tolist() == [0.0, 1.0]
    assert table.ttft_s.tolist() == [1.0, 0.5]
    assert table.queue_s.tolist() == [0.5, 0.0]
    assert table.e2e_s.tolist() == [2.25, 0.5]
    assert table.tpot_s[0] == pytest.approx(1.25 / 3) and np.isnan(table.tpot_s[1])
    assert table.longest_stall_s[0] == 1.0 and np.isnan(table.longest_stall_s[1])
    assert table.output_tokens.tolist() == [4, 1] and table.prompt_tokens.tolist() == [10, 20]
    assert table.preemptions.tolist() == [1, 0]
    assert table.reused_tokens.tolist() == [4, 0], "KV found again after a preemption is no prefix hit"


def test_times_count_from_due_not_from_sent() -> None:
    run = run_of(TWO)
    sent_late = run.columns["time_s"].copy()
    sent_late[run.columns["kind"] == Kind.ARRIVED] += 0.4
    run.columns["time_s"] = sent_late
    assert metrics.requests(run).ttft_s.tolist() == [1.0, 0.5]


def test_the_run_as_a_whole() -> None:
    run = run_of(
        TWO, steps=[(0.5, 8), (1.5, 2), (2.5, 10)], total_blocks=10, cpu_s=1.0, peak_memory_bytes=5,
    )  # fmt: skip
    found = metrics.summary(run, SLO(ttft_s=0.6))
    assert found["duration_s"] == 2.25 and found["requests_per_s"] == pytest.approx(2 / 2.25)
    assert found["output_tokens_per_s"] == pytest.approx(5 / 2.25) and found["tokens_per_s"] == pytest.approx(35 / 2.25)
    assert found["goodput"] == 0.5 and found["goodput_per_s"] == pytest.approx(1 / 2.25)
    assert found["kv_mean"] == pytest.approx((0.2 + 0.8) / 2) and found["kv_peak"] == pytest.approx(0.8)
    assert found["gap_p50_s"] == pytest.approx(0.625) and found["longest_stall_s"] == 1.0
    assert found["prefix_hit_rate"] == pytest.approx(4 / 30) and found["cpu_s_per_token"] == pytest.approx(0.2)
    assert found["valid"] == 1.0


def test_a_simulated_run_claims_no_memory_and_no_cpu() -> None:
    found = metrics.summary(run_of(TWO, simulated=True, cpu_s=3.0))
    assert "peak_memory_bytes" not in found and "cpu_s_per_token" not in found


def test_lag_makes_a_run_invalid() -> None:
    run = run_of(TWO)
    run.lag_s[:] = 0.06
    assert metrics.summary(run)["valid"] == 0.0 and not run.valid


def test_failed_and_refused_requests_count_against_goodput() -> None:
    run = run_of([*TWO, Life(due_s=1.0, end_s=2.0, scheduled_s=1.5, ok=False), Life(due_s=1.0)])
    table = metrics.requests(run)
    assert table.ok.tolist() == [True, True, False, False]
    found = metrics.summary(run, SLO(deadline_s=100))
    assert found["failed"] == 2 and found["goodput"] == 0.5


def test_a_class_of_its_own_wins_over_the_general_objective() -> None:
    lives = [Life(commits=[(1.0, 1)], end_s=1.0, facts={"slo_class": "batch"}), Life(commits=[(1.0, 1)], end_s=1.0)]
    run = run_of(lives, slos={"batch": SLO(ttft_s=5.0)})
    assert metrics.met(run, metrics.requests(run), SLO(ttft_s=0.5)).tolist() == [True, False]
    words = metrics.goodput_definition(run, SLO(ttft_s=0.5))
    assert "TTFT <= 5 s for class batch" in words and "TTFT <= 500 ms for the others" in words
    assert metrics.goodput_definition(run_of(TWO), None) == "" and "goodput" not in metrics.summary(run_of(TWO))


def test_workflows_end_with_their_last_stage() -> None:
    lives = [
        Life(due_s=0.0, commits=[(1.0, 1)], end_s=1.0, facts={"workflow": "a"}),
        Life(due_s=1.0, commits=[(3.0, 1)], end_s=3.0, facts={"workflow": "b"}),
        Life(due_s=2.0, commits=[(4.0, 1)], end_s=4.0, facts={"workflow": "a"}),
        Life(due_s=2.0, commits=[(4.0, 1)], end_s=4.0, ok=False, facts={"workflow": "b"}),
        Life(due_s=2.0, commits=[(9.0, 1)], end_s=9.0),
    ]
    run = run_of(lives)
    took_s = metrics.workflows(run, metrics.requests(run))
    assert took_s[0] == 4.0 and np.isnan(took_s[1]) and len(took_s) == 2
    assert metrics.summary(run)["workflow_p50_s"] == 4.0


def test_fairness_is_over_tenants_where_there_are_any() -> None:
    even = [Life(commits=[(1.0, 10)], end_s=1.0) for _ in range(4)]
    assert metrics.summary(run_of(even))["jain"] == pytest.approx(1.0)
    one_starves = [Life(commits=[(1.0, 10)], end_s=1.0, facts={"tenant": "a"}) for _ in range(3)]
    one_starves.append(Life(end_s=1.0, scheduled_s=0.1, ok=False, facts={"tenant": "b"}))
    run = run_of(one_starves)
    assert metrics.summary(run)["jain"] == pytest.approx(0.5)
    assert "tenants" in metrics.fairness_definition(run) and "requests" in metrics.fairness_definition(run_of(even))


def test_a_run_in_which_nothing_happened() -> None:
    run = run_of([Life(), Life()])
    run.columns = {name: column[:0] for name, column in run.columns.items()}
    found = metrics.summary(run, SLO(ttft_s=1.0))
    assert found["failed"] == 2 and found["goodput"] == 0.0 and "ttft_p50_s" not in found


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    out = []
    due = 0.0
    for _ in range(draw(st.integers(1, 6))):
        due += draw(st.integers(0, 4)) / 4
        at = due + draw(st.integers(0, 8)) / 4
        scheduled, commits = at, []
        for _ in range(draw(st.integers(0, 5))):
            at += draw(st.integers(0, 6)) / 4
            commits.append((at, draw(st.integers(1, 3))))
        ended = draw(st.booleans()) or not commits
        out.append(Life(due, scheduled, commits, at if ended else None, draw(st.booleans()) and bool(commits)))
    return out


@settings(max_examples=150)
@given(lives())
def test_the_columns_say_what_a_recount_says(many: list[Life]) -> None:
    run = run_of(many)
    table = metrics.requests(run)
    every = []
    for i, life in enumerate(many):
        times = [at for at, _ in life.commits]
        between = [b - a for a, b in pairwise(times)]
        every += between
        assert table.ok[i] == (life.end_s is not None and life.ok)
        assert table.output_tokens[i] == sum(tokens for _, tokens in life.commits)
        _same(table.ttft_s[i], times[0] - life.due_s if times else None)
        _same(table.e2e_s[i], life.end_s - life.due_s if life.end_s is not None else None)
        _same(table.longest_stall_s[i], max(between, default=None))
    assert sorted(np.round(metrics.gaps(run), 9)) == pytest.approx(sorted(every))


def _same(found: float, expected: float | None) -> None:
    assert np.isnan(found) if expected is None else found == pytest.approx(expected)


def test_a_million_events_take_no_time() -> None:
    n, per = 4_000, 250
    times = np.sort(np.random.default_rng(0).uniform(0, 1e3, n * per))
    sequence = np.tile(np.arange(n), per)
    kind = np.full(n * per, int(Kind.TOKENS), dtype=np.int8)
    columns = {"time_s": times, "kind": kind, "sequence": sequence, "a": np.ones(n * per), "b": np.zeros(n * per)}
    requests = [TimedRequest(id=str(i), arrival_s=0.0, prompt_tokens=1, output_tokens=per) for i in range(n)]
    run = Run("many", Workload(name="many", requests=requests), columns, np.arange(n), 0.0, np.zeros(n), np.zeros(n))
    began = time.process_time()
    table = metrics.requests(run)
    assert time.process_time() - began < 2.0
    assert (table.output_tokens == per).all()


# -- objectives -----------------------------------------------------------------------------------------------------------


def test_objectives_are_read() -> None:
    assert parse_slo("ttft=0.5, tpot=0.05,e2e=10") == SLO(ttft_s=0.5, tpot_s=0.05, deadline_s=10.0)
    assert describe(SLO(ttft_s=0.5, deadline_s=10.0)) == "TTFT <= 500 ms and end-to-end <= 10 s"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no objective"), ("ttft", "no objective"), ("latency=1", "'latency=1'"), ("ttft=x", "no number"),
        ("ttft=0", "above 0"), ("ttft=nan", "above 0"), ("ttft=1,ttft=2", "twice"), ("tpot=-1", "above 0"),
    ],
)  # fmt: skip
def test_wrong_objectives_say_what_is_right(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_slo(text)


# -- idealised runtime ----------------------------------------------------------------------------------------------------

GRID = [(p, o) for p in (1, 256, 512, 1024, 1536) for o in (1, 8, 64)]


def _took(p: int, o: int, context: float = 0.0) -> float:
    return 0.01 + 1e-4 * p + 2e-8 * p * p + 0.004 * (o - 1) + context * sum(p + i for i in range(1, o))


def test_the_fit_finds_the_law_that_made_the_points() -> None:
    found = fit([(p, o, _took(p, o)) for p, o in GRID])
    assert found.token_s == pytest.approx(0.004) and found.r2 == pytest.approx(1.0) and found.worst < 1e-9
    assert found.errors([(256, 32, _took(256, 32))])[0] < 1e-9
    assert found.errors([(768, 32, _took(768, 32))])[0] < 0.1, "interpolated between 512 and 1024"


def test_the_context_term_carries_what_a_constant_cannot() -> None:
    points = [(p, o, _took(p, o, 1e-6)) for p, o in GRID]
    long = [(1536, 512, _took(1536, 512, 1e-6))]
    plain, context = fit(points), fit(points, context=True)
    assert context.context_s == pytest.approx(1e-6) and context.errors(long)[0] < 1e-6 < 0.02 < plain.errors(long)[0]


def test_the_table_never_falls_and_noise_is_taken_out() -> None:
    found = fit([(1, 1, 2.0), (10, 1, 1.0), (20, 1, 3.0), (1, 2, 2.5)])
    assert found.first_s.tolist() == [2.0, 2.0, 3.0]
    assert found.seconds(30, 1) == pytest.approx(4.0) and found.seconds(0.5, 1) == pytest.approx(2.0)
    assert denoise([(1, 1, 3.0), (1, 1, 2.0), (2, 1, 5.0)]) == [(1, 1, 2.0), (2, 1, 5.0)]
    with pytest.raises(ValueError, match="one output token"):
        fit([(1, 2, 1.0)])
    with pytest.raises(ValueError, match="seconds > 0"):
        fit([(1, 1, 0.0), (1, 2, 1.0)])


def test_slowdown_is_against_the_idealised_request() -> None:
    ideal = fit([(10, 1, 0.5), (20, 1, 1.0), (10, 5, 2.5)])
    ratio = slowdown(metrics.requests(run_of([*TWO, Life(due_s=1.0, end_s=2.0, ok=False)])), ideal)
    assert ratio[0] == pytest.approx(2.25 / (0.5 + 3 * 0.5)) and ratio[1] == pytest.approx(0.5) and np.isnan(ratio[2])
