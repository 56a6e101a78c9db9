"""`hasten workloads`: what is printed, written and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hasten.cli.workloads import app
from hasten.lab.workloads import WorkloadError, load


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASTEN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")


def test_list_says_where_things_are() -> None:
    lines = run("list").splitlines()
    (trace,) = [line for line in lines if line.startswith("azure-llm-2023-conv")]
    assert "download" in trace and "19,366 requests" in trace
    (generator,) = [line for line in lines if line.startswith("poisson")]
    assert "generator" in generator and "Poisson arrivals" in generator


def test_show_prints_a_table_and_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "picture.png"
    printed = run("show", "poisson:rate=4,requests=60[0:50]", "--plot", str(file))
    assert "requests per s" in printed and "50" in printed and "log-normal" in printed
    assert file.read_bytes().startswith(b"\x89PNG")


def test_show_as_json() -> None:
    figures = json.loads(run("show", "agents:workflows=3", "--json"))
    assert figures["workflows"] == 3 and figures["name"] == "agents" and figures["period_s"] is None


def test_compare_prints_both_and_their_distances() -> None:
    printed = run("compare", "poisson:requests=100", "gamma:cv=4,requests=100[0:90]")
    assert "gamma:cv=4,requests=100[0:90]" in printed and "ks gaps" in printed
    figures = json.loads(run("compare", "poisson", "poisson:seed=1", "--json"))
    assert figures["distances"]["ks_gaps"] < 0.2 and len(figures["workloads"]) == 2


def test_compare_of_a_workload_with_itself() -> None:
    figures = json.loads(run("compare", "poisson", "poisson", "--json"))
    assert figures["distances"]["ks_gaps"] == 0


def test_export_is_read_back(tmp_path: Path) -> None:
    run("export", "conversations:conversations=5", str(tmp_path / "c.jsonl"))
    assert load(str(tmp_path / "c.jsonl")) == load("conversations:conversations=5")


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no workload is called"):
        run("show", "nothing-like-it")
    done = CliRunner().invoke(app, ["export", "poisson", str(tmp_path / "no" / "such" / "folder.jsonl")])
    assert done.exit_code == 2 and "cannot write" in done.output
