"""Demand graphs against naive references: what is learned, what depends on what, and where walks lead."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.scheduling.demand import gittins
from hasten.engine.scheduling.demand.dependence import amounts_differ, branches_differ
from hasten.engine.scheduling.demand.graph import BY_VISIT, NOBODY, DemandGraph
from hasten.engine.scheduling.demand.prices import Prices
from hasten.engine.scheduling.demand.runs import LoggedCall, Run, Visit, chain
from hasten.engine.scheduling.demand.store import Demand
from hasten.engine.scheduling.demand.tables import Tables, tables
from hasten.engine.scheduling.demand.walks import walk, window
from hasten.engine.technique import ConfigError

PRICES = Prices(token_s=1e-3, draw_s=0.0, read_s=0.0, pair_s=0.0, step_s=0.1, step_tokens=100)
"""A token costs a millisecond, whatever it is."""

# -- the index --------------------------------------------------------------------------------------------------------------


def naive_index(total: list[float], attained: float) -> float:
    """max over D of P(X - a <= D | X > a) / E[min(X - a, D) | X > a], by trying every sample."""
    rest = [x - attained for x in total if x > attained]
    return max(sum(r <= d for r in rest) / sum(min(r, d) for r in rest) for d in rest)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(0, 49))
@settings(max_examples=200)
def test_rank_is_the_inverse_of_the_best_ratio(total: list[int], attained: int) -> None:
    ascending = np.sort(np.array(total, dtype=np.float64))
    if attained >= ascending[-1]:
        assert gittins.after(ascending, attained).tolist() == [max(attained, np.finfo(float).tiny)]
        return
    rest = gittins.after(ascending, attained)
    assert gittins.rank(rest) == pytest.approx(1 / naive_index(ascending.tolist(), attained))
    assert gittins.rank(rest) <= rest.mean() + 1e-9, "waiting for the end is one of the choices"


def test_a_bimodal_job_is_urgent_until_its_short_mode_has_passed() -> None:
    total = np.sort(np.concatenate([np.full(80, 1.0), np.full(20, 100.0)]))
    assert gittins.rank(gittins.after(total, 0.0)) == pytest.approx(1.25), "a second for four chances of five"
    assert gittins.rank(gittins.after(total, 1.0)) == pytest.approx(99.0)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=50), st.integers(1, 12))
def test_buckets_begin_at_nothing_and_end_nowhere(total: list[float], buckets: int) -> None:
    ascending = np.sort(np.array(total))
    edges = gittins.edges(ascending, buckets)
    assert edges[0] == 0.0 and edges[-1] == math.inf and edges[-2] == ascending[-1]
    assert all(a < b for a, b in pairwise(edges.tolist())) and len(edges) <= buckets + 2


# -- what depends on what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_tests_are_those_of_the_textbook(seed: int) -> None:
    from scipy import stats

    rng = np.random.default_rng(seed)
    categories = rng.integers(0, 3, 90)
    values = np.rint(rng.exponential(20, 90) + 8 * categories)
    expected = stats.kruskal(*(values[categories == c] for c in range(3))).pvalue
    assert amounts_differ(values, categories) == pytest.approx(expected)
    outcomes = (rng.random(90) < 0.2 + 0.2 * categories).astype(np.int64)
    table = np.array([[((categories == c) & (outcomes == o)).sum() for o in (0, 1)] for c in range(3)])
    assert branches_differ(outcomes, categories) == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)


def test_independent_data_seldom_looks_dependent() -> None:
    rng = np.random.default_rng(0)
    amounts = [amounts_differ(rng.lognormal(0, 1, 80), rng.integers(0, 4, 80)) for _ in range(400)]
    branches = [branches_differ(rng.integers(0, 2, 80), rng.integers(0, 4, 80)) for _ in range(400)]
    for found in (amounts, branches):
        assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09


def test_too_little_says_nothing() -> None:
    assert amounts_differ(np.arange(6.0), np.array([0, 0, 0, 1, 1, 1])) == 1.0
    assert amounts_differ(np.ones(40), np.arange(40) % 2) == 1.0
    assert branches_differ(np.zeros(40, dtype=np.int64), np.arange(40) % 2) == 1.0


# -- runs -------------------------------------------------------------------------------------------------------------------


def logged(id: str, stage: str, parents: str = "", prompt: int = 10, output: int = 5, **more: object) -> LoggedCall:
    return LoggedCall(id=id, stage=stage, parents=tuple(parents.split()), prompt_tokens=prompt, output_tokens=output, **more)  # type: ignore[arg-type]


def test_calls_that_wait_for_the_same_form_a_unit_and_a_tool_is_one_too() -> None:
    run = chain(
        [
            logged("a", "plan", arrival_s=0.0, end_s=1.0),
            logged("b", "act", "a", 20, 6, delay_s=2.0, tool="browser"),
            logged("c", "check", "a", 30, 7, delay_s=2.0, tool="browser"),
            logged("d", "answer", "b c", 40, 8, delay_s=0.5),
        ]
    )
    assert [(visit.unit, visit.backend, visit.calls, visit.delay_s) for visit in run] == [
        ("plan", "", ((10, 5),), 0.0),
        ("browser", "browser", (), 0.0),
        ("act+check", "", ((20, 6), (30, 7)), 0.0),
        ("answer", "", ((40, 8),), 0.5),
    ]
    assert run[0].duration_s == 1.0 and run[1].duration_s == 2.0 and math.isnan(run[2].duration_s)


def test_calls_without_parents_form_a_unit_when_they_overlap() -> None:
    run = chain([logged(id, id, arrival_s=at, end_s=end) for id, at, end in (("a", 0, 2), ("b", 1, 3), ("c", 4, 5))])
    assert [visit.unit for visit in run] == ["a+b", "c"]


# -- graphs -----------------------------------------------------------------------------------------------------------------


def visit(unit: str, prompt: int = 10, output: int = 10) -> Visit:
    return Visit(unit, calls=((prompt, output),))


def routed(count: int, seed: int = 0) -> list[Run]:
    """Easy ones are answered shortly; hard ones search first, and their answers are long."""
    rng = np.random.default_rng(seed)
    runs: list[Run] = []
    for _ in range(count):
        hard = rng.random() < 0.4
        answer = visit("answer", 10, int(rng.integers(400, 600) if hard else rng.integers(20, 60)))
        search = Visit("search", "search", duration_s=float(rng.uniform(1, 3)))
        runs.append((visit("route"), search, answer) if hard else (visit("route"), answer))
    return runs


def looping(count: int, seed: int = 0) -> list[Run]:
    """Two tries or ten, nothing between; what a try writes tells nothing."""
    rng = np.random.default_rng(seed)
    return [tuple(visit("try", 10, int(rng.integers(10, 90))) for _ in range(rng.choice([2, 10]))) for _ in range(count)]


def growing(count: int, seed: int = 0) -> list[Run]:
    """Long plans lead to long work."""
    rng = np.random.default_rng(seed)
    plans = rng.integers(10, 1000, count).tolist()
    return [(visit("plan", 10, plan), visit("work", 10, int(plan * rng.uniform(0.9, 1.1)))) for plan in plans]


def of(runs: list[Run]) -> tuple[DemandGraph, Tables]:
    graph = DemandGraph("app", tuple(runs))
    return graph, tables(graph, PRICES)


def totals(
    table: Tables, unit: str, history: dict[str, int], *, seen: dict[str, int] | None = None, walks: int = 4000
) -> np.ndarray:
    graph = table.graph
    past = [history.get(name, 0) for name in graph.units] * 2
    times = [(seen or {}).get(name, 0) for name in graph.units]
    number = graph.number[unit]
    times[number] = max(1, times[number])
    around = window(table.cell(number, times[number], past), table.prompt, 10)
    return walk(table, number, times, past, around, walks, np.random.default_rng(0)).service_s


def test_the_branch_that_was_taken_tells_what_comes() -> None:
    graph, table = of(routed(200))
    route, answer, search = (graph.number[name] for name in ("route", "answer", "search"))
    assert graph.features.demand[answer] % 3 == search and graph.features.demand_p[answer] < 1e-6
    assert graph.features.demand[route] == NOBODY and graph.features.branch[route] == NOBODY
    past = [0] * 6
    past[route] = past[route + 3] = 1
    easy = table.cell(answer, 1, past)
    past[search], past[search + 3] = graph.buckets(search, 2.0, 0.0)
    hard = table.cell(answer, 1, past)
    assert table.output[hard].min() >= 400 and table.output[easy].max() < 60
    service = totals(table, "route", {})
    runs = np.array([sum(sum(call) for v in run[1:] for call in v.calls) for run in graph.runs]) * 1e-3
    assert service.mean() == pytest.approx(runs.mean(), rel=0.1)
    assert np.quantile(service, [0.1, 0.9]) == pytest.approx(np.quantile(runs, [0.1, 0.9]), rel=0.2)


def test_loops_repeat_as_often_as_they_did() -> None:
    graph, table = of(looping(120))
    assert graph.features.demand == [NOBODY]
    assert table.chances(0, 1, [1, 1]).tolist() == [1.0, 0.0]
    assert 0.3 < table.chances(0, 2, [1, 1])[0] < 0.7
    assert table.chances(0, 5, [1, 1])[0] == 1.0 and table.chances(0, 10, [1, 1])[0] == 0.0
    later = totals(table, "try", {}, walks=8000) / 1e-3
    # One more try, or nine, of 60 tokens each on average.
    assert np.mean(later < 200) == pytest.approx(np.mean([len(run) == 2 for run in graph.runs]), abs=0.03)
    assert later[later >= 200].min() > 9 * 20 and later[later >= 200].mean() == pytest.approx(9 * 60, rel=0.05)


def test_what_comes_later_goes_with_what_came() -> None:
    graph, table = of(growing(200))
    plan, work = graph.number["plan"], graph.number["work"]
    assert graph.features.demand[work] == plan + 2, "what the plan writes, not what it reads"
    low, high = (table.output[table.cell(work, 1, [1, 0, bucket, 0])] for bucket in (1, 4))
    assert low.max() < high.min()
    # The walk draws a plan, puts it into its bucket and goes on from there: totals keep their tail.
    later = totals(table, "plan", {}) / 1e-3 - 10
    assert np.quantile(later, 0.95) > 850 and np.quantile(later, 0.05) < 150


def test_independent_units_are_not_told_apart() -> None:
    rng = np.random.default_rng(3)
    runs: list[Run] = [
        (visit("a", 10, int(rng.integers(1, 500))), visit("b", 10, int(rng.integers(1, 500)))) for _ in range(150)
    ]
    graph, _ = of(runs)
    assert graph.features.demand == [NOBODY, NOBODY] and graph.features.branch == [NOBODY, NOBODY]


def test_visits_that_differ_by_number_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    graph, table = of([tuple(visit("step", 10, 100 * n + int(rng.integers(20))) for n in (1, 2, 3)) for _ in range(40)])
    assert graph.features.demand == [BY_VISIT]
    assert [int(table.output[table.cell(0, n, [1, 1])].min()) // 100 for n in (1, 2, 3)] == [1, 2, 3]


def test_outputs_go_with_prompts_that_are_like_the_known_one() -> None:
    rng = np.random.default_rng(0)
    _, table = of([(visit("a", n := int(rng.integers(10, 1000)), n),) for _ in range(200)])
    for known in (50, 500, 950):
        around = window(table.cell(0, 1, [0, 0]), table.prompt, known)
        found = walk(table, 0, [1], [0, 0], around, 500, np.random.default_rng(0))
        assert abs(np.median(found.output) - known) < 200
        assert found.following.tolist() == [0.0, 1.0]


def test_walks_are_the_same_for_a_seed() -> None:
    _, table = of(routed(60))
    assert totals(table, "route", {}).tolist() == totals(table, "route", {}).tolist()


def test_a_graph_needs_runs_and_names_that_repeat() -> None:
    with pytest.raises(ValueError, match="no runs"):
        DemandGraph("app", ())
    with pytest.raises(ValueError, match="name stages by what they do"):
        DemandGraph("app", tuple((visit(f"stage {i}"),) for i in range(200)))


# -- files ------------------------------------------------------------------------------------------------------------------


def test_graphs_are_kept_and_merge_as_if_learned_together(tmp_path: Path) -> None:
    runs = routed(60)
    one, other = (
        Demand({"app": DemandGraph("app", tuple(runs[:30]))}, {"search": 2.0}),
        Demand({"app": DemandGraph("app", tuple(runs[30:])), "b": DemandGraph("b", (runs[0],))}, {"search": 3.0}),
    )
    merged = one.merged(other)
    merged.save(tmp_path / "demand.json")
    loaded = Demand.load(tmp_path / "demand.json")
    assert loaded.warm_s == {"search": 3.0}
    assert loaded.graphs["app"].units == DemandGraph("app", tuple(runs)).units
    assert [[v.calls for v in run] for run in loaded.graphs["app"].runs] == [[v.calls for v in run] for run in runs]
    assert set(loaded.graphs) == {"app", "b"}


def content(runs: str, warm: str = "") -> str:
    graphs = f'{{"a":{{"units":["x"],"backends":[""],"runs":[{runs}]}}}}'
    return f'{{"format":"hasten demand 1","warm_s":{{{warm}}},"applications":{graphs}}}'


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"format":"hasten demand 1"}',
        content("[[0,0,null,[[5,1]]]]", '"a":-1'),
        content("[[3,0,null,[]]]"),
        content("[[0,0,null,[[0,1]]]]"),
        content("[[0,0,null]]"),
        content(""),
    ],
)
def test_files_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "demand.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        Demand.load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Demand.load(tmp_path / "none.json")
