"""`hasten bench serve` and `compare`, as a person calls them; the servers are stubs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import hasten
from hasten.cli.bench import app
from hasten.engine.technique import ConfigError
from hasten.lab.bench import stub

BUILTIN = Path(hasten.__file__).with_name("builtin_model")
needs_builtin = pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")
WORK = ("--workload", "poisson:rate=100,requests=20,seed=1@lengths=0.05")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stub.running(interval_s=0.0005) as address:
        yield address


def call(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments), env=dict(os.environ))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_serve_against_a_server(url: str, tmp_path: Path) -> None:
    to, report = tmp_path / "r.json", tmp_path / "r.html"
    done = call(
        "serve", "--url", url, *WORK, "--rate", "50", "--slo", "ttft=5,tpot=1", "--json", str(to), "--report", str(report)
    )
    assert done.exit_code == 0, done.output
    assert "TTFT" in done.output and "goodput: 100.0%" in done.output and "jointly kept TTFT <= 5 s" in done.output
    figures = json.loads(to.read_text())["runs"][0]
    assert figures["figures"]["completed"] == 20 and not figures["errors"] and figures["info"]["url"] == url
    assert figures["figures"]["duration_s"] > 0.3, "20 requests at 50 a second"
    assert "<svg" in report.read_text()


def test_requests_are_held_against_themselves_alone(url: str, tmp_path: Path) -> None:
    to = tmp_path / "r.json"
    done = call("serve", "--url", url, *WORK, "--rate", "50", "--ideal", "--json", str(to))
    assert done.exit_code == 0, done.output
    assert "Idealised runtime" in done.output
    figures = json.loads(to.read_text())["runs"][0]["figures"]
    assert 0.3 < figures["slowdown_p50"] <= figures["slowdown_p99"]


@needs_builtin
def test_text_is_replayed_in_this_process(tmp_path: Path) -> None:
    path, to = tmp_path / "text.jsonl", tmp_path / "r.json"
    path.write_text('{"arrival_s": 0, "text": "Once upon a time", "output_tokens": 3}\n')
    done = call("serve", "--workload", str(path), "--json", str(to))
    assert done.exit_code == 0, done.output
    figures = json.loads(to.read_text())["runs"][0]["figures"]
    assert figures["completed"] == 1 and 1 <= figures["prompt_tokens"] <= 16


def test_two_servers_beside_each_other(url: str, tmp_path: Path) -> None:
    to, report = tmp_path / "r.json", tmp_path / "r.html"
    with stub.running(interval_s=0.005) as slow:
        done = call("compare", url, slow, *WORK, "--rounds", "2", "--json", str(to), "--report", str(report))
    assert done.exit_code == 0, done.output
    found = json.loads(to.read_text())
    assert found["names"] == [url, slow] and len(found["runs"]) == 4
    [tpot] = [one for one in found["compared"] if one["figure"]["key"] == "tpot_p50_s"]
    assert tpot["better"] == "a" and tpot["ratio"]["low"] > 1.5
    assert "ratio" in done.output and "2 rounds" in done.output and "Side by side" in report.read_text()


def test_the_search_fills_the_curve(url: str, tmp_path: Path) -> None:
    report = tmp_path / "r.html"
    slo = ("--slo", "ttft=0.000001", "--search", "0.9")  # nobody is that fast: only how it ends can be known beforehand
    done = call("serve", "--url", url, "--workload", "poisson:rate=1000,requests=3@lengths=0.01", *slo, "--report", str(report))
    assert done.exit_code == 0, done.output
    assert "No rate was found" in done.output and "Throughput and latency" in report.read_text()


@needs_builtin
def test_techniques_beside_each_other_in_this_process(tmp_path: Path) -> None:
    to = tmp_path / "r.json"
    few = ("--workload", "poisson:rate=50,requests=6@lengths=0.05", "--load", "0.5", "--set", "model.max_length=128")
    done = call("compare", "plain", "whole-prompts", *few, "--rounds", "1", "--json", str(to))
    assert done.exit_code == 0, done.output
    assert "50% of the saturation throughput" in done.output
    runs = json.loads(to.read_text())["runs"]
    assert [run["name"] for run in runs] == ["plain", "whole-prompts"]
    assert runs[0]["figures"]["output_tokens"] == runs[1]["figures"]["output_tokens"] > 0
    assert "peak_memory_bytes" not in runs[0]["figures"] and "queue_p50_s" in runs[0]["figures"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", *WORK, "--load", "0.5", "--rate", "3"), "not both"),
        (("serve", *WORK, "--rate", "0"), "above 0"),
        (("serve", *WORK, "--search", "0.9"), "needs --slo"),
        (("serve", *WORK, "--slo", "ttft=1", "--search", "1.5"), "at most 1"),
        (("compare", "plain", "plain", *WORK, "--rounds", "0"), "rounds"),
    ],
)
def test_contradictions_are_usage_errors(arguments: tuple[str, ...], said: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2 and said in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", *WORK, "--slo", "ttft=fast"), "no number of seconds"),
        (("serve", "--workload", "no-such-trace"), "no-such-trace"),
        (("serve", *WORK, "--url", "http://127.0.0.1:9"), "no answer from"),
        (("compare", "plain", "prefix-treee", *WORK), "prefix-treee"),
        (("compare", "plain", "missing.toml", *WORK), "missing.toml"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call(*arguments)
