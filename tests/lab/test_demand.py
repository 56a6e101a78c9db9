"""Demand from workloads: generated applications, graphs learned and shown, orders that know, and a simulated owner of
backends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hasten.cli.demand import app as commands
from hasten.engine.config import EngineConfig
from hasten.engine.scheduling.base import Hint
from hasten.engine.scheduling.demand.store import Demand
from hasten.lab import workloads
from hasten.lab.bench import metrics
from hasten.lab.bench.drive import replay
from hasten.lab.claims.virtual import h100
from hasten.lab.planning import demand as learning
from hasten.lab.planning.backends import PATIENCE_S, Owner
from hasten.lab.planning.oracle import OracleSRPT
from hasten.lab.workloads.applications import KINDS, applications
from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_varies_at_least_as_much_as_its_mean(kind: str) -> None:
    work = applications(workflows=1500, kind=kind, seed=3)
    tokens: dict[str, int] = {}
    for request in work:
        tokens[request.workflow] = tokens.get(request.workflow, 0) + request.prompt_tokens + request.output_tokens
        assert request.application == kind and bool(request.tool) <= bool(request.parents)
    values = np.array(list(tokens.values()))
    assert values.std() / values.mean() >= 1.0


def test_a_graph_has_the_units_of_its_kind() -> None:
    demand = learning.learn(applications(workflows=1000, seed=1), warm_s={"sandbox": 2.0})
    coder = demand.graphs["coder"]
    assert set(coder.units) == {"plan", "write", "sandbox", "review"}
    assert coder.backends[coder.number["sandbox"]] == "sandbox"
    assert coder.between[coder.number["write"], coder.number["write"]] == coder.number["sandbox"]
    report = demand.graphs["report"]
    written = report.number["outline"] + len(report.units)
    assert report.features.demand[report.number["section"]] == written, "as many as the outline says"
    told_by = coder.features.branch[coder.number["sandbox"]]
    assert told_by == coder.number["plan"] + len(coder.units), "hard tasks have long plans, and are tried again"


def test_a_replay_adds_durations() -> None:
    work = applications(workflows=10, seed=1, kind="assistant")
    run = replay(h100().engine(EngineConfig.build()), work)
    visits = [visit for graph in learning.learn(work, run).graphs.values() for one in graph.runs for visit in one]
    assert all(visit.duration_s > 0 for visit in visits)


def test_halves_share_no_workflow() -> None:
    work = applications(workflows=11, seed=2)
    one, other = learning.halves(work)
    names = [{request.workflow for request in part} for part in (one, other)]
    assert not names[0] & names[1] and len(names[0]) == 6 and len(names[1]) == 5


def test_shuffled_demand_keeps_what_is_there_and_deals_it_out() -> None:
    demand = learning.learn(applications(workflows=200, seed=1))
    dealt = learning.shuffled(demand, 1)

    def amounts(of: Demand) -> list[tuple[tuple[int, int], ...]]:
        return sorted(visit.calls for graph in of.graphs.values() for run in graph.runs for visit in run if visit.calls)

    assert amounts(demand) == amounts(dealt) and set(demand.graphs) == set(dealt.graphs)
    assert any(dealt.graphs[name].units != graph.units for name, graph in demand.graphs.items()), "graphs are traded"


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(WorkloadError, match="names its application"):
        learning.learn(workloads.load("poisson:requests=5"))
    with pytest.raises(WorkloadError, match="no kind of application"):
        applications(kind="painter")


# -- the command line -------------------------------------------------------------------------------------------------------


def test_learn_show_merge(tmp_path: Path) -> None:
    a, b, both = (str(tmp_path / f"{name}.json") for name in "ab2")
    run = CliRunner()
    made = run.invoke(commands, ["learn", "applications:workflows=60", "-o", a, "--warm", "sandbox=2.5"])
    assert made.exit_code == 0, made.output
    assert run.invoke(commands, ["learn", "applications:workflows=40,seed=5", "-o", b]).exit_code == 0
    assert run.invoke(commands, ["merge", a, b, "-o", both]).exit_code == 0
    merged = Demand.load(both)
    assert sum(len(graph.runs) for graph in merged.graphs.values()) == 100 and merged.warm_s == {"sandbox": 2.5}
    png = tmp_path / "graph.png"
    shown = run.invoke(commands, ["show", both, "--application", "coder", "--plot", str(png)])
    assert shown.exit_code == 0 and "sandbox" in shown.output, shown.output
    assert png.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(run.invoke(commands, ["show", both, "--json"]).output)
    assert sum(facts["coder"]["write"]["next"].values()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["learn", "poisson:requests=5", "-o", "x.json"],
        ["learn", "applications", "-o", "x.json", "--warm", "sandbox"],
        ["learn", "applications", "-o", "x.json", "--warm", "sandbox=-1"],
        ["show", "none.json"],
    ],
)
def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code != 0 and str(result.exception)


# -- orders that know -------------------------------------------------------------------------------------------------------


def test_knowing_helps_and_applications_are_more_than_their_calls() -> None:
    work = replace(applications(workflows=40, seed=4), name="all at once")
    work = replace(work, requests=[replace(r, arrival_s=0.0) for r in work])
    means = {}
    for per in (None, "request", "application"):
        order = OracleSRPT(work, per) if per else None
        run = replay(h100().engine(EngineConfig.build(set_=["scheduling.max_rows=8"]), order=order), work)
        means[per] = float(np.nanmean(metrics.workflows(run, metrics.requests(run))))
    assert means["application"] < means["request"] and means["application"] < 0.8 * means[None]


# -- the owner of backends --------------------------------------------------------------------------------------------------


def owner(*uses: tuple[str, float], keep_s: float = 0.0) -> Owner:
    """Workflow "0" uses the box once, and so on: request 2 i + 1 is the one behind it."""
    requests = []
    for i, (tool, delay_s) in enumerate(uses):
        common = {"prompt_tokens": 1, "output_tokens": 1, "workflow": str(i)}
        requests.append(TimedRequest(id=f"{i}a", arrival_s=float(i), **common))  # type: ignore[arg-type]
        behind = {"id": f"{i}b", "arrival_s": 0.0, "parents": (f"{i}a",), "tool": tool, "delay_s": delay_s}
        requests.append(TimedRequest(**behind, **common))  # type: ignore[arg-type]
    return Owner(Workload(name="w", requests=requests), {"box": 3.0}, keep_s)


def test_without_a_hint_the_use_waits_for_the_start() -> None:
    one = owner(("box", 2.0), ("none", 1.0))
    assert one.delay(1, 10.0) == 5.0 and one.delay(3, 10.0) == 1.0
    cost = one.finish(100.0)
    assert (cost.invocations, cost.cold_waits, cost.waited_s, cost.idle_s) == (1, 1, 3.0, 0.0)


def test_a_hint_in_time_saves_the_wait_and_costs_the_start() -> None:
    one = owner(("box", 2.0))
    one.hint(Hint("box", "0"), 6.0)
    assert one.delay(1, 10.0) == 2.0
    assert one.finish(100.0).idle_s == 4.0 and one.cost.warm == 1
    late = owner(("box", 2.0))
    late.hint(Hint("box", "0"), 9.0)
    assert late.delay(1, 10.0) == 4.0, "two seconds of the start are left"


def test_a_hint_taken_back_or_forgotten_is_charged() -> None:
    one = owner(("box", 2.0), ("box", 2.0))
    one.hint(Hint("box", "0"), 6.0)
    one.hint(Hint("box", "0", wanted=False), 8.0)
    one.hint(Hint("box", "1"), 20.0)
    assert one.delay(3, 500.0) == 5.0, "it was given up"
    assert one.finish(600.0).idle_s == pytest.approx(2.0 + 3.0 + PATIENCE_S) and one.cancelled == 1


def test_idle_instances_are_kept_and_used_again() -> None:
    one = owner(("box", 2.0), ("box", 2.0), ("box", 2.0), keep_s=10.0)
    assert one.delay(1, 0.0) == 5.0
    assert one.delay(3, 8.0) == 2.0
    assert one.delay(5, 40.0) == 5.0
    assert one.finish(41.0).idle_s == pytest.approx(3.0 + 10.0), "three seconds idle, then ten in vain"


def test_all_calls_of_a_stage_wait_for_one_use() -> None:
    one = owner(("box", 2.0))
    twin = replace(one.workload.requests[1], id="0c")
    one.workload = replace(one.workload, requests=[*one.workload.requests, twin])
    assert one.delay(1, 10.0) == one.delay(2, 10.0) == 5.0
    assert one.finish(20.0).invocations == 1
