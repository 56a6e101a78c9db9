"""Token goodput against a count of every token by hand, and what each class counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lab.runs import Life, run_of

from hasten.engine.request import SLO
from hasten.lab.bench.metrics import summary
from hasten.lab.bench.token_goodput import definition, token_goodput

SLOS = {
    "stream": SLO(ttft_s=1.0, tpot_s=0.25),
    "first": SLO(ttft_s=1.0),
    "pace": SLO(tpot_s=0.25),
    "whole": SLO(deadline_s=4.0),
    "both": SLO(ttft_s=1.0, tpot_s=0.25, deadline_s=4.0),
}


def life(slo: str, commits: list[tuple[float, int]], *, ok: bool = True, due_s: float = 0.0, workflow: str = "") -> Life:
    end_s = commits[-1][0] if commits else None
    facts: dict[str, Any] = {"slo_class": slo, "workflow": workflow}
    return Life(due_s=due_s, scheduled_s=due_s, commits=commits, end_s=end_s, ok=ok, facts=facts)


def counted(*lives: Life) -> list[int]:
    found: list[int] = token_goodput(run_of(lives, slos=SLOS)).counted.tolist()
    return found


def test_a_stream_counts_token_by_token() -> None:
    late_once = [(1.0, 1), (1.25, 1), (1.75, 1), (1.75, 1)]  # due 1, 1.25, 1.5, 1.75
    assert counted(life("stream", late_once)) == [3]
    assert counted(life("stream", [(1.5, 1), (1.5, 3)])) == [2], "tokens committed together have one time, and each its own due"
    assert counted(life("stream", late_once, ok=False)) == [3], "what was delivered before it failed was delivered"
    assert counted(life("first", [(1.5, 1), (9.0, 2)])) == [2], "without a pace only the first token has a time"
    assert counted(life("pace", [(5.0, 1), (5.25, 1), (5.75, 1)])) == [2], "without a first time the schedule begins with it"


def test_a_whole_response_counts_whole_or_not() -> None:
    assert counted(life("whole", [(1.0, 2), (4.0, 3)])) == [5]
    assert counted(life("whole", [(1.0, 2), (4.25, 3)])) == [0]
    assert counted(life("whole", [(1.0, 2)], ok=False)) == [0]
    assert counted(life("both", [(1.0, 1), (1.75, 1), (3.0, 1)])) == [1]
    assert counted(life("both", [(1.0, 1), (5.0, 1)])) == [0]
    assert counted(life("", [(99.0, 4)]), life("", [(1.0, 4)], ok=False)) == [4, 0]


def test_a_workflow_counts_as_a_whole() -> None:
    early = life("whole", [(1.0, 2)], workflow="w")
    assert counted(early, life("whole", [(4.0, 3)], due_s=1.0, workflow="w")) == [2, 3]
    # Due at 1 s by itself, but the workflow began at 0.
    assert counted(early, life("whole", [(4.5, 3)], due_s=1.0, workflow="w")) == [0, 0]
    assert counted(early, life("whole", [(4.5, 3)], due_s=1.0, workflow="v")) == [2, 3], "another workflow has its own time"
    assert counted(early, life("whole", [(2.0, 1)], workflow="w", ok=False)) == [0, 0]
    assert counted(early, life("stream", [(9.0, 1)], workflow="w")) == [2, 0], "a call without the deadline is no part of it"


def test_the_run_as_a_whole() -> None:
    run = run_of([life("stream", [(1.0, 2)]), life("whole", [(8.0, 3)], due_s=2.0)], slos=SLOS)
    found = summary(run)
    assert found["token_goodput"] == 2 / 5 and found["token_goodput_per_s"] == 2 / 2
    assert "TTFT <= 1 s and TPOT <= 250 ms for class stream" in definition(run)
    plain = run_of([life("", [(1.0, 2)])])
    assert "token_goodput" not in summary(plain) and definition(plain) == ""


@settings(max_examples=100)
@given(
    lives=st.lists(
        st.tuples(
            st.sampled_from([*SLOS, ""]),
            st.lists(st.tuples(st.integers(1, 8), st.integers(1, 3)), min_size=0, max_size=6),
            st.integers(0, 8),
            st.booleans(),
            st.sampled_from(["", "", "v", "w"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_against_a_plain_count(lives: list[Any]) -> None:
    made = []
    for slo, gaps, due, ok, workflow in lives:
        at, commits = due / 4, []
        for gap, tokens in gaps:
            at += gap / 4
            commits.append((at, tokens))
        made.append(life(slo, commits, ok=ok, due_s=due / 4, workflow=workflow))
    made.sort(key=lambda one: one.due_s)
    run = run_of(made, slos=SLOS)
    found = token_goodput(run)
    for number, one in enumerate(made):
        slo = SLOS.get(one.facts["slo_class"], SLO())
        times = [at for at, tokens in one.commits for _ in range(tokens)]
        streams = slo.ttft_s is not None or slo.tpot_s is not None
        count = len(times)
        if streams:
            begin = one.due_s + slo.ttft_s if slo.ttft_s is not None else (times[0] if times else 0.0)
            pace = slo.tpot_s if slo.tpot_s is not None else 1e9
            count = sum(at <= begin + i * pace for i, at in enumerate(times))
        calls = [one]
        if one.facts["workflow"] and slo.deadline_s is not None:
            same = [other for other in made if other.facts["workflow"] == one.facts["workflow"]]
            calls = [other for other in same if SLOS.get(other.facts["slo_class"], SLO()).deadline_s is not None]
        well = all(call.ok and call.end_s is not None for call in calls)
        if slo.deadline_s is not None:
            begin_s = min(call.due_s for call in calls)
            well = well and max(call.end_s or 0.0 for call in calls) - begin_s <= slo.deadline_s
            count = count if well else 0
        elif not streams and not well:
            count = 0
        assert found.counted[number] == count, (number, one)
    assert found.offered.sum() == sum(max(1, sum(t for _, t in one.commits)) for one in made)
    assert found.share == pytest.approx(found.counted.sum() / found.offered.sum())
    assert np.isfinite(found.share)
